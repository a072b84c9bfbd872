//! The second half of the demo: a whole cluster, its WAL, and recovery to just before a mistake.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgark::crypt::{Age, IdentityFile};
use pgark::physical::{BaseBackupDump, DataDirectory, Recovery, Target};
use pgark::postgres::{Session, TempServer};
use pgark::repository::ClusterName;
use pgark::state::HostState;
use pgark::wal::{Destination, Receiver};
use pgark::{
    Backup, CancellationToken, Encryptor, Error, ErrorKind, Event, Repository, Restore, Result, StoreOptions,
    open_store,
};
use secrecy::{ExposeSecret, SecretString};

use super::Steps;
use crate::render;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) async fn show(
    folder: &Path,
    server: &TempServer,
    identity: &SecretString,
    recipient: &str,
    steps: &mut Steps,
) -> Result<()> {
    let url = folder.join("backups").display().to_string();
    let (repository, _) = Repository::init(open_store(&url, &StoreOptions::default())?).await?;
    let cancel = CancellationToken::new();
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(BaseBackupDump::new(server.conninfo("postgres")?))
        .encryptor(Age::new().to(recipient)?)
        .build()?
        .run(&cancel)
        .await?;
    steps.done(&format!(
        "backed up the whole cluster, over the replication protocol: {} became {}",
        render::bytes(backup.raw_bytes),
        render::bytes(backup.backup.stored_bytes)
    ))?;

    let session = server.conninfo("shop")?.connect().await?;
    let (receiving, stop) = receive(folder, server, &repository, recipient)?;
    session.rows("UPDATE orders SET amount = amount + 1 WHERE id % 3 = 0").await?;
    let before = super::compared(&session).await?;
    let query = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let moment = session.value(query).await?.unwrap_or_default();
    session.rows("DROP TABLE orders CASCADE").await?;
    until(
        &session,
        "SELECT coalesce(bool_and(flush_lsn >= pg_current_wal_flush_lsn()), false) FROM pg_stat_replication",
    )
    .await?;
    stop.cancel();
    receiving.await.map_err(|e| Error::internal("the receiver is gone").caused_by(e))??;
    steps.done(
        "changed a third of the orders, dropped the table by mistake; every change was received and stored",
    )?;

    let command = restore_command(folder, server, &url, identity)?;
    let mut recovery = Recovery::default();
    recovery.target = Target::Time(moment.parse().map_err(|e| Error::internal("a time").caused_by(e))?);
    recovery.restore_command = Some(command);
    let data = folder.join("recovered");
    let record = repository.record(&ClusterName::default(), &backup.backup.id).await?;
    Restore::builder()
        .backup(repository, record)
        .encryptor(Age::new().identities(IdentityFile::parse(identity.expose_secret())?))
        .restorer(DataDirectory::at(&data).recovery(recovery))
        .build()?
        .run(&cancel)
        .await?;
    give(&data, server)?;
    let recovered = server.start_on(&data)?;
    let session = recovered.conninfo("shop")?.connect().await?;
    until(&session, "SELECT NOT pg_is_in_recovery()").await?;
    if super::compared(&session).await? != before {
        return Err(Error::new(
            ErrorKind::Integrity,
            "the recovered cluster is not what it was before the mistake",
        ));
    }
    steps.done(&format!("recovered the cluster to {moment}, just before the mistake: all orders are there"))
}

/// Streams WAL into the repository until it is stopped.
fn receive(
    folder: &Path,
    server: &TempServer,
    repository: &Repository,
    recipient: &str,
) -> Result<(tokio::task::JoinHandle<Result<()>>, CancellationToken)> {
    let cluster = ClusterName::default();
    let state = HostState::of(&folder.join("state"), repository, &cluster);
    let sealing: Arc<dyn Encryptor> = Arc::new(Age::new().to(recipient)?);
    let to = Destination::new(repository.clone(), cluster, state, Some(sealing));
    let receiver = Receiver::new(server.conninfo("postgres")?, to, Arc::new(|_: &Event| {}))
        .slot("pgark_demo", true)
        .every(Duration::from_secs(1));
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    Ok((tokio::spawn(async move { receiver.run(&cancel).await }), stop))
}

async fn until(session: &Session, query: &str) -> Result<()> {
    let waiting = async {
        while session.value(query).await?.as_deref() != Some("t") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| Err(Error::internal("the demo waits for something that does not happen")))
}

/// This program, which the server calls, and what it needs to read: as the server's user, where this process is root.
fn restore_command(folder: &Path, server: &TempServer, url: &str, identity: &SecretString) -> Result<String> {
    let failed = |e| Error::io("making files for the server", e);
    let (program, key) = (folder.join("pgark"), folder.join("key.txt"));
    let this = std::env::current_exe().map_err(failed)?;
    std::fs::copy(this, &program).map_err(failed)?;
    std::fs::write(&key, identity.expose_secret()).map_err(failed)?;
    for path in [&program, &key, &folder.join("backups")] {
        give(path, server)?;
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).map_err(failed)?;
    Ok(format!(
        "'{}' --repo '{url}' wal fetch --identity '{}' \"%f\" \"%p\"",
        program.display(),
        key.display()
    ))
}

/// Gives a folder, and all in it, to the server's user.
fn give(path: &Path, server: &TempServer) -> Result<()> {
    let given = || {
        let owner = std::fs::metadata(server.data())?;
        let mut waiting = vec![PathBuf::from(path)];
        while let Some(path) = waiting.pop() {
            lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
            if std::fs::symlink_metadata(&path)?.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    waiting.push(entry?.path());
                }
            }
        }
        Ok(())
    };
    given().map_err(|e| Error::io(format!("giving {} to the server's user", path.display()), e))
}
