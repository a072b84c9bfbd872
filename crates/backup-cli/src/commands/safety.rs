//! A backup of a database before objects of it are dropped, and the way back.

use std::sync::Arc;

use pgark::config::{Settings, What};
use pgark::logical::Existing;
use pgark::postgres::ConnInfo;
use pgark::repository::{BackupRecord, ClusterName};
use pgark::{BackupBuilder, CancellationToken, Error, ErrorKind, Observer, Repository, Restore, Result};

/// A database, and its backup from before.
pub(super) struct Safety {
    settings: Settings,
    target: ConnInfo,
    repository: Repository,
    pub(super) record: BackupRecord,
}

impl Safety {
    /// Backs the database up into the repository of the backup that is to be restored.
    pub(super) async fn make(
        settings: &Settings,
        cluster: &ClusterName,
        (into, target): (&str, ConnInfo),
        restored: &BackupRecord,
        observer: Arc<dyn Observer>,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let mut settings = settings.clone();
        // Everything of it, where the restore goes, whatever the configuration says of the cluster.
        settings.clusters.clear();
        settings.via = target.via().cloned();
        if restored.encryption.is_some() && settings.writer()?.is_none() {
            let message =
                "the backup of the database before the restore would not be encrypted, as the others are";
            return Err(Error::new(ErrorKind::KeyMissing, message).with_hint(
                "name recipients in [encryption] of pgark.toml; or restore with --swap, or with --no-safety-backup",
            ));
        }
        let label = format!("before restore of {}", restored.id);
        let more = |builder: BackupBuilder| builder.label(label).observer(observer).keep_leftovers();
        let made = settings.run_backup(cluster, Some(into), What::default(), more, cancel).await;
        let made = made.map_err(|e| e.doing("backing the database up before the restore"))?;
        let repository = settings.open_repository().await?;
        let record = repository.record(cluster, &made.backup.backup.id).await?;
        Ok(Self { settings, target, repository, record })
    }

    /// Brings the database back after a failure.
    pub(super) async fn back(&self, error: Error, end_sessions: bool) -> Error {
        let id = &self.record.id;
        let load = self.settings.restorer(self.target.clone());
        let load = load.existing(Existing::Swap { drop_old: true }).end_sessions(end_sessions);
        let run = async {
            let mut builder =
                Restore::builder().backup(self.repository.clone(), self.record.clone()).restorer(load);
            if let Some(age) = self.settings.reader()? {
                builder = builder.encryptor(age);
            }
            // Whoever cancelled the restore wants the database back.
            builder.build()?.run(&CancellationToken::new()).await
        };
        match run.await {
            Ok(_) => error.doing(format!("the database was brought back from backup {id}, made before")),
            Err(e) => error.doing(format!(
                "the database is not as it was, and could not be brought back ({e}); pgark restore {id} --replace does it"
            )),
        }
    }
}
