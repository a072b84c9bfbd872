//! Physical backups of servers at work, restored, started and compared.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgark::physical::{BaseBackupDump, DataDirectory};
use pgark::postgres::{TempServer, TempServerOptions};
use pgark::{Backup, CancellationToken, ErrorKind};
use support::physical::{as_owner, back_up, back_up_from, start_following};
use support::{
    connect, conninfo, containers, fingerprint, left_out, memory_repository, recovered, sample, server,
    server_with, sql,
};

fn run(server: &TempServer, program: &str, args: &[&str]) {
    let output = Command::new(server.bin().join(program)).args(args).output().unwrap();
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {words}");
}

/// Moves money between accounts until it is told to end, so that the sum stays the same.
fn at_work(server: &TempServer) -> (Arc<AtomicBool>, tokio::task::JoinHandle<u32>) {
    let go_on = Arc::new(AtomicBool::new(true));
    let (going, connection) = (Arc::clone(&go_on), server.conninfo("postgres").unwrap());
    let work = tokio::spawn(async move {
        let session = connection.connect().await.unwrap();
        let mut done = 0;
        while going.load(Ordering::Relaxed) {
            let (from, to) = (done % 1000, (done * 7 + 1) % 1000);
            let transfer = format!(
                "UPDATE accounts SET balance = balance - 5 WHERE id = {from}; UPDATE accounts SET balance = balance + 5 WHERE id = {to}"
            );
            session.rows(&transfer).await.unwrap();
            done += 1;
        }
        done
    });
    (go_on, work)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_at_work_comes_back() {
    let server = server();
    sql(&server, "postgres", &sample(20_000)).await;
    sql(&server, "postgres", "CREATE DATABASE other").await;
    sql(&server, "other", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await;
    sql(
        &server,
        "postgres",
        "CREATE TABLE accounts AS SELECT n AS id, 100 AS balance FROM generate_series(0, 999) n",
    )
    .await;
    let (go_on, work) = at_work(&server);
    let backup = back_up(&server).await;
    go_on.store(false, Ordering::Relaxed);
    assert!(work.await.unwrap() > 0, "nothing was written during the backup");

    let facts = serde_json::to_string(&backup.record.summary).unwrap();
    assert!(facts.contains("end_lsn") && facts.contains("\"checksum_failures\":false"), "{facts}");
    assert_eq!(
        sql(&server, "postgres", "SELECT count(*) FROM pg_replication_slots").await,
        [[Some("0".to_owned())]]
    );
    let before = fingerprint(&connect(&server.url("postgres")).await).await;

    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    assert!(!target.join("pgark.restore").exists() && target.join("recovery.signal").exists());
    let copy = server.start_on(&target).unwrap();
    let money = "SELECT sum(balance), count(*) FROM accounts";
    assert_eq!(sql(&copy, "postgres", money).await, [[Some("100000".to_owned()), Some("1000".to_owned())]]);
    // All but the accounts stood still.
    let still = |all: Vec<String>| all.into_iter().filter(|t| !t.contains("accounts")).collect::<Vec<_>>();
    let after = fingerprint(&connect(&copy.url("postgres")).await).await;
    assert_eq!(still(after), still(before));
    assert_eq!(sql(&copy, "other", "SELECT count(*) FROM t").await, [[Some("1000".to_owned())]]);
    // It is harmless: a timeline of its own, and no archiving.
    let facts = "SELECT timeline_id, current_setting('archive_mode'), pg_is_in_recovery() FROM pg_control_checkpoint()";
    let wanted = [Some("2".to_owned()), Some("off".to_owned()), Some("f".to_owned())];
    sql(&copy, "postgres", "CHECKPOINT").await;
    assert_eq!(sql(&copy, "postgres", facts).await, [wanted]);
    run(
        &copy,
        "pg_amcheck",
        &["-h", &copy.folder().display().to_string(), "-U", "postgres", "--all", "--install-missing"],
    );

    // The second timeline has a history, without which the next copy would not start.
    let again = back_up(&copy).await;
    let target = server.folder().join("again");
    again.restore(DataDirectory::at(&target)).await.unwrap();
    let second = copy.start_on(&target).unwrap();
    assert_eq!(sql(&second, "postgres", money).await, [[Some("100000".to_owned()), Some("1000".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_never_point_into_the_source() {
    let server = server();
    let folder = |name: &str| server.folder().join(name);
    let owner = std::fs::metadata(server.data()).unwrap();
    let own = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    };
    std::fs::create_dir(folder("fast")).unwrap();
    own(&folder("fast"));
    sql(&server, "postgres", &format!("CREATE TABLESPACE fast LOCATION '{}'", folder("fast").display()))
        .await;
    sql(&server, "postgres", "CREATE TABLE here TABLESPACE fast AS SELECT n FROM generate_series(1, 5000) n")
        .await;
    let rows = sql(&server, "postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    let oid: u32 = rows[0][0].as_ref().unwrap().parse().unwrap();
    let backup = back_up(&server).await;

    // Where the source's tablespace still is, nothing is restored, and nothing is touched.
    let target = folder("restored");
    let error = backup.restore(DataDirectory::at(&target)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert!(error.to_string().contains("fast") && !target.exists(), "{error:?}");
    let error = backup.restore(DataDirectory::at(&target).tablespace(1, "/x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");

    backup.restore(DataDirectory::at(&target).tablespace(oid, folder("moved"))).await.unwrap();
    let copy = server.start_on(&target).unwrap();
    recovered(&copy).await;
    sql(&copy, "postgres", "DROP TABLE here").await;
    sql(&copy, "postgres", "CHECKPOINT").await;
    assert_eq!(sql(&server, "postgres", "SELECT count(*) FROM here").await, [[Some("5000".to_owned())]]);
    server.stop("immediate").unwrap();
    server.start_again().unwrap();
    assert_eq!(sql(&server, "postgres", "SELECT count(*) FROM here").await, [[Some("5000".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_physical_backup_needs_is_asked_for() {
    let mut options = TempServerOptions::default();
    options.settings.push("max_wal_senders = 1".into());
    let server = server_with(&options);
    let (repository, memory) = memory_repository().await;
    let backup = Backup::builder()
        .repository(repository)
        .dumper(BaseBackupDump::new(server.conninfo("postgres").unwrap()))
        .build()
        .unwrap();
    let error = backup.run(&CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error:?}");
    assert!(error.hint().unwrap().contains("max_wal_senders"), "{error:?}");
    assert_eq!(support::left(&memory), ["pgark.json"]);
}

/// Newer servers, over TCP, with a password. What was restored is checked by their own `pg_verifybackup`, WAL
/// included, and started.
async fn restores_from_a_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    let session = connect(&container.url("postgres")).await;
    session.rows(&sample(5000)).await.unwrap();
    container.let_replication_in().await;
    let count = "SELECT count(*), sum(hashtextextended(p::text, 7)) FROM people p";
    let before = session.rows(count).await.unwrap();
    let backup = back_up_from(conninfo(&container.url("postgres"))).await;
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("data");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    let script = format!("verify; start; query '{count}'; stop");
    let wanted: Vec<String> = before[0].iter().map(|v| v.clone().unwrap()).collect();
    assert_eq!(containers::beside_the_copy(major, folder.path(), &script), wanted.join(" "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_17_comes_back() {
    restores_from_a_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_18_comes_back() {
    restores_from_a_container(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_backed_up_while_it_replays() {
    let primary = server();
    sql(&primary, "postgres", &sample(5000)).await;
    sql(
        &primary,
        "postgres",
        "CREATE TABLE accounts AS SELECT n AS id, 100 AS balance FROM generate_series(0, 999) n",
    )
    .await;
    let target = primary.folder().join("standby");
    back_up(&primary).await.restore(DataDirectory::at(&target)).await.unwrap();
    let standby = start_following(&primary, &target);
    assert_eq!(sql(&standby, "postgres", "SELECT pg_is_in_recovery()").await, [[Some("t".to_owned())]]);

    let (go_on, work) = at_work(&primary);
    let backup = back_up(&standby).await;
    go_on.store(false, Ordering::Relaxed);
    assert!(work.await.unwrap() > 0, "nothing was written during the backup");
    let target = primary.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    assert!(!target.join("standby.signal").exists(), "the copy follows nobody");
    let copy = primary.start_on(&target).unwrap();
    recovered(&copy).await;
    let facts = "SELECT sum(balance), count(*), pg_is_in_recovery() FROM accounts";
    let wanted = ["100000", "1000", "f"].map(|v| Some(v.to_owned()));
    assert_eq!(sql(&copy, "postgres", facts).await, [wanted]);
    let still = |all: Vec<String>| all.into_iter().filter(|t| !t.contains("accounts")).collect::<Vec<_>>();
    let source = fingerprint(&connect(&primary.url("postgres")).await).await;
    assert_eq!(still(fingerprint(&connect(&copy.url("postgres")).await).await), still(source));
}

/// Moves a server's configuration out of its data directory, as Debian has it.
fn configure_outside(server: &TempServer) -> std::path::PathBuf {
    use std::os::unix::fs::{MetadataExt, chown};
    server.stop("fast").unwrap();
    let (data, folder) = (server.data(), server.folder().join("etc"));
    std::fs::create_dir_all(folder.join("conf.d")).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(data.join(name), folder.join(name)).unwrap();
    }
    let at = |name: &str| folder.join(name).display().to_string();
    let own = std::fs::read_to_string(folder.join("postgresql.conf")).unwrap();
    let places = format!(
        "data_directory = '{}'\nhba_file = '{}'\nident_file='{}'\nexternal_pid_file = '{}'\ninclude_dir = 'conf.d'\n",
        data.display(),
        at("pg_hba.conf"),
        at("pg_ident.conf"),
        at("pid"),
    );
    std::fs::write(folder.join("postgresql.conf"), own + &places).unwrap();
    std::fs::write(folder.join("conf.d/work.conf"), "work_mem = '7MB'\n").unwrap();
    let owner = data.metadata().unwrap();
    for path in ["", "conf.d", "postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d/work.conf"] {
        chown(folder.join(path), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let log = server.folder().join("log").display().to_string();
    as_owner(server, "pg_ctl", &["-D", &folder.display().to_string(), "-l", &log, "-w", "start"]);
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_outside_the_data_directory_comes_back() {
    let server = server();
    let folder = configure_outside(&server);
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 7 AS n").await;
    let backup = back_up(&server).await;
    assert_eq!(backup.record.summary.warnings, 0, "all of it could be read");
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    let saved = target.join("pgark.config").join(folder.strip_prefix("/").unwrap());
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d/work.conf"] {
        let (before, after) = (std::fs::read(folder.join(name)), std::fs::read(saved.join(name)));
        assert_eq!(before.unwrap(), after.unwrap(), "{name}");
    }
    // The source's server runs: its files, ports and folders are not the copy's.
    let copy = server.start_on(&target).unwrap();
    let facts = "SELECT n, current_setting('work_mem'), current_setting('data_directory') = '{}', \
                 current_setting('hba_file') = '{}/pg_hba.conf', current_setting('external_pid_file') FROM t";
    let facts = facts.replace("{}", &copy.data().display().to_string());
    let wanted = ["7", "7MB", "t", "t", ""].map(|v| Some(v.to_owned()));
    assert_eq!(sql(&copy, "postgres", &facts).await, [wanted]);
    let still = sql(&server, "postgres", "SELECT n FROM t").await;
    assert_eq!(still, [[Some("7".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_that_may_not_be_read_is_said_to_be_missing() {
    let server = server();
    let folder = configure_outside(&server);
    sql(&server, "postgres", "CREATE ROLE keeper REPLICATION LOGIN; CREATE TABLE t AS SELECT 7 AS n").await;
    let keeper = server.url("postgres").replace("user=postgres", "user=keeper");
    let backup = back_up_from(conninfo(&keeper)).await;
    assert_eq!(backup.record.summary.warnings, 1, "it may not know where they are");
    sql(&server, "postgres", "GRANT pg_read_all_settings TO keeper").await;
    let backup = back_up_from(conninfo(&keeper)).await;
    assert_eq!(backup.record.summary.warnings, 3, "it may know, and not read them");
    let target = server.folder().join("restored");
    backup.restore(DataDirectory::at(&target)).await.unwrap();
    assert!(!target.join("pgark.config").exists() && folder.exists());
    // It starts all the same; and lets in nobody whom the system does not know.
    let hba = target.join("pg_hba.conf");
    assert!(std::fs::read_to_string(&hba).unwrap().contains("local all all peer"));
    std::fs::write(hba, "local all all trust\n").unwrap();
    let copy = server.start_on(&target).unwrap();
    // Until it has recovered it answers nobody.
    let connection = copy.conninfo("postgres").unwrap();
    let begun = std::time::Instant::now();
    while connection.connect().await.is_err() {
        assert!(begun.elapsed() < std::time::Duration::from_mins(1), "it does not answer");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(sql(&copy, "postgres", "SELECT n FROM t").await, [[Some("7".to_owned())]]);
}
