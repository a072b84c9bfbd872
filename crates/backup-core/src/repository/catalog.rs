//! What backups a cluster has, found with a few requests.
//!
//! An index object holds the summaries of all records known when it was written, and a *horizon*: the state of
//! every run with a smaller id is final. So a reader takes the newest index, lists the names of the runs from
//! the horizon on, and reads the records that the index does not know. An index is a cache: without it, or
//! with an old one, the answer is the same and takes longer.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::open::RECORD_LIMIT;
use super::record::{from_json, to_json};
use super::{BackupId, BackupRecord, BackupSummary, ClusterName, FORMAT, Marks, Repository, State, layout};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Created, Entry, Meta, elsewhere, list_sorted, read_if_there, worse};

/// Runs younger than this are always looked for: the clocks of hosts may differ a little, and a run that was
/// given up may still have stored something.
const HORIZON_LAG: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How many records are read at once.
const READS: usize = 16;

/// `index/<ulid>.json.zst`
#[derive(Serialize, Deserialize)]
struct Index<Backup = BackupSummary, Id = BackupId> {
    format: u32,
    horizon: String,
    backups: Vec<Backup>,
    abandoned: Vec<Id>,
}

/// A run without a record: at work, or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// The backup that it would be.
    pub id: BackupId,
}

/// One of the places of a repository that is in several, as a backup sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackupPlace {
    /// Which place.
    pub place: String,
    /// Whether it has the backup whole; nothing where it did not answer.
    pub has: Option<bool>,
}

/// The backups of a cluster at one time.
#[derive(Debug, Clone)]
pub struct Catalog {
    cluster: ClusterName,
    backups: BTreeMap<BackupId, BackupSummary>,
    abandoned: BTreeSet<BackupId>,
    unfinished: Vec<Unfinished>,
    superseded: Vec<String>,
    /// Where the repository has copies, what each of them has that answered.
    copies: Vec<(Repository, Catalog)>,
    /// Whether a copy did not answer.
    incomplete: bool,
    marks: Marks,
    half_removed: BTreeSet<BackupId>,
}

impl Catalog {
    /// Reads the catalog of a cluster. One without backups is empty. Of a repository in several copies it is all that
    /// those have that answer.
    pub async fn load(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        Self::load_listing(repository, cluster, false).await
    }

    /// The same, with a look whether every backup's folder is there: a host whose index was not the newest may have
    /// written a backup into it that was removed meanwhile, and one that was copied there may be older than the index.
    pub(crate) async fn load_whole(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        Self::load_listing(repository, cluster, true).await
    }

    /// What one copy has, looked at whole. A record that is damaged there is left out.
    pub(crate) async fn load_copy(copy: &Repository, cluster: &ClusterName) -> Result<Self> {
        Self::load_one(copy, cluster, true, true).await
    }

    async fn load_listing(repository: &Repository, cluster: &ClusterName, whole: bool) -> Result<Self> {
        let copies = repository.each_copy();
        if copies.is_empty() {
            return Self::load_one(repository, cluster, false, whole).await;
        }
        let loads = copies.into_iter().map(|copy| async move {
            let loaded = Self::load_one(&copy, cluster, true, whole).await;
            (copy, loaded)
        });
        let (mut loaded, mut failed) = (Vec::new(), None);
        for (copy, catalog) in futures::future::join_all(loads).await {
            match catalog {
                Ok(catalog) => loaded.push((copy, catalog)),
                Err(error) if elsewhere(&error) => {
                    tracing::warn!(copy = copy.store().location(), %error, "what this copy has is not known");
                    failed = Some(worse(failed, error));
                }
                Err(error) => return Err(error),
            }
        }
        match failed {
            Some(error) if loaded.is_empty() => Err(error),
            failed => Ok(Self { incomplete: failed.is_some(), ..Self::merged(cluster, loaded) }),
        }
    }

    /// What copies have together. A backup that one of them has is one, whatever the others say of it.
    fn merged(cluster: &ClusterName, copies: Vec<(Repository, Self)>) -> Self {
        let mut merged = Self::empty(cluster);
        for (_, copy) in &copies {
            for (id, backup) in &copy.backups {
                merged.backups.entry(id.clone()).or_insert_with(|| backup.clone());
            }
            merged.abandoned.extend(copy.abandoned.iter().cloned());
            merged.unfinished.extend(copy.unfinished.iter().cloned());
            merged.half_removed.extend(copy.half_removed.iter().cloned());
            merged.marks.extend(copy.marks.clone());
        }
        let Self { backups, abandoned, unfinished, half_removed, .. } = &mut merged;
        abandoned.retain(|id| !backups.contains_key(id));
        half_removed.retain(|id| !backups.contains_key(id));
        unfinished.sort_by(|a, b| a.id.cmp(&b.id));
        unfinished.dedup();
        let known =
            |id: &BackupId| backups.contains_key(id) || abandoned.contains(id) || half_removed.contains(id);
        unfinished.retain(|run| !known(&run.id));
        merged.copies = copies;
        merged
    }

    fn empty(cluster: &ClusterName) -> Self {
        Self {
            cluster: cluster.clone(),
            backups: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            unfinished: Vec::new(),
            superseded: Vec::new(),
            copies: Vec::new(),
            incomplete: false,
            marks: Marks::default(),
            half_removed: BTreeSet::new(),
        }
    }

    /// Where the repository has copies, how many backups each place has of those that answered; nothing else.
    pub fn in_copies(&self) -> Vec<(String, usize)> {
        let place = |(copy, catalog): &(Repository, Self)| {
            (copy.store().location().to_owned(), catalog.backups.len())
        };
        self.copies.iter().map(place).collect()
    }

    /// Where the repository has copies, the backups that not all of those have that answered, with the places of those
    /// that do.
    pub fn not_everywhere(&self) -> Option<BTreeMap<BackupId, Vec<String>>> {
        let places_of = |id: &BackupId| -> Vec<String> {
            let having = self.copies.iter().filter(|(_, catalog)| catalog.backups.contains_key(id));
            having.map(|(copy, _)| copy.store().location().to_owned()).collect()
        };
        let backups = self.backups.keys().map(|id| (id.clone(), places_of(id)));
        (!self.copies.is_empty())
            .then(|| backups.filter(|(_, places)| places.len() < self.copies.len()).collect())
    }

    /// Where a repository is in several places, which of them have a backup. It is that of which this is the catalog.
    pub fn places_of(&self, repository: &Repository, id: &BackupId) -> Option<Vec<BackupPlace>> {
        let has = |place: &str| {
            let answered = self.copies.iter().find(|(copy, _)| copy.store().location() == place);
            answered.map(|(_, catalog)| catalog.backups.contains_key(id))
        };
        let place = |place: &str| BackupPlace { place: place.to_owned(), has: has(place) };
        let copies = repository.store().copies();
        (!copies.is_empty()).then(|| copies.iter().map(|copy| place(copy.location())).collect())
    }

    /// Whether a run was given up.
    pub(crate) fn has_given_up(&self, id: &BackupId) -> bool {
        self.abandoned.contains(id)
    }

    /// Reads what one place has. `tolerant`: a record that cannot be read is left out, since another copy has it.
    /// `whole`: the index does not say which folders need not be looked at.
    async fn load_one(
        repository: &Repository,
        cluster: &ClusterName,
        tolerant: bool,
        whole: bool,
    ) -> Result<Self> {
        let (index, superseded) = newest_index(repository, cluster).await?;
        let (horizon, known, known_abandoned) = match index {
            Some(index) => (Some(index.horizon), index.backups, index.abandoned),
            None => (None, Vec::new(), Vec::new()),
        };
        let listed_from = horizon.as_deref().filter(|_| !whole);
        let backups = known.into_iter().map(|b| (b.id.clone(), b)).collect();
        let mut catalog = Self { backups, superseded, ..Self::empty(cluster) };
        let known_abandoned: BTreeSet<BackupId> = known_abandoned.into_iter().collect();
        let mut unknown = Vec::new();
        let mut there = BTreeSet::new();
        for entry in list_sorted(&**repository.store(), &layout::backups(cluster), listed_from).await? {
            // What has no name of ours is not ours to judge.
            let (Entry::Folder(_), Ok(id)) = (&entry, entry.name().parse::<BackupId>()) else { continue };
            there.insert(id.clone());
            if known_abandoned.contains(&id) {
                catalog.abandoned.insert(id);
            } else if !catalog.backups.contains_key(&id) {
                unknown.push(id);
            }
        }
        // Whatever the horizon does not cover and is gone was deleted after the index was written.
        catalog
            .backups
            .retain(|id, _| listed_from.is_some_and(|from| id.as_str() <= from) || there.contains(id));
        let records: Vec<(BackupId, Result<Option<BackupRecord>>)> = futures::stream::iter(unknown)
            .map(|id| async move {
                let record = repository.record_if_there(cluster, &id).await;
                (id, record)
            })
            .buffer_unordered(READS)
            .collect()
            .await;
        for (id, record) in records {
            let record = match record {
                Err(error) if tolerant && error.kind() == ErrorKind::Integrity => {
                    tracing::warn!(copy = repository.store().location(), %error, "a record is damaged");
                    continue;
                }
                other => other?,
            };
            match record.map(|r| r.summary) {
                None => catalog.unfinished.push(Unfinished { id }),
                Some(summary) if summary.state == State::Committed => {
                    catalog.backups.insert(id, summary);
                }
                Some(_) => {
                    catalog.abandoned.insert(id);
                }
            }
        }
        catalog.unfinished.sort_by(|a, b| a.id.cmp(&b.id));
        // Last: whatever is about to be removed was marked before it went.
        catalog.marks = Marks::load(repository, cluster).await?;
        // A removal that was interrupted has taken the record away: it is no run.
        // A sweep may have taken it for one.
        let Self { unfinished, abandoned, marks, half_removed, .. } = &mut catalog;
        let gone =
            unfinished.iter().map(|run| &run.id).chain(&*abandoned).filter(|id| marks.removal(id).is_some());
        half_removed.extend(gone.cloned());
        unfinished.retain(|run| !half_removed.contains(&run.id));
        Ok(catalog)
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The backups, oldest first. Ids count whole seconds, so the records' own times decide within one.
    pub fn backups(&self) -> impl DoubleEndedIterator<Item = &BackupSummary> + ExactSizeIterator {
        let mut sorted: Vec<&BackupSummary> = self.backups.values().collect();
        sorted.sort_by_key(|b| (b.started, &b.id));
        sorted.into_iter()
    }

    /// Whether all copies answered, where the repository has any.
    pub(crate) fn is_whole(&self) -> bool {
        !self.incomplete
    }

    /// The marks of the backups.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Whether a backup is about to be removed. Nothing chooses it that was not told its id.
    pub fn is_being_removed(&self, id: &BackupId) -> bool {
        self.marks.removal(id).is_some()
    }

    /// Backups whose removal was interrupted: their records are gone, and objects are left.
    pub fn half_removed(&self) -> &BTreeSet<BackupId> {
        &self.half_removed
    }

    /// Says that the record of a backup is gone, of which the index still knew.
    pub(crate) fn forget(&mut self, id: &BackupId) {
        if self.backups.remove(id).is_some() {
            self.half_removed.insert(id.clone());
        }
    }

    /// Whether anything of a run is there: a backup, what is left of one, or a run at work. A copy that did not answer may
    /// have something.
    pub(crate) fn has_folder(&self, id: &BackupId) -> bool {
        self.incomplete
            || self.backups.contains_key(id)
            || self.abandoned.contains(id)
            || self.half_removed.contains(id)
            || self.unfinished.iter().any(|run| run.id == *id)
    }

    /// The backups that are not about to be removed, oldest first.
    pub fn staying(&self) -> impl DoubleEndedIterator<Item = &BackupSummary> {
        self.backups().filter(|backup| !self.is_being_removed(&backup.id))
    }

    /// Runs without a record, oldest first.
    pub fn unfinished(&self) -> &[Unfinished] {
        &self.unfinished
    }

    /// Runs that were given up, as far as the catalog still looks at them.
    pub(crate) fn abandoned(&self) -> impl Iterator<Item = &BackupId> {
        self.abandoned.iter()
    }

    /// Finds a backup: `latest`, an id, or the beginning of exactly one id. The latest is a complete one.
    ///
    /// # Errors
    /// [`BackupNotFound`](ErrorKind::BackupNotFound)
    pub fn find(&self, wanted: &str) -> Result<&BackupSummary> {
        let missing = |message: String| {
            Error::new(ErrorKind::BackupNotFound, message)
                .with_hint("pgark list shows the backups that there are")
        };
        if wanted == "latest" {
            let stays = |b: &&BackupSummary| b.is_complete() && !self.is_being_removed(&b.id);
            return self.backups().rfind(stays).ok_or_else(|| match self.backups().next_back() {
                None => missing(format!("there is no backup of {}", self.cluster)),
                Some(partial) => missing(format!(
                    "there is no complete backup of {}; the last one, {}, lacks databases",
                    self.cluster, partial.id
                ))
                .with_hint("give its id to use what it holds"),
            });
        }
        let mut found = self.backups().filter(|b| !wanted.is_empty() && b.id.as_str().starts_with(wanted));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(missing(format!("several ids begin with {wanted}"))),
            (None, _) => Err(missing(format!("there is no backup {wanted} of {}", self.cluster))),
        }
    }

    /// The newest complete backup of a kind. One of all that there is comes before one of a selection, however old it is:
    /// who restores `latest` wants no part without a word.
    pub fn latest_whole(&self, kind: &str) -> Option<&BackupSummary> {
        let newest = |whole: bool| {
            self.staying().rfind(|b| b.kind == kind && b.is_complete() && (!whole || !b.is_selection()))
        };
        newest(true).or_else(|| newest(false))
    }

    /// Writes the index anew and removes those that it replaces. Returns the store's time.
    ///
    /// Where the repository has copies each gets one of its own: it shows what that copy has.
    pub async fn write_index(&self, repository: &Repository) -> Result<Timestamp> {
        if self.copies.is_empty() {
            return self.write_own_index(repository).await;
        }
        let (mut written, mut failed) = (None, None);
        for (copy, catalog) in &self.copies {
            match catalog.write_own_index(copy).await {
                Ok(time) => {
                    written.get_or_insert(time);
                }
                Err(error) => failed = Some(error),
            }
        }
        match (written, failed) {
            (Some(time), None) => Ok(time),
            (_, Some(error)) => Err(error),
            (None, None) => Err(Error::internal("a catalog without copies")),
        }
    }

    async fn write_own_index(&self, repository: &Repository) -> Result<Timestamp> {
        let store = repository.store();
        let recent = BackupId::floor(Timestamp::now() - HORIZON_LAG);
        // The horizon itself is not listed, so it must lie before the id of the oldest run without a record.
        let horizon = match self.unfinished.first() {
            Some(oldest) => recent.min(BackupId::floor(oldest.id.started())),
            None => recent,
        };
        let index = Index {
            format: FORMAT,
            horizon,
            backups: self.backups.values().collect::<Vec<_>>(),
            abandoned: self.abandoned.iter().collect::<Vec<_>>(),
        };
        let json = to_json(&index)?;
        let body = zstd::bulk::compress(&json, 3).map_err(|e| Error::io("compressing the index", e))?;
        let key = format!("{}/{}.json.zst", layout::index(&self.cluster), Ulid::generate());
        if store.create(&key, body.into()).await? == Created::Other {
            return Err(Error::internal("a new name is taken already"));
        }
        let written = store.head(&key).await?.modified;
        for result in store.delete(&self.superseded).await {
            if let Err(error) = result {
                tracing::debug!(%error, "an old index stays");
            }
        }
        Ok(written)
    }
}

/// The newest index that can be read, and the keys of all that there are.
async fn newest_index(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<(Option<Index>, Vec<String>)> {
    let store = &**repository.store();
    let mut found: Vec<Meta> = list_sorted(store, &layout::index(cluster), None)
        .await?
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Object(meta) => Some(meta),
            Entry::Folder(_) => None,
        })
        .collect();
    found.sort_by(|a, b| (a.modified, &a.key).cmp(&(b.modified, &b.key)));
    let keys = found.iter().map(|meta| meta.key.clone()).collect();
    for meta in found.iter().rev() {
        // Another host may have replaced it since.
        let Some(body) = read_if_there(store, &meta.key, RECORD_LIMIT).await? else { continue };
        match parse_index(&body, &meta.key) {
            Ok(index) if index.backups.iter().any(|backup| backup.cluster != *cluster) => {
                tracing::warn!(
                    key = meta.key,
                    "an index is of another cluster; the records are read instead"
                );
            }
            Ok(index) => return Ok((Some(index), keys)),
            Err(error) if error.kind() == ErrorKind::NewerFormat => return Err(error),
            Err(error) => tracing::warn!(%error, "an index cannot be used; the records are read instead"),
        }
    }
    Ok((None, keys))
}

fn parse_index(body: &[u8], key: &str) -> Result<Index> {
    let json = zstd::bulk::decompress(body, RECORD_LIMIT)
        .map_err(|e| Error::new(ErrorKind::Integrity, format!("{key} is damaged: {e}")))?;
    from_json(&json, key)
}
