//! Verification of a cluster's backups as frontends ask for it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use backup_core::copies::{Repairs, repair};
use backup_core::physical::span;
use backup_core::repository::{BackupId, BackupSummary, Catalog, ClusterName, Marks};
use backup_core::state::HostState;
use backup_core::verify::{Finding, Report, Sample, VerifyOptions, mark, verify, verify_cluster};
use backup_core::wal::WalReport;
use backup_core::{CancellationToken, Encryptor, Error, ErrorKind, Event, Observer, Repository, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::{Settings, WalVerified};

/// Where the state has what an interrupted verification has done.
const STATE: &str = "verified";
/// What its first line is.
const STORED: &str = "stored";
const RAW: &str = "raw";

/// What is verified, and how.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct VerifyWanted {
    /// `latest`, an id, or the beginning of one; the latest by default.
    pub backup: Option<String>,
    /// Every backup, the WAL, and all other objects of the cluster.
    pub all: bool,
    /// Compares stored bytes only.
    pub stored: bool,
    /// Reads the WAL of the archive that the backups need to be consistent as well.
    pub wal: bool,
    /// Every backup that was made since.
    pub since: Option<Timestamp>,
    /// Every backup that was not verified since.
    pub unverified_since: Option<Timestamp>,
    /// Reads so many of a hundred parts of each backup.
    pub sample: Option<Sample>,
    /// Passes over the backups that an interrupted verification of the same kind found good.
    pub resume: bool,
    /// Replaces what is damaged or missing in a copy of the repository by what another copy has.
    pub repair: bool,
}

/// The small objects of a cluster that are not of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OthersVerified {
    /// How many were read.
    pub objects: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// The answer to `verify`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// Whether nothing is wrong.
    pub good: bool,
    /// How many backups were looked at.
    pub checked: u64,
    /// How many of them are good.
    pub valid: u64,
    /// How many are damaged, or lack something.
    pub invalid: u64,
    /// Things that are damaged.
    pub damaged: u64,
    /// Things that are missing.
    pub missing: u64,
    /// Stored bytes that were read of backups and WAL.
    pub stored_bytes: u64,
    /// Seconds.
    pub seconds: f64,
    /// Backups that an interrupted verification had found good already.
    pub resumed: u64,
    /// Which parts were read, where not all were: the seed chooses the same ones again.
    pub sample: Option<SampleOf>,
    /// The backups.
    pub backups: Vec<Report>,
    /// Of these backups, those whose WAL is in the archive.
    pub without_wal: Vec<BackupId>,
    /// The WAL that the backups need, with `wal`.
    pub needed_wal: Option<WalReport>,
    /// The whole archive, with `all`.
    pub wal: Option<WalVerified>,
    /// All other objects of the cluster, with `all`.
    pub others: Option<OthersVerified>,
    /// What was replaced from other copies of the repository, with `repair`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repairs: Option<Repairs>,
}

/// A sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SampleOf {
    /// How many of a hundred.
    pub percent: f64,
    /// What chose them.
    pub seed: u64,
}

impl Verified {
    fn count(&mut self) {
        let number = |n: usize| n as u64;
        self.checked = number(self.backups.len());
        self.valid = number(self.backups.iter().filter(|report| report.is_good()).count());
        self.invalid = self.checked - self.valid;
        let others = self.others.iter().flat_map(|others| &others.findings);
        let findings: Vec<&Finding> =
            self.backups.iter().flat_map(|report| &report.findings).chain(others).collect();
        let of_wal = [self.needed_wal.as_ref(), self.wal.as_ref().map(|wal| &wal.report)];
        let of_wal: Vec<&WalReport> = of_wal.into_iter().flatten().collect();
        self.missing = number(findings.iter().filter(|finding| finding.missing).count());
        self.damaged = number(findings.len()) - self.missing
            + of_wal.iter().map(|report| number(report.findings.len())).sum::<u64>();
        self.stored_bytes = self.backups.iter().map(|report| report.stored_bytes).sum::<u64>()
            + of_wal.iter().map(|report| report.stored_bytes).sum::<u64>();
        let repaired = self.repairs.as_ref().is_some_and(|repairs| {
            let done = |finding: &&Finding| {
                finding.key.as_ref().is_some_and(|key| repairs.repaired.iter().any(|one| one.object == *key))
            };
            repairs.problems.is_empty()
                && findings.iter().all(done)
                && self.damaged + self.missing == number(findings.len())
        });
        self.good =
            (self.damaged + self.missing == 0 || repaired) && self.wal.as_ref().is_none_or(|wal| wal.good);
    }

    /// The objects of backups to be replaced, by copy and key.
    fn to_repair(&self) -> Vec<(String, String)> {
        let of_one = |report: &Report| {
            let copy = report.copy.clone().unwrap_or_default();
            report
                .findings
                .iter()
                .filter_map(move |f| Some((copy.clone(), f.key.clone()?)))
                .collect::<Vec<_>>()
        };
        let mut all: Vec<(String, String)> = self.backups.iter().flat_map(of_one).collect();
        all.sort();
        all.dedup();
        all
    }
}

impl Settings {
    /// Verifies backups of a cluster, and marks each as good or damaged. What is wrong is in the answer.
    ///
    /// # Errors
    /// That the question could not be answered: no such backup, no key, a store that does not answer.
    pub async fn run_verify(
        &self,
        cluster: &ClusterName,
        wanted: &VerifyWanted,
        observer: Option<Arc<dyn Observer>>,
        cancel: &CancellationToken,
    ) -> Result<Verified> {
        let begun = Instant::now();
        let repository = self.open_repository().await?;
        let catalog = Catalog::load(&repository, cluster).await?;
        let places = repository.copies().await?;
        let chosen = choose(&repository, &catalog, wanted).await?;
        let mut resuming = Resuming::begin(self, &repository, cluster, wanted);
        let mut verified = Verified {
            good: false,
            checked: 0,
            valid: 0,
            invalid: 0,
            damaged: 0,
            missing: 0,
            stored_bytes: 0,
            seconds: 0.0,
            resumed: 0,
            sample: wanted.sample.map(|sample| SampleOf { percent: sample.percent, seed: sample.seed }),
            backups: Vec::new(),
            without_wal: Vec::new(),
            needed_wal: None,
            wal: None,
            others: None,
            repairs: None,
        };
        let mut options = VerifyOptions::default();
        options.stored_only = wanted.stored;
        options.sample = wanted.sample;
        options.jobs = self.jobs;
        options.observer.clone_from(&observer);
        if !wanted.stored {
            options.encryptor = self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
        }
        for backup in &chosen {
            if resuming.has(&backup.id) {
                verified.resumed += 1;
                continue;
            }
            if chosen.len() > 1
                && let Some(observer) = &observer
            {
                observer.event(&Event::Step { what: format!("verifying {}", backup.id) });
            }
            let reports = self.verify_places(&repository, &places, cluster, backup, &options, cancel).await?;
            if reports.iter().all(Report::is_good) {
                resuming.note(&backup.id);
            }
            if span(backup).is_some_and(|span| !span.wal.brings_wal) {
                verified.without_wal.push(backup.id.clone());
            }
            verified.backups.extend(reports);
        }
        if wanted.wal && !wanted.all {
            verified.needed_wal =
                Some(self.verify_needed(&repository, cluster, &chosen, wanted, cancel).await?);
        }
        if wanted.all {
            if self.archive(&repository, cluster).await?.is_some()
                && self.list_wal(cluster).await?.stored_bytes > 0
            {
                verified.wal = Some(self.verify_wal(cluster, wanted.stored, cancel).await?);
            }
            let (objects, findings) = verify_cluster(&repository, cluster).await?;
            verified.others = Some(OthersVerified { objects, findings });
        }
        resuming.end();
        verified.count();
        if wanted.repair {
            let damaged = verified.to_repair();
            verified.repairs = Some(repair(&repository, cluster, &damaged).await?);
            verified.count();
        }
        verified.seconds = begun.elapsed().as_secs_f64();
        Ok(verified)
    }

    /// Verifies a backup where it is, in each copy that has it. That a copy lacks it is no damage: a sync brings it there.
    async fn verify_places(
        &self,
        repository: &Repository,
        places: &[Repository],
        cluster: &ClusterName,
        backup: &BackupSummary,
        options: &VerifyOptions,
        cancel: &CancellationToken,
    ) -> Result<Vec<Report>> {
        if places.is_empty() {
            return self.verify_one(repository, cluster, backup, options, cancel).await.map(|one| vec![one]);
        }
        let mut reports = Vec::new();
        for place in places {
            match place.record(cluster, &backup.id).await {
                Err(error) if error.kind() == ErrorKind::BackupNotFound => continue,
                _ => {}
            }
            let mut report = self.verify_one(place, cluster, backup, options, cancel).await?;
            report.copy = Some(place.store().location().to_owned());
            reports.push(report);
        }
        Ok(reports)
    }

    async fn verify_one(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        backup: &BackupSummary,
        options: &VerifyOptions,
        cancel: &CancellationToken,
    ) -> Result<Report> {
        let record = match repository.record(cluster, &backup.id).await {
            Ok(record) => record,
            // The index knows it, or the list of folders: it was a backup.
            Err(e) if matches!(e.kind(), ErrorKind::BackupNotFound | ErrorKind::Integrity) => {
                return Ok(Report::without_record(cluster, &backup.id, &e));
            }
            Err(e) => return Err(e),
        };
        let report = verify(repository, &record, options.clone(), cancel).await?;
        // Credentials that only read are no reason to fail.
        if let (Err(error), Some(observer)) = (mark(repository, &record, &report).await, &options.observer) {
            let message = format!("{} was not marked as verified: {error}", record.id);
            observer.event(&Event::Warning { message });
        }
        Ok(report)
    }

    /// Reads the segments that backups need and do not have.
    async fn verify_needed(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        backups: &[BackupSummary],
        wanted: &VerifyWanted,
        cancel: &CancellationToken,
    ) -> Result<WalReport> {
        let mut report = WalReport::default();
        for span in backups.iter().filter_map(span).filter(|span| !span.wal.brings_wal) {
            let archive = self.archive_of(repository, cluster, span.system)?;
            let segments: Vec<_> = span.wal.segments().collect();
            let jobs = self.jobs.unwrap_or(2);
            let mut found = archive.verify_segments(&segments, wanted.stored, jobs, cancel).await?;
            report.objects += found.objects;
            report.stored_bytes += found.stored_bytes;
            report.raw_bytes += found.raw_bytes;
            report.opened |= found.opened;
            report.findings.append(&mut found.findings);
        }
        Ok(report)
    }
}

/// The backups that are verified, oldest first.
async fn choose(
    repository: &Repository,
    catalog: &Catalog,
    wanted: &VerifyWanted,
) -> Result<Vec<BackupSummary>> {
    let several = wanted.all || wanted.since.is_some() || wanted.unverified_since.is_some();
    if !several {
        return Ok(vec![catalog.find(wanted.backup.as_deref().unwrap_or("latest"))?.clone()]);
    }
    if wanted.backup.is_some() {
        return Err(Error::new(ErrorKind::Usage, "one backup is named, and several are asked for"));
    }
    let marks = match wanted.unverified_since {
        Some(_) => Marks::load(repository, catalog.cluster()).await?,
        None => Marks::default(),
    };
    let made_since = |backup: &&BackupSummary| wanted.since.is_none_or(|since| backup.started >= since);
    let unverified = |backup: &&BackupSummary| {
        let last = marks.verification(&backup.id).map(|mark| mark.since);
        wanted.unverified_since.is_none_or(|since| last.is_none_or(|last| last < since))
    };
    Ok(catalog.staying().filter(made_since).filter(unverified).cloned().collect())
}

/// Keeps on this host what was done, so that it need not be done again: how deep, and the backups that were good, a line
/// each. That it cannot be kept is no failure.
struct Resuming {
    state: Option<HostState>,
    before: Vec<BackupId>,
    text: String,
}

impl Resuming {
    fn begin(
        settings: &Settings,
        repository: &Repository,
        cluster: &ClusterName,
        wanted: &VerifyWanted,
    ) -> Self {
        // A sample is another one each time.
        let state = settings.host_state(repository, cluster).ok().filter(|_| wanted.sample.is_none());
        let read = state.as_ref().filter(|_| wanted.resume).and_then(|state| state.read(STATE).ok()?);
        let text = String::from_utf8(read.unwrap_or_default()).unwrap_or_default();
        let mut lines = text.lines();
        // What was read deeper was read.
        let before = match lines.next() {
            Some(depth) if depth == RAW || wanted.stored => {
                lines.filter_map(|line| line.parse().ok()).collect()
            }
            _ => Vec::new(),
        };
        let depth = if wanted.stored { STORED } else { RAW };
        let text = before.iter().fold(format!("{depth}\n"), |text, id| format!("{text}{id}\n"));
        Self { state, before, text }
    }

    fn has(&self, id: &BackupId) -> bool {
        self.before.contains(id)
    }

    fn note(&mut self, id: &BackupId) {
        let _ = writeln!(self.text, "{id}");
        if let Some(state) = &self.state
            && state.write(STATE, self.text.as_bytes()).is_err()
        {
            self.state = None;
        }
    }

    fn end(self) {
        if let Some(state) = self.state {
            // One that stays is overwritten by the next verification, unless that resumes.
            let _ = state.remove(STATE);
        }
    }
}
