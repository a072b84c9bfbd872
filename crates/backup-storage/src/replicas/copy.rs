//! One of several copies.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backup_core::{Bytestream, Created, Entry, Error, ErrorKind, Meta, Result, Store, Upload, read_if_there};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

/// How long a copy that failed is left alone. Its own retries were in vain: to try them for every object would
/// make a run with a dead copy take hours. Each further failure doubles it.
const PAUSE: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// How long a call may take that moves no more than a chunk, the store's own retries included.
const PATIENCE: Duration = Duration::from_mins(2);

/// What makes a place a repository (`docs/format.md`).
const MARKER: &str = "pgark.json";

/// A store that is not asked again for a while when it did not answer.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    store: Arc<dyn Store>,
    away: Arc<Away>,
}

/// What is known of a copy that does not answer.
#[derive(Debug)]
struct Away {
    location: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    first_pause: Duration,
    patience: Duration,
    failed: Option<Failed>,
    /// Id of the repository that it must be a copy of.
    expected: Option<String>,
    /// Whether it was seen to be since it last failed.
    seen_to_be: bool,
}

#[derive(Debug)]
struct Failed {
    at: Instant,
    pause: Duration,
    why: String,
}

impl Away {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<()> {
        match &self.lock().failed {
            Some(Failed { at, pause, why }) if at.elapsed() < *pause => {
                let message = format!("{} did not answer a moment ago: {why}", self.location);
                Err(Error::new(ErrorKind::StoreUnavailable, message)
                    .retryable_if(false)
                    .with_hint("is the store up, and the network? its file system mounted?"))
            }
            _ => Ok(()),
        }
    }

    /// Remembers what a call came to.
    fn seen<T>(&self, result: Result<T>) -> Result<T> {
        let mut state = self.lock();
        match &result {
            Ok(_) => state.failed = None,
            Err(error) if error.kind() == ErrorKind::StoreUnavailable => {
                // Calls that failed at the same time count once.
                state.seen_to_be = false;
                let pause = match &state.failed {
                    Some(failed) if failed.at.elapsed() < failed.pause => failed.pause,
                    Some(failed) => (failed.pause * 2).min(LONGEST_PAUSE),
                    None => state.first_pause,
                };
                state.failed = Some(Failed { at: Instant::now(), pause, why: error.to_string() });
            }
            Err(_) => {}
        }
        result
    }

    /// Waits for a call, but not without end.
    async fn within<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let patience = self.lock().patience;
        let done = tokio::time::timeout(patience, call).await.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {patience:?}", self.location);
            Err(Error::new(ErrorKind::StoreUnavailable, message).retryable_if(false))
        });
        self.seen(done)
    }
}

impl State {
    /// The id to look for.
    fn to_check(&self) -> Option<String> {
        self.expected.clone().filter(|_| !self.seen_to_be)
    }
}

impl Copy {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        let location = store.location().to_owned();
        let state =
            State { first_pause: PAUSE, patience: PATIENCE, failed: None, expected: None, seen_to_be: false };
        Self { store, away: Arc::new(Away { location, state: Mutex::new(state) }) }
    }

    pub(super) fn set_pause(&self, pause: Duration) {
        self.away.lock().first_pause = pause;
    }

    pub(super) fn set_patience(&self, patience: Duration) {
        self.away.lock().patience = patience;
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.check().is_err()
    }

    pub(super) fn expect(&self, id: &str) {
        let mut state = self.away.lock();
        state.expected = Some(id.to_owned());
        state.seen_to_be = false;
    }

    async fn asked<T>(&self, key: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.ready(key).await?;
        self.away.within(call).await
    }

    /// Whether it may be asked for something now: it did not just fail, and it is a copy of the right repository. An
    /// empty folder may be one whose file system is not mounted.
    async fn ready(&self, key: &str) -> Result<()> {
        self.away.check()?;
        let state = self.away.lock().to_check();
        // What is beside the clusters makes a place a repository.
        let Some(expected) = state.filter(|_| key.starts_with("clusters")) else { return Ok(()) };
        let location = self.store.location();
        let read = self.away.within(read_if_there(&*self.store, MARKER, 1 << 20)).await?;
        let id = read.and_then(|body| serde_json::from_slice::<serde_json::Value>(&body).ok());
        let id = id.as_ref().and_then(|marker| marker.get("id")).and_then(|id| id.as_str());
        let why = match id {
            Some(id) if id == expected => {
                self.away.lock().seen_to_be = true;
                return Ok(());
            }
            Some(_) => format!("{location} is another repository, and no copy of this one"),
            None => format!("{location} is no copy of the repository yet, or its file system is not mounted"),
        };
        let error = Error::new(ErrorKind::StoreUnavailable, why).retryable_if(false);
        self.away
            .seen(Err(error.with_hint("pgark init makes an empty place a copy, and pgark sync fills it in")))
    }
}

#[async_trait]
impl Store for Copy {
    fn location(&self) -> &str {
        self.store.location()
    }

    fn upload_chunks(&self) -> usize {
        self.store.upload_chunks()
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created> {
        self.asked(key, self.store.create(key, body)).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        let upload = self.asked(key, self.store.upload(key)).await?;
        Ok(Box::new(CopyUpload { upload, away: Arc::clone(&self.away) }))
    }

    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytestream> {
        let stream = self.asked(key, self.store.read(key, range)).await?;
        let reading = (stream, Arc::clone(&self.away));
        Ok(futures::stream::try_unfold(reading, |(mut stream, away)| async move {
            let chunk = away.within(stream.try_next()).await?;
            Ok(chunk.map(|chunk| (chunk, (stream, away))))
        })
        .boxed())
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        self.asked(key, self.store.head(key)).await
    }

    fn list(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        let (copy, folder, after) = (self.clone(), folder.to_owned(), after.map(str::to_owned));
        let listing = async move {
            copy.ready(&folder).await?;
            let listing = (copy.store.list(&folder, after.as_deref()), copy.away);
            Ok(futures::stream::try_unfold(listing, |(mut list, away)| async move {
                let entry = away.within(list.try_next()).await?;
                Ok(entry.map(|entry| (entry, (list, away))))
            }))
        };
        futures::stream::once(listing).try_flatten().boxed()
    }

    async fn delete(&self, keys: &[String]) -> Vec<Result<()>> {
        let first = keys.first().map_or("", String::as_str);
        if let Err(error) = self.ready(first).await {
            let again = || Error::new(error.kind(), error.to_string()).retryable_if(false);
            return keys.iter().map(|_| Err(again())).collect();
        }
        self.store.delete(keys).await.into_iter().map(|result| self.away.seen(result)).collect()
    }

    fn alone(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::clone(&self.store))
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        self.asked("", self.store.free_bytes()).await
    }

    async fn sweep_temporaries(&self, age: Duration) -> Result<u64> {
        self.asked("", self.store.sweep_temporaries(age)).await
    }
}

struct CopyUpload {
    upload: Box<dyn Upload>,
    away: Arc<Away>,
}

#[async_trait]
impl Upload for CopyUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.away.within(self.upload.write(chunk)).await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let Self { upload, away } = *self;
        away.seen(upload.finish().await)
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.upload.abort().await
    }
}

/// A read from one copy that goes on in the others where the store fails: their bytes are the same.
struct GoingOn {
    copies: Vec<Arc<Copy>>,
    others: Vec<usize>,
    key: String,
    at: u64,
    end: Option<u64>,
    stream: Bytestream,
}

pub(super) fn going_on(
    copies: Vec<Arc<Copy>>,
    others: Vec<usize>,
    key: &str,
    range: Option<Range<u64>>,
    stream: Bytestream,
) -> Bytestream {
    let (at, end) = range.map_or((0, None), |range| (range.start, Some(range.end)));
    let reading = GoingOn { copies, others, key: key.to_owned(), at, end, stream };
    futures::stream::try_unfold(reading, GoingOn::next).boxed()
}

impl GoingOn {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let error = match self.stream.next().await {
                None => return Ok(None),
                Some(Ok(chunk)) => {
                    self.at += chunk.len() as u64;
                    return Ok(Some((chunk, self)));
                }
                Some(Err(error)) => error,
            };
            if self.others.is_empty() {
                return Err(error);
            }
            let copy = Arc::clone(&self.copies[self.others.remove(0)]);
            tracing::info!(%error, key = self.key, at = self.at, copy = copy.location(), "reading on from another copy");
            let end = match self.end {
                Some(end) => Ok(end),
                None => copy.head(&self.key).await.map(|meta| meta.bytes),
            };
            let again = match end {
                Ok(end) => copy.read(&self.key, Some(self.at..end)).await,
                Err(e) => Err(e),
            };
            self.stream = match again {
                Ok(stream) => stream,
                // The first failure is the one that is told.
                Err(_) => futures::stream::iter([Err(error)]).boxed(),
            };
        }
    }
}
