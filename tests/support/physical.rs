//! Physical backups of throwaway servers.

use std::path::Path;
use std::process::Command;

use pgark::physical::{BaseBackupDump, DataDirectory};
use pgark::postgres::{ConnInfo, TempServer};
use pgark::repository::BackupRecord;
use pgark::{Backup, CancellationToken, Repository, Restore, Result};

use super::{keys, memory_repository};

/// A repository in memory, and one encrypted physical backup in it.
pub struct BackedUp {
    pub repository: Repository,
    pub record: BackupRecord,
    /// What the run told.
    pub warnings: Vec<String>,
    identity: pgark::crypt::IdentityFile,
}

pub async fn back_up(server: &TempServer) -> BackedUp {
    back_up_from(server.conninfo("postgres").unwrap()).await
}

pub async fn back_up_from(connection: ConnInfo) -> BackedUp {
    let (repository, _) = memory_repository().await;
    let (identity, recipient) = keys();
    let summary = Backup::builder()
        .repository(repository.clone())
        .dumper(BaseBackupDump::new(connection))
        .encryptor(pgark::crypt::Age::new().to(&recipient).unwrap())
        .build()
        .unwrap()
        .run(&CancellationToken::new())
        .await
        .unwrap();
    let record = repository.record(&summary.backup.cluster, &summary.backup.id).await.unwrap();
    BackedUp { repository, record, warnings: summary.warnings, identity }
}

impl BackedUp {
    pub async fn restore(&self, into: DataDirectory) -> Result<()> {
        Restore::builder()
            .backup(self.repository.clone(), self.record.clone())
            .restorer(into)
            .encryptor(pgark::crypt::Age::new().identities(self.identity.clone()))
            .build()?
            .run(&CancellationToken::new())
            .await
            .map(drop)
    }
}

/// Runs a server's program as the user that the server belongs to.
pub fn as_owner(server: &TempServer, program: &str, args: &[&str]) {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(server.bin().join(program));
    let owner = server.data().metadata().unwrap();
    if rustix::process::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let log = server.folder().join("pg_ctl.log");
    let out = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
    let status = command.args(args).current_dir("/").stdout(out()).stderr(out()).status().unwrap();
    assert!(status.success(), "{program}: {}", std::fs::read_to_string(&log).unwrap());
}

/// A server with data checksums on.
pub fn server_with_checksums() -> TempServer {
    let server = super::server();
    server.stop("fast").unwrap();
    as_owner(&server, "pg_checksums", &["--enable", "-D", &server.data().display().to_string()]);
    server.start_again().unwrap();
    server
}

/// Starts a restored copy as a standby of the server: a replica is a copy that is told to follow.
pub fn start_following(primary: &TempServer, copy: &Path) -> TempServer {
    std::fs::rename(copy.join("recovery.signal"), copy.join("standby.signal")).unwrap();
    let settings = copy.join("postgresql.auto.conf");
    let follow = format!("primary_conninfo = '{}'\n", primary.url("replication"));
    std::fs::write(&settings, std::fs::read_to_string(&settings).unwrap() + &follow).unwrap();
    primary.start_on(copy).unwrap()
}
