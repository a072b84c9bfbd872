//! A real database backed up, encrypted, stored, listed, verified and restored, through the library.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pgark::crypt::Age;
use pgark::logical::{Dump, Load};
use pgark::postgres::Tools;
use pgark::repository::{BackupRecord, Catalog, ClusterName};
use pgark::verify::{VerifyOptions, verify};
use pgark::{Backup, CancellationToken, ErrorKind, Repository, Restore, codec};
use support::{
    connect, conninfo, containers, fingerprint, keys, left_out, memory_repository, sample, server,
};

/// Backs `source` up into a new repository in memory and restores it into `target`.
async fn there_and_back(
    source: &str,
    target: &str,
    method: &str,
    encrypted: bool,
    dump: Tools,
    restore: Tools,
) {
    let cancel = CancellationToken::new();
    let (repository, _memory) = memory_repository().await;
    let (reader, recipient) = keys();
    let mut builder = Backup::builder()
        .repository(repository.clone())
        .dumper(Dump::new(conninfo(source)).tools(dump))
        .shared_compressor(codec::parse(method).unwrap());
    if encrypted {
        builder = builder.encryptor(Age::new().to(&recipient).unwrap());
    }
    let summary = builder.build().unwrap().run(&cancel).await.unwrap();
    assert!(summary.raw_bytes > 0 && summary.warnings.is_empty(), "{:?}", summary.warnings);

    let catalog = Catalog::load(&repository, &ClusterName::default()).await.unwrap();
    assert_eq!(catalog.backups().map(|b| &b.id).collect::<Vec<_>>(), [&summary.backup.id]);
    let record = repository.record(catalog.cluster(), &summary.backup.id).await.unwrap();

    let reader = || Age::new().identities(reader.clone());
    let mut options = VerifyOptions::default();
    options.encryptor = Some(Arc::new(reader()));
    let report = verify(&repository, &record, options, &cancel).await.unwrap();
    assert!(report.is_good() && report.raw_bytes == summary.raw_bytes, "{report:?}");

    let mut builder =
        Restore::builder().backup(repository, record).restorer(Load::into(conninfo(target)).tools(restore));
    if encrypted {
        builder = builder.encryptor(reader());
    }
    builder.build().unwrap().run(&cancel).await.unwrap();
    assert_eq!(fingerprint(&connect(source).await).await, fingerprint(&connect(target).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_brings_the_database_back() {
    let server = server();
    support::sql(&server, "postgres", "CREATE DATABASE \"my shop='x\"").await;
    let source = format!("host={} user=postgres dbname='my shop=\\'x'", server.folder().display());
    connect(&source).await.rows(&sample(5000)).await.unwrap();
    for (method, encrypted) in [
        ("zstd:3", true),
        ("gzip:1", true),
        ("lz4", true),
        ("none", true),
        ("zstd:1", false),
        ("none", false),
    ] {
        let target = server.url(&format!("r_{}_{encrypted}", method.replace(':', "_")));
        there_and_back(&source, &target, method, encrypted, Tools::installed(), Tools::installed()).await;
    }
}

async fn in_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    let source = container.url("postgres");
    connect(&source).await.rows("CREATE DATABASE shop").await.unwrap();
    let source = container.url("shop");
    connect(&source).await.rows(&sample(5000)).await.unwrap();
    let tools = || Tools::in_folder(containers::tools(major));
    there_and_back(&source, &container.url("own_tools"), "zstd:3", true, tools(), tools()).await;
    let newest = || Tools::in_folder(containers::tools(18));
    there_and_back(&source, &container.url("newer_tools"), "zstd:3", true, newest(), newest()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_15_in_a_container() {
    in_container(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_17_in_a_container() {
    in_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_in_a_container() {
    in_container(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_is_too_old_says_what_to_install() {
    if left_out("docker") {
        return;
    }
    let container = containers::start(17).await;
    let (repository, memory) = memory_repository().await;
    let tools = Tools::in_folder(containers::tools(15));
    let backup = Backup::builder()
        .repository(repository)
        .dumper(Dump::new(conninfo(&container.url("postgres"))).tools(tools));
    let error = backup.build().unwrap().run(&CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ToolMissing);
    assert!(error.hint().unwrap().contains("postgresql-client-17"), "{error:?}");
    assert_eq!(support::left(&memory), ["pgark.json"], "nothing is left behind");
}

async fn one_backup(repository: &Repository, source: &str) -> BackupRecord {
    let backup =
        Backup::builder().repository(repository.clone()).dumper(Dump::new(conninfo(source))).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_empty_is_left_alone() {
    let server = server();
    support::sql(&server, "postgres", &sample(10)).await;
    support::sql(&server, "postgres", "CREATE DATABASE other").await;
    support::sql(&server, "other", "CREATE TABLE precious (x int); INSERT INTO precious VALUES (7)").await;
    let (repository, _) = memory_repository().await;
    let record = one_backup(&repository, &server.url("postgres")).await;
    let into = |name: &str| {
        let restorer = Load::into(server.conninfo(name).unwrap());
        Restore::builder().backup(repository.clone(), record.clone()).restorer(restorer).build().unwrap()
    };
    let error = into("other").run(&CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(support::sql(&server, "other", "SELECT x FROM precious").await, [[Some("7".to_owned())]]);
    support::sql(&server, "postgres", "CREATE DATABASE made_before").await;
    into("made_before").run(&CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_restore_leaves_no_database() {
    let server = server();
    support::sql(&server, "postgres", &sample(20_000)).await;
    let (repository, memory) = memory_repository().await;
    let record = one_backup(&repository, &server.url("postgres")).await;
    let part = memory.keys().into_iter().find(|k| k.contains("/parts/")).unwrap();
    memory.tamper(&part, |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    });
    let restorer = Load::into(server.conninfo("broken").unwrap());
    let restore = Restore::builder().backup(repository, record).restorer(restorer).build().unwrap();
    let error = restore.run(&CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
    let there = support::sql(&server, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'broken'").await;
    assert!(there.is_empty(), "the unfinished database is dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locale_and_an_encoding_come_back() {
    let server = server();
    support::sql(
        &server,
        "postgres",
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    .await;
    support::sql(&server, "latin", "CREATE TABLE t AS SELECT 'café'::text AS x").await;
    let (repository, _) = memory_repository().await;
    let record = one_backup(&repository, &server.url("latin")).await;
    let restorer = Load::into(server.conninfo("latin2").unwrap());
    Restore::builder()
        .backup(repository, record)
        .restorer(restorer)
        .build()
        .unwrap()
        .run(&CancellationToken::new())
        .await
        .unwrap();
    let row =
        support::sql(&server, "latin2", "SELECT x, octet_length(x), getdatabaseencoding() FROM t").await;
    assert_eq!(row, [[Some("café".to_owned()), Some("4".to_owned()), Some("LATIN1".to_owned())]]);
}
