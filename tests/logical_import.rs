//! Dumps of stock `pg_dump` imported: every format and compression, and damage of every kind.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use pgark::logical::{Existing, ExportFormat, Load, LoadOptions};
use pgark::postgres::Tools;
use pgark::{CancellationToken, Error, ErrorKind, Repository, Restore, Restored};
use support::logical::{Place, export, import, import_into, rich, run_export};
use support::{connect, conninfo, containers, left_out, memory_repository, server};

/// Imports a dump, exports it in directory format, and has stock `pg_restore` make the same database of it.
async fn there_and_back(place: &Place, dump: &Path, source: &str) {
    let folder = tempfile::tempdir().unwrap();
    let backup = import(dump).await;
    let to = folder.path().join("exported");
    export(&backup, &to, ExportFormat::Directory, None, &place.tools).await.unwrap();
    place.restore_and_compare(&to, "imported", &[&["--jobs=2"]], source).await;
}

/// Restores an import with pgark itself.
async fn restore(
    place: &Place,
    (repository, record): &(Repository, pgark::repository::BackupRecord),
    name: &str,
    how: impl FnOnce(Load) -> Load,
) -> Result<Restored, Error> {
    let load = how(Load::into(conninfo(&place.url(name))).tools(Tools::in_folder(&place.tools)));
    let restore =
        Restore::builder().backup(repository.clone(), record.clone()).restorer(load).build().unwrap();
    restore.run(&CancellationToken::new()).await
}

/// Dumps in every format, with each of the compressions.
async fn every_format(place: &Place, methods: &[&str]) {
    place.create("source", "TEMPLATE template0").await;
    connect(&place.url("source")).await.rows(&rich()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    for format in ["custom", "directory"] {
        for method in methods {
            let dump = folder.path().join(format!("{format}-{method}"));
            let args = [format!("--format={format}"), format!("--compress={method}")];
            place.dump("source", &dump, &[&args[0], &args[1]]);
            there_and_back(place, &dump, "source").await;
        }
    }
    let tar = folder.path().join("dump.tar");
    place.dump("source", &tar, &["--format=tar"]);
    there_and_back(place, &tar, "source").await;
    let inserts = folder.path().join("inserts");
    place.dump("source", &inserts, &["--format=custom", "--inserts"]);
    there_and_back(place, &inserts, "source").await;
    restore(place, &import(&inserts).await, "restored", |load| load).await.unwrap();
    place.compare("source", "restored").await;
    place.drop("restored").await;
    let data = folder.path().join("data");
    place.dump("source", &data, &["--format=custom", "--data-only"]);
    import(&data).await;

    let compressed: &[&str] = if place.major < 16 { &["0", "6"] } else { methods };
    for method in compressed {
        let plain = folder.path().join(format!("plain-{method}.sql"));
        place.dump("source", &plain, &[&format!("--compress={method}")]);
        let backup = import(&plain).await;
        let script = folder.path().join(format!("exported-{method}.sql"));
        export(&backup, &script, ExportFormat::Plain, None, &place.tools).await.unwrap();
        place.run_and_compare(&script, "imported", "source").await;
        let restored = restore(place, &backup, "restored", |load| load).await.unwrap();
        assert_eq!(restored.target["created"], true);
        place.compare("source", "restored").await;
        place.drop("restored").await;
        let error = export(&backup, &folder.path().join("x"), ExportFormat::Custom, None, &place.tools).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

fn local() -> (Place, pgark::postgres::TempServer) {
    let server = server();
    let folder = server.folder().to_owned();
    let url = move |database: &str| format!("host={} user=postgres dbname={database}", folder.display());
    (Place::new(15, "/usr/lib/postgresql/15/bin", url), server)
}

async fn in_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    let urls = [container.url("DATABASE")];
    let url = move |database: &str| urls[0].replace("DATABASE", database);
    let place = Place::new(major, containers::tools(major), url);
    every_format(&place, &["none", "gzip", "lz4", "zstd"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_postgres_15() {
    let (place, _server) = local();
    every_format(&place, &["0", "6"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_postgres_17() {
    in_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_postgres_18() {
    in_container(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_takes_the_place_of_a_database_or_changes_nothing() {
    let (place, _server) = local();
    small(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("small.sql");
    place.dump("small", &script, &[]);
    let backup = import(&script).await;
    let value = async |name: &str, sql: &str| connect(&place.url(name)).await.value(sql).await.unwrap();
    let databases = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database";
    let before = value("postgres", databases).await;

    let error = restore(&place, &backup, "small", |load| load).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    let mut no_owner = LoadOptions::default();
    no_owner.no_owner = true;
    let error = restore(&place, &backup, "new", |load| load.options(no_owner.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let error = restore(&place, &backup, "small", |load| load.existing(Existing::Clean)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");

    // Errors of the server are told, and what was made is taken away.
    connect(&place.url("postgres")).await.rows("CREATE ROLE gone").await.unwrap();
    connect(&place.url("small")).await.rows("ALTER TABLE a OWNER TO gone").await.unwrap();
    let of_other = folder.path().join("owner.sql");
    place.dump("small", &of_other, &[]);
    let sql = "ALTER TABLE a OWNER TO postgres; DROP ROLE gone";
    connect(&place.url("small")).await.rows(sql).await.unwrap();
    let of_other = import(&of_other).await;
    let error = restore(&place, &of_other, "new", |load| load).await.unwrap_err();
    assert!(format!("{error:?}").contains("\"gone\" does not exist"), "{error:?}");
    let creates = folder.path().join("creates.sql");
    place.dump("small", &creates, &["--create"]);
    let error = restore(&place, &import(&creates).await, "new", |load| load).await.unwrap_err();
    assert!(error.to_string().contains("--create"), "{error:?}");
    assert_eq!(value("postgres", databases).await, before);

    let statistics = "SELECT count(*)::text FROM pg_stats WHERE tablename = 'a'";
    connect(&place.url("small")).await.rows("DELETE FROM a").await.unwrap();
    let restored =
        restore(&place, &backup, "small", |load| load.existing(Existing::Swap { drop_old: false })).await;
    let old = restored.unwrap().target["old_database"].as_str().unwrap().to_owned();
    assert_eq!(value("small", "SELECT count(*)::text FROM a").await.as_deref(), Some("300"));
    assert_eq!(value("small", statistics).await.as_deref(), Some("2"));
    assert_eq!(value(&old, "SELECT count(*)::text FROM a").await.as_deref(), Some("0"));

    // Everything belongs to whom `--role` says, where the archive does not say it.
    let archive = folder.path().join("inserts");
    place.dump("small", &archive, &["--format=custom", "--inserts"]);
    connect(&place.url("postgres")).await.rows("CREATE ROLE keeper SUPERUSER").await.unwrap();
    let mut kept = LoadOptions::default();
    (kept.no_owner, kept.role) = (true, Some("keeper".to_owned()));
    restore(&place, &import(&archive).await, "kept", |load| load.options(kept.clone())).await.unwrap();
    let owner = "SELECT tableowner::text FROM pg_tables WHERE tablename = 'a'";
    assert_eq!(value("kept", owner).await.as_deref(), Some("keeper"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_encoding_and_the_locale_are_kept() {
    let (place, _server) = local();
    let options = "TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'";
    place.create("latin", options).await;
    let session = connect(&place.url("latin")).await;
    session.rows("CREATE TABLE \"café\" AS SELECT 'thé' AS x").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (dump, to) = (folder.path().join("latin.dump"), folder.path().join("out"));
    place.dump("latin", &dump, &["--format=custom"]);
    let backup = import(&dump).await;
    assert_eq!(backup.1.source["database"], "latin");
    assert_eq!(backup.1.source["imported"], "custom");
    export(&backup, &to, ExportFormat::Custom, None, &place.tools).await.unwrap();
    place.create("back", options).await;
    place.run("pg_restore", &["--exit-on-error", "--dbname", &place.url("back"), &to.display().to_string()]);
    place.compare("latin", "back").await;
}

/// Imports what is damaged: it must be refused, and nothing may be left.
async fn refused(file: &Path, what: &str) {
    let (repository, memory) = memory_repository().await;
    let Err(error) = import_into(&repository, file).await else { panic!("{what} was imported") };
    assert!(matches!(error.kind(), ErrorKind::Integrity | ErrorKind::Io), "{what}: {error:?}");
    assert!(error.hint().is_some() || error.kind() == ErrorKind::Io, "{what}: {error:?}");
    assert_eq!(support::left(&memory), ["pgark.json"], "{what}: something is left");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The dumps that damage is done to, with a database small enough for many cuts.
async fn small(place: &Place) {
    place.create("small", "TEMPLATE template0").await;
    let sql = "CREATE TABLE a AS SELECT i, md5(i::text) FROM generate_series(1, 300) i;
               CREATE TABLE b (x text); INSERT INTO b VALUES ('y'); CREATE TABLE c ();
               SELECT lo_from_bytea(77, 'an object'); SELECT lo_from_bytea(78, 'another one');";
    connect(&place.url("small")).await.rows(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_or_goes_on_is_refused() {
    let (place, _server) = local();
    small(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged");
    for (name, args) in [
        ("custom", ["--format=custom", "--compress=0"]),
        ("compressed", ["--format=custom", "--compress=6"]),
        ("tar", ["--format=tar", "--compress=0"]),
        ("sql", ["--format=plain", "--compress=0"]),
        ("sql.gz", ["--format=plain", "--compress=6"]),
    ] {
        let dump = folder.path().join(name);
        place.dump("small", &dump, &args);
        let whole = std::fs::read(&dump).unwrap();
        // A tar archive ends with 1024 zeros, of which the first block says that it ends.
        let ends = match name {
            "tar" => whole.len() - 1024,
            // Behind the last line there is an empty one, which does not matter.
            "sql" => whole.len() - 1,
            _ => whole.len(),
        };
        let cuts = (1..40).map(|n| ends * n / 40).chain((1..60).map(|n| ends.saturating_sub(n)));
        for cut in cuts {
            std::fs::write(&damaged, &whole[..cut]).unwrap();
            refused(&damaged, &format!("{name} cut at {cut} of {}", whole.len())).await;
        }
        if name == "tar" {
            continue;
        }
        std::fs::write(&damaged, [&whole[..], b"junk"].concat()).unwrap();
        refused(&damaged, &format!("{name} with junk")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_compressed_data_is_refused() {
    let (place, _server) = local();
    small(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let (dump, damaged) = (folder.path().join("dump"), folder.path().join("damaged"));
    place.dump("small", &dump, &["--format=custom", "--compress=6"]);
    let whole = std::fs::read(&dump).unwrap();
    // The data of the largest table begin where zlib's head stands.
    let begin = whole.windows(2).rposition(|w| w == [0x78, 0x9c]).unwrap();
    let begin = whole[..begin].windows(2).position(|w| w == [0x78, 0x9c]).unwrap_or(begin);
    for at in (begin..whole.len()).step_by(whole.len() / 150) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&damaged, bytes).unwrap();
        refused(&damaged, &format!("byte {at}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_something_missing_is_refused() {
    let (place, _server) = local();
    small(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    place.dump("small", &dump, &["--format=directory"]);
    let files: Vec<PathBuf> =
        std::fs::read_dir(&dump).unwrap().map(|e| PathBuf::from(e.unwrap().file_name())).collect();
    assert!(files.len() >= 7, "{files:?}");
    for (n, file) in files.iter().enumerate() {
        let damaged = folder.path().join(format!("damaged-{n}"));
        copy_folder(&dump, &damaged);
        let path = damaged.join(file);
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            refused(&damaged, &format!("{} with {length} of {} bytes", file.display(), bytes.len())).await;
        }
        std::fs::write(&path, [&bytes[..], b"junk"].concat()).unwrap();
        refused(&damaged, &format!("{} with junk", file.display())).await;
        std::fs::remove_file(&path).unwrap();
        refused(&damaged, &format!("without {}", file.display())).await;
    }
    // A line of the list of large objects.
    let damaged = folder.path().join("damaged");
    copy_folder(&dump, &damaged);
    std::fs::write(damaged.join("blobs.toc"), "77 blob_77.dat\n").unwrap();
    refused(&damaged, "a list without an object").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_dump_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    for (bytes, what) in
        [(&b"SELECT 1;\n"[..], "SQL"), (b"", "nothing"), (b"PGDMP", "a head"), (&[7; 3000], "bytes")]
    {
        std::fs::write(&file, bytes).unwrap();
        refused(&file, what).await;
    }
    refused(&folder.path().join("missing"), "a file that is not there").await;
    refused(folder.path(), "a folder").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_of_an_import_are_those_of_the_database() {
    let (place, _server) = local();
    small(&place).await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    place.dump("small", &dump, &["--format=tar"]);
    let (repository, record) = import(&dump).await;
    let to = pgark::logical::Export::to(folder.path().join("out"), ExportFormat::Directory);
    let done = run_export(&repository, &record, to).await.unwrap();
    assert_eq!((&done.target["tables"], &done.target["rows"]), (&3.into(), &301.into()));
    assert_eq!(done.target["large_objects"], 2);
}
