//! Physical backups and restores as a script sees them, killed ones too.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cli::Pgark;
use pgark::ErrorKind;
use pgark::postgres::TempServer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::physical::{assert_same, folder_for, server_with_checksums, tree, verified};
use support::{connect, fingerprint, recovered, sample, server, sql};

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

/// A repository with a chain of a full backup and two increments of a cluster with a tablespace.
struct Chained {
    server: TempServer,
    pgark: Pgark,
    repo: String,
    oid: String,
    before: Vec<String>,
}

impl Chained {
    async fn new() -> Self {
        let server = server();
        let space = folder_for(&server, "space");
        sql(&server, "postgres", &format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await;
        sql(&server, "postgres", &sample(3000)).await;
        for (table, options) in [("large", ""), ("here", "TABLESPACE space"), ("dropped", "")] {
            let made = format!(
                "CREATE TABLE {table} {options} AS SELECT n, repeat(md5(n::text), 20) AS x FROM generate_series(1, 50000) n"
            );
            sql(&server, "postgres", &made).await;
        }
        let oid = sql(&server, "postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'space'").await;
        let (pgark, oid) = (Pgark::new(), oid[0][0].clone().unwrap());
        let repo = pgark.place("repo");
        let mut this = Self { server, pgark, repo, oid, before: Vec::new() };
        this.back_up("--physical");
        this.sql(&[
            "UPDATE large SET x = 'changed' WHERE n < 2000",
            "DROP TABLE dropped",
            "CREATE DATABASE brief",
        ])
        .await;
        this.back_up("--incremental");
        this.sql(&[
            "DELETE FROM here WHERE n > 30000",
            "VACUUM here",
            "VACUUM FULL large",
            "DROP DATABASE brief",
        ])
        .await;
        this.back_up("--incremental");
        this.before = fingerprint(&connect(&this.server.url("postgres")).await).await;
        this
    }

    async fn sql(&self, statements: &[&str]) {
        for statement in statements {
            sql(&self.server, "postgres", statement).await;
        }
    }

    fn back_up(&self, how: &str) {
        let made =
            self.pgark.json(&["backup", "--repo", &self.repo, "--db", &self.server.url("postgres"), how]);
        assert_eq!(made["backup"]["parent"].is_null(), how == "--physical", "{made}");
    }

    fn restore(&self, more: &[&str]) -> Vec<String> {
        let all = [&["--json", "restore", "--repo", &self.repo, "latest"], more].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    /// Restores, and kills it when its journal has so many lines, and a moment has passed. False where it ended before:
    /// what removed its journal has ended, even if the process was still there to be killed.
    fn kill_at(&self, restore: &[String], target: &Path, lines: usize, moment: Duration) -> bool {
        let args: Vec<&str> = restore.iter().map(String::as_str).collect();
        let mut child = self.pgark.command(&args).spawn().unwrap();
        let journal = target.join("pgark.restore");
        while child.try_wait().unwrap().is_none() {
            let text = std::fs::read_to_string(&journal).unwrap_or_default();
            if text.matches('\n').count() >= lines {
                std::thread::sleep(moment);
                kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let is_success = child.wait().unwrap().success();
        !is_success && (!can_be_started(target) || journal.exists())
    }

    fn finish(&self, restore: &[String]) -> Value {
        let args: Vec<&str> = restore.iter().skip(1).map(String::as_str).collect();
        self.pgark.json(&args)["restored"].clone()
    }
}

/// Whether a server could take the folder for a data directory.
fn can_be_started(folder: &Path) -> bool {
    folder.join("global/pg_control").exists()
}

/// Lines of the journal's head, with a data directory and a tablespace.
const HEAD: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_is_finished_by_the_next_one() {
    let chained = Chained::new().await;
    let folder = chained.server.folder();
    let place = |name: &str| (folder.join(name), folder.join(format!("{name}.space")));
    let restore = |name: &str| {
        let (target, space) = place(name);
        let map = format!("{}={}", chained.oid, space.display());
        chained.restore(&["--target-dir", &target.display().to_string(), "--tablespace-map", &map])
    };
    let whole = chained.finish(&restore("whole"));
    let trees = (tree(&place("whole").0), tree(&place("whole").1));
    verified(&chained.server, &place("whole").0);
    let all = whole["raw_bytes"].as_u64().unwrap();

    let (mut killed, mut went_on, mut moments) = (0, 0, Vec::new());
    // Behind each line of the journal, and a moment later; and twice before it ends.
    for n in 0..16_usize {
        let (target, space) = place("copy");
        let restore = restore("copy");
        let moment = Duration::from_millis([0, 3, 11, 25][n % 4]);
        let mut is_killed = false;
        for lines in [n / 2, n] {
            is_killed = chained.kill_at(&restore, &target, HEAD + lines, moment);
            if !is_killed {
                break;
            }
            killed += 1;
        }
        if is_killed {
            let journal = std::fs::read_to_string(target.join("pgark.restore")).unwrap_or_default();
            let restored = chained.finish(&restore);
            let resumed = &restored["target"]["resumed"];
            moments.push(format!("{resumed}"));
            let parts = journal.lines().filter(|line| line.contains(" part ")).count();
            if journal.contains("\ncleared\n") {
                let done = usize::try_from(resumed["done"].as_u64().unwrap()).unwrap();
                assert!(done >= parts, "{resumed}, {journal}");
                assert!(parts == 0 || restored["raw_bytes"].as_u64().unwrap() < all, "{restored}");
                went_on += usize::from(done > 0);
            } else {
                assert!(resumed.is_null(), "{resumed}, {journal}");
            }
        }
        let mut found = tree(&target);
        // They lead to the other folder.
        found.retain(|name, _| !name.starts_with(format!("pg_tblspc/{}", chained.oid)));
        let mut wanted = trees.0.clone();
        wanted.retain(|name, _| !name.starts_with(format!("pg_tblspc/{}", chained.oid)));
        assert_same(&found, &wanted);
        assert_same(&tree(&space), &trees.1);
        verified(&chained.server, &target);
        // It is whole: nothing may touch it any more.
        if n == 0 {
            let args: Vec<&str> = restore.iter().skip(1).map(String::as_str).collect();
            chained.pgark.fails(&args, ErrorKind::Conflict).says("not empty");
        }
        if n < 15 {
            std::fs::remove_dir_all(&target).unwrap();
            std::fs::remove_dir_all(&space).unwrap();
        }
    }
    assert!(killed > 8 && went_on > 3, "{killed} were killed, {went_on} went on: {moments:?}");
    let copy = chained.server.start_on(&place("copy").0).unwrap();
    assert_eq!(fingerprint(&connect(&copy.url("postgres")).await).await, chained.before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_over_a_data_directory_that_is_killed_is_finished_by_the_next_one() {
    let chained = Chained::new().await;
    let server = &chained.server;
    let (target, whole) = (server.data(), server.folder().join("whole"));
    let whole_space = server.folder().join("whole.space");
    let map = format!("{}={}", chained.oid, whole_space.display());
    chained.finish(&chained.restore(&[
        "--target-dir",
        &whole.display().to_string(),
        "--tablespace-map",
        &map,
    ]));
    let (trees, space) = ((tree(&whole), tree(&whole_space)), server.folder().join("space"));
    let link = format!("pg_tblspc/{}", chained.oid);
    let there = target.display().to_string();
    let restore = chained.restore(&["--target-dir", &there, "--delta"]);
    let args: Vec<&str> = restore.iter().skip(1).map(String::as_str).collect();
    chained.pgark.fails(&args, ErrorKind::Conflict).says("pg_ctl stop");
    // WAL has a disk of its own.
    server.stop("fast").unwrap();
    let wal = server.folder().join("wal");
    std::fs::rename(target.join("pg_wal"), &wal).unwrap();
    std::os::unix::fs::symlink(&wal, target.join("pg_wal")).unwrap();
    server.start_again().unwrap();

    let mut went_on = 0;
    for n in 0..8_usize {
        chained
            .sql(&[
                "UPDATE large SET x = 'other' WHERE n % 50 = 0",
                "CREATE TABLE more TABLESPACE space AS SELECT n FROM generate_series(1, 20000) n",
                "CREATE DATABASE brief",
                "CHECKPOINT",
            ])
            .await;
        server.stop("fast").unwrap();
        let moment = Duration::from_millis([0, 3, 11, 25][n % 4]);
        // Its head has a line more, and is there before anything is touched.
        if chained.kill_at(&restore, &target, HEAD + 2 + n, moment) {
            let journal = std::fs::read_to_string(target.join("pgark.restore")).unwrap_or_default();
            let is_ended = journal.is_empty() || journal.contains("\nsettings ");
            assert!(!can_be_started(&target) || is_ended, "{journal}");
            if n == 0 {
                // It holds what a restore that is not asked for it must not empty.
                let without = chained.restore(&["--target-dir", &there]);
                let args: Vec<&str> = without.iter().skip(1).map(String::as_str).collect();
                chained.pgark.fails(&args, ErrorKind::Conflict).says("--delta");
            }
        }
        let restored = chained.finish(&restore);
        went_on += usize::from(restored["target"]["resumed"]["done"].as_u64().unwrap_or(0) > 0);
        let (mut found, mut wanted) = (tree(&target), trees.0.clone());
        for tree in [&mut found, &mut wanted] {
            tree.retain(|name, _| !name.starts_with(&link) && !name.starts_with("pg_wal"));
        }
        assert_eq!(std::fs::read_link(target.join("pg_wal")).unwrap(), wal);
        assert_same(&tree(&wal), &tree(&whole.join("pg_wal")));
        assert_same(&found, &wanted);
        assert_same(&tree(&space), &trees.1);
        verified(server, &target);
        server.start_again().unwrap();
        recovered(server).await;
        assert_eq!(fingerprint(&connect(&server.url("postgres")).await).await, chained.before);
    }
    assert!(went_on > 0, "{went_on} went on");
    server.stop("fast").unwrap();
    let said = chained.pgark.text(&args);
    assert!(said.contains("\nwritten: ") && said.contains("there already: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_a_backup_of_stock_tools() {
    let server = server();
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let (identity, recipient) = pgark.key("key");
    let backup = ["backup", "--repo", &repo, "--db", &db, "--recipient", &recipient];
    let physical = pgark.json(&[&backup[..], &["--physical"]].concat());
    // The newest is of another kind.
    pgark.json(&backup);
    let (plain, again) = (pgark.place("plain"), pgark.place("again"));
    let export = ["export", "--repo", &repo, "--identity", &identity];
    let exported = pgark.json(&[&export[..], &["--to", &plain]].concat());
    assert_eq!(exported["exported"]["backup"]["id"], physical["backup"]["id"]);
    assert_eq!(exported["exported"]["target"]["resumed"], serde_json::Value::Null);
    let verify = Command::new(server.bin().join("pg_verifybackup")).arg(&plain).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    pgark.fails(&[&export[..], &["--to", &plain]].concat(), ErrorKind::Conflict).says("not empty");
    assert!(pgark.text(&[&export[..], &["--to", &again, "--raw"]].concat()).contains(&again));
    let verify =
        Command::new(server.bin().join("pg_verifybackup")).arg(format!("{again}/1")).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    // A logical backup is a folder of another kind.
    let logical = pgark.json(&["list", "--repo", &repo])["backups"][1]["id"].as_str().unwrap().to_owned();
    let other = pgark.place("other");
    pgark.text(&[&export[..], &["--to", &other, &logical]].concat());
    assert!(Path::new(&other).join("toc.dat").exists());
}
