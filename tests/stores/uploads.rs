//! Uploads: how many requests, which parts, and what stays when they fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use pgark::{
    Backup, CancellationToken, Error, ErrorKind, MemoryTransport, Remote, Repository, Result, Store,
    Transport, codec, read_whole,
};

use crate::fixtures::recording::{Answer, Recording};
use crate::support::bytes::BytesDumper;
use crate::support::quick;

const CHUNK: usize = 5 << 20;

fn chunk(byte: u8) -> Bytes {
    vec![byte; CHUNK].into()
}

async fn upload(store: &dyn Store, chunks: u8) -> Result<()> {
    let mut upload = store.upload("up").await?;
    for i in 0..chunks {
        if let Err(error) = upload.write(chunk(i)).await {
            let _ = upload.abort().await;
            return Err(error);
        }
    }
    upload.finish().await
}

fn unavailable() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "503")
}

fn recorded() -> (Remote, Recording<MemoryTransport>, MemoryTransport) {
    scripted(|_| Answer::Real)
}

fn scripted(
    script: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> (Remote, Recording<MemoryTransport>, MemoryTransport) {
    let memory = MemoryTransport::new();
    let recording = Recording::with_script(memory.clone(), script);
    (Remote::new(recording.clone(), "test", quick()), recording, memory)
}

/// Refuses one kind of request, for good.
fn refusing(
    kind: &'static str,
    error: impl Fn() -> Error + Send + Sync,
) -> impl Fn(&str) -> Answer + Send + Sync {
    move |request| if request.starts_with(kind) { Answer::Refused(error()) } else { Answer::Real }
}

/// Loses the first answer to a kind of request, and refuses it afterwards.
fn losing_first(
    kind: &'static str,
    error: impl Fn() -> Error + Send + Sync,
) -> impl Fn(&str) -> Answer + Send + Sync {
    let seen = AtomicBool::new(false);
    move |request| {
        if !request.starts_with(kind) {
            return Answer::Real;
        }
        if seen.swap(true, Ordering::SeqCst) { Answer::Refused(error()) } else { Answer::Lost }
    }
}

/// Parts are on their way together.
fn sorted(mut requests: Vec<String>) -> Vec<String> {
    requests.sort();
    requests
}

#[tokio::test]
async fn a_small_upload_is_one_request() {
    let (store, recording, _) = recorded();
    upload(&store, 0).await.unwrap();
    assert_eq!(recording.take(), ["put up 0"]);
    upload(&store, 1).await.unwrap();
    assert_eq!(recording.take(), [format!("put up {CHUNK}")]);
}

#[tokio::test]
async fn a_large_one_is_as_many_as_it_has_chunks_and_two_more() {
    let (store, recording, memory) = recorded();
    upload(&store, 4).await.unwrap();
    let requests = recording.take();
    assert_eq!((requests[0].as_str(), requests[5].as_str(), requests.len()), ("start up", "complete 4", 6));
    let parts: Vec<_> = (0..4).map(|i| format!("part {i} {CHUNK}")).collect();
    assert_eq!(sorted(requests[1..5].to_vec()), parts);
    assert_eq!(memory.open_uploads(), 0);
    let whole = (0..4).map(chunk).collect::<Vec<_>>().concat();
    assert!(read_whole(&store, "up", 1 << 30).await.unwrap() == whole, "the parts stand in their order");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_backup_are_all_of_one_size() {
    let (store, recording, _) = recorded();
    let repository = Repository::init(Arc::new(store)).await.unwrap().0;
    recording.take();
    // Chunks of the dumper's own, of all sizes.
    let dumper = BytesDumper { parts: vec![(1..60).map(|i: usize| vec![7_u8; i * 12_345].into()).collect()] };
    let backup = Backup::builder()
        .repository(repository)
        .dumper(dumper)
        .shared_compressor(codec::parse("none").unwrap());
    backup.build().unwrap().run(&CancellationToken::new()).await.unwrap();
    let requests = recording.take();
    let parts: Vec<(usize, usize)> = requests
        .iter()
        .filter_map(|r| r.strip_prefix("part "))
        .map(|r| r.split_once(' ').map(|(i, n)| (i.parse().unwrap(), n.parse().unwrap())).unwrap())
        .collect();
    let last = parts.iter().map(|(i, _)| *i).max().unwrap();
    assert!(last >= 2, "{parts:?}");
    for (index, bytes) in &parts {
        assert!(*bytes == 8 << 20 || *index == last && *bytes < 8 << 20, "{parts:?}");
    }
}

#[tokio::test]
async fn a_complete_whose_answer_was_lost_has_succeeded() {
    let lost = |request: &str| if request.starts_with("complete") { Answer::Lost } else { Answer::Real };
    // The store forgets the upload when it is complete, so the second try finds none.
    let (store, recording, memory) = scripted(lost);
    upload(&store, 2).await.unwrap();
    assert_eq!(memory.keys(), ["up"]);
    let requests = recording.take();
    assert!(
        requests.iter().any(|r| r == "head up") && !requests.iter().any(|r| r.starts_with("abort")),
        "{requests:?}"
    );

    // Azure finds the blocks of a complete blob no more, and says that the list is invalid.
    let invalid = || Error::new(ErrorKind::StoreUnavailable, "400 InvalidBlockList").retryable_if(false);
    let (store, _, memory) = scripted(losing_first("complete", invalid));
    upload(&store, 2).await.unwrap();
    assert_eq!(memory.keys(), ["up"]);
}

#[tokio::test]
async fn what_is_there_already_does_not_stand_for_a_complete_that_was_refused() {
    let (store, _, memory) = scripted(refusing("complete", || Error::new(ErrorKind::StoreDenied, "403")));
    memory.put("up", vec![9; 2 * CHUNK].into()).await.unwrap();
    assert_eq!(upload(&store, 2).await.unwrap_err().kind(), ErrorKind::StoreDenied);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_nothing_open() {
    for failing in ["part 0", "part 1", "part 3", "complete"] {
        for retryable in [true, false] {
            let (store, recording, memory) =
                scripted(refusing(failing, move || unavailable().retryable_if(retryable)));
            let error = upload(&store, 4).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
            assert_eq!(
                (memory.open_uploads(), memory.keys().len()),
                (0, 0),
                "{failing} failed: {:?}",
                recording.take()
            );
        }
    }
}

#[tokio::test]
async fn an_abort_whose_answer_was_lost_has_succeeded() {
    let gone = || Error::new(ErrorKind::ObjectMissing, "there is no such upload");
    let (store, recording, memory) = scripted(losing_first("abort", gone));
    let mut upload = store.upload("up").await.unwrap();
    upload.write(chunk(1)).await.unwrap();
    upload.write(chunk(2)).await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(memory.open_uploads(), 0);
    assert_eq!(recording.take().iter().filter(|r| r.starts_with("abort")).count(), 2);
}

#[tokio::test]
async fn an_upload_that_is_dropped_may_leave_invisible_pieces() {
    let (store, recording, memory) = recorded();
    let mut upload = store.upload("up").await.unwrap();
    upload.write(chunk(1)).await.unwrap();
    drop(upload);
    assert!(recording.take().is_empty(), "the first chunk waits: nothing was sent");
    let mut upload = store.upload("up").await.unwrap();
    upload.write(chunk(1)).await.unwrap();
    upload.write(chunk(2)).await.unwrap();
    drop(upload);
    assert_eq!((memory.open_uploads(), memory.keys().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_has_its_storage_class() {
    let server = crate::fixtures::s3::S3Server::start().await;
    let mut options = crate::fixtures::s3::options();
    for (kind, class) in [("parts", "GLACIER_IR"), ("logical", "STANDARD_IA"), ("wal", "ONEZONE_IA")] {
        options.storage_class.set(kind, class).unwrap();
    }
    let store = pgark::open_store(&server.url("p"), &options).unwrap();
    let small = || Bytes::from_static(b"x");
    let wal = "clusters/a/wal/7/00000001/0000000100000000/000000010000000000000001/x.zst";
    let backup = |kind: &str, name: &str| format!("clusters/a/backups/20261121T020000Z-{kind}-k7qd/{name}");
    for key in [wal.to_owned(), "pgark.json".to_owned(), backup("physical", "backup.json")] {
        store.create(&key, small()).await.unwrap();
    }
    for (kind, chunks) in [("physical", 1), ("logical", 3)] {
        let mut upload = store.upload(&backup(kind, "parts/0001.tar.zst")).await.unwrap();
        for _ in 0..chunks {
            upload.write(Bytes::from(vec![7; 5 << 20])).await.unwrap();
        }
        upload.finish().await.unwrap();
    }
    let classes: Vec<(String, Option<String>)> = server.classes();
    let expected = [
        (backup("logical", "parts/0001.tar.zst"), Some("STANDARD_IA")),
        (backup("physical", "backup.json"), None),
        (backup("physical", "parts/0001.tar.zst"), Some("GLACIER_IR")),
        (wal.to_owned(), Some("ONEZONE_IA")),
        ("pgark.json".to_owned(), None),
    ];
    let expected: Vec<_> =
        expected.into_iter().map(|(key, class)| (format!("p/{key}"), class.map(str::to_owned))).collect();
    assert_eq!(classes, expected);
}
