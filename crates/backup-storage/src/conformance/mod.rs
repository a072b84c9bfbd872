//! Checks that a store keeps the contract of [`Store`](backup_core::Store). Run [`check`] against your own
//! implementation in a test; it panics with a sentence that says what is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A check that fails panics.

mod faulty;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use backup_core::{Created, Entry, ErrorKind, Meta, Result, Store, list_sorted, read_whole};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

pub use faulty::{Fault, Faulty};

/// Chunks as large as S3 wants the parts of an upload.
const CHUNK: usize = 5 * 1024 * 1024;

/// What a store cannot do and is known for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowances {
    /// Answers get lost: a create may say [`Same`](Created::Same) of what an earlier try of its own made.
    pub lost_answers: bool,
    /// There is no conditional create: of several creators of one key at once more than one may win.
    pub several_winners: bool,
}

/// Checks `store`, which must be empty, and leaves it empty.
///
/// # Panics
/// Where the store does not keep the contract.
pub async fn check(store: Arc<dyn Store>) {
    check_with(store, Allowances::default()).await;
}

/// Checks all but what is allowed for.
///
/// # Panics
/// Where the store does not keep the rest of the contract.
pub async fn check_with(store: Arc<dyn Store>, allowed: Allowances) {
    creates(&*store, allowed).await;
    uploads(&*store).await;
    ranges(&*store).await;
    listings(&*store).await;
    walks(&*store).await;
    one_of_many_creators_wins(&store, allowed).await;
    deletes(&*store).await;
}

/// Bytes that look random. They repeat after a length that is prime, so that no two chunks are alike.
fn bytes(seed: u8, len: usize) -> Bytes {
    const PERIOD: usize = 65_521;
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let period: Vec<u8> = (0..len.min(PERIOD)).map(|_| next()).collect();
    let mut bytes = period.repeat(len.div_ceil(PERIOD).max(1));
    bytes.truncate(len);
    bytes.into()
}

/// Whether the answer to a create says that it made the object.
fn made(created: Created, allowed: Allowances) -> bool {
    created == Created::New || allowed.lost_answers && created == Created::Same
}

async fn creates(store: &dyn Store, allowed: Allowances) {
    assert!(made(store.create("a/one.json", bytes(1, 100)).await.unwrap(), allowed), "a new object is new");
    assert_eq!(
        store.create("a/one.json", bytes(1, 100)).await.unwrap(),
        Created::Same,
        "the same bytes again are the same"
    );
    assert_eq!(
        store.create("a/one.json", bytes(2, 100)).await.unwrap(),
        Created::Other,
        "other bytes are refused"
    );
    assert_eq!(
        store.create("a/one.json", bytes(1, 99)).await.unwrap(),
        Created::Other,
        "a beginning is something else"
    );
    assert_eq!(
        store.create("a/one.json", bytes(1, 101)).await.unwrap(),
        Created::Other,
        "more is something else"
    );
    assert_eq!(
        read_whole(store, "a/one.json", 1000).await.unwrap(),
        bytes(1, 100),
        "and nothing was overwritten"
    );
    assert!(made(store.create("a/empty", Bytes::new()).await.unwrap(), allowed), "an object may be empty");
    assert_eq!(store.create("a/empty", Bytes::new()).await.unwrap(), Created::Same);
    assert_eq!(
        read_whole(store, "a/empty", 10).await.unwrap(),
        Bytes::new(),
        "an empty object is read as one"
    );
    let meta = store.head("a/one.json").await.unwrap();
    assert_eq!((meta.key.as_str(), meta.bytes), ("a/one.json", 100));
    for missing in ["a/two", "a/one", "b/one.json", "a", "a/one.json/x"] {
        let error = store.head(missing).await.expect_err("absent");
        assert_eq!(error.kind(), ErrorKind::ObjectMissing, "head of the absent {missing}: {error:?}");
        let error = read_whole(store, missing, 10).await.expect_err("absent");
        assert_eq!(error.kind(), ErrorKind::ObjectMissing, "read of the absent {missing}: {error:?}");
    }
}

async fn uploads(store: &dyn Store) {
    for (name, chunks) in [("none", 0), ("one", 1), ("four", 4)] {
        let key = format!("up/{name}");
        let mut upload = store.upload(&key).await.unwrap();
        let mut whole = Vec::new();
        for i in 0..chunks {
            let last = i + 1 == chunks;
            let chunk = bytes(u8::try_from(i).unwrap_or(0), if last { 1000 } else { CHUNK });
            whole.extend_from_slice(&chunk);
            upload.write(chunk).await.unwrap();
            assert!(store.head(&key).await.is_err(), "an upload is not there before it is finished");
        }
        upload.finish().await.unwrap();
        assert!(read_whole(store, &key, 1 << 30).await.unwrap() == whole, "{key} is read as it was written");
    }
    let mut upload = store.upload("up/aborted").await.unwrap();
    for i in 0..3 {
        upload.write(bytes(i, CHUNK)).await.unwrap();
    }
    upload.abort().await.unwrap();
    let mut upload = store.upload("up/dropped").await.unwrap();
    upload.write(bytes(7, CHUNK)).await.unwrap();
    upload.write(bytes(8, CHUNK)).await.unwrap();
    drop(upload);
    for gone in ["up/aborted", "up/dropped"] {
        let error = store.head(gone).await.expect_err("never finished");
        assert_eq!(error.kind(), ErrorKind::ObjectMissing, "{gone}: {error:?}");
    }
}

async fn read_through(store: &dyn Store, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>> {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let taking = Arc::clone(&bytes);
    store
        .read_through(key, range, Box::new(move |piece| taking.lock().unwrap().extend_from_slice(piece)))
        .await?;
    let bytes = bytes.lock().unwrap();
    Ok(bytes.clone())
}

async fn ranges(store: &dyn Store) {
    let whole = read_whole(store, "up/four", 1 << 30).await.unwrap();
    let length = whole.len() as u64;
    for range in [0..1, 0..length, 5..5, length - 10..length, CHUNK as u64 - 3..CHUNK as u64 + 3] {
        let read: Vec<Bytes> =
            store.read("up/four", Some(range.clone())).await.unwrap().try_collect().await.unwrap();
        let (start, end) =
            (usize::try_from(range.start).unwrap_or(0), usize::try_from(range.end).unwrap_or(0));
        assert!(read.concat() == whole[start..end], "the range {range:?}");
        let through = read_through(store, "up/four", Some(range.clone())).await.unwrap();
        assert!(through == whole[start..end], "the range {range:?}, read through");
    }
    assert!(read_through(store, "up/four", None).await.unwrap() == whole);
    let error = read_through(store, "up/aborted", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ObjectMissing, "{error:?}");
    assert!(read_through(store, "up/four", Some(length - 1..length + 1)).await.is_err());
    let beyond = async {
        let stream = store.read("up/four", Some(length - 1..length + 1)).await?;
        stream.try_collect::<Vec<Bytes>>().await
    };
    assert!(beyond.await.is_err(), "a range beyond the end is an error");
}

async fn listings(store: &dyn Store) {
    for i in 0..5 {
        store.create(&format!("list/{i}/deep/x"), bytes(1, 1)).await.unwrap();
        store.create(&format!("list/file-{i}"), bytes(1, i)).await.unwrap();
    }
    store.create("list-beside/x", bytes(1, 1)).await.unwrap();
    let names = |entries: &[Entry]| entries.iter().map(|e| e.name().to_owned()).collect::<Vec<_>>();
    let all = list_sorted(store, "list", None).await.unwrap();
    assert_eq!(names(&all), ["0", "1", "2", "3", "4", "file-0", "file-1", "file-2", "file-3", "file-4"]);
    assert_eq!(all[1], Entry::Folder("list/1".into()), "folders have keys without a slash at the end");
    assert!(
        matches!(&all[8], Entry::Object(m) if m.key == "list/file-3" && m.bytes == 3),
        "objects have their length"
    );
    let after = list_sorted(store, "list", Some("3")).await.unwrap();
    assert_eq!(
        names(&after),
        ["4", "file-0", "file-1", "file-2", "file-3", "file-4"],
        "a listing begins after a name"
    );
    let after = list_sorted(store, "list", Some("file-2x")).await.unwrap();
    assert_eq!(names(&after), ["file-3", "file-4"]);
    assert!(list_sorted(store, "list", Some("zzz")).await.unwrap().is_empty());
    assert!(
        list_sorted(store, "nothing/here", None).await.unwrap().is_empty(),
        "a folder that is not there is empty"
    );
    assert!(list_sorted(store, "list/file-1", None).await.unwrap().is_empty(), "an object is no folder");
    assert!(list_sorted(store, "lis", None).await.unwrap().is_empty(), "a folder is a whole name");
    assert_eq!(
        names(&list_sorted(store, "", None).await.unwrap()),
        ["a", "list", "list-beside", "up"],
        "the root"
    );
}

async fn walks(store: &dyn Store) {
    let keys = async |folder: &str| {
        let mut found: Vec<Meta> = store.walk(folder).try_collect().await.unwrap();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found
    };
    let found = keys("list").await;
    let names: Vec<&str> = found.iter().map(|meta| meta.key.as_str()).collect();
    let expected = ["0/deep/x", "1/deep/x", "2/deep/x", "3/deep/x", "4/deep/x"].map(|n| format!("list/{n}"));
    let files = (0..5).map(|i| format!("list/file-{i}"));
    assert_eq!(names, expected.into_iter().chain(files).collect::<Vec<_>>(), "all objects below a folder");
    assert_eq!(found[8].bytes, 3, "objects have their length");
    let head = store.head("list/file-3").await.unwrap();
    // S3 shows milliseconds in a list, and seconds of one object.
    let (listed, looked) = (found[8].modified.as_second(), head.modified.as_second());
    assert_eq!(listed, looked, "and the time that a look at one shows");
    // A store may believe what a key tells, and knows what it does not.
    let told = |key: &str| key.ends_with('x').then_some(1_000_000);
    let mut sized: Vec<(String, u64)> = store.walk_sized("list", told).try_collect().await.unwrap();
    sized.sort();
    assert!(sized.iter().map(|(key, _)| key.as_str()).eq(names.iter().copied()), "the same objects");
    assert_eq!(sized[8].1, 3, "lengths that no key tells");
    assert!([found[0].bytes, 1_000_000].contains(&sized[0].1), "lengths that keys tell");
    let deep = keys("list/3/deep").await;
    assert!(deep.len() == 1 && deep[0].key == "list/3/deep/x", "a folder is the whole of its key");
    for nothing in ["nothing/here", "list/file-1", "lis", "list/3/dee"] {
        assert!(keys(nothing).await.is_empty(), "there is no folder {nothing}");
    }
    let everywhere = keys("").await;
    assert!(everywhere.len() > 12 && everywhere.iter().any(|m| m.key == "list-beside/x"), "all of a store");
    // More than a page of any store that is known.
    let many: Vec<String> = (0..1100).map(|i| format!("many/{:03}/{i:04}", i % 7)).collect();
    let created: Vec<Created> = futures::stream::iter(&many)
        .map(|key| async move { store.create(key, Bytes::from_static(b"x")).await.unwrap() })
        .buffer_unordered(16)
        .collect()
        .await;
    assert_eq!(created.len(), many.len());
    let found = keys("many").await;
    let mut expected = many.clone();
    expected.sort();
    assert!(found.iter().map(|meta| &meta.key).eq(&expected), "each object once, over all pages");
    assert!(store.delete(&many).await.iter().all(Result::is_ok));
    assert!(keys("many").await.is_empty(), "what is deleted is not listed");
}

async fn one_of_many_creators_wins(store: &Arc<dyn Store>, allowed: Allowances) {
    let tries: Vec<_> = (0..8)
        .map(|i| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.create("race/winner", bytes(i, 1000)).await.unwrap() })
        })
        .collect();
    let mut winners = Vec::new();
    for (i, task) in (0..).zip(tries) {
        if made(task.await.unwrap(), allowed) {
            winners.push(i);
        }
    }
    let there = read_whole(&**store, "race/winner", 10_000).await.unwrap();
    if !allowed.several_winners {
        assert_eq!(winners.len(), 1, "of several creators of one key exactly one wins, not {winners:?}");
    }
    assert!(winners.iter().any(|i| there == bytes(*i, 1000)), "and what it wrote is there");
}

async fn deletes(store: &dyn Store) {
    let results = store.delete(&["a/one.json".to_owned(), "a/never-was".to_owned()]).await;
    assert!(
        results.len() == 2 && results.iter().all(Result::is_ok),
        "an absent object is deleted already: {results:?}"
    );
    assert!(store.head("a/one.json").await.is_err(), "a deleted object is gone");
    let results = store.delete(&["list".to_owned(), "a/empty/x".to_owned()]).await;
    assert!(
        results.iter().all(Result::is_ok),
        "a folder is no object, and below an object is none: {results:?}"
    );
    assert!(store.head("a/empty").await.is_ok() && store.head("list/file-1").await.is_ok(), "both stay");
    let mut folders = vec![String::new()];
    let mut keys = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in list_sorted(store, &folder, None).await.unwrap() {
            match entry {
                Entry::Folder(key) => folders.push(key),
                Entry::Object(meta) => keys.push(meta.key),
            }
        }
    }
    assert!(store.delete(&keys).await.iter().all(Result::is_ok));
    assert!(list_sorted(store, "", None).await.unwrap().is_empty(), "a folder is gone with its last object");
}
