//! A repository in several places: whatever dies, a copy shows a backup only when it has it whole.

#![allow(clippy::unwrap_used)]

#[path = "copies/prune.rs"]
mod prune;
mod support;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use pgark::copies::{CopyOptions, SyncOptions, copy, repair, sync};
use pgark::crypt::{Age, IdentityFile};
use pgark::repository::{BackupId, Catalog, ClusterName, Marks, Verb, rotate_key};
use pgark::verify::{VerifyOptions, unusable_copies, verify};
use pgark::{
    Backup, CancellationToken, Encryptor, Error, ErrorKind, Got, MemoryTransport, Meta, Page,
    PipelineOptions, Remote, Replicas, Repository, Restore, Result, Store, Summary, Transport, codec,
};
use support::bytes::{BytesDumper, BytesRestorer, Parts};
use support::{keys, quick};

/// Memory that dies with the first request that changes an object whose key has these words in it.
#[derive(Debug, Clone, Default)]
struct Mortal {
    memory: MemoryTransport,
    dies_at: Arc<Mutex<Option<String>>>,
    dead: Arc<Mutex<bool>>,
}

impl Mortal {
    fn dies_at(&self, words: &str) {
        *self.dies_at.lock().unwrap() = Some(words.to_owned());
    }

    fn revive(&self) {
        *self.dies_at.lock().unwrap() = None;
        *self.dead.lock().unwrap() = false;
    }

    fn alive(&self, key: &str, changes: bool) -> Result<()> {
        let mut dead = self.dead.lock().unwrap();
        *dead |= changes && self.dies_at.lock().unwrap().as_ref().is_some_and(|words| key.contains(words));
        if *dead { Err(Error::new(ErrorKind::StoreUnavailable, "it is dead")) } else { Ok(()) }
    }
}

#[async_trait]
impl Transport for Mortal {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.alive(key, true)?;
        self.memory.create(key, body).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.alive(key, true)?;
        self.memory.put(key, body).await
    }
    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        self.alive(key, false)?;
        self.memory.get(key, start, end).await
    }
    async fn head(&self, key: &str) -> Result<Meta> {
        self.alive(key, false)?;
        self.memory.head(key).await
    }
    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        self.alive(folder, false)?;
        self.memory.list(folder, after, token).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.alive(key, true)?;
        self.memory.delete(key).await
    }
    async fn start(&self, key: &str) -> Result<String> {
        self.alive(key, true)?;
        self.memory.start(key).await
    }
    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        self.alive(key, true)?;
        self.memory.put_part(key, upload, index, body).await
    }
    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        self.alive(key, true)?;
        self.memory.complete(key, upload, tags).await
    }
    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        self.alive(key, true)?;
        self.memory.abort(key, upload).await
    }
}

struct Places {
    mortals: Vec<Mortal>,
    min: Option<usize>,
}

impl Places {
    fn new(count: usize) -> Self {
        Self {
            mortals: vec![Mortal::default(); count].iter().map(|_| Mortal::default()).collect(),
            min: None,
        }
    }

    fn store(&self, at: usize) -> Arc<dyn Store> {
        Arc::new(Remote::new(self.mortals[at].clone(), format!("copy {at}"), quick()))
    }

    /// As another process sees them: nothing is remembered of who was dead.
    fn all(&self) -> Arc<dyn Store> {
        let stores = (0..self.mortals.len()).map(|at| self.store(at)).collect();
        Arc::new(Replicas::new(stores, self.min).unwrap())
    }

    async fn repository(&self) -> Repository {
        Repository::init(self.all()).await.unwrap().0
    }

    async fn alone(&self, at: usize) -> Repository {
        Repository::open(self.store(at)).await.unwrap()
    }

    async fn listed(&self, at: usize) -> Vec<BackupId> {
        ids(&self.alone(at).await).await
    }

    fn tamper(&self, at: usize, key: &str, missing: bool) {
        self.mortals[at].memory.tamper(key, |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            (!missing).then_some(bytes)
        });
    }

    /// All objects of a backup in a copy.
    fn objects(&self, at: usize, id: &BackupId) -> Vec<String> {
        let keys = self.mortals[at].memory.keys().into_iter();
        keys.filter(|key| key.contains(&format!("/backups/{id}/")) && !key.ends_with("started.json"))
            .collect()
    }
}

fn main_cluster() -> ClusterName {
    ClusterName::default()
}

async fn ids(repository: &Repository) -> Vec<BackupId> {
    let catalog = Catalog::load(repository, &main_cluster()).await.unwrap();
    catalog.backups().map(|backup| backup.id.clone()).collect()
}

/// Parts of several frames and chunks, and one of a few bytes.
fn parts() -> Parts {
    let noise = |seed: u64, len: u64| -> Vec<u8> {
        let next = |i: u64| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1];
        (0..len).map(next).collect()
    };
    vec![
        ("part-0".to_owned(), noise(1, 700_000)),
        ("part-1".to_owned(), noise(2, 300_000)),
        ("part-2".to_owned(), b"few".to_vec()),
    ]
}

fn dumper() -> BytesDumper {
    BytesDumper { parts: parts().into_iter().map(|(_, bytes)| vec![bytes.into()]).collect() }
}

async fn back_up(repository: &Repository, method: &str, recipient: Option<&str>) -> Result<Summary> {
    let mut options = PipelineOptions::default();
    (options.frame_bytes, options.chunk_bytes) = (64 * 1024, 128 * 1024);
    let mut builder = Backup::builder()
        .repository(repository.clone())
        .dumper(dumper())
        .options(options)
        .jobs(2)
        .shared_compressor(codec::parse(method).unwrap());
    if let Some(recipient) = recipient {
        builder = builder.encryptor(Age::new().to(recipient).unwrap());
    }
    builder.build().unwrap().run(&CancellationToken::new()).await
}

async fn restored(repository: &Repository, id: &BackupId, key: Option<&IdentityFile>) -> Result<Parts> {
    let record = repository.record(&main_cluster(), id).await?;
    let restorer = BytesRestorer::default();
    let mut builder = Restore::builder().backup(repository.clone(), record).restorer(restorer.clone());
    if let Some(key) = key {
        builder = builder.encryptor(Age::new().identities(key.clone()));
    }
    builder.build()?.run(&CancellationToken::new()).await?;
    let parts = restorer.0.lock().unwrap().clone();
    Ok(parts)
}

async fn synced(repository: &Repository) -> pgark::copies::SyncReport {
    sync(repository, &SyncOptions::default(), &CancellationToken::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_a_copy_has_a_backup_whole_or_not_at_all() {
    let (identity, recipient) = keys();
    for dying in 0..3 {
        for words in
            ["pgark.json", "started.json", "key.age", "parts/0001", "parts/0003", "contents", "backup.json"]
        {
            let places = Places::new(3);
            drop(places.repository().await);
            places.mortals[dying].dies_at(words);
            if words == "pgark.json" {
                // Before the backup: nothing of it answers.
                *places.mortals[dying].dead.lock().unwrap() = true;
            }
            let repository = places.repository().await;
            let summary = back_up(&repository, "zstd:1", Some(&recipient)).await.unwrap();
            let id = &summary.backup.id;
            let kept = summary.copies.unwrap();
            assert_eq!((kept.copies, kept.whole), (3, 2), "{words}: {kept:?}");
            assert_eq!(kept.missing[0].copy, format!("copy {dying}"), "{words}");
            assert!(summary.warnings.iter().any(|w| w.contains("pgark sync")), "{:?}", summary.warnings);
            // With a dead copy it is read as well.
            assert_eq!(restored(&repository, id, Some(&identity)).await.unwrap(), parts(), "{words}");
            places.mortals[dying].revive();
            for at in 0..3 {
                let has = places.listed(at).await.contains(id);
                assert_eq!(has, at != dying, "{words}: copy {at} of which {dying} died");
            }
            let report = synced(&places.repository().await).await;
            assert!(report.is_good(), "{report:?}");
            assert_eq!(report.copies[dying].backups, std::slice::from_ref(id), "{words}: {report:?}");
            for at in 0..3 {
                let alone = places.alone(at).await;
                assert_eq!(places.listed(at).await, std::slice::from_ref(id));
                assert_eq!(
                    restored(&alone, id, Some(&identity)).await.unwrap(),
                    parts(),
                    "{words}: copy {at}"
                );
            }
            let again = synced(&places.repository().await).await;
            let came: u64 = again.copies.iter().map(|copy| copy.backups.len() as u64).sum();
            assert_eq!(came, 0, "{again:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_copies_than_must_are_an_error() {
    for words in ["started.json", "parts/0002", "contents", "backup.json"] {
        let mut places = Places::new(2);
        places.min = Some(2);
        let repository = places.repository().await;
        places.mortals[1].dies_at(words);
        let error = back_up(&repository, "zstd:1", None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{words}: {error:?}");
        places.mortals[1].revive();
        if words == "backup.json" {
            // It is whole in the other one, where it was committed first.
            assert!(error.hint().unwrap().contains("pgark sync"), "{error:?}");
            assert_eq!((places.listed(0).await.len(), places.listed(1).await.len()), (1, 0));
            assert!(synced(&places.repository().await).await.is_good());
            let id = &places.listed(1).await[0];
            assert_eq!(restored(&places.alone(1).await, id, None).await.unwrap(), parts());
        } else {
            assert_eq!((places.listed(0).await.len(), places.listed(1).await.len()), (0, 0), "{words}");
            let left = places.mortals[0].memory.keys();
            assert!(!left.iter().any(|key| key.contains("/parts/")), "{words}: {left:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_copy_has_damaged_is_read_from_another() {
    let (identity, recipient) = keys();
    for (method, recipient) in [("zstd:1", Some(&recipient)), ("lz4", None), ("none", None)] {
        let identity = recipient.map(|_| &identity);
        let places = Places::new(2);
        let summary =
            back_up(&places.repository().await, method, recipient.map(String::as_str)).await.unwrap();
        let id = &summary.backup.id;
        let objects = places.objects(0, id);
        assert_eq!(objects, places.objects(1, id));
        for at in 0..2 {
            for (nth, key) in objects.iter().enumerate() {
                for missing in [false, true] {
                    let before = places.mortals[at].memory.get(key, 0, None).await.unwrap();
                    let before: Vec<Bytes> = futures::TryStreamExt::try_collect(before.body).await.unwrap();
                    places.tamper(at, key, missing);
                    // The other copy has damage elsewhere.
                    let other = &objects[(nth + 1) % objects.len()];
                    let kept = places.mortals[1 - at].memory.get(other, 0, None).await.unwrap();
                    let kept: Vec<Bytes> = futures::TryStreamExt::try_collect(kept.body).await.unwrap();
                    places.tamper(1 - at, other, !missing);
                    let repository = places.repository().await;
                    assert_eq!(ids(&repository).await, std::slice::from_ref(id), "{key}");
                    let read = restored(&repository, id, identity).await;
                    assert_eq!(read.unwrap(), parts(), "{method}: {key} and {other}, missing {missing}");
                    for (at, key, body) in [(at, key, before), (1 - at, other, kept)] {
                        places.mortals[at].memory.put(key, body.concat().into()).await.unwrap();
                    }
                }
            }
        }
        // In both copies: then there is nothing to be done, and nothing wrong is given out.
        let part = objects.iter().find(|key| key.contains("/parts/0001")).unwrap();
        places.tamper(0, part, false);
        places.tamper(1, part, false);
        let error = restored(&places.repository().await, id, identity).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{method}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_repaired_from_another_copy() {
    let places = Places::new(2);
    let id = back_up(&places.repository().await, "zstd:1", None).await.unwrap().backup.id;
    let objects = places.objects(0, &id);
    let (first, second) = (&objects[2], &objects[3]);
    places.tamper(0, first, false);
    places.tamper(1, second, true);
    let both = objects.iter().find(|key| key.ends_with("0003.raw.zst")).unwrap();
    places.tamper(0, both, true);
    places.tamper(1, both, false);
    let mut damaged = Vec::new();
    for at in 0..2 {
        let alone = places.alone(at).await;
        let record = alone.record(&main_cluster(), &id).await.unwrap();
        let mut options = VerifyOptions::default();
        options.stored_only = true;
        let report = verify(&alone, &record, options, &CancellationToken::new()).await.unwrap();
        damaged.extend(report.findings.into_iter().map(|found| (format!("copy {at}"), found.key.unwrap())));
    }
    assert_eq!(damaged.len(), 4, "{damaged:?}");
    let repairs = repair(&places.repository().await, &main_cluster(), &damaged, None).await.unwrap();
    assert_eq!((repairs.repaired.len(), repairs.problems.len()), (2, 2), "{repairs:?}");
    assert!(
        repairs.problems.iter().all(|p| p.what == *both && p.why.contains("no other copy")),
        "{repairs:?}"
    );
    // What is damaged in both stays as it is.
    assert!(places.mortals[1].memory.keys().contains(both));
    let again = repair(&places.repository().await, &main_cluster(), &damaged, None).await.unwrap();
    assert!(again.repaired.is_empty(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_is_written_again_where_the_place_is_a_copy() {
    let places = Places::new(3);
    let repository = places.repository().await;
    let id = back_up(&repository, "zstd:1", None).await.unwrap().backup.id;
    let cluster = main_cluster();
    let of = |at: usize| [(format!("copy {at}"), "pgark.json".to_owned())];
    let marker = |places: &Places, at: usize| {
        let memory = places.mortals[at].memory.clone();
        async move { memory.get("pgark.json", 0, None).await.is_ok() }
    };
    // Of one copy or two of three.
    for (missing, which) in [(false, &[1][..]), (true, &[2]), (false, &[0, 2])] {
        for at in which {
            places.tamper(*at, "pgark.json", missing);
        }
        let repository = Repository::open(places.all()).await.unwrap();
        assert_eq!(repository.copies().await.unwrap().len(), 3 - which.len());
        let (found, away) = unusable_copies(&repository).await.unwrap();
        assert_eq!((found.len(), found[0].missing, away.len()), (which.len(), missing, 0), "{found:?}");
        let damaged: Vec<_> = which.iter().flat_map(|at| of(*at)).collect();
        let repairs = repair(&repository, &cluster, &damaged, None).await.unwrap();
        assert_eq!((repairs.repaired.len(), repairs.problems.len()), (which.len(), 0), "{repairs:?}");
        for at in which {
            assert_eq!(places.alone(*at).await.id(), repository.id());
            assert_eq!(places.listed(*at).await, std::slice::from_ref(&id));
        }
        // What is whole is left alone.
        let again = repair(&repository, &cluster, &damaged, None).await.unwrap();
        assert_eq!((again.repaired.len(), again.problems.len()), (0, which.len()), "{again:?}");
    }
    // Another repository may have the same backups, as they are, and their WAL.
    let other = Places { mortals: vec![places.mortals[0].clone(), Mortal::default()], min: None };
    let target = Repository::init(other.store(1)).await.unwrap().0;
    let wanted = std::slice::from_ref(&id);
    copy(&repository, &target, &cluster, wanted, &CopyOptions::default(), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(other.objects(0, &id), other.objects(1, &id));
    for missing in [false, true] {
        other.tamper(1, "pgark.json", missing);
        let both = Repository::open(other.all()).await.unwrap();
        let repairs = repair(&both, &cluster, &of(1), None).await.unwrap();
        assert!(repairs.problems[0].why.contains("nothing in the place"), "{repairs:?}");
        assert_eq!((repairs.repaired.len(), marker(&other, 1).await), (0, !missing));
    }
    // An empty place may be one that is not mounted.
    let empty = Places { mortals: vec![places.mortals[0].clone(), Mortal::default()], min: None };
    let both = Repository::open(empty.all()).await.unwrap();
    let repairs = repair(&both, &cluster, &of(1), None).await.unwrap();
    assert!(repairs.problems[0].why.contains("nothing in the place"), "{repairs:?}");
    assert_eq!(empty.mortals[1].memory.keys(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_is_no_copy() {
    let places = Places::new(2);
    for at in 0..2 {
        Repository::init(places.store(at)).await.unwrap();
    }
    for result in [Repository::open(places.all()).await, Repository::init(places.all()).await.map(|(r, _)| r)]
    {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("two repositories"), "{error}");
    }
    // A place that turns out to be another one, or to be empty, is not written to.
    let places = Places::new(2);
    let first = Repository::init(places.store(0)).await.unwrap().0;
    let repository = Repository::open(places.all()).await.unwrap();
    assert_eq!(repository.id(), first.id());
    let summary = back_up(&repository, "zstd:1", None).await.unwrap();
    assert_eq!(summary.copies.unwrap().whole, 1);
    assert!(places.mortals[1].memory.keys().is_empty(), "{:?}", places.mortals[1].memory.keys());
    // init makes the empty place one.
    assert!(!Repository::init_copies(places.all()).await.unwrap().1);
    assert_eq!(Repository::open(places.store(1)).await.unwrap().id(), first.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_brings_decisions_and_leaves_old_keys_behind() {
    let (identity, recipient) = keys();
    let (other_identity, other) = keys();
    let places = Places::new(2);
    let repository = places.repository().await;
    let kept = back_up(&repository, "zstd:1", Some(&recipient)).await.unwrap().backup.id;
    let gone = back_up(&repository, "zstd:1", Some(&recipient)).await.unwrap().backup.id;
    // A copy is away while readers change, a backup is pinned, and another one is to be deleted.
    *places.mortals[1].dead.lock().unwrap() = true;
    let alone = places.alone(0).await;
    let old: Arc<dyn Encryptor> = Arc::new(Age::new().identities(identity.clone()));
    let new: Arc<dyn Encryptor> = Arc::new(Age::new().to(&other).unwrap());
    let record = alone.record(&main_cluster(), &kept).await.unwrap();
    rotate_key(&alone, &record, &old, &new).await.unwrap();
    alone.mark(&main_cluster(), &kept, Verb::Pin(None), None).await.unwrap();
    alone.mark(&main_cluster(), &gone, Verb::Remove, None).await.unwrap();
    places.mortals[1].revive();
    let report = synced(&places.repository().await).await;
    assert!(report.is_good(), "{report:?}");
    for at in 0..2 {
        let alone = places.alone(at).await;
        assert_eq!(ids(&alone).await, std::slice::from_ref(&kept), "copy {at}");
        assert_eq!(restored(&alone, &kept, Some(&other_identity)).await.unwrap(), parts());
        let error = restored(&alone, &kept, Some(&identity)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{error:?}");
        let marks = Marks::load(&alone, &main_cluster()).await.unwrap();
        assert!(marks.pin(&kept, jiff::Timestamp::now()).is_some());
        let left: Vec<String> = places.mortals[at].memory.keys();
        assert!(!left.iter().any(|key| key.contains(&format!("/backups/{gone}/"))), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_another_repository_are_for_other_readers() {
    let (identity, recipient) = keys();
    let (other_identity, other) = keys();
    let cancel = CancellationToken::new();
    for (method, sealed) in [("zstd:1", true), ("none", true), ("gzip:1", false)] {
        let from = Places::new(2);
        let source = from.repository().await;
        let summary = back_up(&source, method, sealed.then_some(recipient.as_str())).await.unwrap();
        let id = summary.backup.id;
        // One of the copies that are read is damaged.
        let part = from.objects(0, &id).into_iter().find(|key| key.contains("/parts/")).unwrap();
        from.tamper(0, &part, false);
        for anew in [false, true] {
            let to = Places::new(1);
            let target = Repository::init(to.store(0)).await.unwrap().0;
            let mut options = CopyOptions::default();
            if anew {
                options.readers = Some(Arc::new(Age::new().to(&other).unwrap()));
                options.opener = Some(Arc::new(Age::new().identities(identity.clone())));
            }
            // It dies in the middle, and goes on when it is called again.
            to.mortals[0].dies_at("parts/0002");
            let wanted = std::slice::from_ref(&id);
            let cluster = main_cluster();
            let error = copy(&source, &target, &cluster, wanted, &options, &cancel).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
            to.mortals[0].revive();
            assert!(ids(&target).await.is_empty());
            let report = copy(&source, &target, &cluster, wanted, &options, &cancel).await.unwrap();
            assert!(!report.backups[0].already && report.backups[0].objects > 0, "{report:?}");
            assert_eq!(ids(&target).await, wanted);
            let reader = match (sealed, anew) {
                (_, true) => Some(&other_identity),
                (true, false) => Some(&identity),
                (false, false) => None,
            };
            assert_eq!(restored(&target, &id, reader).await.unwrap(), parts(), "{method} {anew}");
            if anew {
                let error = restored(&target, &id, Some(&identity)).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WrongKey, "{error:?}");
            } else {
                let bytes = |places: &Places, at: usize| places.objects(at, &id);
                assert_eq!(bytes(&from, 1), bytes(&to, 0));
            }
            let mut options2 = VerifyOptions::default();
            options2.encryptor =
                reader.map(|key| Arc::new(Age::new().identities(key.clone())) as Arc<dyn Encryptor>);
            let record = target.record(&cluster, &id).await.unwrap();
            let verified = verify(&target, &record, options2, &cancel).await.unwrap();
            assert!(verified.is_good() && verified.raw_bytes == summary.raw_bytes, "{verified:?}");
            let again = copy(&source, &target, &cluster, wanted, &options, &cancel).await.unwrap();
            assert!(again.backups[0].already, "{again:?}");
        }
    }
}
