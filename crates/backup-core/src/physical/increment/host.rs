//! Block maps on the host: where they are, which are kept, and whether one is that of a backup.

use std::fs::File;
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::map::{BlockMap, MapKey};
use super::words;
use crate::error::{Error, Result};
use crate::repository::{BackupId, BackupSummary, Digest};
use crate::state::{HostState, StateFile};

const FOLDER: &str = "maps";
const KEY: &str = "maps/key";
/// How many maps are kept: those that were made or used last.
const KEPT: usize = 4;
/// What a run that died left is removed after this time; a run at work writes more often.
const STALE: Duration = Duration::from_hours(48);
/// Name of the fact that says which map is a backup's.
const FACT: &str = "block_map";

/// The maps of a cluster on this host.
#[derive(Clone)]
pub(in super::super) struct Maps {
    state: HostState,
    key: MapKey,
}

/// What a record says of the backup's map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct MapFacts {
    /// Id of the key that it was made with.
    pub(in super::super) key: String,
    /// Digest of the map.
    pub(in super::super) blake3: Digest,
}

impl MapFacts {
    pub(in super::super) fn of(backup: &BackupSummary) -> Option<Self> {
        serde_json::from_value(backup.source.get(FACT)?.clone()).ok()
    }

    /// Puts it among a backup's facts.
    pub(in super::super) fn note(&self, facts: &mut serde_json::Map<String, serde_json::Value>) {
        facts.insert(FACT.to_owned(), serde_json::json!(self));
    }
}

impl Maps {
    /// Opens those of a host, and makes its key where there is none.
    pub(in super::super) fn open(state: &HostState) -> Result<Self> {
        if let Some(key) = read_key(state)? {
            return Ok(Self { state: state.clone(), key });
        }
        let random = age::x25519::Identity::generate().to_string();
        let context = "pgark 2026 key of block maps";
        state.write(KEY, &blake3::derive_key(context, random.expose_secret().as_bytes()))?;
        // Another run may have made one at the same moment.
        let key = read_key(state)?.ok_or_else(|| Error::internal("the key of the block maps is gone"))?;
        Ok(Self { state: state.clone(), key })
    }

    pub(in super::super) fn key(&self) -> MapKey {
        self.key.clone()
    }

    pub(in super::super) fn key_id(&self) -> String {
        self.key.id()
    }

    /// Begins the map of a backup.
    pub(in super::super) fn begin(&self, backup: &BackupId) -> Result<StateFile> {
        self.state.begin(&name(backup))
    }

    /// Whether there seems to be a map of a backup.
    pub(super) fn has(&self, backup: &BackupSummary) -> bool {
        MapFacts::of(backup).is_some_and(|facts| facts.key == self.key.id())
            && self.state.path(&name(&backup.id)).is_file()
    }

    /// The map of a backup, or why there is none.
    pub(in super::super) fn map_of(&self, backup: &BackupSummary) -> std::result::Result<BlockMap, String> {
        let id = &backup.id;
        let facts =
            MapFacts::of(backup).ok_or_else(|| format!("backup {id} was made without a block map"))?;
        if facts.key != self.key.id() {
            return Err(format!(
                "the block map of backup {id} is on another host, or this host's state was lost"
            ));
        }
        let file = File::open(self.state.path(&name(id)))
            .map_err(|e| format!("the block map of backup {id} is not on this host any more: {e}"))?;
        BlockMap::open(file, facts.blake3)
            .map_err(|e| format!("the block map of backup {id} cannot be used: {}", words(&e)))
    }

    /// Keeps the map of a backup that has committed, and that of its parent; removes those not used for longest.
    pub(in super::super) fn keep(&self, map: Option<StateFile>, parent: Option<&BackupId>) -> Result<()> {
        if let Some(parent) = parent {
            // Used, not made: a parent of many increments must not go.
            let _ = File::options()
                .append(true)
                .open(self.state.path(&name(parent)))
                .and_then(|file| file.set_modified(SystemTime::now()));
        }
        if let Some(map) = map {
            map.keep()?;
        }
        self.prune()
    }

    fn prune(&self) -> Result<()> {
        let folder = self.state.path(FOLDER);
        let listing = |e| Error::io(format!("listing {}", folder.display()), e);
        let mut maps = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Another run may have removed it just now.
            let Ok(modified) = entry.metadata().and_then(|m| m.modified()) else { continue };
            if entry.path().extension().is_some_and(|ending| ending == "tmp") {
                if modified.elapsed().is_ok_and(|age| age > STALE) {
                    self.state.remove(&format!("{FOLDER}/{name}"))?;
                }
            } else if name.parse::<BackupId>().is_ok() {
                maps.push((modified, name));
            }
        }
        maps.sort_unstable_by(|a, b| b.cmp(a));
        maps.iter().skip(KEPT).try_for_each(|(_, name)| self.state.remove(&format!("{FOLDER}/{name}")))
    }
}

fn name(backup: &BackupId) -> String {
    format!("{FOLDER}/{backup}")
}

fn read_key(state: &HostState) -> Result<Option<MapKey>> {
    Ok(state.read(KEY)?.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(MapKey::new))
}
