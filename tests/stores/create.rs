//! Creates whose answer leaves open what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pgark::{Created, Error, ErrorKind, MemoryTransport, Remote, Result, Store, Transport};

use crate::fixtures::canned::{Answer as Http, Canned};
use crate::fixtures::recording::{Answer, Recording};
use crate::fixtures::s3;
use crate::support::quick;

/// A store that answers the first `times` creates with a conflict, and does nothing.
fn conflicts(memory: &MemoryTransport, times: usize) -> (Remote, Recording<MemoryTransport>) {
    let count = Arc::new(AtomicUsize::new(0));
    let recording = Recording::with_script(memory.clone(), move |request| {
        if request.starts_with("create") && count.fetch_add(1, Ordering::SeqCst) < times {
            return Answer::Refused(Error::new(ErrorKind::Conflict, "409 ConditionalRequestConflict"));
        }
        Answer::Real
    });
    (Remote::new(recording.clone(), "test", quick()), recording)
}

async fn create(store: &Remote, body: &'static str) -> Result<Created> {
    store.create("k", Bytes::from_static(body.as_bytes())).await
}

#[tokio::test]
async fn a_conflict_about_nothing_is_tried_again() {
    let memory = MemoryTransport::new();
    let (store, recording) = conflicts(&memory, 2);
    assert_eq!(create(&store, "mine").await.unwrap(), Created::New);
    assert_eq!(recording.take(), ["create k 4", "get k 0", "create k 4", "get k 0", "create k 4"]);
    assert_eq!(memory.keys(), ["k"]);
}

#[tokio::test]
async fn a_conflict_about_nothing_for_ever_is_the_fault_of_the_store() {
    let (store, recording) = conflicts(&MemoryTransport::new(), usize::MAX);
    let error = create(&store, "mine").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    assert_eq!(recording.take().len(), 2 * 8 + 1, "each try looks, and so does the end");
}

#[tokio::test]
async fn what_is_there_decides() {
    let memory = MemoryTransport::new();
    memory.put("k", Bytes::from_static(b"there")).await.unwrap();
    let (store, recording) = conflicts(&memory, 1);
    assert_eq!(create(&store, "there").await.unwrap(), Created::Same);
    assert_eq!(create(&store, "other").await.unwrap(), Created::Other);
    assert_eq!(create(&store, "longer than that").await.unwrap(), Created::Other);
    assert_eq!(recording.take().len(), 6, "nothing is tried again");
}

#[tokio::test]
async fn the_last_answer_may_be_lost_as_well() {
    let memory = MemoryTransport::new();
    let all_lost = |request: &str| if request.starts_with("create") { Answer::Lost } else { Answer::Real };
    let store = Remote::new(Recording::with_script(memory.clone(), all_lost), "test", quick());
    assert_eq!(create(&store, "mine").await.unwrap(), Created::Same);
    assert_eq!(create(&store, "other").await.unwrap(), Created::Other);
}

#[tokio::test]
async fn a_409_of_s3_is_tried_again() {
    let server = Canned::start(&[
        Http::s3(
            "409 Conflict",
            "ConditionalRequestConflict",
            "The conditional request cannot succeed due to a conflicting operation.",
        ),
        Http::s3("404 Not Found", "NoSuchKey", "The specified key does not exist."),
        Http::new("200 OK", "").header("ETag: \"0cc175b9c0f1b6a831c399e269772661\""),
    ])
    .await;
    let url = format!("s3://bucket/prefix?endpoint={}", server.endpoint);
    let store = pgark::open_store(&url, &s3::options()).unwrap();
    assert_eq!(store.create("k", Bytes::from_static(b"a")).await.unwrap(), Created::New);
    let requests = server.requests();
    let lines: Vec<_> = requests.iter().map(|r| r.lines().next().unwrap()).collect();
    assert_eq!(
        lines,
        ["PUT /bucket/prefix/k HTTP/1.1", "GET /bucket/prefix/k HTTP/1.1", "PUT /bucket/prefix/k HTTP/1.1"]
    );
    assert!(requests[0].to_lowercase().contains("if-none-match: *"), "{}", requests[0]);
}
