//! Syncs and copies as frontends ask for them.

use std::sync::Arc;

use backup_core::copies::{CopyOptions, CopyReport, SyncOptions, SyncReport, copy, sync};
use backup_core::repository::{Catalog, ClusterName};
use backup_core::{CancellationToken, Encryptor, Error, ErrorKind, Result};

use super::Settings;

impl Settings {
    /// Fills in what the copies of the repository lack.
    pub async fn sync(&self, options: &SyncOptions, cancel: &CancellationToken) -> Result<SyncReport> {
        let repository = self.open_repository().await?;
        sync(&repository, options, cancel).await
    }

    /// Copies backups to the repository of other settings, which is made where its place is empty. `wanted` is `latest`,
    /// ids, or beginnings of ids; without it all. With `sealed_anew` the writers of `to` can read them, and no others.
    pub async fn copy(
        &self,
        to: &Settings,
        cluster: &ClusterName,
        wanted: Option<&[String]>,
        sealed_anew: bool,
        mut options: CopyOptions,
        cancel: &CancellationToken,
    ) -> Result<CopyReport> {
        if sealed_anew {
            let writer = to.writer()?.ok_or_else(|| {
                Error::new(ErrorKind::KeyMissing, "nobody is named who can read the copies").with_hint(
                    "give --recipient or --new-passphrase-file, or recipients in the configuration",
                )
            })?;
            options.readers = Some(Arc::new(writer));
            options.opener = self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
        }
        let from = self.open_repository().await?;
        let catalog = Catalog::load(&from, cluster).await?;
        let ids = match wanted {
            None => catalog.backups().map(|backup| backup.id.clone()).collect(),
            Some(wanted) => wanted
                .iter()
                .map(|one| catalog.find(one).map(|b| b.id.clone()))
                .collect::<Result<Vec<_>>>()?,
        };
        let (to, _) = to.init_repository().await?;
        copy(&from, &to, cluster, &ids, &options, cancel).await
    }
}
