//! WAL from one repository to another.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Mutex, OnceCell};

use super::archive::{Archive, key_name};
use super::key::WalKey;
use super::name::{SegmentName, WalName};
use super::object::{Piece, RESOLVED, ShortDigest, split};
use super::read::Sink;
use super::seal::{Sealed, Sealer};
use crate::copies::transfer::{Check, transfer};
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;
use crate::repository::{ClusterName, Repository, layout};
use crate::store::{Entry, Meta, list_deep, list_sorted};

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

impl Written {
    fn add(&mut self, bytes: u64) {
        self.objects += u64::from(bytes > 0);
        self.bytes += bytes;
    }

    pub(crate) fn plus(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// Copies WAL of one cluster between repositories.
pub(crate) struct WalCopy {
    from: Archive,
    to: Archive,
    to_repository: Repository,
    cluster: ClusterName,
    /// Seals it anew.
    anew: Option<Arc<dyn Encryptor>>,
    /// With this key, which is made when there is something to be sealed.
    key: OnceCell<WalKey>,
    jobs: usize,
    keys_there: Mutex<BTreeSet<String>>,
}

/// Seals raw bytes anew.
struct Anew(Sealer);

impl Sink for Anew {
    type Out = Sealed;

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes)
    }

    fn end(self) -> Result<Sealed> {
        self.0.finish()
    }
}

impl WalCopy {
    /// With `anew` pieces are opened by `from`, and sealed with a new key for its readers.
    pub(crate) fn new(
        from: Archive,
        to: &Repository,
        cluster: &ClusterName,
        anew: Option<&Arc<dyn Encryptor>>,
        jobs: usize,
    ) -> Self {
        Self {
            to: Archive::of(to, cluster, from.system(), None),
            from,
            to_repository: to.clone(),
            cluster: cluster.clone(),
            anew: anew.cloned(),
            key: OnceCell::new(),
            jobs: jobs.max(1),
            keys_there: Mutex::default(),
        }
    }

    /// Copies segments.
    pub(crate) async fn segments(&self, names: impl IntoIterator<Item = SegmentName>) -> Result<Written> {
        let mut groups: BTreeMap<String, BTreeSet<SegmentName>> = BTreeMap::new();
        for name in names {
            groups.entry(self.from.group(name)).or_default().insert(name);
        }
        let mut written = Written::default();
        for (group, names) in groups {
            let of = |name| matches!(name, Some(WalName::Segment(segment)) if names.contains(&segment));
            written.plus(self.folder(&group, Lsn(0), of).await?);
        }
        Ok(written)
    }

    /// Copies all histories.
    pub(crate) async fn histories(&self) -> Result<Written> {
        let mut written = Written::default();
        let folder = format!("{}/history", self.from.root());
        for entry in list_sorted(self.from.store(), &folder, None).await? {
            let key = format!("{folder}/{}", entry.name());
            let check = Check::by_name(&key);
            written.add(transfer(&self.from.sources(), self.to.store(), &key, &check).await?);
        }
        Ok(written)
    }

    /// Copies everything from a position on, of all timelines, and the restore points.
    pub(crate) async fn from(&self, start: Lsn) -> Result<Written> {
        let mut written = self.histories().await?;
        let root = self.from.root();
        for timeline in list_sorted(self.from.store(), &root, None).await? {
            let Entry::Folder(timeline) = timeline else { continue };
            // Histories and restore points have folders of their own.
            if timeline.rsplit('/').next().is_none_or(|name| name.len() != 8) {
                continue;
            }
            for group in list_sorted(self.from.store(), &timeline, None).await? {
                let Entry::Folder(group) = group else { continue };
                written.plus(self.folder(&group, start, |_| true).await?);
            }
        }
        written.plus(self.folder(&format!("{root}/points"), Lsn(0), |_| true).await?);
        Ok(written)
    }

    /// Copies what is stored below a folder, of some files, and behind a position.
    async fn folder(
        &self,
        folder: &str,
        start: Lsn,
        of: impl Fn(Option<WalName>) -> bool,
    ) -> Result<Written> {
        let mut written = Written::default();
        let objects = list_deep(self.to.store(), folder).await?;
        let same = |meta: &Meta| {
            let (file, name) = split(&meta.key);
            Some(Same::of(&meta.key, file, &Piece::parse(name)?))
        };
        let there: HashSet<Same> = objects.iter().filter_map(same).collect();
        let as_it_is: HashSet<String> = objects.into_iter().map(|meta| meta.key).collect();
        let mut pieces = Vec::new();
        for meta in list_deep(self.from.store(), folder).await? {
            let (file, name) = split(&meta.key);
            if !of(file) {
                continue;
            }
            if name.starts_with(RESOLVED) {
                let check = Check::Nothing;
                written.add(transfer(&self.from.sources(), self.to.store(), &meta.key, &check).await?);
            }
            let Some(piece) = Piece::parse(name) else { continue };
            let end = |segment: SegmentName| segment.next(piece.segment_bytes).start(piece.segment_bytes);
            let is_before = match file {
                Some(WalName::Segment(of) | WalName::Partial(of) | WalName::Backup(of, _)) => {
                    piece.segment_bytes > 0 && end(of) <= start
                }
                _ => false,
            };
            if is_before {
                continue;
            }
            if self.anew.is_some() && as_it_is.contains(&meta.key) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{} has WAL of {} as its old readers read it", self.to.store().location(), self.cluster),
                )
                .with_hint(
                    "it was copied without --re-encrypt before: copy to another place, or remove clusters/NAME/wal there first",
                ));
            }
            if !there.contains(&Same::of(&meta.key, file, &piece)) {
                pieces.push((meta.key, piece));
            }
        }
        let mut copied = futures::stream::iter(pieces)
            .map(|(key, piece)| async move { self.piece(&key, &piece).await })
            .buffer_unordered(self.jobs);
        while let Some(one) = copied.try_next().await? {
            written.plus(one);
        }
        Ok(written)
    }

    async fn piece(&self, at: &str, piece: &Piece) -> Result<Written> {
        let Some(encryptor) = &self.anew else {
            let mut written = Written::default();
            if let Some((id, method)) = &piece.key {
                written.plus(self.bring_key(&format!("{id}.{method}")).await?);
            }
            let check = Check::Short(piece.stored.clone());
            written.add(transfer(&self.from.sources(), self.to.store(), at, &check).await?);
            return Ok(written);
        };
        let make = || super::key::make(&self.to_repository, &self.cluster, encryptor);
        let key = self.key.get_or_try_init(make).await?;
        let anew = Anew(Sealer::fast(super::destination::LEVEL, Some(key))?);
        let sealed = self.from.read_piece(piece, at, anew).await?;
        let new = Piece {
            stored_bytes: Some(sealed.bytes),
            stored: sealed.digest.clone(),
            key: key_name(Some(key)),
            ..piece.clone()
        };
        let (place, _) = at.split_at(at.len() - split(at).1.len());
        let bytes = sealed.bytes;
        let is_new = sealed.store(self.to.store(), &format!("{place}{}", new.name())).await?;
        Ok(Written { objects: u64::from(is_new), bytes: if is_new { bytes } else { 0 } })
    }

    /// The key of WAL comes before what is sealed with it.
    async fn bring_key(&self, name: &str) -> Result<Written> {
        let mut written = Written::default();
        let mut there = self.keys_there.lock().await;
        if there.insert(name.to_owned()) {
            let key = format!("{}/{name}", layout::wal_keys(&self.cluster));
            let store = &**self.to_repository.store();
            if store.head(&key).await.is_err() {
                written.add(transfer(&self.from.sources(), store, &key, &Check::Nothing).await?);
            }
        }
        Ok(written)
    }
}

/// What pieces have in common that hold the same bytes of the same file, however they are sealed.
#[derive(PartialEq, Eq, Hash)]
struct Same {
    /// The file, or the folder where that is no file's.
    place: String,
    offset: u64,
    length: u64,
    raw: ShortDigest,
}

impl Same {
    fn of(key: &str, file: Option<WalName>, piece: &Piece) -> Self {
        let folder = || key.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
        let place = file.map_or_else(folder, |file| file.to_string());
        Self { place, offset: piece.offset, length: piece.length, raw: piece.raw.clone() }
    }
}
