//! Increments that servers of 17 and 18 make from their WAL summaries, where stock ones bring back what was deleted.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use pgark::physical::{DataDirectory, INCREMENTAL};
use pgark::postgres::Session;
use support::chain::{Home, all};
use support::containers::{beside_the_copy, with_summaries};
use support::{connect, conninfo, left_out, sample};

/// What a client sees of some tables, through sequential and through index-only scans.
const SEEN: &str = "SELECT count(*), coalesce(sum(id), 0) FROM";

/// Tables for what is done to them. None of them is touched by autovacuum.
const BEGIN: [&str; 10] = [
    "CREATE TABLE shrunk (id int, t text) WITH (autovacuum_enabled = off)",
    "INSERT INTO shrunk SELECT n, repeat('s', 200) FROM generate_series(1, 7000) n",
    "CREATE TABLE visible (id int PRIMARY KEY, t text) WITH (autovacuum_enabled = off)",
    "INSERT INTO visible SELECT n, repeat('v', 100) FROM generate_series(1, 10000) n",
    "CREATE TABLE large AS SELECT n AS id, repeat(md5(n::text), 10) AS t FROM generate_series(1, 60000) n",
    "VACUUM large",
    "CREATE TABLE dropped AS SELECT n AS id FROM generate_series(1, 5000) n",
    "CREATE TABLE truncated AS SELECT n AS id FROM generate_series(1, 5000) n",
    "CREATE DATABASE twin OID = 50000",
    "CHECKPOINT",
];
const TABLES: [&str; 6] = ["shrunk", "visible", "large", "truncated", "created", "moved"];

/// Deletes most of a table, has it cut, and extends it again in bulk, which leaves pages of zeros behind.
async fn shrink(session: &Session) {
    let copy =
        "COPY shrunk FROM PROGRAM 'for i in $(seq 1 2600); do echo \"$i s\"; done' WITH (DELIMITER ' ')";
    all(session, &["DELETE FROM shrunk WHERE id > 350", "VACUUM shrunk", copy]).await;
}

async fn a_chain_comes_back(major: u32) {
    if left_out("docker") {
        return;
    }
    let (container, session) = with_summaries(major).await;
    session.rows(&sample(2000)).await.unwrap();
    all(&session, &BEGIN).await;
    all(
        &session,
        &[
            "COPY (SELECT 1) TO PROGRAM 'mkdir -p /tmp/space'",
            "CREATE TABLESPACE space LOCATION '/tmp/space'",
        ],
    )
    .await;
    all(&session, &["CREATE TABLE moved TABLESPACE space AS SELECT n AS id FROM generate_series(1, 9000) n"])
        .await;
    let oid = session.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'").await.unwrap().unwrap();
    let connection = || conninfo(&container.url("postgres"));
    let home = Home::new().await;
    let full = home.full(connection()).await;

    shrink(&session).await;
    all(&session, &["VACUUM visible", "UPDATE large SET t = 'changed' WHERE id % 1000 = 0", "CHECKPOINT"])
        .await;
    let first = home.increment_by_server(connection()).await;
    home.is_smaller(&first, &full, 3).await;
    all(
        &session,
        &[
            "DELETE FROM visible WHERE id % 2 = 0",
            "DROP TABLE dropped",
            "TRUNCATE truncated",
            "INSERT INTO truncated SELECT generate_series(1, 7)",
            "CREATE TABLE created AS SELECT n AS id FROM generate_series(1, 3000) n",
            "UPDATE moved SET id = id + 1 WHERE id < 10",
        ],
    )
    .await;
    home.increment_by_server(connection()).await;
    // The same path and the same OID, other contents.
    all(&session, &["CREATE DATABASE other"]).await;
    let other = connect(&container.url("other")).await;
    all(&other, &["CREATE TABLE t AS SELECT -n AS id FROM generate_series(1, 3000) n"]).await;
    drop(other);
    all(&session, &["DROP DATABASE twin WITH (FORCE)"]).await;
    while session.rows("CREATE DATABASE twin OID = 50000 TEMPLATE other STRATEGY file_copy").await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    shrink(&session).await;
    all(&session, &["DELETE FROM large WHERE id % 100 = 0", "VACUUM large", "CREATE INDEX ON large (id)"])
        .await;
    let last = home.increment_by_server(connection()).await;

    let mut checks = Vec::new();
    let mut wanted = Vec::new();
    for table in TABLES {
        let query = format!("{SEEN} {table}");
        let row = session.rows(&query).await.unwrap().remove(0);
        let row: Vec<String> = row.into_iter().map(Option::unwrap).collect();
        for setting in ["enable_seqscan", "enable_indexonlyscan"] {
            checks.push(format!("query 'SET {setting} = off; {query}' | tail -n 1"));
            wanted.push(row.join(" "));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let space = folder.path().join("space");
    let into = DataDirectory::at(folder.path().join("data")).tablespace(oid.parse().unwrap(), space);
    home.restore(&last, into).await.unwrap();
    // The tablespace has another path in the container.
    let link = format!("ln -sfn /restored/space /restored/data/pg_tblspc/{oid}");
    let script = format!("{link}; start; {}; check; stop", checks.join("; "));
    assert_eq!(beside_the_copy(major, folder.path(), &script).lines().collect::<Vec<_>>(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_17_comes_back() {
    a_chain_comes_back(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_18_comes_back() {
    a_chain_comes_back(18).await;
}

/// Where the server cannot make an increment, contents are compared, and it is said why.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_summarized_is_compared() {
    if left_out("docker") {
        return;
    }
    let (container, session) = with_summaries(18).await;
    let connection = || conninfo(&container.url("postgres"));
    let home = Home::new().await;
    let full = home.full(connection()).await;
    all(&session, &["ALTER SYSTEM SET summarize_wal = off", "SELECT pg_reload_conf()"]).await;
    let compared = home.try_increment_by_server(connection()).await.unwrap();
    assert_eq!(compared.backup.parent, Some(full.backup.id.clone()));
    assert!(compared.warnings.iter().any(|w| w.contains("summarize_wal is off")), "{compared:?}");
    assert_eq!(home.kinds(&compared).await, ["delta", "list", "manifest", "wal"]);

    // A gap in the summaries.
    all(
        &session,
        &["CREATE TABLE gap AS SELECT 1 AS id", "CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT"],
    )
    .await;
    all(&session, &["ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()"]).await;
    // One that is damaged.
    let state = home.state();
    let newest = state.path(&format!("manifests/{}", compared.backup.id));
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let damaged = home.try_increment_by_server(connection()).await.unwrap();
    assert!(damaged.warnings.iter().any(|w| w.contains("manifest")), "{damaged:?}");
    assert_eq!(home.kinds(&damaged).await, ["delta", "list", "manifest", "wal"]);
    std::fs::remove_dir_all(state.path("manifests")).unwrap();
    let lost = home.try_increment_by_server(connection()).await.unwrap();
    assert!(lost.warnings.iter().any(|w| w.contains("no manifest of any backup")), "{lost:?}");
    assert_eq!(home.kinds(&lost).await, ["delta", "list", "manifest", "wal"]);
    // That one has a manifest again.
    let again = home.increment_by_server(connection()).await;
    assert_eq!(again.backup.parent, Some(lost.backup.id.clone()));
    assert_eq!(home.kinds(&again).await, [INCREMENTAL, "list", "manifest", "wal"]);
}
