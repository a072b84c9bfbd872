//! An object sealed anew on its way to another repository.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::transfer::CHUNK;
use crate::encryptor::Cipher;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{ChannelReader, StoredCheck};
use crate::repository::{Digest, ObjectRecord};
use crate::store::Store;

/// How much is opened and sealed at a time.
const READ: usize = 256 * 1024;

/// Opens an object with one key and seals it with another. What is within stays as it is, frames included, so that raw
/// digests and frame tables stay true. The new object, named `name` in its folder.
pub(super) async fn reseal(
    from: (&dyn Store, &str, &ObjectRecord, Option<Arc<dyn Cipher>>),
    to: (&dyn Store, &str, &str, Arc<dyn Cipher>),
) -> Result<ObjectRecord> {
    let (source, folder, object, old) = from;
    let (target, new_folder, name, new) = to;
    let mut stored = source.read(&format!("{folder}/{}", object.key), None).await?;
    let mut upload = target.upload(&format!("{new_folder}/{name}")).await?;
    let (feed, from_store) = mpsc::channel::<Bytes>(2);
    let (out, mut sealed) = mpsc::channel::<Bytes>(1);
    let opening = tokio::task::spawn_blocking(move || open_and_seal(from_store, old.as_deref(), &*new, out));
    let mut check = StoredCheck::new(object.clone());
    let fetching = async move {
        while let Some(chunk) = stored.next().await {
            let chunk = chunk?;
            check.update(&chunk);
            // Where nobody reads any more, the reader says why; the rest is compared all the same.
            let _ = feed.send(chunk).await;
        }
        check.finish()
    };
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let writing = async {
        while let Some(chunk) = sealed.recv().await {
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
            if let Err(error) = upload.write(chunk).await {
                // The other end must not wait for room that nobody makes.
                sealed.close();
                return Err(error);
            }
        }
        Ok(())
    };
    let (fetched, written) = tokio::join!(fetching, writing);
    let opened = opening.await.unwrap_or_else(|e| Err(Error::internal("sealing anew failed").caused_by(e)));
    // A store that failed is the cause of a stream that ended early.
    if let Err(error) = written.and(fetched).and(opened) {
        // What remains is invisible, and the bucket's lifecycle rule removes it.
        let _ = upload.abort().await;
        return Err(error.doing(format!("sealing {folder}/{} anew", object.key)));
    }
    upload.finish().await?;
    Ok(ObjectRecord { key: name.to_owned(), bytes, blake3: Digest::from(hasher.finalize()) })
}

/// On a thread that may block: age reads and writes synchronously.
fn open_and_seal(
    from_store: mpsc::Receiver<Bytes>,
    old: Option<&dyn Cipher>,
    new: &dyn Cipher,
    out: mpsc::Sender<Bytes>,
) -> Result<()> {
    let stored: Box<dyn Read + Send> = Box::new(ChannelReader::new(from_store));
    let mut clear = match old {
        Some(old) => old.open(stored)?,
        None => stored,
    };
    let mut seal = new.seal(Box::new(Chunks { filling: Vec::new(), out }))?;
    let mut buffer = vec![0; READ];
    loop {
        let n = clear
            .read(&mut buffer)
            .map_err(|e| Error::new(ErrorKind::Integrity, "it is damaged").caused_by(e))?;
        if n == 0 {
            break;
        }
        seal.write_all(&buffer[..n]).map_err(|e| Error::io("sealing it", e))?;
    }
    seal.finish().map_err(|e| Error::io("sealing its end", e))
}

/// Cuts what is written into chunks of one length; the last one is sent when it is dropped.
struct Chunks {
    filling: Vec<u8>,
    out: mpsc::Sender<Bytes>,
}

impl Chunks {
    fn send(&mut self) -> std::io::Result<()> {
        let chunk = Bytes::from(std::mem::take(&mut self.filling));
        self.out.blocking_send(chunk).map_err(|_| std::io::Error::other("nobody takes it any more"))
    }
}

impl Write for Chunks {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let taken = (CHUNK - self.filling.len()).min(buf.len());
        self.filling.extend_from_slice(&buf[..taken]);
        if self.filling.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if !self.filling.is_empty() {
            // Where nobody takes it, the upload has failed already.
            let _ = self.send();
        }
    }
}
