//! What frontends do with settings, and what they answer. The JSON of every frontend is that of these answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::logical::{Import, Selection};
use backup_core::physical::{BaseBackupDump, Parent, PhysicalPreview};
use backup_core::postgres::ConnInfo;
use backup_core::repository::{BackupId, BackupSummary, Catalog, ClusterName};
use backup_core::wal::Archive;
use backup_core::{Backup, BackupBuilder, CancellationToken, Error, Repository, Result, Summary};
use jiff::Timestamp;
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
    /// Where the repository has several copies, for each backup that not all of those have that answer the places of those
    /// that do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_everywhere: Option<BTreeMap<BackupId, Vec<String>>>,
    /// Backups that are pinned.
    pub pinned: Vec<BackupId>,
    /// Backups, and what is left of some, that a prune is about to remove, or did not remove to the end.
    pub being_removed: Vec<BackupId>,
}

/// What is backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// One database, as SQL and rows: what is selected of it. Where that is everything, the selection of the
    /// configuration counts.
    Database(Selection),
    /// All databases of a server, as SQL and rows, with roles and tablespaces.
    Server(ServerOptions),
    /// The files of the whole cluster.
    Cluster(ClusterOptions),
}

impl Default for What {
    fn default() -> Self {
        Self::Database(Selection::default())
    }
}

/// How the databases of a server are taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Without the passwords of roles.
    pub no_role_passwords: bool,
}

/// How the files of a cluster are taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// What the server sends at most, in KiB a second.
    pub max_rate: Option<u32>,
    /// Spreads the checkpoint at the beginning, and does not do it at once.
    pub spread_checkpoint: bool,
    /// Stores only what differs from an earlier backup.
    pub increment: Option<IncrementOf>,
    /// Has the server find out what differs, where its version can be relied on. Only with an increment.
    pub server_summaries: bool,
    /// Where the WAL is that the files need.
    pub wal: WalOf,
}

/// Where the WAL of a physical backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WalOf {
    /// In the backup, which restores alone.
    #[default]
    Backup,
    /// In the cluster's WAL archive alone.
    Archive {
        /// How long the backup waits at its end until the archive has it.
        wait: Duration,
    },
}

/// What an increment builds on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum IncrementOf {
    /// The newest physical backup of which this host has the block map.
    #[default]
    Newest,
    /// `latest`, an id, or the beginning of one.
    Backup(String),
}

impl ClusterOptions {
    /// What takes them.
    pub fn dumper(&self, connection: ConnInfo) -> BaseBackupDump {
        let dumper =
            BaseBackupDump::new(connection).max_rate(self.max_rate).spread_checkpoint(self.spread_checkpoint);
        match self.increment {
            None => dumper,
            Some(_) => dumper.increment_of(Parent::None("no backup was chosen that it builds on".to_owned())),
        }
    }
}

impl Settings {
    /// Backs up what `db` reaches, else the cluster's connection. The repository is made where its place is empty.
    /// `more` adds to the backup what the settings do not know: label, observer.
    pub async fn run_backup(
        &self,
        cluster: &ClusterName,
        db: Option<&str>,
        what: What,
        more: impl FnOnce(BackupBuilder) -> BackupBuilder,
        cancel: &CancellationToken,
    ) -> Result<BackedUp> {
        let connection = self.connection(cluster, db)?;
        let mut builder = more(self.backup(cluster.clone(), connection.clone(), &what)?);
        // What would fail in the first second shall not leave a repository behind.
        let preview = async {
            match &what {
                What::Database(_) => self.dumper(connection.clone()).preview().await.map(|_| None),
                What::Server(options) => {
                    self.server_dumper(connection.clone(), options).preview().await.map(|_| None)
                }
                What::Cluster(options) => self.preview_cluster(cluster, options, &connection).await.map(Some),
            }
        };
        let preview = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::cancelled()),
            preview = preview => preview?,
        };
        let (repository, new_repository) = self.init_repository().await?;
        let location = repository.store().location().to_owned();
        if let (What::Cluster(options), Some(preview)) = (&what, preview) {
            let dumper = with_wal(options.dumper(connection), options, &repository, cluster, &preview)?;
            builder = builder.dumper(self.with_state(dumper, options, &repository, cluster).await?);
        }
        let backup = builder.repository(repository).build()?.run(cancel).await?;
        Ok(BackedUp { repository: location, new_repository, backup })
    }

    /// Makes a file of `pg_dump` a backup. The repository is made where its place is empty.
    pub async fn run_import(
        &self,
        cluster: &ClusterName,
        file: &Path,
        more: impl FnOnce(BackupBuilder) -> BackupBuilder,
        cancel: &CancellationToken,
    ) -> Result<BackedUp> {
        let import = Import::new(file);
        // A file that is none shall not leave a repository behind.
        import.format().map_err(|e| e.doing(format!("importing {}", file.display())))?;
        let builder = more(self.completed(Backup::builder().dumper(import), cluster.clone())?);
        let (repository, new_repository) = self.init_repository().await?;
        let location = repository.store().location().to_owned();
        let backup = builder.repository(repository).build()?.run(cancel).await?;
        Ok(BackedUp { repository: location, new_repository, backup })
    }

    /// Looks at what a backup of a cluster's files would meet, and changes nothing. Where its WAL is to be in the
    /// archive, there must be one.
    pub async fn preview_cluster(
        &self,
        cluster: &ClusterName,
        options: &ClusterOptions,
        connection: &ConnInfo,
    ) -> Result<PhysicalPreview> {
        let preview = options.dumper(connection.clone()).preview().await?;
        if options.wal == WalOf::Backup {
            return Ok(preview);
        }
        let repository = self
            .open_repository()
            .await
            .map_err(|e| e.doing("looking for the WAL archive of the cluster"))?;
        let dumper = options.dumper(connection.clone());
        with_wal(dumper, options, &repository, cluster, &preview)?.preview().await
    }

    /// Adds what this host keeps of earlier backups, and the parent of an increment.
    async fn with_state(
        &self,
        dumper: BaseBackupDump,
        options: &ClusterOptions,
        repository: &Repository,
        cluster: &ClusterName,
    ) -> Result<BaseBackupDump> {
        let state = match (self.host_state(repository, cluster), &options.increment) {
            (Ok(state), _) => state,
            // Without a folder for it a full backup does without.
            (Err(_), None) => return Ok(dumper),
            (Err(error), Some(_)) => return Err(error),
        };
        let from = match &options.increment {
            None => return Ok(dumper.state(state)),
            Some(IncrementOf::Newest) => None,
            Some(IncrementOf::Backup(wanted)) => Some(wanted.as_str()),
        };
        let catalog = Catalog::load(repository, cluster).await?;
        let parent = Parent::choose(&catalog, &state, from)?;
        let dumper = if options.server_summaries {
            dumper.from_summaries(Parent::choose_for_summaries(&catalog, &state, from)?)
        } else {
            dumper
        };
        Ok(dumper.state(state).increment_of(parent))
    }

    /// Lists the backups of a cluster.
    pub async fn list(&self, cluster: &ClusterName) -> Result<Listing> {
        let repository = self.open_repository().await?;
        let catalog = Catalog::load(&repository, cluster).await?;
        let ids = |holds: &dyn Fn(&BackupId) -> bool| -> Vec<BackupId> {
            catalog.backups().map(|backup| &backup.id).filter(|id| holds(id)).cloned().collect()
        };
        let now = Timestamp::now();
        let mut being_removed = ids(&|id| catalog.is_being_removed(id));
        being_removed.extend(catalog.half_removed().iter().cloned());
        Ok(Listing {
            cluster: cluster.clone(),
            backups: catalog.backups().cloned().collect(),
            unfinished: catalog.unfinished().iter().map(|u| u.id.clone()).collect(),
            not_everywhere: catalog.not_everywhere(),
            pinned: ids(&|id| catalog.marks().pin(id, now).is_some()),
            being_removed,
        })
    }
}

/// Adds the archive that has the WAL of the cluster that a preview saw.
fn with_wal(
    dumper: BaseBackupDump,
    options: &ClusterOptions,
    repository: &Repository,
    cluster: &ClusterName,
    preview: &PhysicalPreview,
) -> Result<BaseBackupDump> {
    let WalOf::Archive { wait } = options.wal else { return Ok(dumper) };
    let system = preview.system_identifier.parse();
    let system = system.map_err(|e| Error::internal("a system identifier is a number").caused_by(e))?;
    let archive = Archive::of(repository, cluster, system, None);
    Ok(dumper.wal_from_archive(Arc::new(archive), wait))
}
