use std::fmt::Debug;

use async_trait::async_trait;
use backup_core::{Bytestream, Entry, Meta, Result};
use bytes::Bytes;

/// Single requests to an object store, without retries: what [`Remote`](crate::Remote) is built on.
///
/// Errors: [`ObjectMissing`](backup_core::ErrorKind::ObjectMissing) and
/// [`Conflict`](backup_core::ErrorKind::Conflict) where the store says so;
/// [`Error::retryable`](backup_core::Error::retryable) where another try may help.
#[async_trait]
pub trait Transport: Send + Sync + Debug + 'static {
    /// Puts an object unless the key is taken: then the error is a conflict.
    async fn create(&self, key: &str, body: Bytes) -> Result<()>;

    /// Puts an object that nobody else writes: small parts. Repeating it is harmless.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// Reads from `start` to `end`, or to the object's end.
    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got>;

    /// Looks at an object.
    async fn head(&self, key: &str) -> Result<Meta>;

    /// A page of what is directly in a folder, after a name; `token` is that of the page before.
    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page>;

    /// A page of all objects in a folder and in those below it. Nothing where the store cannot say that: then folders are
    /// listed one by one.
    async fn walk(&self, folder: &str, token: Option<String>) -> Result<Option<Page>> {
        let _ = (folder, token);
        Ok(None)
    }

    /// Deletes an object. An absent one is a success or `ObjectMissing`.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Starts a multipart upload; its id.
    async fn start(&self, key: &str) -> Result<String>;

    /// Uploads part `index`, from 0; its tag. Repeating it replaces the part.
    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String>;

    /// Completes an upload.
    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()>;

    /// Gives an upload up.
    async fn abort(&self, key: &str, upload: &str) -> Result<()>;
}

/// The answer to [`Transport::get`].
pub struct Got {
    /// How many bytes `body` shall have: a body that ends earlier was cut off.
    pub bytes: u64,
    /// The bytes.
    pub body: Bytestream,
}

/// A page of a listing.
#[derive(Debug, Default)]
pub struct Page {
    /// What it holds.
    pub entries: Vec<Entry>,
    /// Leads to the next page.
    pub next: Option<String>,
}
