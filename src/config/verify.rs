//! Verification of a cluster's backups as frontends ask for it.

use std::sync::Arc;
use std::time::Instant;

use backup_core::copies::{Repairs, repair};
use backup_core::physical::span;
use backup_core::repository::{BackupId, BackupRecord, BackupSummary, Catalog, ClusterName, Marks, layout};
use backup_core::verify::{
    Finding, Report, Sample, VerifyOptions, mark, unopened, unusable_copies, verify, verify_audit_log,
    verify_cluster,
};
use backup_core::wal::WalReport;
use backup_core::{CancellationToken, Encryptor, Error, ErrorKind, Event, Observer, Repository, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::resuming::Resuming;
use super::{Settings, WalVerified};

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
    /// What was read of WAL.
    fn of_wal(&self) -> impl Iterator<Item = &WalReport> {
        self.needed_wal.iter().chain(self.wal.as_ref().map(|wal| &wal.report))
    }

    /// Everything that is wrong.
    fn wrong(&self) -> Vec<Wrong<'_>> {
        let of_backup = |report: &Report, finding| Wrong { copy: report.copy.clone(), ..Wrong::of(finding) };
        let of_backups =
            self.backups.iter().flat_map(|report| report.findings.iter().map(|f| of_backup(report, f)));
        let others = self.others.iter().flat_map(|others| others.findings.iter().map(Wrong::of));
        let of_wal = self.of_wal().flat_map(|report| &report.findings).map(|finding| Wrong {
            copy: finding.copy.clone(),
            key: Some(&finding.object),
            missing: finding.missing,
            parent: None,
        });
        of_backups.chain(others).chain(of_wal).collect()
    }

    fn count(&mut self) {
        let number = |n: usize| n as u64;
        let wrong = self.wrong();
        let missing = number(wrong.iter().filter(|wrong| wrong.missing).count());
        let (damaged, good) = (number(wrong.len()) - missing, wrong.iter().all(|one| self.is_repaired(one)));
        (self.missing, self.damaged) = (missing, damaged);
        self.checked = number(self.backups.len());
        self.valid = number(self.backups.iter().filter(|report| report.is_good()).count());
        self.invalid = self.checked - self.valid;
        self.stored_bytes = self.backups.iter().map(|report| report.stored_bytes).sum::<u64>()
            + self.of_wal().map(|report| report.stored_bytes).sum::<u64>();
        // Gaps and conflicts are nothing that another copy could mend.
        self.good = good && self.wal.as_ref().is_none_or(|wal| wal.archive.is_good());
    }

    /// Whether something was put right meanwhile.
    fn is_repaired(&self, wrong: &Wrong<'_>) -> bool {
        let Some(repairs) = &self.repairs else { return false };
        let in_copy = |copy: &str| wrong.copy.as_deref().is_none_or(|of| of == copy);
        if wrong.key.is_some_and(|key| repairs.repaired.iter().any(|r| r.object == key && in_copy(&r.copy))) {
            return true;
        }
        // What a backup says of its parent is what the parent says of itself, where that was read as well.
        let parent = wrong.parent.and_then(|parent| {
            self.backups.iter().find(|report| report.id == *parent && report.copy == wrong.copy)
        });
        parent.is_some_and(|report| {
            let of_it = |finding| Wrong { copy: report.copy.clone(), ..Wrong::of(finding) };
            report.findings.iter().filter(|f| f.parent.is_none()).map(of_it).all(|one| self.is_repaired(&one))
        })
    }

    /// The objects to be replaced, by copy and key. Markers were before.
    fn to_repair(&self) -> Vec<(String, String)> {
        let named = |wrong: Wrong<'_>| Some((wrong.copy?, wrong.key?.to_owned()));
        let mut all: Vec<(String, String)> = self.wrong().into_iter().filter_map(named).collect();
        all.retain(|(_, key)| key != layout::REPOSITORY);
        all.sort();
        all.dedup();
        all
    }
}

/// Something that is wrong.
struct Wrong<'a> {
    /// In which of several copies.
    copy: Option<String>,
    key: Option<&'a str>,
    missing: bool,
    parent: Option<&'a BackupId>,
}

impl<'a> Wrong<'a> {
    fn of(finding: &'a Finding) -> Self {
        let Finding { key, missing, parent, copy, .. } = finding;
        Self { copy: copy.clone(), key: key.as_deref(), missing: *missing, parent: parent.as_ref() }
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
        let (repository, damaged_copies, repairs) =
            self.open_to_verify(cluster, wanted, observer.as_ref()).await?;
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
            repairs,
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
                Some(self.verify_needed(&repository, cluster, &chosen, wanted.stored, cancel).await?);
        }
        if wanted.all {
            let archive = match self.archive(&repository, cluster).await {
                // Whose WAL it is nobody knows then; the identity is among what is found.
                Err(error) if error.kind() == ErrorKind::Integrity => None,
                other => other?,
            };
            if archive.is_some() && self.list_sound_wal(&repository, cluster).await?.0.stored_bytes > 0 {
                verified.wal = Some(self.verify_wal(cluster, wanted.stored, cancel).await?);
            }
            let mut others = verify_others(&repository, &places, cluster).await?;
            others.findings.extend(damaged_copies);
            verified.others = Some(others);
        }
        resuming.end();
        verified.count();
        if wanted.repair {
            let damaged = verified.to_repair();
            let opener = self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
            let done = repair(&repository, cluster, &damaged, opener.as_ref()).await?;
            let repairs = verified.repairs.get_or_insert_default();
            repairs.repaired.extend(done.repaired);
            repairs.problems.extend(done.problems);
            verified.count();
        }
        verified.seconds = begun.elapsed().as_secs_f64();
        Ok(verified)
    }

    /// Opens the repository, and tells of copies that cannot be used. Those of which the marker is damaged are findings of
    /// `all`; where they are repaired they are verified like the others.
    async fn open_to_verify(
        &self,
        cluster: &ClusterName,
        wanted: &VerifyWanted,
        observer: Option<&Arc<dyn Observer>>,
    ) -> Result<(Repository, Vec<Finding>, Option<Repairs>)> {
        let mut repository = self.open_repository().await?;
        let (damaged, mut unusable) = unusable_copies(&repository).await?;
        let mut repairs = None;
        if !wanted.all {
            let words = |found: &Finding| {
                let copy = found.copy.as_deref().unwrap_or_default();
                format!("{copy}: its {} is damaged or missing, verify --all tells more", found.what)
            };
            unusable.extend(damaged.iter().map(words));
        } else if wanted.repair && !damaged.is_empty() {
            repairs = Some(repair(&repository, cluster, &named(&damaged), None).await?);
            repository = self.open_repository().await?;
        }
        for (copy, observer) in unusable.iter().zip(observer.iter().cycle()) {
            let message = format!("{copy}: nothing of it was verified");
            observer.event(&Event::Warning { message });
        }
        Ok((repository, damaged, repairs))
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
            return self
                .verify_one(repository, repository, cluster, backup, options, cancel)
                .await
                .map(|one| vec![one]);
        }
        let (mut reports, mut refused) = (Vec::new(), Vec::new());
        for place in places {
            match place.record(cluster, &backup.id).await {
                Err(error) if error.kind() == ErrorKind::BackupNotFound => continue,
                _ => {}
            }
            match self.verify_one(place, repository, cluster, backup, options, cancel).await {
                Ok(report) => reports.push((place, report)),
                // With the key of another copy it can be read.
                Err(error) if error.kind() == ErrorKind::WrongKey => refused.push((place, error)),
                Err(error) => return Err(error),
            }
        }
        for (place, error) in refused {
            if reports.is_empty() {
                return Err(error);
            }
            reports
                .push((place, self.verify_unopened(place, cluster, backup, options, error, cancel).await?));
        }
        let of_copy = |(place, mut report): (&Repository, Report)| {
            report.copy = Some(place.store().location().to_owned());
            report
        };
        Ok(reports.into_iter().map(of_copy).collect())
    }

    /// Verifies the stored bytes of a backup whose key opens in another copy, and not in this one.
    async fn verify_unopened(
        &self,
        place: &Repository,
        cluster: &ClusterName,
        backup: &BackupSummary,
        options: &VerifyOptions,
        error: Error,
        cancel: &CancellationToken,
    ) -> Result<Report> {
        let mut options = options.clone();
        options.stored_only = true;
        let record = place.record(cluster, &backup.id).await?;
        let mut report = verify(place, &record, options.clone(), cancel).await?;
        report.findings.push(unopened(place, &record, &error).await?);
        note_mark(place, &record, &report, options.observer.as_ref()).await;
        Ok(report)
    }

    /// `whole` is the repository of which this may be one copy.
    async fn verify_one(
        &self,
        repository: &Repository,
        whole: &Repository,
        cluster: &ClusterName,
        backup: &BackupSummary,
        options: &VerifyOptions,
        cancel: &CancellationToken,
    ) -> Result<Report> {
        let (record, damaged) = match repository.record(cluster, &backup.id).await {
            Ok(record) => (record, None),
            // The index knows it, or the list of folders: it was a backup. Another copy may have its record.
            Err(e) if matches!(e.kind(), ErrorKind::BackupNotFound | ErrorKind::Integrity) => {
                let damaged = Report::without_record(cluster, &backup.id, &e);
                match whole.record(cluster, &backup.id).await {
                    Ok(record) => (record, Some(damaged)),
                    Err(_) => return Ok(damaged),
                }
            }
            Err(e) => return Err(e),
        };
        let mut report = verify(repository, &record, options.clone(), cancel).await?;
        report.findings.extend(damaged.into_iter().flat_map(|damaged| damaged.findings));
        note_mark(repository, &record, &report, options.observer.as_ref()).await;
        Ok(report)
    }
}

/// By copy and key.
fn named(findings: &[Finding]) -> Vec<(String, String)> {
    findings.iter().filter_map(|found| Some((found.copy.clone()?, found.key.clone()?))).collect()
}

/// Marks a backup as good or damaged. Credentials that only read are no reason to fail.
async fn note_mark(
    repository: &Repository,
    record: &BackupRecord,
    report: &Report,
    observer: Option<&Arc<dyn Observer>>,
) {
    if let (Err(error), Some(observer)) = (mark(repository, record, report).await, observer) {
        let message = format!("{} was not marked as verified: {error}", record.id);
        observer.event(&Event::Warning { message });
    }
}

/// Verifies what is of no one backup, in each copy: a copy by itself is all that is left when the others are gone.
async fn verify_others(
    repository: &Repository,
    places: &[Repository],
    cluster: &ClusterName,
) -> Result<OthersVerified> {
    let (mut objects, mut findings) = (0, Vec::new());
    if places.is_empty() {
        (objects, findings) = verify_cluster(repository, cluster).await?;
    }
    for place in places {
        let (read, found) = verify_cluster(place, cluster).await?;
        objects += read;
        let copy = place.store().location();
        findings.extend(found.into_iter().map(|mut finding| {
            finding.copy = Some(copy.to_owned());
            finding
        }));
    }
    // A copy that lacks an entry gets it with a sync; the log is that of all of them.
    let of_log = verify_audit_log(repository, cluster, &findings).await?;
    findings.extend(of_log);
    Ok(OthersVerified { objects, findings })
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
