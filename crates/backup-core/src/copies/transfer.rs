//! One object from a store to another.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use crate::error::{Error, ErrorKind, Result};
use crate::repository::{Digest, ObjectRecord, RECORD_LIMIT, check_small};
use crate::store::{Created, Store, Upload, elsewhere, worse};
use crate::wal::{ShortDigest, digest_in};

/// Bytes that are written at a time: what an upload's chunks have. Shorter objects are created with one request.
pub(crate) const CHUNK: usize = 8 * 1024 * 1024;

/// What is known of an object's bytes.
#[derive(Debug, Clone)]
pub(crate) enum Check {
    /// Their length and digest.
    Whole(ObjectRecord),
    /// The beginning of their digest.
    Short(ShortDigest),
    /// They are JSON with a digest of itself, and of their name.
    Json,
    /// Nothing, as of a sealed key.
    Nothing,
}

impl Check {
    /// What the name of an object beside the backups says.
    pub(crate) fn by_name(key: &str) -> Self {
        let name = key.rsplit('/').next().unwrap_or_default();
        match digest_in(name) {
            Some(digest) => Self::Short(digest),
            None if name.rsplit_once('.').is_some_and(|(_, suffix)| suffix == "json") => Self::Json,
            None => Self::Nothing,
        }
    }

    fn fits(&self, key: &str, bytes: u64, digest: blake3::Hash, small: Option<&Bytes>) -> Result<()> {
        let damaged = || {
            Error::new(
                ErrorKind::Integrity,
                format!("{key} is damaged: its bytes are not those that were written"),
            )
        };
        let good = match self {
            Self::Whole(object) => bytes == object.bytes && Digest::from(digest) == object.blake3,
            Self::Short(short) => ShortDigest::from(digest) == *short,
            Self::Json => match small {
                Some(body) => return check_small(key, body),
                None => false,
            },
            Self::Nothing => true,
        };
        if good { Ok(()) } else { Err(damaged()) }
    }
}

/// Copies an object from the first of `from` that has it undamaged. How many bytes were written: none where it was there.
pub(crate) async fn transfer(
    from: &[Arc<dyn Store>],
    to: &dyn Store,
    key: &str,
    check: &Check,
) -> Result<u64> {
    let mut failed = None;
    for source in from {
        match transfer_from(&**source, to, key, check).await {
            Ok(bytes) => return Ok(bytes),
            Err(Failed::Writing(error)) => return Err(error.doing(format!("copying {key}"))),
            Err(Failed::Reading(error)) if elsewhere(&error) => failed = Some(worse(failed, error)),
            Err(Failed::Reading(error)) => return Err(error),
        }
    }
    let error = failed.unwrap_or_else(|| Error::new(ErrorKind::ObjectMissing, format!("no copy has {key}")));
    Err(error.doing(format!("copying {key}")))
}

enum Failed {
    Reading(Error),
    Writing(Error),
}

async fn transfer_from(from: &dyn Store, to: &dyn Store, key: &str, check: &Check) -> Result<u64, Failed> {
    let mut stream = from.read(key, None).await.map_err(Failed::Reading)?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let mut writing = Writing { to, key, filling: Vec::new(), upload: None };
    let limit = if matches!(check, Check::Json) { RECORD_LIMIT } else { CHUNK };
    let read = async {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(Failed::Reading)?;
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
            writing.add(&chunk, limit).await.map_err(Failed::Writing)?;
        }
        let small = writing.upload.is_none().then(|| Bytes::from(std::mem::take(&mut writing.filling)));
        check.fits(key, bytes, hasher.finalize(), small.as_ref()).map_err(Failed::Reading)?;
        Ok(small)
    };
    match read.await {
        Ok(Some(small)) => create(to, key, small).await.map_err(Failed::Writing),
        Ok(None) => writing.finish().await.map_err(Failed::Writing).map(|()| bytes),
        Err(failed) => {
            writing.abort().await;
            Err(failed)
        }
    }
}

/// Creates a small object. How many bytes were written.
pub(crate) async fn create(to: &dyn Store, key: &str, body: Bytes) -> Result<u64> {
    let bytes = body.len() as u64;
    match to.create(key, body).await? {
        Created::New => Ok(bytes),
        Created::Same => Ok(0),
        Created::Other => Err(Error::new(ErrorKind::Conflict, format!("{key} is there with other bytes"))
            .with_hint("pgark verify tells which copy is damaged, and verify --repair puts it right")),
    }
}

/// Collects bytes to chunks of one length.
struct Writing<'a> {
    to: &'a dyn Store,
    key: &'a str,
    filling: Vec<u8>,
    upload: Option<Box<dyn Upload>>,
}

impl Writing<'_> {
    async fn add(&mut self, mut bytes: &[u8], limit: usize) -> Result<()> {
        while !bytes.is_empty() {
            // An upload begins when there is more than fits into one request.
            if self.filling.len() == limit.max(CHUNK)
                || (self.upload.is_some() && self.filling.len() == CHUNK)
            {
                self.send().await?;
            }
            let room = if self.upload.is_some() { CHUNK } else { limit.max(CHUNK) } - self.filling.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.filling.extend_from_slice(now);
            bytes = rest;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<()> {
        if self.upload.is_none() {
            self.upload = Some(self.to.upload(self.key).await?);
        }
        let filled = Bytes::from(std::mem::take(&mut self.filling));
        let Some(upload) = &mut self.upload else { return Ok(()) };
        for at in (0..filled.len()).step_by(CHUNK) {
            upload.write(filled.slice(at..filled.len().min(at + CHUNK))).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        if !self.filling.is_empty() {
            self.send().await?;
        }
        match self.upload.take() {
            Some(upload) => upload.finish().await,
            None => Ok(()),
        }
    }

    async fn abort(&mut self) {
        if let Some(upload) = self.upload.take()
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%error, "an upload could not be aborted");
        }
    }
}

/// Reads an object through and compares it with what is known of it.
pub(crate) async fn compare(store: &dyn Store, key: &str, check: &Check) -> Result<()> {
    let mut stream = store.read(key, None).await?;
    let (mut hasher, mut bytes, mut small) = (blake3::Hasher::new(), 0, Vec::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
        if matches!(check, Check::Json) && small.len() < RECORD_LIMIT {
            small.extend_from_slice(&chunk);
        }
    }
    check.fits(key, bytes, hasher.finalize(), Some(&small.into()))
}
