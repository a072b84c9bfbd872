//! Block maps on the host: where they are, and whether one is that of a backup.

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::kept::Kept;
use super::map::{BlockMap, MapKey};
use crate::error::{Error, Result};
use crate::repository::{BackupId, BackupSummary, Digest};
use crate::state::{HostState, StateFile};

const FOLDER: &str = "maps";
const KEY: &str = "maps/key";
/// Name of the fact that says which map is a backup's.
const FACT: &str = "block_map";

/// The maps of a cluster on this host.
#[derive(Clone)]
pub(in super::super) struct Maps {
    kept: Kept,
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
        let kept = Kept::new(state, FOLDER);
        if let Some(key) = read_key(state)? {
            return Ok(Self { kept, key });
        }
        let random = age::x25519::Identity::generate().to_string();
        let context = "pgark 2026 key of block maps";
        state.write(KEY, &blake3::derive_key(context, random.expose_secret().as_bytes()))?;
        // Another run may have made one at the same moment.
        let key = read_key(state)?.ok_or_else(|| Error::internal("the key of the block maps is gone"))?;
        Ok(Self { kept, key })
    }

    pub(in super::super) fn key(&self) -> MapKey {
        self.key.clone()
    }

    pub(in super::super) fn key_id(&self) -> String {
        self.key.id()
    }

    /// Begins the map of a backup.
    pub(in super::super) fn begin(&self, backup: &BackupId) -> Result<StateFile> {
        self.kept.begin(backup)
    }

    /// Whether there seems to be a map of a backup.
    pub(super) fn has(&self, backup: &BackupSummary) -> bool {
        MapFacts::of(backup).is_some_and(|facts| facts.key == self.key.id()) && self.kept.has(&backup.id)
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
        let file = self
            .kept
            .open(id)
            .map_err(|e| format!("the block map of backup {id} is not on this host any more: {e}"))?;
        BlockMap::open(file, facts.blake3)
            .map_err(|e| format!("the block map of backup {id} cannot be used: {}", e.with_causes()))
    }

    /// Keeps the map of a backup that has committed, and that of its parent; removes those not used for longest.
    pub(in super::super) fn keep(&self, map: Option<StateFile>, parent: Option<&BackupId>) -> Result<()> {
        self.kept.keep(map, parent)
    }
}

fn read_key(state: &HostState) -> Result<Option<MapKey>> {
    Ok(state.read(KEY)?.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(MapKey::new))
}
