use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ulid::Ulid;

use super::layout;
use super::record::{Tool, from_json, to_json};
use super::small::check_small;
use super::{BackupId, BackupRecord, ClusterName, Started};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Created, Entry, Store, elsewhere, list_sorted, read_if_there, read_whole, sources, worse,
};

/// The version of the repository format that this pgark reads and writes.
pub const FORMAT: u32 = 1;

/// More than any record has, so that a wrong object is not read into memory without end.
pub(crate) const RECORD_LIMIT: usize = 256 * 1024 * 1024;

/// Folder of the objects on which a store's abilities are tried.
const PROBES: &str = "probe";

/// What a store can do, found out when the repository was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// It refuses to create an object that exists. Without it two writers cannot be told apart, and the
    /// sweep runs only when it is asked for.
    pub conditional_create: bool,
    /// The credentials may delete. They need not: then leftovers and old backups stay.
    pub delete: bool,
}

/// `pgark.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: String,
    created: Timestamp,
    tool: Tool,
    abilities: Abilities,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// An opened repository. Cloning shares the store.
#[derive(Debug, Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    marker: Marker,
}

impl Repository {
    /// Opens the repository in `store`.
    ///
    /// # Errors
    /// [`NotARepository`](ErrorKind::NotARepository), [`NewerFormat`](ErrorKind::NewerFormat), and those of
    /// the store.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        if !store.copies().is_empty() {
            return Box::pin(super::copies::open(store)).await;
        }
        let Some(body) = read_if_there(&*store, layout::REPOSITORY, 1 << 20).await? else {
            return Err(Error::new(
                ErrorKind::NotARepository,
                format!("there is no repository at {}", store.location()),
            )
            .with_hint("check the URL; pgark init makes one"));
        };
        Self::from_marker(store, &body)
    }

    fn from_marker(store: Arc<dyn Store>, body: &[u8]) -> Result<Self> {
        Ok(Self { store, marker: from_json(body, layout::REPOSITORY)? })
    }

    /// The same repository in several copies, with what all of them can do.
    pub(super) fn over(store: Arc<dyn Store>, copies: &[Self]) -> Result<Self> {
        let first = copies.first().ok_or_else(|| Error::internal("a repository without copies"))?;
        let mut marker = first.marker.clone();
        marker.abilities = Abilities {
            conditional_create: copies.iter().all(|copy| copy.marker.abilities.conditional_create),
            delete: copies.iter().all(|copy| copy.marker.abilities.delete),
        };
        store.expect_repository(&marker.id);
        Ok(Self { store, marker })
    }

    /// The repository in each of its copies, whether they answer or not; none where it is in one place only.
    pub(crate) fn each_copy(&self) -> Vec<Self> {
        let copies = self.store.copies().into_iter();
        copies.map(|store| Self { store, marker: self.marker.clone() }).collect()
    }

    /// Makes a repository in `store`, or opens the one that is there. True where it is new.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where the place holds something else.
    pub async fn init(store: Arc<dyn Store>) -> Result<(Self, bool)> {
        if !store.copies().is_empty() {
            return Box::pin(super::copies::init(store, false)).await;
        }
        match read_if_there(&*store, layout::REPOSITORY, 1 << 20).await? {
            Some(body) => Ok((Self::from_marker(store, &body)?, false)),
            None => Self::make(store, &Ulid::generate().to_string()).await,
        }
    }

    /// Makes a repository with an id in an empty place. False where somebody else was faster.
    pub(super) async fn make(store: Arc<dyn Store>, id: &str) -> Result<(Self, bool)> {
        let location = store.location().to_owned();
        // Another host may be probing the same place at this moment.
        if let Some(entry) = list_sorted(&*store, "", None).await?.iter().find(|e| e.name() != PROBES) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{location} is not empty, and no repository: it holds {:?}", entry.name()),
            )
            .with_hint("give an empty place, or a folder in it that does not exist yet"));
        }
        let abilities = probe(&*store).await?;
        let marker = Marker {
            format: FORMAT,
            id: id.to_owned(),
            created: Timestamp::now(),
            tool: Tool::this(),
            abilities,
            other: Map::new(),
        };
        match store.create(layout::REPOSITORY, to_json(&marker)?).await? {
            Created::New | Created::Same => Ok((Self { store, marker }, true)),
            // Somebody was faster.
            Created::Other => Ok((Self::open(store).await?, false)),
        }
    }

    /// Writes the marker of a place that is known to be a copy again, with what its store can do; the `damaged` one goes.
    /// Its length.
    pub(crate) async fn write_marker(&self, place: &Arc<dyn Store>, damaged: bool) -> Result<u64> {
        let abilities = probe(&**place).await?;
        let body = to_json(&Marker { abilities, tool: Tool::this(), ..self.marker.clone() })?;
        if damaged {
            let deleted = place.delete(&[layout::REPOSITORY.to_owned()]).await;
            deleted
                .into_iter()
                .collect::<Result<()>>()
                .map_err(|e| e.doing(format!("deleting the damaged {}", layout::REPOSITORY)))?;
        }
        let bytes = body.len() as u64;
        if place.create(layout::REPOSITORY, body).await? != Created::Other {
            return Ok(bytes);
        }
        // Somebody was faster.
        match Self::open(Arc::clone(place)).await? {
            there if there.id() == self.id() => Ok(0),
            there => Err(Error::new(
                ErrorKind::Conflict,
                format!("the place has become another repository, {}", there.id()),
            )),
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Id of the repository, a ULID.
    pub fn id(&self) -> &str {
        &self.marker.id
    }

    /// What the store can do.
    pub fn abilities(&self) -> &Abilities {
        &self.marker.abilities
    }

    /// Names of the clusters, sorted.
    pub async fn clusters(&self) -> Result<Vec<ClusterName>> {
        let entries = list_sorted(&*self.store, layout::CLUSTERS, None).await?;
        entries.iter().filter(|e| matches!(e, Entry::Folder(_))).map(|e| e.name().parse()).collect()
    }

    /// Reads the record of a backup.
    ///
    /// # Errors
    /// [`BackupNotFound`](ErrorKind::BackupNotFound), also when the run has not committed.
    pub async fn record(&self, cluster: &ClusterName, id: &BackupId) -> Result<BackupRecord> {
        let missing = || {
            Error::new(ErrorKind::BackupNotFound, format!("there is no backup {id} of {cluster}"))
                .with_hint("pgark list shows the backups that there are")
        };
        let record = self.record_if_there(cluster, id).await?.ok_or_else(missing)?;
        if record.state == super::State::Abandoned {
            return Err(Error::new(
                ErrorKind::BackupNotFound,
                format!("the run {id} was given up and left no backup"),
            )
            .with_hint("pgark list shows the backups that there are"));
        }
        Ok(record)
    }

    pub(crate) async fn record_if_there(
        &self,
        cluster: &ClusterName,
        id: &BackupId,
    ) -> Result<Option<BackupRecord>> {
        let key = format!("{}/{}", layout::backup(cluster, id), layout::RECORD);
        let (mut abandoned, mut failed, mut absent) = (None, None, false);
        for source in sources(&self.store) {
            let read = async {
                let Some(body) = read_if_there(&*source, &key, RECORD_LIMIT).await? else { return Ok(None) };
                Self::parse_record(cluster, id, &body, &key).map(Some)
            };
            match read.await {
                // Given up in one copy, and whole in another: that one counts, since nothing else says so of it.
                Ok(Some(record)) if record.state == super::State::Abandoned => abandoned = Some(record),
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => absent = true,
                Err(error) if elsewhere(&error) => failed = Some(worse(failed, error)),
                Err(error) => return Err(error),
            }
        }
        match (abandoned, failed) {
            (None, Some(error)) if !absent || error.kind() == ErrorKind::Integrity => Err(error),
            // A copy that did not answer may have it: then the one that is asked for is not known not to be.
            (None, Some(error)) => Err(error.doing(format!("looking for backup {id}"))),
            (found, _) => Ok(found),
        }
    }

    /// Reads the record of a backup.
    pub(crate) fn parse_record(
        cluster: &ClusterName,
        id: &BackupId,
        body: &[u8],
        key: &str,
    ) -> Result<BackupRecord> {
        let record: BackupRecord = from_json(body, key)?;
        if record.id != *id || record.cluster != *cluster {
            return Err(Error::new(
                ErrorKind::Integrity,
                format!("{key} is the record of another backup, {}", record.id),
            ));
        }
        Ok(record)
    }
}

/// What a run announced; nothing where it is gone.
pub(crate) async fn announcement(
    repository: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
) -> Result<Option<Started>> {
    let key = format!("{}/{}", layout::backup(cluster, id), layout::STARTED);
    let body = read_if_there(&**repository.store(), &key, 1 << 20).await?;
    body.map(|body| check_small(&key, &body).and_then(|()| from_json(&body, &key))).transpose()
}

/// Tries what the store can do, on an object of its own.
async fn probe(store: &dyn Store) -> Result<Abilities> {
    let key = format!("{PROBES}/{}", Ulid::generate());
    if store.create(&key, Bytes::from_static(b"first")).await? == Created::Other {
        return Err(Error::internal("a new name is taken already"));
    }
    let second = store.create(&key, Bytes::from_static(b"second")).await?;
    let kept = read_whole(store, &key, 64).await?;
    let conditional_create = second == Created::Other && kept == "first";
    let delete = store.delete(&[key]).await.into_iter().all(|r| r.is_ok());
    Ok(Abilities { conditional_create, delete })
}
