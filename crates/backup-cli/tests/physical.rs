//! Physical backups and restores as a script sees them, killed ones too.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;

use cli::Pgark;
use pgark::ErrorKind;
use rustix::process::{Pid, Signal, kill_process};
use support::physical::server_with_checksums;
use support::{connect, fingerprint, sample, server, sql};

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_shown() {
    let server = server_with_checksums();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 10000) n").await;
    sql(&server, "postgres", "CHECKPOINT").await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let backup = ["backup", "--repo", &repo, "--db", &db, "--physical"];
    let sound = pgark.json(&backup)["backup"]["id"].as_str().unwrap().to_owned();

    let path = sql(&server, "postgres", "SELECT pg_relation_filepath('t')").await[0][0].clone().unwrap();
    let file = std::fs::File::options().write(true).open(server.data().join(path)).unwrap();
    file.write_all_at(&[0x5a; 512], 8192 + 4000).unwrap();
    let made = pgark.json(&backup);
    assert_eq!(made["backup"]["source"]["checksum_failures"], true, "{made}");
    let damaged = made["backup"]["id"].as_str().unwrap();

    let listed = pgark.text(&["list", "--repo", &repo]);
    let said: Vec<&str> = listed.lines().filter(|line| line.starts_with("damaged pages: ")).collect();
    assert!(said.len() == 1 && said[0].contains(damaged), "{listed}");
    assert!(pgark.text(&["show", "--repo", &repo, damaged]).contains("\ndamaged "));
    assert!(!pgark.text(&["show", "--repo", &repo, &sound]).contains("\ndamaged "));
}

/// Whether a server could take the folder for a data directory.
fn can_be_started(folder: &Path) -> bool {
    folder.join("global/pg_control").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_is_finished_by_the_next_one() {
    let server = server();
    sql(&server, "postgres", &sample(3000)).await;
    let large =
        "CREATE TABLE large AS SELECT n, repeat(md5(n::text), 20) AS x FROM generate_series(1, 200000) n";
    sql(&server, "postgres", large).await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    pgark.json(&["backup", "--repo", &repo, "--db", &db, "--physical"]);
    let target = server.folder().join("copy");
    let there = target.display().to_string();
    let restore = ["restore", "--repo", &repo, "latest", "--target-dir", &there];
    // How long one takes.
    let begun = std::time::Instant::now();
    pgark.json(&restore);
    let whole = begun.elapsed();
    std::fs::remove_dir_all(&target).unwrap();

    let (mut killed, mut begun) = (0, 0);
    for n in 0..12_u32 {
        let mut child = pgark.command(&restore).spawn().unwrap();
        // Moments all over it, a little beyond its end as well.
        std::thread::sleep(whole * (n * 7 % 12 + 1) / 12);
        if child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        }
        if child.wait().unwrap().success() {
            // It was whole before its time: nothing may touch it any more.
            pgark.fails(&restore, ErrorKind::Conflict).says("not empty");
            assert!(can_be_started(&target));
            std::fs::remove_dir_all(&target).unwrap();
            continue;
        }
        killed += 1;
        let marked = target.join("pgark.restore").exists();
        begun += u32::from(marked);
        assert!(!can_be_started(&target) || marked, "it looks like a whole one");
    }
    assert!(killed > 5 && begun > 3, "{killed} were killed, {begun} of them in the middle");
    if !can_be_started(&target) || target.join("pgark.restore").exists() {
        pgark.json(&restore);
    }
    let copy = server.start_on(&target).unwrap();
    let (source, copy) = (connect(&db).await, connect(&copy.url("postgres")).await);
    assert_eq!(fingerprint(&source).await, fingerprint(&copy).await);
}
