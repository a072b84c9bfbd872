use std::sync::Arc;

use serde_json::{Map, json};

use super::archive::Archive;
use super::key::{self, WalKey};
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{ClusterName, Repository};
use crate::state::HostState;

/// Which cluster this host was found to be.
const KNOWN: &str = "wal-system";

/// WAL compresses as well with it as with 3, in less time (`docs/decisions.md`).
pub(super) const LEVEL: i32 = 1;

/// Where a host's WAL goes, and how: compressed with zstd, sealed with a key of the day.
pub struct Destination {
    repository: Repository,
    cluster: ClusterName,
    pub(super) state: HostState,
    encryptor: Option<Arc<dyn Encryptor>>,
    pub(super) level: i32,
}

impl Destination {
    /// The archive of a cluster. `encryptor` seals; without one WAL is stored in the clear.
    pub fn new(
        repository: Repository,
        cluster: ClusterName,
        state: HostState,
        encryptor: Option<Arc<dyn Encryptor>>,
    ) -> Self {
        Self { repository, cluster, state, encryptor, level: LEVEL }
    }

    /// Level of zstd, 1 to 19; 1 by default.
    #[must_use]
    pub fn level(mut self, level: i32) -> Self {
        self.level = level;
        self
    }

    pub(super) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The key to seal with now.
    pub(super) async fn key(&self) -> Result<Option<WalKey>> {
        match &self.encryptor {
            Some(encryptor) => {
                key::current(&self.repository, &self.cluster, &self.state, encryptor).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// The archive, when the cluster with a system identifier is the one that it is of. A cluster that nobody knows
    /// yet becomes it.
    pub(super) async fn archive(&self, system: u64, version: &str) -> Result<Archive> {
        let archive = Archive::of(&self.repository, &self.cluster, system, None);
        let known = self.state.read(KNOWN)?;
        if known.as_deref() == Some(system.to_string().as_bytes()) {
            return Ok(archive);
        }
        match self.repository.identity(&self.cluster).await? {
            Some(identity) if identity.system_identifier == system.to_string() => {}
            Some(identity) => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{} is the PostgreSQL cluster {} in this repository, and this is WAL of {system}",
                        self.cluster, identity.system_identifier
                    ),
                )
                .with_hint(
                    "give this cluster another name (--cluster); if it took the place of the other one \
                     (initdb, pg_upgrade), back it up first",
                ));
            }
            None => {
                let facts = json!({"system_identifier": system.to_string(), "server_version": version});
                let facts: Map<_, _> = facts.as_object().cloned().unwrap_or_default();
                self.repository.note_identity(&self.cluster, &facts).await?;
            }
        }
        // As long as a copy is away it is looked at again.
        if self.repository.spread_identity(&self.cluster).await? {
            self.state.write(KNOWN, system.to_string().as_bytes())?;
        }
        Ok(archive)
    }
}
