//! Proves that a backup is what was written: every stored byte against its digest; with a key every raw byte as well,
//! and what the parts hold: archives to their ends, pages against their checksums, files against the server's manifest,
//! rows against their counts and fingerprints.

mod others;
mod sample;
mod stored;

use std::sync::Arc;
use std::time::Instant;

pub use others::verify_cluster;
pub use sample::Sample;
use tokio_util::task::AbortOnDropHandle;

use futures::StreamExt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::compressor::Compressor;
use crate::dumper::{PartInfo, PartSource};
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::logical::{self, RowsLook, RowsRead};
use crate::physical::{self, FilesLook, FilesRead, is_manifest};
use crate::pipeline::{CpuPool, Source, Totals, check_stored};
use crate::repository::{
    BackupId, BackupRecord, ClusterName, Marks, Repository, Verb, ancestors, has_key, layout,
};
use crate::restore::Reading;

/// How deep a verification went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// The stored bytes, against the record. It needs no key.
    Stored,
    /// The stored bytes, opened and decompressed, against the contents too.
    Raw,
}

/// Something that is wrong with a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: the key of an object, or `part 3`.
    pub what: String,
    /// The key of the object to put back, as far as it is known.
    pub key: Option<String>,
    /// Whether it is there at all.
    pub missing: bool,
    /// Why, in a line.
    pub why: String,
}

/// The result for one backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The backup.
    pub id: BackupId,
    /// The backup that it builds on. It is not read, but must be there, and so must those that it builds on.
    pub parent: Option<BackupId>,
    /// How deep.
    pub depth: Depth,
    /// How many objects were read.
    pub objects: u64,
    /// How many stored bytes the record names for them.
    pub stored_bytes: u64,
    /// How many raw bytes were compared.
    pub raw_bytes: u64,
    /// Whether only some of the parts were read.
    pub sampled: bool,
    /// Seconds.
    pub seconds: f64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The place that was read, where the repository has several copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    /// That of a backup whose record cannot be read.
    pub fn without_record(cluster: &ClusterName, id: &BackupId, error: &Error) -> Self {
        let key = format!("{}/{}", layout::backup(cluster, id), layout::RECORD);
        let missing = error.kind() == ErrorKind::BackupNotFound;
        let finding = Finding { what: key.clone(), key: Some(key), missing, why: error.to_string() };
        Self {
            id: id.clone(),
            parent: None,
            depth: Depth::Stored,
            objects: 0,
            stored_bytes: 0,
            raw_bytes: 0,
            sampled: false,
            seconds: 0.0,
            findings: vec![finding],
            copy: None,
        }
    }
}

/// What to verify with.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Opens the key. Without it the stored bytes are compared, and the raw ones only where they are not
    /// encrypted.
    pub encryptor: Option<Arc<dyn Encryptor>>,
    /// An application's own compression method; those of [`codec`](crate::codec) are known.
    pub compressor: Option<Arc<dyn Compressor>>,
    /// Compares stored bytes only.
    pub stored_only: bool,
    /// Reads some of the parts only, chosen by a seed.
    pub sample: Option<Sample>,
    /// How much is done at once.
    pub jobs: Option<usize>,
    /// Threads of other runs to share.
    pub pool: Option<CpuPool>,
    /// Who is told.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Verifies one backup, without those that it builds on. What is damaged or missing stands in the report; an error means that the question
/// could not be answered: no key, a store that does not answer.
pub async fn verify(
    repository: &Repository,
    record: &BackupRecord,
    options: VerifyOptions,
    cancel: &CancellationToken,
) -> Result<Report> {
    let readable = record.encryption.is_none() || options.encryptor.is_some();
    let depth = if options.stored_only || !readable { Depth::Stored } else { Depth::Raw };
    let mut report = Report {
        id: record.id.clone(),
        parent: record.parent.clone(),
        depth,
        objects: record.objects().count() as u64,
        stored_bytes: record.objects().map(|o| o.bytes).sum(),
        raw_bytes: 0,
        sampled: options.sample.is_some(),
        seconds: 0.0,
        findings: Vec::new(),
        copy: None,
    };
    let begun = Instant::now();
    let work = async {
        look_at_ancestors(repository, record, &mut report).await?;
        match depth {
            Depth::Stored => stored(repository, record, &options, &mut report).await,
            Depth::Raw => raw(repository, record, options, &mut report).await,
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::cancelled()),
        done = work => done?,
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Marks a backup as good or damaged, as a verification found it. One that was found damaged by more than its stored
/// bytes stays so until more than these are good; a sample says nothing good.
pub async fn mark(repository: &Repository, record: &BackupRecord, report: &Report) -> Result<()> {
    let verb = match (report.is_good(), report.depth) {
        (false, _) => Verb::Damaged,
        (true, _) if report.sampled => return Ok(()),
        (true, Depth::Raw) => Verb::VerifiedRaw,
        (true, Depth::Stored) => {
            if Marks::load(repository, &record.cluster).await?.is_damaged(&record.id) {
                return Ok(());
            }
            Verb::VerifiedStored
        }
    };
    repository.mark(&record.cluster, &record.id, verb, Some("verify")).await
}

/// Without what it builds on a backup cannot be restored.
async fn look_at_ancestors(
    repository: &Repository,
    record: &BackupRecord,
    report: &mut Report,
) -> Result<()> {
    let Some(parent) = &record.parent else { return Ok(()) };
    let result = match ancestors(repository, record).await {
        Err(e) if e.kind() == ErrorKind::BackupNotFound => {
            Err(Error::new(ErrorKind::ObjectMissing, e.to_string()))
        }
        result => result.map(drop),
    };
    let record = format!("{}/{}", layout::backup(&record.cluster, parent), layout::RECORD);
    note(report, format!("parents, from {parent} on"), Some(record), result)
}

async fn stored(
    repository: &Repository,
    record: &BackupRecord,
    options: &VerifyOptions,
    report: &mut Report,
) -> Result<()> {
    let folder = layout::backup(&record.cluster, &record.id);
    if let Some(encryption) = &record.encryption
        && !has_key(repository, record).await?
    {
        let what = format!("{folder}/{}", layout::key(&encryption.method));
        report.findings.push(Finding {
            key: Some(what.clone()),
            what,
            missing: true,
            why: "without its key nobody can read the backup".to_owned(),
        });
    }
    let reading = Reading::new(None, options.jobs, options.pool.clone(), options.observer.clone())?;
    let totals = Totals::default();
    let mut objects: Vec<_> = record.parts.iter().flat_map(|part| &part.objects).cloned().collect();
    if let Some(sample) = &options.sample {
        objects = sample.choose(objects, |object| format!("{}/{}", record.id, object.key));
    }
    objects.extend(record.contents.clone());
    report.objects = objects.len() as u64;
    report.stored_bytes = objects.iter().map(|object| object.bytes).sum();
    let store = Arc::clone(repository.store());
    let mut checks = stored::check_all(store, folder.clone(), objects, reading.jobs);
    while let Some(stored::Checked { object, result }) = checks.next().await {
        totals.add(0, object.bytes, &*reading.observer);
        let key = format!("{folder}/{}", object.key);
        note(report, key.clone(), Some(key), result)?;
    }
    Ok(())
}

async fn raw(
    repository: &Repository,
    record: &BackupRecord,
    options: VerifyOptions,
    report: &mut Report,
) -> Result<()> {
    let totals = Arc::new(Totals::default());
    let mut reading = Reading::new(
        options.encryptor.clone(),
        options.jobs,
        options.pool.clone(),
        options.observer.clone(),
    )?;
    reading.compressor.clone_from(&options.compressor);
    let folder = layout::backup(&record.cluster, &record.id);
    let opened = match reading.cipher(repository, record).await {
        Ok(cipher) => {
            let contents = record.contents.as_ref().map_or("contents", |c| &c.key);
            let source = reading.open(repository, record, cipher, Arc::clone(&totals)).await;
            source.map_err(|e| (format!("{folder}/{contents}"), e))
        }
        Err(e) => Err((format!("{folder}/{}", layout::key("age")), e)),
    };
    let source = match opened {
        Ok(source) => source,
        Err((what, error)) => {
            // Nothing can be opened; the stored bytes still tell what else is wrong.
            report.depth = Depth::Stored;
            stored(repository, record, &options, report).await?;
            if report.findings.iter().all(|f| f.what != what) {
                note(report, what.clone(), Some(what), Err(error))?;
            }
            return Ok(());
        }
    };
    let structure = Structure::of(record, &source)?;
    read_parts(repository, record, &options, source, structure, reading.jobs, report).await?;
    report.raw_bytes = totals.raw();
    Ok(())
}

/// What is known of the form of the parts.
#[derive(Clone)]
enum Structure {
    Files(Arc<FilesRead>),
    Rows(Arc<RowsRead>),
    /// Bytes.
    None,
}

/// Reads a part by its form.
enum Look {
    Files(Box<FilesLook>),
    Rows(Box<RowsLook>),
    None,
}

impl Structure {
    fn of(record: &BackupRecord, source: &Source) -> Result<Self> {
        Ok(match record.kind.as_str() {
            physical::KIND => Self::Files(Arc::new(FilesRead::of(record)?)),
            logical::KIND => match RowsRead::of(source.contents())? {
                Some(rows) => Self::Rows(rows),
                None => Self::None,
            },
            _ => Self::None,
        })
    }

    fn look(&self, part: &PartInfo) -> Look {
        let kind = part.spec.kind.as_str();
        match self {
            Self::Files(files) if FilesRead::is_archive(kind) => {
                Look::Files(Box::new(files.look(kind, &part.spec.name)))
            }
            Self::Rows(rows) => {
                rows.look(part.part, kind).map_or(Look::None, |look| Look::Rows(Box::new(look)))
            }
            _ => Look::None,
        }
    }
}

/// Reads a part through; what is wrong with what it holds.
async fn read_part(
    source: &Source,
    structure: &Structure,
    part: &PartInfo,
    all: bool,
) -> Result<Vec<String>> {
    let mut stream = source.open(part.part).await?;
    if let (Structure::Files(files), true) = (structure, is_manifest(&part.spec.kind)) {
        return Arc::clone(files).compare(stream, all).await;
    }
    let mut look = structure.look(part);
    // What is wrong with the form counts only when the bytes are those of the backup.
    let mut wrong = None;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if wrong.is_none() {
            let taken = match &mut look {
                Look::Files(look) => look.take(chunk),
                Look::Rows(look) => look.take(chunk),
                Look::None => Ok(()),
            };
            wrong = taken.err();
        }
    }
    match (wrong, look) {
        (Some(error), _) => Err(error),
        (None, Look::Files(look)) => look.finish(),
        (None, Look::Rows(look)) => look.finish().map(|()| Vec::new()),
        (None, Look::None) => Ok(Vec::new()),
    }
}

async fn read_parts(
    repository: &Repository,
    record: &BackupRecord,
    options: &VerifyOptions,
    source: Source,
    structure: Structure,
    jobs: usize,
    report: &mut Report,
) -> Result<()> {
    let mut parts = source.parts();
    if let Some(sample) = &options.sample {
        parts = sample.choose(parts, |part| format!("{}/{}", record.id, part.part));
        let chosen = |number: u32| parts.iter().any(|part| part.part == number);
        let objects = record.parts.iter().filter(|part| chosen(part.part)).flat_map(|part| &part.objects);
        let objects: Vec<_> = objects.chain(&record.contents).collect();
        report.objects = objects.len() as u64;
        report.stored_bytes = objects.iter().map(|object| object.bytes).sum();
    }
    // The manifest is compared with what the others hold.
    let (manifests, others): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|part| is_manifest(&part.spec.kind));
    let source = Arc::new(source);
    for parts in [others, manifests] {
        let whole = report.findings.is_empty() && options.sample.is_none();
        let mut reading = futures::stream::iter(parts)
            .map(|part| {
                let (source, structure) = (Arc::clone(&source), structure.clone());
                // A task of its own for each, so that they run on all cores.
                let work = tokio::spawn(async move {
                    let result = read_part(&source, &structure, &part, whole).await;
                    (part, result)
                });
                AbortOnDropHandle::new(work)
            })
            .buffered(jobs.max(1));
        while let Some(done) = reading.next().await {
            let (part, result) = done.map_err(|e| Error::internal("reading a part failed").caused_by(e))?;
            let what = format!("part {} ({})", part.part, part.spec.name);
            match result {
                Ok(found) if found.is_empty() => {}
                Ok(found) => {
                    let key = object_of(record, part.part);
                    for why in found {
                        let finding = Finding { what: what.clone(), key: key.clone(), missing: false, why };
                        report.findings.push(finding);
                    }
                }
                Err(error) if is_damage(&error) => {
                    let key = damaged_object(repository, record, part.part).await?;
                    note(report, what, key, Err(error))?;
                }
                Err(error) => return Err(error.doing(format!("verifying {what}"))),
            }
        }
    }
    if let Structure::Rows(rows) = &structure {
        for (part, why) in rows.compare() {
            let (what, key) = (format!("part {part} (rows)"), object_of(record, part));
            report.findings.push(Finding { what, key, missing: false, why });
        }
    }
    Ok(())
}

/// The key of the first object of a part.
fn object_of(record: &BackupRecord, part: u32) -> Option<String> {
    let objects = &record.parts.iter().find(|found| found.part == part)?.objects;
    let folder = layout::backup(&record.cluster, &record.id);
    objects.first().map(|object| format!("{folder}/{}", object.key))
}

/// The key of the object of a part whose stored bytes are wrong; of a part with one object, that one.
async fn damaged_object(repository: &Repository, record: &BackupRecord, part: u32) -> Result<Option<String>> {
    let Some(found) = record.parts.iter().find(|found| found.part == part) else { return Ok(None) };
    let folder = layout::backup(&record.cluster, &record.id);
    if let [_, _, ..] = &found.objects[..] {
        for object in &found.objects {
            match check_stored(&**repository.store(), &folder, object).await {
                Ok(()) => {}
                Err(e) if is_damage(&e) => return Ok(Some(format!("{folder}/{}", object.key))),
                Err(e) => return Err(e),
            }
        }
    }
    Ok(object_of(record, part))
}

/// Whether an error says that something is damaged or gone.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Integrity | ErrorKind::ObjectMissing)
}

/// Files a result: damage is a finding, everything else that went wrong an error.
fn note(report: &mut Report, what: String, key: Option<String>, result: Result<()>) -> Result<()> {
    match result {
        Ok(()) => {}
        Err(e) if is_damage(&e) => {
            let missing = e.kind() == ErrorKind::ObjectMissing;
            report.findings.push(Finding { what, key, missing, why: e.to_string() });
        }
        Err(e) => return Err(e.doing(format!("verifying {what}"))),
    }
    Ok(())
}
