//! WAL from one repository to another.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::Mutex;

use super::archive::{Archive, key_name};
use super::key::WalKey;
use super::name::{SegmentName, WalName};
use super::object::{Piece, RESOLVED};
use super::read::Sink;
use super::seal::{Sealed, Sealer};
use crate::copies::transfer::{Check, transfer};
use crate::encryptor::Encryptor;
use crate::error::Result;
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
    key: Option<WalKey>,
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
    pub(crate) async fn new(
        from: Archive,
        to: &Repository,
        cluster: &ClusterName,
        anew: Option<&Arc<dyn Encryptor>>,
        jobs: usize,
    ) -> Result<Self> {
        let key = match anew {
            Some(encryptor) => Some(super::key::make(to, cluster, encryptor).await?),
            None => None,
        };
        Ok(Self {
            to: Archive::of(to, cluster, from.system(), None),
            from,
            to_repository: to.clone(),
            cluster: cluster.clone(),
            key,
            jobs: jobs.max(1),
            keys_there: Mutex::default(),
        })
    }

    /// Copies segments.
    pub(crate) async fn segments(&self, names: impl IntoIterator<Item = SegmentName>) -> Result<Written> {
        let folders = names.into_iter().map(|name| self.from.folder(&WalName::Segment(name))).collect();
        self.folders(folders).await
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
                let files = list_sorted(self.from.store(), &group, None).await?;
                let folders = files.into_iter().filter_map(|file| match file {
                    Entry::Folder(folder) => Some(folder),
                    Entry::Object(_) => None,
                });
                written.plus(self.folders_from(folders.collect(), start).await?);
            }
        }
        let points: BTreeSet<String> = list_deep(self.from.store(), &format!("{root}/points"))
            .await?
            .into_iter()
            .filter_map(|meta| meta.key.rsplit_once('/').map(|(folder, _)| folder.to_owned()))
            .collect();
        written.plus(self.folders(points.into_iter().collect()).await?);
        Ok(written)
    }

    async fn folders(&self, folders: Vec<String>) -> Result<Written> {
        self.folders_from(folders, Lsn(0)).await
    }

    async fn folders_from(&self, folders: Vec<String>, start: Lsn) -> Result<Written> {
        let mut written = Written::default();
        let mut copied = futures::stream::iter(folders)
            .map(|folder| async move { self.folder(&folder, start).await })
            .buffer_unordered(self.jobs);
        while let Some(one) = copied.try_next().await? {
            written.plus(one);
        }
        Ok(written)
    }

    /// Copies what is stored of one file.
    async fn folder(&self, folder: &str, start: Lsn) -> Result<Written> {
        let mut written = Written::default();
        let there: Vec<Piece> =
            pieces(list_sorted(self.to.store(), folder, None).await?).map(|(p, _)| p).collect();
        let entries = list_sorted(self.from.store(), folder, None).await?;
        let segment: Option<SegmentName> = folder.rsplit('/').next().and_then(|name| match name.parse() {
            Ok(WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup(segment, _)) => {
                Some(segment)
            }
            _ => None,
        });
        for entry in entries.iter().filter(|entry| entry.name().starts_with(RESOLVED)) {
            let key = format!("{folder}/{}", entry.name());
            written.add(transfer(&self.from.sources(), self.to.store(), &key, &Check::Nothing).await?);
        }
        for (piece, meta) in pieces(entries) {
            let end = |segment: SegmentName| segment.next(piece.segment_bytes).start(piece.segment_bytes);
            if piece.segment_bytes > 0 && segment.is_some_and(|segment| end(segment) <= start) {
                continue;
            }
            let same = |other: &Piece| {
                (other.offset, other.length, &other.raw) == (piece.offset, piece.length, &piece.raw)
            };
            if !there.iter().any(same) {
                written.plus(self.piece(folder, &piece, &meta).await?);
            }
        }
        Ok(written)
    }

    async fn piece(&self, folder: &str, piece: &Piece, meta: &Meta) -> Result<Written> {
        let Some(key) = &self.key else {
            let mut written = Written::default();
            if let Some((id, method)) = &piece.key {
                written.plus(self.bring_key(&format!("{id}.{method}")).await?);
            }
            let check = Check::Short(piece.stored.clone());
            written.add(transfer(&self.from.sources(), self.to.store(), &meta.key, &check).await?);
            return Ok(written);
        };
        let anew = Anew(Sealer::new(super::destination::LEVEL, Some(key))?);
        let sealed = self.from.read_piece(piece, &meta.key, anew).await?;
        let new = Piece { stored: sealed.digest.clone(), key: key_name(Some(key)), ..piece.clone() };
        let bytes = sealed.bytes;
        let is_new = sealed.store(self.to.store(), &format!("{folder}/{}", new.name())).await?;
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

fn pieces(entries: Vec<Entry>) -> impl Iterator<Item = (Piece, Meta)> {
    entries.into_iter().filter_map(|entry| match entry {
        Entry::Object(meta) => {
            let piece = Piece::parse(meta.key.rsplit('/').next().unwrap_or_default())?;
            Some((piece, meta))
        }
        Entry::Folder(_) => None,
    })
}
