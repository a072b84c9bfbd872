//! `sslmode` and what goes with it.

use pgark::ErrorKind::{Auth, Config, Usage};
use pgark::postgres::TempServer;

use crate::certificates::{Authority, Identity, self_signed, version_1};
use crate::{
    Encrypted, Ends, Fails, Plain, at_home, expect, expect_alone, listening, nothing, serve, with_tls, write,
};

const ANYBODY: &[&str] = &["host all all 127.0.0.1/32 trust"];

/// Settings for a server's port on 127.0.0.1, up to host and TLS.
fn base(server: &TempServer) -> String {
    format!("port={} user=postgres dbname=postgres", server.port())
}

#[tokio::test]
async fn each_sslmode_trusts_as_much_as_it_says() {
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let server = with_tls(&right.server(&["localhost", "127.0.0.1"]), ANYBODY);
    let folder = tempfile::tempdir().unwrap();
    let right = format!("sslrootcert={}", write(folder.path(), "right.crt", &right.pem(), 0o644));
    let wrong = format!("sslrootcert={}", write(folder.path(), "wrong.crt", &wrong.pem(), 0o644));
    let garbage = format!("sslrootcert={}", write(folder.path(), "garbage.crt", "not PEM\n", 0o644));
    let (right, wrong, garbage) = (right.as_str(), wrong.as_str(), garbage.as_str());
    let missing = "sslrootcert=/nonexistent/root.crt";
    let (name, address) = ("host=localhost", "host=127.0.0.1");
    let other = "host=db.example.org hostaddr=127.0.0.1";
    for (host, mode, roots, ends) in [
        (name, "sslmode=disable", "", Plain),
        (name, "sslmode=allow", "", Plain),
        (name, "sslmode=prefer", "", Encrypted),
        (name, "", "", Encrypted),
        (name, "sslmode=require", "", Encrypted),
        (other, "sslmode=require", "", Encrypted),
        // With authorities at hand, `require` verifies them.
        (name, "sslmode=require", right, Encrypted),
        (other, "sslmode=require", right, Encrypted),
        (name, "sslmode=require", wrong, Fails(Auth, "unknownissuer")),
        (name, "sslmode=verify-ca", right, Encrypted),
        (other, "sslmode=verify-ca", right, Encrypted),
        (name, "sslmode=verify-ca", wrong, Fails(Auth, "unknownissuer")),
        (name, "sslmode=verify-ca", "", Fails(Config, "authorities")),
        (name, "sslmode=verify-ca", missing, Fails(Config, "/nonexistent/root.crt")),
        (name, "sslmode=verify-ca", garbage, Fails(Config, "garbage.crt")),
        (name, "sslmode=verify-full", right, Encrypted),
        (address, "sslmode=verify-full", right, Encrypted),
        ("host=localhost hostaddr=127.0.0.1", "sslmode=verify-full", right, Encrypted),
        (other, "sslmode=verify-full", right, Fails(Auth, "db.example.org")),
        (name, "sslmode=verify-full", wrong, Fails(Auth, "unknownissuer")),
        (name, "sslmode=verify-full", "", Fails(Config, "authorities")),
        (name, "sslmode=full", right, Fails(Usage, "sslmode")),
    ] {
        expect(&format!("{} {host} {mode} {roots}", base(&server)), &nothing(), ends).await;
    }
    // The system's authorities mean verify-full, and none of them signed this server. libpq 15 does not know them.
    for (mode, ends) in [("", Fails(Auth, "unknownissuer")), ("sslmode=require", Fails(Usage, "verify-full"))]
    {
        let settings = format!("{} {name} {mode} sslrootcert=system", base(&server));
        expect_alone(&settings, &nothing(), ends).await;
    }
    // libpq verifies here as well, and goes on in the clear when that fails.
    let settings = format!("{} {name} sslmode=prefer {wrong}", base(&server));
    expect_alone(&settings, &nothing(), Encrypted).await;
    // TLS is nothing for a socket, whatever the mode asks for.
    expect(&format!("{} sslmode=verify-full", server.url("postgres")), &nothing(), Plain).await;
}

#[tokio::test]
async fn authorities_and_names_are_found_at_home() {
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let server = with_tls(&right.server(&["localhost"]), ANYBODY);
    let (good, bad) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(good.path(), ".postgresql/root.crt", &right.pem(), 0o644);
    write(bad.path(), ".postgresql/root.crt", &wrong.pem(), 0o644);
    for (mode, home, ends) in [
        ("verify-full", &good, Encrypted),
        ("require", &good, Encrypted),
        ("verify-ca", &bad, Fails(Auth, "unknownissuer")),
        ("require", &bad, Fails(Auth, "unknownissuer")),
    ] {
        let settings = format!("{} host=localhost sslmode={mode}", base(&server));
        expect(&settings, &at_home(home.path()), ends).await;
    }
    // libpq would refuse what stands on this list; pgark cannot read it.
    write(good.path(), ".postgresql/root.crl", "", 0o644);
    let settings = format!("{} host=localhost sslmode=verify-full", base(&server));
    expect_alone(&settings, &at_home(good.path()), Fails(pgark::ErrorKind::Unsupported, "root.crl")).await;
}

#[tokio::test]
async fn a_certificate_for_another_name() {
    let authority = Authority::new("authority");
    let server = with_tls(&authority.server(&["db.example.org"]), ANYBODY);
    let folder = tempfile::tempdir().unwrap();
    let roots = write(folder.path(), "root.crt", &authority.pem(), 0o644);
    for (host, mode, ends) in [
        ("host=localhost", "verify-ca", Encrypted),
        ("host=localhost", "verify-full", Fails(Auth, "localhost")),
        ("host=127.0.0.1", "verify-full", Fails(Auth, "127.0.0.1")),
        ("hostaddr=127.0.0.1", "verify-full", Fails(Auth, "127.0.0.1")),
        ("host=db.example.org hostaddr=127.0.0.1", "verify-full", Encrypted),
    ] {
        expect(&format!("{} {host} sslmode={mode} sslrootcert={roots}", base(&server)), &nothing(), ends)
            .await;
    }
}

/// A server with this certificate, reached as `host` with `roots` as authorities.
async fn verified(identity: &Identity, roots: &str, cases: &[(&str, &str, Ends)]) {
    let server = with_tls(identity, ANYBODY);
    let folder = tempfile::tempdir().unwrap();
    let roots = write(folder.path(), "root.crt", roots, 0o644);
    for (host, mode, ends) in cases {
        let settings =
            format!("{} host={host} hostaddr=127.0.0.1 sslmode={mode} sslrootcert={roots}", base(&server));
        expect(&settings, &nothing(), *ends).await;
    }
}

#[tokio::test]
async fn a_server_that_signed_itself_is_trusted_by_its_own_certificate() {
    let identity = self_signed("localhost", &["localhost"], false);
    let cases = [
        ("localhost", "verify-full", Encrypted),
        ("db", "verify-ca", Encrypted),
        ("db", "verify-full", Fails(Auth, "db")),
    ];
    verified(&identity, &identity.certificate, &cases).await;
    // As the manual's `openssl req -new -x509 -subj "/CN=…"` makes it: no alternative name.
    let identity = self_signed("localhost", &[], false);
    verified(&identity, &identity.certificate, &cases).await;
    let other = self_signed("localhost", &["localhost"], false);
    verified(&identity, &other.certificate, &[("localhost", "verify-ca", Fails(Auth, "certificate"))]).await;
}

#[tokio::test]
async fn a_certificate_that_ran_out_is_not_trusted() {
    let identity = self_signed("localhost", &["localhost"], true);
    let cases = [
        ("localhost", "verify-ca", Fails(Auth, "expired")),
        ("localhost", "verify-full", Fails(Auth, "expired")),
    ];
    verified(&identity, &identity.certificate, &cases).await;
}

#[tokio::test]
async fn a_name_in_the_subject_counts_where_there_is_no_other() {
    let authority = Authority::new("authority");
    let pem = authority.pem();
    let identity = authority.old_style_server("localhost");
    let cases = [
        ("localhost", "verify-full", Encrypted),
        ("LOCALHOST", "verify-full", Encrypted),
        ("db", "verify-full", Fails(Auth, "db")),
        ("db", "verify-ca", Encrypted),
    ];
    verified(&identity, &pem, &cases).await;
    let identity = authority.old_style_server("*.example.org");
    let cases = [
        ("db.example.org", "verify-full", Encrypted),
        ("a.db.example.org", "verify-full", Fails(Auth, "a.db")),
        ("example.org", "verify-full", Fails(Auth, "example")),
    ];
    verified(&identity, &pem, &cases).await;
}

#[tokio::test]
async fn a_certificate_of_version_1_is_no_reason_to_go_without_tls() {
    let server = with_tls(&version_1(), ANYBODY);
    for mode in ["prefer", "require"] {
        expect(&format!("{} host=localhost sslmode={mode}", base(&server)), &nothing(), Encrypted).await;
    }
    // TLS 1.2 signs its handshake another way.
    let server = listening(ANYBODY, |options| {
        serve(options, &version_1());
        options.settings.push("ssl_max_protocol_version = 'TLSv1.2'".into());
    });
    expect(&format!("{} host=localhost sslmode=require", base(&server)), &nothing(), Encrypted).await;
}

#[tokio::test]
async fn protocol_versions_are_those_that_are_asked_for() {
    let identity = Authority::new("authority").server(&["localhost"]);
    let server = listening(ANYBODY, |options| {
        serve(options, &identity);
        options.settings.push("ssl_max_protocol_version = 'TLSv1.2'".into());
    });
    for (versions, ends) in [
        ("", Encrypted),
        ("ssl_min_protocol_version=TLSv1.2", Encrypted),
        ("ssl_min_protocol_version=TLSv1", Encrypted),
        ("ssl_max_protocol_version=TLSv1.2", Encrypted),
        ("ssl_min_protocol_version=TLSv1.3", Fails(Auth, "tls")),
        ("ssl_max_protocol_version=TLSv1.1", Fails(pgark::ErrorKind::Unsupported, "tls")),
        ("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", Fails(Usage, "protocol")),
        ("ssl_min_protocol_version=SSLv3", Fails(Usage, "sslv3")),
    ] {
        expect(&format!("{} host=localhost sslmode=require {versions}", base(&server)), &nothing(), ends)
            .await;
    }
}

#[tokio::test]
async fn a_server_without_tls() {
    let server = listening(ANYBODY, |_| ());
    let folder = tempfile::tempdir().unwrap();
    let roots = write(folder.path(), "root.crt", &Authority::new("any").pem(), 0o644);
    for (mode, ends) in [
        ("disable", Plain),
        ("allow", Plain),
        ("prefer", Plain),
        ("require", Fails(Auth, "server does not support tls")),
        ("verify-full", Fails(Auth, "server does not support tls")),
    ] {
        let settings = format!("{} host=localhost sslmode={mode} sslrootcert={roots}", base(&server));
        expect(&settings, &nothing(), ends).await;
    }
}

#[tokio::test]
async fn direct_negotiation_needs_a_mode_that_insists() {
    let server = listening(ANYBODY, |_| ());
    for mode in ["disable", "allow", "prefer"] {
        let settings = format!("{} host=localhost sslmode={mode} sslnegotiation=direct", base(&server));
        expect(&settings, &nothing(), Fails(Usage, "sslnegotiation")).await;
    }
    let settings = format!("{} host=localhost sslmode=require sslnegotiation=later", base(&server));
    expect(&settings, &nothing(), Fails(Usage, "later")).await;
}

#[tokio::test]
async fn allow_and_prefer_try_the_other_way() {
    let identity = Authority::new("authority").server(&["localhost"]);
    let server = with_tls(
        &identity,
        &[
            "hostssl all only_tls all trust",
            "hostnossl all only_plain all trust",
            "hostssl all tls_password all scram-sha-256",
            "hostnossl all plain_password all scram-sha-256",
        ],
    );
    for role in ["only_tls", "only_plain", "tls_password", "plain_password"] {
        crate::support::sql(&server, "postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'right'")).await;
    }
    let no_entry = Fails(Auth, "pg_hba.conf");
    // Of two refusals the one that got further is told.
    let wrong = Fails(Auth, "the password of user");
    let no_database = Fails(pgark::ErrorKind::NoDatabase, "nowhere");
    for (user, more, allow, prefer, disable, require) in [
        ("only_tls", "", Encrypted, Encrypted, no_entry, Encrypted),
        ("only_plain", "", Plain, Plain, Plain, no_entry),
        ("tls_password", "password=right", Encrypted, Encrypted, no_entry, Encrypted),
        ("plain_password", "password=right", Plain, Plain, Plain, no_entry),
        ("tls_password", "password=wrong", wrong, wrong, no_entry, wrong),
        ("plain_password", "password=wrong", wrong, wrong, wrong, no_entry),
        ("only_tls", "dbname=nowhere", no_database, no_database, no_entry, no_database),
        ("only_plain", "dbname=nowhere", no_database, no_database, no_database, no_entry),
        ("nobody_here", "", no_entry, no_entry, no_entry, no_entry),
    ] {
        for (mode, ends) in [("allow", allow), ("prefer", prefer), ("disable", disable), ("require", require)]
        {
            let settings = format!(
                "host=localhost port={} dbname=postgres user={user} sslmode={mode} {more}",
                server.port()
            );
            expect(&settings, &nothing(), ends).await;
        }
    }
}
