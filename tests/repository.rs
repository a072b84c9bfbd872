//! When a backup exists, who gives a run up, and how few requests a list takes.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_storage::conformance::{Fault, Faulty};
use bytes::Bytes;
use pgark::audit::{self, Act};
use pgark::crypt::Age;
use pgark::repository::{BackupId, Catalog, ClusterName, DEFAULT_GRACE, Marks, Verb, rotate_key};
use pgark::{
    Backup, CancellationToken, Ctx, Dumped, Dumper, Encryptor, ErrorKind, MemoryTransport, PartSink,
    PartSpec, Remote, Repository, Restore, Result, Store, read_whole,
};
use support::bytes::{BytesDumper, BytesRestorer};
use support::counting::Counting;
use support::{keys, memory_repository, quick};
use tokio::sync::Notify;

/// A dumper that writes a part and then waits until it may go on.
struct Slow {
    at_work: Arc<Notify>,
    go_on: Arc<Notify>,
}

#[async_trait]
impl Dumper for Slow {
    fn kind(&self) -> &'static str {
        "bytes"
    }

    fn max_open(&self, _: usize) -> usize {
        1
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, _: &Ctx) -> Result<Dumped> {
        for i in 0..2 {
            let mut part = parts.open(PartSpec { kind: "raw".into(), name: format!("part-{i}") }).await?;
            part.write(Bytes::from_static(b"rows")).await?;
            part.finish().await?;
            if i == 0 {
                self.at_work.notify_one();
                self.go_on.notified().await;
            }
        }
        Ok(Dumped::default())
    }
}

fn cluster() -> ClusterName {
    ClusterName::default()
}

async fn quick_backup(repository: &Repository) -> BackupId {
    let backup =
        Backup::builder().repository(repository.clone()).dumper(BytesDumper::one("rows")).build().unwrap();
    backup.run(&CancellationToken::new()).await.unwrap().backup.id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_slower_than_the_grace_period_meets_the_sweeper() {
    let (repository, memory) = memory_repository().await;
    let (at_work, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = Slow { at_work: Arc::clone(&at_work), go_on: Arc::clone(&go_on) };
    let backup = Backup::builder().repository(repository.clone()).dumper(slow).build().unwrap();
    let run = tokio::spawn(async move { backup.run(&CancellationToken::new()).await });
    at_work.notified().await;

    let catalog = Catalog::load(&repository, &cluster()).await.unwrap();
    let id = catalog.unfinished()[0].id.clone();
    // While it is within its grace period another backup's sweep leaves it alone.
    quick_backup(&repository).await;
    assert!(memory.keys().iter().any(|k| k.contains(id.as_str()) && k.contains("/parts/")));

    // Then it has stored nothing for two days.
    memory.age(Duration::from_hours(48));
    let other = quick_backup(&repository).await;
    let folder = format!("clusters/main/backups/{id}/");
    let left: Vec<String> = memory.keys().into_iter().filter(|k| k.starts_with(&folder)).collect();
    assert_eq!(left, [format!("{folder}backup.json")], "all that is left says that the run is abandoned");
    assert_eq!(repository.record(&cluster(), &id).await.unwrap_err().kind(), ErrorKind::BackupNotFound);

    // The writer was slow, not dead. Its commit must fail, and say why.
    go_on.notify_one();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Abandoned, "{error:?}");
    assert!(error.hint().is_some());
    let catalog = Catalog::load(&repository, &cluster()).await.unwrap();
    assert!(catalog.backups().any(|b| b.id == other) && catalog.backups().all(|b| b.id != id));
    // What it stored after the sweep is gone too, now or with the next one.
    memory.age(Duration::from_hours(48));
    quick_backup(&repository).await;
    let parts = memory.keys().into_iter().filter(|k| k.starts_with(&folder) && k.contains("/parts/")).count();
    assert_eq!(parts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_and_sweep_at_the_same_time_have_one_winner() {
    for round in 0..20 {
        let (repository, memory) = memory_repository().await;
        let (at_work, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = Slow { at_work: Arc::clone(&at_work), go_on: Arc::clone(&go_on) };
        let backup =
            Backup::builder().repository(repository.clone()).dumper(slow).keep_leftovers().build().unwrap();
        let run = tokio::spawn(async move { backup.run(&CancellationToken::new()).await });
        at_work.notified().await;
        let catalog = Catalog::load(&repository, &cluster()).await.unwrap();
        memory.age(2 * DEFAULT_GRACE);
        go_on.notify_one();
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let swept = repository.sweep(&catalog, DEFAULT_GRACE, jiff::Timestamp::now()).await.unwrap();
        let run = run.await.unwrap();
        let record = repository.record(&cluster(), &catalog.unfinished()[0].id).await;
        match run {
            Ok(summary) => {
                assert!(swept.abandoned.is_empty());
                // A backup that committed restores.
                let restorer = BytesRestorer::default();
                Restore::builder()
                    .backup(repository.clone(), record.unwrap())
                    .restorer(restorer.clone())
                    .build()
                    .unwrap()
                    .run(&CancellationToken::new())
                    .await
                    .unwrap();
                assert_eq!(restorer.0.lock().unwrap().len(), 2, "{}", summary.backup.id);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Abandoned);
                assert!(record.is_err());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_the_commit_may_be_lost() {
    let memory = MemoryTransport::new();
    let faulty = Faulty::new(memory.clone(), Fault::LoseAnswer);
    let store = Remote::new(faulty, "faulty", quick());
    let (repository, new) = Repository::init(Arc::new(store)).await.unwrap();
    assert!(new && repository.abilities().conditional_create);
    let id = quick_backup(&repository).await;
    assert!(repository.record(&cluster(), &id).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_before_the_commit_leaves_no_backup() {
    let memory = MemoryTransport::new();
    let faulty = Faulty::new(memory.clone(), Fault::Dead);
    faulty.set(None);
    let (repository, _) =
        Repository::init(Arc::new(Remote::new(faulty.clone(), "faulty", quick()))).await.unwrap();
    let (at_work, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = Slow { at_work: Arc::clone(&at_work), go_on: Arc::clone(&go_on) };
    let backup = Backup::builder().repository(repository.clone()).dumper(slow).build().unwrap();
    let run = tokio::spawn(async move { backup.run(&CancellationToken::new()).await });
    at_work.notified().await;
    faulty.set(Some(Fault::Dead));
    go_on.notify_one();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    faulty.set(None);
    let catalog = Catalog::load(&repository, &cluster()).await.unwrap();
    assert_eq!((catalog.backups().len(), catalog.unfinished().len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_ten_thousand_backups_takes_a_few_requests() {
    let memory = MemoryTransport::new();
    let counting = Counting::new(memory.clone());
    let (repository, _) =
        Repository::init(Arc::new(Remote::new(counting.clone(), "memory", quick()))).await.unwrap();
    // One real backup, copied to an id an hour for more than a year.
    let template = quick_backup(&repository).await;
    let folder = format!("clusters/main/backups/{template}");
    let record = read_whole(&**repository.store(), &format!("{folder}/backup.json"), 1 << 20).await.unwrap();
    let text = String::from_utf8(record.to_vec()).unwrap();
    let now = jiff::Timestamp::now();
    for hour in 1..10_000 {
        let id = BackupId::new(now - jiff::SignedDuration::from_hours(hour), "bytes", 0).unwrap();
        let json = with_digest(&text.replace(template.as_str(), id.as_str()));
        let folder = format!("clusters/main/backups/{id}");
        repository.store().create(&format!("{folder}/backup.json"), json.into()).await.unwrap();
        repository
            .store()
            .create(&format!("{folder}/parts/0001.raw.zst"), Bytes::from_static(b"x"))
            .await
            .unwrap();
    }
    // The next backup writes the index.
    for key in memory.keys().into_iter().filter(|k| k.contains("/index/")) {
        memory.tamper(&key, |_| None);
    }
    quick_backup(&repository).await;
    counting.take();
    let opened = Repository::open(Arc::clone(repository.store())).await.unwrap();
    let catalog = Catalog::load(&opened, &cluster()).await.unwrap();
    assert_eq!(catalog.backups().len(), 10_001);
    let requests = counting.take();
    assert!(requests <= 5, "{requests} requests");

    // Two more since the index of the one before.
    let newest = quick_backup(&repository).await;
    assert_eq!(Catalog::load(&opened, &cluster()).await.unwrap().find("latest").unwrap().id, newest);
    // Without an index the answer is the same.
    for key in memory.keys().into_iter().filter(|k| k.contains("/index/")) {
        memory.tamper(&key, |_| None);
    }
    assert_eq!(Catalog::load(&opened, &cluster()).await.unwrap().backups().len(), 10_002);
}

/// A record with its own digest put right, as `docs/format.md` describes it.
fn with_digest(text: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
    value.as_object_mut().unwrap().remove("blake3");
    // serde_json sorts the fields of a map when it is built without preserve_order, as format.md asks.
    let sorted: std::collections::BTreeMap<String, serde_json::Value> =
        serde_json::from_value(value.clone()).unwrap();
    let digest = blake3::hash(serde_json::to_string(&sorted).unwrap().as_bytes()).to_hex().to_string();
    value.as_object_mut().unwrap().insert("blake3".into(), digest.into());
    serde_json::to_string_pretty(&value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_old_index_changes_no_answer() {
    let (repository, memory) = memory_repository().await;
    let first = quick_backup(&repository).await;
    let index = memory.keys().into_iter().find(|k| k.contains("/index/")).unwrap();
    let old = read_whole(&**repository.store(), &index, 1 << 20).await.unwrap();
    let second = quick_backup(&repository).await;
    let listed = || async {
        let catalog = Catalog::load(&repository, &cluster()).await.unwrap();
        catalog.backups().map(|b| b.id.clone()).collect::<Vec<_>>()
    };
    // In the order in which they began, also within one second.
    let both = vec![first, second];
    assert_eq!(listed().await, both);
    let indexes = || memory.keys().into_iter().filter(|k| k.contains("/index/")).collect::<Vec<_>>();
    assert_eq!(indexes().len(), 1, "the index before was replaced");
    memory.tamper(&indexes()[0], |_| Some(old.to_vec()));
    assert_eq!(listed().await, both, "an index that lags behind");
    memory.tamper(&indexes()[0], |mut bytes| {
        bytes.truncate(10);
        Some(bytes)
    });
    assert_eq!(listed().await, both, "an index that is damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn places_that_are_no_repository_are_refused() {
    let memory = MemoryTransport::new();
    let store: Arc<dyn Store> = Arc::new(Remote::new(memory.clone(), "memory", quick()));
    assert_eq!(Repository::open(Arc::clone(&store)).await.unwrap_err().kind(), ErrorKind::NotARepository);
    store.create("holiday.jpg", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(Repository::init(Arc::clone(&store)).await.unwrap_err().kind(), ErrorKind::Conflict);
    memory.tamper("holiday.jpg", |_| None);
    let (first, new) = Repository::init(Arc::clone(&store)).await.unwrap();
    let (second, again) = Repository::init(Arc::clone(&store)).await.unwrap();
    assert!(new && !again && first.id() == second.id());
    memory.tamper("pgark.json", |bytes| {
        Some(String::from_utf8(bytes).unwrap().replace("\"format\": 1", "\"format\": 2").into())
    });
    assert_eq!(Repository::open(store).await.unwrap_err().kind(), ErrorKind::NewerFormat);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_make_one_repository() {
    let memory = MemoryTransport::new();
    let inits = (0..8).map(|_| {
        let store = Remote::new(memory.clone(), "memory", quick());
        tokio::spawn(async move { Repository::init(Arc::new(store)).await })
    });
    let mut ids = std::collections::BTreeSet::new();
    for init in inits {
        let (repository, _) = init.await.unwrap().unwrap();
        ids.insert(repository.id().to_owned());
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_opens_for_the_new_reader_only() {
    let (repository, memory) = memory_repository().await;
    let ((old, to_old), (new, to_new)) = (keys(), keys());
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(BytesDumper::one("rows"))
        .encryptor(Age::new().to(&to_old).unwrap())
        .build()
        .unwrap();
    let id = backup.run(&CancellationToken::new()).await.unwrap().backup.id;
    let record = repository.record(&cluster(), &id).await.unwrap();
    let parts = || memory.keys().into_iter().filter(|k| k.contains("/parts/")).collect::<Vec<_>>();
    let before = parts();
    let old_reader: Arc<dyn Encryptor> = Arc::new(Age::new().identities(old.clone()));
    let writer: Arc<dyn Encryptor> = Arc::new(Age::new().to(&to_new).unwrap());
    let rotated = rotate_key(&repository, &record, &old_reader, &writer).await.unwrap();
    assert!(rotated.remaining.is_empty());
    assert_eq!(parts(), before, "the parts stay as they are");
    assert!(!memory.keys().iter().any(|k| k.ends_with("key.age")), "the old key is gone");
    let restore = |age: Age| {
        let (repository, record) = (repository.clone(), record.clone());
        async move {
            let restorer = BytesRestorer::default();
            let restore =
                Restore::builder().backup(repository, record).encryptor(age).restorer(restorer).build()?;
            restore.run(&CancellationToken::new()).await
        }
    };
    assert_eq!(restore(Age::new().identities(old)).await.unwrap_err().kind(), ErrorKind::WrongKey);
    restore(Age::new().identities(new)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_stands_in_the_clear() {
    let (repository, memory) = memory_repository().await;
    let (_, recipient) = keys();
    let mut dumper = BytesDumper::one("a very secret row");
    dumper.parts.push(vec![Bytes::from_static(b"another secret row")]);
    let backup = Backup::builder()
        .repository(repository)
        .dumper(dumper)
        .shared_compressor(pgark::codec::parse("none").unwrap())
        .encryptor(Age::new().to(&recipient).unwrap())
        .build()
        .unwrap();
    backup.run(&CancellationToken::new()).await.unwrap();
    let raw_digest = blake3::hash(b"a very secret row").to_hex().to_string();
    for key in memory.keys() {
        memory.tamper(&key, |bytes| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            for secret in ["secret row", "part-0", raw_digest.as_str(), "\"raw_bytes\""] {
                assert!(!text.contains(secret), "{secret:?} stands in {key}");
            }
            Some(bytes)
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_many_days_is_found_when_it_commits() {
    let (repository, memory) = memory_repository().await;
    let template = quick_backup(&repository).await;
    let folder = format!("clusters/main/backups/{template}");
    let record = read_whole(&**repository.store(), &format!("{folder}/backup.json"), 1 << 20).await.unwrap();
    let index = memory.keys().into_iter().find(|k| k.contains("/index/")).unwrap();
    memory.tamper(&index, |_| None);
    // A run that began nine days ago and is still at work.
    let old =
        BackupId::new(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(9 * 24), "bytes", 0).unwrap();
    let folder = format!("clusters/main/backups/{old}");
    repository.store().create(&format!("{folder}/started.json"), Bytes::from_static(b"{}")).await.unwrap();
    let unfinished = || async { Catalog::load(&repository, &cluster()).await.unwrap().unfinished().len() };
    // Backups of others write indexes meanwhile.
    for _ in 0..2 {
        quick_backup(&repository).await;
        assert_eq!(unfinished().await, 1);
    }
    let json =
        with_digest(&String::from_utf8(record.to_vec()).unwrap().replace(template.as_str(), old.as_str()));
    repository.store().create(&format!("{folder}/backup.json"), json.into()).await.unwrap();
    let catalog = Catalog::load(&repository, &cluster()).await.unwrap();
    assert!(catalog.find(old.as_str()).is_ok(), "the committed backup is listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_its_key_is_not_good() {
    use pgark::verify::{VerifyOptions, verify};
    let (repository, memory) = memory_repository().await;
    let (reader, recipient) = keys();
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(BytesDumper::one("rows"))
        .encryptor(Age::new().to(&recipient).unwrap())
        .build()
        .unwrap();
    let id = backup.run(&CancellationToken::new()).await.unwrap().backup.id;
    let record = repository.record(&cluster(), &id).await.unwrap();
    let key = memory.keys().into_iter().find(|k| k.ends_with("key.age")).unwrap();
    memory.tamper(&key, |_| None);
    for with_key in [false, true] {
        let mut options = VerifyOptions::default();
        if with_key {
            options.encryptor = Some(Arc::new(Age::new().identities(reader.clone())));
        }
        let report = verify(&repository, &record, options, &CancellationToken::new()).await.unwrap();
        assert!(
            report.findings.len() == 1 && report.findings[0].missing && report.findings[0].what == key,
            "{report:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_mark_counts_and_one_list_reads_all() {
    let (repository, memory) = memory_repository().await;
    let (first, second) = (quick_backup(&repository).await, quick_backup(&repository).await);
    let now = jiff::Timestamp::now();
    for (id, verb) in [
        (&first, Verb::Pin(None)),
        (&first, Verb::Damaged),
        (&second, Verb::Pin(Some(now + jiff::SignedDuration::from_hours(1)))),
        (&second, Verb::Remove),
        (&first, Verb::VerifiedRaw),
    ] {
        repository.mark(&cluster(), id, verb, Some("why")).await.unwrap();
        memory.age(Duration::from_secs(1));
    }
    let marks = Marks::load(&repository, &cluster()).await.unwrap();
    assert!(marks.pin(&first, now).is_some() && marks.pin(&second, now).is_some());
    assert!(marks.pin(&second, now + jiff::SignedDuration::from_hours(2)).is_none(), "until then only");
    assert_eq!(marks.verification(&first).map(|mark| mark.verb), Some(Verb::VerifiedRaw));
    assert!(!marks.is_damaged(&first) && marks.removal(&first).is_none() && marks.removal(&second).is_some());
    repository.mark(&cluster(), &first, Verb::Unpin, None).await.unwrap();
    let marks = Marks::load(&repository, &cluster()).await.unwrap();
    assert!(marks.pin(&first, now).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backup_and_restore_is_in_the_audit_log_and_changes_of_it_are_found() {
    let (repository, memory) = memory_repository().await;
    let id = quick_backup(&repository).await;
    let record = repository.record(&cluster(), &id).await.unwrap();
    let restore = Restore::builder()
        .backup(repository.clone(), record)
        .restorer(BytesRestorer::default())
        .build()
        .unwrap();
    restore.run(&CancellationToken::new()).await.unwrap();
    let entries = audit::entries(&repository, &cluster(), 1).await.unwrap();
    let told: Vec<(u64, &str, String)> =
        entries.iter().map(|e| (e.number, e.action.as_str(), e.outcome.to_string())).collect();
    let expected = [(1, "backup", "done"), (2, "restore", "begun"), (3, "restore", "done")];
    assert_eq!(told, expected.map(|(n, action, outcome)| (n, action, outcome.to_owned())));
    assert!(entries.iter().all(|entry| entry.backups == [id.clone()]));

    // Several at once take turns.
    let notes = (0..8).map(|i| {
        let repository = repository.clone();
        tokio::spawn(async move {
            let act = Act::new("drill").detail("writer", i);
            audit::note(&repository, &cluster(), act, audit::Outcome::Done).await.unwrap()
        })
    });
    futures::future::try_join_all(notes).await.unwrap();
    let report = audit::verify(&repository, &cluster(), None).await.unwrap();
    assert_eq!((report.entries, report.findings.as_slice()), (11, [].as_slice()));
    let head = report.head.unwrap();
    assert_eq!(head.number, 11);

    let key = |number: u64| format!("clusters/main/audit/0000000/{number:010}.json");
    let findings = async || audit::verify(&repository, &cluster(), Some(head)).await.unwrap().findings;
    let body = |number: u64| {
        let mut found = Vec::new();
        memory.tamper(&key(number), |body| {
            found.clone_from(&body);
            Some(body)
        });
        found
    };
    let put = async |number: u64, body: Option<&[u8]>| {
        memory.tamper(&key(number), |_| None);
        if let Some(body) = body {
            repository.store().create(&key(number), Bytes::copy_from_slice(body)).await.unwrap();
        }
    };
    let (third, last) = (body(3), body(11));
    // Another word, with the digest that belongs to it: the next entry has another one.
    let forged = String::from_utf8(third.clone()).unwrap().replace("\"restore\"", "\"list\"");
    put(3, Some(with_digest(&forged).as_bytes())).await;
    assert_eq!(findings().await, ["entry 4 does not follow the one before it"]);
    put(3, Some(&third[..40])).await;
    assert!(findings().await[0].contains("is damaged"));
    put(3, None).await;
    assert_eq!(findings().await, ["entry 3 is missing"]);
    put(3, Some(&third)).await;
    // The end is cut off: without what was seen before nobody could tell.
    put(11, None).await;
    assert_eq!(findings().await, ["entry 11 is missing"]);
    assert!(audit::verify(&repository, &cluster(), None).await.unwrap().findings.is_empty());
    audit::note(&repository, &cluster(), Act::new("backup"), audit::Outcome::Done).await.unwrap();
    assert_eq!(findings().await, ["entry 11 is not the one that was there before"]);
    put(11, Some(&last)).await;
    assert!(findings().await.is_empty());
}
