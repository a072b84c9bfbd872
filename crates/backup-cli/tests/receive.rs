//! WAL that is streamed into the archive as it is written.

#![allow(clippy::unwrap_used, missing_docs)]

mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use host::{Host, Receiving, archived, caught_up, one, until};
use pgark::postgres::TempServerOptions;
use rustix::process::{Pid, Signal, kill_process};
use support::{server_with, sql};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_the_store_when_everything_else_is_gone() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    host.back_up(&server);
    let receiving = Receiving::start(&host, &server);
    caught_up(&server).await;
    sql(&server, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'pgark'").await;
    sql(&server, "postgres", "SELECT pg_reload_conf()").await;
    until(&server, "SELECT sync_state FROM pg_stat_replication", "sync").await;

    let session = server.conninfo("postgres").unwrap().connect().await.unwrap();
    let begun = Instant::now();
    let mut acknowledged = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        session.rows(&format!("INSERT INTO t VALUES ({})", acknowledged + 1)).await.unwrap();
        acknowledged += 1;
    }
    assert!(acknowledged > 3, "{acknowledged} commits in five seconds");
    // While the store is away nothing is acknowledged, and nothing is lost.
    std::fs::rename(host.path("repo"), host.path("away")).unwrap();
    let insert = format!("INSERT INTO t VALUES ({})", acknowledged + 1);
    let waited = tokio::time::timeout(Duration::from_secs(3), session.rows(&insert)).await;
    assert!(waited.is_err(), "a commit returned that is nowhere else");
    std::fs::rename(host.path("away"), host.path("repo")).unwrap();
    let session = server.conninfo("postgres").unwrap().connect().await.unwrap();
    for _ in 0..20 {
        session.rows(&format!("INSERT INTO t VALUES ({})", acknowledged + 1)).await.unwrap();
        acknowledged += 1;
    }

    // Everything but the store dies, and its files with it.
    let postmaster = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let postmaster: i32 = postmaster.lines().next().unwrap().parse().unwrap();
    kill_process(receiving.pid(), Signal::KILL).unwrap();
    kill_process(Pid::from_raw(postmaster).unwrap(), Signal::KILL).unwrap();
    drop(receiving);
    std::fs::remove_dir_all(server.data().join("pg_wal")).unwrap();
    drop(server);

    let other = server_with(&TempServerOptions::default());
    let recovered = host.recover(&other, "recovered", &[]).await;
    let newest: u32 = one(&recovered, "SELECT max(n) FROM t").await.parse().unwrap();
    assert!(newest >= acknowledged, "{acknowledged} commits were acknowledged, {newest} are there");
    let all = one(&recovered, "SELECT count(DISTINCT n) = max(n) FROM t").await;
    assert_eq!(all, "t", "one in between is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_goes_on_where_it_was_and_follows_a_promotion() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS n").await;
    host.back_up(&server);
    // A standby, from which WAL is received until it takes over.
    let primary = format!("host={} user=postgres dbname=postgres", server.folder().display());
    host.ok(&["restore", "--target-dir", &host.place("standby"), "--standby", &primary]);
    let standby = server.start_on(&host.path("standby")).unwrap();
    for round in 2..5 {
        let receiving = Receiving::start(&host, &standby);
        sql(&server, "postgres", &format!("INSERT INTO t VALUES ({round})")).await;
        let now = one(&server, "SELECT pg_current_wal_flush_lsn()").await;
        until(
            &standby,
            &format!("SELECT coalesce(bool_and(flush_lsn >= '{now}'), false) FROM pg_stat_replication"),
            "t",
        )
        .await;
        // Killed or asked to end: it goes on behind what is stored.
        if round % 2 == 0 {
            drop(receiving);
        } else {
            receiving.end();
        }
        if round == 3 {
            sql(&server, "postgres", "SELECT pg_switch_wal()").await;
        }
    }
    let receiving = Receiving::start(&host, &standby);
    until(&standby, "SELECT count(*) FROM pg_stat_replication", "1").await;
    sql(&standby, "postgres", "SELECT pg_promote()").await;
    sql(&standby, "postgres", "INSERT INTO t VALUES (100)").await;
    caught_up(&standby).await;
    receiving.end();
    let listing = host.json(&["wal", "list"]);
    let window = &listing["windows"][0];
    assert_eq!((window["timeline"].as_u64(), window["gap"].as_str()), (Some(2), None), "{listing}");
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let recovered = host.recover(&server, "recovered", &[]).await;
    assert_eq!(one(&recovered, "SELECT sum(n) FROM t").await, "110");
    let log = std::fs::read_to_string(host.path("receive.log")).unwrap();
    assert!(log.contains("\"lag_bytes\""), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_segments() {
    let mut peaks = Vec::new();
    for size in ["16", "64"] {
        let host = Host::new();
        host.ok(&["init"]);
        let mut options = TempServerOptions::default();
        options.initdb = vec![format!("--wal-segsize={size}")];
        let server = server_with(&options);
        let receiving = Receiving::start(&host, &server);
        until(&server, "SELECT count(*) FROM pg_stat_replication", "1").await;
        // What cannot be compressed.
        let fill = "CREATE TABLE t AS SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1500000) n GROUP BY n % 6000";
        sql(&server, "postgres", &format!("{fill}; SELECT pg_switch_wal()")).await;
        caught_up(&server).await;
        peaks.push(receiving.peak());
        receiving.end();
        let listing = host.json(&["wal", "list"]);
        let segments: u64 = listing["timelines"][0]["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["segments"].as_u64().unwrap())
            .sum();
        assert!(segments >= 1, "{listing}");
        assert_eq!(host.json(&["wal", "verify"])["good"], true);
    }
    // A segment of 64 MiB in memory would be 48 MiB more; half of that is more than allocators differ.
    assert!(peaks[1] < peaks[0] + 24 * 1024, "peaks in KiB: {peaks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_pushes_is_received_from_as_well() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    archived(&server).await;
    let receiving = Receiving::start(&host, &server);
    until(&server, "SELECT count(*) FROM pg_stat_replication", "1").await;
    for n in 0..3 {
        sql(&server, "postgres", &format!("INSERT INTO t VALUES ({n})")).await;
        caught_up(&server).await;
        archived(&server).await;
    }
    caught_up(&server).await;
    receiving.end();
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let log = std::fs::read_to_string(host.path("receive.log")).unwrap();
    assert!(!log.contains("missing"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_lost_leaves_a_gap_that_is_told() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    let receiving = Receiving::start(&host, &server);
    until(&server, "SELECT count(*) FROM pg_stat_replication", "1").await;
    caught_up(&server).await;
    receiving.end();
    until(&server, "SELECT active FROM pg_replication_slots", "f").await;
    sql(&server, "postgres", "SELECT pg_drop_replication_slot('pgark')").await;
    for n in 0..4 {
        sql(&server, "postgres", &format!("INSERT INTO t VALUES ({n})")).await;
        sql(&server, "postgres", "SELECT pg_switch_wal()").await;
        sql(&server, "postgres", "CHECKPOINT").await;
    }
    host.back_up(&server);
    let receiving = Receiving::start(&host, &server);
    until(&server, "SELECT count(*) FROM pg_stat_replication", "1").await;
    sql(&server, "postgres", "INSERT INTO t VALUES (100); SELECT pg_switch_wal()").await;
    caught_up(&server).await;
    receiving.end();
    let log = std::fs::read_to_string(host.path("receive.log")).unwrap();
    assert!(log.contains("what is in between is missing"), "{log}");
    // From the backup behind the gap everything can be recovered.
    let recovered = host.recover(&server, "recovered", &[]).await;
    assert_eq!(one(&recovered, "SELECT sum(n) FROM t").await, "106");
}
