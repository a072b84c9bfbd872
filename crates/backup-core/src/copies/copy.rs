//! Backups from one repository to another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::announce::{AS_IT_IS, SEALED_ANEW, announce};
use super::reseal::reseal;
use super::transfer::{Check, create, transfer};
use crate::audit::{self, Act, Outcome};
use crate::encryptor::{Cipher, Encryptor};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::physical::{Span, span};
use crate::postgres::Lsn;
use crate::repository::{
    BackupId, BackupRecord, Catalog, ClusterName, Digest, Encryption, ObjectRecord, RECORD_LIMIT, Repository,
    State, ancestors, delete_leftovers, keys_in, layout, open_cipher, open_contents, seal_contents, to_json,
};
use crate::store::{Created, Entry, Store, elsewhere, list_sorted, read_checked, sources};
use crate::wal::{Archive, WalCopy, Written};

/// How to copy.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct CopyOptions {
    /// How many objects are copied at once; 4 by default. Each takes four chunks of 8 MiB at most.
    pub jobs: Option<usize>,
    /// Seals everything with new keys for these readers. Readers of the old keys cannot read the copy.
    pub readers: Option<Arc<dyn Encryptor>>,
    /// Opens what is sealed; needed with `readers`, where the backups are encrypted.
    pub opener: Option<Arc<dyn Encryptor>>,
    /// Copies all WAL from the first of the backups on, and not only what a backup cannot do without.
    pub wal: bool,
    /// Who is told what happens.
    pub observer: Option<Arc<dyn Observer>>,
}

/// A backup that is in the other repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Copied {
    /// Its id, the same as before.
    pub id: BackupId,
    /// Whether it was there already.
    pub already: bool,
    /// Objects that were written.
    pub objects: u64,
    /// Their length.
    pub bytes: u64,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CopyReport {
    /// The place that was read.
    pub from: String,
    /// The place that was written.
    pub to: String,
    /// Whether everything was sealed with new keys.
    pub sealed_anew: bool,
    /// The backups, oldest first, with those that they build on.
    pub backups: Vec<Copied>,
    /// Objects of WAL that were written.
    pub wal_objects: u64,
    /// Their length.
    pub wal_bytes: u64,
}

struct Copying<'a> {
    from: &'a Repository,
    to: &'a Repository,
    cluster: &'a ClusterName,
    sources: Vec<Arc<dyn Store>>,
    options: &'a CopyOptions,
    jobs: usize,
    observer: Arc<dyn Observer>,
}

/// Copies backups, those that they build on, and the WAL without which they cannot be restored, from one repository to
/// another one. A backup has the same id there; it exists when it is whole. What is there already is left alone. It can
/// be interrupted anywhere and be run again.
///
/// # Errors
/// [`Usage`](ErrorKind::Usage) between copies of one repository, [`Conflict`](ErrorKind::Conflict) where the cluster's name
/// is that of another cluster there, or another process copies the same backup.
pub async fn copy(
    from: &Repository,
    to: &Repository,
    cluster: &ClusterName,
    wanted: &[BackupId],
    options: &CopyOptions,
    cancel: &CancellationToken,
) -> Result<CopyReport> {
    if from.id() == to.id() {
        return Err(Error::new(ErrorKind::Usage, "both places are one repository")
            .with_hint("pgark sync fills in what a copy of a repository lacks"));
    }
    let observer = options.observer.clone().unwrap_or_else(|| Arc::new(Silent));
    let jobs = options.jobs.unwrap_or(4).max(1);
    let copying = Copying { from, to, cluster, sources: sources(from.store()), options, jobs, observer };
    let done = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::cancelled()),
        done = copying.all(wanted) => done,
    };
    for (repository, place, other) in [(from, "to", to), (to, "from", from)] {
        let act = Act::new("copy").backups(wanted).detail(place, other.id());
        audit::note_if_possible(repository, cluster, act, Outcome::of(&done)).await;
    }
    done
}

impl Copying<'_> {
    async fn all(&self, wanted: &[BackupId]) -> Result<CopyReport> {
        let mut report = CopyReport {
            from: self.from.store().location().to_owned(),
            to: self.to.store().location().to_owned(),
            sealed_anew: self.options.readers.is_some(),
            backups: Vec::new(),
            wal_objects: 0,
            wal_bytes: 0,
        };
        let mut records = BTreeMap::new();
        for id in wanted {
            let record = self.from.record(self.cluster, id).await?;
            let before = ancestors(self.from, &record).await?;
            records.extend(before.into_iter().chain([record]).map(|record| (record.id.clone(), record)));
        }
        self.look_at_cluster(&records).await?;
        let there = Catalog::load_whole(self.to, self.cluster).await?;
        let known: BTreeSet<BackupId> = there.backups().map(|backup| backup.id.clone()).collect();
        // The WAL first: a backup that cannot be restored without it shall not be there before.
        let wal = self.wal(&records).await?;
        (report.wal_objects, report.wal_bytes) = (wal.objects, wal.bytes);
        let mut changed = false;
        // Ids sort by time: what a backup builds on comes before it.
        for (id, record) in &records {
            if known.contains(id) {
                report.backups.push(Copied { id: id.clone(), already: true, objects: 0, bytes: 0 });
                continue;
            }
            if !std::mem::replace(&mut changed, true) {
                self.forget_index().await;
            }
            self.observer.event(&Event::Step { what: format!("copying {id}") });
            if there.has_given_up(id) {
                self.clear_given_up(id).await?;
            }
            let written = match &self.options.readers {
                None => self.as_it_is(record).await,
                Some(readers) => self.sealed_anew(record, readers).await,
            };
            let written = written.map_err(|e| e.doing(format!("copying backup {id}")))?;
            report.backups.push(Copied {
                id: id.clone(),
                already: false,
                objects: written.objects,
                bytes: written.bytes,
            });
        }
        if changed {
            self.write_index().await?;
        }
        Ok(report)
    }

    /// The name must stand for the same cluster on both sides.
    async fn look_at_cluster(&self, records: &BTreeMap<BackupId, BackupRecord>) -> Result<()> {
        let systems: BTreeSet<&str> =
            records.values().filter_map(|record| record.source.get("system_identifier")?.as_str()).collect();
        match self.to.identity(self.cluster).await? {
            Some(other) if !systems.is_empty() && !systems.contains(other.system_identifier.as_str()) => {
                Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{} is another PostgreSQL cluster at {}: system identifier {}",
                        self.cluster,
                        self.to.store().location(),
                        other.system_identifier
                    ),
                )
                .with_hint("copy to a repository where this name is free, or is of the same cluster"))
            }
            Some(_) => Ok(()),
            None => match records.values().next_back() {
                Some(newest) => self.to.note_identity(self.cluster, &newest.source).await.map(drop),
                None => Ok(()),
            },
        }
    }

    /// An index says of older backups than seven days that it knows them all. Without one all are looked for.
    async fn forget_index(&self) {
        let folder = layout::index(self.cluster);
        let forgotten = async {
            let entries = list_sorted(&**self.to.store(), &folder, None).await?;
            let keys: Vec<String> =
                entries.iter().map(|entry| format!("{folder}/{}", entry.name())).collect();
            self.to.store().delete(&keys).await.into_iter().collect::<Result<()>>()
        };
        if let Err(error) = forgotten.await {
            // It is written anew at the end, and the newer one counts.
            tracing::debug!(%error, "an old index stays for now");
        }
    }

    async fn write_index(&self) -> Result<()> {
        Catalog::load_whole(self.to, self.cluster).await?.write_index(self.to).await.map(drop)
    }

    /// A copy that was interrupted was given up there by a sweep. It begins anew.
    async fn clear_given_up(&self, id: &BackupId) -> Result<()> {
        let folder = layout::backup(self.cluster, id);
        delete_leftovers(&**self.to.store(), &folder).await?;
        let record = format!("{folder}/{}", layout::RECORD);
        self.to.store().delete(&[record]).await.into_iter().collect()
    }

    /// Copies a backup byte for byte.
    async fn as_it_is(&self, record: &BackupRecord) -> Result<Written> {
        let announced = announce(self.to, record, AS_IT_IS).await?;
        let folder = layout::backup(self.cluster, &record.id);
        let store = &**self.to.store();
        let mut there = BTreeMap::new();
        for place in [folder.clone(), format!("{folder}/{}", layout::PARTS)] {
            for entry in list_sorted(store, &place, None).await? {
                if let Entry::Object(meta) = entry {
                    there.insert(meta.key, meta.bytes);
                }
            }
        }
        let mut wanted: Vec<(String, Check)> = Vec::new();
        for object in record.objects() {
            let key = format!("{folder}/{}", object.key);
            if there.get(&key) != Some(&object.bytes) {
                wanted.push((key, Check::Whole(object.clone())));
            }
        }
        if record.encryption.is_some() {
            let newest = keys_in(&**self.from.store(), &folder).await?.pop().ok_or_else(|| {
                Error::new(ErrorKind::ObjectMissing, format!("the key of backup {} is missing", record.id))
            })?;
            wanted.push((format!("{folder}/{newest}"), Check::Nothing));
        }
        let mut written = Written::default();
        let mut copied = futures::stream::iter(wanted)
            .map(|(key, check)| async move { transfer(&self.sources, store, &key, &check).await })
            .buffer_unordered(self.jobs);
        while let Some(bytes) = copied.try_next().await? {
            self.count(&mut written, bytes);
        }
        let key = format!("{folder}/{}", layout::RECORD);
        let body = read_checked(self.from.store(), &key, RECORD_LIMIT, |body| {
            let found = Repository::parse_record(self.cluster, &record.id, &body, &key)?;
            if found == *record { Ok(body) } else { Err(Error::internal("the record changed")) }
        })
        .await?;
        announced.check(self.to).await?;
        self.commit(&key, body).await?;
        self.count(&mut written, 1);
        Ok(written)
    }

    fn count(&self, written: &mut Written, bytes: u64) {
        written.plus(Written { objects: u64::from(bytes > 0), bytes });
        self.observer.event(&Event::Progress { raw_bytes: 0, stored_bytes: written.bytes });
    }

    async fn commit(&self, key: &str, body: bytes::Bytes) -> Result<()> {
        match self.to.store().commit(key, body).await? {
            Created::New | Created::Same => Ok(()),
            Created::Other => Err(Error::new(ErrorKind::Abandoned, "the copy was given up before it ended")
                .with_hint("a sweep took it for dead, or another process was faster; copy it again")),
        }
    }

    /// Copies a backup, sealed with a new key. What is within the seal stays as it is.
    async fn sealed_anew(&self, record: &BackupRecord, readers: &Arc<dyn Encryptor>) -> Result<Written> {
        let old = open_cipher(self.from, record, self.options.opener.as_ref()).await?;
        let contents = open_contents(self.from, record, old.clone()).await?;
        let making = Arc::clone(readers);
        // A passphrase takes its time.
        let made = tokio::task::spawn_blocking(move || making.new_key()).await;
        let (new, wrapped) =
            made.unwrap_or_else(|e| Err(Error::internal("making a key failed").caused_by(e)))?;
        let announced = announce(self.to, record, SEALED_ANEW).await?;
        let folder = layout::backup(self.cluster, &record.id);
        let store = &**self.to.store();
        let mut written = Written::default();
        let key_bytes = wrapped.len() as u64;
        let bytes = create(store, &format!("{folder}/{}", layout::key(readers.name())), wrapped).await?;
        self.count(&mut written, bytes);

        let mut copy = record.clone();
        let objects: Vec<ObjectRecord> = copy.parts.iter().flat_map(|part| part.objects.clone()).collect();
        let mut sealed = futures::stream::iter(objects)
            .map(|object| {
                let (old, new) = (old.clone(), Arc::clone(&new));
                async move { self.reseal(record, &object, old, new, readers.name()).await }
            })
            .buffered(self.jobs);
        let mut anew = Vec::new();
        while let Some(object) = sealed.try_next().await? {
            self.count(&mut written, object.bytes);
            anew.push(object);
        }
        let mut anew = anew.into_iter();
        for part in &mut copy.parts {
            let count = part.objects.len();
            part.objects = anew.by_ref().take(count).collect();
        }
        let body = seal_contents(&contents, Some(&*new))?;
        let name = layout::contents(Some(readers.name()));
        let object = ObjectRecord { key: name, bytes: body.len() as u64, blake3: Digest::of(&body) };
        let bytes = create(store, &format!("{folder}/{}", object.key), body).await?;
        self.count(&mut written, bytes);
        copy.contents = Some(object);
        copy.summary.encryption = Some(Encryption { method: readers.name().to_owned() });
        copy.summary.state = State::Committed;
        copy.summary.stored_bytes = key_bytes + copy.objects().map(|object| object.bytes).sum::<u64>();
        announced.check(self.to).await?;
        self.commit(&format!("{folder}/{}", layout::RECORD), to_json(&copy)?).await?;
        self.count(&mut written, 1);
        Ok(written)
    }

    async fn reseal(
        &self,
        record: &BackupRecord,
        object: &ObjectRecord,
        old: Option<Arc<dyn Cipher>>,
        new: Arc<dyn Cipher>,
        method: &str,
    ) -> Result<ObjectRecord> {
        let folder = layout::backup(self.cluster, &record.id);
        let clear = match &record.encryption {
            Some(encryption) => object.key.strip_suffix(&format!(".{}", encryption.method)),
            None => None,
        };
        let name = format!("{}.{method}", clear.unwrap_or(&object.key));
        let mut failed = None;
        for source in &self.sources {
            let to = (&**self.to.store(), folder.as_str(), name.as_str(), Arc::clone(&new));
            match reseal((&**source, &folder, object, old.clone()), to).await {
                // It may be the target that failed: the last one says so.
                Err(error) if elsewhere(&error) => failed = Some(error),
                other => return other,
            }
        }
        Err(failed.unwrap_or_else(|| Error::internal("a store without copies")))
    }

    /// Copies WAL: what backups need that have none of their own, or all from the first one on.
    async fn wal(&self, records: &BTreeMap<BackupId, BackupRecord>) -> Result<Written> {
        let spans: Vec<Span> = records.values().filter_map(|record| span(&record.summary)).collect();
        let mut systems: BTreeMap<u64, Vec<&Span>> = BTreeMap::new();
        for one in spans.iter().filter(|span| self.options.wal || !span.wal.brings_wal) {
            systems.entry(one.system).or_default().push(one);
        }
        let mut written = Written::default();
        for (system, spans) in systems {
            self.observer.event(&Event::Step { what: format!("copying WAL of {}", self.cluster) });
            let archive = Archive::of(self.from, self.cluster, system, self.options.opener.clone());
            let anew = self.options.readers.as_ref();
            let copy = WalCopy::new(archive, self.to, self.cluster, anew, self.jobs);
            if self.options.wal {
                let start = spans.iter().map(|span| span.wal.start).min().unwrap_or(Lsn(0));
                written.plus(copy.from(start).await?);
            } else {
                let names: BTreeSet<_> = spans.iter().flat_map(|span| span.wal.segments()).collect();
                written.plus(copy.segments(names).await?);
                written.plus(copy.histories().await?);
            }
        }
        Ok(written)
    }
}
