//! All objects of a local folder, with few calls of the system for each. An archive of WAL has a
//! million of them, and may have a folder for each.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use backup_core::{Error, ErrorKind, Meta, Result};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use tokio::sync::mpsc::Sender;

use super::{Root, absent, failed};

/// How many objects are handed over at a time.
const BATCH: usize = 1024;
/// Threads that read folders. They wait for the disk more than they work.
const THREADS: usize = 4;
/// More than any key has. A link to a folder that it lies in would lead on for ever.
const DEEPEST: usize = 32;

/// What the threads share.
struct Shared {
    root: PathBuf,
    /// The length that a key tells.
    known: Option<Known>,
    state: Mutex<State>,
    changed: Condvar,
    /// Threads that wait for a folder, to be looked at without the lock: it is asked for each folder.
    hungry: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Folders to be read: key and depth.
    waiting: VecDeque<(String, usize)>,
    /// Threads that have one.
    busy: usize,
    /// Threads that wait for one.
    idle: usize,
    ended: bool,
}

/// A thread's own.
struct Walker<'a> {
    shared: &'a Shared,
    to: &'a Batches,
    found: Vec<Meta>,
}

/// Where batches go.
type Batches = Sender<Result<Vec<Meta>>>;

impl Root {
    /// What is below a folder. The time of an object whose length is `known` is that of the beginning of time.
    pub(super) fn walk(
        self: &Arc<Self>,
        folder: &str,
        known: Option<Known>,
    ) -> BoxStream<'static, Result<Meta>> {
        let (root, folder) = (Arc::clone(self), folder.to_owned());
        stream(move |to| {
            root.check()?;
            root.folder(&folder)?;
            walk(&root.path, &folder, known, to)?;
            // It may have been taken away meanwhile: the rest was not absent then.
            root.check()
        })
    }
}

/// The objects that a thread sends. An empty batch is the end: without it something was lost.
fn stream(work: impl FnOnce(&Batches) -> Result<()> + Send + 'static) -> BoxStream<'static, Result<Meta>> {
    /// Batches on their way.
    const BATCHES: usize = 4;
    let begun = futures::stream::once(async move {
        let (to, from) = tokio::sync::mpsc::channel(BATCHES);
        tokio::task::spawn_blocking(move || {
            // It fails where nobody receives any more.
            let _ = to.blocking_send(work(&to).map(|()| Vec::new()));
        });
        futures::stream::try_unfold(from, |mut from| async move {
            match from.recv().await {
                Some(Ok(batch)) if batch.is_empty() => Ok(None),
                Some(batch) => Ok(Some((futures::stream::iter(batch?.into_iter().map(Ok)), from))),
                None => Err(Error::internal("a thread that listed files died")),
            }
        })
        .try_flatten()
    });
    begun.flatten().boxed()
}

/// What tells the length of an object by its key, where that has it.
type Known = fn(&str) -> Option<u64>;

/// Sends what is below `folder`, in batches, until it is all or nobody receives any more. An object whose length is
/// `known` is not looked at: its time of modification is that of the beginning of time. Blocks.
fn walk(root: &Path, folder: &str, known: Option<Known>, to: &Batches) -> Result<()> {
    let state = State { waiting: [(folder.to_owned(), 0)].into(), ..State::default() };
    let shared = Shared {
        root: root.to_owned(),
        known,
        state: Mutex::new(state),
        changed: Condvar::new(),
        hungry: AtomicUsize::new(0),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let one = Walker { shared: &shared, to, found: Vec::with_capacity(BATCH) };
                    // The others must not wait for one that is gone.
                    let walked = catch_unwind(AssertUnwindSafe(|| one.run()))
                        .unwrap_or_else(|_| Err(Error::internal("a thread that listed files failed")));
                    if walked.is_err() {
                        shared.end();
                    }
                    walked
                })
            })
            .collect();
        let ends = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::internal("a thread that listed files died")))
        });
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A folder to read; nothing where all is done.
    fn next(&self) -> Option<(String, usize)> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(folder) = state.waiting.pop_front() {
                state.busy += 1;
                return Some(folder);
            }
            if state.busy == 0 {
                state.ended = true;
                self.changed.notify_all();
                return None;
            }
            state.idle += 1;
            self.hungry.fetch_add(1, Ordering::Relaxed);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            self.hungry.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn done(&self) {
        let mut state = self.lock();
        state.busy -= 1;
        if state.busy == 0 && state.waiting.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Gives a folder to a thread that has none; back, where they all have one.
    fn offer(&self, key: String, depth: usize) -> Option<String> {
        // Whoever begins to wait this moment is asked about with the next folder.
        if self.hungry.load(Ordering::Relaxed) == 0 {
            return Some(key);
        }
        let mut state = self.lock();
        if state.idle <= state.waiting.len() {
            return Some(key);
        }
        state.waiting.push_back((key, depth));
        self.changed.notify_one();
        None
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

impl Walker<'_> {
    fn run(mut self) -> Result<()> {
        while let Some((key, depth)) = self.shared.next() {
            let path = if key.is_empty() { self.shared.root.clone() } else { self.shared.root.join(&key) };
            let opened = match File::open(path) {
                Err(e) if absent(&e) => None,
                other => Some(other.map_err(failed("listing", &key))?.into()),
            };
            let read = opened.map_or(Ok(()), |folder| self.folder(folder, &key, depth));
            self.shared.done();
            read?;
        }
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.found, Vec::with_capacity(BATCH));
        self.to.blocking_send(Ok(batch)).map_err(|_| Error::cancelled())
    }

    fn folder(&mut self, folder: OwnedFd, key: &str, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(Error::new(ErrorKind::Io, format!("{key} lies too deep for a repository"))
                .with_hint("does a link lead back to a folder that it lies in?"));
        }
        let at = |e: rustix::io::Errno| failed("listing", key)(io::Error::from(e));
        let mut entries = Dir::new(folder).map_err(at)?;
        while let Some(entry) = entries.read() {
            let entry = match entry {
                // Removed meanwhile.
                Err(e) if absent(&io::Error::from(e)) => break,
                other => other.map_err(at)?,
            };
            // What is not text is not ours.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let mut child = String::with_capacity(key.len() + 1 + name.len());
            if !key.is_empty() {
                child.push_str(key);
                child.push('/');
            }
            child.push_str(name);
            let mut stat = None;
            let is_folder = match entry.file_type() {
                FileType::Directory => true,
                FileType::RegularFile => false,
                // As everywhere else, what a link leads to; and some file systems do not say.
                _ => match statat(entries.fd().map_err(at)?, entry.file_name(), AtFlags::empty()) {
                    Err(e) if absent(&io::Error::from(e)) => continue,
                    other => {
                        let found = stat.insert(other.map_err(at)?);
                        FileType::from_raw_mode(found.st_mode) == FileType::Directory
                    }
                },
            };
            if is_folder {
                let Some(child) = self.shared.offer(child, depth + 1) else { continue };
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match openat(entries.fd().map_err(at)?, entry.file_name(), flags, Mode::empty()) {
                    Err(e) if absent(&io::Error::from(e)) => {}
                    other => self.folder(other.map_err(at)?, &child, depth + 1)?,
                }
                continue;
            }
            let stat = match (stat, self.shared.known.and_then(|known| known(&child))) {
                (Some(stat), _) => stat,
                (None, Some(bytes)) => {
                    self.add(Meta { key: child, bytes, modified: Timestamp::UNIX_EPOCH })?;
                    continue;
                }
                (None, None) => {
                    match statat(entries.fd().map_err(at)?, entry.file_name(), AtFlags::empty()) {
                        // Deleted while it was listed.
                        Err(e) if absent(&io::Error::from(e)) => continue,
                        other => other.map_err(at)?,
                    }
                }
            };
            self.add(meta(child, &stat)?)?;
        }
        Ok(())
    }

    fn add(&mut self, object: Meta) -> Result<()> {
        self.found.push(object);
        if self.found.len() >= BATCH { self.send() } else { Ok(()) }
    }
}

// Their types differ between systems.
#[allow(clippy::cast_lossless, clippy::unnecessary_cast, clippy::useless_conversion)]
fn meta(key: String, stat: &Stat) -> Result<Meta> {
    let nanos = i32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    match Timestamp::new(stat.st_mtime as i64, nanos) {
        Ok(modified) => Ok(Meta { key, bytes: u64::try_from(stat.st_size).unwrap_or(0), modified }),
        Err(e) => Err(Error::new(ErrorKind::Io, format!("{key} has no time of modification")).caused_by(e)),
    }
}
