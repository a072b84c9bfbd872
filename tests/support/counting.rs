//! A transport that counts requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use pgark::{Got, Meta, Page, Result, Transport};

#[derive(Debug, Clone)]
pub struct Counting<T> {
    inner: T,
    count: Arc<AtomicUsize>,
}

impl<T> Counting<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, count: Arc::default() }
    }

    /// Requests since the last call.
    pub fn take(&self) -> usize {
        self.count.swap(0, Ordering::SeqCst)
    }

    fn add(&self) -> &T {
        self.count.fetch_add(1, Ordering::SeqCst);
        &self.inner
    }
}

#[async_trait]
impl<T: Transport> Transport for Counting<T> {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.add().create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.add().put(key, body).await
    }

    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        self.add().get(key, start, end).await
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        self.add().head(key).await
    }

    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        self.add().list(folder, after, token).await
    }

    async fn walk(&self, folder: &str, token: Option<String>) -> Result<Option<Page>> {
        self.add().walk(folder, token).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.add().delete(key).await
    }

    async fn start(&self, key: &str) -> Result<String> {
        self.add().start(key).await
    }

    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        self.add().put_part(key, upload, index, body).await
    }

    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        self.add().complete(key, upload, tags).await
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        self.add().abort(key, upload).await
    }
}
