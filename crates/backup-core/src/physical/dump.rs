use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::archived::{self, FromArchive};
use super::configuration::{self, Saved};
use super::increment::{
    Coming, Copied, Intake, ManifestCopy, Manifests, Parent, Plan, Taken, begin_from_summaries,
};
use super::{BASE, KIND, MANIFEST, wal};
use crate::dumper::{AfterCommit, Ctx, Dumped, Dumper, PartSink, PartSpec, SourceContents};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{
    BaseBackup, BaseBackupEnd, BaseBackupOptions, ConnInfo, Item, Lsn, Replication, Session, WalPosition,
    major_of,
};
use crate::repository::{BackupId, BackupSummary};
use crate::state::HostState;
use crate::wal::{ArchivedWal, BackupSpan};

/// What a block map takes at most, for 100,000 files: batches of the stream on their way.
const MAP_BYTES: usize = 4 << 20;
/// What an increment takes beside: the index of the parent's map, the list of files, and two windows.
const INCREMENT_BYTES: usize = 20 << 20;

/// The first major version that makes increments itself.
const OLDEST_WITH_SUMMARIES: u32 = 17;

const UNKNOWN_CONFIGURATION: &str = "the configuration files are outside the data directory, and not in the \
    backup: the role may not know where they are (pg_read_all_settings)";

/// Backs up a whole cluster over the replication protocol: its files, and the WAL that was written meanwhile, so
/// that the backup restores alone, unless an archive [has it](Self::wal_from_archive). A standby can be backed up as well.
#[derive(Debug, Clone)]
pub struct BaseBackupDump {
    connection: ConnInfo,
    options: BaseBackupOptions,
    state: Option<HostState>,
    parent: Option<Parent>,
    summaries: Option<Parent>,
    from_archive: Option<FromArchive>,
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

/// Where a physical backup stands among the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// The system identifier of its cluster.
    pub system: u64,
    /// When it ended, by the server's clock: no earlier moment can be reached from it.
    pub ended: Timestamp,
    /// The WAL from its beginning to its end.
    pub wal: BackupSpan,
}

/// The cluster to back up, and connections to it.
struct Source {
    facts: Map<String, Value>,
    timeline: u32,
    segment_bytes: u64,
    /// Configuration files outside of the data directory.
    configuration: Saved,
    /// Keeps WAL in a slot, and streams it.
    log: Replication,
    /// Sends the files.
    files: Replication,
    /// Tells the time.
    session: Session,
}

impl BaseBackupDump {
    /// Backs up the cluster that `connection` reaches. Its database is only connected to.
    pub fn new(connection: ConnInfo) -> Self {
        let mut options = BaseBackupOptions::default();
        "pgark".clone_into(&mut options.label);
        options.fast_checkpoint = true;
        Self { connection, options, state: None, parent: None, summaries: None, from_archive: None }
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

    /// Keeps a block map of the backup on this host, so that increments can build on it. Where it cannot be kept,
    /// a warning says so.
    #[must_use]
    pub fn state(mut self, state: HostState) -> Self {
        self.state = Some(state);
        self
    }

    /// Stores what differs from a parent, of which [`state`](Self::state) has the block map. Where that is not to be done, the
    /// backup is a full one, and a warning says why.
    #[must_use]
    pub fn increment_of(mut self, parent: Parent) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Has the server find out what changed since a parent, from its WAL summaries: less is read and sent than where
    /// contents are compared. [`state`](Self::state) has the parent's manifest. Where it is not to be had, because of the
    /// version (17.11, 18.6 or later) for example, a warning says why, and [`increment_of`](Self::increment_of) says what is done.
    #[must_use]
    pub fn from_summaries(mut self, parent: Parent) -> Self {
        self.summaries = Some(parent);
        self
    }

    /// Stores no WAL with the backup: it ends when the archive has all that it needs, and fails where that is not so
    /// after `wait`. It does not restore alone. Not for a standby, which does not end its last segment.
    #[must_use]
    pub fn wal_from_archive(mut self, archive: Arc<dyn ArchivedWal>, wait: Duration) -> Self {
        self.from_archive = Some(FromArchive { archive, wait });
        self
    }

    /// Looks at what a backup would meet, and changes nothing.
    ///
    /// # Errors
    /// Those that the backup would end with before it begins: no connection, no right to replicate, no WAL archive
    /// where it needs one.
    pub async fn preview(&self) -> Result<PhysicalPreview> {
        let session = self.connection.connect().await?;
        let (_, server_version) = session.server_version().await?;
        let system = session.replication().await?.identify().await?;
        if let Some(from_archive) = &self.from_archive {
            from_archive.check(system.identifier, &session).await?;
        }
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
        if let Some(from_archive) = &self.from_archive {
            from_archive.check(system.identifier, &session).await?;
        }
        let segment_bytes = log.setting("wal_segment_size").await?;
        let segment_bytes = size_of_setting(&segment_bytes)?;
        let mut facts = Map::new();
        facts.insert("server_version".to_owned(), version.into());
        facts.insert("system_identifier".to_owned(), system.identifier.to_string().into());
        facts.insert("wal_segment_bytes".to_owned(), segment_bytes.into());
        let block_bytes: Option<u32> = log.setting("block_size").await?.parse().ok();
        facts.insert("block_bytes".to_owned(), json!(block_bytes));
        facts.insert(
            "relation_segment_bytes".to_owned(),
            json!(bytes_of(&log.setting("segment_size").await?)),
        );
        facts.insert("data_checksums".to_owned(), log.setting("data_checksums").await?.into());
        Ok(Source {
            facts,
            timeline: system.timeline,
            segment_bytes,
            configuration: configuration::read(&session).await,
            log,
            files,
            session,
        })
    }
}

/// The size of WAL segments, as `SHOW` prints it.
pub(crate) fn size_of_setting(size: &str) -> Result<u64> {
    bytes_of(size).ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("wal_segment_size is {size:?}")))
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

    fn parent(&self) -> Option<BackupId> {
        [&self.summaries, &self.parent].into_iter().flatten().find_map(|parent| match parent {
            Parent::Backup(parent) => Some(parent.id.clone()),
            Parent::None(_) => None,
        })
    }

    fn working_bytes(&self) -> usize {
        let increment = self.parent.is_some() || self.summaries.is_some();
        MAP_BYTES + if increment { INCREMENT_BYTES } else { 0 }
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
        let Source { mut facts, timeline, segment_bytes, mut configuration, mut log, files, session } =
            self.connect().await?;
        configuration.store(&parts).await?;
        let slot = format!("pgark_{:016x}", rand_suffix());
        if self.from_archive.is_none() {
            // Before the backup begins, so that a checkpoint between cannot remove WAL.
            log.create_slot(&slot, true).await?;
        }
        let Begun { backup, coming, plan } = self.begin(&session, files, timeline, &facts, ctx).await?;
        let start = backup.start;
        if matches!(&coming, Coming::Everything(comparer) if !comparer.as_ref().is_some_and(|comparer| comparer.is_increment()))
        {
            let kib: u64 = backup.tablespaces.iter().map(|t| t.kib).sum();
            ctx.observer.event(&Event::Expected { raw_bytes: kib * 1024 });
        }
        // Before the hours that a full backup may take.
        for message in plan.warnings() {
            ctx.observer.event(&Event::Warning { message: message.clone() });
        }
        let tablespaces: Vec<TablespaceOf> = backup
            .tablespaces
            .iter()
            .filter_map(|t| Some(TablespaceOf { oid: t.oid?, location: t.location.clone() }))
            .collect();
        let (say_end, end) = watch::channel(None);
        let wal = async {
            if self.from_archive.is_some() {
                return wal::store_history(&mut log, start.timeline, Arc::clone(&parts)).await;
            }
            wal::stream(&mut log, &slot, start, segment_bytes, end, Arc::clone(&parts)).await
        };
        let files = async {
            let copy = self.copy_of_manifest(&facts, ctx);
            let stored = Box::pin(store_files(backup, &parts, coming, copy)).await?;
            say_end.send_replace(Some(stored.end.end.lsn));
            Ok(stored)
        };
        let (stored, ()) = tokio::try_join!(files, wal)?;
        let StoredFiles { end, taken: Taken { made, has_configuration }, manifest } = stored;

        let positions = [("start_lsn", start), ("end_lsn", end.end)];
        for (name, WalPosition { lsn, .. }) in positions {
            facts.insert(name.to_owned(), lsn.to_string().into());
        }
        // Commits that are later than this are not in the backup.
        let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        facts.insert("end_time".to_owned(), session.value(now).await?.into());
        facts.insert("timeline".to_owned(), start.timeline.into());
        if let Some(from_archive) = &self.from_archive {
            archived::note(&mut facts);
            let (timeline, start, end) = (start.timeline, start.lsn, end.end.lsn);
            let span = BackupSpan { timeline, start, end, segment_bytes, brings_wal: false };
            from_archive.wait(span, &*ctx.observer).await?;
        }
        facts.insert("checksum_failures".to_owned(), end.checksum_failures.is_some().into());
        let mut warnings = std::mem::take(&mut configuration.warnings);
        if !configuration.known && !has_configuration {
            warnings.push(UNKNOWN_CONFIGURATION.to_owned());
        }
        warnings.extend(end.warnings);
        warnings
            .extend(end.checksum_failures.map(|words| format!("damaged pages are in the backup: {words}")));
        let manifest = manifest.transpose().unwrap_or_else(|error| {
            warnings.push(format!("the server can make no increment of this backup: {error}"));
            None
        });
        for message in &warnings {
            ctx.observer.event(&Event::Warning { message: message.clone() });
        }
        let mut contents = SourceContents::of("tablespaces", &tablespaces)?;
        contents.insert(configuration::CONTENTS, &configuration.outside)?;
        let mut dumped = Dumped { facts, contents, warnings, ..Dumped::default() };
        plan.finish(made, &mut dumped, &*ctx.observer);
        if let Some(manifest) = manifest {
            keep_manifest(manifest, &mut dumped);
        }
        Ok(dumped)
    }

    /// Begins the backup, in the way that can be had of those that were asked for.
    async fn begin(
        &self,
        session: &Session,
        mut files: Replication,
        timeline: u32,
        facts: &Map<String, Value>,
        ctx: &Ctx,
    ) -> Result<Begun> {
        let mut why_not = None;
        if let Some(parent) = &self.summaries {
            let mut options = self.options.clone();
            options.incremental = true;
            let state = self.state.as_ref();
            match begin_from_summaries(session, &options, state, parent, facts, ctx).await {
                Ok((backup, parent)) => {
                    let (coming, plan) = (Coming::Increment, Plan::from_summaries(&parent)?);
                    return Ok(Begun { backup, coming, plan });
                }
                Err(why) => {
                    why_not = Some(format!("this is not made from the server's WAL summaries: {why}"));
                }
            }
        }
        let mut plan = Plan::make(self.state.as_ref(), self.parent.as_ref(), facts, ctx).await?;
        plan.warn(why_not);
        // On the connection without the slot: an error would end that.
        let history = plan.history(timeline, &mut files).await;
        let backup = files.base_backup(&self.options).await?;
        let coming = Coming::Everything(plan.take_comparer(backup.start, history).map(Box::new));
        Ok(Begun { backup, coming, plan })
    }

    /// What takes a copy of the manifest for this host, from versions on which have a use for it.
    fn copy_of_manifest(&self, facts: &Map<String, Value>, ctx: &Ctx) -> Option<Result<ManifestCopy>> {
        let version = facts.get("server_version").and_then(Value::as_str).unwrap_or_default();
        let major = major_of(version)?;
        let (state, backup) = (self.state.as_ref()?, ctx.backup.as_ref()?);
        (major >= OLDEST_WITH_SUMMARIES).then(|| Manifests::of(state).begin(backup))
    }
}

/// Keeps a manifest when its backup has committed.
fn keep_manifest(manifest: Copied, dumped: &mut Dumped) {
    manifest.note(&mut dumped.facts);
    let (before, parent) = (dumped.after_commit.take(), dumped.parent.clone());
    dumped.after_commit = Some(AfterCommit::new(move |backup| {
        let kept = manifest.keep(parent.as_ref()).map_err(|e| e.doing("keeping the manifest"));
        before.map_or(Ok(()), |before| before.run(backup)).and(kept)
    }));
}

fn rand_suffix() -> u64 {
    u64::try_from(ulid::Ulid::generate().0 & u128::from(u64::MAX)).unwrap_or_default()
}

/// A backup whose files are about to come.
struct Begun {
    backup: BaseBackup,
    coming: Coming,
    plan: Plan,
}

/// What became of the files.
struct StoredFiles {
    end: BaseBackupEnd,
    taken: Taken,
    /// The manifest's copy for this host, where there is one.
    manifest: Option<Result<Copied>>,
}

/// Cuts what the server sends into parts.
async fn store_files(
    mut backup: BaseBackup,
    parts: &Arc<dyn PartSink>,
    coming: Coming,
    mut copy: Option<Result<ManifestCopy>>,
) -> Result<StoredFiles> {
    let mut intake = Intake::new(Arc::clone(parts), coming);
    loop {
        match backup.next().await? {
            Some(Item::Archive { name, .. }) => {
                let name = name.strip_suffix(".tar").unwrap_or(&name);
                if name != BASE && name.parse::<u32>().is_err() {
                    return Err(Error::internal(format!("the server calls an archive {name:?}")));
                }
                intake.begin(name).await?;
            }
            Some(Item::Data(bytes)) => intake.add(bytes).await?,
            Some(Item::Progress(_)) => {}
            Some(Item::Manifest) => break,
            None => return Err(Error::internal("the server sent no manifest")),
        }
    }
    let taken = intake.finish().await?;
    let spec = PartSpec { kind: MANIFEST.to_owned(), name: "backup_manifest".to_owned() };
    let mut manifest = parts.open(spec).await?;
    while let Some(item) = backup.next().await? {
        match item {
            Item::Data(bytes) => {
                copy = copy.map(|copy| copy.and_then(|mut copy| copy.write(&bytes).map(|()| copy)));
                manifest.write(bytes).await?;
            }
            Item::Progress(_) => {}
            Item::Archive { .. } | Item::Manifest => {
                return Err(Error::internal("the server sent files after the manifest"));
            }
        }
    }
    manifest.finish().await?;
    let manifest = copy.map(|copy| copy.and_then(ManifestCopy::finish));
    let (end, _) = backup.finish().await?;
    Ok(StoredFiles { end, taken, manifest })
}

/// Which cluster a physical backup is of, and what WAL it spans; nothing where its record does not say.
pub fn span(backup: &BackupSummary) -> Option<Span> {
    let text = |name: &str| backup.source.get(name).and_then(Value::as_str);
    let number = |name: &str| backup.source.get(name).and_then(Value::as_u64);
    if backup.kind != KIND {
        return None;
    }
    Some(Span {
        system: text("system_identifier")?.parse().ok()?,
        // Of older records the host's clock is taken.
        ended: text("end_time").and_then(|time| time.parse().ok()).unwrap_or(backup.finished),
        wal: BackupSpan {
            timeline: u32::try_from(number("timeline")?).ok()?,
            start: text("start_lsn")?.parse().ok()?,
            end: text("end_lsn")?.parse().ok()?,
            segment_bytes: number("wal_segment_bytes").filter(|bytes| bytes.is_power_of_two())?,
            brings_wal: archived::brings_wal(&backup.source),
        },
    })
}

/// Length of the cluster's blocks.
pub(super) fn block_bytes(facts: &Map<String, Value>) -> Result<u32> {
    let bytes = facts.get("block_bytes").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    bytes.filter(|bytes| bytes.is_power_of_two()).ok_or_else(|| {
        Error::new(ErrorKind::Integrity, "the record does not say how long the cluster's blocks are")
            .with_hint("restore another backup")
    })
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
