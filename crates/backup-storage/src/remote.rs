//! A store over single requests that may fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use backup_core::{Bytestream, Created, Entry, Error, ErrorKind, Meta, Result, Store, Upload, walk_folders};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use crate::transport::Transport;

/// How often and how long requests are repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Tries after the first one.
    pub retries: usize,
    /// Wait before the second try; it doubles each time, with jitter.
    pub first_delay: Duration,
    /// Longest wait.
    pub longest_delay: Duration,
    /// A request that takes longer counts as failed, and so does a read of which nothing comes.
    pub timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries: 7,
            first_delay: Duration::from_millis(200),
            longest_delay: Duration::from_secs(10),
            timeout: Duration::from_mins(1),
        }
    }
}

/// How many parts of one upload are on their way at once.
const PARTS_IN_FLIGHT: usize = 2;
/// How many objects are deleted at once.
const DELETES: usize = 16;

/// A [`Store`] over a [`Transport`].
#[derive(Debug, Clone)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Box<dyn Transport>,
    location: String,
    policy: RetryPolicy,
}

impl Remote {
    /// A store that shows itself as `location`.
    pub fn new(transport: impl Transport, location: impl Into<String>, policy: RetryPolicy) -> Self {
        Self(Arc::new(Inner { transport: Box::new(transport), location: location.into(), policy }))
    }
}

impl Inner {
    fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.policy.first_delay)
            .with_max_delay(self.policy.longest_delay)
            .with_max_times(self.policy.retries)
            .with_jitter()
    }

    async fn within<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.policy.timeout;
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {limit:?}", self.location);
            Err(Error::new(ErrorKind::StoreUnavailable, message)
                .doing(what)
                .with_hint("is the store up, and the network?"))
        })
    }

    /// Makes a request until it succeeds, fails for good, or has been tried often enough.
    async fn retry<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T> {
        (|| self.within(what, request()))
            .retry(self.backoff())
            .when(Error::retryable)
            .notify(|error, wait| tracing::info!(%error, ?wait, what, "trying again"))
            .await
    }

    /// One create, with its answer understood. A store may have done it and failed to say so, or say that the
    /// key is taken while it is not (S3's 409): what the key holds decides.
    async fn create_once(&self, key: &str, body: &Bytes) -> Result<Created> {
        match self.transport.create(key, body.clone()).await {
            Ok(()) => Ok(Created::New),
            Err(error) if error.kind() == ErrorKind::Conflict => match self.compare(key, body).await? {
                Some(created) => Ok(created),
                None => Err(error.retryable_if(true)),
            },
            Err(error) => Err(error),
        }
    }

    async fn compare(&self, key: &str, body: &Bytes) -> Result<Option<Created>> {
        let got = match self.transport.get(key, 0, None).await {
            Ok(got) => got,
            Err(e) if e.kind() == ErrorKind::ObjectMissing => return Ok(None),
            Err(e) => return Err(e),
        };
        if got.bytes != body.len() as u64 {
            return Ok(Some(Created::Other));
        }
        let (mut chunks, mut at) = (got.body, 0);
        while let Some(chunk) = chunks.try_next().await? {
            if body.get(at..at + chunk.len()) != Some(&chunk[..]) {
                return Ok(Some(Created::Other));
            }
            at += chunk.len();
        }
        if at < body.len() {
            return Err(cut_off(key));
        }
        Ok(Some(Created::Same))
    }
}

fn cut_off(key: &str) -> Error {
    Error::new(ErrorKind::StoreUnavailable, format!("the answer was cut off while {key} was read"))
}

#[async_trait]
impl Store for Remote {
    fn location(&self) -> &str {
        &self.0.location
    }

    fn upload_chunks(&self) -> usize {
        // One more waits for room.
        PARTS_IN_FLIGHT + 1
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created> {
        let what = format!("creating {key}");
        match self.0.retry(&what, || self.0.create_once(key, &body)).await {
            Err(error) if error.retryable() => {
                // The last try may have succeeded without an answer.
                match self.0.within(&what, self.0.compare(key, &body)).await {
                    Ok(Some(created)) => Ok(created),
                    Ok(None) if error.kind() == ErrorKind::Conflict => {
                        let message =
                            format!("{} says that {key} exists, and that it does not", self.0.location);
                        Err(Error::new(ErrorKind::StoreUnavailable, message).doing(what).caused_by(error))
                    }
                    _ => Err(error),
                }
            }
            other => other,
        }
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Multipart {
            store: Arc::clone(&self.0),
            key: key.to_owned(),
            first: None,
            id: None,
            next: 0,
            bytes: 0,
            sending: JoinSet::new(),
            tags: BTreeMap::new(),
        }))
    }

    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytestream> {
        let (start, end) = range.map_or((0, None), |r| (r.start, Some(r.end)));
        if end.is_some_and(|end| end <= start) {
            return Ok(futures::stream::empty().boxed());
        }
        let (inner, key) = (Arc::clone(&self.0), key.to_owned());
        let got = inner.retry(&format!("reading {key}"), || inner.transport.get(&key, start, end)).await?;
        let reading =
            Reading { at: start, end: start + got.bytes, body: got.body, failures: 0, key, store: inner };
        if end.is_some_and(|end| end != reading.end) {
            return Err(Error::new(
                ErrorKind::Integrity,
                format!("{} ends at byte {}, earlier than it should", reading.key, reading.end),
            ));
        }
        Ok(futures::stream::try_unfold(reading, Reading::next).boxed())
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        self.0.retry(&format!("looking at {key}"), || self.0.transport.head(key)).await
    }

    fn list(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        let (inner, folder, after) = (Arc::clone(&self.0), folder.to_owned(), after.map(str::to_owned));
        let pages = futures::stream::try_unfold(Some(None::<String>), move |state| {
            let (inner, folder, after) = (Arc::clone(&inner), folder.clone(), after.clone());
            async move {
                let Some(token) = state else { return Ok(None) };
                let what = format!("listing {folder}/");
                let page = inner
                    .retry(&what, || inner.transport.list(&folder, after.as_deref(), token.clone()))
                    .await?;
                Ok::<_, Error>(Some((
                    futures::stream::iter(page.entries.into_iter().map(Ok)),
                    page.next.map(Some),
                )))
            }
        });
        pages.try_flatten().boxed()
    }

    fn walk<'a>(&'a self, folder: &str) -> BoxStream<'a, Result<Meta>> {
        let folder = folder.to_owned();
        let pages = futures::stream::try_unfold(Some(None::<String>), move |state| {
            let folder = folder.clone();
            async move {
                let Some(token) = state else { return Ok(None) };
                let first = token.is_none();
                let what = format!("listing all in {folder}/");
                let page = self.0.retry(&what, || self.0.transport.walk(&folder, token.clone())).await?;
                let Some(page) = page else {
                    // It cannot, and says so at the first page.
                    let error = || Error::internal("a transport that listed all objects cannot any more");
                    return if first { Ok(Some((walk_folders(self, &folder), None))) } else { Err(error()) };
                };
                let objects = page.entries.into_iter().filter_map(|entry| match entry {
                    Entry::Object(meta) => Some(Ok(meta)),
                    Entry::Folder(_) => None,
                });
                Ok::<_, Error>(Some((futures::stream::iter(objects).boxed(), page.next.map(Some))))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn delete(&self, keys: &[String]) -> Vec<Result<()>> {
        let one = |key: String| async move {
            match self.0.retry(&format!("deleting {key}"), || self.0.transport.delete(&key)).await {
                Err(e) if e.kind() == ErrorKind::ObjectMissing => Ok(()),
                other => other,
            }
        };
        futures::stream::iter(keys.to_vec()).map(one).buffered(DELETES).collect().await
    }
}

/// A read that goes on where it broke off.
struct Reading {
    store: Arc<Inner>,
    key: String,
    at: u64,
    end: u64,
    body: Bytestream,
    failures: usize,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let what = format!("reading {}", self.key);
            let chunk = self.store.within(&what, async { self.body.next().await.transpose() }).await;
            let error = match chunk {
                Ok(Some(chunk)) if chunk.is_empty() => continue,
                Ok(Some(chunk)) => {
                    self.at += chunk.len() as u64;
                    self.failures = 0;
                    return Ok(Some((chunk, self)));
                }
                Ok(None) if self.at >= self.end => return Ok(None),
                Ok(None) => cut_off(&self.key),
                Err(error) => error,
            };
            self.failures += 1;
            if !error.retryable() || self.failures > self.store.policy.retries {
                return Err(error);
            }
            tracing::info!(%error, what, at = self.at, "reading on after a failure");
            tokio::time::sleep(self.store.policy.first_delay).await;
            let (transport, key, at, end) = (&self.store.transport, &self.key, self.at, self.end);
            self.body = self.store.retry(&what, || transport.get(key, at, Some(end))).await?.body;
        }
    }
}

/// An upload: one put where it is small, a multipart upload otherwise.
struct Multipart {
    store: Arc<Inner>,
    key: String,
    first: Option<Bytes>,
    id: Option<String>,
    next: usize,
    bytes: u64,
    sending: JoinSet<Result<(usize, String)>>,
    tags: BTreeMap<usize, String>,
}

impl Multipart {
    async fn send(&mut self, chunk: Bytes) -> Result<()> {
        let id = if let Some(id) = &self.id {
            id.clone()
        } else {
            let what = format!("starting the upload of {}", self.key);
            let id = self.store.retry(&what, || self.store.transport.start(&self.key)).await?;
            self.id.insert(id).clone()
        };
        while self.sending.len() >= PARTS_IN_FLIGHT {
            self.received().await?;
        }
        let (store, key, index) = (Arc::clone(&self.store), self.key.clone(), self.next);
        self.next += 1;
        self.sending.spawn(async move {
            let what = format!("uploading part {} of {key}", index + 1);
            let tag =
                store.retry(&what, || store.transport.put_part(&key, &id, index, chunk.clone())).await?;
            Ok((index, tag))
        });
        Ok(())
    }

    async fn received(&mut self) -> Result<()> {
        if let Some(sent) = self.sending.join_next().await {
            let (index, tag) =
                sent.map_err(|e| Error::internal("an upload's task failed").caused_by(e))??;
            self.tags.insert(index, tag);
        }
        Ok(())
    }
}

impl Multipart {
    /// Waits for the parts and makes them one object.
    async fn complete(&mut self) -> Result<()> {
        while !self.sending.is_empty() {
            self.received().await?;
        }
        let (store, key, id) = (&self.store, &self.key, self.id.clone().unwrap_or_default());
        let tags: Vec<String> = self.tags.values().cloned().collect();
        let what = format!("completing {key}");
        let mut tries = 0;
        let complete = || {
            tries += 1;
            store.transport.complete(key, &id, tags.clone())
        };
        let Err(error) = store.retry(&what, complete).await else { return Ok(()) };
        // A try that was not answered may have done it. The next one then finds no upload any more, and every store
        // says so in its own way. Nobody else writes this key: what is there is this upload.
        let there = if error.retryable() {
            store.within(&what, store.transport.head(key)).await
        } else if tries > 1 {
            store.retry(&what, || store.transport.head(key)).await
        } else {
            return Err(error);
        };
        if there.is_ok_and(|meta| meta.bytes == self.bytes) { Ok(()) } else { Err(error) }
    }
}

#[async_trait]
impl Upload for Multipart {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes += chunk.len() as u64;
        // The first chunk waits: perhaps it is the only one.
        match (self.id.is_some(), self.first.take()) {
            (false, None) => self.first = Some(chunk),
            (_, Some(first)) => {
                self.send(first).await?;
                self.send(chunk).await?;
            }
            (true, None) => self.send(chunk).await?,
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        if self.id.is_none() {
            let body = self.first.take().unwrap_or_default();
            let what = format!("writing {}", self.key);
            return self.store.retry(&what, || self.store.transport.put(&self.key, body.clone())).await;
        }
        let completed = self.complete().await;
        if completed.is_err() {
            // What cannot be aborted is invisible, and the bucket's lifecycle rule removes it.
            let _ = self.abort().await;
        }
        completed
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.sending.shutdown().await;
        match &self.id {
            Some(id) => {
                let what = format!("aborting {}", self.key);
                match self.store.retry(&what, || self.store.transport.abort(&self.key, id)).await {
                    // The try before did it without an answer.
                    Err(e) if e.kind() == ErrorKind::ObjectMissing => Ok(()),
                    other => other,
                }
            }
            None => Ok(()),
        }
    }
}
