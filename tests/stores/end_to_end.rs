//! Whole backups in S3 and Azure: made, listed, verified, read back, forgotten.

use std::sync::Arc;

use bytes::Bytes;
use pgark::crypt::Age;
use pgark::repository::{Catalog, ClusterName};
use pgark::verify::{VerifyOptions, verify};
use pgark::{Backup, CancellationToken, Repository, Restore, Store, open_store};

use crate::fixtures::azurite::{self, Azurite};
use crate::fixtures::s3::{self, S3Server};
use crate::support::bytes::{BytesDumper, BytesRestorer};
use crate::support::{keys, left_out};

/// Bytes that do not compress.
fn noise(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes.into()
}

async fn there_and_back(store: Arc<dyn Store>) {
    let cancel = CancellationToken::new();
    let (repository, new) = Repository::init(Arc::clone(&store)).await.unwrap();
    assert!(new && repository.abilities().conditional_create && repository.abilities().delete);
    let repository = {
        let (again, new) = Repository::init(store).await.unwrap();
        assert!(!new && again.id() == repository.id());
        again
    };

    // More than two chunks of 8 MiB, some that is small, some that is empty.
    let large = noise(21_000_000);
    let text: Bytes = "a line of text\n".repeat(200_000).into();
    let parts: Vec<Vec<Bytes>> = vec![
        (0..21).map(|i| large.slice(i * 1_000_000..(i + 1) * 1_000_000)).collect(),
        vec![text.clone()],
        vec![Bytes::from_static(b"tiny")],
        vec![],
    ];
    let (reader, recipient) = keys();
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(BytesDumper { parts })
        .encryptor(Age::new().to(&recipient).unwrap());
    let summary = backup.build().unwrap().run(&cancel).await.unwrap();
    assert_eq!(summary.raw_bytes, 24_000_004);

    let catalog = Catalog::load(&repository, &ClusterName::default()).await.unwrap();
    assert_eq!(catalog.backups().map(|b| &b.id).collect::<Vec<_>>(), [&summary.backup.id]);
    let record = repository.record(catalog.cluster(), &summary.backup.id).await.unwrap();
    let mut options = VerifyOptions::default();
    options.encryptor = Some(Arc::new(Age::new().identities(reader.clone())));
    let report = verify(&repository, &record, options, &cancel).await.unwrap();
    assert!(report.is_good() && report.raw_bytes == summary.raw_bytes, "{report:?}");

    let restorer = BytesRestorer::default();
    let restore = Restore::builder()
        .backup(repository, record)
        .encryptor(Age::new().identities(reader))
        .restorer(restorer.clone());
    restore.build().unwrap().run(&cancel).await.unwrap();
    let came_back = restorer.0.lock().unwrap();
    let expected = [
        ("part-0", large),
        ("part-1", text),
        ("part-2", Bytes::from_static(b"tiny")),
        ("part-3", Bytes::new()),
    ];
    assert_eq!(came_back.len(), expected.len());
    for ((name, bytes), (expected_name, expected_bytes)) in came_back.iter().zip(&expected) {
        assert!(
            name == expected_name && bytes == expected_bytes,
            "{name} came back with {} bytes",
            bytes.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3() {
    let server = S3Server::start().await;
    there_and_back(open_store(&server.url("prod/main"), &s3::options()).unwrap()).await;
    assert_eq!(server.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn azure() {
    if left_out("azurite") {
        return;
    }
    let server = Azurite::start();
    there_and_back(open_store(&server.url("prod/main"), &azurite::options()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_azure() {
    if left_out("azurite") {
        return;
    }
    let server = Azurite::start();
    let store = open_store(&server.url_of("nothing", ""), &azurite::options()).unwrap();
    let error = store.create("k", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), pgark::ErrorKind::BucketMissing, "{error:?}");
    let mut options = azurite::options();
    options.credentials = Some(backup_storage::Credentials::Azure("d3Jvbmcga2V5".into()));
    let store = open_store(&server.url(""), &options).unwrap();
    let error = pgark::read_whole(&*store, "k", 10).await.unwrap_err();
    assert_eq!(error.kind(), pgark::ErrorKind::StoreDenied, "{error:?}");
    assert!(error.hint().is_some() && !format!("{error:?}").contains("Signature="), "{error:?}");
}
