//! A server that archives with pgark, and recovers with it.

#![allow(clippy::unwrap_used, missing_docs)]

mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use host::{Host, archived, one, said, segments};
use pgark::ErrorKind;
use pgark::postgres::{TempServer, TempServerOptions};
use support::{server_with, sql};

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_comes_back() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await;
    let before = one(&server, "SELECT clock_timestamp()").await;
    let backup = host.back_up(&server);
    sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1001, 1500) n").await;
    let good = one(&server, "SELECT clock_timestamp()").await;
    let lsn = one(&server, "SELECT pg_create_restore_point('before the mistake')").await;
    sql(&server, "postgres", "DROP TABLE t").await;
    archived(&server).await;
    sql(&server, "postgres", "CREATE TABLE later AS SELECT 1 AS n").await;
    archived(&server).await;

    let listing = host.json(&["wal", "list"]);
    let window = &listing["windows"][0];
    assert_eq!((window["backup"].as_str(), window["gap"].as_str()), (Some(&*backup), None), "{listing}");
    assert!(window["last_commit"].as_str().is_some(), "{listing}");
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    assert_eq!(host.json(&["wal", "verify", "--stored"])["good"], true);

    for (name, target) in [
        ("time", ["--to-time", &good]),
        ("lsn", ["--to-lsn", &lsn]),
        ("point", ["--to-name", "before the mistake"]),
    ] {
        let recovered = host.recover(&server, name, &target).await;
        assert_eq!(one(&recovered, "SELECT count(*) FROM t").await, "1500", "{name}");
        assert_eq!(one(&recovered, "SELECT timeline_id FROM pg_control_checkpoint()").await, "2");
        assert_eq!(one(&recovered, "SHOW archive_mode").await, "off");
    }
    let latest = host.recover(&server, "latest", &[]).await;
    assert_eq!(one(&latest, "SELECT count(*) FROM later").await, "1");
    let end = host.recover(&server, "end", &["--to-backup-end"]).await;
    assert_eq!(one(&end, "SELECT count(*) FROM t").await, "1000");

    let to = host.place("not");
    let out = |args: &[&str], kind| host.fails(&[&["restore", "--target-dir", &to], args].concat(), kind);
    let early = out(&["--to-time", &before], ErrorKind::BackupNotFound);
    assert!(early.contains("no backup is from before"), "{early}");
    let late = out(&["--to-time", "2100-01-01 00:00:00Z"], ErrorKind::Unsupported);
    assert!(late.contains("last commit") && late.contains("no more WAL"), "{late}");
    out(&["--to-lsn", "FF/0"], ErrorKind::Unsupported);
    let unknown = out(&["--to-name", "nobody knows"], ErrorKind::Unsupported);
    assert!(unknown.contains("nobody knows"), "{unknown}");
    out(&["--to-time", "2026-11-21 10:00:00"], ErrorKind::Usage);
    out(&["--timeline", "7"], ErrorKind::ObjectMissing);

    // A segment that is gone is a gap, which is known before a byte is written.
    let segments = segments(&host.path("repo"));
    let (missing, objects) = segments.iter().rev().nth(1).unwrap();
    for object in objects {
        std::fs::remove_file(object).unwrap();
    }
    let gap = out(&[], ErrorKind::Unsupported);
    assert!(gap.contains("is missing"), "{gap}");
    let verified = host.fails(&["wal", "verify"], ErrorKind::Integrity);
    assert!(verified.contains(missing), "{verified}");
    assert!(!host.path("not").exists(), "a refused restore wrote something");
    // So is one that was damaged.
    let object = &segments.last_key_value().unwrap().1[0];
    let mut bytes = std::fs::read(object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(object, bytes).unwrap();
    let verified = host.fails(&["wal", "verify", "--stored"], ErrorKind::Integrity);
    assert!(verified.contains(object.file_name().unwrap().to_str().unwrap()), "{verified}");
}

/// The oldest whole segment of a server, copied to a folder as `pg_wal/<name>`, beside a `pg_control`.
async fn a_segment(host: &Host, server: &TempServer, folder: &str) -> PathBuf {
    sql(
        server,
        "postgres",
        "CREATE TABLE IF NOT EXISTS x (n int); INSERT INTO x VALUES (1); SELECT pg_switch_wal()",
    )
    .await;
    let name = one(server, "SELECT min(name) FROM pg_ls_waldir() WHERE length(name) = 24").await;
    let to = host.path(folder).join("pg_wal");
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(server.data().join("pg_wal").join(&name), to.join(&name)).unwrap();
    for path in [host.path(folder), to.clone(), to.join(&name)] {
        chown(path, Some(host.owner.0), Some(host.owner.1)).unwrap();
    }
    to.join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_stored_once_and_another_one_beside_it_is_refused() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    let segment = a_segment(&host, &server, "a").await;
    let (name, path) = (segment.file_name().unwrap().to_str().unwrap(), segment.display().to_string());
    let push = |path: &str| host.run(&["wal", "push", path]).status.code();
    assert_eq!((push(&path), push(&path)), (Some(0), Some(0)));
    let objects = || segments(&host.path("repo"))[name].len();
    assert_eq!(objects(), 1, "the same again is not stored again");

    // Another file of the name: a clone that archives into the same place.
    let mut bytes = std::fs::read(&segment).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let refused = host.run(&["wal", "push", &path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("other bytes"), "{}", said(&refused));
    assert_eq!(objects(), 2, "both are kept");
    let fetch = |to: &str| host.run(&["wal", "fetch", name, to, "--ahead", "0"]);
    let target = host.place("fetched");
    assert_eq!(fetch(&target).status.code(), Some(126), "nobody knows which one is right");
    let listing = host.json(&["wal", "list"]);
    assert_eq!(listing["conflicts"][0], name, "{listing}");

    let digest = blake3::hash(&bytes).to_hex().to_string();
    host.json(&["wal", "resolve", name, &digest[..16]]);
    assert_eq!((push(&path), fetch(&target).status.code()), (Some(0), Some(0)));
    assert_eq!(std::fs::read(&target).unwrap(), bytes);
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);

    // What is no segment, or one of another place or cluster, is refused.
    let wrong = segment.with_file_name("0000000100000000000000FF");
    std::fs::copy(&segment, &wrong).unwrap();
    assert_eq!(push(&wrong.display().to_string()), Some(1));
    std::fs::write(&segment, &bytes[..1 << 20]).unwrap();
    assert_eq!(push(&path), Some(1));
    let other = server_with(&TempServerOptions::default());
    let foreign = a_segment(&host, &other, "b").await.display().to_string();
    let refused = host.run(&["wal", "push", &foreign]);
    assert!(
        !refused.status.success() && said(&refused).contains("give this cluster another name"),
        "{}",
        said(&refused)
    );
    assert_eq!(host.run(&["--cluster", "b", "wal", "push", &foreign]).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_mean_to_the_server_what_happened() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    let segment = a_segment(&host, &server, "a").await;
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(host.run(&["wal", "push", &segment.display().to_string()]).status.success());
    let to = host.place("to");
    let fetch = |args: &[&str]| host.run(&[&["wal", "fetch"], args].concat()).status.code();
    // Certainly not there.
    assert_eq!(fetch(&["0000000100000000000000FE", &to]), Some(1));
    assert_eq!(fetch(&["00000009.history", &to]), Some(1));
    // Anything else stops recovery: what was asked wrongly, a key that is away, a store that is.
    assert_eq!(fetch(&["nonsense", &to]), Some(126));
    assert_eq!(fetch(&["--no-such-flag"]), Some(126));
    assert_eq!(fetch(&[&name, "/nonexistent/to"]), Some(126));
    std::fs::rename(host.path("key.txt"), host.path("key.away")).unwrap();
    assert_eq!(fetch(&[&name, &to]), Some(126));
    std::fs::rename(host.path("key.away"), host.path("key.txt")).unwrap();
    std::fs::rename(host.path("repo"), host.path("away")).unwrap();
    assert_eq!(fetch(&[&name, &to]), Some(126));
    // A standby asks again.
    std::fs::write(host.path("standby.signal"), "").unwrap();
    assert_eq!(fetch(&[&name, &to]), Some(1));
    std::fs::remove_file(host.path("standby.signal")).unwrap();
    // The archiver is never told a code above 125.
    assert_eq!(host.run(&["wal", "push", &segment.display().to_string()]).status.code(), Some(1));
    assert_eq!(host.run(&["wal", "push"]).status.code(), Some(1));
    assert!(!host.path("to").exists());
    std::fs::rename(host.path("away"), host.path("repo")).unwrap();
    // A segment that is damaged is never served.
    let object = segments(&host.path("repo")).pop_last().unwrap().1.remove(0);
    let bytes = std::fs::read(&object).unwrap();
    for cut in [0, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&object, &bytes[..cut]).unwrap();
        assert_eq!(fetch(&[&name, &to]), Some(126), "cut at {cut}");
    }
    assert!(!host.path("to").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_pushed_and_read_ahead() {
    let host = Host::new();
    host.ok(&["init"]);
    // The archive is away for a while, and files wait.
    let away = host.path("away");
    let server = host.server();
    std::fs::rename(host.path("repo"), &away).unwrap();
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    for n in 0..6 {
        sql(&server, "postgres", &format!("INSERT INTO t VALUES ({n})")).await;
        sql(&server, "postgres", "SELECT pg_switch_wal()").await;
    }
    let ready = || {
        let status = std::fs::read_dir(server.data().join("pg_wal/archive_status")).unwrap();
        status.flatten().filter(|f| f.file_name().to_string_lossy().ends_with(".ready")).count()
    };
    assert!(ready() >= 6, "{}", ready());
    std::fs::rename(&away, host.path("repo")).unwrap();
    let begun = Instant::now();
    while ready() > 0 {
        assert!(begun.elapsed() < Duration::from_mins(2), "{} are not archived", ready());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let segments = segments(&host.path("repo"));
    assert!(segments.len() >= 6);
    for (name, objects) in &segments {
        assert_eq!(objects.len(), 1, "{name} was stored twice");
    }
    // What was pushed ahead is asked for later, or at once when it waits: nothing of it stays.
    let names: Vec<String> = segments.into_keys().collect();
    let pg_wal = host.path("fetch");
    std::fs::create_dir(&pg_wal).unwrap();
    chown(&pg_wal, Some(host.owner.0), Some(host.owner.1)).unwrap();
    let to = pg_wal.join("RECOVERYXLOG").display().to_string();
    let original = |name: &str| std::fs::read(server.data().join("pg_wal").join(name));
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let ahead = pg_wal.join("pgark.ahead").join(boot.trim());
    // What another start of the machine left may be torn.
    let stale = pg_wal.join("pgark.ahead/before");
    std::fs::create_dir_all(&stale).unwrap();
    std::fs::write(stale.join(&names[0]), b"torn").unwrap();
    for path in [pg_wal.join("pgark.ahead"), stale.clone()] {
        chown(path, Some(host.owner.0), Some(host.owner.1)).unwrap();
    }
    for (n, name) in names.iter().enumerate() {
        let fetched = host.run(&["wal", "fetch", name, &to]);
        assert!(fetched.status.success(), "{}", said(&fetched));
        if let Ok(original) = original(name) {
            assert!(std::fs::read(&to).unwrap() == original, "{name}");
        }
        if n == 0 {
            let begun = Instant::now();
            while !ahead.join(names.last().unwrap()).exists() {
                assert!(begun.elapsed() < Duration::from_mins(1), "nothing is read ahead");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // What was read ahead is not believed when it is not what its name says.
            std::fs::write(ahead.join(&names[1]), b"x").unwrap();
        }
    }
    assert_eq!(host.run(&["wal", "fetch", "0000000100000000000000FE", &to]).status.code(), Some(1));
    assert!(!pg_wal.join("pgark.ahead").exists(), "what was read ahead stays behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_stops_while_the_archive_is_away_and_a_standby_waits() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    host.back_up(&server);
    for n in 2..5 {
        sql(&server, "postgres", &format!("INSERT INTO t VALUES ({n})")).await;
        archived(&server).await;
    }
    let restore = |name: &str, more: &[&str]| {
        host.ok(&[&["restore", "--target-dir", &host.place(name)], more].concat());
    };
    restore("data", &[]);
    let (repo, away) = (host.path("repo"), host.path("away"));
    std::fs::rename(&repo, &away).unwrap();
    assert!(!host.pg_ctl(&server, "data", &["-w", "start"]), "it began without the archive");
    let log = std::fs::read_to_string(host.path("server.log")).unwrap();
    assert!(log.contains("FATAL") && !log.contains("selected new timeline"), "{log}");
    std::fs::rename(&away, &repo).unwrap();
    assert!(host.pg_ctl(&server, "data", &["-w", "start"]));
    host.until("SELECT pg_is_in_recovery()", "f").await;
    assert_eq!(host.ask("SELECT sum(n) FROM t").await, "10");
    assert!(host.pg_ctl(&server, "data", &["-w", "-m", "fast", "stop"]));

    restore("standby", &["--standby"]);
    assert!(host.pg_ctl(&server, "standby", &["-w", "start"]));
    host.until("SELECT sum(n) FROM t", "10").await;
    std::fs::rename(&repo, &away).unwrap();
    // It asks every five seconds (wal_retrieve_retry_interval).
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(host.ask("SELECT pg_is_in_recovery()").await, "t");
    std::fs::rename(&away, &repo).unwrap();
    sql(&server, "postgres", "INSERT INTO t VALUES (5)").await;
    archived(&server).await;
    host.until("SELECT sum(n) FROM t", "15").await;
    assert!(host.pg_ctl(&server, "standby", &["-w", "-m", "fast", "stop"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_its_sources_place_archives_its_timeline() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    let backup = host.back_up(&server);
    sql(&server, "postgres", "INSERT INTO t VALUES (2)").await;
    archived(&server).await;
    sql(&server, "postgres", "INSERT INTO t VALUES (3)").await;
    server.stop("fast").unwrap();

    let successor = host.recover(&server, "successor", &["--keep-archiving"]).await;
    sql(&successor, "postgres", "INSERT INTO t VALUES (30)").await;
    archived(&successor).await;
    let listing = host.json(&["wal", "list"]);
    assert_eq!(listing["timelines"].as_array().unwrap().len(), 2, "{listing}");
    assert_eq!(
        listing["windows"][0]["timeline"], 2,
        "the new timeline is the only one that leads on: {listing}"
    );
    // The old server's last segment reached the archive when it was stopped.
    let latest = host.recover(&server, "latest", &[&*backup]).await;
    assert_eq!(one(&latest, "SELECT sum(n) FROM t").await, "36");
    assert_eq!(one(&latest, "SELECT timeline_id FROM pg_control_checkpoint()").await, "3");
    let old = host.recover(&server, "old", &["--timeline", "1"]).await;
    assert_eq!(one(&old, "SELECT sum(n) FROM t").await, "6");

    // A backup of the second timeline, and from it a third.
    sql(&successor, "postgres", "INSERT INTO t VALUES (300)").await;
    host.back_up(&successor);
    sql(&successor, "postgres", "INSERT INTO t VALUES (400)").await;
    archived(&successor).await;
    let third = host.recover(&server, "third", &[]).await;
    assert_eq!(one(&third, "SELECT sum(n) FROM t").await, "736");
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_is_started_and_says_where_it_stopped() {
    let host = Host::new();
    host.ok(&["init"]);
    // Recovery must not have less of it than this server.
    let server = host.server_with(&["max_prepared_transactions = 7"]);
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    host.back_up(&server);
    sql(&server, "postgres", "INSERT INTO t VALUES (2)").await;
    let good = one(&server, "SELECT clock_timestamp()").await;
    sql(&server, "postgres", "DROP TABLE t").await;
    archived(&server).await;
    // Two servers cannot have one socket; the restored one has its source's settings.
    server.stop("fast").unwrap();
    for (name, action, state) in [
        ("promote", "promote", "in production"),
        ("pause", "pause", "in archive recovery"),
        ("stop", "shutdown", "shut down in recovery"),
    ] {
        let to = host.place(name);
        let args = ["restore", "--target-dir", &to, "--to-time", &good, "--action", action];
        host.ok(&args);
        std::fs::remove_dir_all(&to).unwrap();
        let restored = host.json(&[&args[..], &["--start"]].concat());
        let recovered = &restored["recovered"];
        assert_eq!(recovered["state"], state, "{restored}");
        if action != "shutdown" {
            assert!(recovered["last_commit"].as_str().is_some_and(|at| *at < *good), "{restored}");
            // At its target a server that waits holds the lock of the DROP TABLE.
            let sum = if action == "promote" { "SELECT sum(n) FROM t" } else { "SELECT 3" };
            assert_eq!(one(&server, sum).await, "3", "{name}");
            assert!(host.pg_ctl(&server, name, &["-w", "-m", "fast", "stop"]));
        }
    }
    // Half of a target is no target, and what cannot start says why.
    let settings = host.path("promote/postgresql.auto.conf");
    std::fs::write(&settings, "shared_preload_libraries = 'nobody_has_this'\n").unwrap();
    let to = host.path("promote");
    let error = pgark::postgres::start_and_recover(
        &to,
        &pgark::postgres::Tools::installed(),
        &pgark::CancellationToken::new(),
    )
    .await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ToolFailed);
    assert!(error.causes().join(" ").contains("nobody_has_this"), "{error:?}");
}
