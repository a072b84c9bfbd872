//! The repository format: old repositories open, and stock tools read what pgark writes.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pgark::crypt::{Age, IdentityFile};
use pgark::logical::{Dump, Load};
use pgark::repository::{Catalog, ClusterName};
use pgark::verify::{VerifyOptions, verify};
use pgark::wal::{Archive, Asking, Fetcher, SegmentName, Survey, WalName};
use pgark::{
    Backup, CancellationToken, Encryptor, PipelineOptions, Repository, Restore, StoreOptions, list_deep,
    open_store,
};
use support::{fingerprint, local_repository, sample, server, sql};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn identity() -> Age {
    Age::new().identities(IdentityFile::read(&root().join("tests/fixtures/format-1.identity.txt")).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_format_1_opens() {
    // A restore notes in the repository who made it, and this one is never edited.
    let copy = tempfile::tempdir().unwrap();
    let place = copy.path().join("format-1");
    let copied =
        Command::new("cp").arg("-r").arg(root().join("tests/fixtures/format-1")).arg(&place).status();
    assert!(copied.unwrap().success());
    let store = open_store(&place.display().to_string(), &StoreOptions::default()).unwrap();
    let repository = Repository::open(store).await.unwrap();
    let cluster = ClusterName::default();
    let catalog = Catalog::load(&repository, &cluster).await.unwrap();
    let listed: Vec<(String, String, bool, String)> = catalog
        .backups()
        .map(|b| {
            (
                b.id.to_string(),
                b.compression.clone(),
                b.encryption.is_some(),
                b.label.clone().unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        ("20261121T060756Z-logical-w67t", "zstd", true, "zstd, encrypted"),
        ("20261121T060758Z-logical-84z4", "zstd", true, "zstd, encrypted, key rotated"),
        ("20261121T060759Z-logical-yjz1", "gzip", false, "gzip:6, clear"),
        ("20261121T060800Z-logical-c60b", "lz4", false, "lz4, clear"),
        ("20261121T060801Z-logical-9wq4", "none", false, "none, clear"),
        ("20261121T060803Z-logical-4yzz", "zstd", false, "zstd:3, clear"),
        ("20261121T060810Z-logical-grrs", "zstd", true, "after the abandoned one"),
    ];
    let expected: Vec<_> =
        expected.map(|(id, method, sealed, label)| (id.into(), method.into(), sealed, label.into())).into();
    assert_eq!(listed, expected);
    let identity_of_cluster = repository.identity(&cluster).await.unwrap().unwrap();
    assert_eq!(identity_of_cluster.server_version, "15.18");

    let server = server();
    for (i, backup) in catalog.backups().enumerate() {
        let record = repository.record(&cluster, &backup.id).await.unwrap();
        let mut options = VerifyOptions::default();
        options.encryptor = Some(Arc::new(identity()));
        let report = verify(&repository, &record, options, &CancellationToken::new()).await.unwrap();
        assert!(report.is_good() && report.raw_bytes > 60_000, "{report:?}");
        let name = format!("shop_{i}");
        let restorer = Load::into(server.conninfo(&name).unwrap());
        let restore =
            Restore::builder().backup(repository.clone(), record).encryptor(identity()).restorer(restorer);
        restore.build().unwrap().run(&CancellationToken::new()).await.unwrap();
        let sums = "SELECT count(*), sum(hashtextextended(c::text, 7)) FROM customers c UNION ALL \
                    SELECT count(*), sum(hashtextextended(o::text, 7)) FROM orders o";
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(
            sql(&server, &name, sums).await,
            [[text("500"), text("84355450790539526125")], [text("2000"), text("803933918022634077461")]]
        );
    }
}

/// Segments that lie in folders of their own, and such that lie beside their neighbours.
#[tokio::test(flavor = "multi_thread")]
async fn wal_of_format_1_is_read() {
    let place = root().join("tests/fixtures/format-1-wal").display().to_string();
    let repository = Repository::open(open_store(&place, &StoreOptions::default()).unwrap()).await.unwrap();
    let reader: Option<Arc<dyn Encryptor>> = Some(Arc::new(identity()));
    let archive = Archive::current(&repository, &ClusterName::default(), reader).await.unwrap().unwrap();
    let survey = Survey::load(&archive).await.unwrap();
    assert_eq!((survey.objects, survey.runs(1).len(), survey.runs(1)[0].segments), (7, 1, 4));
    let folder = format!("clusters/main/wal/{}", archive.system());
    let files = list_deep(&**repository.store(), &folder).await.unwrap();
    let lengths: u64 = files.iter().map(|meta| meta.bytes).sum();
    assert_eq!(survey.stored_bytes, lengths, "lengths that names tell, and those of files");
    let report = archive.verify(false, 2, &CancellationToken::new()).await.unwrap();
    assert!(report.findings.is_empty() && report.objects == 7 && report.opened, "{report:?}");
    assert_eq!(archive.points().await.unwrap().len(), 3);

    let to = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(archive, Asking::Recovery);
    let segment = |number| WalName::Segment(SegmentName::numbered(1, number, 1 << 20));
    for (number, digest) in [
        (6, "d7588319b874febe30ffe22633496ed6d7588ec775891c90df15936257491f5d"),
        (7, "b63d7620ce37b0a79f62aebfd7f373c7e45d92a4af6ebcacf03c2a300e0ab934"),
        (8, "f56b8095b463cd56c37c500afc1e89c206fef0569e9b643d10c8c42ac37f0a38"),
        (9, "962bd35afd0457acebf1bdc8c1591d441b924ed023fd0b5ed40c77eaae4fb9e9"),
    ] {
        let file = to.path().join(number.to_string());
        assert!(fetcher.fetch(segment(number), &file).await.unwrap(), "{number}");
        assert_eq!(blake3::hash(&std::fs::read(file).unwrap()).to_string(), digest, "{number}");
    }
    assert!(!fetcher.fetch(segment(10), &to.path().join("later")).await.unwrap());
}

/// The script that `docs/format.md` gives.
fn script_of_the_page() -> String {
    let page = std::fs::read_to_string(root().join("docs/format.md")).unwrap();
    let between =
        page.split_once("<!-- by-hand:begin -->").unwrap().1.split_once("<!-- by-hand:end -->").unwrap().0;
    between.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_on_the_format_restores_with_stock_tools_alone() {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE shop").await;
    sql(&server, "shop", &sample(20_000)).await;
    // Too large for a pack.
    sql(&server, "shop", "CREATE TABLE large AS SELECT n, md5(n::text) FROM generate_series(1, 150000) n")
        .await;
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("repo");
    let repository = local_repository(&place).await;
    // The identity of the fixtures, so that nothing of pgark makes it here.
    let recipient = IdentityFile::read(&root().join("tests/fixtures/format-1.identity.txt"))
        .unwrap()
        .recipients()
        .remove(0);
    // Several objects a part.
    let mut options = PipelineOptions::default();
    (options.frame_bytes, options.chunk_bytes, options.object_bytes) = (64 * 1024, 64 * 1024, 300_000);
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(Dump::new(server.conninfo("shop").unwrap()))
        .encryptor(Age::new().to(&recipient).unwrap())
        .options(options)
        .build()
        .unwrap();
    let id = backup.run(&CancellationToken::new()).await.unwrap().backup.id;
    let record = repository.record(&ClusterName::default(), &id).await.unwrap();
    let several = record.parts.iter().find(|part| part.objects.len() > 1);
    // The page must also work for a part of several objects.
    let several = several.unwrap();
    let kinds: Vec<&str> = record.parts.iter().map(|part| part.kind.as_str()).collect();
    for kind in ["toc", "copy", "pack", "blobs"] {
        assert!(kinds.contains(&kind), "the page must also work for parts of kind {kind}: {kinds:?}");
    }

    let script = script_of_the_page();
    assert!(!script.contains("pgark "), "only stock tools");
    let run = |database: &str, psql: bool| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&script).current_dir(folder.path()).env("REPO", &place).env("CLUSTER", "main");
        command
            .env("BACKUP", id.as_str())
            .env("IDENTITY", root().join("tests/fixtures/format-1.identity.txt"));
        command
            .env("DATABASE", database)
            .env("PGHOST", server.folder())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        if psql {
            command.env("USE_PSQL", "1");
        }
        command.output().unwrap()
    };
    let before = fingerprint(&server.conninfo("shop").unwrap().connect().await.unwrap()).await;
    for (database, psql) in [("by_pg_restore", false), ("by_psql", true)] {
        let output = run(database, psql);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words}");
        let after = fingerprint(&server.conninfo(database).unwrap().connect().await.unwrap()).await;
        assert_eq!(before, after);
    }
    // The page's own checks find a missing tail.
    let part = place.join(format!("clusters/main/backups/{id}")).join(&several.objects[0].key);
    cut(&part);
    assert!(!run("from_damaged", false).status.success(), "a part without its tail must not pass");
}

fn cut(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
}
