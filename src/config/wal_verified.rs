//! Verification of WAL archives, in each copy of a repository.

use backup_core::physical::span;
use backup_core::repository::{BackupSummary, ClusterName};
use backup_core::wal::{Archive, SegmentName, WalName, WalReport};
use backup_core::{CancellationToken, Error, ErrorKind, Repository, Result};
use serde::Serialize;

use super::{Settings, WalListing};

/// The answer to `wal verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalVerified {
    /// Whether all is there, and undamaged.
    pub good: bool,
    /// What was read.
    pub report: WalReport,
    /// What the archive has.
    pub archive: WalListing,
}

/// What of an archive is read.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    All,
    Segments(&'a [SegmentName]),
}

/// How it is read.
#[derive(Clone, Copy)]
struct How<'a> {
    stored_only: bool,
    jobs: usize,
    cancel: &'a CancellationToken,
}

async fn read(archive: &Archive, wanted: Wanted<'_>, how: How<'_>) -> Result<WalReport> {
    let How { stored_only, jobs, cancel } = how;
    match wanted {
        Wanted::All => archive.verify(stored_only, jobs, cancel).await,
        Wanted::Segments(segments) => archive.verify_segments(segments, stored_only, jobs, cancel).await,
    }
}

impl Settings {
    /// Reads the archive of a cluster through, in each copy that has it.
    pub async fn verify_wal(
        &self,
        cluster: &ClusterName,
        stored_only: bool,
        cancel: &CancellationToken,
    ) -> Result<WalVerified> {
        let repository = self.open_repository().await?;
        let (listing, damaged) = self.list_sound_wal(&repository, cluster).await?;
        let Some(archive) = self.archive(&repository, cluster).await? else {
            return Err(Error::new(ErrorKind::BackupNotFound, format!("there is no WAL of {cluster}"))
                .with_hint("archive_command = 'pgark wal push %p' sends it"));
        };
        let how = How { stored_only, jobs: self.jobs.unwrap_or(2), cancel };
        let report = self.read_archive(&repository, cluster, &archive, Wanted::All, how).await?;
        // Whatever could not be listed is among what was found.
        let good = listing.is_good() && damaged.is_none() && report.findings.is_empty();
        Ok(WalVerified { good, report, archive: listing })
    }

    /// Reads the segments that backups need and do not have.
    pub(super) async fn verify_needed(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        backups: &[BackupSummary],
        stored_only: bool,
        cancel: &CancellationToken,
    ) -> Result<WalReport> {
        let mut report = WalReport::default();
        for span in backups.iter().filter_map(span).filter(|span| !span.wal.brings_wal) {
            let archive = self.archive_of(repository, cluster, span.system)?;
            let segments: Vec<_> = span.wal.segments().collect();
            let how = How { stored_only, jobs: self.jobs.unwrap_or(2), cancel };
            let wanted = Wanted::Segments(&segments);
            let found = self.read_archive(repository, cluster, &archive, wanted, how).await?;
            report.add(found);
        }
        Ok(report)
    }

    /// Reads an archive in each copy. That a copy lacks a segment which another one has is no damage: a sync brings it
    /// there.
    async fn read_archive(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        whole: &Archive,
        wanted: Wanted<'_>,
        how: How<'_>,
    ) -> Result<WalReport> {
        let places = repository.copies().await?;
        if places.is_empty() {
            return read(whole, wanted, how).await;
        }
        let (mut report, mut refused) = (WalReport::default(), Vec::new());
        let of_place = |place: &Repository| self.archive_of(place, cluster, whole.system());
        for place in &places {
            match read(&of_place(place)?, wanted, how).await {
                Ok(found) => report.add_copy(place.store().location(), found),
                Err(error) if error.kind() == ErrorKind::WrongKey => refused.push((place, error)),
                Err(error) => return Err(error),
            }
        }
        let all_refused = refused.len() == places.len();
        for (place, error) in refused {
            if all_refused {
                return Err(error);
            }
            // Its keys open in another copy.
            let archive = of_place(place)?;
            let mut found = read(&archive, wanted, How { stored_only: true, ..how }).await?;
            found.findings.extend(archive.unopened_keys().await?);
            report.add_copy(place.store().location(), found);
        }
        let mut findings = Vec::new();
        for finding in std::mem::take(&mut report.findings) {
            let lacked = match finding.object.parse::<WalName>() {
                Ok(name) if finding.missing => whole.stored(&name).await?.is_complete(),
                _ => false,
            };
            if !lacked {
                findings.push(finding);
            }
        }
        report.findings = findings;
        Ok(report)
    }
}
