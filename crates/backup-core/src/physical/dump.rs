use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::configuration::{self, Saved};
use super::shards::Shards;
use super::tar::{Piece, Reader};
use super::{BASE, FILES, KIND, MANIFEST, wal};
use crate::dumper::{Ctx, Dumped, Dumper, PartSink, PartSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{
    BaseBackup, BaseBackupEnd, BaseBackupOptions, ConnInfo, Item, Lsn, Replication, WalPosition,
};

const UNKNOWN_CONFIGURATION: &str = "the configuration files are outside the data directory, and not in the \
    backup: the role may not know where they are (pg_read_all_settings)";

/// Backs up a whole cluster over the replication protocol: its files, and the WAL that was written meanwhile, so
/// that the backup restores alone. A standby can be backed up as well.
#[derive(Debug, Clone)]
pub struct BaseBackupDump {
    connection: ConnInfo,
    options: BaseBackupOptions,
}

/// What [`BaseBackupDump::preview`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PhysicalPreview {
    /// The server's version.
    pub server_version: String,
    /// Number of the cluster, as its server prints it.
    pub system_identifier: String,
    /// Estimate of the bytes before compression.
    pub raw_bytes: u64,
}

/// A tablespace of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TablespaceOf {
    pub(super) oid: u32,
    /// Where it was on the server's host.
    pub(super) location: String,
}

/// The cluster to back up, and connections to it.
struct Source {
    facts: Map<String, Value>,
    segment_bytes: u64,
    /// Configuration files outside of the data directory.
    configuration: Saved,
    /// Keeps WAL in a slot, and streams it.
    log: Replication,
    /// Sends the files.
    files: Replication,
}

impl BaseBackupDump {
    /// Backs up the cluster that `connection` reaches. Its database is only connected to.
    pub fn new(connection: ConnInfo) -> Self {
        let mut options = BaseBackupOptions::default();
        "pgark".clone_into(&mut options.label);
        options.fast_checkpoint = true;
        Self { connection, options }
    }

    /// Whether the checkpoint at the beginning is spread, as `checkpoint_completion_target` says, and not done at once.
    #[must_use]
    pub fn spread_checkpoint(mut self, spread: bool) -> Self {
        self.options.fast_checkpoint = !spread;
        self
    }

    /// Limits what the server sends, in KiB a second. The server takes 32 to 1,048,576.
    #[must_use]
    pub fn max_rate(mut self, kib: Option<u32>) -> Self {
        self.options.max_rate = kib;
        self
    }

    /// Looks at what a backup would meet, and changes nothing.
    ///
    /// # Errors
    /// Those that the backup would end with before it begins: no connection, no right to replicate.
    pub async fn preview(&self) -> Result<PhysicalPreview> {
        let session = self.connection.connect().await?;
        let (_, server_version) = session.server_version().await?;
        let system = session.replication().await?.identify().await?;
        // It needs rights on every database that a role for replication need not have.
        let size = "SELECT sum(pg_catalog.pg_database_size(oid))::bigint FROM pg_catalog.pg_database";
        let size = session.value(size).await.ok().flatten().and_then(|v| v.parse().ok());
        Ok(PhysicalPreview {
            server_version,
            system_identifier: system.identifier.to_string(),
            raw_bytes: size.unwrap_or(0),
        })
    }

    async fn connect(&self) -> Result<Source> {
        let session = self.connection.connect().await?;
        let (_, version) = session.server_version().await?;
        let (mut log, files) = (session.replication().await?, session.replication().await?);
        let system = log.identify().await?;
        let segment_bytes = log.setting("wal_segment_size").await?;
        let segment_bytes = bytes_of(&segment_bytes).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("wal_segment_size is {segment_bytes:?}"))
        })?;
        let mut facts = Map::new();
        facts.insert("server_version".to_owned(), version.into());
        facts.insert("system_identifier".to_owned(), system.identifier.to_string().into());
        facts.insert("wal_segment_bytes".to_owned(), segment_bytes.into());
        Ok(Source { facts, segment_bytes, configuration: configuration::read(&session).await, log, files })
    }
}

/// A size as `SHOW` prints it: `16MB`.
fn bytes_of(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &size[digits.len()..] {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| bytes.is_power_of_two())
}

#[async_trait]
impl Dumper for BaseBackupDump {
    fn kind(&self) -> &'static str {
        KIND
    }

    /// Files, those before them that are not stored yet, and WAL.
    fn max_open(&self, _: usize) -> usize {
        3
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped> {
        tokio::select! {
            biased;
            // The connections end with the future, and the slot with its connection.
            () = ctx.cancel.cancelled() => Err(Error::cancelled()),
            dumped = self.dump_all(parts, ctx) => dumped,
        }
    }
}

impl BaseBackupDump {
    async fn dump_all(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped> {
        let Source { mut facts, segment_bytes, mut configuration, mut log, mut files } =
            self.connect().await?;
        configuration.store(&parts).await?;
        // Before the backup begins, so that a checkpoint between cannot remove WAL.
        let slot = format!("pgark_{:016x}", rand_suffix());
        log.create_slot(&slot, true).await?;
        let backup = files.base_backup(&self.options).await?;
        let start = backup.start;
        let kib: u64 = backup.tablespaces.iter().map(|t| t.kib).sum();
        ctx.observer.event(&Event::Expected { raw_bytes: kib * 1024 });
        let tablespaces: Vec<TablespaceOf> = backup
            .tablespaces
            .iter()
            .filter_map(|t| Some(TablespaceOf { oid: t.oid?, location: t.location.clone() }))
            .collect();
        let (say_end, end) = watch::channel(None);
        let wal = wal::stream(&mut log, &slot, start, segment_bytes, end, Arc::clone(&parts));
        let files = async {
            let stored = store_files(backup, &parts).await?;
            say_end.send_replace(Some(stored.0.end.lsn));
            Ok(stored)
        };
        let ((end, has_configuration), ()) = tokio::try_join!(files, wal)?;

        let positions = [("start_lsn", start), ("end_lsn", end.end)];
        for (name, WalPosition { lsn, .. }) in positions {
            facts.insert(name.to_owned(), lsn.to_string().into());
        }
        facts.insert("timeline".to_owned(), start.timeline.into());
        facts.insert("checksum_failures".to_owned(), end.checksum_failures.is_some().into());
        let mut warnings = std::mem::take(&mut configuration.warnings);
        if !configuration.known && !has_configuration {
            warnings.push(UNKNOWN_CONFIGURATION.to_owned());
        }
        warnings.extend(end.warnings);
        warnings
            .extend(end.checksum_failures.map(|words| format!("damaged pages are in the backup: {words}")));
        for message in &warnings {
            ctx.observer.event(&Event::Warning { message: message.clone() });
        }
        let mut contents = Map::new();
        contents.insert("tablespaces".to_owned(), json!(tablespaces));
        contents.insert(configuration::CONTENTS.to_owned(), json!(configuration.outside));
        Ok(Dumped { facts, contents, warnings })
    }
}

fn rand_suffix() -> u64 {
    u64::try_from(ulid::Ulid::generate().0 & u128::from(u64::MAX)).unwrap_or_default()
}

/// Cuts what the server sends into parts. Says whether a configuration is among it.
async fn store_files(mut backup: BaseBackup<'_>, parts: &Arc<dyn PartSink>) -> Result<(BaseBackupEnd, bool)> {
    let mut archive: Option<(Reader, Shards)> = None;
    let mut has_configuration = false;
    let mut manifest = None;
    while let Some(item) = backup.next().await? {
        match item {
            Item::Archive { name, .. } => {
                close(&mut archive).await?;
                let name = name.strip_suffix(".tar").unwrap_or(&name);
                if name != BASE && name.parse::<u32>().is_err() {
                    return Err(Error::internal(format!("the server calls an archive {name:?}")));
                }
                archive = Some((Reader::default(), Shards::new(Arc::clone(parts), FILES, name).behind()));
            }
            Item::Manifest => {
                close(&mut archive).await?;
                let spec = PartSpec { kind: MANIFEST.to_owned(), name: "backup_manifest".to_owned() };
                manifest = Some(parts.open(spec).await?);
            }
            Item::Data(bytes) => match (&mut manifest, &mut archive) {
                (Some(manifest), _) => manifest.write(bytes).await?,
                (None, Some((reader, shards))) => has_configuration |= add(reader, shards, bytes).await?,
                (None, None) => return Err(Error::internal("the server sent bytes of no archive")),
            },
            Item::Progress(_) => {}
        }
    }
    let manifest = manifest.ok_or_else(|| Error::internal("the server sent no manifest"))?;
    manifest.finish().await?;
    Ok((backup.finish().await?, has_configuration))
}

/// Adds bytes of an archive. Says whether `postgresql.conf` begins in them.
async fn add(reader: &mut Reader, shards: &mut Shards, bytes: Bytes) -> Result<bool> {
    let mut has_configuration = false;
    reader.push(bytes);
    while let Some(piece) = reader.next()? {
        match piece {
            Piece::Member(header) => {
                has_configuration |= &*header.path_bytes() == b"postgresql.conf";
                shards.member(&header).await?;
            }
            Piece::Data(data) => shards.data(data).await?,
        }
    }
    Ok(has_configuration)
}

async fn close(archive: &mut Option<(Reader, Shards)>) -> Result<()> {
    let Some((reader, mut shards)) = archive.take() else { return Ok(()) };
    reader.finish()?;
    shards.close().await
}

/// The facts that a restore needs.
pub(super) fn position(facts: &Map<String, Value>) -> Result<(u32, Lsn)> {
    let timeline = facts.get("timeline").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let end = facts.get("end_lsn").and_then(Value::as_str).and_then(|lsn| lsn.parse().ok());
    timeline.zip(end).ok_or_else(|| {
        Error::new(ErrorKind::Integrity, "the record does not say which timeline the backup is of")
            .with_hint("restore another backup")
    })
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn sizes_are_those_of_show() {
        for (text, bytes) in
            [("16MB", Some(16 << 20)), ("1GB", Some(1 << 30)), ("1000kB", None), ("16", None), ("", None)]
        {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }
}
