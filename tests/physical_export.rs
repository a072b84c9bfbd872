//! Physical backups as stock tools have them: `pg_verifybackup` and `pg_combinebackup` look at them.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;

use pgark::ErrorKind;
use pgark::physical::Export;
use pgark::postgres::TempServer;
use support::chain::{Home, all, of};
use support::containers::beside_the_copy;
use support::physical::folder_for;
use support::{connect, conninfo, containers, fingerprint, left_out, recovered, sample, server};

/// Every file is that of the manifest, and the WAL that recovery needs is there.
fn verify(server: &TempServer, folder: &Path) {
    let output = Command::new(server.bin().join("pg_verifybackup")).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_becomes_one_full_backup() {
    let server = server();
    let session = connect(&server.url("postgres")).await;
    session.rows(&sample(2000)).await.unwrap();
    let space = folder_for(&server, "space");
    all(&session, &[&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())]).await;
    all(&session, &["CREATE TABLE there TABLESPACE space AS SELECT n FROM generate_series(1, 5000) n"]).await;
    let oid = session.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'").await.unwrap().unwrap();
    let home = Home::new().await;
    let full = home.full(of(&server)).await;
    all(&session, &["UPDATE there SET n = -n WHERE n < 100", "CREATE TABLE more AS SELECT 1 AS n"]).await;
    let last = home.increment(of(&server)).await;

    for backup in [&full, &last] {
        let folder = server.folder().join(format!("export-{}", backup.backup.id));
        home.restore(backup, Export::to(&folder)).await.unwrap();
        verify(&server, &folder);
        let beside = format!("{}.tablespace-{oid}", folder.display());
        assert_eq!(std::fs::read_link(folder.join("pg_tblspc").join(&oid)).unwrap(), Path::new(&beside));
        for gone in ["pgark.restore", "recovery.signal", "tablespace_map", "global/pg_control.pgark"] {
            assert!(!folder.join(gone).exists(), "{gone}");
        }
    }
    let elsewhere = server.folder().join("elsewhere");
    let folder = server.folder().join("export-linked");
    let to = Export::to(&folder).tablespace(oid.parse().unwrap(), &elsewhere);
    home.restore(&last, to).await.unwrap();
    verify(&server, &folder);
    assert_eq!(std::fs::read_link(folder.join("pg_tblspc").join(&oid)).unwrap(), elsewhere);

    // It is a backup like others: a server starts on it.
    let folder = server.folder().join(format!("export-{}", last.backup.id));
    let copy = server.start_on(&folder).unwrap();
    recovered(&copy).await;
    assert_eq!(fingerprint(&session).await, fingerprint(&connect(&copy.url("postgres")).await).await);

    // What is there is not touched.
    let error = home.restore(&last, Export::to(&folder)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    // No stock tool knows increments of pgark's own.
    let raw = server.folder().join("raw");
    let error = home.restore(&last, Export::to(&raw).raw(true)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.hint().unwrap().contains("--raw"), "{error:?}");
    assert!(!raw.exists());
    home.restore(&full, Export::to(&raw).raw(true)).await.unwrap();
    verify(&server, &raw.join("1"));
}

async fn a_chain_of_the_server_s(major: u32) {
    if left_out("docker") {
        return;
    }
    let (container, session) = containers::with_summaries(major).await;
    session.rows(&sample(2000)).await.unwrap();
    all(&session, &["CREATE TABLE t AS SELECT n FROM generate_series(1, 100000) n", "VACUUM"]).await;
    all(
        &session,
        &[
            "COPY (SELECT 1) TO PROGRAM 'mkdir -p /tmp/space'",
            "CREATE TABLESPACE space LOCATION '/tmp/space'",
        ],
    )
    .await;
    all(&session, &["CREATE TABLE there TABLESPACE space AS SELECT n FROM generate_series(1, 5000) n"]).await;
    let oid = session.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'").await.unwrap().unwrap();
    let connection = || conninfo(&container.url("postgres"));
    let home = Home::new().await;
    home.full(connection()).await;
    all(&session, &["UPDATE t SET n = -n WHERE n % 1000 = 0"]).await;
    home.increment_by_server(connection()).await;
    all(
        &session,
        &[
            "DELETE FROM t WHERE n < -50000",
            "UPDATE there SET n = 7 WHERE n = 8",
            "CREATE TABLE more AS SELECT 1 AS n",
        ],
    )
    .await;
    let last = home.increment_by_server(connection()).await;
    let query = "SELECT count(*), sum(n), (SELECT sum(n) FROM there), (SELECT count(*) FROM more) FROM t";
    let row = session.rows(query).await.unwrap().remove(0);
    let wanted = row.into_iter().map(Option::unwrap).collect::<Vec<_>>().join(" ");

    let folder = tempfile::tempdir().unwrap();
    home.restore(&last, Export::to(folder.path().join("data"))).await.unwrap();
    home.restore(&last, Export::to(folder.path().join("raw")).raw(true)).await.unwrap();
    let script = format!(
        "cd /restored; for d in data raw/1 raw/2 raw/3; do ln -sfn /restored/$d.tablespace-{oid} $d/pg_tblspc/{oid}; done
         verify_all data; start; query '{query}'; stop; rm -rf data*
         for n in raw/1 raw/2 raw/3; do verify_all $n; done
         $bin/pg_combinebackup -T /restored/raw/3.tablespace-{oid}=/restored/space -o /restored/data raw/1 raw/2 raw/3 >&2; verify_all data; chown -R postgres data space
         start; query '{query}'; check; stop"
    );
    assert_eq!(beside_the_copy(major, folder.path(), &script), format!("{wanted}\n{wanted}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_17_is_combined_by_stock_tools() {
    a_chain_of_the_server_s(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_18_is_combined_by_stock_tools() {
    a_chain_of_the_server_s(18).await;
}
