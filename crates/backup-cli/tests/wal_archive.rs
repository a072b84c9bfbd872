//! Physical backups that leave their WAL to the archive.

#![allow(clippy::unwrap_used, missing_docs)]

mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use host::{Host, Receiving, archived, caught_up, one, said, until};
use pgark::crypt::{Age, IdentityFile};
use pgark::physical::DataDirectory;
use pgark::postgres::TempServerOptions;
use pgark::repository::ClusterName;
use pgark::{CancellationToken, ErrorKind, Repository, Restore, StoreOptions, open_store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{connect, containers, left_out, server_with, sql};

const FROM_ARCHIVE: [&str; 3] = ["--physical", "--wal", "archive"];

/// Kinds of the parts of a backup.
fn parts(host: &Host, backup: &Value) -> Vec<String> {
    let shown = host.json(&["show", backup["id"].as_str().unwrap()]);
    let parts = shown["backup"]["parts"].as_array().unwrap();
    parts.iter().map(|part| part["kind"].as_str().unwrap().to_owned()).collect()
}

/// The first segment that a backup needs, and its objects in the repository.
fn first_segment(host: &Host, backup: &Value) -> (String, Vec<std::path::PathBuf>) {
    let (high, low) = backup["source"]["start_lsn"].as_str().unwrap().split_once('/').unwrap();
    let number = |text| u32::from_str_radix(text, 16).unwrap();
    let timeline = backup["source"]["timeline"].as_u64().unwrap();
    let name = format!("{timeline:08X}{:08X}{:08X}", number(high), number(low) >> 24);
    let objects = host::segments(&host.path("repo")).remove(&name).unwrap_or_default();
    (name, objects)
}

/// Restores as an application would that knows nothing of the archive.
async fn restore_alone(host: &Host, id: &str) -> pgark::Error {
    let store = open_store(&host.place("repo"), &StoreOptions::default()).unwrap();
    let repository = Repository::open(store).await.unwrap();
    let id = id.parse().unwrap();
    let record = repository.record(&ClusterName::default(), &id).await.unwrap();
    let restore = Restore::builder()
        .backup(repository, record)
        .restorer(DataDirectory::at(host.path("alone")))
        .encryptor(Age::new().identities(IdentityFile::read(&host.path("key.txt")).unwrap()))
        .build()
        .unwrap();
    let error = restore.run(&CancellationToken::new()).await.unwrap_err();
    assert!(!host.path("alone").exists(), "a refused restore wrote something");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_leaves_its_wal_to_the_archive() {
    let host = Host::new();
    let server = host.server();
    let url = server.url("postgres");
    let backup = [&["backup", "--db", &url], &FROM_ARCHIVE[..]].concat();
    let without = host.fails(&backup, ErrorKind::NotARepository);
    assert!(without.contains("looking for the WAL archive") && !host.path("repo").exists(), "{without}");
    host.ok(&["init"]);
    for more in [&[][..], &["--dry-run"]] {
        let without = host.fails(&[&backup[..], more].concat(), ErrorKind::Unsupported);
        assert!(without.contains("no WAL archive") && without.contains("wal receive"), "{without}");
    }
    host.assert_no_backup();
    host.fails(&["backup", "--db", &url, "--wal", "archive"], ErrorKind::Usage);
    host.fails(&["backup", "--db", &url, "--physical", "--wal-wait", "9"], ErrorKind::Usage);

    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await;
    archived(&server).await;
    host.ok(&[&backup[..], &["--dry-run"]].concat());
    // Nothing is written meanwhile: the server itself ends the last segment.
    let full = host.back_up_with(&server, &FROM_ARCHIVE);
    assert_eq!(full["source"]["wal"], "archive", "{full}");
    assert_eq!(parts(&host, &full), ["tar", "manifest"]);
    assert!(said(&host.run(&["show"])).contains("in the archive: it does not restore alone"));
    assert!(said(&host.run(&["verify"])).contains("its WAL is in the archive"));
    assert_eq!(one(&server, "SELECT count(*) FROM pg_replication_slots").await, "0");
    sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1001, 1500) n").await;
    let increment = host.back_up_with(&server, &["--incremental", "--wal", "archive"]);
    assert_eq!(increment["parent"], full["id"], "{increment}");
    assert!(!parts(&host, &increment).contains(&"wal".to_owned()));
    sql(&server, "postgres", "INSERT INTO t VALUES (1501)").await;
    archived(&server).await;

    let ids = [&full, &increment].map(|backup| backup["id"].as_str().unwrap());
    for (name, args, rows) in [
        ("full", &[ids[0], "--to-backup-end"][..], "1000"),
        ("increment", &[ids[1], "--to-backup-end"], "1500"),
        ("latest", &[], "1501"),
        ("from the full one", &[ids[0]], "1501"),
    ] {
        let recovered = host.recover(&server, name, args).await;
        assert_eq!(one(&recovered, "SELECT count(*) FROM t").await, rows, "{name}");
        assert_eq!(one(&recovered, "SELECT timeline_id FROM pg_control_checkpoint()").await, "2");
    }
    for id in ids {
        let error = restore_alone(&host, id).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("restore_command"), "{error}");
    }

    // A segment that it needs is gone.
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let (segment, objects) = first_segment(&host, &increment);
    assert!(!objects.is_empty());
    for object in objects {
        std::fs::remove_file(object).unwrap();
    }
    let verified = host.fails(&["wal", "verify", "--stored"], ErrorKind::Integrity);
    assert!(verified.contains(&format!("{segment} is missing")), "{verified}");
    let to = host.place("not");
    for target in [&["--to-backup-end"][..], &[], &["--to-xid", "1"], &["--standby"]] {
        let args = [&["restore", ids[1], "--target-dir", &to], target].concat();
        let refused = host.fails(&args, ErrorKind::Unsupported);
        assert!(refused.contains(&format!("{segment} is missing")), "{target:?}: {refused}");
        assert!(!host.path("not").exists(), "a refused restore wrote something");
    }
    // The older one can be recovered as far as there is WAL.
    let end = host.recover(&server, "full again", &[ids[0], "--to-backup-end"]).await;
    assert_eq!(one(&end, "SELECT count(*) FROM t").await, "1000");
    // Nothing at all is left of the archive.
    std::fs::remove_dir_all(host.path("repo/clusters/main/wal")).unwrap();
    let (segment, _) = first_segment(&host, &full);
    let args = ["restore", ids[0], "--target-dir", &to, "--to-backup-end"];
    assert!(host.fails(&args, ErrorKind::Unsupported).contains(&segment));
    assert!(host.fails(&["wal", "verify"], ErrorKind::Integrity).contains(&format!("{segment} is missing")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_wal_never_comes_fails() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    archived(&server).await;
    let working = one(&server, "SHOW archive_command").await;
    let archive_with = async |command: &str| {
        let command = command.replace('\'', "''");
        sql(&server, "postgres", &format!("ALTER SYSTEM SET archive_command = '{command}'")).await;
        sql(&server, "postgres", "SELECT pg_reload_conf()").await;
        until(
            &server,
            &format!("SELECT setting = '{command}' FROM pg_settings WHERE name = 'archive_command'"),
            "t",
        )
        .await;
    };
    archive_with("false").await;
    let url = server.url("postgres");
    let args = [&["backup", "--db", &url], &FROM_ARCHIVE[..], &["--wal-wait"]].concat();
    let missing = one(&server, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await;
    let begun = Instant::now();
    let failed = host.fails(&[&args[..], &["2"]].concat(), ErrorKind::ObjectMissing);
    assert!((2..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(failed.contains(&missing) && failed.contains("pg_stat_archiver"), "{failed}");
    host.assert_no_backup();

    // Somebody who does not want to wait any longer.
    let log = std::fs::File::create(host.path("events")).unwrap();
    let mut command = host.command(&[&["--json"], &args[..], &["600"]].concat());
    let mut waiting = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let begun = Instant::now();
    while !host.files("repo/clusters/main/backups").iter().any(|file| file.contains(".manifest.")) {
        assert!(waiting.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().unwrap().is_none(), "it does not wait");
    kill_process(Pid::from_child(&waiting), Signal::INT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    host.assert_no_backup();
    assert_eq!(one(&server, "SELECT count(*) FROM pg_replication_slots").await, "0");

    // The maps of backups that failed are of no use.
    archive_with(&working).await;
    let made = host.back_up_with(&server, &["--incremental", "--wal", "archive"]);
    assert_eq!((made["parent"].as_str(), made["source"]["wal"].as_str()), (None, Some("archive")), "{made}");
    let recovered = host.recover(&server, "recovered", &["--to-backup-end"]).await;
    assert_eq!(one(&recovered, "SELECT sum(n) FROM t").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_refused_and_its_successor_brings_its_history() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    archived(&server).await;
    host.back_up(&server);
    let primary = format!("host={} user=postgres dbname=postgres", server.folder().display());
    let target = host.place("standby");
    host.ok(&["restore", "--target-dir", &target, "--standby", &primary, "--keep-archiving"]);
    let standby = server.start_on(&host.path("standby")).unwrap();
    let url = standby.url("postgres");
    let refused =
        host.fails(&[&["backup", "--db", &url], &FROM_ARCHIVE[..]].concat(), ErrorKind::Unsupported);
    assert!(refused.contains("standby") && refused.contains("--wal stream"), "{refused}");
    assert_eq!(host.json(&["list"])["backups"].as_array().unwrap().len(), 1);

    archived(&server).await;
    server.stop("fast").unwrap();
    sql(&standby, "postgres", "SELECT pg_promote()").await;
    sql(&standby, "postgres", "INSERT INTO t VALUES (2)").await;
    archived(&standby).await;
    let made = host.back_up_with(&standby, &FROM_ARCHIVE);
    assert_eq!(made["source"]["timeline"], 2);
    assert!(parts(&host, &made).contains(&"wal".to_owned()), "the history of its timeline");
    // The archive was begun later, or somebody lost it.
    for history in host.files("repo").iter().filter(|name| name.ends_with(".history")) {
        std::fs::remove_file(host.path("repo").join(history)).unwrap();
    }
    let recovered = host.recover(&standby, "recovered", &["--to-backup-end"]).await;
    assert_eq!(one(&recovered, "SELECT sum(n) FROM t").await, "3");
    assert_eq!(one(&recovered, "SELECT timeline_id FROM pg_control_checkpoint()").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_received_does_as_well() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    let receiving = Receiving::start(&host, &server);
    until(&server, "SELECT count(*) FROM pg_stat_replication", "1").await;
    caught_up(&server).await;
    let made = host.back_up_with(&server, &FROM_ARCHIVE);
    assert_eq!(parts(&host, &made), ["tar", "manifest"]);
    receiving.end();
    // Nobody receives any more, and nobody will.
    until(&server, "SELECT active FROM pg_replication_slots", "f").await;
    sql(&server, "postgres", "SELECT pg_drop_replication_slot('pgark')").await;
    until(&server, "SELECT count(*) FROM pg_stat_replication", "0").await;
    let url = server.url("postgres");
    let args = [&["backup", "--db", &url], &FROM_ARCHIVE[..], &["--wal-wait", "1"]].concat();
    let refused = host.fails(&args, ErrorKind::Unsupported);
    assert!(refused.contains("archive_mode is off"), "{refused}");
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let recovered = host.recover(&server, "recovered", &["--to-backup-end"]).await;
    assert_eq!(one(&recovered, "SELECT sum(n) FROM t").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_with_18() {
    if left_out("docker") {
        return;
    }
    let host = Host::new();
    host.ok(&["init"]);
    let container = containers::start(18).await;
    container.let_replication_in().await;
    let url = container.url("postgres");
    let session = connect(&url).await;
    session.rows("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await.unwrap();
    let receiving = Receiving::start_from(&host, &url);
    let begun = Instant::now();
    while host.files("repo/clusters/main/wal").iter().all(|file| file.contains("/keys/")) {
        assert!(begun.elapsed() < Duration::from_mins(1), "no WAL is received");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let made = host.json(&[&["backup", "--db", &url], &FROM_ARCHIVE[..]].concat());
    receiving.end();
    assert_eq!(parts(&host, &made["backup"]), ["tar", "manifest"]);
    let folder = host.path("restored");
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(folder.join("wal")).unwrap();
    for path in [folder.clone(), folder.join("wal")] {
        std::os::unix::fs::chown(path, Some(host.owner.0), Some(host.owner.1)).unwrap();
    }
    let (first, _) = first_segment(&host, &made["backup"]);
    host.ok(&[
        "wal",
        "fetch",
        &first,
        &folder.join("wal").join(&first).display().to_string(),
        "--ahead",
        "0",
    ]);
    let to = folder.join("data").display().to_string();
    let command = "cp /restored/wal/%f %p";
    host.ok(&["restore", "--target-dir", &to, "--to-backup-end", "--restore-command", command]);
    let script = "start; query 'SELECT count(*) FROM t'; stop";
    assert_eq!(containers::beside_the_copy(18, &folder, script), "1000");
}
