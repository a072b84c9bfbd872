//! Stores that are dead, that hang, and that hang in the middle: errors, and soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backup_storage::conformance::{Fault, Faulty};
use bytes::Bytes;
use futures::TryStreamExt;
use pgark::{
    Error, ErrorKind, MemoryTransport, Remote, Result, RetryPolicy, Store, StoreOptions, Transport,
    open_store, read_whole,
};

use crate::fixtures::recording::{Answer, Recording};
use crate::fixtures::s3;
use crate::support::{free_port, quick};

const CHUNK: Bytes = Bytes::from_static(&[7; 100_000]);

fn impatient() -> RetryPolicy {
    let mut policy = quick();
    policy.timeout = Duration::from_millis(200);
    policy.retries = 1;
    policy
}

async fn upload(store: &dyn Store, chunks: usize) -> Result<()> {
    let mut upload = store.upload("up").await?;
    for _ in 0..chunks {
        upload.write(CHUNK).await?;
    }
    upload.finish().await
}

/// Every operation fails with [`ErrorKind::StoreUnavailable`] and a hint, within `limit`.
async fn all_fail(store: &dyn Store, limit: Duration) {
    let keys = ["k".to_owned(), "l".to_owned()];
    let operations: Vec<(&str, futures::future::BoxFuture<'_, Result<()>>)> = vec![
        ("create", Box::pin(async { store.create("k", CHUNK).await.map(|_| ()) })),
        ("a small upload", Box::pin(upload(store, 1))),
        ("a large upload", Box::pin(upload(store, 3))),
        ("read", Box::pin(async { read_whole(store, "k", 1 << 20).await.map(|_| ()) })),
        ("head", Box::pin(async { store.head("k").await.map(|_| ()) })),
        ("list", Box::pin(async { store.list("", None).try_collect::<Vec<_>>().await.map(|_| ()) })),
        ("delete", Box::pin(async { store.delete(&keys).await.into_iter().collect() })),
    ];
    for (name, operation) in operations {
        let begin = Instant::now();
        let error = operation.await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{name}: {error:?}");
        assert!(begin.elapsed() < limit, "{name} took {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn a_dead_store() {
    let store = Remote::new(Faulty::new(MemoryTransport::new(), Fault::Dead), "test", quick());
    all_fail(&store, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_store_that_hangs() {
    let store = Remote::new(Faulty::new(MemoryTransport::new(), Fault::Hang), "test", impatient());
    all_fail(&store, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_store_that_dies_during_an_upload() {
    for fault in [Fault::Dead, Fault::Hang] {
        let faulty = Faulty::new(MemoryTransport::new(), fault);
        faulty.set(None);
        let store = Remote::new(faulty.clone(), "test", impatient());
        let mut upload = store.upload("up").await.unwrap();
        upload.write(CHUNK).await.unwrap();
        upload.write(CHUNK).await.unwrap();
        faulty.set(Some(fault));
        let begin = Instant::now();
        let error = upload.finish().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn no_server_at_all() {
    let mut options = s3::options();
    options.retry = impatient();
    let url = format!("s3://bucket?endpoint=http://127.0.0.1:{}", free_port());
    let store = open_store(&url, &options).unwrap();
    all_fail(&*store, Duration::from_secs(3)).await;
    let error = store.head("k").await.unwrap_err();
    assert!(error.hint().unwrap().contains("endpoint"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = s3::options();
    options.retry = impatient();
    let url = format!("s3://bucket?endpoint=http://{}", listener.local_addr().unwrap());
    all_fail(&*open_store(&url, &options).unwrap(), Duration::from_secs(4)).await;
}

async fn with_an_object(script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Remote {
    let memory = MemoryTransport::new();
    memory.put("k", CHUNK).await.unwrap();
    Remote::new(Recording::with_script(memory, script), "test", impatient())
}

#[tokio::test]
async fn a_read_that_hangs_in_the_middle_goes_on() {
    let stalled = AtomicBool::new(false);
    let first =
        move |_: &str| if stalled.swap(true, Ordering::SeqCst) { Answer::Real } else { Answer::Stalled };
    let store = with_an_object(first).await;
    assert_eq!(read_whole(&store, "k", 1 << 20).await.unwrap(), CHUNK);
}

#[tokio::test]
async fn a_read_whose_rest_never_comes_ends() {
    let begin = Instant::now();
    let (broken, stalled) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let store = with_an_object(move |_| {
        if is_broken.load(Ordering::SeqCst) {
            return Answer::Refused(Error::new(ErrorKind::StoreUnavailable, "503"));
        }
        if stalled.swap(true, Ordering::SeqCst) { Answer::Real } else { Answer::Stalled }
    })
    .await;
    let mut stream = store.read("k", None).await.unwrap();
    assert_eq!(stream.try_next().await.unwrap().unwrap().len(), CHUNK.len() / 2);
    broken.store(true, Ordering::SeqCst);
    let error = stream.try_next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn reads_that_always_hang_end() {
    // One byte is never halved: nothing of it comes.
    let memory = MemoryTransport::new();
    memory.put("k", Bytes::from_static(b"x")).await.unwrap();
    let store = Remote::new(Recording::with_script(memory, |_| Answer::Stalled), "test", impatient());
    let begin = Instant::now();
    let error = read_whole(&store, "k", 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_object_that_became_shorter_is_damaged() {
    let memory = MemoryTransport::new();
    memory.put("k", CHUNK).await.unwrap();
    memory.tamper("k", |mut bytes| {
        bytes.truncate(10);
        Some(bytes)
    });
    let store = Remote::new(memory, "test", quick());
    for range in [0..100, 50..100, 10..11] {
        let error = store.read("k", Some(range)).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
    }
    // So it is in a real S3, which answers with 416 or with less.
    let server = s3::S3Server::start().await;
    std::fs::write(server.bucket().join("k"), [7; 10]).unwrap();
    let store = open_store(&server.url(""), &s3::options()).unwrap();
    for range in [0..100, 50..100, 10..11] {
        let error = store.read("k", Some(range.clone())).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{range:?}: {error:?}");
    }
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("k"), [7; 10]).unwrap();
    let store = open_store(&folder.path().display().to_string(), &StoreOptions::default()).unwrap();
    for range in [0..100, 50..100, 10..11] {
        assert_eq!(store.read("k", Some(range)).await.err().unwrap().kind(), ErrorKind::Integrity);
    }
}
