//! A folder of this machine as a store.

mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind as Io, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use backup_core::pipeline::Buffers;
use backup_core::{Bytestream, Created, Entry, Error, ErrorKind, Meta, Result, Store, Take, Upload};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use rustix::buffer::spare_capacity;
use tokio::task::JoinHandle;
use ulid::Ulid;

/// Files being written, until they are whole. Its name begins with a dot, so it is no object.
const TEMPORARIES: &str = ".pgark-tmp";
/// Bytes that are read at a time.
const READ_BYTES: usize = 512 * 1024;
/// The same where one thread reads and takes: it stays in the cache of its core.
const THROUGH_BYTES: usize = 128 * 1024;
/// Buffers of [`READ_BYTES`] that are kept for the next read.
const CHUNKS_KEPT: usize = 16;

/// A local folder. Files have mode 0600 and folders 0700. An object is written to a temporary file, synced,
/// and linked to its name without replacing anything; then the folder is synced.
#[derive(Debug, Clone)]
pub struct LocalStore(Arc<Root>);

#[derive(Debug)]
struct Root {
    path: PathBuf,
    location: String,
    /// What is read goes into these.
    chunks: Buffers,
    /// Which folder it is: device and number, since it was first seen.
    seen: OnceLock<(u64, u64)>,
}

impl LocalStore {
    /// Opens a folder. It is made when the first object is written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let location = path.display().to_string();
        Self(Arc::new(Root {
            path,
            location,
            chunks: Buffers::new(READ_BYTES, CHUNKS_KEPT),
            seen: OnceLock::new(),
        }))
    }
}

/// Bytes that are written at a time. For a larger write Linux takes whole blocks of memory for its cache,
/// which on a virtual machine can be ten times as slow.
const WRITE_BYTES: usize = 256 * 1024;

/// Runs something that blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::internal("a file task failed").caused_by(e)))
}

fn failed(doing: &str, key: &str) -> impl FnOnce(io::Error) -> Error {
    let doing = format!("{doing} {key}");
    move |e| {
        if absent(&e) {
            return Error::new(ErrorKind::ObjectMissing, "it is not there").doing(doing).caused_by(e);
        }
        Error::io(doing, e)
    }
}

/// Nothing of this name, or a file where one of its folders should be.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), Io::NotFound | Io::NotADirectory)
}

impl Root {
    /// The file of a key. Keys are made by pgark, but records that name them are read from the store.
    fn file(&self, key: &str) -> Result<PathBuf> {
        let ok = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('\0');
        if !key.split('/').all(ok) {
            return Err(Error::new(ErrorKind::Integrity, format!("{key:?} is not the name of an object")));
        }
        Ok(self.path.join(key))
    }

    fn folder(&self, key: &str) -> Result<PathBuf> {
        if key.is_empty() { Ok(self.path.clone()) } else { self.file(key) }
    }

    /// Whether the folder is still the one that it was: when its file system is taken away, what was in it is not
    /// absent, and nothing shall be written to the place where it was.
    fn check(&self) -> Result<()> {
        let gone = |why: &str| {
            Err(Error::new(ErrorKind::StoreUnavailable, format!("{}: {why}", self.location))
                .with_hint("is its file system mounted?"))
        };
        match std::fs::metadata(&self.path) {
            Ok(metadata) => {
                let now = (metadata.dev(), metadata.ino());
                if *self.seen.get_or_init(|| now) == now {
                    Ok(())
                } else {
                    gone("another folder is in its place")
                }
            }
            Err(e) if absent(&e) && self.seen.get().is_some() => gone("the folder is gone"),
            // It is not there yet, or whoever uses it says what is wrong.
            Err(_) => Ok(()),
        }
    }

    fn open(&self, key: &str) -> Result<File> {
        let path = self.file(key)?;
        self.check()?;
        (|| not_a_folder(&std::fs::metadata(&path)?).and_then(|()| File::open(&path)))()
            .map_err(failed("reading", key))
    }

    /// Opens a file at the beginning of a range; the file, and how many bytes are wanted.
    fn open_range(&self, key: &str, range: Option<Range<u64>>) -> Result<(File, u64)> {
        let mut file = self.open(key)?;
        let length = file.metadata().map_err(failed("reading", key))?.len();
        let range = range.unwrap_or(0..length);
        if range.end > length {
            let message = format!("{key} has {length} bytes, and bytes up to {} are wanted", range.end);
            return Err(Error::new(ErrorKind::Integrity, message));
        }
        file.seek(SeekFrom::Start(range.start)).map_err(failed("reading", key))?;
        Ok((file, range.end.saturating_sub(range.start)))
    }

    fn temporary(&self) -> Result<(File, PathBuf)> {
        self.check()?;
        let folder = self.path.join(TEMPORARIES);
        let path = folder.join(Ulid::generate().to_string());
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            Err(e) if e.kind() == Io::NotFound => make_folders(&folder).and_then(|()| open()),
            other => other,
        };
        let file = file.map_err(|e| Error::io(format!("writing below {}", self.location), e))?;
        Ok((file, path))
    }

    /// Gives a written temporary file its name. False when the name is taken.
    fn publish(&self, file: File, temporary: &Path, key: &str) -> Result<bool> {
        self.check()?;
        let published = (|| {
            file.sync_all()?;
            drop(file);
            let target = self.file(key).map_err(io::Error::other)?;
            let parent = target.parent().unwrap_or(&self.path);
            // Somebody may remove the empty folder between the two.
            for _ in 0..10 {
                match make_folders(parent).and_then(|()| name_without_replacing(temporary, &target)) {
                    Err(e) if e.kind() == Io::NotFound => {}
                    Err(e) if e.kind() == Io::AlreadyExists => return Ok(false),
                    Err(e) => return Err(e),
                    Ok(()) => return sync_folder(parent).map(|()| true),
                }
            }
            Err(io::Error::other("the folder is removed again and again"))
        })();
        // Gone already when it was renamed.
        let _ = std::fs::remove_file(temporary);
        published.map_err(|e| Error::io(format!("writing {key}"), e))
    }

    fn create(&self, key: &str, body: &[u8]) -> Result<Created> {
        // Most creates of a name that is taken are repetitions: no need to write first.
        if let Some(created) = self.compare(key, body)? {
            return Ok(created);
        }
        let (mut file, temporary) = self.temporary()?;
        if let Err(e) = file.write_all(body) {
            let _ = std::fs::remove_file(&temporary);
            return Err(Error::io(format!("writing {key}"), e));
        }
        if self.publish(file, &temporary, key)? {
            return Ok(Created::New);
        }
        self.compare(key, body)?.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("{key} comes and goes"))
                .with_hint("does something else delete files there?")
        })
    }

    fn compare(&self, key: &str, body: &[u8]) -> Result<Option<Created>> {
        let mut file = match self.open(key) {
            Err(e) if e.kind() == ErrorKind::ObjectMissing => return Ok(None),
            other => other?,
        };
        let (mut there, mut rest) = (vec![0; 64 * 1024], body);
        loop {
            let read = file.read(&mut there).map_err(failed("reading", key))?;
            match rest.strip_prefix(&there[..read]) {
                Some([]) if read == 0 => return Ok(Some(Created::Same)),
                Some(after) if read > 0 => rest = after,
                _ => return Ok(Some(Created::Other)),
            }
        }
    }

    /// Deletes objects, and syncs each folder once in which a name went.
    fn delete(&self, keys: &[String]) -> Vec<Result<()>> {
        let removed: Vec<Result<Option<PathBuf>>> = keys.iter().map(|key| self.remove(key)).collect();
        let folders: BTreeSet<&PathBuf> = removed.iter().flatten().flatten().collect();
        let unsynced: BTreeMap<PathBuf, io::Error> = folders
            .into_iter()
            .filter_map(|folder| sync_folder(folder).err().map(|e| (folder.clone(), e)))
            // Removed by somebody else, once it was empty.
            .filter(|(_, e)| !absent(e))
            .collect();
        let synced = |(key, removed): (&String, Result<Option<PathBuf>>)| match removed?
            .and_then(|folder| unsynced.get(&folder))
        {
            Some(e) => Err(failed("deleting", key)(io::Error::new(e.kind(), e.to_string()))),
            None => Ok(()),
        };
        keys.iter().zip(removed).map(synced).collect()
    }

    /// Removes a file, and the folders that are empty then; the first that is left.
    fn remove(&self, key: &str) -> Result<Option<PathBuf>> {
        let path = self.file(key)?;
        self.check()?;
        match std::fs::remove_file(&path) {
            // Absent, a folder, or below an object: in each case there is no such object.
            Err(e) if !absent(&e) && !path.is_dir() => return Err(failed("deleting", key)(e)),
            _ => {}
        }
        // A folder is there as long as something is in it.
        let mut folder = path.parent();
        while let Some(path) = folder.filter(|p| *p != self.path && p.starts_with(&self.path)) {
            if std::fs::remove_dir(path).is_err() {
                break;
            }
            folder = path.parent();
        }
        Ok(folder.map(Path::to_owned))
    }

    fn list(&self, folder: &str, after: Option<&str>) -> Result<Vec<Entry>> {
        self.check()?;
        let entries = match std::fs::read_dir(self.folder(folder)?) {
            // It may have been taken away this moment: a list must not say then that nothing is there.
            Err(e) if absent(&e) => return self.check().map(|()| Vec::new()),
            other => other.map_err(failed("listing", folder))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("listing", folder))?;
            // What is not text is not ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') || after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            // As everywhere else, what a link leads to.
            let metadata = match entry.file_type() {
                Ok(kind) if kind.is_dir() => None,
                _ => match std::fs::metadata(entry.path()) {
                    Ok(metadata) => Some(metadata).filter(|metadata| !metadata.is_dir()),
                    // Deleted while it was listed.
                    Err(e) if e.kind() == Io::NotFound => continue,
                    Err(e) => return Err(failed("listing", folder)(e)),
                },
            };
            match metadata {
                Some(metadata) => found.push(Entry::Object(meta(key, &metadata)?)),
                // One that is empty stays where a process died between its last file and itself.
                None if has_object(&entry.path()).map_err(failed("listing", folder))? => {
                    found.push(Entry::Folder(key));
                }
                None => {}
            }
        }
        Ok(found)
    }

    fn sweep_temporaries(&self, age: Duration) -> Result<u64> {
        let folder = self.path.join(TEMPORARIES);
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == Io::NotFound => return Ok(0),
            other => other.map_err(failed("listing", TEMPORARIES))?,
        };
        let mut removed = 0;
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|m| m.modified()).ok();
            let old =
                modified.and_then(|m| SystemTime::now().duration_since(m).ok()).is_some_and(|a| a > age);
            if old && std::fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Reads so many bytes, or up to the end of the file. `read_to_end` would do it in many small steps.
fn fill(file: &File, wanted: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    while buffer.len() < wanted
        && rustix::io::retry_on_intr(|| rustix::io::read(file, spare_capacity(buffer)))? > 0
    {}
    // The room that a vector has may be more than was asked for.
    buffer.truncate(wanted);
    Ok(())
}

/// The next bytes of a file of which `left` are wanted. What is small does not keep a large buffer.
fn next_chunk(file: &File, left: u64, buffers: &Buffers) -> io::Result<Bytes> {
    let wanted = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
    let is_large = wanted == READ_BYTES;
    let mut chunk = if is_large { buffers.take() } else { Vec::with_capacity(wanted) };
    fill(file, wanted, &mut chunk)?;
    Ok(if is_large { buffers.freeze(chunk) } else { Bytes::from(chunk) })
}

/// A folder is no object: a store in the cloud has none.
fn not_a_folder(metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() { Err(Io::NotFound.into()) } else { Ok(()) }
}

/// Whether there is an object in a folder, or below.
fn has_object(folder: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if absent(&e) => return Ok(false),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Neither the others nor their times matter: a group of WAL has hundreds of folders.
        let kind = entry.file_type()?;
        let is_folder = kind.is_dir() || !kind.is_file() && entry.path().is_dir();
        if is_folder && has_object(&entry.path())? {
            return Ok(true);
        }
        if !is_folder && (kind.is_file() || entry.path().exists()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn meta(key: String, metadata: &std::fs::Metadata) -> Result<Meta> {
    let modified = metadata.modified().ok().and_then(|m| Timestamp::try_from(m).ok());
    let modified =
        modified.ok_or_else(|| Error::new(ErrorKind::Io, format!("{key} has no time of modification")))?;
    Ok(Meta { key, bytes: metadata.len(), modified })
}

/// Makes a folder and its parents, each synced into its own parent.
fn make_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folders(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != Io::AlreadyExists => return Err(e),
        _ => {}
    }
    sync_folder(parent.unwrap_or(Path::new(".")))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A hard link names a file without ever replacing one. Where the file system has none, Linux can rename so.
fn name_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Err(e) if matches!(e.kind(), Io::Unsupported | Io::PermissionDenied | Io::TooManyLinks) => {
            rename_without_replacing(from, to)
        }
        other => other,
    }
}

#[cfg(target_os = "linux")]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from)
}

#[cfg(not(target_os = "linux"))]
fn rename_without_replacing(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::new(Io::Unsupported, "the file system has no hard links"))
}

#[async_trait]
impl Store for LocalStore {
    fn location(&self) -> &str {
        &self.0.location
    }

    fn upload_chunks(&self) -> usize {
        1
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created> {
        let (root, key) = (Arc::clone(&self.0), key.to_owned());
        blocking(move || root.create(&key, &body)).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        let (root, key) = (Arc::clone(&self.0), key.to_owned());
        blocking(move || {
            root.file(&key)?;
            let (file, temporary) = root.temporary()?;
            Ok(Box::new(LocalUpload { root, key, file: Some(file), writing: None, temporary })
                as Box<dyn Upload>)
        })
        .await
    }

    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytestream> {
        let (root, name) = (Arc::clone(&self.0), key.to_owned());
        let (file, bytes) = blocking(move || root.open_range(&name, range)).await?;
        let (key, chunks) = (Arc::<str>::from(key), self.0.chunks.clone());
        // Straight from the file into what is handed on: a file of tokio's copies once more.
        Ok(futures::stream::unfold(Some((file, bytes)), move |state| {
            let (key, chunks) = (Arc::clone(&key), chunks.clone());
            async move {
                let (file, left) = state.filter(|(_, left)| *left > 0)?;
                let read = blocking(move || {
                    let chunk = next_chunk(&file, left, &chunks).map_err(failed("reading", &key))?;
                    Ok((file, chunk))
                });
                match read.await {
                    Ok((_, chunk)) if chunk.is_empty() => None,
                    Ok((file, chunk)) => {
                        let left = left - chunk.len() as u64;
                        Some((Ok(chunk), Some((file, left))))
                    }
                    Err(error) => Some((Err(error), None)),
                }
            }
        })
        .boxed())
    }

    async fn read_through(&self, key: &str, range: Option<Range<u64>>, mut take: Take) -> Result<()> {
        let (root, key, asked) = (Arc::clone(&self.0), key.to_owned(), Arc::new(()));
        let still = Arc::downgrade(&asked);
        let read = blocking(move || {
            let (file, mut left) = root.open_range(&key, range)?;
            let mut piece = Vec::with_capacity(THROUGH_BYTES);
            // Nobody waits any more where the future was dropped.
            while left > 0 && still.strong_count() > 0 {
                piece.clear();
                let wanted = usize::try_from(left).map_or(THROUGH_BYTES, |left| left.min(THROUGH_BYTES));
                fill(&file, wanted, &mut piece).map_err(failed("reading", &key))?;
                if piece.is_empty() {
                    break;
                }
                left -= piece.len() as u64;
                take(&piece);
            }
            Ok(())
        });
        let done = read.await;
        drop(asked);
        done
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        let (root, key) = (Arc::clone(&self.0), key.to_owned());
        blocking(move || {
            let path = root.file(&key)?;
            root.check()?;
            let metadata = std::fs::metadata(path).and_then(|m| not_a_folder(&m).map(|()| m));
            meta(key.clone(), &metadata.map_err(failed("looking at", &key))?)
        })
        .await
    }

    fn list(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        let (root, folder, after) = (Arc::clone(&self.0), folder.to_owned(), after.map(str::to_owned));
        let listed = blocking(move || root.list(&folder, after.as_deref()));
        futures::stream::once(listed)
            .map_ok(|found| futures::stream::iter(found.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    fn walk<'a>(&'a self, folder: &str) -> BoxStream<'a, Result<Meta>> {
        self.0.walk(folder, None)
    }

    fn walk_sized<'a>(
        &'a self,
        folder: &str,
        known: fn(&str) -> Option<u64>,
    ) -> BoxStream<'a, Result<(String, u64)>> {
        self.0.walk(folder, Some(known)).map_ok(|meta| (meta.key, meta.bytes)).boxed()
    }

    async fn delete(&self, keys: &[String]) -> Vec<Result<()>> {
        let (root, own) = (Arc::clone(&self.0), keys.to_vec());
        let deleted = tokio::task::spawn_blocking(move || root.delete(&own)).await;
        let died = || Err(Error::internal("a file task failed"));
        deleted.unwrap_or_else(|_| keys.iter().map(|_| died()).collect())
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        let root = Arc::clone(&self.0);
        blocking(move || {
            let space = rustix::fs::statvfs(&root.path).map_err(|e| failed("looking at", "")(e.into()))?;
            Ok(Some(space.f_bavail * space.f_frsize))
        })
        .await
    }

    async fn sweep_temporaries(&self, age: Duration) -> Result<u64> {
        let root = Arc::clone(&self.0);
        blocking(move || root.sweep_temporaries(age)).await
    }
}

struct LocalUpload {
    root: Arc<Root>,
    key: String,
    file: Option<File>,
    /// A write whose future may have been dropped; it goes on, and gives the file back.
    writing: Option<JoinHandle<(File, io::Result<()>)>>,
    temporary: PathBuf,
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let gone = || Error::internal("a write to this upload failed or was interrupted before");
        let mut file = self.file.take().ok_or_else(gone)?;
        let writing = self.writing.insert(tokio::task::spawn_blocking(move || {
            let written = chunk.chunks(WRITE_BYTES).try_for_each(|piece| file.write_all(piece));
            (file, written)
        }));
        let written = writing.await;
        self.writing = None;
        let (file, written) = written.map_err(|e| Error::internal("a file task failed").caused_by(e))?;
        self.file = Some(file);
        written.map_err(|e| Error::io(format!("writing {}", self.key), e))
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let file = self
            .file
            .take()
            .ok_or_else(|| Error::internal("a write to this upload was interrupted before"))?;
        let (root, key, temporary) = (Arc::clone(&self.root), self.key.clone(), self.temporary.clone());
        blocking(move || {
            if root.publish(file, &temporary, &key)? {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Conflict, format!("{key} exists already")))
        })
        .await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        if let Some(writing) = self.writing.take() {
            self.file = writing.await.ok().map(|(file, _)| file);
        }
        // With its file the value removes its temporary.
        drop(self);
        Ok(())
    }
}
