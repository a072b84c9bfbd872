//! Passwords, client certificates, and what a server says to those it does not know.

use pgark::ErrorKind::{Auth, Config, NoDatabase, Usage};

use crate::certificates::Authority;
use crate::support::sql;
use crate::{
    Encrypted, Fails, Plain, at_home, expect, expect_alone, listening, nothing, serve, with_tls, write,
};

#[tokio::test]
async fn a_password_with_and_without_channel_binding() {
    let identity = Authority::new("authority").server(&["localhost"]);
    let server = with_tls(
        &identity,
        &[
            "host all md5_role all md5",
            "host all clear all password",
            "host all open all trust",
            "host all all all scram-sha-256",
        ],
    );
    sql(&server, "postgres", "CREATE ROLE ann LOGIN PASSWORD 'it''s right'; CREATE ROLE clear LOGIN PASSWORD 'it''s right'; CREATE ROLE open LOGIN").await;
    sql(
        &server,
        "postgres",
        "SET password_encryption = md5; CREATE ROLE md5_role LOGIN PASSWORD 'it''s right'",
    )
    .await;
    let right = r"password='it\'s right'";
    let wrong = Fails(Auth, "the password of user");
    let unbound = Fails(Auth, "channel binding");
    for (user, password, more, ends) in [
        ("ann", right, "sslmode=require", Encrypted),
        ("ann", right, "sslmode=disable", Plain),
        ("ann", "password=wrong", "sslmode=require", wrong),
        ("ann", "password=wrong", "sslmode=disable", wrong),
        ("ann", "password=wrong", "", wrong),
        ("ann", "", "sslmode=require", Fails(Auth, "none is known")),
        ("ann", "", "sslmode=disable", Fails(Auth, "none is known")),
        ("ann", "", "", Fails(Auth, "none is known")),
        ("ann", right, "sslmode=require channel_binding=require", Encrypted),
        ("ann", right, "sslmode=require channel_binding=disable", Encrypted),
        ("ann", right, "sslmode=disable channel_binding=require", unbound),
        ("ann", right, "channel_binding=requrie", Fails(Usage, "requrie")),
        ("md5_role", right, "sslmode=disable", Plain),
        ("md5_role", "password=wrong", "sslmode=disable", wrong),
        ("md5_role", right, "sslmode=require channel_binding=require", unbound),
        ("clear", right, "sslmode=require", Encrypted),
        ("clear", "", "sslmode=require", Fails(Auth, "none is known")),
        // Nor does a server get the password in the clear, or no password at all.
        ("clear", right, "sslmode=require channel_binding=require", unbound),
        ("open", "", "sslmode=require channel_binding=require", unbound),
    ] {
        let settings =
            format!("host=localhost port={} dbname=postgres user={user} {password} {more}", server.port());
        expect(&settings, &nothing(), ends).await;
    }
}

#[tokio::test]
async fn a_client_certificate() {
    let authority = Authority::new("authority");
    let server = listening(&["hostssl all bob all cert"], |options| {
        serve(options, &authority.server(&["localhost"]));
        options.files.push(("clients.crt".into(), authority.pem()));
        options.settings.push("ssl_ca_file = 'clients.crt'".into());
    });
    sql(&server, "postgres", "CREATE ROLE bob LOGIN").await;
    let folder = tempfile::tempdir().unwrap();
    let pair = |name: &str, identity: &crate::certificates::Identity| {
        let certificate = write(folder.path(), &format!("{name}.crt"), &identity.certificate, 0o644);
        let key = write(folder.path(), &format!("{name}.key"), &identity.key, 0o600);
        format!("sslcert={certificate} sslkey={key}")
    };
    let bob = authority.client("bob");
    let bobs = pair("bob", &bob);
    let open_key = write(folder.path(), "open.key", &bob.key, 0o644);
    let group_key = write(folder.path(), "group.key", &bob.key, 0o640);
    let no_key = write(folder.path(), "garbage.key", "not PEM\n", 0o600);
    let certificate = format!("sslcert={}", folder.path().join("bob.crt").display());
    let other_key = pair("other", &authority.client("other"));
    let other_key = other_key.split_whitespace().last().unwrap();
    let is_root =
        std::fs::metadata(&group_key).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap() == 0;
    for (settings, ends) in [
        (bobs.clone(), Encrypted),
        (String::new(), Fails(Auth, "certificate")),
        (pair("ann", &authority.client("ann")), Fails(Auth, "certificate")),
        (format!("{certificate} sslkey={open_key}"), Fails(Config, "can be read by others")),
        // A key of root's may be readable for its group, as Debian's is.
        (
            format!("{certificate} sslkey={group_key}"),
            if is_root { Encrypted } else { Fails(Config, "can be read by others") },
        ),
        (format!("{certificate} sslkey=/nonexistent.key"), Fails(Config, "/nonexistent.key")),
        (format!("{certificate} sslkey={no_key}"), Fails(Config, "garbage.key")),
        (format!("{certificate} {other_key}"), Fails(Config, "key")),
        (certificate.clone(), Fails(Config, "no key")),
        (format!("sslcert=/nonexistent.crt sslkey={open_key}"), Fails(Config, "/nonexistent")),
    ] {
        for mode in ["require", "prefer"] {
            let settings = format!(
                "host=localhost port={} dbname=postgres user=bob sslmode={mode} {settings}",
                server.port()
            );
            expect(&settings, &nothing(), ends).await;
        }
    }
    // What must not be shown is not shown. libpq 15 does not know how to say so.
    for (mode, ends) in
        [("disable", Fails(Auth, "certificate")), ("allow", Encrypted), ("never", Fails(Usage, "never"))]
    {
        let settings = format!(
            "host=localhost port={} dbname=postgres user=bob sslmode=require {bobs} sslcertmode={mode}",
            server.port()
        );
        expect_alone(&settings, &nothing(), ends).await;
    }
    let home = tempfile::tempdir().unwrap();
    write(home.path(), ".postgresql/postgresql.crt", &bob.certificate, 0o644);
    let settings = format!("host=localhost port={} dbname=postgres user=bob sslmode=require", server.port());
    expect(&settings, &at_home(home.path()), Fails(Config, "no key")).await;
    write(home.path(), ".postgresql/postgresql.key", &bob.key, 0o600);
    expect(&settings, &at_home(home.path()), Encrypted).await;
}

#[tokio::test]
async fn who_and_what_is_not_there() {
    let server = listening(&["host all all all trust"], |_| ());
    sql(&server, "postgres", "CREATE DATABASE private").await;
    sql(
        &server,
        "postgres",
        "REVOKE CONNECT ON DATABASE private FROM PUBLIC; CREATE ROLE shut_out LOGIN; CREATE ROLE never",
    )
    .await;
    for (settings, ends) in [
        ("user=nobody_here dbname=postgres", Fails(Auth, "nobody_here")),
        ("user=postgres dbname=nowhere", Fails(NoDatabase, "nowhere")),
        ("user=shut_out dbname=private", Fails(Auth, "private")),
        ("user=never dbname=postgres", Fails(Auth, "never")),
        ("user=postgres dbname=template0", Fails(pgark::ErrorKind::Connect, "template0")),
    ] {
        for place in ["host=127.0.0.1".to_owned(), format!("host={}", server.folder().display())] {
            expect(&format!("{place} port={} {settings}", server.port()), &nothing(), ends).await;
        }
    }
}

#[tokio::test]
async fn a_client_certificate_of_a_stranger() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    // With TLS 1.3 a server says no after the handshake. With either it may have hung up before its word can be read.
    let server = listening(&["hostssl all all all trust"], |options| {
        serve(options, &authority.server(&["localhost"]));
        options.files.push(("clients.crt".into(), authority.pem()));
        options.settings.push("ssl_ca_file = 'clients.crt'\nssl_max_protocol_version = 'TLSv1.2'".into());
    });
    let folder = tempfile::tempdir().unwrap();
    let identity = stranger.client("postgres");
    let certificate = write(folder.path(), "stranger.crt", &identity.certificate, 0o644);
    let key = write(folder.path(), "stranger.key", &identity.key, 0o600);
    let settings =
        format!("host=localhost port={} dbname=postgres user=postgres sslmode=require", server.port());
    expect(&settings, &nothing(), Encrypted).await;
    let settings = format!("{settings} sslcert={certificate} sslkey={key}");
    expect(&settings, &nothing(), Fails(Auth, "no trusted tls connection")).await;
}
