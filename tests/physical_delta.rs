//! Restores over data directories that are there: they come to the same as restores into empty folders, write what
//! differs, and leave alone what is not theirs.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use pgark::physical::DataDirectory;
use pgark::postgres::TempServer;
use pgark::{ErrorKind, Restored};
use serde_json::Value;
use support::physical::{BackedUp, Tree, as_owner, assert_same, back_up, folder_for, tree, verified};
use support::{connect, fingerprint, recovered, sample, server, sql};

async fn all(server: &TempServer, statements: &[&str]) {
    for statement in statements {
        sql(server, "postgres", statement).await;
    }
}

/// What was written of files, without WAL, which is always written.
fn written(backup: &BackedUp, restored: &Restored) -> u64 {
    let wal = |part: &&pgark::repository::PartRecord| part.kind == "wal";
    let wal: u64 = backup.record.parts.iter().filter(wal).map(|_| wal_bytes(restored)).sum();
    restored.target["written_bytes"].as_u64().unwrap() - wal
}

fn wal_bytes(restored: &Restored) -> u64 {
    let folder = restored.target["data_directory"].as_str().unwrap();
    let files = std::fs::read_dir(Path::new(folder).join("pg_wal")).unwrap();
    files
        .map(|entry| entry.unwrap().metadata().unwrap())
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum()
}

fn same(restored: &Restored) -> u64 {
    restored.target["same_bytes"].as_u64().unwrap()
}

/// With what each restore makes of its own folders taken out.
fn without_links(mut tree: Tree) -> Tree {
    tree.retain(|_, (mode, _)| *mode & 0o170_000 != 0o120_000);
    tree
}

fn refused(error: &pgark::Error, word: &str) {
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    let said = format!("{error} {}", error.hint().unwrap());
    assert!(said.contains(word), "{word:?} is not in {said}");
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "it is one story")]
async fn a_changed_cluster_becomes_what_it_was() {
    let server = server();
    sql(&server, "postgres", &sample(20_000)).await;
    let large =
        "CREATE TABLE large AS SELECT n AS id, repeat(md5(n::text), 8) AS t FROM generate_series(1, 60000) n";
    all(&server, &[large, "CREATE TABLE gone AS SELECT n FROM generate_series(1, 20000) n"]).await;
    let untouched = sql(&server, "postgres", "SELECT pg_relation_filepath('large')").await;
    let untouched = server.data().join(untouched[0][0].as_ref().unwrap());
    sql(&server, "postgres", "VACUUM (FREEZE, ANALYZE)").await;
    let backup = back_up(&server).await;
    let before = fingerprint(&connect(&server.url("postgres")).await).await;
    let fresh = server.folder().join("fresh");
    let restored = backup.restored(DataDirectory::at(&fresh)).await.unwrap();
    assert_eq!((same(&restored), &restored.target["resumed"]), (0, &Value::Null));
    let fresh_bytes = written(&backup, &restored);
    let fresh = tree(&fresh);

    all(
        &server,
        &[
            "DROP TABLE gone",
            "CREATE TABLE added AS SELECT n FROM generate_series(1, 50000) n",
            "CREATE DATABASE other",
            "UPDATE large SET t = 'x' WHERE id BETWEEN 100 AND 110",
            "CHECKPOINT",
        ],
    )
    .await;
    let data = server.data();
    let into = || DataDirectory::at(&data).delta(true);

    // Below a running server nothing is touched.
    refused(&backup.restore(into()).await.unwrap_err(), "pg_ctl stop");
    assert!(!data.join("pgark.restore").exists() && data.join("global/pg_control").exists());
    assert_eq!(sql(&server, "postgres", "SELECT count(*) FROM added").await, [[Some("50000".to_owned())]]);
    server.stop("fast").unwrap();
    // Without being asked it does not restore over anything.
    refused(&backup.restore(DataDirectory::at(&data)).await.unwrap_err(), "--delta");

    // Files of nobody, of other kinds, and with other names elsewhere.
    let outside = server.folder().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("mine"), "mine").unwrap();
    std::fs::create_dir(data.join("stray")).unwrap();
    std::fs::write(data.join("stray/file"), "x").unwrap();
    std::fs::write(data.join("base/1/stray"), "x").unwrap();
    std::fs::write(data.join("pg_subtrans/00FF"), "x").unwrap();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    symlink(&outside, data.join("linked")).unwrap();
    std::fs::create_dir(data.join("pg_wal/summaries")).unwrap();
    std::fs::write(data.join("pg_wal/summaries/old.summary"), "x").unwrap();
    // A file and a folder have each other's names.
    std::fs::remove_file(data.join("base/1/PG_VERSION")).unwrap();
    std::fs::create_dir_all(data.join("base/1/PG_VERSION/x")).unwrap();
    std::fs::remove_dir_all(data.join("pg_logical/mappings")).unwrap();
    std::fs::write(data.join("pg_logical/mappings"), "x").unwrap();
    // A link where a file of the backup was, and a hard link to one that changed.
    std::fs::rename(data.join("pg_ident.conf"), outside.join("ident")).unwrap();
    symlink(outside.join("ident"), data.join("pg_ident.conf")).unwrap();
    std::fs::write(data.join("pg_hba.conf"), "changed").unwrap();
    std::fs::hard_link(data.join("pg_hba.conf"), outside.join("hba")).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    let never_written = data.join("base/1/1255");
    std::fs::File::options().write(true).open(&never_written).unwrap().set_modified(long_ago).unwrap();
    let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();

    let restored = backup.restored(into()).await.unwrap();
    assert_same(&tree(&data), &fresh);
    verified(&server, &data);
    assert_eq!(std::fs::read_to_string(outside.join("mine")).unwrap(), "mine");
    assert_eq!(std::fs::read_to_string(outside.join("hba")).unwrap(), "changed");
    assert!(outside.join("ident").exists());
    assert_eq!(modified(&never_written), long_ago);
    assert!(same(&restored) > fresh_bytes / 2, "{restored:?}");
    assert_eq!(written(&backup, &restored) + same(&restored), fresh_bytes);

    // The settings and the labels are what differs after it.
    let labels =
        ["backup_label", "postgresql.auto.conf"].map(|name| data.join(name).metadata().unwrap().len());
    let restored = backup.restored(into()).await.unwrap();
    assert_same(&tree(&data), &fresh);
    assert!(written(&backup, &restored) <= labels.iter().sum::<u64>(), "{restored:?}");
    // One page.
    let file = std::fs::File::options().write(true).open(&untouched).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"torn", 3 * 8192 + 5000).unwrap();
    let restored = backup.restored(into()).await.unwrap();
    assert_same(&tree(&data), &fresh);
    let once_more = written(&backup, &restored);
    assert!((4096..4096 + labels.iter().sum::<u64>() + 1).contains(&once_more), "{restored:?}");

    server.start_again().unwrap();
    recovered(&server).await;
    assert_eq!(fingerprint(&connect(&server.url("postgres")).await).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_data_directory_of_the_cluster_is_refused() {
    let server = server();
    let backup = back_up(&server).await;
    server.stop("fast").unwrap();
    let of_nobody = server.folder().join("home");
    std::fs::create_dir_all(of_nobody.join("documents")).unwrap();
    std::fs::write(of_nobody.join("documents/thesis"), "years of work").unwrap();
    let other = server.folder().join("other");
    as_owner(&server, "initdb", &["-D", &other.display().to_string(), "-A", "trust", "-N"]);
    let stale = server.data();
    std::fs::write(stale.join("postmaster.pid"), format!("{}\n", i32::MAX)).unwrap();
    for (folder, word) in [(&of_nobody, "PG_VERSION"), (&other, "another cluster"), (&stale, "remove")] {
        let before = tree(folder);
        refused(&backup.restore(DataDirectory::at(folder).delta(true)).await.unwrap_err(), word);
        assert_same(&tree(folder), &before);
    }
    // It must hold WAL only, since it would be emptied.
    std::fs::remove_file(stale.join("postmaster.pid")).unwrap();
    std::fs::rename(stale.join("pg_wal"), server.folder().join("kept_wal")).unwrap();
    for (leads, word) in
        [(&of_nobody, "documents"), (&stale.join("base"), "data directory"), (&stale.join("x"), "not there")]
    {
        symlink(leads, stale.join("pg_wal")).unwrap();
        let (before, elsewhere) = (tree(&stale), tree(&of_nobody));
        refused(&backup.restore(DataDirectory::at(&stale).delta(true)).await.unwrap_err(), word);
        assert_same(&tree(&stale), &before);
        assert_same(&tree(&of_nobody), &elsewhere);
        std::fs::remove_file(stale.join("pg_wal")).unwrap();
    }
    // Into an empty folder, or none, it is a restore like others.
    let fresh = server.folder().join("fresh");
    backup.restore(DataDirectory::at(&fresh)).await.unwrap();
    let nowhere = server.folder().join("nowhere");
    backup.restore(DataDirectory::at(&nowhere).delta(true)).await.unwrap();
    assert_same(&tree(&nowhere), &tree(&fresh));
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_and_wal_stay_where_they_are() {
    let server = server();
    let (space, elsewhere) = (folder_for(&server, "space"), folder_for(&server, "elsewhere"));
    let location = format!("CREATE TABLESPACE space LOCATION '{}'", space.display());
    all(
        &server,
        &[&location, "CREATE TABLE here TABLESPACE space AS SELECT n FROM generate_series(1, 50000) n"],
    )
    .await;
    let oid = sql(&server, "postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'space'").await;
    let oid: u32 = oid[0][0].as_ref().unwrap().parse().unwrap();
    let backup = back_up(&server).await;
    let (fresh, fresh_space) = (server.folder().join("fresh"), server.folder().join("fresh_space"));
    backup.restore(DataDirectory::at(&fresh).tablespace(oid, &fresh_space)).await.unwrap();

    let later = folder_for(&server, "later");
    let location = format!("CREATE TABLESPACE later LOCATION '{}'", later.display());
    all(
        &server,
        &["DELETE FROM here WHERE n % 7 = 0", "CREATE TABLE too TABLESPACE space AS SELECT 1", &location],
    )
    .await;
    sql(
        &server,
        "postgres",
        "CREATE TABLE there TABLESPACE later AS SELECT n FROM generate_series(1, 100) n",
    )
    .await;
    server.stop("fast").unwrap();
    let data = server.data();
    // WAL on a disk of its own.
    let wal = folder_for(&server, "wal");
    std::fs::remove_dir(&wal).unwrap();
    std::fs::rename(data.join("pg_wal"), &wal).unwrap();
    std::fs::create_dir(wal.join("lost+found")).unwrap();
    symlink(&wal, data.join("pg_wal")).unwrap();
    // Of a cluster of another version, and of nobody.
    for name in ["PG_14_202107181/1", "notes"] {
        std::fs::create_dir_all(space.join(name)).unwrap();
    }
    // Where its own link does not lead, nothing that is there is touched.
    std::fs::write(elsewhere.join("mine"), "mine").unwrap();
    let before = tree(&data);
    let into = DataDirectory::at(&data).delta(true);
    refused(&backup.restore(into.clone().tablespace(oid, &elsewhere)).await.unwrap_err(), "elsewhere");
    assert_same(&tree(&data), &before);

    let left = tree(&later);
    let restored = backup.restored(into).await.unwrap();
    assert!(same(&restored) > 1_000_000, "{restored:?}");
    assert_same(&tree(&later), &left);
    let mut found = tree(&space);
    for name in ["PG_14_202107181", "PG_14_202107181/1", "notes"] {
        assert!(found.remove(Path::new(name)).is_some(), "{name}");
    }
    assert_same(&found, &tree(&fresh_space));
    assert!(wal.join("lost+found").exists());
    std::fs::remove_dir(wal.join("lost+found")).unwrap();
    assert_same(&tree(&wal), &tree(&fresh.join("pg_wal")));
    assert_eq!(std::fs::read_link(data.join("pg_wal")).unwrap(), wal);
    let mut wanted = without_links(tree(&fresh));
    wanted.retain(|name, _| !name.starts_with("pg_wal"));
    assert_same(&without_links(tree(&data)), &wanted);
    let links: Vec<_> =
        std::fs::read_dir(data.join("pg_tblspc")).unwrap().map(|l| l.unwrap().path()).collect();
    assert_eq!(links, [data.join(format!("pg_tblspc/{oid}"))]);
    server.start_again().unwrap();
    recovered(&server).await;
    assert_eq!(sql(&server, "postgres", "SELECT count(*) FROM here").await, [[Some("50000".to_owned())]]);
}
