//! Recovery of every version to a moment, with WAL that was received from it.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use pgark::crypt::Age;
use pgark::physical::{Archived, DataDirectory, Plan, Recovery, Target};
use pgark::repository::ClusterName;
use pgark::state::HostState;
use pgark::wal::{Archive, Asking, Destination, Fetcher, Inventory, Receiver, WalName};
use pgark::{CancellationToken, Encryptor, Event};
use support::physical::back_up_from;
use support::{connect, conninfo, containers, left_out};

/// A table is dropped by mistake; the recovered cluster has it.
async fn recovers(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    let session = connect(&container.url("postgres")).await;
    container.let_replication_in().await;
    session.rows("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await.unwrap();
    let backup = back_up_from(conninfo(&container.url("postgres"))).await;
    let (cluster, cancel) = (ClusterName::default(), CancellationToken::new());

    let folder = tempfile::tempdir().unwrap();
    let state = HostState::of(&folder.path().join("state"), &backup.repository, &cluster);
    let (identity, recipient) = support::keys();
    let sealing: Arc<dyn Encryptor> = Arc::new(Age::new().to(&recipient).unwrap());
    let to = Destination::new(backup.repository.clone(), cluster.clone(), state, Some(sealing));
    let receiver = Receiver::new(conninfo(&container.url("postgres")), to, Arc::new(|_: &Event| {}))
        .slot("pgark", true)
        .every(Duration::from_secs(1));
    let (stop, stopped) = (cancel.clone(), tokio::spawn(async move { receiver.run(&cancel).await }));

    session
        .rows("INSERT INTO t SELECT n FROM generate_series(1001, 1500) n; SELECT pg_switch_wal()")
        .await
        .unwrap();
    session.rows("SELECT pg_create_restore_point('good')").await.unwrap();
    let moment = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let moment: jiff::Timestamp = session.value(moment).await.unwrap().unwrap().parse().unwrap();
    session.rows("DROP TABLE t").await.unwrap();
    let safe =
        "SELECT coalesce(bool_and(flush_lsn >= pg_current_wal_flush_lsn()), false) FROM pg_stat_replication";
    let begun = std::time::Instant::now();
    while session.value(safe).await.unwrap().as_deref() != Some("t") {
        assert!(begun.elapsed() < Duration::from_mins(1), "the WAL is not received");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    stopped.await.unwrap().unwrap();

    // What the archive says without the server: times, and restore points.
    let opening: Arc<dyn Encryptor> = Arc::new(Age::new().identities(identity));
    let archive = Archive::current(&backup.repository, &cluster, Some(opening)).await.unwrap().unwrap();
    let inventory = Inventory::load(&archive).await.unwrap();
    let points = archive.points().await.unwrap();
    assert!(points.iter().any(|point| point.name == "good" && point.time <= moment), "{points:?}");
    let mut recovery = Recovery::default();
    recovery.target = Target::Time(moment);
    let archived = Archived { inventory: &inventory, points: &points };
    let backups = [backup.record.summary.clone()];
    let plan = Plan::make(&backups, Some(&archived), &recovery).unwrap();
    assert!(plan.reach.last_commit.unwrap() > moment && plan.reach.gap.is_none(), "{plan:?}");
    recovery.target = Target::Time(plan.reach.last_commit.unwrap());
    assert!(
        Plan::make(&backups, Some(&archived), &recovery).is_err(),
        "no commit is later than the last one"
    );
    recovery.target = Target::Time(moment);
    recovery.restore_command = Some("cp /restored/wal/%f %p".to_owned());

    backup.restore(DataDirectory::at(folder.path().join("data")).recovery(recovery)).await.unwrap();
    std::fs::create_dir(folder.path().join("wal")).unwrap();
    let fetcher = Fetcher::new(archive, Asking::Recovery);
    for name in inventory.survey.names() {
        let to = folder.path().join("wal").join(name.to_string());
        assert!(fetcher.fetch(WalName::Segment(name), &to).await.unwrap());
    }
    let script = "start; query 'SELECT count(*) FROM t'; stop";
    assert_eq!(containers::beside_the_copy(major, folder.path(), script), "1500");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_17_is_brought_to_a_moment() {
    recovers(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_18_is_brought_to_a_moment() {
    recovers(18).await;
}
