//! Proves that a backup is what was written: every stored byte against its digest; with a key every raw byte as well,
//! and what the parts hold: archives to their ends, pages against their checksums, files against the server's manifest,
//! rows against their counts and fingerprints.

mod others;
mod parents;
mod raw;
mod report;
mod sample;
mod stored;

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

pub use others::{unusable_copies, verify_audit_log, verify_cluster};
pub use parents::Parents;
pub use raw::unopened;
pub use report::{Depth, Finding, Report};
pub use sample::Sample;

use crate::compressor::Compressor;
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::pipeline::CpuPool;
use crate::repository::{BackupRecord, Marks, Repository, Verb};

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
    /// What is known of backups that others build on. Who verifies several with the same one looks at each once.
    pub parents: Parents,
}

/// Verifies one backup. Those that it builds on are not read; that they are not there, or damaged, is told. What is damaged or missing stands in the report; an error means that the question
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
    let parents = options.parents.clone();
    let work = async {
        report.findings = parents.look(repository, record).await?;
        match depth {
            Depth::Stored => stored::verify_stored(repository, record, &options, &mut report).await,
            Depth::Raw => raw::verify_raw(repository, record, options, &mut report).await,
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::cancelled()),
        done = work => done?,
    }
    report.seconds = begun.elapsed().as_secs_f64();
    parents.note(repository, record, &report);
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
            report.findings.push(Finding::of(what, key, missing, e.to_string()));
        }
        Err(e) => return Err(e.doing(format!("verifying {what}"))),
    }
    Ok(())
}
