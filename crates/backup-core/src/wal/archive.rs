use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use ulid::Ulid;

use super::history::History;
use super::key::{KeyRing, WalKey};
use super::name::{SegmentName, WalName};
use super::object::{Piece, RESOLVED, ShortDigest, Stored, split, stored_bytes};
use super::seal::Sealed;
use crate::encryptor::{Cipher, Encryptor};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{ClusterName, Digest, Repository, layout};
use crate::store::{Created, Entry, Store, list_sorted, read_checked};

/// More than any history file has.
const HISTORY_LIMIT: usize = 1 << 20;

/// The WAL of one PostgreSQL cluster in a repository.
#[derive(Clone)]
pub struct Archive {
    repository: Repository,
    cluster: ClusterName,
    system: u64,
    keys: Arc<KeyRing>,
}

/// A history file as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredHistory {
    /// The timeline.
    pub timeline: u32,
    /// Digest of its text.
    pub digest: ShortDigest,
    key: String,
}

impl Archive {
    /// The WAL of the cluster with a system identifier. `encryptor` opens what is sealed.
    pub fn of(
        repository: &Repository,
        cluster: &ClusterName,
        system: u64,
        encryptor: Option<Arc<dyn Encryptor>>,
    ) -> Self {
        let keys = Arc::new(KeyRing::new(encryptor));
        Self { repository: repository.clone(), cluster: cluster.clone(), system, keys }
    }

    /// The WAL of the PostgreSQL cluster that the name stands for now; nothing where neither a backup nor WAL of it
    /// is in the repository.
    pub async fn current(
        repository: &Repository,
        cluster: &ClusterName,
        encryptor: Option<Arc<dyn Encryptor>>,
    ) -> Result<Option<Self>> {
        let Some(identity) = repository.identity(cluster).await? else { return Ok(None) };
        let system = identity.system_identifier.parse().map_err(|_| {
            Error::new(ErrorKind::Integrity, format!("the identity of {cluster} has no system identifier"))
        })?;
        Ok(Some(Self::of(repository, cluster, system, encryptor)))
    }

    /// The system identifier.
    pub fn system(&self) -> u64 {
        self.system
    }

    pub(super) fn store(&self) -> &dyn Store {
        &**self.repository.store()
    }

    /// The stores in which a piece may be read.
    pub(super) fn sources(&self) -> Vec<Arc<dyn Store>> {
        crate::store::sources(self.repository.store())
    }

    /// Every object of it: key and stored length.
    pub(crate) fn objects(&self) -> BoxStream<'_, Result<(String, u64)>> {
        self.store().walk_sized(&self.root(), stored_bytes)
    }

    /// The folder of all.
    pub(super) fn root(&self) -> String {
        layout::wal(&self.cluster, self.system)
    }

    fn history_folder(&self) -> String {
        format!("{}/history", self.root())
    }

    /// The folder of a segment and of its neighbours.
    pub(super) fn group(&self, segment: SegmentName) -> String {
        let text = segment.to_string();
        format!("{}/{}/{}", self.root(), &text[..8], &text[..16])
    }

    /// The folder of a file: of all that is no whole segment. A history has none of its own.
    fn folder(&self, name: &WalName) -> String {
        match name {
            WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup(segment, _) => {
                format!("{}/{name}", self.group(*segment))
            }
            WalName::History(_) => self.history_folder(),
        }
    }

    /// Where a piece of a file lies. A whole segment has no folder of its own: an archive has a million of them.
    fn key(&self, name: &WalName, piece: &Piece) -> String {
        match name {
            WalName::Segment(segment) if piece.is_whole() => {
                format!("{}/{name}-{}", self.group(*segment), piece.name())
            }
            _ => format!("{}/{}", self.folder(name), piece.name()),
        }
    }

    /// What there is of a file: its folder, and its neighbours with it in them.
    async fn list(&self, name: &WalName, certainly: bool) -> Result<Vec<Entry>> {
        let list = |folder: &str, after: Option<&str>| {
            let store = self.store();
            let listed =
                if certainly { store.list_certain(folder, after) } else { store.list(folder, after) };
            listed.try_collect::<Vec<Entry>>()
        };
        let folder = self.folder(name);
        let WalName::Segment(segment) = name else { return list(&folder, None).await };
        // Behind all that there is of the segment before.
        let before = segment.segment.checked_sub(1).map(|number| SegmentName { segment: number, ..*segment });
        let before = before.map(|before| format!("{before}.z"));
        let group = self.group(*segment);
        let (mut found, beside) = tokio::try_join!(list(&folder, None), list(&group, before.as_deref()))?;
        found.extend(beside.into_iter().filter(|entry| match entry {
            Entry::Object(meta) => split(&meta.key).0 == Some(*name),
            Entry::Folder(_) => false,
        }));
        Ok(found)
    }

    /// What is stored of a file, in the copies that answer.
    pub async fn stored(&self, name: &WalName) -> Result<Stored> {
        self.list(name, false).await.map(Self::sorted)
    }

    /// What is stored of a file, for whoever takes what is not there for absent.
    ///
    /// # Errors
    /// Where a copy of the repository does not answer, unless another one has the file whole.
    pub(super) async fn stored_certainly(&self, name: &WalName) -> Result<Stored> {
        match self.list(name, true).await.map(Self::sorted) {
            Err(error) if !self.store().copies().is_empty() => match self.stored(name).await {
                Ok(found) if found.is_complete() && !found.in_conflict() => Ok(found),
                _ => Err(error),
            },
            other => other,
        }
    }

    fn sorted(entries: Vec<Entry>) -> Stored {
        Stored::of(entries.into_iter().filter_map(|entry| match entry {
            Entry::Object(meta) => Some(meta),
            Entry::Folder(_) => None,
        }))
    }

    /// Stores a piece. True where it is new.
    pub(super) async fn store_piece(&self, name: &WalName, piece: &Piece, sealed: Sealed) -> Result<bool> {
        sealed.store(self.store(), &self.key(name, piece)).await
    }

    /// What opens a piece; nothing where it is in the clear.
    pub(super) async fn cipher(&self, piece: &Piece) -> Result<Option<Arc<dyn Cipher>>> {
        match &piece.key {
            None => Ok(None),
            Some((id, method)) => self.keys.open(&self.repository, &self.cluster, id, method).await.map(Some),
        }
    }

    /// The object of a key.
    pub(super) fn key_object(&self, id: &str, method: &str) -> String {
        super::key::object(&self.cluster, id, method)
    }

    /// Opens a key, as reading a piece does.
    pub(super) async fn open_named_key(&self, id: &str, method: &str) -> Result<()> {
        self.keys.open(&self.repository, &self.cluster, id, method).await.map(drop)
    }

    /// The history that an object's key names; nothing where it names none.
    pub(super) fn history_at(&self, key: &str) -> Option<StoredHistory> {
        Self::parse_history(&self.history_folder(), key.rsplit('/').next()?)
    }

    /// Names of the objects that hold keys.
    pub(super) async fn key_objects(&self) -> Result<std::collections::HashSet<String>> {
        let entries = list_sorted(self.store(), &layout::wal_keys(&self.cluster), None).await?;
        Ok(entries.iter().map(|entry| entry.name().to_owned()).collect())
    }

    /// Every history, by timeline.
    pub async fn histories(&self) -> Result<Vec<StoredHistory>> {
        self.store().list(&self.history_folder(), None).try_collect().await.map(|e| self.histories_in(e))
    }

    fn histories_in(&self, mut entries: Vec<Entry>) -> Vec<StoredHistory> {
        let folder = self.history_folder();
        entries.sort_by(|a, b| a.name().cmp(b.name()));
        entries.iter().filter_map(|entry| Self::parse_history(&folder, entry.name())).collect()
    }

    pub(super) fn parse_history(folder: &str, name: &str) -> Option<StoredHistory> {
        let (timeline, digest) = name.strip_suffix(".history")?.split_once('-')?;
        let WalName::History(timeline) = format!("{timeline}.history").parse().ok()? else { return None };
        Some(StoredHistory { timeline, digest: ShortDigest::parse(digest)?, key: format!("{folder}/{name}") })
    }

    /// Stores the history of a timeline. The same text again is a success.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where there is another one of this timeline: both are kept.
    pub async fn store_history(&self, timeline: u32, text: &[u8]) -> Result<bool> {
        History::parse(timeline, &String::from_utf8_lossy(text))?;
        let digest = ShortDigest::from(Digest::of(text));
        let name = format!("{timeline:08X}-{}.history", digest.as_str());
        let key = format!("{}/{name}", self.history_folder());
        let created = self.store().create(&key, Bytes::copy_from_slice(text)).await?;
        let all = self.histories().await?;
        if all.iter().any(|other| other.timeline == timeline && other.digest != digest) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} has another {timeline:08X}.history", self.cluster),
            )
            .with_hint(
                "two servers began the same timeline: one of them must not archive here. Both histories are kept, and \
                 no server can be promoted with this archive until one is removed from the store",
            ));
        }
        Ok(created == Created::New)
    }

    /// The text of a timeline's history; nothing where there is none.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where there are several.
    pub async fn history(&self, timeline: u32) -> Result<Option<Bytes>> {
        let listed = self.store().list_certain(&self.history_folder(), None).try_collect().await?;
        let all = self.histories_in(listed);
        let mut found = all.iter().filter(|h| h.timeline == timeline);
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => self.read_history(one).await.map(Some),
            (Some(_), Some(_)) => Err(Error::new(
                ErrorKind::Conflict,
                format!("the archive has several files {timeline:08X}.history that differ"),
            )
            .with_hint(
                "two servers began the same timeline: remove the one that does not count from the store",
            )),
        }
    }

    /// Reads a history.
    pub async fn read_history(&self, history: &StoredHistory) -> Result<Bytes> {
        read_checked(self.repository.store(), &history.key, HISTORY_LIMIT, |text| {
            if ShortDigest::from(Digest::of(&text)) == history.digest {
                return Ok(text);
            }
            Err(Error::new(ErrorKind::Integrity, format!("{} is damaged", history.key))
                .with_hint("the server's pg_wal has this file too: push it again after removing this object"))
        })
        .await
    }

    /// Decides which one of several files of a name counts: the one whose digest begins so. Nothing is removed.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where there is not exactly one.
    pub async fn resolve(&self, segment: SegmentName, digest: &str) -> Result<ShortDigest> {
        let name = WalName::Segment(segment);
        let stored = self.stored(&name).await?;
        let wholes = stored.wholes();
        let mut fitting = wholes.iter().filter(|d| !digest.is_empty() && d.as_str().starts_with(digest));
        let (Some(chosen), None) = (fitting.next(), fitting.next()) else {
            let there: Vec<&str> = wholes.iter().map(|d| d.as_str()).collect();
            return Err(Error::new(
                ErrorKind::Usage,
                format!("no single file of {segment} begins with {digest:?}"),
            )
            .with_hint(format!("there are: {}", there.join(", "))));
        };
        let key = format!("{}/{RESOLVED}{}-{}", self.folder(&name), Ulid::generate(), chosen.as_str());
        if self.store().create(&key, Bytes::from_static(b"{}\n")).await? == Created::Other {
            return Err(Error::internal("a new name is taken already"));
        }
        Ok((*chosen).clone())
    }

    /// The newest segment of the newest timeline up to `timeline`; nothing where there is none.
    pub(super) async fn newest(&self, timeline: u32) -> Result<Option<SegmentName>> {
        for of in list_sorted(self.store(), &self.root(), None).await?.iter().rev() {
            if !u32::from_str_radix(of.name(), 16).is_ok_and(|n| n <= timeline) || of.name().len() != 8 {
                continue;
            }
            let folder = format!("{}/{}", self.root(), of.name());
            for group in list_sorted(self.store(), &folder, None).await?.iter().rev() {
                let files = list_sorted(self.store(), &format!("{folder}/{}", group.name()), None).await?;
                let segments = files.iter().filter_map(|file| match file_in(file) {
                    Some(WalName::Segment(segment)) => Some(segment),
                    _ => None,
                });
                if let Some(newest) = segments.max() {
                    return Ok(Some(newest));
                }
            }
        }
        Ok(None)
    }

    /// Whether the archive has anything of a timeline behind a segment.
    pub(super) async fn has_later(&self, segment: SegmentName) -> Result<bool> {
        let text = segment.to_string();
        let timeline = format!("{}/{}", self.root(), &text[..8]);
        let mut later = self.store().list_certain(&timeline, Some(&text[..16]));
        if later.try_next().await?.is_some() {
            return Ok(true);
        }
        let mut later = self.store().list_certain(&format!("{timeline}/{}", &text[..16]), Some(&text));
        while let Some(entry) = later.try_next().await? {
            let name = file_in(&entry);
            if matches!(name, Some(WalName::Segment(other) | WalName::Partial(other)) if other > segment) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({} in {})", self.root(), self.store().location())
    }
}

/// The file that something in the folder of a group is of.
pub(super) fn file_in(entry: &Entry) -> Option<WalName> {
    match entry {
        Entry::Folder(_) => entry.name().parse().ok(),
        Entry::Object(meta) => split(&meta.key).0,
    }
}

/// How a piece that is sealed with a key names it.
pub(super) fn key_name(key: Option<&WalKey>) -> Option<(String, String)> {
    key.map(|key| (key.id.clone(), key.method.clone()))
}
