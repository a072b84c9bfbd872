//! Increments that the server makes from its WAL summaries, and what has to be done so that they are right.
//!
//! The server is given the parent's manifest, and sends the blocks that the WAL since then names. Two things it would
//! get wrong, so that the files in question are left out of the manifest, and it sends them whole:
//! - visibility maps: their clearing is not in summaries of servers before 17.11 and 18.6, nor in the WAL that these wrote.
//!   They are tiny, so that none is trusted;
//! - relations that were truncated and extended again: blocks that were only zeroed are in no summary, and those of
//!   the parent would come back (`GetFileBackupMethod` in `basebackup_incremental.c`). `pg_wal_summary_contents` tells
//!   which ones: they have a limit block.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::manifest::Manifests;
use super::parent::{Parent, differs};
use crate::dumper::Ctx;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::physical::BASE;
use crate::physical::relation::{Fork, Relation, relation_file};
use crate::postgres::{BaseBackup, BaseBackupOptions, Lsn, Replication, Session};
use crate::repository::BackupSummary;
use crate::state::HostState;

/// The first sound minor version of each major one; later ones are sound from their beginning.
const SOUND: [(u32, u32); 2] = [(17, 11), (18, 6)];
/// How often it is tried where relations are truncated just when it begins.
const ATTEMPTS: usize = 5;
/// Bytes of a manifest that are sent at a time.
const CHUNK: usize = 64 * 1024;

/// Begins an increment of the server's own; or why there is none.
pub(in super::super) async fn begin(
    session: &Session,
    options: &BaseBackupOptions,
    state: Option<&HostState>,
    parent: &Parent,
    facts: &Map<String, Value>,
    ctx: &Ctx,
) -> std::result::Result<(BaseBackup, BackupSummary), String> {
    let parent = match parent {
        Parent::Backup(parent) => &**parent,
        Parent::None(why) => return Err(why.clone()),
    };
    let manifests = Manifests::of(state.ok_or("this host keeps no manifests")?);
    if let Some(why) = differs(&parent.source, facts) {
        return Err(format!("it cannot build on backup {}: {why}", parent.id));
    }
    let version = facts.get("server_version").and_then(Value::as_str).unwrap_or_default();
    if !is_sound(version) {
        return Err(format!("the summaries of PostgreSQL {version} cannot be relied on: update it"));
    }
    let start = parent.source.get("start_lsn").and_then(Value::as_str).and_then(|lsn| lsn.parse().ok());
    let start: Lsn = start.ok_or_else(|| format!("backup {} does not say where it begins", parent.id))?;
    let attempts = async {
        if session.value("SHOW summarize_wal").await?.as_deref() != Some("on") {
            return Ok(Err("summarize_wal is off".to_owned()));
        }
        let mut limits = Limits::since(session, start).await?;
        for _ in 0..ATTEMPTS {
            let what = format!("giving the server the manifest of backup {}", parent.id);
            ctx.observer.event(&Event::Step { what });
            let mut files = session.replication().await?;
            upload(&mut files, &manifests, parent, limits.clone()).await?;
            let backup = files.base_backup(options).await?;
            // The server has the summaries up to its beginning by now, and has not sent a file yet.
            let now = Limits::since(session, start).await?;
            if !missed(&manifests, parent, limits, now.clone()).await? {
                return Ok(Ok(backup));
            }
            limits = now;
        }
        Ok(Err(format!("relations were truncated just then, {ATTEMPTS} times")))
    };
    let begun: Result<std::result::Result<BaseBackup, String>> = attempts.await;
    let backup = begun.map_err(|error| error.with_causes())??;
    Ok((backup, parent.clone()))
}

/// Whether the summaries of a server are right, but for what is seen to here.
fn is_sound(version: &str) -> bool {
    let (major, minor) = version.split_once('.').unwrap_or((version, ""));
    // A beta version of 18, `18beta1`, is no number.
    let (Ok(major), minor) = (major.parse::<u32>(), minor.parse::<u32>().unwrap_or(0)) else { return false };
    match SOUND.iter().find(|(sound, _)| *sound == major) {
        Some((_, first)) => minor >= *first,
        None => SOUND.iter().all(|(sound, _)| major > *sound),
    }
}

/// Relations that were made, truncated or dropped: the WAL has a limit block of them.
#[derive(Clone, Default)]
struct Limits(Arc<HashSet<Relation>>);

impl Limits {
    /// Those that the summaries name which reach behind a position.
    async fn since(session: &Session, start: Lsn) -> Result<Self> {
        let query = format!(
            "SELECT DISTINCT c.reltablespace, c.reldatabase, c.relfilenode FROM pg_catalog.pg_available_wal_summaries() s, \
             LATERAL pg_catalog.pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c \
             WHERE c.is_limit_block AND s.end_lsn > '{start}'"
        );
        let mut limits = HashSet::new();
        for row in session.rows(&query).await? {
            let number = |column: usize| row.get(column)?.as_ref()?.parse().ok();
            let (Some(tablespace), Some(database), Some(number)) = (number(0), number(1), number(2)) else {
                return Err(Error::internal("a WAL summary without numbers"));
            };
            limits.insert(Relation { tablespace, database, number });
        }
        Ok(Self(Arc::new(limits)))
    }

    fn has(&self, relation: Relation) -> bool {
        // A database that was made of files, or dropped: `SummarizeDbaseRecord` in `walsummarizer.c`.
        self.0.contains(&relation) || self.0.contains(&Relation { number: 0, ..relation })
    }

    /// Whether the server may send an increment of a file.
    fn allow(&self, path: &[u8]) -> bool {
        relation_file(BASE, path).is_none_or(|file| file.fork != Fork::Visibility && !self.has(file.relation))
    }
}

/// Gives the server the parent's manifest, without the files that it must send whole.
async fn upload(
    files: &mut Replication,
    manifests: &Manifests,
    parent: &BackupSummary,
    limits: Limits,
) -> Result<()> {
    let (chunks, mut ready) = mpsc::channel::<Vec<u8>>(2);
    let (manifests, parent) = (manifests.clone(), parent.clone());
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::with_capacity(CHUNK);
        let gone = |_| Error::cancelled();
        manifests.trimmed(
            &parent,
            |path| limits.allow(path),
            |bytes| {
                chunk.extend_from_slice(bytes);
                if chunk.len() < CHUNK {
                    return Ok(());
                }
                chunks.blocking_send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK))).map_err(gone)
            },
        )?;
        chunks.blocking_send(chunk).map_err(gone)
    });
    let mut to = files.upload_manifest().await?;
    while let Some(chunk) = ready.recv().await {
        to.write(&chunk).await?;
    }
    // Only one that is whole is ended; the connection ends with an error.
    read.await.map_err(|e| Error::internal("reading a manifest failed").caused_by(e))??;
    to.finish().await
}

/// Whether a relation that the server was told of has a limit block by now.
async fn missed(manifests: &Manifests, parent: &BackupSummary, told: Limits, now: Limits) -> Result<bool> {
    if now.0.iter().all(|relation| told.0.contains(relation)) {
        return Ok(false);
    }
    let (manifests, parent) = (manifests.clone(), parent.clone());
    let look = move || {
        let mut missed = false;
        let all = |path: &[u8]| {
            missed |= told.allow(path) && !now.allow(path);
            false
        };
        manifests.trimmed(&parent, all, |_| Ok(())).map(|()| missed)
    };
    tokio::task::spawn_blocking(look)
        .await
        .map_err(|e| Error::internal("reading a manifest failed").caused_by(e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_sound_or_not() {
        for sound in ["17.11", "17.12", "18.6", "19.0", "19"] {
            assert!(is_sound(sound), "{sound}");
        }
        for unsound in ["15.18", "16.9", "17", "17.10", "18.5", "18beta1", "19devel", "", "x.y"] {
            assert!(!is_sound(unsound), "{unsound}");
        }
    }

    #[test]
    fn what_has_a_limit_block_is_sent_whole() {
        let at = |tablespace, database, number| Relation { tablespace, database, number };
        let limits = Limits(Arc::new(HashSet::from([at(1663, 5, 16384), at(1663, 6, 0), at(1664, 0, 1260)])));
        for path in [
            "base/5/16384",
            "base/5/16384.2",
            "base/5/16384_fsm",
            "base/6/1259",
            "global/1260",
            "base/5/99_vm",
            "pg_tblspc/1/PG_17_2/5/7_vm.1",
        ] {
            assert!(!limits.allow(path.as_bytes()), "{path}");
        }
        for path in
            ["base/5/16385", "base/5/1", "PG_VERSION", "pg_tblspc/1/PG_17_2/6/1259", "global/pg_control"]
        {
            assert!(limits.allow(path.as_bytes()), "{path}");
        }
    }
}
