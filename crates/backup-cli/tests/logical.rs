//! Logical backups on the command line: imported, shown, exported.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use cli::Pgark;
use pgark::ErrorKind;
use support::logical::Place;
use support::{sample, server, sql};

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_goes_in_and_comes_out() {
    let server = server();
    sql(&server, "postgres", &sample(500)).await;
    let folder = server.folder().to_owned();
    let url = move |name: &str| format!("host={} user=postgres dbname={name}", folder.display());
    let place = Place::new(15, "/usr/lib/postgresql/15/bin", url);
    let pgark = Pgark::new();
    let (repo, dump) = (pgark.place("repo"), pgark.place("postgres.dump"));
    place.dump("postgres", dump.as_ref(), &["--format=custom"]);
    let (key, recipient) = pgark.key("key");

    let no_dump = pgark.place("no_dump");
    std::fs::write(&no_dump, "SELECT 1;").unwrap();
    pgark.fails(&["import", &no_dump, "--repo", &repo], ErrorKind::Integrity);
    assert!(!std::path::Path::new(&repo).exists(), "a file that is none leaves no repository");

    let made = pgark.json(&["import", &dump, "--repo", &repo, "--recipient", &recipient]);
    assert_eq!(
        (&made["new_repository"], &made["backup"]["source"]["imported"]),
        (&true.into(), &"custom".into())
    );
    let id = made["backup"]["id"].as_str().unwrap();
    let report = pgark.json(&["verify", id, "--repo", &repo, "--identity", &key]);
    assert_eq!(report["good"], true, "{report}");

    pgark.fails(&["show", "--contents", "--repo", &repo], ErrorKind::KeyMissing);
    let shown = pgark.json(&["show", "--contents", "--repo", &repo, "--identity", &key]);
    let tables = shown["contents"]["databases"][0]["tables"].as_array().unwrap();
    let people = tables.iter().find(|table| table["name"] == "people").unwrap();
    assert_eq!((&people["rows"], &people["schema"]), (&500.into(), &"public".into()));
    assert_eq!(shown["contents"]["databases"][0]["large_objects"]["count"], 1);
    let text = pgark.text(&["show", "--contents", "--repo", &repo, "--identity", &key]);
    assert!(text.contains("public.people") && text.contains("500"), "{text}");

    let to = pgark.place("shop.dir");
    let all = ["export", "--repo", &repo, "--identity", &key, "--to", &to];
    let done = pgark.json(&all);
    assert_eq!(done["exported"]["target"]["tables"], tables.len());
    place.restore_and_compare(to.as_ref(), "back", &[&["--jobs=2"]], "postgres").await;
    pgark.fails(&all, ErrorKind::Conflict);

    let stdout = ["export", "--repo", &repo, "--identity", &key, "--to", "-"];
    let csv = pgark.text(&[&stdout[..], &["--table", "public.parted_a", "--format", "csv"]].concat());
    assert!(csv.starts_with("id,at\n1,2026-01-02\n"), "{}", &csv[..40]);
    let script = pgark.text(&[&stdout[..], &["--format", "plain"]].concat());
    assert!(script.contains("-- PostgreSQL database dump complete"), "{script}");
    for wrong in [&["--format", "csv"][..], &["--table", "people", "--format", "custom"], &["--raw"]] {
        // With --json the answer would go to standard output as well, which is wrong for itself.
        let output = pgark.run(&[&stdout[..], wrong].concat());
        cli::failure(&output, ErrorKind::Usage);
    }
    pgark.fails(&["export", "--repo", &repo, "--identity", &key, "--to", &to, "--raw"], ErrorKind::Usage);
}
