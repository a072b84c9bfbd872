use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::chain::{Chain, Resumed};
use super::clear::{Names, version_folder};
use super::configuration;
use super::dump::{TablespaceOf, position};
use super::files::Counts;
use super::place::{Looked, Place, Wanted};
use super::recovery::Recovery;
use super::unpack::blocking;
use super::{BASE, KIND};
use crate::dumper::{Ctx, PartSource, Restorer, SourceContents};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;

pub(super) const PG_CONTROL: &str = "global/pg_control";
/// `pg_control` until everything else is safe.
pub(super) const PG_CONTROL_UNTIL_THEN: &str = "global/pg_control.pgark";
/// What must not come along. Links are made from the backup's own list; a copy must not follow a primary; the
/// others are of another start of the server.
pub(super) const LEFT_OUT: [&str; 6] = [
    "tablespace_map",
    "tablespace_map.old",
    "backup_label.old",
    "standby.signal",
    "recovery.signal",
    "postmaster.opts",
];

/// Restores a physical backup into a data directory. The server that is started on it recovers from the WAL of the
/// backup, and begins a timeline of its own.
#[derive(Debug, Clone)]
pub struct DataDirectory {
    path: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
    tablespaces_below: Option<PathBuf>,
    recovery: Recovery,
    delta: bool,
}

impl DataDirectory {
    /// Restores into a folder that is empty or not there. In one that an interrupted restore of the same backup left it
    /// goes on; one of another backup, or of before the machine was started, is emptied.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            tablespaces: BTreeMap::new(),
            tablespaces_below: None,
            recovery: Recovery::default(),
            delta: false,
        }
    }

    /// Restores over the data directory that is there, if one is: what is not in the backup is removed, and of files
    /// only the blocks that differ are written. It must be of the cluster that was backed up, and no server may run in
    /// it. Its WAL is removed; where `pg_wal` is a link, the link stays. Tablespaces stay where its own links lead, if
    /// they are restored there.
    #[must_use]
    pub fn delta(mut self, delta: bool) -> Self {
        self.delta = delta;
        self
    }

    /// Where the tablespace with an OID goes, in place of where it was.
    #[must_use]
    pub fn tablespace(mut self, oid: u32, path: impl Into<PathBuf>) -> Self {
        self.tablespaces.insert(oid, path.into());
        self
    }

    /// Puts every tablespace below a folder, named by its OID, in place of where it was.
    #[must_use]
    pub fn tablespaces_below(mut self, folder: impl Into<PathBuf>) -> Self {
        self.tablespaces_below = Some(folder.into());
        self
    }

    /// How the server recovers; by default with the WAL of the backup, to its end.
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    fn wanted(&self, parts: &dyn PartSource, ctx: &Ctx) -> Result<Wanted> {
        let text = |name: &str| parts.facts().get(name).and_then(Value::as_str);
        let folder = version_folder(parts.facts().get("server_version"));
        let over = if self.delta {
            let system = text("system_identifier").and_then(|system| system.parse().ok());
            let unknown = || {
                Error::new(ErrorKind::Integrity, "the backup does not say of which cluster or version it is")
                    .with_hint("restore it into a new folder")
            };
            Some(system.filter(|_| folder.is_some()).ok_or_else(unknown)?)
        } else {
            None
        };
        Ok(Wanted {
            backup: ctx.backup.as_ref().map(ToString::to_string).unwrap_or_default(),
            targets: targets(&self.path, &self.tablespaces, parts.contents(), |t| {
                let below = self.tablespaces_below.as_ref();
                below.map_or_else(|| PathBuf::from(&t.location), |below| below.join(t.oid.to_string()))
            })?,
            over,
            version_folder: folder.unwrap_or_default(),
        })
    }
}

/// Where each archive of a backup goes: the data directory, and its tablespaces, which are where they are wanted or, by
/// default, where `place` says.
pub(super) fn targets(
    base: &Path,
    wanted: &BTreeMap<u32, PathBuf>,
    contents: &SourceContents,
    place: impl Fn(&TablespaceOf) -> PathBuf,
) -> Result<BTreeMap<String, PathBuf>> {
    let known: Vec<TablespaceOf> = contents
        .get("tablespaces")?
        .ok_or_else(|| Error::new(ErrorKind::Integrity, "the backup does not say what tablespaces it has"))?;
    if let Some(oid) = wanted.keys().find(|oid| known.iter().all(|t| t.oid != **oid)) {
        let message = format!("the backup has no tablespace {oid}");
        let list: Vec<String> = known.iter().map(|t| format!("{} at {}", t.oid, t.location)).collect();
        let hint =
            if list.is_empty() { "it has none".to_owned() } else { format!("it has {}", list.join(", ")) };
        return Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
    }
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| Error::io(format!("naming {}", path.display()), e))
    };
    let mut targets = BTreeMap::from([(BASE.to_owned(), absolute(base)?)]);
    for tablespace in known {
        let path = wanted.get(&tablespace.oid).cloned().unwrap_or_else(|| place(&tablespace));
        targets.insert(tablespace.oid.to_string(), absolute(&path)?);
    }
    Ok(targets)
}

/// The files of a backup in their places, but for what makes them a data directory.
pub(super) struct Unpacked {
    pub(super) place: Place,
    pub(super) counts: Arc<Counts>,
    pub(super) resumed: Option<Resumed>,
}

/// Unpacks a backup, and goes on where that was interrupted.
pub(super) async fn unpack_backup(
    parts: &Arc<dyn PartSource>,
    wanted: Wanted,
    ctx: &Ctx,
) -> Result<Unpacked> {
    let version_folder = wanted.version_folder.clone();
    let base = wanted.targets.get(BASE).cloned().unwrap_or_default();
    let looked = blocking(move || Looked::at(wanted)).await?;
    let names = if looked.needs_names() {
        let first = parts.ancestors().first().unwrap_or(parts);
        Names::of(&**first).await?
    } else {
        Names::default()
    };
    let (place, told) = blocking(move || looked.prepare(&names)).await.map_err(|e| incomplete(e, &base))?;
    for message in told {
        ctx.observer.event(&Event::Warning { message });
    }
    let counts = Arc::new(Counts::default());
    let chain = Chain { parts, place: &place, version_folder, counts: &counts };
    let resumed = chain.resumed(ctx);
    let unpacked = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        unpacked = chain.unpack(ctx) => unpacked,
    };
    unpacked.map_err(|e| incomplete(e, &place.base))?;
    Ok(Unpacked { place, counts, resumed })
}

/// Says what an error leaves behind.
pub(super) fn incomplete(error: Error, base: &Path) -> Error {
    if error.hint().is_some() {
        return error;
    }
    error.with_hint(format!(
        "{} is incomplete, and no server starts on it: run the restore again, and it goes on where it can; or remove the folder",
        base.display()
    ))
}

#[async_trait]
impl Restorer for DataDirectory {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let (timeline, end) = position(parts.facts())?;
        self.recovery.check_wal_of(parts.facts())?;
        let Unpacked { place, counts, resumed } =
            unpack_backup(&parts, self.wanted(&*parts, ctx)?, ctx).await?;
        let recovery = self.recovery.clone();
        let outside = parts.contents().get(configuration::CONTENTS)?.unwrap_or_default();
        blocking(move || {
            place.configure(&outside)?;
            place.complete(timeline, &recovery)
        })
        .await
        .map_err(|e| incomplete(e, &self.path))?;
        let mut target = Map::new();
        target.insert("data_directory".to_owned(), json!(self.path));
        target.insert(
            "server_version".to_owned(),
            parts.facts().get("server_version").cloned().unwrap_or_default(),
        );
        target.insert("timeline".to_owned(), timeline.into());
        target.insert("consistent_at".to_owned(), end.to_string().into());
        target.insert("written_bytes".to_owned(), counts.written().into());
        target.insert("same_bytes".to_owned(), counts.same().into());
        target.insert("resumed".to_owned(), resumed.map(|resumed| resumed.json()).into());
        Ok(target)
    }
}
