use std::sync::Arc;

use bytes::Bytes;
use tar::Header;
use tokio::task::JoinHandle;

use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, Result};
use crate::tar_reader::{BLOCK, padding};

/// Bytes of files that go into a shard. A larger file has one of its own.
const SHARD_BYTES: u64 = 256 * 1024 * 1024;
/// What ends an archive: two blocks of zeros.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Writes members into archives, each a part.
pub(super) struct Shards {
    sink: Arc<dyn PartSink>,
    kind: &'static str,
    name: String,
    limit: u64,
    number: u32,
    open: Option<Shard>,
    /// Whether a shard is still being stored while the next one is filled.
    behind: bool,
    ending: Option<JoinHandle<Result<u32>>>,
}

struct Shard {
    part: Box<dyn PartWriter>,
    bytes: u64,
    padding: u64,
}

impl Shards {
    pub(super) fn new(sink: Arc<dyn PartSink>, kind: &'static str, name: &str) -> Self {
        let (name, limit) = (name.to_owned(), SHARD_BYTES);
        Self { sink, kind, name, limit, number: 0, open: None, behind: false, ending: None }
    }

    /// Has one more part open: a disk takes its time to sync a shard, and a store in the cloud to put its chunks
    /// together. The source need not wait for that.
    pub(super) fn behind(mut self) -> Self {
        self.behind = true;
        self
    }

    /// Begins a member.
    pub(super) async fn member(&mut self, header: &Header) -> Result<()> {
        let size =
            header.entry_size().map_err(|e| Error::internal("a member without a size").caused_by(e))?;
        if self.open.as_ref().is_some_and(|shard| shard.bytes + size > self.limit) {
            self.end_shard().await?;
            if !self.behind {
                self.settle().await?;
            }
        }
        let shard = match &mut self.open {
            Some(shard) => {
                shard.pad().await?;
                shard
            }
            none => {
                self.number += 1;
                let spec =
                    PartSpec { kind: self.kind.to_owned(), name: format!("{}/{}", self.name, self.number) };
                none.insert(Shard { part: self.sink.open(spec).await?, bytes: 0, padding: 0 })
            }
        };
        shard.part.write(Bytes::copy_from_slice(header.as_bytes())).await?;
        shard.bytes += BLOCK as u64 + size;
        shard.padding = padding(size);
        Ok(())
    }

    /// Adds bytes to the member.
    pub(super) async fn data(&mut self, data: Bytes) -> Result<()> {
        let shard = self.open.as_mut().ok_or_else(|| Error::internal("data without a member"))?;
        shard.part.write(data).await
    }

    /// Ends the archive. All shards are stored when this returns.
    pub(super) async fn close(&mut self) -> Result<()> {
        self.end_shard().await?;
        self.settle().await
    }

    /// Ends a shard, once the one before it is stored.
    async fn end_shard(&mut self) -> Result<()> {
        let Some(mut shard) = self.open.take() else { return Ok(()) };
        shard.pad().await?;
        shard.part.write(Bytes::from_static(&END)).await?;
        self.settle().await?;
        self.ending = Some(tokio::spawn(shard.part.finish()));
        Ok(())
    }

    async fn settle(&mut self) -> Result<()> {
        let Some(ending) = self.ending.take() else { return Ok(()) };
        let ended = ending.await.map_err(|e| Error::internal("storing a shard failed").caused_by(e))?;
        ended.map(drop)
    }
}

impl Shard {
    async fn pad(&mut self) -> Result<()> {
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        if padding > 0 {
            self.part.write(Bytes::from_static(&END[..padding])).await?;
        }
        Ok(())
    }
}
