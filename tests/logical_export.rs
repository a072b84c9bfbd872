//! Logical backups exported in every format, and restored with stock tools.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use pgark::logical::{Dump, Export, ExportFormat, Method};
use pgark::postgres::Tools;
use pgark::repository::{BackupRecord, ClusterName};
use pgark::{Backup, CancellationToken, ErrorKind, Repository};
use support::logical::{Kept, Place, export, import, import_into, rich, run_export};
use support::{connect, conninfo, containers, left_out, memory_repository, server};

fn local() -> (Place, pgark::postgres::TempServer) {
    let server = server();
    let folder = server.folder().to_owned();
    let url = move |database: &str| format!("host={} user=postgres dbname={database}", folder.display());
    (Place::new(15, "/usr/lib/postgresql/15/bin", url), server)
}

async fn filled(place: &Place) {
    place.create("source", "TEMPLATE template0").await;
    connect(&place.url("source")).await.rows(&rich()).await.unwrap();
}

/// Exports in every format with each of the methods, and restores each as stock tools can.
async fn every_format(place: &Place, backup: &(Repository, BackupRecord), methods: &[Option<Method>]) {
    let folder = tempfile::tempdir().unwrap();
    for (n, method) in methods.iter().enumerate() {
        let (directory, custom) =
            (folder.path().join(format!("{n}.dir")), folder.path().join(format!("{n}.custom")));
        export(backup, &directory, ExportFormat::Directory, *method, &place.tools).await.unwrap();
        export(backup, &custom, ExportFormat::Custom, *method, &place.tools).await.unwrap();
        let sections: &[&[&str]] =
            &[&["--section=pre-data"], &["--section=data", "-j2"], &["--section=post-data"]];
        place.restore_and_compare(&directory, "d1", &[&["--jobs=2"]], "source").await;
        place.restore_and_compare(&custom, "c1", &[&["--jobs=2"]], "source").await;
        if n > 0 {
            continue;
        }
        for archive in [&directory, &custom] {
            place.restore_and_compare(archive, "serial", &[&[]], "source").await;
            place.restore_and_compare(archive, "single", &[&["-1"]], "source").await;
            place.restore_and_compare(archive, "sections", sections, "source").await;
        }
    }
    let script = folder.path().join("script.sql");
    export(backup, &script, ExportFormat::Plain, None, &place.tools).await.unwrap();
    place.run_and_compare(&script, "plain", "source").await;

    // Streams: without offsets, and read from a pipe.
    for format in [ExportFormat::Custom, ExportFormat::Plain] {
        let (repository, record) = backup;
        let kept = Kept::default();
        let to = Export::to_stream(kept.clone(), format.clone()).tools(Tools::in_folder(&place.tools));
        run_export(repository, record, to).await.unwrap();
        let file = folder.path().join("stream");
        std::fs::write(&file, &*kept.0.lock().unwrap()).unwrap();
        match format {
            ExportFormat::Custom => place.restore_and_compare(&file, "stream", &[&[]], "source").await,
            _ => place.run_and_compare(&file, "stream", "source").await,
        }
    }
    one_table(place, backup, folder.path()).await;
}

/// Each table as the server itself writes it.
async fn one_table(place: &Place, backup: &(Repository, BackupRecord), folder: &Path) {
    for (n, (name, sql)) in [
        ("public.people", "people (id, name, mood, age, doc, raw)"),
        ("public.quo\"te\".'s", "\"quo\"\"te\"\".'s\""),
        ("public.new\nline", "\"new\nline\""),
        ("public.large", "large"),
        ("no_columns", "no_columns"),
        ("empty_table", "empty_table"),
    ]
    .into_iter()
    .enumerate()
    {
        for (format, options, what) in [
            (ExportFormat::Csv(name.to_owned()), "(FORMAT csv, HEADER)", "csv"),
            (ExportFormat::Copy(name.to_owned()), "", "copy"),
        ] {
            let to = folder.join(format!("{n}.{what}"));
            export(backup, &to, format, None, &place.tools).await.unwrap();
            let copy = format!("COPY {sql} TO STDOUT {options}");
            let expected = place.run("psql", &["-XqAt", "--dbname", &place.url("source"), "-c", &copy]);
            let found = std::fs::read(&to).unwrap();
            assert!(
                found == expected,
                "{name} as {what}: {}",
                String::from_utf8_lossy(&found[..found.len().min(300)])
            );
        }
    }
    let wrong = ExportFormat::Csv("public.nothing".to_owned());
    let error = export(backup, &folder.join("nothing"), wrong, None, &place.tools).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(!folder.join("nothing").exists());
}

async fn imported(place: &Place) -> (Repository, BackupRecord) {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    place.dump("source", &dump, &["--format=custom", "--compress=0"]);
    import(&dump).await
}

/// A backup that is one archive of `pg_dump`.
async fn archive(place: &Place) -> (Repository, BackupRecord) {
    let (repository, _) = memory_repository().await;
    let dumper = Dump::new(conninfo(&place.url("source"))).tools(Tools::in_folder(&place.tools));
    let backup = Backup::builder().repository(repository.clone()).dumper(dumper).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    let record = repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap();
    (repository, record)
}

async fn in_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    let pattern = container.url("DATABASE");
    let url = move |database: &str| pattern.replace("DATABASE", database);
    let place = Place::new(major, containers::tools(major), url);
    filled(&place).await;
    let methods = [None, Some(Method::Lz4), Some(Method::Gzip), Some(Method::None)];
    every_format(&place, &imported(&place).await, &methods).await;
    every_format(&place, &archive(&place).await, &methods[..1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_15() {
    let (place, _server) = local();
    filled(&place).await;
    let backup = imported(&place).await;
    every_format(&place, &backup, &[None, Some(Method::None)]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("x");
    let error =
        export(&backup, &to, ExportFormat::Directory, Some(Method::Zstd), &place.tools).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "pg_restore 15 does not read it");
    every_format(&place, &archive(&place).await, &[None]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_17() {
    in_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18() {
    in_container(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_export_leaves_nothing() {
    let (place, _server) = local();
    filled(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    place.dump("source", &dump, &["--format=custom", "--compress=0"]);
    let formats = || {
        let table = || "public.large".to_owned();
        [
            ExportFormat::Directory,
            ExportFormat::Custom,
            ExportFormat::Plain,
            ExportFormat::Csv(table()),
            ExportFormat::Copy(table()),
        ]
    };
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    for kind in ["copy", "pack", "blobs", "toc"] {
        let (repository, memory) = memory_repository().await;
        let record = import_into(&repository, &dump).await.unwrap();
        let backup = (repository, record);
        let keys = memory.keys();
        let part =
            keys.iter().filter(|key| key.contains(&format!(".{kind}."))).max_by_key(|key| key.len()).unwrap();
        memory.tamper(part, |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        });
        for format in formats() {
            let of_one = matches!(format, ExportFormat::Csv(_) | ExportFormat::Copy(_));
            if of_one && (kind == "pack" || kind == "blobs") {
                // It is not read for this table.
                continue;
            }
            let error = export(&backup, &out.join("x"), format.clone(), None, &place.tools).await;
            let error = error.expect_err(&format!("{kind} {format:?}"));
            assert_eq!(error.kind(), ErrorKind::Integrity, "{kind} {format:?} {error:?}");
            assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0, "{kind} {format:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_left_alone() {
    let (place, _server) = local();
    place.create("source", "").await;
    connect(&place.url("source")).await.rows("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    let backup = imported(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for format in [ExportFormat::Directory, ExportFormat::Custom, ExportFormat::Plain] {
        let error = export(&backup, &file, format, None, &place.tools).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    let error = export(&backup, folder.path(), ExportFormat::Directory, None, &place.tools).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    export(&backup, &empty, ExportFormat::Directory, None, &place.tools).await.unwrap();
    assert!(empty.join("toc.dat").exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}
