//! What a prune looks at. The number of its requests grows with pages of lists, not with backups.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::is_physical;
use crate::error::Result;
use crate::repository::{
    BackupId, BackupSummary, Catalog, ClusterName, Repository, State, announcement, layout,
};
use crate::retention::Known;
use crate::store::{Entry, list_sorted};

/// How many requests are made at once.
const READS: usize = 16;

/// The backups, the runs at work and the archives, at one time.
pub(super) struct Gathered {
    pub(super) catalog: Catalog,
    /// Oldest first.
    pub(super) backups: Vec<BackupSummary>,
    /// Runs at work, and what they build on.
    running: Vec<(BackupId, Option<BackupId>)>,
    /// What PostgreSQL cluster the name stands for now.
    pub(super) system: Option<u64>,
    /// The systems that there is WAL of.
    pub(super) archives: BTreeSet<u64>,
}

impl Gathered {
    pub(super) async fn load(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let mut catalog = Catalog::load_whole(repository, cluster).await?;
        forget_removed(repository, &mut catalog).await?;
        let unfinished: Vec<BackupId> = catalog.unfinished().iter().map(|run| run.id.clone()).collect();
        let running = futures::stream::iter(unfinished)
            .map(|id| async move {
                let parent = announcement(repository, cluster, &id).await?.and_then(|said| said.parent);
                Ok::<_, crate::Error>((id, parent))
            })
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        let identity = repository.identity(cluster).await?;
        let system = identity.and_then(|identity| identity.system_identifier.parse().ok());
        let folders = list_sorted(&**repository.store(), &layout::wal_root(cluster), None).await?;
        let folders = folders.iter().filter(|entry| matches!(entry, Entry::Folder(_)));
        Ok(Self {
            backups: catalog.backups().cloned().collect(),
            catalog,
            running,
            system,
            archives: folders.filter_map(|entry| entry.name().parse().ok()).collect(),
        })
    }

    /// What is known beside the records.
    pub(super) fn known(&self, now: Timestamp, spared: &BTreeSet<BackupId>) -> Known {
        let mut known = Known::of(self.catalog.marks(), &self.running, now);
        known.spared.clone_from(spared);
        known
    }

    /// Runs at work that may need WAL.
    pub(super) fn running_physical(&self) -> Vec<&BackupId> {
        self.running.iter().map(|(id, _)| id).filter(|id| is_physical(id)).collect()
    }
}

/// An interrupted removal took records away that the index still knows.
pub(super) async fn forget_removed(repository: &Repository, catalog: &mut Catalog) -> Result<()> {
    let cluster = catalog.cluster().clone();
    let marked: Vec<BackupId> =
        catalog.backups().map(|b| &b.id).filter(|id| catalog.is_being_removed(id)).cloned().collect();
    let (repository, cluster) = (repository, &cluster);
    let gone: Vec<Option<BackupId>> = futures::stream::iter(marked)
        .map(|id| async move {
            let record = repository.record_if_there(cluster, &id).await?;
            let whole = record.is_some_and(|record| record.state == State::Committed);
            Ok::<_, crate::Error>((!whole).then_some(id))
        })
        .buffer_unordered(READS)
        .try_collect()
        .await?;
    gone.into_iter().flatten().for_each(|id| catalog.forget(&id));
    Ok(())
}
