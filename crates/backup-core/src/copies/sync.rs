//! Fills in what copies of a repository lack.
//!
//! What one copy has and another lacks is copied; nothing is deleted because another copy lacks it. Only the mark that a
//! prune leaves on a backup deletes it in every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Problem;
use super::transfer::{Check, transfer};
use crate::audit::{self, Act, Outcome};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::repository::{
    BackupId, BackupRecord, BackupSummary, Catalog, ClusterName, Marks, RECORD_LIMIT, Repository, State,
    age_of_key, delete_leftovers, keys_in, layout,
};
use crate::store::{Entry, Meta, Store, list_sorted, read_whole};

/// How many folders are compared at once.
const FOLDERS: usize = 16;

/// How to sync.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct SyncOptions {
    /// How many objects are copied at once; 4 by default. Each takes three chunks of 8 MiB at most.
    pub jobs: Option<usize>,
    /// Who is told what happens.
    pub observer: Option<Arc<dyn Observer>>,
}

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SyncReport {
    /// Id of the repository.
    pub repository: String,
    /// Its copies.
    pub copies: Vec<CopySynced>,
    /// What could not be done.
    pub problems: Vec<Problem>,
}

/// What a sync did in one copy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct CopySynced {
    /// Its place.
    pub copy: String,
    /// Whether it answered.
    pub answered: bool,
    /// Backups that it has now and lacked before.
    pub backups: Vec<BackupId>,
    /// Backups that were deleted, since a prune had marked them.
    pub removed: Vec<BackupId>,
    /// Objects that were written.
    pub objects: u64,
    /// Their length.
    pub bytes: u64,
}

impl SyncReport {
    /// Whether all copies have the same now.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.copies.iter().all(|copy| copy.answered)
    }
}

/// The copies that answer, and what is done with them.
struct Syncing {
    copies: Vec<Repository>,
    stores: Vec<Arc<dyn Store>>,
    done: Vec<CopySynced>,
    problems: Vec<Problem>,
    jobs: usize,
    observer: Arc<dyn Observer>,
}

/// An object that a copy lacks.
struct Job {
    to: usize,
    from: Vec<usize>,
    key: String,
    check: Check,
}

/// Fills in what the copies of a repository lack. It can be interrupted anywhere and be run again.
///
/// # Errors
/// [`Usage`](ErrorKind::Usage) where the repository is in one place only, [`StoreUnavailable`](ErrorKind::StoreUnavailable)
/// where fewer than two answer. What could not be done with single objects stands in the report.
pub async fn sync(
    repository: &Repository,
    options: &SyncOptions,
    cancel: &CancellationToken,
) -> Result<SyncReport> {
    let all = repository.store().copies();
    if all.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            "the repository is in one place only: there is nothing to sync",
        )
        .with_hint("name its places with several --repo, or with [copy.NAME] in pgark.toml"));
    }
    let copies = repository.copies().await?;
    if copies.len() < 2 {
        let message = format!("{} of {} copies answer: it takes two", copies.len(), all.len());
        return Err(Error::new(ErrorKind::StoreUnavailable, message)
            .with_hint("is a store away, or an empty place no copy yet? pgark init makes it one"));
    }
    let mut syncing = Syncing {
        stores: copies.iter().map(|copy| Arc::clone(copy.store())).collect(),
        done: copies.iter().map(|copy| synced(copy.store().location(), true)).collect(),
        copies,
        problems: Vec::new(),
        jobs: options.jobs.unwrap_or(4).max(1),
        observer: options.observer.clone().unwrap_or_else(|| Arc::new(Silent)),
    };
    let mut clusters = BTreeSet::new();
    for copy in &syncing.copies {
        clusters.extend(copy.clusters().await?);
    }
    for cluster in &clusters {
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled()),
            result = syncing.cluster(cluster) => result,
        };
        let ids: BTreeSet<&BackupId> = syncing.done.iter().flat_map(|copy| &copy.backups).collect();
        let act = Act::new("sync").backups(ids).detail("copies", syncing.copies.len());
        audit::note_if_possible(repository, cluster, act, Outcome::of(&result)).await;
        result?;
    }
    let mut report =
        SyncReport { repository: repository.id().to_owned(), copies: Vec::new(), problems: syncing.problems };
    for copy in all {
        let known = syncing.done.iter().find(|done| done.copy == copy.location());
        report.copies.push(known.cloned().unwrap_or_else(|| synced(copy.location(), false)));
    }
    Ok(report)
}

fn synced(copy: &str, answered: bool) -> CopySynced {
    CopySynced { copy: copy.to_owned(), answered, ..CopySynced::default() }
}

impl Syncing {
    async fn cluster(&mut self, cluster: &ClusterName) -> Result<()> {
        self.observer.event(&Event::Step { what: format!("comparing the copies of {cluster}") });
        let root = format!("{}/{cluster}", layout::CLUSTERS);
        // Keys before what is sealed with them; the backups, marks and indexes have rules of their own.
        self.walk(vec![layout::wal_keys(cluster)], &[]).await?;
        let own = [layout::backups(cluster), layout::marks(cluster), layout::index(cluster)];
        self.walk(vec![root], &own).await?;
        self.marks(cluster).await?;
        self.backups(cluster).await
    }

    /// Makes folders equal, and those in them but `skip`.
    async fn walk(&mut self, mut folders: Vec<String>, skip: &[String]) -> Result<()> {
        while !folders.is_empty() {
            let batch = folders.split_off(folders.len().saturating_sub(FOLDERS));
            let stores = &self.stores;
            let listed: Vec<(Vec<String>, Vec<Job>)> = futures::stream::iter(batch)
                .map(|folder| async move { compare(stores, &folder, skip).await })
                .buffer_unordered(FOLDERS)
                .try_collect()
                .await?;
            let mut jobs = Vec::new();
            for (below, lacking) in listed {
                folders.extend(below);
                jobs.extend(lacking);
            }
            self.carry_out(jobs).await;
        }
        Ok(())
    }

    /// Copies objects; what fails is noted. Whether all of it was done.
    async fn carry_out(&mut self, jobs: Vec<Job>) -> bool {
        let stores = self.stores.clone();
        let mut results = futures::stream::iter(jobs)
            .map(|job| {
                let stores = &stores;
                async move {
                    let from: Vec<Arc<dyn Store>> =
                        job.from.iter().map(|at| Arc::clone(&stores[*at])).collect();
                    let result = transfer(&from, &*stores[job.to], &job.key, &job.check).await;
                    (job, result)
                }
            })
            .buffer_unordered(self.jobs);
        let mut whole = true;
        while let Some((job, result)) = results.next().await {
            match result {
                Ok(0) => {}
                Ok(bytes) => {
                    self.done[job.to].objects += 1;
                    self.done[job.to].bytes += bytes;
                    let stored_bytes = self.done.iter().map(|done| done.bytes).sum();
                    self.observer.event(&Event::Progress { raw_bytes: 0, stored_bytes });
                }
                Err(error) => {
                    whole = false;
                    self.problems.push(Problem {
                        copy: self.done[job.to].copy.clone(),
                        what: job.key,
                        why: error.to_string(),
                    });
                }
            }
        }
        whole
    }

    fn problem(&mut self, copy: usize, what: &impl ToString, error: &Error) {
        let copy = self.done[copy].copy.clone();
        self.problems.push(Problem { copy, what: what.to_string(), why: error.to_string() });
    }

    /// Of each backup the mark that counts. The newest by the store's time does: an older one that came later to a copy
    /// would be taken for the newest there.
    async fn marks(&mut self, cluster: &ClusterName) -> Result<()> {
        let all = self.all_marks(cluster).await?;
        let mut jobs = Vec::new();
        for (at, copy) in self.copies.iter().enumerate() {
            let there = Marks::load(copy, cluster).await?;
            for id in all.ids() {
                let here: BTreeSet<&str> = there.of(id).iter().map(|mark| mark.key.as_str()).collect();
                for mark in all.decided(id).into_iter().filter(|mark| !here.contains(mark.key.as_str())) {
                    let from = (0..self.stores.len()).filter(|other| *other != at).collect();
                    jobs.push(Job { to: at, from, key: mark.key.clone(), check: Check::Json });
                }
            }
        }
        self.carry_out(jobs).await;
        Ok(())
    }

    async fn all_marks(&self, cluster: &ClusterName) -> Result<Marks> {
        let mut all = Marks::default();
        for copy in &self.copies {
            all.extend(Marks::load(copy, cluster).await?);
        }
        Ok(all)
    }

    async fn backups(&mut self, cluster: &ClusterName) -> Result<()> {
        let mut catalogs = Vec::new();
        for copy in &self.copies {
            catalogs.push(Catalog::load_copy(copy, cluster).await?);
        }
        let mut backups: BTreeMap<BackupId, BackupSummary> = BTreeMap::new();
        for backup in catalogs.iter().flat_map(Catalog::backups) {
            backups.entry(backup.id.clone()).or_insert_with(|| backup.clone());
        }
        let removed = removals(&self.all_marks(cluster).await?, &backups);
        let mut having: Vec<BTreeSet<BackupId>> =
            catalogs.iter().map(|catalog| catalog.backups().map(|b| b.id.clone()).collect()).collect();
        let mut changed = vec![false; self.copies.len()];
        // Ids sort by time: what a backup builds on comes before it.
        for backup in backups.values() {
            let have: Vec<usize> = (0..having.len()).filter(|at| having[*at].contains(&backup.id)).collect();
            if removed.contains(&backup.id) {
                for at in have {
                    changed[at] = true;
                    self.remove(at, cluster, &backup.id).await;
                }
                continue;
            }
            for at in 0..self.copies.len() {
                if have.contains(&at) {
                    continue;
                }
                if let Some(parent) = &backup.parent
                    && !having[at].contains(parent)
                {
                    let error = Error::new(
                        ErrorKind::BackupNotFound,
                        format!("{parent}, on which it builds, is not there"),
                    );
                    self.problem(at, &backup.id, &error);
                    continue;
                }
                if !std::mem::replace(&mut changed[at], true) {
                    self.forget_index(at, cluster).await;
                }
                let given_up = catalogs[at].has_given_up(&backup.id);
                match self.fill_in(at, &have, cluster, &backup.id, given_up).await {
                    Ok(true) => {
                        having[at].insert(backup.id.clone());
                        self.done[at].backups.push(backup.id.clone());
                    }
                    Ok(false) => {}
                    Err(error) => self.problem(at, &backup.id, &error),
                }
            }
        }
        self.keys(cluster, &backups, &having).await?;
        for (at, _) in changed.iter().enumerate().filter(|(_, changed)| **changed) {
            let written = async {
                Catalog::load_copy(&self.copies[at], cluster).await?.write_index(&self.copies[at]).await
            };
            if let Err(error) = written.await {
                self.problem(at, &layout::index(cluster), &error);
            }
        }
        Ok(())
    }

    /// An index says of older backups than seven days that it knows them all. Without one all are looked for.
    async fn forget_index(&mut self, at: usize, cluster: &ClusterName) {
        let store = &self.stores[at];
        let forgotten = async {
            let entries = list_sorted(&**store, &layout::index(cluster), None).await?;
            let keys: Vec<String> =
                entries.iter().map(|entry| format!("{}/{}", layout::index(cluster), entry.name())).collect();
            store.delete(&keys).await.into_iter().collect::<Result<()>>()
        };
        if let Err(error) = forgotten.await {
            // It is written anew at the end, and the newer one counts.
            tracing::debug!(%error, "an old index stays for now");
        }
    }

    /// Brings a backup into a copy: its objects, its key, its record. True when it is there.
    async fn fill_in(
        &mut self,
        at: usize,
        have: &[usize],
        cluster: &ClusterName,
        id: &BackupId,
        given_up: bool,
    ) -> Result<bool> {
        self.observer.event(&Event::Step { what: format!("bringing {id} to {}", self.done[at].copy) });
        let folder = layout::backup(cluster, id);
        let record_key = format!("{folder}/{}", layout::RECORD);
        let (record, record_from) = self.record(have, cluster, id, &record_key).await?;
        let store = Arc::clone(&self.stores[at]);
        if given_up {
            // There the run was given up without its knowledge. It has committed elsewhere, so it is over.
            store.delete(std::slice::from_ref(&record_key)).await.into_iter().collect::<Result<()>>()?;
        }
        let there = lengths(&*store, &folder).await?;
        let started = format!("{folder}/{}", layout::STARTED);
        let mut jobs = Vec::new();
        if !there.contains_key(&started) {
            // First: it says that something is at work in this folder. Old records may be without.
            let job = Job { to: at, from: have.to_vec(), key: started, check: Check::Json };
            if self.has_any(have, &job.key).await && !self.carry_out(vec![job]).await {
                return Ok(false);
            }
        }
        for object in record.objects() {
            let key = format!("{folder}/{}", object.key);
            match there.get(&key) {
                Some(bytes) if *bytes == object.bytes => continue,
                // What a failed run left, which nothing names yet.
                Some(_) => {
                    store.delete(std::slice::from_ref(&key)).await.into_iter().collect::<Result<()>>()?;
                }
                None => {}
            }
            jobs.push(Job { to: at, from: have.to_vec(), key, check: Check::Whole(object.clone()) });
        }
        if record.encryption.is_some() {
            let key = self.newest_key(have, &folder).await?;
            jobs.push(Job { to: at, from: have.to_vec(), key, check: Check::Nothing });
        }
        if !self.carry_out(jobs).await {
            return Ok(false);
        }
        let job = Job { to: at, from: vec![record_from], key: record_key, check: Check::Json };
        Ok(self.carry_out(vec![job]).await)
    }

    async fn has_any(&self, have: &[usize], key: &str) -> bool {
        for at in have {
            if self.stores[*at].head(key).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// The record of a backup, and where it was read.
    async fn record(
        &self,
        have: &[usize],
        cluster: &ClusterName,
        id: &BackupId,
        key: &str,
    ) -> Result<(BackupRecord, usize)> {
        let mut failed = None;
        for at in have {
            let read = async {
                let body = read_whole(&*self.stores[*at], key, RECORD_LIMIT).await?;
                Repository::parse_record(cluster, id, &body, key)
            };
            match read.await {
                Ok(record) if record.state == State::Committed => return Ok((record, *at)),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed
            .unwrap_or_else(|| Error::new(ErrorKind::BackupNotFound, format!("{id} is gone meanwhile"))))
    }

    /// The key of a backup's newest wrapped key, wherever it is.
    async fn newest_key(&self, have: &[usize], folder: &str) -> Result<String> {
        let mut names = Vec::new();
        for at in have {
            names.extend(keys_in(&*self.stores[*at], folder).await?);
        }
        let newest = names.into_iter().max_by_key(|name| age_of_key(name));
        newest
            .map(|name| format!("{folder}/{name}"))
            .ok_or_else(|| Error::new(ErrorKind::ObjectMissing, format!("the key in {folder} is in no copy")))
    }

    /// The newest key of each backup in all copies, and no older one: its readers may have been taken off.
    async fn keys(
        &mut self,
        cluster: &ClusterName,
        backups: &BTreeMap<BackupId, BackupSummary>,
        having: &[BTreeSet<BackupId>],
    ) -> Result<()> {
        for backup in backups.values().filter(|backup| backup.encryption.is_some()) {
            let folder = layout::backup(cluster, &backup.id);
            let have: Vec<usize> = (0..having.len()).filter(|at| having[*at].contains(&backup.id)).collect();
            let lists = have.iter().map(|at| keys_in(&*self.stores[*at], &folder));
            let names: Vec<Vec<String>> = futures::future::try_join_all(lists).await?;
            let newest = names.iter().flatten().max_by_key(|name| age_of_key(name)).cloned();
            let Some(newest) = newest else { continue };
            for (at, names) in have.iter().zip(&names) {
                let key = format!("{folder}/{newest}");
                if !names.contains(&newest) {
                    let job = Job { to: *at, from: have.clone(), key, check: Check::Nothing };
                    if !self.carry_out(vec![job]).await {
                        continue;
                    }
                }
                let older: Vec<String> =
                    names.iter().filter(|n| **n != newest).map(|n| format!("{folder}/{n}")).collect();
                for (key, result) in older.iter().zip(self.stores[*at].delete(&older).await) {
                    if let Err(error) = result {
                        self.problem(*at, key, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes a backup in a copy: its record first.
    async fn remove(&mut self, at: usize, cluster: &ClusterName, id: &BackupId) {
        let folder = layout::backup(cluster, id);
        let store = Arc::clone(&self.stores[at]);
        let removed = async {
            let record = format!("{folder}/{}", layout::RECORD);
            store.delete(&[record]).await.into_iter().collect::<Result<()>>()?;
            delete_leftovers(&*store, &folder).await
        };
        match removed.await {
            Ok(_) => self.done[at].removed.push(id.clone()),
            Err(error) => self.problem(at, id, &error),
        }
    }
}

/// The backups that a prune has marked, without those that another one builds on that it has not.
fn removals(marks: &Marks, backups: &BTreeMap<BackupId, BackupSummary>) -> BTreeSet<BackupId> {
    let mut removed: BTreeSet<BackupId> =
        backups.keys().filter(|id| marks.removal(id).is_some()).cloned().collect();
    for backup in backups.values().rev() {
        if let Some(parent) = backup.parent.as_ref().filter(|_| !removed.contains(&backup.id)) {
            removed.remove(parent);
        }
    }
    removed
}

/// The lengths of what is in a backup's folder.
async fn lengths(store: &dyn Store, folder: &str) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for place in [folder.to_owned(), format!("{folder}/{}", layout::PARTS)] {
        for entry in list_sorted(store, &place, None).await? {
            if let Entry::Object(meta) = entry {
                found.insert(meta.key, meta.bytes);
            }
        }
    }
    Ok(found)
}

/// What copies have in a folder: the folders in it, and the objects that some lack.
async fn compare(
    stores: &[Arc<dyn Store>],
    folder: &str,
    skip: &[String],
) -> Result<(Vec<String>, Vec<Job>)> {
    let lists = stores.iter().map(|store| list_sorted(&**store, folder, None));
    let (mut below, mut objects) = (BTreeSet::new(), BTreeMap::<String, Vec<(usize, Meta)>>::new());
    for (at, entries) in futures::future::try_join_all(lists).await?.into_iter().enumerate() {
        for entry in entries {
            match entry {
                Entry::Folder(key) if skip.contains(&key) => {}
                Entry::Folder(key) => {
                    below.insert(key);
                }
                Entry::Object(meta) => objects.entry(meta.key.clone()).or_default().push((at, meta)),
            }
        }
    }
    let mut jobs = Vec::new();
    for (key, there) in objects {
        let from: Vec<usize> = there.iter().map(|(at, _)| *at).collect();
        for to in (0..stores.len()).filter(|at| !from.contains(at)) {
            jobs.push(Job { to, from: from.clone(), key: key.clone(), check: Check::by_name(&key) });
        }
    }
    Ok((below.into_iter().collect(), jobs))
}
