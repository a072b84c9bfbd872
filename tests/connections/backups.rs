//! Whole backups: `pg_dump` connects as pgark itself does.

use std::path::Path;

use pgark::logical::Dump;
use pgark::postgres::{ConnInfo, Environment, TempServer, Tools};
use pgark::{Backup, CancellationToken};

use crate::certificates::Authority;
use crate::support::{memory_repository, sql};
use crate::{at_home, listening, nothing, serve, write};

/// A server that notes who connects, and how.
fn noting(hba: &[&str], authority: &Authority) -> TempServer {
    listening(hba, |options| {
        serve(options, &authority.server(&["localhost"]));
        options.files.push(("clients.crt".into(), authority.pem()));
        options.settings.push("ssl_ca_file = 'clients.crt'\nlog_connections = on".into());
    })
}

/// What the server noted about the sessions of a user.
fn sessions(server: &TempServer, user: &str) -> Vec<String> {
    let log = std::fs::read_to_string(server.folder().join("log")).unwrap();
    let wanted = format!("connection authorized: user={user} ");
    log.lines().filter(|line| line.contains(&wanted)).map(str::to_owned).collect()
}

/// A `pg_dump` that writes its environment down first.
fn watched(folder: &Path) -> Tools {
    let tool = Tools::installed().find("pg_dump", 15).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || env > '{}'\nexec '{}' \"$@\"\n",
        folder.join("environment").display(),
        tool.path.display()
    );
    write(folder, "bin/pg_dump", &script, 0o755);
    Tools::in_folder(folder.join("bin"))
}

async fn back_up(settings: &str, environment: &Environment, tools: Tools) {
    let info = ConnInfo::resolve(settings, environment).unwrap();
    let (repository, _) = memory_repository().await;
    let backup =
        Backup::builder().repository(repository).dumper(Dump::new(info).tools(tools)).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    assert!(summary.raw_bytes > 10_000 && summary.warnings.is_empty(), "{summary:?}");
}

const TABLE: &str = "CREATE TABLE t AS SELECT i, md5(i::text) AS x FROM generate_series(1, 1000) i; GRANT SELECT ON t TO PUBLIC";

#[tokio::test(flavor = "multi_thread")]
async fn over_verified_tls_with_a_password_of_the_password_file() {
    let authority = Authority::new("authority");
    let server = noting(&["hostssl all ann all scram-sha-256"], &authority);
    sql(&server, "postgres", TABLE).await;
    sql(&server, "postgres", "CREATE ROLE ann LOGIN PASSWORD 's3cret'").await;
    let home = tempfile::tempdir().unwrap();
    write(home.path(), ".pgpass", &format!("localhost:{}:*:ann:s3cret\n", server.port()), 0o600);
    let roots = write(home.path(), "root.crt", &authority.pem(), 0o644);
    let settings = format!("host=localhost port={} dbname=postgres user=ann", server.port());
    let verified = format!("{settings} sslmode=verify-full channel_binding=require sslrootcert={roots}");
    back_up(&verified, &at_home(home.path()), watched(home.path())).await;

    let given = std::fs::read_to_string(home.path().join("environment")).unwrap();
    for wanted in [
        "PGSSLMODE=verify-full",
        "PGCHANNELBINDING=require",
        &format!("PGSSLROOTCERT={roots}"),
        "PGPASSWORD=s3cret",
        "PGHOST=localhost",
        "PGUSER=ann",
        "PGDATABASE=postgres",
        &format!("PGPORT={}", server.port()),
    ] {
        assert!(given.lines().any(|line| line == wanted), "pg_dump was not told {wanted}");
    }
    // pgark's own session and that of pg_dump.
    let found = sessions(&server, "ann");
    assert!(found.len() >= 2 && found.iter().all(|line| line.contains("SSL enabled")), "{found:?}");

    // The authorities at home are those of pgark's home, for pg_dump too.
    write(home.path(), ".postgresql/root.crt", &authority.pem(), 0o644);
    back_up(&format!("{settings} sslmode=verify-full"), &at_home(home.path()), Tools::installed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_certificate() {
    let authority = Authority::new("authority");
    let server = noting(&["hostssl all bob all cert"], &authority);
    sql(&server, "postgres", TABLE).await;
    sql(&server, "postgres", "CREATE ROLE bob LOGIN").await;
    let folder = tempfile::tempdir().unwrap();
    let bob = authority.client("bob");
    let certificate = write(folder.path(), "bob.crt", &bob.certificate, 0o644);
    let key = write(folder.path(), "bob.key", &bob.key, 0o600);
    let roots = write(folder.path(), "root.crt", &authority.pem(), 0o644);
    let settings =
        format!("host=localhost port={} dbname=postgres user=bob sslmode=verify-full", server.port());
    let named = format!("{settings} sslrootcert={roots} sslcert={certificate} sslkey={key}");
    back_up(&named, &nothing(), Tools::installed()).await;
    let found = sessions(&server, "bob");
    assert!(found.len() >= 2 && found.iter().all(|line| line.contains("SSL enabled")), "{found:?}");

    let home = tempfile::tempdir().unwrap();
    write(home.path(), ".postgresql/root.crt", &authority.pem(), 0o644);
    write(home.path(), ".postgresql/postgresql.crt", &bob.certificate, 0o644);
    write(home.path(), ".postgresql/postgresql.key", &bob.key, 0o600);
    back_up(&settings, &at_home(home.path()), Tools::installed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_where_none_is_wanted_and_at_the_host_that_answered() {
    let authority = Authority::new("authority");
    let server = noting(&["host all all all trust"], &authority);
    sql(&server, "postgres", TABLE).await;
    sql(&server, "postgres", "CREATE ROLE eve LOGIN").await;
    let dead = crate::support::free_port();
    let settings = format!(
        "host=localhost,localhost port={dead},{} dbname=postgres user=eve sslmode=disable",
        server.port()
    );
    back_up(&settings, &nothing(), Tools::installed()).await;
    let found = sessions(&server, "eve");
    assert!(found.len() >= 2 && found.iter().all(|line| !line.contains("SSL enabled")), "{found:?}");
}
