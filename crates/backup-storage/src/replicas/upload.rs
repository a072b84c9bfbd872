//! An object that is written to several copies at once.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{Error, ErrorKind, Result, Store, Upload};
use bytes::Bytes;

use super::{Inner, is_wal};

struct Uploads {
    inner: Arc<Inner>,
    key: String,
    /// Those that took everything until now.
    open: Vec<(usize, Box<dyn Upload>)>,
    failed: Option<Error>,
}

/// Starts an object in every copy that lacks nothing of what the object is of.
pub(super) async fn start(inner: Arc<Inner>, key: &str) -> Result<Box<dyn Upload>> {
    let copies = (0..inner.copies.len()).filter(|copy| !inner.misses.has_missed(*copy, key));
    let started = copies.map(|copy| {
        let store = Arc::clone(&inner.copies[copy]);
        async move { (copy, store.upload(key).await) }
    });
    let started = futures::future::join_all(started).await;
    let mut uploads = Uploads { inner, key: key.to_owned(), open: Vec::new(), failed: None };
    for (copy, upload) in started {
        match upload {
            Ok(upload) => uploads.open.push((copy, upload)),
            Err(error) => uploads.lost(copy, error),
        }
    }
    if let Err(error) = uploads.enough(0) {
        let _ = Box::new(uploads).abort().await;
        return Err(error);
    }
    Ok(Box::new(uploads))
}

impl Uploads {
    /// A copy goes on without this object, and without what it is of.
    fn lost(&mut self, copy: usize, error: Error) {
        self.inner.misses.note(copy, &self.key, &error);
        self.failed.get_or_insert(error);
    }

    /// Whether as many copies as must are left, `done` ones included.
    fn enough(&mut self, done: usize) -> Result<()> {
        let left = self.open.len() + done;
        if left >= self.inner.min {
            return Ok(());
        }
        let failed = self.failed.take().or_else(|| {
            let why = self.inner.misses.of(&self.key).into_iter().next().map(|(_, why)| why)?;
            Some(Error::new(ErrorKind::StoreUnavailable, why))
        });
        Err(self.inner.too_few(&self.key, left, failed))
    }
}

#[async_trait]
impl Upload for Uploads {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let writes = self.open.iter_mut().map(|(copy, upload)| {
            let chunk = chunk.clone();
            async move { (*copy, upload.write(chunk).await) }
        });
        for (copy, written) in futures::future::join_all(writes).await {
            let Err(error) = written else { continue };
            if let Some(at) = self.open.iter().position(|(other, _)| *other == copy) {
                // What cannot be thrown away is invisible; a store that does not answer shall not be waited for.
                let (_, upload) = self.open.swap_remove(at);
                tokio::spawn(upload.abort());
            }
            self.lost(copy, error);
        }
        self.enough(0)
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        let finishes = open.into_iter().map(|(copy, upload)| async move { (copy, upload.finish().await) });
        let (mut done, mut there) = (0, None);
        for (copy, finished) in futures::future::join_all(finishes).await {
            match finished {
                Ok(()) => done += 1,
                // Its name says what its bytes are.
                Err(error) if error.kind() == ErrorKind::Conflict && is_wal(&self.key) => {
                    done += 1;
                    there = Some(error);
                }
                Err(error) => self.lost(copy, error),
            }
        }
        self.enough(done)?;
        there.map_or(Ok(()), Err)
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        let aborted = futures::future::join_all(open.into_iter().map(|(_, upload)| upload.abort())).await;
        aborted.into_iter().collect()
    }
}
