//! What frontends do with settings, and what they answer. The JSON of every frontend is that of these answers.

use backup_core::repository::{BackupId, BackupSummary, Catalog, ClusterName};
use backup_core::{BackupBuilder, CancellationToken, Error, Result, Summary};
use serde::Serialize;

use super::Settings;

/// The answer to a backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BackedUp {
    /// The repository's place.
    pub repository: String,
    /// Whether it was made for this backup.
    pub new_repository: bool,
    /// The backup.
    pub backup: Summary,
}

/// The answer to a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its backups, oldest first.
    pub backups: Vec<BackupSummary>,
    /// Runs without a record: at work, or dead.
    pub unfinished: Vec<BackupId>,
}

impl Settings {
    /// Backs a database up: that of `db`, else the cluster's. The repository is made where its place is empty.
    /// `more` adds to the backup what the settings do not know: label, observer.
    pub async fn run_backup(
        &self,
        cluster: &ClusterName,
        db: Option<&str>,
        more: impl FnOnce(BackupBuilder) -> BackupBuilder,
        cancel: &CancellationToken,
    ) -> Result<BackedUp> {
        let connection = self.connection(cluster, db)?;
        let builder = more(self.backup(cluster.clone(), connection.clone())?);
        // What would fail in the first second shall not leave a repository behind.
        let dumper = self.dumper(connection);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::cancelled()),
            preview = dumper.preview() => preview?,
        };
        let (repository, new_repository) = self.init_repository().await?;
        let location = repository.store().location().to_owned();
        let backup = builder.repository(repository).build()?.run(cancel).await?;
        Ok(BackedUp { repository: location, new_repository, backup })
    }

    /// Lists the backups of a cluster.
    pub async fn list(&self, cluster: &ClusterName) -> Result<Listing> {
        let repository = self.open_repository().await?;
        let catalog = Catalog::load(&repository, cluster).await?;
        Ok(Listing {
            cluster: cluster.clone(),
            backups: catalog.backups().cloned().collect(),
            unfinished: catalog.unfinished().iter().map(|u| u.id.clone()).collect(),
        })
    }
}
