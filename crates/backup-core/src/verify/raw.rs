//! The raw bytes of a backup, and what its parts hold.

use std::sync::Arc;

use futures::StreamExt;
use tokio_util::task::AbortOnDropHandle;

use super::stored::verify_stored;
use super::{Depth, Finding, Report, VerifyOptions, is_damage, note};
use crate::dumper::{PartInfo, PartSource};
use crate::error::{Error, Result};
use crate::logical::{self, RowsLook, RowsRead};
use crate::physical::{self, FilesLook, FilesRead, is_manifest};
use crate::pipeline::{Source, Totals, check_stored};
use crate::repository::{BackupRecord, Repository, keys_in, layout};
use crate::restore::Reading;

/// Compares the raw bytes of a backup, and what its parts hold. Where nothing can be opened the stored ones are compared.
pub(super) async fn verify_raw(
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
        Err(e) => Err((key_object(repository, record).await?, e)),
    };
    let source = match opened {
        Ok(source) => source,
        Err((what, error)) => {
            // Nothing can be opened; the stored bytes still tell what else is wrong.
            report.depth = Depth::Stored;
            verify_stored(repository, record, &options, report).await?;
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

/// The key that a backup is opened with, whether it is there or not.
async fn key_object(repository: &Repository, record: &BackupRecord) -> Result<String> {
    let folder = layout::backup(&record.cluster, &record.id);
    let name = keys_in(&**repository.store(), &folder).await?.pop();
    let method = record.encryption.as_ref().map_or("age", |encryption| &encryption.method);
    Ok(format!("{folder}/{}", name.unwrap_or_else(|| layout::key(method))))
}

/// That the key of a backup does not open, though it does in another copy.
///
/// # Errors
/// Those of the store.
pub async fn unopened(repository: &Repository, record: &BackupRecord, error: &Error) -> Result<Finding> {
    let why = format!("{error}; the same key opens in another copy");
    Ok(Finding::of_object(&key_object(repository, record).await?, false, why))
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
    Files(FilesLook),
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
            Self::Files(files) if FilesRead::knows(kind) => Look::Files(files.look(kind, &part.spec.name)),
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
    let source = Arc::new(source);
    for turn in 0..=2 {
        let parts = parts.iter().filter(|part| FilesRead::turn(&part.spec.kind) == turn).cloned();
        let whole = report.findings.iter().all(|f| f.parent.is_some()) && options.sample.is_none();
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
                        report.findings.push(Finding::of(what.clone(), key.clone(), false, why));
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
            report.findings.push(Finding::of(what, key, false, why));
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
