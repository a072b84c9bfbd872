//! Physical backups of throwaway servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pgark::event::Silent;
use pgark::physical::{BaseBackupDump, DataDirectory};
use pgark::postgres::{ConnInfo, TempServer};
use pgark::repository::BackupRecord;
use pgark::{Backup, CancellationToken, Observer, Repository, Restore, Restored, Result};

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
        self.restored(into).await.map(drop)
    }

    /// What the restore told.
    pub async fn restored(&self, into: DataDirectory) -> Result<Restored> {
        self.watched(into, Arc::new(Silent), &CancellationToken::new()).await
    }

    /// The same, with somebody who watches it, and may cancel it.
    pub async fn watched(
        &self,
        into: DataDirectory,
        observer: Arc<dyn Observer>,
        cancel: &CancellationToken,
    ) -> Result<Restored> {
        Restore::builder()
            .backup(self.repository.clone(), self.record.clone())
            .restorer(into)
            .encryptor(pgark::crypt::Age::new().identities(self.identity.clone()))
            .observer(observer)
            .build()?
            .run(cancel)
            .await
    }
}

/// Everything below a folder: mode, and contents or what a link leads to.
pub type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

pub fn tree(folder: &Path) -> Tree {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::MetadataExt;
    let (mut tree, mut folders) = (Tree::new(), vec![PathBuf::new()]);
    while let Some(below) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&below)).unwrap() {
            let entry = entry.unwrap();
            let (name, found) = (below.join(entry.file_name()), entry.metadata().unwrap());
            let contents = if found.is_symlink() {
                std::fs::read_link(entry.path()).unwrap().into_os_string().into_vec()
            } else if found.is_dir() {
                folders.push(name.clone());
                Vec::new()
            } else {
                std::fs::read(entry.path()).unwrap()
            };
            tree.insert(name, (found.mode(), contents));
        }
    }
    tree
}

/// Says in what two folders differ, without their contents.
pub fn assert_same(found: &Tree, wanted: &Tree) {
    let names = |a: &Tree, b: &Tree| -> Vec<PathBuf> {
        a.iter().filter(|(name, entry)| b.get(*name) != Some(entry)).map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(
        (names(found, wanted), names(wanted, found)),
        (vec![], vec![]),
        "other files, and missing ones"
    );
}

/// The restored files are those of the server's manifest, and nothing else.
pub fn verified(server: &TempServer, data: &Path) {
    let ignored = ["backup_label.old", "postgresql.auto.conf", "recovery.signal", "pg_wal", "tablespace_map"];
    let ignored = ignored.map(|name| format!("--ignore={name}"));
    let data = data.display().to_string();
    let mut args = vec!["--no-parse-wal", "--quiet", &data];
    args.extend(ignored.iter().map(String::as_str));
    let output = Command::new(server.bin().join("pg_verifybackup")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A folder beside the server's data, which belongs to it.
pub fn folder_for(server: &TempServer, name: &str) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let path = server.folder().join(name);
    std::fs::create_dir(&path).unwrap();
    let owner = std::fs::metadata(server.data()).unwrap();
    std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    path
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
