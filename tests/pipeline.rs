//! The pipeline with bytes of all kinds: what goes in comes out, and what is changed is found.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pgark::crypt::{Age, IdentityFile};
use pgark::repository::{BackupRecord, ClusterName};
use pgark::verify::{VerifyOptions, verify};
use pgark::{
    Backup, CancellationToken, Ctx, Dumped, Dumper, Error, ErrorKind, PartSink, PartSpec, PipelineOptions,
    Repository, Restore, Result, Summary, codec,
};
use proptest::prelude::*;
use support::bytes::{BytesDumper, BytesRestorer};
use support::{keys, memory_repository};

fn options(frame: usize, chunk: usize, object: u64) -> PipelineOptions {
    let mut options = PipelineOptions::default();
    (options.frame_bytes, options.chunk_bytes, options.object_bytes) = (frame, chunk, object);
    options
}

async fn back_up(
    repository: &Repository,
    dumper: impl Dumper + 'static,
    method: &str,
    recipient: Option<&str>,
    options: PipelineOptions,
    jobs: usize,
) -> Result<Summary> {
    let mut builder = Backup::builder()
        .repository(repository.clone())
        .dumper(dumper)
        .shared_compressor(codec::parse(method)?)
        .options(options)
        .jobs(jobs);
    if let Some(recipient) = recipient {
        builder = builder.encryptor(Age::new().to(recipient)?);
    }
    builder.build()?.run(&CancellationToken::new()).await
}

async fn restore(
    repository: &Repository,
    record: BackupRecord,
    reader: Option<IdentityFile>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let restorer = BytesRestorer::default();
    let mut builder =
        Restore::builder().backup(repository.clone(), record).restorer(restorer.clone()).jobs(2);
    if let Some(reader) = reader {
        builder = builder.encryptor(Age::new().identities(reader));
    }
    builder.build()?.run(&CancellationToken::new()).await?;
    let parts = std::mem::take(&mut *restorer.0.lock().unwrap());
    Ok(parts)
}

async fn record(repository: &Repository, summary: &Summary) -> BackupRecord {
    repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

fn method() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("zstd:1"), Just("zstd:3"), Just("gzip:1"), Just("lz4"), Just("none")]
}

fn chunks() -> impl Strategy<Value = Vec<Bytes>> {
    let chunk = (proptest::collection::vec(any::<u8>(), 0..3000), 1usize..8)
        .prop_map(|(c, n)| Bytes::from(c.repeat(n)));
    proptest::collection::vec(chunk, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Any bytes in any chunks, any method, with and without encryption, any sizes of frames, chunks, objects.
    #[test]
    fn what_goes_in_comes_out(
        parts in proptest::collection::vec(chunks(), 1..4),
        method in method(),
        encrypted in any::<bool>(),
        frame in 4096usize..20_000,
        chunk in 4096usize..20_000,
        object in 1u64..60_000,
        jobs in 1usize..4,
    ) {
        block_on(async {
            let (repository, _) = memory_repository().await;
            let (reader, recipient) = keys();
            let dumper = BytesDumper { parts: parts.clone() };
            let recipient = encrypted.then_some(recipient.as_str());
            let summary = back_up(&repository, dumper, method, recipient, options(frame, chunk, object), jobs).await.unwrap();
            let record = record(&repository, &summary).await;
            let back = restore(&repository, record, encrypted.then_some(reader)).await.unwrap();
            let expected: Vec<_> = parts.iter().enumerate().map(|(i, c)| (format!("part-{i}"), c.concat())).collect();
            prop_assert_eq!(back, expected);
            Ok(())
        })?;
    }

    /// Any byte of any stored object flipped, cut off or added is found, by the restore as by verify.
    #[test]
    fn what_is_changed_is_found(
        bytes in proptest::collection::vec(any::<u8>(), 1..5000),
        repeat in 1usize..6,
        method in method(),
        encrypted in any::<bool>(),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        change in 0u8..3,
        bit in 0u8..8,
    ) {
        block_on(async {
            let (repository, memory) = memory_repository().await;
            let (reader, recipient) = keys();
            let dumper = BytesDumper::one(bytes.repeat(repeat));
            let recipient = encrypted.then_some(recipient.as_str());
            let summary = back_up(&repository, dumper, method, recipient, options(4096, 8192, 9000), 2).await.unwrap();
            // started.json is no more than an announcement, and the index is a cache of the records.
            let keys: Vec<String> = memory.keys().into_iter().filter(|k| k.contains("/backups/") && !k.ends_with("started.json")).collect();
            let key = which.get(&keys);
            memory.tamper(key, |mut bytes| {
                let place = at.index(bytes.len());
                match change {
                    0 => bytes[place] ^= 1 << bit,
                    1 => bytes.truncate(place),
                    _ => bytes.push(bit),
                }
                Some(bytes)
            });
            let cancel = CancellationToken::new();
            let record = match repository.record(&ClusterName::default(), &summary.backup.id).await {
                // White space at the end of the record, or other white space in it, changes nothing.
                Ok(record) if !key.ends_with("backup.json") => record,
                Ok(record) => {
                    prop_assert_eq!(record.summary, summary.backup);
                    return Ok(());
                }
                Err(e) => {
                    prop_assert!(matches!(e.kind(), ErrorKind::Integrity | ErrorKind::NewerFormat), "{:?}", e);
                    return Ok(());
                }
            };
            let restored = restore(&repository, record.clone(), encrypted.then(|| reader.clone())).await;
            let error = restored.expect_err(&format!("{key} was changed and restored all the same"));
            prop_assert!(matches!(error.kind(), ErrorKind::Integrity | ErrorKind::WrongKey), "{:?}", error);
            let mut verify_options = VerifyOptions::default();
            if encrypted {
                verify_options.encryptor = Some(Arc::new(Age::new().identities(reader)));
            }
            match verify(&repository, &record, verify_options, &cancel).await {
                Ok(report) => prop_assert!(!report.is_good(), "{key}: {report:?}"),
                // Of a key that was changed nobody can tell whether it or the identity is wrong.
                Err(e) => prop_assert!(key.contains("/key") && e.kind() == ErrorKind::WrongKey, "{key}: {e:?}"),
            }
            // Without a key the parts and the contents are compared all the same.
            if !key.contains("/key") {
                let mut stored_only = VerifyOptions::default();
                stored_only.stored_only = true;
                let report = verify(&repository, &record, stored_only, &cancel).await.unwrap();
                prop_assert!(!report.is_good(), "{key}: {report:?}");
            }
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_goes_on_in_the_next_object() {
    let (repository, memory) = memory_repository().await;
    let bytes: Vec<u8> = (0..200_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let dumper = BytesDumper::one(bytes.clone());
    let summary = back_up(&repository, dumper, "zstd:3", None, options(64 * 1024, 16 * 1024, 200_000), 2)
        .await
        .unwrap();
    let record = record(&repository, &summary).await;
    let names: Vec<&str> = record.parts[0].objects.iter().map(|o| o.key.as_str()).collect();
    assert_eq!(names[..2], ["parts/0001.raw.zst", "parts/0001_002.raw.zst"]);
    assert!(names.len() >= 3);
    assert!(
        record.parts[0].objects.iter().all(|o| o.bytes < 200_000 + 70_000),
        "an object ends at the next frame"
    );
    // Concatenated they are what zstd reads.
    let whole: Vec<u8> = names
        .iter()
        .flat_map(|name| {
            let key = memory.keys().into_iter().find(|k| k.ends_with(name)).unwrap();
            let mut copy = Vec::new();
            memory.tamper(&key, |bytes| {
                copy.clone_from(&bytes);
                Some(bytes)
            });
            copy
        })
        .collect();
    let back = restore(&repository, record, None).await.unwrap();
    assert!(back[0].1 == bytes);
    assert_eq!(pgark::codec::by_name("zstd").unwrap().name(), "zstd");
    assert!(whole.windows(4).filter(|w| *w == [0x28, 0xb5, 0x2f, 0xfd]).count() >= 12, "a frame each 64 KiB");
}

/// What a dumper of an application may do wrong.
#[derive(Clone, Copy, Debug)]
enum Mistake {
    DropPart,
    OpenTooMany,
    TearWrite,
    Fail,
    WrongKind,
}

struct Clumsy(Mistake);

#[async_trait]
impl Dumper for Clumsy {
    fn kind(&self) -> &'static str {
        "clumsy"
    }

    fn max_open(&self, _: usize) -> usize {
        1
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, _: &Ctx) -> Result<Dumped> {
        let spec = |kind: &str| PartSpec { kind: kind.into(), name: "x".into() };
        let mut part = parts.open(spec("raw")).await?;
        part.write(Bytes::from(vec![7; 100_000])).await?;
        match self.0 {
            Mistake::DropPart => drop(part),
            Mistake::OpenTooMany => {
                parts.open(spec("raw")).await?;
            }
            Mistake::TearWrite => {
                // More than the pipeline holds, given up in the middle.
                let write = part.write(Bytes::from(vec![8; 50_000_000]));
                let _ = tokio::time::timeout(Duration::from_millis(1), write).await;
                part.finish().await?;
            }
            Mistake::Fail => return Err(Error::new(ErrorKind::Database, "the server says no")),
            Mistake::WrongKind => {
                part.finish().await?;
                parts.open(spec("../raw")).await?;
            }
        }
        Ok(Dumped::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dumper_that_does_wrong_leaves_nothing() {
    for mistake in
        [Mistake::DropPart, Mistake::OpenTooMany, Mistake::TearWrite, Mistake::Fail, Mistake::WrongKind]
    {
        let (repository, memory) = memory_repository().await;
        let error = back_up(&repository, Clumsy(mistake), "zstd:3", None, options(4096, 8192, 1 << 30), 2)
            .await
            .unwrap_err();
        let expected =
            if matches!(mistake, Mistake::Fail) { ErrorKind::Database } else { ErrorKind::Internal };
        assert_eq!(error.kind(), expected, "{mistake:?}: {error:?}");
        assert_eq!(support::left(&memory), ["pgark.json"], "{mistake:?} left something");
        assert_eq!(memory.open_uploads(), 0, "{mistake:?} left an upload");
    }
}

/// A compressor that fails or panics on its third frame.
struct Failing {
    panics: bool,
    seen: std::sync::atomic::AtomicUsize,
}

impl pgark::Compressor for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn suffix(&self) -> Option<&'static str> {
        None
    }

    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        if self.seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2 {
            assert!(!self.panics, "a bug");
            return Err(Error::new(ErrorKind::Unsupported, "not this frame"));
        }
        frame.extend_from_slice(raw);
        Ok(())
    }

    fn decompress(&self, _: &[u8], _: usize, _: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn working_bytes(&self, _: usize) -> usize {
        0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_error_is_the_one_reported() {
    for (panics, expected) in [(false, ErrorKind::Unsupported), (true, ErrorKind::Internal)] {
        let (repository, memory) = memory_repository().await;
        let backup = Backup::builder()
            .repository(repository)
            .dumper(BytesDumper { parts: vec![vec![Bytes::from(vec![1; 10_000_000])]; 3] })
            .compressor(Failing { panics, seen: std::sync::atomic::AtomicUsize::default() })
            .options(options(4096, 8192, 1 << 30))
            .build()
            .unwrap();
        let error = backup.run(&CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{error:?}");
        assert_eq!((support::left(&memory), memory.open_uploads()), (vec!["pgark.json".to_owned()], 0));
    }
}

/// A dumper that never ends by itself.
struct Endless;

#[async_trait]
impl Dumper for Endless {
    fn kind(&self) -> &'static str {
        "endless"
    }

    fn max_open(&self, _: usize) -> usize {
        1
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, _: &Ctx) -> Result<Dumped> {
        let mut part = parts.open(PartSpec { kind: "raw".into(), name: "x".into() }).await?;
        let block = Bytes::from(vec![3; 65_536]);
        loop {
            part.write(block.clone()).await?;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_ends_and_leaves_nothing() {
    let (repository, memory) = memory_repository().await;
    let backup = Backup::builder().repository(repository).dumper(Endless).build().unwrap();
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        trigger.cancel();
    });
    let ended = tokio::time::timeout(Duration::from_secs(20), backup.run(&cancel)).await.expect("it ends");
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!((support::left(&memory), memory.open_uploads()), (vec!["pgark.json".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_tells_what_happens() {
    use futures::StreamExt;
    use pgark::Event;
    let (repository, _) = memory_repository().await;
    let (observer, events) = pgark::event::channel(1000);
    let backup = Backup::builder()
        .repository(repository)
        .dumper(BytesDumper::one(vec![5; 100_000]))
        .options(options(4096, 8192, 1 << 30))
        .observer(observer)
        .build()
        .unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    drop(backup);
    let events: Vec<Event> = events.collect().await;
    assert!(
        events.iter().any(|e| matches!(e, Event::Started { id } if *id == summary.backup.id.to_string()))
    );
    let last = events.iter().rev().find_map(|e| match e {
        Event::Progress { raw_bytes, stored_bytes } => Some((*raw_bytes, *stored_bytes)),
        _ => None,
    });
    assert_eq!(last.unwrap().0, 100_000);
    assert!(events.iter().any(|e| matches!(e, Event::PartFinished { part: 1, .. })));
}
