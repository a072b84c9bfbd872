//! Every store keeps the contract, also where requests fail and answers get lost.

use std::sync::Arc;
use std::time::Duration;

use backup_storage::conformance::{Allowances, Fault, Faulty, check, check_with};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use pgark::{
    Created, Entry, ErrorKind, MemoryTransport, Remote, Replicas, Result, Store, StoreOptions, list_sorted,
    open_store, read_whole,
};
use tempfile::TempDir;

use crate::fixtures::azurite::{self, Azurite};
use crate::fixtures::s3::{self, S3Server};
use crate::support::{left_out, quick};

fn store(transport: impl pgark::Transport) -> Arc<dyn Store> {
    Arc::new(Remote::new(transport, "test", quick()))
}

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    check(store(MemoryTransport::new())).await;
    check(open_store("memory:conformance", &StoreOptions::default()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_folder() {
    let folder = TempDir::new().unwrap();
    for place in [folder.path().to_owned(), folder.path().join("made/when/needed")] {
        check(open_store(&place.display().to_string(), &StoreOptions::default()).unwrap()).await;
    }
    let url = format!("file://{}/url", folder.path().display());
    check(open_store(&url, &StoreOptions::default()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_copies() {
    let folder = TempDir::new().unwrap();
    let local = open_store(&folder.path().display().to_string(), &StoreOptions::default()).unwrap();
    let memory =
        |name: &str| -> Arc<dyn Store> { Arc::new(Remote::new(MemoryTransport::new(), name, quick())) };
    for stores in [
        vec![memory("one"), memory("two")],
        vec![memory("one"), Arc::clone(&local)],
        vec![local, memory("one"), memory("two")],
    ] {
        for min in 1..=stores.len() {
            check(Arc::new(Replicas::new(stores.clone(), Some(min)).unwrap())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_copies_of_which_one_is_dead() {
    let dead: Arc<dyn Store> =
        Arc::new(Remote::new(Faulty::new(MemoryTransport::new(), Fault::Dead), "dead", quick()));
    let alive: Arc<dyn Store> = Arc::new(Remote::new(MemoryTransport::new(), "alive", quick()));
    // It cannot delete everywhere, and says so: all the rest is as it should be.
    let replicas = Replicas::new(vec![dead, Arc::clone(&alive)], None).unwrap();
    assert_eq!(replicas.create("a/b", Bytes::from_static(b"x")).await.unwrap(), Created::New);
    assert_eq!(replicas.create("a/b", Bytes::from_static(b"x")).await.unwrap(), Created::Same);
    assert_eq!(replicas.create("a/b", Bytes::from_static(b"y")).await.unwrap(), Created::Other);
    assert_eq!(read_whole(&replicas, "a/b", 9).await.unwrap(), "x");
    // What only the dead one may have is not missing.
    let error = replicas.head("a/c").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    assert_eq!(list_sorted(&replicas, "a", None).await.unwrap().len(), 1);
    let certain: Result<Vec<Entry>> = replicas.list_certain("a", None).try_collect().await;
    assert_eq!(certain.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    assert!(replicas.delete(&["a/b".to_owned()]).await[0].is_err());
    assert!(alive.head("a/b").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hangs_is_not_waited_for_without_end() {
    let hanging = Faulty::new(MemoryTransport::new(), Fault::Hang);
    let slow = pgark::RetryPolicy::default();
    let hanging: Arc<dyn Store> = Arc::new(Remote::new(hanging, "hanging", slow));
    let alive: Arc<dyn Store> = Arc::new(Remote::new(MemoryTransport::new(), "alive", quick()));
    let replicas = Replicas::new(vec![hanging, alive], None).unwrap().patience(Duration::from_millis(200));
    let begun = std::time::Instant::now();
    for i in 0..20 {
        replicas.create(&format!("a/{i}"), Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(read_whole(&replicas, &format!("a/{i}"), 9).await.unwrap(), "x");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_with_a_prefix_and_without() {
    let server = S3Server::start().await;
    for prefix in ["", "prod", "a/deep/prefix/"] {
        check(open_store(&server.url(prefix), &s3::options()).unwrap()).await;
        assert_eq!(
            server.open_uploads(),
            1,
            "of the upload that was dropped, pieces stay until a lifecycle rule removes them"
        );
        server.forget_uploads();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_with_checksums() {
    let server = S3Server::start().await;
    for checksum in ["sha256", "crc64nvme"] {
        check(open_store(&format!("{}&checksum={checksum}", server.url(checksum)), &s3::options()).unwrap())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_without_conditional_create() {
    let server = S3Server::start().await;
    let store = open_store(&format!("{}&conditional_create=false", server.url("")), &s3::options()).unwrap();
    check_with(store, Allowances { several_winners: true, ..Allowances::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_with_a_prefix_and_without() {
    if left_out("azurite") {
        return;
    }
    let server = Azurite::start();
    for prefix in ["", "prod"] {
        check(open_store(&server.url(prefix), &azurite::options()).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_fail_at_first() {
    for times in [1, 3] {
        check(store(Faulty::new(MemoryTransport::new(), Fault::FailFirst(times)))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_get_lost() {
    let memory = MemoryTransport::new();
    let allowed = Allowances { lost_answers: true, ..Allowances::default() };
    check_with(store(Faulty::new(memory.clone(), Fault::LoseAnswer)), allowed).await;
    assert_eq!(memory.open_uploads(), 1, "only the upload that was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_break_off() {
    for silently in [true, false] {
        check(store(Faulty::new(MemoryTransport::new(), Fault::CutReads { silently }))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_requests() {
    check(store(Faulty::new(MemoryTransport::new(), Fault::Slow(Duration::from_millis(20))))).await;
}

/// More objects and folders than any store lists in one answer.
async fn lists_all(store: &dyn Store, objects: usize, folders: usize) {
    let all = list_sorted(store, "many", None).await.unwrap();
    let is_folder = |e: &&Entry| matches!(e, Entry::Folder(_));
    assert_eq!((all.len(), all.iter().filter(is_folder).count()), (objects + folders, folders));
    assert!(all.windows(2).all(|pair| pair[0].name() < pair[1].name()), "nothing is listed twice");
    let middle = all[all.len() / 2].name();
    let after = list_sorted(store, "many", Some(middle)).await.unwrap();
    assert_eq!(after, all[all.len() / 2 + 1..], "after a name that is there, in the middle of the pages");
}

fn names(objects: usize, folders: usize) -> Vec<String> {
    let objects = (0..objects).map(|i| format!("many/{i:05}"));
    // A folder's objects stand together, however many there are.
    objects
        .chain((0..folders).flat_map(|i| (0..3).map(move |j| format!("many/{:05}-f/{j}", i * 2))))
        .collect()
}

async fn create_all(store: &dyn Store, keys: Vec<String>) {
    let create = |key: String| async move { store.create(&key, Bytes::from_static(b"x")).await.unwrap() };
    futures::stream::iter(keys).map(create).buffer_unordered(32).count().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_listings_of_memory_and_s3() {
    let memory = store(MemoryTransport::new());
    create_all(&*memory, names(2500, 1200)).await;
    lists_all(&*memory, 2500, 1200).await;

    let server = S3Server::start().await;
    for key in names(1300, 800) {
        let path = server.bucket().join("prefix").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    lists_all(&*open_store(&server.url("prefix"), &s3::options()).unwrap(), 1300, 800).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_listings_of_azure() {
    if left_out("azurite") {
        return;
    }
    let server = Azurite::start();
    let store = open_store(&server.url("prefix"), &azurite::options()).unwrap();
    create_all(&*store, names(5100, 100)).await;
    lists_all(&*store, 5100, 100).await;
}
