//! Which PostgreSQL cluster a name in the repository stands for.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ulid::Ulid;

use super::record::{from_json, to_json};
use super::small::check_small;
use super::{ClusterName, FORMAT, Repository, layout};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Created, list_sorted, read_checked};

/// `identity/<ulid>.json`: written when a cluster is first backed up, and when it has become another one
/// (`pg_upgrade`, `initdb`). The last by name counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClusterIdentity {
    /// Version of the format: 1.
    pub format: u32,
    /// `system_identifier` of `pg_control_system()`.
    pub system_identifier: String,
    /// The server's version when it was written.
    pub server_version: String,
    /// When it was written, by the host's clock.
    pub since: Timestamp,
    /// What else stands there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl ClusterIdentity {
    fn is_same(&self, system_identifier: &str, server_version: &str) -> bool {
        let major = |version: &str| version.split('.').next().map(str::to_owned);
        self.system_identifier == system_identifier && major(&self.server_version) == major(server_version)
    }
}

impl Repository {
    /// The identity that a cluster has in the repository.
    pub async fn identity(&self, cluster: &ClusterName) -> Result<Option<ClusterIdentity>> {
        let store = &**self.store();
        let Some(newest) = list_sorted(store, &layout::identity(cluster), None).await?.pop() else {
            return Ok(None);
        };
        let key = format!("{}/{}", layout::identity(cluster), newest.name());
        let check = |body: Bytes| check_small(&key, &body).and_then(|()| from_json(&body, &key));
        read_checked(self.store(), &key, 1 << 20, check).await.map(Some)
    }

    /// Notes which cluster was backed up. Returns the identity before, where it was another one.
    pub(crate) async fn note_identity(
        &self,
        cluster: &ClusterName,
        source: &Map<String, Value>,
    ) -> Result<Option<ClusterIdentity>> {
        let text = |name: &str| source.get(name).and_then(Value::as_str);
        // Without the privilege to ask, nobody knows which one it is.
        let (Some(system_identifier), Some(server_version)) =
            (text("system_identifier"), text("server_version"))
        else {
            return Ok(None);
        };
        let before = self.identity(cluster).await?;
        if before.as_ref().is_some_and(|b| b.is_same(system_identifier, server_version)) {
            return Ok(None);
        }
        let identity = ClusterIdentity {
            format: FORMAT,
            system_identifier: system_identifier.to_owned(),
            server_version: server_version.to_owned(),
            since: Timestamp::now(),
            other: Map::new(),
        };
        let key = format!("{}/{}.json", layout::identity(cluster), Ulid::generate());
        if self.store().create(&key, to_json(&identity)?).await? == Created::Other {
            return Err(Error::internal("a new name is taken already"));
        }
        Ok(before)
    }

    /// Brings the identity to the copies that lack it: without it a copy alone cannot tell whose WAL it has. True where
    /// all copies have it now.
    pub(crate) async fn spread_identity(&self, cluster: &ClusterName) -> Result<bool> {
        let copies = self.store().copies().len();
        if copies == 0 {
            return Ok(true);
        }
        let folder = layout::identity(cluster);
        let Some(newest) = list_sorted(&**self.store(), &folder, None).await?.pop() else { return Ok(false) };
        let key = format!("{folder}/{}", newest.name());
        let mut have = 0;
        for copy in self.copies().await? {
            have += match copy.store().head(&key).await {
                Ok(_) => 1,
                Err(error) if error.kind() == ErrorKind::ObjectMissing => {
                    let check = |body: Bytes| check_small(&key, &body).map(|()| body);
                    let body = read_checked(self.store(), &key, 1 << 20, check).await?;
                    usize::from(copy.store().create(&key, body).await.is_ok())
                }
                Err(_) => 0,
            };
        }
        Ok(have == copies)
    }
}
