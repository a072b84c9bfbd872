use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use backup_core::{Entry, Error, ErrorKind, Meta, Result};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;

use crate::transport::{Got, Page, Transport};

/// Pages of a listing are as long as those of S3.
const PAGE: usize = 1000;

/// Objects in memory, for tests. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryTransport(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    uploads: BTreeMap<String, BTreeMap<usize, Bytes>>,
    count: u64,
}

impl MemoryTransport {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an object behind everybody's back, as a broken disk would. `None` removes it.
    pub fn tamper(&self, key: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
        let mut state = self.lock();
        if let Some((body, modified)) = state.objects.remove(key)
            && let Some(body) = change(body.to_vec())
        {
            state.objects.insert(key.to_owned(), (body.into(), modified));
        }
    }

    /// Makes all objects look older.
    pub fn age(&self, by: std::time::Duration) {
        for (_, modified) in self.lock().objects.values_mut() {
            *modified -= by;
        }
    }

    /// The keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// How many uploads are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::ObjectMissing, format!("there is no {what}"))
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        let mut state = self.lock();
        if state.objects.contains_key(key) {
            return Err(Error::new(ErrorKind::Conflict, format!("{key} exists")));
        }
        state.objects.insert(key.to_owned(), (body, Timestamp::now()));
        Ok(())
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.lock().objects.insert(key.to_owned(), (body, Timestamp::now()));
        Ok(())
    }

    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        let body = self.lock().objects.get(key).map(|(body, _)| body.clone()).ok_or_else(|| missing(key))?;
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(body.len());
        let body = body.slice(at(start)..end.map_or(body.len(), at));
        let pieces: Vec<_> = body.chunks(256 * 1024).map(|c| Ok(body.slice_ref(c))).collect();
        Ok(Got { bytes: body.len() as u64, body: futures::stream::iter(pieces).boxed() })
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        let state = self.lock();
        let (body, modified) = state.objects.get(key).ok_or_else(|| missing(key))?;
        Ok(Meta { key: key.to_owned(), bytes: body.len() as u64, modified: *modified })
    }

    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let after = token.as_deref().or(after).unwrap_or_default();
        let state = self.lock();
        let mut page = Page::default();
        for (key, (body, modified)) in state.objects.range(prefix.clone()..) {
            let Some(rest) = key.strip_prefix(&prefix) else { break };
            let (name, is_folder) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
            let known = |e: &Entry| is_folder && matches!(e, Entry::Folder(_)) && e.name() == name;
            if name <= after || page.entries.last().is_some_and(known) {
                continue;
            }
            if page.entries.len() == PAGE {
                page.next = page.entries.last().map(|e| e.name().to_owned());
                break;
            }
            page.entries.push(if is_folder {
                Entry::Folder(format!("{prefix}{name}"))
            } else {
                Entry::Object(Meta { key: key.clone(), bytes: body.len() as u64, modified: *modified })
            });
        }
        Ok(page)
    }

    async fn walk(&self, folder: &str, token: Option<String>) -> Result<Option<Page>> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let state = self.lock();
        let after = token.as_ref().unwrap_or(&prefix);
        let mut rest = state
            .objects
            .range(after.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .filter(|(key, _)| *key != after)
            .map(|(key, (body, modified))| Meta {
                key: key.clone(),
                bytes: body.len() as u64,
                modified: *modified,
            })
            .peekable();
        let entries: Vec<Entry> = rest.by_ref().take(PAGE).map(Entry::Object).collect();
        let next = rest.peek().and(entries.last()).map(|last| match last {
            Entry::Object(meta) => meta.key.clone(),
            Entry::Folder(key) => key.clone(),
        });
        Ok(Some(Page { entries, next }))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.lock().objects.remove(key).map(|_| ()).ok_or_else(|| missing(key))
    }

    async fn start(&self, key: &str) -> Result<String> {
        let mut state = self.lock();
        state.count += 1;
        let id = format!("{key}#{}", state.count);
        state.uploads.insert(id.clone(), BTreeMap::new());
        Ok(id)
    }

    async fn put_part(&self, _: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        let mut state = self.lock();
        state.uploads.get_mut(upload).ok_or_else(|| missing("such upload"))?.insert(index, body);
        Ok(index.to_string())
    }

    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        let mut state = self.lock();
        let parts = state.uploads.remove(upload).ok_or_else(|| missing("such upload"))?;
        if parts.len() != tags.len() {
            return Err(Error::internal("parts of the upload are missing"));
        }
        let body = parts.into_values().collect::<Vec<Bytes>>().concat();
        state.objects.insert(key.to_owned(), (body.into(), Timestamp::now()));
        Ok(())
    }

    async fn abort(&self, _: &str, upload: &str) -> Result<()> {
        self.lock().uploads.remove(upload);
        Ok(())
    }
}
