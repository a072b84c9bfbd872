//! A logical backup as the measure of a cluster that was restored from a physical one.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::contents::LogicalContents;
use super::load::read_toc;
use super::{KIND, Known, SnapshotContents};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{BackupId, BackupRecord, Repository};
use crate::restore::Restore;

/// What a logical backup knows of its databases: how many rows each table had in its snapshot, and their fingerprint.
#[derive(Debug, Clone)]
pub struct Reference {
    backup: BackupId,
    system: Option<u64>,
    /// The largest first.
    databases: Vec<Known>,
}

/// Reads the tables of contents, and no rows.
#[derive(Clone, Default)]
struct Opens(Arc<Mutex<Vec<Known>>>);

#[async_trait]
impl Restorer for Opens {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, _: &Ctx) -> Result<Map<String, Value>> {
        let contents = LogicalContents::from_contents(parts.contents())?.unwrap_or_default();
        for contents in contents.databases {
            let toc = Arc::new(read_toc(&*parts, &contents).await?);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Known { contents, toc });
        }
        Ok(Map::new())
    }
}

impl Reference {
    /// Opens a logical backup. Its rows are not read.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) for another kind of backup; [`Unsupported`](ErrorKind::Unsupported) for one that does
    /// not know its tables, as one of SQL; and those of keys and the store.
    pub async fn open(
        repository: &Repository,
        record: &BackupRecord,
        encryptor: Option<Arc<dyn Encryptor>>,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        if record.kind != KIND {
            let message = format!("backup {} is {}, and has no counts of rows", record.id, record.kind);
            return Err(
                Error::new(ErrorKind::Usage, message).with_hint("name a logical backup to compare with")
            );
        }
        let opens = Opens::default();
        let restore = Restore::builder()
            .backup(repository.clone(), record.clone())
            .restorer(opens.clone())
            .shared_encryptor(encryptor)
            .jobs(1)
            .build()?;
        restore
            .open_and_restore(cancel)
            .await
            .map_err(|e| e.doing(format!("opening backup {}", record.id)))?;
        let mut databases = std::mem::take(&mut *opens.0.lock().unwrap_or_else(PoisonError::into_inner));
        if databases.is_empty() {
            let message = format!("backup {} has no counts and fingerprints of its tables", record.id);
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("compare with another one: pgark backup makes it"));
        }
        databases.sort_by_key(|known| std::cmp::Reverse(known.contents.database_bytes));
        let system = record.source.get("system_identifier").and_then(Value::as_str);
        let system = system.and_then(|number| number.parse().ok());
        Ok(Self { backup: record.id.clone(), system, databases })
    }

    /// The backup.
    pub fn backup(&self) -> &BackupId {
        &self.backup
    }

    /// The system identifier of its cluster, where its role could read it.
    pub fn system(&self) -> Option<u64> {
        self.system
    }

    /// The snapshot of its database; of several that of the largest. Each has its own.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where the backup does not have it.
    pub fn snapshot(&self) -> Result<&SnapshotContents> {
        let snapshot = self.databases.first().and_then(|known| known.contents.snapshot.as_ref());
        snapshot.ok_or_else(|| {
            let message = format!("backup {} does not say where in the WAL its snapshot is", self.backup);
            Error::new(ErrorKind::Unsupported, message).with_hint(
                "an earlier version of pgark made it, or it was imported: say up to where to recover, with --to-time or \
                 --to-backup-end for example",
            )
        })
    }

    pub(crate) fn databases(&self) -> &[Known] {
        &self.databases
    }
}
