//! Proves that a backup is what was written: every stored byte against its digest, and with a key every raw
//! byte as well.

use std::sync::Arc;

use futures::StreamExt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::compressor::Compressor;
use crate::dumper::PartSource;
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::pipeline::{CpuPool, Totals, check_stored};
use crate::repository::{BackupId, BackupRecord, ClusterName, Repository, ancestors, has_key, layout};
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
    /// Whether it is there at all.
    pub missing: bool,
    /// Why, in a line.
    pub why: String,
}

/// The result for one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
        findings: Vec::new(),
        copy: None,
    };
    let work = async {
        look_at_ancestors(repository, record, &mut report).await?;
        match depth {
            Depth::Stored => stored(repository, record, &options, &mut report).await,
            Depth::Raw => raw(repository, record, options, &mut report).await,
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::cancelled()),
        done = work => done.map(|()| report),
    }
}

/// Verifies a backup in every copy of the repository that has it; in a single place as [`verify`] does. A backup that a copy
/// lacks is no damage: [`sync`](crate::copies::sync) brings it there.
pub async fn verify_copies(
    repository: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    options: &VerifyOptions,
    cancel: &CancellationToken,
) -> Result<Vec<Report>> {
    let known = repository.record(cluster, id).await?;
    let copies = repository.copies().await?;
    if copies.is_empty() {
        return verify(repository, &known, options.clone(), cancel).await.map(|report| vec![report]);
    }
    let mut reports = Vec::new();
    for copy in copies {
        let (record, finding) = match copy.record(cluster, id).await {
            Ok(record) => (record, None),
            Err(error) if error.kind() == ErrorKind::BackupNotFound => continue,
            Err(error) if error.kind() == ErrorKind::Integrity => {
                let what = format!("{}/{}", layout::backup(cluster, id), layout::RECORD);
                (known.clone(), Some(Finding { what, missing: false, why: error.to_string() }))
            }
            Err(error) => return Err(error.doing(format!("verifying {id} in {}", copy.store().location()))),
        };
        let mut report = verify(&copy, &record, options.clone(), cancel).await?;
        report.findings.extend(finding);
        report.copy = Some(copy.store().location().to_owned());
        reports.push(report);
    }
    Ok(reports)
}

/// The objects that are to be repaired, by copy and key: what a verification of stored bytes found.
pub async fn damaged_objects(
    repository: &Repository,
    cluster: &ClusterName,
    reports: &[Report],
    cancel: &CancellationToken,
) -> Result<Vec<(String, String)>> {
    let mut damaged = std::collections::BTreeSet::new();
    let options = VerifyOptions { stored_only: true, ..VerifyOptions::default() };
    for report in reports.iter().filter(|report| !report.is_good()) {
        let mut found = vec![report.clone()];
        if report.depth == Depth::Raw {
            // Parts were found, not objects.
            found.extend(verify_copies(repository, cluster, &report.id, &options, cancel).await?);
        }
        for one in found.into_iter().filter(|one| one.copy == report.copy) {
            let objects =
                one.findings.into_iter().filter(|finding| finding.what.starts_with(layout::CLUSTERS));
            damaged.extend(objects.map(|finding| (report.copy.clone().unwrap_or_default(), finding.what)));
        }
    }
    Ok(damaged.into_iter().collect())
}

/// Without what it builds on a backup cannot be restored.
async fn look_at_ancestors(
    repository: &Repository,
    record: &BackupRecord,
    report: &mut Report,
) -> Result<()> {
    let Some(parent) = &record.parent else { return Ok(()) };
    match ancestors(repository, record).await {
        Err(e) if e.kind() == ErrorKind::BackupNotFound => {
            let what = format!("parents, from {parent} on");
            report.findings.push(Finding { what, missing: true, why: e.to_string() });
            Ok(())
        }
        result => note(report, format!("parents, from {parent} on"), result.map(drop)),
    }
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
            what,
            missing: true,
            why: "without its key nobody can read the backup".to_owned(),
        });
    }
    let reading = Reading::new(None, options.jobs, options.pool.clone(), options.observer.clone())?;
    let totals = Totals::default();
    let mut checks = futures::stream::iter(record.objects())
        .map(|object| {
            let folder = &folder;
            async move { (object, check_stored(&**repository.store(), folder, object).await) }
        })
        .buffered(reading.jobs);
    while let Some((object, result)) = checks.next().await {
        totals.add(0, object.bytes, &*reading.observer);
        note(report, format!("{folder}/{}", object.key), result)?;
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
                note(report, what, Err(error))?;
            }
            return Ok(());
        }
    };
    for part in source.parts() {
        let result = async {
            let mut stream = source.open(part.part).await?;
            while let Some(chunk) = stream.next().await {
                chunk?;
            }
            Ok(())
        };
        note(report, format!("part {} ({})", part.part, part.spec.name), result.await)?;
    }
    report.raw_bytes = totals.raw();
    Ok(())
}

/// Files a result: damage is a finding, everything else that went wrong an error.
fn note(report: &mut Report, what: String, result: Result<()>) -> Result<()> {
    match result {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), ErrorKind::Integrity | ErrorKind::ObjectMissing) => {
            let missing = e.kind() == ErrorKind::ObjectMissing;
            report.findings.push(Finding { what, missing, why: e.to_string() });
        }
        Err(e) => return Err(e.doing(format!("verifying {what}"))),
    }
    Ok(())
}
