use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{Error, ErrorKind, Meta, Result};
use bytes::Bytes;
use futures::StreamExt;

use crate::transport::{Got, Page, Transport};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Each request fails so many times before it succeeds, as with a 503.
    FailFirst(usize),
    /// The first answer to each request that changes something is lost after the change was made.
    LoseAnswer,
    /// The body of every first read is cut off in the middle, with an error or without.
    CutReads {
        /// The body just ends.
        silently: bool,
    },
    /// Every request takes so long.
    Slow(Duration),
    /// No request is ever answered.
    Hang,
    /// Every request fails.
    Dead,
}

/// A transport with faults.
#[derive(Debug, Clone)]
pub struct Faulty<T> {
    inner: T,
    fault: Arc<Mutex<Option<Fault>>>,
    seen: Arc<Mutex<HashMap<String, usize>>>,
}

impl<T> Faulty<T> {
    /// `inner` with a fault.
    pub fn new(inner: T, fault: Fault) -> Self {
        Self { inner, fault: Arc::new(Mutex::new(Some(fault))), seen: Arc::default() }
    }

    /// Changes the fault, or ends it.
    pub fn set(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    fn fault(&self) -> Option<Fault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often this request was seen before.
    fn count(&self, request: String) -> usize {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.entry(request).or_default();
        *count += 1;
        *count - 1
    }

    async fn before(&self, request: &str) -> Result<()> {
        match self.fault() {
            Some(Fault::FailFirst(n)) if self.count(request.to_owned()) < n => Err(unavailable()),
            Some(Fault::Dead) => Err(unavailable()),
            Some(Fault::Slow(wait)) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Some(Fault::Hang) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn after<R>(&self, request: &str, result: Result<R>) -> Result<R> {
        match self.fault() {
            Some(Fault::LoseAnswer) if self.count(format!("lose {request}")) == 0 => Err(unavailable()),
            _ => result,
        }
    }
}

fn unavailable() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "503 slow down")
}

#[async_trait]
impl<T: Transport> Transport for Faulty<T> {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        let request = format!("create {key}");
        self.before(&request).await?;
        let result = self.inner.create(key, body).await;
        self.after(&request, result)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let request = format!("put {key}");
        self.before(&request).await?;
        let result = self.inner.put(key, body).await;
        self.after(&request, result)
    }

    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        self.before(&format!("get {key} {start}")).await?;
        let got = self.inner.get(key, start, end).await?;
        match self.fault() {
            Some(Fault::CutReads { silently })
                if self.count(format!("cut {key} {start}")) == 0 && got.bytes > 1 =>
            {
                let half = got.bytes / 2;
                let first = self.inner.get(key, start, Some(start + half)).await?.body;
                let end = futures::stream::iter((!silently).then(|| Err(unavailable())));
                Ok(Got { bytes: got.bytes, body: first.chain(end).boxed() })
            }
            _ => Ok(got),
        }
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        self.before(&format!("head {key}")).await?;
        self.inner.head(key).await
    }

    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        self.before(&format!("list {folder} {after:?} {token:?}")).await?;
        self.inner.list(folder, after, token).await
    }

    async fn walk(&self, folder: &str, token: Option<String>) -> Result<Option<Page>> {
        self.before(&format!("walk {folder} {token:?}")).await?;
        self.inner.walk(folder, token).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let request = format!("delete {key}");
        self.before(&request).await?;
        let result = self.inner.delete(key).await;
        self.after(&request, result)
    }

    async fn start(&self, key: &str) -> Result<String> {
        self.before(&format!("start {key}")).await?;
        self.inner.start(key).await
    }

    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        let request = format!("part {upload} {index}");
        self.before(&request).await?;
        let result = self.inner.put_part(key, upload, index, body).await;
        self.after(&request, result)
    }

    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        let request = format!("complete {upload}");
        self.before(&request).await?;
        let result = self.inner.complete(key, upload, tags).await;
        self.after(&request, result)
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        self.before(&format!("abort {upload}")).await?;
        self.inner.abort(key, upload).await
    }
}
