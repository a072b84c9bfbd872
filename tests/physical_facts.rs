//! What servers do that a physical backup must come through: damaged pages, archives that fail, many files, large
//! ones, standbys that are promoted.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark::physical::{BaseBackupDump, DataDirectory};
use pgark::postgres::{TempServer, TempServerOptions};
use pgark::{Backup, CancellationToken};
use support::physical::{back_up, server_with_checksums, start_following};
use support::{memory_repository, sample, server, server_with, sql};

/// What a backup of a small server may take at most, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_mins(2);

async fn value(server: &TempServer, query: &str) -> String {
    sql(server, "postgres", query).await[0][0].clone().unwrap()
}

async fn file_of(server: &TempServer, table: &str) -> PathBuf {
    server.data().join(value(server, &format!("SELECT pg_relation_filepath('{table}')")).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_in_the_backup_and_said_to_be() {
    let server = server_with_checksums();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 10000) n").await;
    sql(&server, "postgres", "CHECKPOINT").await;
    let sound = back_up(&server).await;
    assert_eq!(
        (sound.record.summary.source["checksum_failures"].as_bool(), sound.warnings.len()),
        (Some(false), 0)
    );

    let path = file_of(&server, "t").await;
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x5a; 512], 3 * 8192 + 4000).unwrap();
    let backup = back_up(&server).await;
    assert_eq!(backup.record.summary.source["checksum_failures"].as_bool(), Some(true));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        backup.warnings.iter().any(|w| w.contains(name) && w.contains("block 3")),
        "{:?}",
        backup.warnings
    );
    assert!(
        backup.warnings.iter().any(|w| w.contains("damaged pages are in the backup")),
        "{:?}",
        backup.warnings
    );
    // It is whole all the same: what is not damaged can be had.
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    let copy = server.start_on(&target).unwrap();
    assert_eq!(value(&copy, "SELECT count(*) FROM t WHERE ctid < '(3,0)'").await, "678");
    let session = copy.conninfo("postgres").unwrap().connect().await.unwrap();
    let error = session.rows("SELECT count(*) FROM t").await.unwrap_err();
    assert!(error.to_string().contains("invalid page"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_tables_come_back() {
    let mut options = TempServerOptions::default();
    options.settings.push("max_locks_per_transaction = 512".into());
    let server = server_with(&options);
    let create = "DO $$ BEGIN FOR n IN 1..10000 LOOP \
                  EXECUTE format('CREATE TABLE t%s AS SELECT %s AS n', n, n); END LOOP; END $$";
    sql(&server, "postgres", create).await;
    let backup = back_up(&server).await;
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    let copy = server.start_on(&target).unwrap();
    let tables = "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$' AND pg_relation_size(oid) = 8192";
    assert_eq!(value(&copy, tables).await, "10000");
    assert_eq!(
        value(&copy, "SELECT (SELECT n FROM t1) + (SELECT n FROM t5000) + (SELECT n FROM t10000)").await,
        "15001"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_more_than_one_segment_comes_back() {
    let server = server();
    sql(
        &server,
        "postgres",
        "CREATE TABLE t WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 1000) n",
    )
    .await;
    let path = file_of(&server, "t").await;
    server.stop("fast").unwrap();
    // Pages of zeros are empty pages. So the first segment becomes full without a gigabyte being written.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let mut second = path.clone().into_os_string();
    second.push(".1");
    let mut file = std::fs::File::create(&second).unwrap();
    file.write_all(&[0; 8192]).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    let owner = path.metadata().unwrap();
    chown(&second, Some(owner.uid()), Some(owner.gid())).unwrap();
    server.start_again().unwrap();
    sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1001, 3000) n").await;
    let facts = "SELECT format('%s %s %s', count(*), sum(n), max((ctid::text::point)[0])) FROM t";
    let before = value(&server, facts).await;
    assert!(before.starts_with("3000 4501500 1310"), "the rows are not in the second segment: {before}");

    let backup = back_up(&server).await;
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    let restored = target.join(path.strip_prefix(server.data()).unwrap());
    assert_eq!(restored.metadata().unwrap().len(), 1 << 30);
    let copy = server.start_on(&target).unwrap();
    assert_eq!(value(&copy, facts).await, before);
}

/// A folder that the server's user may write to.
fn folder_of(server: &TempServer, name: &str) -> PathBuf {
    let (path, owner) = (server.folder().join(name), server.data().metadata().unwrap());
    std::fs::create_dir(&path).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_command_that_fails_holds_no_backup_up() {
    let mut options = TempServerOptions::default();
    options.settings.extend(["archive_mode = on".into(), "archive_command = 'false'".into()]);
    let server = server_with(&options);
    sql(&server, "postgres", &sample(500)).await;
    let backup = tokio::time::timeout(PATIENCE, back_up(&server)).await.expect("the backup hangs");
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    let copy = server.start_on(&target).unwrap();
    assert_eq!(value(&copy, "SELECT count(*) FROM people").await, "500");
    assert_ne!(value(&server, "SELECT failed_count FROM pg_stat_archiver").await, "0");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_archives_nothing() {
    let mut options = TempServerOptions::default();
    options.settings.push("archive_mode = on".into());
    let server = server_with(&options);
    let archive = folder_of(&server, "archive");
    let command = format!("ALTER SYSTEM SET archive_command = 'cp %p {}/%f'", archive.display());
    sql(&server, "postgres", &command).await;
    sql(&server, "postgres", "SELECT pg_reload_conf()").await;
    sql(&server, "postgres", &sample(100)).await;
    let backup = back_up(&server).await;
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    // From here on the source writes nothing: what came into the archive would be the copy's.
    server.stop("fast").unwrap();
    let before = names(&archive);
    assert!(!before.is_empty(), "the source archives");
    let copy = server.start_on(&target).unwrap();
    support::until_sql(&copy, "SELECT pg_is_in_recovery()", "f").await;
    let came_along = "SELECT setting FROM pg_file_settings WHERE name = 'archive_command'";
    assert!(value(&copy, came_along).await.starts_with("cp %p"));
    for _ in 0..3 {
        sql(&copy, "postgres", "INSERT INTO people (name) VALUES ('x')").await;
        sql(&copy, "postgres", "SELECT pg_switch_wal()").await;
    }
    sql(&copy, "postgres", "CHECKPOINT").await;
    copy.stop("fast").unwrap();
    assert_eq!(names(&archive), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_fails_the_backup() {
    let primary = server();
    sql(&primary, "postgres", &sample(1000)).await;
    let target = primary.folder().join("standby");
    back_up(&primary).await.restore(DataDirectory::at(&target)).await.unwrap();
    let standby = start_following(&primary, &target);

    let (repository, memory) = memory_repository().await;
    // Slow enough to be promoted in the middle.
    let dumper = BaseBackupDump::new(standby.conninfo("postgres").unwrap()).max_rate(Some(2048));
    let backup = Backup::builder().repository(repository).dumper(dumper).build().unwrap();
    let run = tokio::spawn(async move { backup.run(&CancellationToken::new()).await });
    let sending = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
    while value(&standby, sending).await == "0" {
        assert!(!run.is_finished(), "the backup ended too early");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    sql(&standby, "postgres", "SELECT pg_promote()").await;
    let error = tokio::time::timeout(PATIENCE, run).await.expect("the backup hangs").unwrap().unwrap_err();
    let words = format!("{error} {:?}", error.hint());
    assert!(words.contains("promoted"), "{words}");
    assert_eq!(support::left(&memory), ["pgark.json"], "nothing is left");
    assert_eq!(value(&standby, "SELECT count(*) FROM pg_replication_slots").await, "0");
    // On its new timeline it is backed up like any other.
    back_up(&standby).await;
}
