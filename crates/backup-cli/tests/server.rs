//! Whole servers: backed up, listed, shown and restored by the command.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use cli::{Pgark, said};
use pgark::ErrorKind;
use serde_json::{Value, json};
use support::{server, sql};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_there_and_back_and_one_that_lacks_a_database() {
    let source = server();
    for statement in [
        "CREATE ROLE modest LOGIN PASSWORD 'very secret'",
        "CREATE DATABASE one OWNER modest",
        "CREATE DATABASE \"two 2\" OWNER modest",
        "ALTER DATABASE one SET work_mem = '5MB'",
    ] {
        sql(&source, "postgres", statement).await;
    }
    sql(&source, "one", "SET ROLE modest; CREATE TABLE t AS SELECT generate_series(1, 100) AS i").await;
    let pgark = Pgark::new();
    let repo = pgark.place("repo");
    let db = format!("host={} port={} user=postgres", source.folder().display(), source.port());
    let backup = ["backup", "--repo", &repo, "--db", &db, "--all-databases"];

    let plan = pgark.json(&[&backup[..], &["--dry-run"]].concat());
    assert_eq!(plan["preview"]["databases"], json!(["one", "postgres", "two 2"]));
    pgark.fails(&["list", "--repo", &repo], ErrorKind::NotARepository);
    let whole = pgark.json(&backup)["backup"].clone();
    assert_eq!(whole["source"]["databases"], json!(["one", "postgres", "two 2"]));
    assert_eq!((&whole["source"]["globals"], &whole["source"]["partial"]), (&"whole".into(), &Value::Null));
    let shown = pgark.text(&["show", "--repo", &repo]);
    assert!(
        shown.contains("databases    one, postgres, two 2\n") && shown.contains("globals      whole\n"),
        "{shown}"
    );

    // Another role's table, which the owner of the database may not read.
    sql(&source, "one", "CREATE TABLE hidden (x int)").await;
    let modest = db.replace("user=postgres", "user=modest");
    let backup = ["backup", "--repo", &repo, "--db", &modest, "--all-databases"];
    let output = pgark.run(&backup);
    assert_eq!(output.status.code(), Some(46), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("PARTIAL: it lacks databases: one\n") && text.contains("hidden"), "{text}");
    let output = pgark.run(&[&["--json"], &backup[..]].concat());
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(46), true), "{}", said(&output));
    let partial: Value = serde_json::from_slice(&output.stdout).unwrap();
    let partial = &partial["backup"];
    assert_eq!(
        (&partial["source"]["partial"], &partial["source"]["databases_failed"]),
        (&true.into(), &json!(["one"]))
    );
    let list = pgark.text(&["list", "--repo", &repo]);
    assert!(
        list.contains("all 3") && list.contains("2 of 3: partial") && list.contains("it lacks one;"),
        "{list}"
    );
    assert_eq!(pgark.json(&["show", "--repo", &repo])["backup"]["id"], whole["id"], "the last complete one");
    let shown = pgark.text(&["show", partial["id"].as_str().unwrap(), "--repo", &repo]);
    assert!(
        shown.contains("PARTIAL      it lacks one\n") && shown.contains("globals      without passwords\n"),
        "{shown}"
    );

    let target = server();
    let into = format!("host={} port={} user=postgres", target.folder().display(), target.port());
    let restore = ["restore", "--repo", &repo, "--into", &into];
    let hint = pgark.fails(&restore, ErrorKind::Usage).hint;
    assert!(hint.contains("--database") && hint.contains("one, postgres, two 2"), "{hint}");
    assert_eq!(pgark.run(&[&restore[..], &["--globals"]].concat()).status.code(), Some(2));
    // Without its roles nothing of the database can be given to them.
    let failure = pgark.run(&[&restore[..], &["--all-databases", "--quiet"]].concat());
    assert_eq!(failure.status.code(), Some(46), "{}", said(&failure));
    assert!(said(&failure).contains("modest"), "{}", said(&failure));
    assert!(sql(&target, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'one'").await.is_empty());
    sql(&target, "postgres", "DROP DATABASE IF EXISTS \"two 2\"").await;

    let done = pgark.text(&[&restore[..], &["--all-databases", "--globals"]].concat());
    assert!(done.contains("into globals and 3 databases of PostgreSQL"), "{done}");
    let owner = "SELECT pg_get_userbyid(datdba), (SELECT setconfig FROM pg_db_role_setting) FROM pg_database WHERE datname = 'one'";
    assert_eq!(sql(&target, "one", owner).await, [["modest", "{work_mem=5MB}"].map(|t| Some(t.to_owned()))]);
    pgark.fails(&[&restore[..], &["--all-databases"]].concat(), ErrorKind::Conflict).says("one");
    let other = format!("{into} dbname=other");
    let one = pgark.json(&["restore", "--repo", &repo, "--into", &other, "--database", "one"]);
    assert_eq!(one["restored"]["target"]["database"], "other");
    assert_eq!(sql(&target, "other", "SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
    let globals = pgark.json(&[&restore[..], &["--globals-only"]].concat());
    assert_eq!(globals["restored"]["target"]["globals"]["roles_kept"], json!(["modest", "postgres"]));
}
