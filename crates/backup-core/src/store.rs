//! The trait of a place that keeps objects. Implementations are in the crate `backup-storage`, with a
//! conformance suite that checks any other one.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Bytes as they come from a store. An error ends the stream.
pub type Bytestream = BoxStream<'static, Result<Bytes>>;

/// What is given bytes that are read: [`Store::read_through`].
pub type Take = Box<dyn FnMut(&[u8]) + Send>;

/// What [`Store::create`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there now, and was not before.
    New,
    /// An object with the same bytes was there already.
    Same,
    /// An object with other bytes has this key; it was left alone.
    Other,
}

/// An object of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its key, `clusters/main/backups/…/backup.json`.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

/// What a folder of a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An object.
    Object(Meta),
    /// A folder: its key, without a slash at the end.
    Folder(String),
}

impl Entry {
    /// The last component of the key.
    pub fn name(&self) -> &str {
        let key = match self {
            Entry::Object(meta) => &meta.key,
            Entry::Folder(key) => key,
        };
        key.rsplit('/').next().unwrap_or(key)
    }
}

/// Keeps objects by key. Keys are `/`-separated names of `A-Z a-z 0-9 . _ -`; no name begins with a dot.
///
/// # Contract
/// - **Atomic.** An object is there whole, or not at all. A reader never sees one half written.
/// - **Durable.** When [`Store::create`] or [`Upload::finish`] has returned, the object survives a crash of
///   this process and of this machine.
/// - **Never overwritten.** No call replaces an object. `create` compares; `upload` is only given keys that
///   nobody else uses, and fails with [`Conflict`](ErrorKind::Conflict) where the store can tell.
/// - **Repeatable.** A call whose outcome is unknown may be made again: `create` then answers `Same`.
/// - **Consistent.** A call that starts after another has returned sees what it did, listings too.
/// - **Errors.** Absent: [`ObjectMissing`](ErrorKind::ObjectMissing), and only when the store said so.
///   No answer: [`StoreUnavailable`](ErrorKind::StoreUnavailable). [`Error::retryable`] says whether another
///   try may help; retries with backoff belong to the implementation. Every call ends in bounded time.
/// - A clone of the handle (an `Arc`) shares connections and limits.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// The place as text, for messages. Without secrets.
    fn location(&self) -> &str;

    /// How many chunks one [`Upload`] holds at most, the one being written included. Memory is reserved by it.
    fn upload_chunks(&self) -> usize;

    /// Creates an object, unless the key is taken.
    async fn create(&self, key: &str, body: Bytes) -> Result<Created>;

    /// Starts an object that is written in chunks.
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>>;

    /// Reads an object, or `range` of it. A range beyond the end is an error.
    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytestream>;

    /// Reads an object, or `range` of it, through: `take` is given its bytes in order. A store whose reads block reads and
    /// takes on one thread, since bytes that go from one core to another take several times as long.
    async fn read_through(&self, key: &str, range: Option<Range<u64>>, mut take: Take) -> Result<()> {
        let mut stream = self.read(key, range).await?;
        while let Some(chunk) = stream.try_next().await? {
            take(&chunk);
        }
        Ok(())
    }

    /// Looks at an object without reading it.
    async fn head(&self, key: &str) -> Result<Meta>;

    /// Objects and folders directly in `folder`, whose names sort after `after`, in any order. A folder
    /// that does not exist is empty. A folder is there as long as something is in it.
    fn list(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>>;

    /// Every object in `folder` and in those below it, in any order, each once. A folder that does not exist is empty.
    /// What comes and goes meanwhile may be in it or not.
    ///
    /// By default folder by folder. A store that can answer in pages of objects, or faster, does so: an archive may have
    /// a million objects, and a folder for each.
    fn walk<'a>(&'a self, folder: &str) -> BoxStream<'a, Result<Meta>> {
        walk_folders(self, folder)
    }

    /// Key and length of every object that [`walk`](Store::walk) answers. A store that must ask for each length asks only
    /// for those that `known` does not find in the key: an archive has a million objects that are named by it.
    fn walk_sized<'a>(
        &'a self,
        folder: &str,
        known: fn(&str) -> Option<u64>,
    ) -> BoxStream<'a, Result<(String, u64)>> {
        let _ = known;
        self.walk(folder).map_ok(|meta| (meta.key, meta.bytes)).boxed()
    }

    /// Deletes objects; one answer for each key, in their order. An absent one is a success.
    async fn delete(&self, keys: &[String]) -> Vec<Result<()>>;

    /// Creates the object that makes everything below its folder count: a store of several copies does so only where
    /// nothing of that folder is missing.
    ///
    /// # Errors
    /// Where fewer copies than wanted have it, it stays in those that do.
    async fn commit(&self, key: &str, body: Bytes) -> Result<Created> {
        self.create(key, body).await
    }

    /// Like [`Store::list`], but where a copy did not answer that could have more, this is an error. Whoever
    /// concludes something from what is *not* there asks so.
    fn list_certain(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        self.list(folder, after)
    }

    /// The stores that this one keeps equal, in their order; none where it is a single one. What a copy has damaged
    /// can be read from another one.
    fn copies(&self) -> Vec<Arc<dyn Store>> {
        Vec::new()
    }

    /// Of one of several copies the store itself: it is asked also where the copy is left alone for a while, or is no copy
    /// of the repository. For whoever looks what is wrong with the copy.
    fn alone(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// Says which repository the copies are of, by its id: a place that turns out to hold another one, or none (a file system
    /// that is not mounted), is not written to.
    fn expect_repository(&self, id: &str) {
        let _ = id;
    }

    /// Which copies took all that was written below a folder through this handle; nothing where there is only one.
    fn kept(&self, folder: &str) -> Option<Kept> {
        let _ = folder;
        None
    }

    /// How many bytes there is room for; nothing where the store cannot tell.
    async fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Removes temporaries of dead writers older than `age`, where the store keeps any; how many there were.
    async fn sweep_temporaries(&self, age: Duration) -> Result<u64> {
        let _ = age;
        Ok(0)
    }
}

/// How many copies have what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// How many copies there are.
    pub copies: usize,
    /// How many of them have it whole.
    pub whole: usize,
    /// The others.
    pub missing: Vec<Missed>,
}

/// A copy that lacks something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missed {
    /// The copy's place.
    pub copy: String,
    /// Why, in a line.
    pub why: String,
}

/// An object being uploaded. It exists when `finish` has returned, and only then.
#[async_trait]
pub trait Upload: Send {
    /// Adds a chunk. All chunks but the last have the same length, at least 5 MiB: that is what S3 and
    /// compatible stores ask of the parts of a multipart upload.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// Completes the object.
    async fn finish(self: Box<Self>) -> Result<()>;

    /// Throws away what was uploaded. Dropping an upload does less: a remote store may keep invisible
    /// pieces until a lifecycle rule removes them.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// Reads a whole object of at most `limit` bytes.
pub async fn read_whole(store: &dyn Store, key: &str, limit: usize) -> Result<Bytes> {
    let mut stream = store.read(key, None).await?;
    let mut body = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if body.len() + chunk.len() > limit {
            return Err(Error::new(ErrorKind::Integrity, format!("{key} is longer than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// Reads a whole object, or nothing when it is absent.
pub async fn read_if_there(store: &dyn Store, key: &str, limit: usize) -> Result<Option<Bytes>> {
    match read_whole(store, key, limit).await {
        Ok(body) => Ok(Some(body)),
        Err(e) if e.kind() == ErrorKind::ObjectMissing => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where an object can be read: the copies, or the store itself where there are none.
pub(crate) fn sources(store: &Arc<dyn Store>) -> Vec<Arc<dyn Store>> {
    let copies = store.copies();
    if copies.is_empty() { vec![Arc::clone(store)] } else { copies }
}

/// Whether another copy may have what this failure says is not to be had here.
pub(crate) fn elsewhere(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::NewerFormat | ErrorKind::KeyMissing)
}

/// The error that says most: that an object is missing only where every copy said so.
pub(crate) fn worse(first: Option<Error>, next: Error) -> Error {
    match first {
        Some(first) if first.kind() != ErrorKind::ObjectMissing => first,
        _ => next,
    }
}

/// Reads a small object from the first copy where `check` takes it.
pub(crate) async fn read_checked<T>(
    store: &Arc<dyn Store>,
    key: &str,
    limit: usize,
    check: impl Fn(Bytes) -> Result<T>,
) -> Result<T> {
    let mut failed = None;
    for source in sources(store) {
        let read = async { read_whole(&*source, key, limit).await.and_then(&check) };
        match read.await {
            Err(error) if elsewhere(&error) => failed = Some(worse(failed, error)),
            other => return other,
        }
    }
    Err(failed.unwrap_or_else(|| Error::internal("a store without copies")))
}

/// Every object in a folder and in those below it, in any order. Where there may be many,
/// [`walk`](Store::walk) does not hold them all.
pub async fn list_deep(store: &dyn Store, folder: &str) -> Result<Vec<Meta>> {
    store.walk(folder).try_collect().await
}

/// What [`Store::walk`] answers, made of lists of folders: a few of them at a time are held.
pub fn walk_folders<'a, S: Store + ?Sized>(store: &'a S, folder: &str) -> BoxStream<'a, Result<Meta>> {
    /// How many folders are listed at once.
    const LISTS: usize = 16;

    /// A list under way.
    type Listing<'a> = BoxFuture<'a, Result<Vec<Entry>>>;
    struct Walk<'a, S: ?Sized> {
        store: &'a S,
        waiting: Vec<String>,
        running: FuturesUnordered<Listing<'a>>,
    }

    let walk = Walk { store, waiting: vec![folder.to_owned()], running: FuturesUnordered::new() };
    let listed = futures::stream::try_unfold(walk, |mut walk| async move {
        while walk.running.len() < LISTS {
            let Some(folder) = walk.waiting.pop() else { break };
            walk.running.push(walk.store.list(&folder, None).try_collect().boxed());
        }
        let Some(entries) = walk.running.try_next().await? else { return Ok(None) };
        let mut objects = Vec::new();
        for entry in entries {
            match entry {
                Entry::Object(meta) => objects.push(Ok(meta)),
                Entry::Folder(key) => walk.waiting.push(key),
            }
        }
        Ok::<_, Error>(Some((futures::stream::iter(objects), walk)))
    });
    listed.try_flatten().boxed()
}

/// Lists a folder into memory, sorted by name.
pub async fn list_sorted(store: &dyn Store, folder: &str, after: Option<&str>) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = store.list(folder, after).try_collect().await?;
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(entries)
}
