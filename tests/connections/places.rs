//! Where settings come from: password files, services, variables.

use std::path::Path;

use pgark::ErrorKind::{Auth, Config};
use pgark::postgres::Environment;

use crate::support::sql;
use crate::{Fails, Plain, at_home, expect, listening, nothing, write};

fn with(mut environment: Environment, variables: &[(&str, &str)]) -> Environment {
    environment
        .variables
        .extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment
}

#[tokio::test]
async fn passwords_are_found_where_libpq_finds_them() {
    let server = listening(&["host all all all scram-sha-256"], |_| ());
    sql(&server, "postgres", r"CREATE ROLE ann LOGIN PASSWORD 'co:lon\back'").await;
    let port = server.port().to_string();
    let settings = format!("host=localhost port={port} user=ann dbname=postgres");
    let unknown = Fails(Auth, "none is known");
    let line = format!(
        "# mine\nelsewhere:*:*:*:no\nlocalhost:{port}:postgres:ann:co\\:lon\\\\back\n*:*:*:*:wrong\n"
    );
    let home = |contents: &str, mode: u32| {
        let home = tempfile::tempdir().unwrap();
        write(home.path(), ".pgpass", contents, mode);
        home
    };

    let good = home(&line, 0o600);
    expect(&settings, &at_home(good.path()), Plain).await;
    let open = home(&line, 0o640);
    expect(&settings, &at_home(open.path()), unknown).await;
    let other = home("localhost:1:*:*:no\n", 0o600);
    expect(&settings, &at_home(other.path()), unknown).await;
    // The first line that fits counts, even where a later one would be right.
    let first = home(&format!("*:*:*:ann:wrong\n{line}"), 0o600);
    expect(&settings, &at_home(first.path()), Fails(Auth, "the password of user")).await;
    // A host by its address is the name in the file.
    let address = home("127.0.0.1:*:postgres:ann:co\\:lon\\\\back\n", 0o600);
    expect(&settings.replace("host=localhost", "hostaddr=127.0.0.1"), &at_home(address.path()), Plain).await;

    let file = good.path().join(".pgpass").display().to_string();
    expect(&format!("{settings} passfile={file}"), &nothing(), Plain).await;
    expect(&settings, &with(nothing(), &[("PGPASSFILE", &file)]), Plain).await;
    expect(&settings, &with(nothing(), &[("PGPASSWORD", r"co:lon\back")]), Plain).await;
    // What is said aloud goes before the file.
    expect(&format!("{settings} password=wrong"), &at_home(good.path()), Fails(Auth, "the password of user"))
        .await;
    let uri = format!("postgresql://ann:co%3Alon%5Cback@localhost:{port}/postgres");
    expect(&uri, &nothing(), Plain).await;
}

#[tokio::test]
async fn services_and_variables_complete_each_other() {
    let server = listening(&["host all all all scram-sha-256"], |_| ());
    sql(&server, "postgres", "CREATE ROLE ann LOGIN PASSWORD 'right'").await;
    sql(&server, "postgres", "CREATE DATABASE shop").await;
    let port = server.port().to_string();
    let home = tempfile::tempdir().unwrap();
    let service = format!(
        "[other]\nhost=/nonexistent\n\n[shop]\n# a comment\nhost = localhost\nport={port}\nuser=ann\npassword=right\ndbname=shop\n"
    );
    write(home.path(), ".pg_service.conf", &service, 0o644);
    let own = home.path().join(".pg_service.conf").display().to_string();
    let system = tempfile::tempdir().unwrap();
    write(system.path(), "pg_service.conf", &service, 0o644);
    let system = system.path().display().to_string();

    let database = async |settings: &str, environment: &Environment| {
        let info = pgark::postgres::ConnInfo::resolve(settings, environment).unwrap();
        let session = info.connect().await.unwrap();
        session.value("SELECT current_database() || ' ' || current_user || ' ' || current_setting('application_name')").await.unwrap().unwrap()
    };
    for (settings, environment, found) in [
        ("service=shop", at_home(home.path()), "shop ann pgark"),
        ("postgresql:///?service=shop", at_home(home.path()), "shop ann pgark"),
        ("service=shop dbname=postgres", at_home(home.path()), "postgres ann pgark"),
        ("", with(at_home(home.path()), &[("PGSERVICE", "shop")]), "shop ann pgark"),
        ("service=shop", with(nothing(), &[("PGSERVICEFILE", &own)]), "shop ann pgark"),
        ("service=shop", with(nothing(), &[("PGSYSCONFDIR", &system)]), "shop ann pgark"),
        // A service goes before variables.
        (
            "service=shop",
            with(at_home(home.path()), &[("PGDATABASE", "postgres"), ("PGPORT", "1")]),
            "shop ann pgark",
        ),
        (
            "",
            with(
                nothing(),
                &[
                    ("PGHOST", "localhost"),
                    ("PGPORT", &port),
                    ("PGUSER", "ann"),
                    ("PGPASSWORD", "right"),
                    ("PGDATABASE", "postgres"),
                    ("PGAPPNAME", "mine"),
                ],
            ),
            "postgres ann mine",
        ),
        (
            "shop",
            with(
                nothing(),
                &[("PGHOST", "localhost"), ("PGPORT", &port), ("PGUSER", "ann"), ("PGPASSWORD", "right")],
            ),
            "shop ann pgark",
        ),
    ] {
        assert_eq!(database(settings, &environment).await, found, "{settings} {environment:?}");
    }
    expect("service=nowhere", &at_home(home.path()), Fails(Config, "nowhere")).await;
    let options = with(nothing(), &[("PGOPTIONS", "-c default_transaction_read_only=on")]);
    let info = pgark::postgres::ConnInfo::resolve(
        &format!("host=localhost port={port} user=ann password=right dbname=shop"),
        &options,
    )
    .unwrap();
    assert_eq!(
        info.connect().await.unwrap().value("SHOW default_transaction_read_only").await.unwrap().as_deref(),
        Some("on")
    );
}

#[tokio::test]
async fn a_socket_is_found_by_its_folder() {
    let server = listening(&[], |_| ());
    let folder = server.folder().display().to_string();
    let escaped = folder.replace('/', "%2F");
    let port = server.port();
    for (settings, variables) in [
        (format!("host={folder} port={port} user=postgres"), vec![]),
        (format!("postgresql://postgres@{escaped}:{port}/postgres"), vec![]),
        (format!("postgresql:///postgres?host={folder}&port={port}&user=postgres"), vec![]),
        ("user=postgres".to_owned(), vec![("PGHOST", folder.clone()), ("PGPORT", port.to_string())]),
    ] {
        let variables: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (*n, v.as_str())).collect();
        expect(&settings, &with(nothing(), &variables), Plain).await;
    }
    assert!(Path::new(&folder).join(format!(".s.PGSQL.{port}")).exists());
    expect(
        &format!("host={folder} port=1 user=postgres"),
        &nothing(),
        Fails(pgark::ErrorKind::Connect, ".s.pgsql.1"),
    )
    .await;
}
