//! Reading pieces back, every byte checked.

use std::io::Read;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::mpsc;

use super::archive::Archive;
use super::object::{Piece, ShortDigest};
use super::seal;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::ChannelReader;
use crate::store::{Bytestream, Store, elsewhere, worse};

/// How much is decompressed at once.
const READ: usize = 256 * 1024;
/// Stored bytes that are kept while they are compared: a usual segment is shorter.
const KEEP: usize = 16 * 1024 * 1024;

fn damaged(key: &str, why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("{key} is damaged: {why}"))
        .with_hint("put back a good copy of this object, or remove it where the server still has the file")
}

impl Archive {
    /// Reads a piece into `sink`, which runs on a thread that may block. Its bytes are checked only when this
    /// has returned `Ok`.
    pub(super) async fn read_piece<S>(&self, piece: &Piece, key: &str, sink: S) -> Result<S::Out>
    where
        S: Sink + Send + 'static,
        S::Out: Send + 'static,
    {
        let cipher = self.cipher(piece).await?;
        let mut stored = self.open_good(piece, key).await?;
        let (chunks, from_store) = mpsc::channel(2);
        let (raw, length) = (piece.raw.clone(), piece.length);
        let location = key.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            let mut reader = seal::open(Box::new(ChannelReader::new(from_store)), cipher.as_deref())?;
            copy(&mut reader, sink, &raw, length, &location)
        });
        let mut hasher = blake3::Hasher::new();
        let fetched: Result<()> = async {
            while let Some(chunk) = stored.next().await {
                let chunk = chunk?;
                hasher.update(&chunk);
                // Where nobody reads any more, the reader says why.
                let _ = chunks.send(chunk).await;
            }
            Ok(())
        }
        .await;
        drop(chunks);
        let opened =
            opening.await.unwrap_or_else(|e| Err(Error::internal("reading WAL failed").caused_by(e)));
        // A store that failed is the cause of a stream that ended early.
        fetched?;
        if ShortDigest::from(hasher.finalize()) != piece.stored {
            return Err(damaged(key, "its bytes are not those that were written"));
        }
        opened
    }

    /// The stored bytes of a piece, from the first copy that has them as they were written. Where there is only one they
    /// are compared when they were read.
    async fn open_good(&self, piece: &Piece, key: &str) -> Result<Bytestream> {
        let sources = self.sources();
        if let [only] = &sources[..] {
            return only.read(key, None).await;
        }
        let mut failed = None;
        for source in sources {
            match good(&source, piece, key).await {
                Ok(stream) => return Ok(stream),
                Err(error) if elsewhere(&error) => failed = Some(worse(failed, error)),
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or_else(|| Error::internal("a store without copies")))
    }

    /// Reads a small piece whole.
    pub(super) async fn read_small(&self, piece: &Piece, key: &str) -> Result<Vec<u8>> {
        if piece.length > 1 << 20 {
            return Err(damaged(key, "it is too long"));
        }
        self.read_piece(piece, key, Vec::new()).await
    }
}

/// Reads a piece through. What fits is kept meanwhile; a longer one is read once more.
async fn good(source: &Arc<dyn Store>, piece: &Piece, key: &str) -> Result<Bytestream> {
    let mut stored = source.read(key, None).await?;
    let (mut hasher, mut kept, mut bytes) = (blake3::Hasher::new(), Vec::new(), 0);
    while let Some(chunk) = stored.next().await {
        let chunk = chunk?;
        hasher.update(&chunk);
        bytes += chunk.len();
        if bytes <= KEEP {
            kept.push(Ok(chunk));
        } else {
            kept = Vec::new();
        }
    }
    if ShortDigest::from(hasher.finalize()) != piece.stored {
        return Err(damaged(key, "its bytes are not those that were written"));
    }
    if bytes <= KEEP { Ok(futures::stream::iter(kept).boxed()) } else { source.read(key, None).await }
}

/// Takes raw bytes in their order.
pub(super) trait Sink {
    /// What remains at the end.
    type Out;

    /// Takes bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<()>;

    /// All bytes were taken, and are right.
    fn end(self) -> Result<Self::Out>;
}

impl Sink for Vec<u8> {
    type Out = Self;

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn end(self) -> Result<Self> {
        Ok(self)
    }
}

fn copy<S: Sink>(
    reader: &mut dyn Read,
    mut sink: S,
    raw: &ShortDigest,
    length: u64,
    key: &str,
) -> Result<S::Out> {
    let (mut hasher, mut done) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; READ];
    loop {
        let n = reader.read(&mut buffer).map_err(|e| damaged(key, "it cannot be opened").caused_by(e))?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if done > length {
            break;
        }
        hasher.update(&buffer[..n]);
        sink.take(&buffer[..n])?;
    }
    if done != length || ShortDigest::from(hasher.finalize()) != *raw {
        return Err(damaged(key, "its contents are not those that were written"));
    }
    sink.end().map_err(|e| e.doing(format!("reading {key}")))
}
