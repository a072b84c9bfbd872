//! Single requests through the crate `object_store`. Its types stay in here.

mod errors;

use std::borrow::Cow;
use std::fmt::{self, Debug};

use async_trait::async_trait;
use backup_core::{Entry, Error, ErrorKind, Meta, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions,
};

use crate::classes::StorageClasses;
use crate::transport::{Got, Page, Transport};
use errors::classify;
pub(crate) use errors::not_configured;

/// What a client of `object_store` must be able to do.
pub(crate) trait Client: ObjectStore + MultipartStore + PaginatedListStore {}
impl<T: ObjectStore + MultipartStore + PaginatedListStore> Client for T {}

/// A bucket, or a folder in it.
pub(crate) struct Bucket<C> {
    pub(crate) client: C,
    /// Folder in the bucket; empty for all of it.
    pub(crate) prefix: String,
    /// Storage classes by kind. Records stay in the standard class, since they are read often.
    pub(crate) storage_class: StorageClasses,
    /// The store refuses to create what exists; otherwise pgark looks first.
    pub(crate) conditional_create: bool,
}

/// Without the client: that of Azure shows its key.
impl<C> Debug for Bucket<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<C: Client> Bucket<C> {
    fn path(&self, key: &str) -> Result<Path> {
        let full = match (self.prefix.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}/{key}", self.prefix),
        };
        Path::parse(&full).map_err(|e| {
            Error::new(ErrorKind::Integrity, format!("{key:?} is not the name of an object")).caused_by(e)
        })
    }

    fn meta(&self, found: &ObjectMeta) -> Result<Meta> {
        let modified =
            Timestamp::from_nanosecond(found.last_modified.timestamp_nanos_opt().unwrap_or(0).into());
        let modified = modified
            .map_err(|e| Error::new(ErrorKind::StoreUnavailable, "an object without a time").caused_by(e))?;
        Ok(Meta { key: self.key(&found.location), bytes: found.size, modified })
    }

    fn key(&self, path: &Path) -> String {
        let full: &str = path.as_ref();
        let below = full.strip_prefix(self.prefix.as_str()).map(|rest| rest.trim_start_matches('/'));
        below.unwrap_or(full).to_owned()
    }

    /// What the keys of all objects in a folder begin with.
    fn prefix_of(&self, folder: &str) -> Result<String> {
        let path = self.path(folder)?;
        Ok(if path.as_ref().is_empty() { String::new() } else { format!("{path}/") })
    }

    async fn page(&self, folder: &str, prefix: &str, options: PaginatedListOptions) -> Result<Page> {
        let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        let page = self.client.list_paginated(prefix, options).await.map_err(|e| classify(folder, e))?;
        let mut entries = Vec::with_capacity(page.result.objects.len() + page.result.common_prefixes.len());
        for found in &page.result.objects {
            entries.push(Entry::Object(self.meta(found)?));
        }
        entries.extend(page.result.common_prefixes.iter().map(|path| Entry::Folder(self.key(path))));
        Ok(Page { entries, next: page.page_token })
    }

    fn attributes(&self, key: &str) -> Attributes {
        let class = self.storage_class.of(key).map(|class| (Attribute::StorageClass, class.to_owned()));
        Attributes::from_iter(class)
    }
}

#[async_trait]
impl<C: Client> Transport for Bucket<C> {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        let path = self.path(key)?;
        let mode = if self.conditional_create { PutMode::Create } else { PutMode::Overwrite };
        if !self.conditional_create {
            match self.client.head(&path).await {
                Ok(_) => return Err(Error::new(ErrorKind::Conflict, format!("{key} exists"))),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(classify(key, e)),
            }
        }
        let options = PutOptions { mode, attributes: self.attributes(key), ..PutOptions::default() };
        self.client.put_opts(&path, body.into(), options).await.map(|_| ()).map_err(|e| classify(key, e))
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let options = PutOptions { attributes: self.attributes(key), ..PutOptions::default() };
        self.client
            .put_opts(&self.path(key)?, body.into(), options)
            .await
            .map(|_| ())
            .map_err(|e| classify(key, e))
    }

    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        let range = match end {
            Some(end) => Some(GetRange::Bounded(start..end)),
            None if start > 0 => Some(GetRange::Offset(start)),
            None => None,
        };
        let options = GetOptions { range, ..GetOptions::default() };
        let got = self.client.get_opts(&self.path(key)?, options).await.map_err(|e| classify(key, e))?;
        let bytes = got.range.end - got.range.start;
        let key = key.to_owned();
        Ok(Got { bytes, body: got.into_stream().map_err(move |e| classify(&key, e)).boxed() })
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        let found = self.client.head(&self.path(key)?).await.map_err(|e| classify(key, e))?;
        self.meta(&found)
    }

    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        let prefix = self.prefix_of(folder)?;
        let options = PaginatedListOptions {
            offset: after.map(|after| format!("{prefix}{after}")),
            delimiter: Some(Cow::Borrowed("/")),
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let mut page = self.page(folder, &prefix, options).await?;
        // A folder's prefix, with its slash, sorts after its bare name: the offset does not leave it out.
        page.entries.retain(|e| after.is_none_or(|after| e.name() > after));
        Ok(page)
    }

    async fn walk(&self, folder: &str, token: Option<String>) -> Result<Option<Page>> {
        let prefix = self.prefix_of(folder)?;
        let options = PaginatedListOptions { page_token: token, ..PaginatedListOptions::default() };
        self.page(folder, &prefix, options).await.map(Some)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.client.delete(&self.path(key)?).await.map_err(|e| classify(key, e))
    }

    async fn start(&self, key: &str) -> Result<String> {
        let attributes = self.attributes(key);
        let path = self.path(key)?;
        let started = if attributes.is_empty() {
            self.client.create_multipart(&path).await
        } else {
            let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
            self.client.create_multipart_opts(&path, options).await
        };
        started.map_err(|e| classify(key, e))
    }

    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        let part = self.client.put_part(&self.path(key)?, &upload.to_owned(), index, body.into()).await;
        part.map(|p| p.content_id).map_err(|e| classify(key, e))
    }

    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        let parts = tags.into_iter().map(|content_id| PartId { content_id }).collect();
        let done = self.client.complete_multipart(&self.path(key)?, &upload.to_owned(), parts).await;
        done.map(|_| ()).map_err(|e| classify(key, e))
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        self.client.abort_multipart(&self.path(key)?, &upload.to_owned()).await.map_err(|e| classify(key, e))
    }
}
