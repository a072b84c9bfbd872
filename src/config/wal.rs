//! WAL archives as frontends work with them.

use std::sync::Arc;

use backup_core::physical::{Archived, Plan, Recovery, Target, span};
use backup_core::repository::{BackupSummary, Catalog, ClusterName};
use backup_core::wal::{Archive, Destination, Inventory, Reach, Run};
use backup_core::{Encryptor, Error, ErrorKind, Repository, Result};
use serde::Serialize;

use super::Settings;

/// What can be reached from a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Window {
    /// The backup.
    pub backup: String,
    /// How far recovery comes from it.
    #[serde(flatten)]
    pub reach: Reach,
}

/// One timeline of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Timeline {
    /// Its number.
    pub timeline: u32,
    /// The runs of segments that are there: between them some are missing.
    pub runs: Vec<Run>,
    /// Whether several servers began it.
    pub ambiguous: bool,
}

/// The answer to `wal list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalListing {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its system identifier; nothing where nothing is known of the cluster.
    pub system_identifier: Option<String>,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Its timelines.
    pub timelines: Vec<Timeline>,
    /// Segments of which several differ.
    pub conflicts: Vec<String>,
    /// What can be reached from each physical backup.
    pub windows: Vec<Window>,
}

impl WalListing {
    /// Whether no backup meets a gap, and nothing is in conflict.
    pub fn is_good(&self) -> bool {
        self.conflicts.is_empty()
            && self.windows.iter().all(|window| window.reach.gap.is_none())
            && self.timelines.iter().all(|timeline| !timeline.ambiguous)
    }
}

impl Settings {
    fn shared_reader(&self) -> Result<Option<Arc<dyn Encryptor>>> {
        Ok(self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>))
    }

    /// The WAL archive of what a cluster is now; nothing where nothing is known of it.
    pub async fn archive(&self, repository: &Repository, cluster: &ClusterName) -> Result<Option<Archive>> {
        Archive::current(repository, cluster, self.shared_reader()?).await
    }

    /// The WAL archive of the PostgreSQL cluster with a system identifier.
    pub fn archive_of(&self, repository: &Repository, cluster: &ClusterName, system: u64) -> Result<Archive> {
        Ok(Archive::of(repository, cluster, system, self.shared_reader()?))
    }

    /// Where the WAL of a cluster goes.
    pub fn wal_destination(&self, repository: Repository, cluster: ClusterName) -> Result<Destination> {
        let state = self.host_state(&repository, &cluster)?;
        let writer = self.writer()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
        Ok(Destination::new(repository, cluster, state, writer))
    }

    /// Lists the archive of a cluster.
    pub async fn list_wal(&self, cluster: &ClusterName) -> Result<WalListing> {
        match self.list_sound_wal(&self.open_repository().await?, cluster).await? {
            (_, Some(error)) => Err(error),
            (listing, None) => Ok(listing),
        }
    }

    /// The same without histories that are damaged; and what is wrong with one of these.
    pub(super) async fn list_sound_wal(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
    ) -> Result<(WalListing, Option<Error>)> {
        let mut listing = WalListing {
            cluster: cluster.clone(),
            system_identifier: None,
            stored_bytes: 0,
            timelines: Vec::new(),
            conflicts: Vec::new(),
            windows: Vec::new(),
        };
        let Some(archive) = self.archive(repository, cluster).await? else { return Ok((listing, None)) };
        let (inventory, damaged) = Inventory::load_sound(&archive).await?;
        listing.system_identifier = Some(archive.system().to_string());
        listing.stored_bytes = inventory.survey.stored_bytes;
        let timelines = inventory.timelines();
        listing.timelines = timelines
            .into_iter()
            .map(|timeline| Timeline {
                timeline,
                runs: inventory.survey.runs(timeline),
                ambiguous: inventory.ambiguous.contains(&timeline),
            })
            .collect();
        listing.conflicts = inventory.survey.conflicts.iter().map(ToString::to_string).collect();
        let catalog = Catalog::load(repository, cluster).await?;
        for backup in catalog.staying() {
            let Some(span) = span(backup).filter(|span| span.system == archive.system()) else { continue };
            for timeline in inventory.leaves(span.wal) {
                let reach = match inventory.history(timeline) {
                    Ok(history) => inventory.reach(span.wal, &history),
                    // It is listed as ambiguous.
                    Err(e) if e.kind() == ErrorKind::Conflict => continue,
                    // The backup has the history of its own.
                    Err(_) => inventory.reach(span.wal, &backup_core::wal::History::first(span.wal.timeline)),
                };
                listing.windows.push(Window { backup: backup.id.to_string(), reach });
            }
        }
        Ok((listing, damaged))
    }

    /// Chooses the backup to restore for a target among those given, oldest first, and looks whether the WAL leads
    /// there. True where there is an archive that recovery needs.
    pub async fn plan_recovery(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        backups: &[BackupSummary],
        recovery: &Recovery,
    ) -> Result<(Plan, bool)> {
        let Some(newest) = backups.iter().rev().find_map(span) else {
            return Plan::make(backups, None, recovery).map(|plan| (plan, false));
        };
        let archive = self.archive_of(repository, cluster, newest.system)?;
        let inventory = Inventory::load(&archive).await?;
        if inventory.survey.segments() == 0 {
            return Plan::make(backups, None, recovery).map(|plan| (plan, false));
        }
        let points = match recovery.target {
            Target::Name(_) => archive.points().await?,
            _ => Vec::new(),
        };
        let archived = Archived { inventory: &inventory, points: &points };
        Plan::make(backups, Some(&archived), recovery).map(|plan| (plan, true))
    }
}
