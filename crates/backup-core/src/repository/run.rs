use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::Map;
use ulid::Ulid;

use super::layout;
use super::open::RECORD_LIMIT;
use super::record::to_json;
use super::{
    BackupId, BackupRecord, BackupSummary, ClusterName, Digest, FORMAT, ObjectRecord, Repository, Started,
    State, Tool,
};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Created, Entry, Meta, Store, list_sorted, read_if_there};

/// How far this host's clock may be from the store's. Listings count on ids that sort by time.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// Compares this host's clock with the store's.
///
/// # Errors
/// [`ClockSkew`](ErrorKind::ClockSkew)
pub(crate) fn check_clock(by_host: Timestamp, by_store: Timestamp) -> Result<()> {
    if by_store.duration_since(by_host).abs() <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let message = format!("this host's clock says {by_host:.0}, the store's says {by_store:.0}");
    Err(Error::new(ErrorKind::ClockSkew, message).with_hint("set the clock (NTP) and try again"))
}

/// A run from its announcement to its commit.
pub(crate) struct Run {
    repository: Repository,
    pub(crate) cluster: ClusterName,
    pub(crate) id: BackupId,
    pub(crate) started: Timestamp,
    pub(crate) host: String,
    /// Set when a commit was asked for: the store may still carry it out, however late.
    commit_tried: AtomicBool,
}

impl Run {
    /// Announces a run: creates `started.json` under a new id.
    pub(crate) async fn begin(
        repository: &Repository,
        cluster: &ClusterName,
        kind: &str,
        parent: Option<BackupId>,
    ) -> Result<Self> {
        let started = Timestamp::now();
        let host = host_name();
        loop {
            let id = BackupId::new(started, kind, Ulid::generate().random())?;
            let run = Self {
                repository: repository.clone(),
                cluster: cluster.clone(),
                id,
                started,
                host: host.clone(),
                commit_tried: AtomicBool::new(false),
            };
            let announcement = Started {
                format: FORMAT,
                id: run.id.clone(),
                started,
                host: host.clone(),
                process: std::process::id(),
                tool: Tool::this(),
                parent: parent.clone(),
                other: Map::new(),
            };
            let key = format!("{}/{}", run.folder(), layout::STARTED);
            if run.store().create(&key, to_json(&announcement)?).await? == Created::Other {
                continue;
            }
            let by_store = run.store().head(&key).await?.modified;
            if let Err(error) = check_clock(started, by_store) {
                run.give_up().await;
                return Err(error);
            }
            return Ok(run);
        }
    }

    pub(crate) fn folder(&self) -> String {
        layout::backup(&self.cluster, &self.id)
    }

    fn store(&self) -> &dyn Store {
        &**self.repository.store()
    }

    /// Creates a small object of the backup.
    pub(crate) async fn create(&self, name: &str, body: Bytes) -> Result<ObjectRecord> {
        let object =
            ObjectRecord { key: name.to_owned(), bytes: body.len() as u64, blake3: Digest::of(&body) };
        match self.store().create(&format!("{}/{name}", self.folder()), body).await? {
            Created::New | Created::Same => Ok(object),
            Created::Other => Err(Error::new(
                ErrorKind::Conflict,
                format!("{name} of this run was written by somebody else"),
            )),
        }
    }

    /// Commits: creates `backup.json`. Where the store's answer is lost, the record itself says what happened.
    pub(crate) async fn commit(&self, record: &BackupRecord) -> Result<()> {
        let key = format!("{}/{}", self.folder(), layout::RECORD);
        self.commit_tried.store(true, Ordering::Relaxed);
        let created = match self.store().commit(&key, to_json(record)?).await {
            Ok(created) => created,
            Err(error) => match self.abandon().await {
                // Nothing was there, and now nothing can come.
                Ok(true) => return Err(error),
                Ok(false) if self.store().kept(&self.folder()).is_some() => {
                    return Err(error.with_hint(format!(
                        "backup {} is whole in the copies that answered; pgark sync brings it to the others",
                        self.id
                    )));
                }
                Ok(false) => Created::Other,
                Err(_) => {
                    return Err(error.with_hint(
                        "the store did not answer to the commit itself: pgark list will show whether the backup is there",
                    ));
                }
            },
        };
        if created == Created::Other {
            let found = self.repository.record_if_there(&self.cluster, &self.id).await?;
            match found.map(|r| r.summary.state) {
                Some(State::Committed) => {}
                Some(State::Abandoned) => {
                    return Err(Error::new(ErrorKind::Abandoned, format!("the run {} was given up by a sweep before it ended", self.id))
                        .with_hint("it stored nothing for longer than the grace period; make the backup again, with a longer grace period"));
                }
                None => return Err(Error::internal("the record is there and is not")),
            }
        }
        Ok(())
    }

    async fn abandon(&self) -> Result<bool> {
        abandon(&self.repository, &self.cluster, &self.id).await
    }

    /// Gives the run up and removes what it stored, as far as the store allows. What remains, a later sweep
    /// finds.
    pub(crate) async fn give_up(&self) {
        if let Err(error) = self.try_give_up().await {
            tracing::warn!(id = %self.id, %error, "a failed run could not be cleaned up; a later sweep will do it");
        }
    }

    async fn try_give_up(&self) -> Result<()> {
        if !self.abandon().await? {
            return Ok(());
        }
        delete_leftovers(self.store(), &self.folder()).await?;
        if self.commit_tried.load(Ordering::Relaxed) {
            // A create that was given up by its time limit could otherwise still make a backup without parts.
            return Ok(());
        }
        // Nobody else writes to this run: the mark can go as well.
        let key = format!("{}/{}", self.folder(), layout::RECORD);
        self.store().delete(&[key]).await.into_iter().collect()
    }
}

/// Creates an *abandoned* record. False when the run has committed.
pub(super) async fn abandon(repository: &Repository, cluster: &ClusterName, id: &BackupId) -> Result<bool> {
    let now = Timestamp::now();
    let record = BackupRecord {
        contents: None,
        parts: Vec::new(),
        summary: BackupSummary {
            format: FORMAT,
            id: id.clone(),
            state: State::Abandoned,
            cluster: cluster.clone(),
            kind: id.as_str().split('-').nth(1).unwrap_or_default().to_owned(),
            started: id.started(),
            finished: now,
            host: host_name(),
            tool: Tool::this(),
            compression: "none".to_owned(),
            encryption: None,
            parent: None,
            label: None,
            stored_bytes: 0,
            warnings: 0,
            source: Map::new(),
            other: Map::new(),
        },
    };
    let key = format!("{}/{}", layout::backup(cluster, id), layout::RECORD);
    let created = match repository.store().create(&key, to_json(&record)?).await {
        // Of several copies those that answered have it. Nothing is deleted in the others.
        Err(error) if !repository.store().copies().is_empty() => {
            let found = repository.record_if_there(cluster, id).await;
            return match found {
                Ok(Some(record)) => Ok(record.state == State::Abandoned),
                _ => Err(error),
            };
        }
        created => created?,
    };
    match created {
        Created::New | Created::Same => Ok(true),
        Created::Other => {
            let found = repository.record_if_there(cluster, id).await?;
            Ok(found.is_some_and(|r| r.summary.state == State::Abandoned))
        }
    }
}

/// Says once more that a run was given up, in the same words: a copy that did not hear it keeps what it has.
pub(super) async fn abandon_everywhere(
    repository: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
) -> Result<()> {
    let key = format!("{}/{}", layout::backup(cluster, id), layout::RECORD);
    let Some(body) = read_if_there(&**repository.store(), &key, RECORD_LIMIT).await? else { return Ok(()) };
    repository.store().create(&key, body).await.map(drop)
}

/// What is in a backup's folder beside the record.
pub(super) async fn leftovers(store: &dyn Store, folder: &str) -> Result<Vec<Meta>> {
    let mut found = Vec::new();
    for folder in [format!("{folder}/{}", layout::PARTS), folder.to_owned()] {
        for entry in list_sorted(store, &folder, None).await? {
            if let Entry::Object(meta) = entry
                && !meta.key.ends_with(&format!("/{}", layout::RECORD))
            {
                found.push(meta);
            }
        }
    }
    // The announcement goes last: it says what the rest is.
    found.sort_by_key(|meta| meta.key.ends_with(layout::STARTED));
    Ok(found)
}

/// Deletes them; how many there were.
pub(crate) async fn delete_leftovers(store: &dyn Store, folder: &str) -> Result<u64> {
    let keys: Vec<String> = leftovers(store, folder).await?.into_iter().map(|meta| meta.key).collect();
    store.delete(&keys).await.into_iter().collect::<Result<Vec<()>>>().map(|done| done.len() as u64)
}

/// The host's name, for records.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The grace period as jiff's type.
pub(crate) fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
