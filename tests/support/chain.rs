//! Chains of physical backups of a server.

use std::sync::atomic::{AtomicUsize, Ordering};

use pgark::physical::{BaseBackupDump, INCREMENTAL, Parent};
use pgark::postgres::{ConnInfo, Session, TempServer};
use pgark::repository::{BackupRecord, Catalog, ClusterName};
use pgark::state::HostState;
use pgark::{Backup, CancellationToken, MemoryTransport, Repository, Restore, Restorer, Result, Summary};

use super::{keys, memory_repository};

/// An encrypted repository, and a host's state. Every second backup is compressed otherwise and for other readers.
pub struct Home {
    pub repository: Repository,
    pub memory: MemoryTransport,
    pub folder: tempfile::TempDir,
    pub run: AtomicUsize,
    pub keys: Vec<(pgark::crypt::IdentityFile, String)>,
}

impl Home {
    pub async fn new() -> Self {
        let (repository, memory) = memory_repository().await;
        let keys = vec![keys(), keys()];
        Self { repository, memory, folder: tempfile::tempdir().unwrap(), run: AtomicUsize::new(0), keys }
    }

    pub fn state(&self) -> HostState {
        HostState::of(self.folder.path(), &self.repository, &ClusterName::default())
    }

    pub async fn run(&self, dumper: BaseBackupDump) -> Result<Summary> {
        let number = self.run.fetch_add(1, Ordering::Relaxed);
        let builder = Backup::builder().repository(self.repository.clone()).dumper(dumper);
        let age = pgark::crypt::Age::new().to(&self.keys[number % 2].1)?;
        let builder = if number.is_multiple_of(2) { builder } else { builder.compressor(pgark::codec::Lz4) };
        builder.encryptor(age).build()?.run(&CancellationToken::new()).await
    }

    pub async fn full(&self, connection: ConnInfo) -> Summary {
        let summary = self.run(BaseBackupDump::new(connection).state(self.state())).await.unwrap();
        assert_eq!((&summary.backup.parent, &summary.warnings[..]), (&None, &[][..]));
        summary
    }

    pub async fn catalog(&self) -> Catalog {
        Catalog::load(&self.repository, &ClusterName::default()).await.unwrap()
    }

    pub async fn backups(&self) -> Vec<BackupRecord> {
        let mut records = Vec::new();
        for backup in self.catalog().await.backups() {
            records.push(self.repository.record(&backup.cluster, &backup.id).await.unwrap());
        }
        records
    }

    pub async fn try_increment(&self, connection: ConnInfo, from: Option<&str>) -> Result<Summary> {
        let parent = Parent::choose(&self.catalog().await, &self.state(), from)?;
        self.run(BaseBackupDump::new(connection).state(self.state()).increment_of(parent)).await
    }

    /// One that builds on the newest.
    pub async fn increment(&self, connection: ConnInfo) -> Summary {
        let newest = self.backups().await.pop().unwrap();
        let summary = self.try_increment(connection, None).await.unwrap();
        assert_eq!(summary.warnings, [""; 0]);
        assert_eq!(summary.backup.parent.as_ref(), Some(&newest.id));
        summary
    }

    pub async fn try_increment_by_server(&self, connection: ConnInfo) -> Result<Summary> {
        let (catalog, state) = (self.catalog().await, self.state());
        let compared = Parent::choose(&catalog, &state, None)?;
        let summarized = Parent::choose_for_summaries(&catalog, &state, None)?;
        let dumper = BaseBackupDump::new(connection).state(state);
        self.run(dumper.increment_of(compared).from_summaries(summarized)).await
    }

    /// One that the server makes, and that builds on the newest.
    pub async fn increment_by_server(&self, connection: ConnInfo) -> Summary {
        let newest = self.backups().await.pop().unwrap();
        let summary = self.try_increment_by_server(connection).await.unwrap();
        assert_eq!(summary.warnings, [""; 0]);
        assert_eq!(summary.backup.parent.as_ref(), Some(&newest.id));
        assert!(self.kinds(&summary).await.contains(&INCREMENTAL.to_owned()), "{summary:?}");
        summary
    }

    /// Kinds of the parts, each once.
    pub async fn kinds(&self, backup: &Summary) -> Vec<String> {
        let record = self.repository.record(&backup.backup.cluster, &backup.backup.id).await.unwrap();
        let kinds: std::collections::BTreeSet<String> =
            record.parts.iter().map(|part| part.kind.clone()).filter(|kind| kind != "config").collect();
        kinds.into_iter().collect()
    }

    /// One that was asked for, became a full backup, and says so.
    pub async fn became_full(&self, connection: ConnInfo, why: &str) -> Summary {
        let summary = self.try_increment(connection, None).await.unwrap();
        assert_eq!(summary.backup.parent, None);
        assert!(summary.warnings.iter().any(|w| w.contains("full backup") && w.contains(why)), "{summary:?}");
        summary
    }

    /// Stored bytes of files, without WAL.
    pub async fn file_bytes(&self, backup: &Summary) -> u64 {
        let record = self.repository.record(&backup.backup.cluster, &backup.backup.id).await.unwrap();
        let files =
            record.parts.iter().filter(|part| matches!(part.kind.as_str(), "tar" | "delta" | "incremental"));
        files.flat_map(|part| &part.objects).map(|object| object.bytes).sum()
    }

    pub async fn is_smaller(&self, increment: &Summary, other: &Summary, times: u64) {
        let (increment, other) = (self.file_bytes(increment).await, self.file_bytes(other).await);
        assert!(increment * times < other, "{increment} of {other}");
    }

    pub async fn restore(&self, backup: &Summary, into: impl Restorer + 'static) -> Result<()> {
        let record = self.repository.record(&backup.backup.cluster, &backup.backup.id).await?;
        let age = self
            .keys
            .iter()
            .fold(pgark::crypt::Age::new(), |age, (identity, _)| age.identities(identity.clone()));
        Restore::builder()
            .backup(self.repository.clone(), record)
            .restorer(into)
            .encryptor(age)
            .build()?
            .run(&CancellationToken::new())
            .await
            .map(drop)
    }
}

pub fn of(server: &TempServer) -> ConnInfo {
    server.conninfo("postgres").unwrap()
}

/// Runs statements one by one, since some of them refuse company.
pub async fn all(session: &Session, statements: &[&str]) {
    for statement in statements {
        session.rows(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
}
