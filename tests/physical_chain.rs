//! Chains of increments: a server is changed in every way that increments get wrong elsewhere, backed up between,
//! restored and compared.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::process::Command;

use pgark::physical::{BaseBackupDump, DataDirectory, Parent};
use pgark::postgres::{TempServer, TempServerOptions};
use pgark::repository::BackupRecord;
use pgark::{CancellationToken, ErrorKind, Summary};
use support::chain::{Home, all, of};
use support::physical::{folder_for, start_following, verified};
use support::{connect, containers, fingerprint, left_out, recovered, sample, server, server_with};

/// What a client sees: every table as a whole, and what indexes and visibility map say about it.
async fn seen(server: &TempServer) -> Vec<String> {
    let mut seen = Vec::new();
    for database in ["postgres", "twin"] {
        let session = connect(&server.url(database)).await;
        seen.extend(fingerprint(&session).await);
        let tables = session
            .rows(
                "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                 JOIN pg_attribute a ON a.attrelid = c.oid AND attname = 'id' WHERE relkind = 'r' AND n.nspname = 'public' ORDER BY 1",
            )
            .await
            .unwrap();
        for table in tables.into_iter().map(|mut row| row.remove(0).unwrap()) {
            let query = format!("SELECT count(*), sum(id), min(id), max(id) FROM {table}");
            all(&session, &["SET enable_seqscan = off", "SET enable_bitmapscan = off"]).await;
            let through_index = session.rows(&query).await.unwrap();
            all(
                &session,
                &[
                    "RESET ALL",
                    "SET enable_indexscan = off",
                    "SET enable_indexonlyscan = off",
                    "SET enable_bitmapscan = off",
                ],
            )
            .await;
            let through_heap = session.rows(&query).await.unwrap();
            all(&session, &["RESET ALL"]).await;
            assert_eq!(through_index, through_heap, "{table}");
            seen.push(format!("{database} {table} {through_heap:?}"));
        }
    }
    seen
}

fn run(server: &TempServer, program: &str, args: &[&str]) {
    let output = Command::new(server.bin().join(program)).args(args).output().unwrap();
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {words}");
}

fn amcheck(copy: &TempServer) {
    let host = copy.folder().display().to_string();
    run(
        copy,
        "pg_amcheck",
        &["-h", &host, "-U", "postgres", "--all", "--install-missing", "--heapallindexed"],
    );
}

/// Tables for what is done to them. None of them is touched by autovacuum.
const BEGIN: [&str; 12] = [
    "CREATE TABLE truncated AS SELECT n AS id, repeat('x', 100) AS t FROM generate_series(1, 5000) n",
    "CREATE TABLE dropped AS SELECT n AS id FROM generate_series(1, 5000) n",
    "CREATE TABLE rewritten AS SELECT n AS id, repeat('y', 200) AS t FROM generate_series(1, 5000) n",
    "CREATE TABLE clustered AS SELECT (n * 7919) % 10007 AS id, repeat('z', 50) AS t FROM generate_series(1, 5000) n",
    "CREATE INDEX clustered_id ON clustered (id)",
    "CREATE TABLE moved AS SELECT n AS id FROM generate_series(1, 5000) n",
    "CREATE UNLOGGED TABLE unlogged AS SELECT n AS id FROM generate_series(1, 100) n",
    "CREATE TABLE visible (id int PRIMARY KEY, t text) WITH (autovacuum_enabled = off)",
    "INSERT INTO visible SELECT n, repeat('v', 100) FROM generate_series(1, 10000) n",
    "CREATE TABLE shrunk (id int, t text) WITH (autovacuum_enabled = off)",
    "INSERT INTO shrunk SELECT n, repeat('s', 200) FROM generate_series(1, 7000) n",
    "CREATE DATABASE twin OID = 50000",
];

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "it is one story")]
async fn a_chain_of_five_is_the_cluster() {
    let server = server();
    let session = connect(&server.url("postgres")).await;
    session.rows(&sample(3000)).await.unwrap();
    let space = folder_for(&server, "space");
    all(&session, &[&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())]).await;
    let brief = folder_for(&server, "brief");
    all(&session, &[&format!("CREATE TABLESPACE brief LOCATION '{}'", brief.display())]).await;
    all(&session, &BEGIN).await;
    all(&session, &["CREATE TABLE here TABLESPACE brief AS SELECT n AS id FROM generate_series(1, 900) n"])
        .await;
    let twin = connect(&server.url("twin")).await;
    all(&twin, &["CREATE TABLE t AS SELECT n AS id FROM generate_series(1, 3000) n", "VACUUM t"]).await;
    drop(twin);
    let oid = session.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'").await.unwrap().unwrap();
    let oid: u32 = oid.parse().unwrap();
    let home = Home::new().await;
    let full = home.full(of(&server)).await;

    all(
        &session,
        &[
            "VACUUM visible",
            "TRUNCATE truncated",
            "INSERT INTO truncated SELECT n, 'again' FROM generate_series(1, 10) n",
            "DROP TABLE dropped",
            "CREATE TABLE created AS SELECT n AS id FROM generate_series(1, 2000) n",
            "DELETE FROM shrunk WHERE id > 350",
            "VACUUM shrunk",
        ],
    )
    .await;
    let first = home.increment(of(&server)).await;
    home.is_smaller(&first, &full, 4).await;

    // Without checksums the visibility map is set without a trace in the pages, and cleared without one of its own.
    // Bulk extension leaves pages of zeros behind.
    all(
        &session,
        &[
            "DELETE FROM visible WHERE id % 2 = 0",
            "VACUUM FULL rewritten",
            "CLUSTER clustered USING clustered_id",
        ],
    )
    .await;
    let copy =
        "COPY shrunk FROM PROGRAM 'for i in $(seq 1 2600); do echo \"$i s\"; done' WITH (DELIMITER ' ')";
    all(&session, &[copy, "INSERT INTO unlogged VALUES (7)", "ALTER TABLE moved SET TABLESPACE space"]).await;
    home.increment(of(&server)).await;

    // The same path and the same OID, other contents with older LSNs.
    all(&session, &["CREATE DATABASE other", "CHECKPOINT"]).await;
    let other = connect(&server.url("other")).await;
    all(
        &other,
        &["CREATE TABLE t AS SELECT -n AS id FROM generate_series(1, 3000) n", "CREATE INDEX ON t (id)"],
    )
    .await;
    drop(other);
    // A session that has ended may still be there for a moment.
    all(&session, &["DROP DATABASE twin WITH (FORCE)"]).await;
    let copied = loop {
        match session.rows("CREATE DATABASE twin OID = 50000 TEMPLATE other STRATEGY file_copy").await {
            Ok(_) => break true,
            Err(e) if format!("{e:?}").contains("being accessed") => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(e) => panic!("{e:?}"),
        }
    };
    assert!(copied);
    all(&session, &["UPDATE people SET age = 1 + (age % 80) WHERE id % 100 = 0", "VACUUM people"]).await;
    home.increment(of(&server)).await;

    all(
        &session,
        &[
            "DROP TABLE moved",
            "CREATE TABLE moved TABLESPACE space AS SELECT n AS id FROM generate_series(1, 500) n",
            "REINDEX TABLE visible",
            "VACUUM FULL shrunk",
            "DROP DATABASE other",
            "DROP TABLE here",
            "DROP TABLESPACE brief",
        ],
    )
    .await;
    home.increment(of(&server)).await;
    all(
        &session,
        &["INSERT INTO visible SELECT n FROM generate_series(20000, 20100) n", "TRUNCATE unlogged"],
    )
    .await;
    let last = home.increment(of(&server)).await;
    let before = seen(&server).await;
    let chain = home.backups().await;
    assert_eq!(chain.len(), 6);

    let target = server.folder().join("restored");
    let into = DataDirectory::at(&target).tablespace(oid, server.folder().join("moved"));
    home.restore(&last, into).await.unwrap();
    verified(&server, &target);
    let copy = server.start_on(&target).unwrap();
    recovered(&copy).await;
    assert_eq!(seen(&copy).await, before);
    amcheck(&copy);

    // The copy is on a timeline of its own, and goes on where the source was.
    let session = connect(&copy.url("postgres")).await;
    all(
        &session,
        &[
            "UPDATE visible SET t = 'on another timeline' WHERE id < 300",
            "DELETE FROM created WHERE id > 100",
            "VACUUM created",
        ],
    )
    .await;
    let onward = home.increment(of(&copy)).await;
    assert_eq!(onward.backup.source["timeline"], 2);
    let before = seen(&copy).await;
    let target = server.folder().join("onward");
    let into = DataDirectory::at(&target).tablespace(oid, server.folder().join("moved-again"));
    home.restore(&onward, into).await.unwrap();
    verified(&server, &target);
    let second = server.start_on(&target).unwrap();
    recovered(&second).await;
    assert_eq!(seen(&second).await, before);
    amcheck(&second);

    // The source did not follow: its next backup cannot build on the one from the other timeline.
    home.became_full(of(&server), "cannot build on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_backup_from_being_an_increment_is_said() {
    let server = server();
    connect(&server.url("postgres")).await.rows(&sample(100)).await.unwrap();
    let home = Home::new().await;
    home.became_full(of(&server), "no physical backup").await;
    let second = home.increment(of(&server)).await;

    // Another host, or a lost state.
    let state = home.state().path("maps").parent().unwrap().to_owned();
    std::fs::rename(&state, home.folder.path().join("away")).unwrap();
    let third = home.became_full(of(&server), "this host has no block map").await;
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(home.folder.path().join("away"), &state).unwrap();
    // Not the newest, but the newest that this host knows.
    let fourth = home.try_increment(of(&server), None).await.unwrap();
    assert_eq!((fourth.backup.parent.as_ref(), fourth.warnings.len()), (Some(&second.backup.id), 0));
    let from = |backup: &Summary| backup.backup.id.to_string();
    let summary = home.try_increment(of(&server), Some(&from(&third))).await.unwrap();
    assert!(
        summary.warnings[0].contains("on another host") && summary.backup.parent.is_none(),
        "{summary:?}"
    );
    let error = home.try_increment(of(&server), Some("2020")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BackupNotFound);
    // One that cannot be restored itself.
    let folder = format!("clusters/main/backups/{}/", second.backup.id);
    let mut kept = Vec::new();
    for key in home.memory.keys().into_iter().filter(|key| key.starts_with(&folder)) {
        home.memory.tamper(&key, |bytes| {
            kept.push((key.clone(), bytes));
            None
        });
    }
    let summary = home.try_increment(of(&server), Some(&from(&fourth))).await.unwrap();
    assert!(summary.warnings[0].contains("cannot be restored"), "{summary:?}");
    for (key, bytes) in kept {
        put_back(&home, &key, bytes).await;
    }

    // A map that is not the one that was written.
    let map = state.join("maps").join(summary.backup.id.as_str());
    let mut bytes = std::fs::read(&map).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&map, bytes).unwrap();
    let full = home.became_full(of(&server), "not as it was written").await;

    // Where nothing can be kept, the backup goes on.
    let here = std::fs::read_dir(state.join("maps")).unwrap().count();
    assert_eq!(here, 5, "four maps and the key");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::write(&state, "a file").unwrap();
    let summary = home.try_increment(of(&server), Some(&from(&full))).await.unwrap();
    assert!(summary.warnings.iter().any(|w| w.contains("could not be kept")), "{summary:?}");
    assert!(summary.backup.parent.is_none());
    std::fs::remove_file(&state).unwrap();

    // Every page is written anew, without a trace in its LSN.
    home.full(of(&server)).await;
    server.stop("fast").unwrap();
    run_as_owner(&server, "pg_checksums", &["--enable", "-D"]);
    server.start_again().unwrap();
    let full = home.became_full(of(&server), "checksums").await;
    assert_eq!(full.backup.source["data_checksums"], "on");
    home.increment(of(&server)).await;
}

/// `pg_checksums` refuses to run as root.
fn run_as_owner(server: &TempServer, program: &str, args: &[&str]) {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let owner = std::fs::metadata(server.data()).unwrap();
    let mut command = Command::new(server.bin().join(program));
    command.args(args).arg(server.data()).current_dir("/");
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ancestor_that_is_not_whole_is_named() {
    let server = server();
    let session = connect(&server.url("postgres")).await;
    session.rows(&sample(500)).await.unwrap();
    let home = Home::new().await;
    let full = home.full(of(&server)).await;
    all(&session, &["UPDATE people SET age = 5"]).await;
    let middle = home.increment(of(&server)).await;
    all(&session, &["UPDATE people SET age = 6"]).await;
    let last = home.increment(of(&server)).await;

    let key_of =
        |backup: &Summary, object: &str| format!("clusters/main/backups/{}/{object}", backup.backup.id);
    let target = server.folder().join("restored");
    let object = |record: &BackupRecord, kind: &str| {
        record.parts.iter().find(|p| p.kind == kind).unwrap().objects[0].key.clone()
    };
    let chain = home.backups().await;
    let files = key_of(&full, &object(&chain[0], "tar"));
    let delta = key_of(&middle, &object(&chain[1], "delta"));

    // What can be known before is known before: nothing is written.
    for key in [
        key_of(&full, "backup.json"),
        files.clone(),
        delta.clone(),
        key_of(&middle, &chain[1].contents.as_ref().unwrap().key),
    ] {
        let mut kept = Vec::new();
        home.memory.tamper(&key, |bytes| {
            kept = bytes;
            None
        });
        let error = home.restore(&last, DataDirectory::at(&target)).await.unwrap_err();
        let backup = key.split('/').nth(3).unwrap();
        assert!(matches!(error.kind(), ErrorKind::BackupNotFound | ErrorKind::ObjectMissing), "{error:?}");
        assert!(error.to_string().contains(backup) && error.hint().is_some(), "{error:?}");
        assert!(!target.exists(), "{key}");
        put_back(&home, &key, kept).await;
    }
    // What shows only when it is read names the backup as well.
    for (key, backup) in [(files, &full), (delta, &middle)] {
        let mut kept = Vec::new();
        home.memory.tamper(&key, |mut bytes| {
            kept.clone_from(&bytes);
            let at = bytes.len() / 2;
            bytes[at] ^= 16;
            Some(bytes)
        });
        let error = home.restore(&last, DataDirectory::at(&target)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
        assert!(error.to_string().contains(backup.backup.id.as_str()), "{error:?}");
        assert!(target.join("pgark.restore").exists() && !target.join("global/pg_control").exists());
        home.memory.tamper(&key, |_| Some(kept));
    }
    // The same command begins again.
    home.restore(&last, DataDirectory::at(&target)).await.unwrap();
    verified(&server, &target);
    let copy = server.start_on(&target).unwrap();
    recovered(&copy).await;
    let (before, after) = (connect(&server.url("postgres")).await, connect(&copy.url("postgres")).await);
    assert_eq!(fingerprint(&before).await, fingerprint(&after).await);

    // verify: the backup itself, and whether its parents are there.
    let record = chain.last().unwrap();
    let cancel = CancellationToken::new();
    let report = |options| pgark::verify::verify(&home.repository, record, options, &cancel);
    assert!(report(pgark::verify::VerifyOptions::default()).await.unwrap().is_good());
    home.memory.tamper(&key_of(&full, "backup.json"), |_| None);
    let found = report(pgark::verify::VerifyOptions::default()).await.unwrap();
    assert_eq!(found.parent.as_ref(), Some(&middle.backup.id));
    assert!(
        found.findings[0].missing && found.findings[0].why.contains(full.backup.id.as_str()),
        "{found:?}"
    );
}

async fn put_back(home: &Home, key: &str, bytes: Vec<u8>) {
    home.repository.store().create(key, bytes.into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_gone_at_the_commit_ends_the_backup() {
    let server = server();
    let home = Home::new().await;
    let full = home.full(of(&server)).await;
    let parent = Parent::choose(&home.catalog().await, &home.state(), None).unwrap();
    home.memory.tamper(&format!("clusters/main/backups/{}/backup.json", full.backup.id), |_| None);
    let error = home
        .run(BaseBackupDump::new(of(&server)).state(home.state()).increment_of(parent))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BackupNotFound, "{error:?}");
    assert!(error.to_string().contains(full.backup.id.as_str()));
    // Of what failed no map is kept.
    let maps = std::fs::read_dir(home.state().path("maps")).unwrap().count();
    assert_eq!(maps, 2, "one map and the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_announcement_names_the_parent() {
    let server = server();
    let home = Home::new().await;
    let full = home.full(of(&server)).await;
    let increment = home.increment(of(&server)).await;
    let key = format!("clusters/main/backups/{}/started.json", increment.backup.id);
    let started = pgark::read_whole(&**home.repository.store(), &key, 1 << 20).await.unwrap();
    let started: serde_json::Value = serde_json::from_slice(&started).unwrap();
    assert_eq!(started["parent"], full.backup.id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_kept_block_by_block() {
    let mut options = TempServerOptions::default();
    options.settings.push("max_wal_size = 4GB".into());
    let server = server_with(&options);
    let session = connect(&server.url("postgres")).await;
    // 50 MB: several windows of it change.
    all(
        &session,
        &[
            "CREATE TABLE wide (id int, t text) WITH (fillfactor = 90, autovacuum_enabled = off)",
            "ALTER TABLE wide ALTER t SET STORAGE plain",
            "INSERT INTO wide SELECT n, repeat(md5(n::text), 60) FROM generate_series(1, 26000) n",
            "CREATE INDEX ON wide (id)",
            "VACUUM FREEZE wide",
        ],
    )
    .await;
    let home = Home::new().await;
    let full = home.full(of(&server)).await;
    all(&session, &["UPDATE wide SET t = repeat('u', 100) WHERE id % 7 = 0 AND id < 20000"]).await;
    let increment = home.increment(of(&server)).await;
    home.is_smaller(&increment, &full, 2).await;
    all(&session, &["UPDATE wide SET t = 'few' WHERE id = 25000"]).await;
    let few = home.increment(of(&server)).await;
    home.is_smaller(&few, &increment, 10).await;
    let target = server.folder().join("restored");
    home.restore(&few, DataDirectory::at(&target)).await.unwrap();
    verified(&server, &target);
    let copy = server.start_on(&target).unwrap();
    recovered(&copy).await;
    let sum = "SELECT count(*), sum(hashtextextended(w::text, 7)) FROM wide w";
    let (before, after) =
        (session.rows(sum).await.unwrap(), connect(&copy.url("postgres")).await.rows(sum).await.unwrap());
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_standby_makes_increments() {
    let primary = server();
    let session = connect(&primary.url("postgres")).await;
    session.rows(&sample(500)).await.unwrap();
    let home = Home::new().await;
    let copy = home.full(of(&primary)).await;
    let target = primary.folder().join("standby");
    home.restore(&copy, DataDirectory::at(&target)).await.unwrap();
    let standby = start_following(&primary, &target);

    // Nothing happened in between, so that the second begins where the first one did.
    let first = home.increment(of(&standby)).await;
    let second = home.increment(of(&standby)).await;
    assert_eq!(first.backup.source["start_lsn"], second.backup.source["start_lsn"]);
    all(&session, &["UPDATE people SET age = 9", "CREATE TABLE late AS SELECT 1 AS id", "CHECKPOINT"]).await;
    let wanted = session.value("SELECT pg_current_wal_lsn()").await.unwrap().unwrap();
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{wanted}'");
    let follower = connect(&standby.url("postgres")).await;
    let begun = std::time::Instant::now();
    while follower.value(&reached).await.unwrap().as_deref() != Some("t") {
        assert!(begun.elapsed().as_secs() < 60, "the standby does not follow");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let last = home.increment(of(&standby)).await;
    let target = primary.folder().join("restored");
    home.restore(&last, DataDirectory::at(&target)).await.unwrap();
    assert!(!target.join("standby.signal").exists(), "the copy follows nobody");
    let copy = primary.start_on(&target).unwrap();
    recovered(&copy).await;
    assert_eq!(fingerprint(&session).await, fingerprint(&connect(&copy.url("postgres")).await).await);
}

/// A newer server, with a password over TCP: its own `pg_verifybackup` and `pg_amcheck` look at the chain.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_18_comes_back() {
    if left_out("docker") {
        return;
    }
    let container = containers::start(18).await;
    let session = connect(&container.url("postgres")).await;
    session.rows(&sample(3000)).await.unwrap();
    container.let_replication_in().await;
    all(&session, &["VACUUM people"]).await;
    let connection = || support::conninfo(&container.url("postgres"));
    let home = Home::new().await;
    home.full(connection()).await;
    all(&session, &["DELETE FROM people WHERE id % 2 = 0 AND id > 200"]).await;
    home.increment(connection()).await;
    all(
        &session,
        &[
            "VACUUM people",
            "CREATE TABLE more AS SELECT n AS id FROM generate_series(1, 9999) n",
            "TRUNCATE \"odd \"\"name\"\"\".\"t 1\"",
        ],
    )
    .await;
    let last = home.increment(connection()).await;
    let count =
        "SELECT count(*), sum(hashtextextended(p::text, 7)), (SELECT sum(id) FROM more) FROM people p";
    let before = session.rows(count).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    home.restore(&last, DataDirectory::at(folder.path().join("data"))).await.unwrap();
    let script = format!("verify; start; query '{count}'; check; stop");
    let wanted: Vec<String> = before[0].iter().map(|v| v.clone().unwrap()).collect();
    assert_eq!(containers::beside_the_copy(18, folder.path(), &script), wanted.join(" "));
}
