//! Bytes from a dumper to a store, and back.
//!
//! ```text
//! PartWriter -> frames -> compress (CPU pool, any order) -> seal, digest (in order) -> chunks -> Upload
//! Bytestream <- digest (in order) <- decompress (CPU pool) <- frames <- open, digest <- Store::read
//! ```
//!
//! A part is cut into frames of a fixed raw size. They are compressed on all cores, and put back in order
//! before they are sealed. All queues are bounded, so that the memory of a run follows from its options:
//! see [`MemoryPlan`].

mod assemble;
mod buffers;
mod frames;
mod memory;
mod pool;
mod read;
mod sink;
mod source;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use buffers::Buffers;
pub use memory::MemoryPlan;
pub use pool::CpuPool;
pub(crate) use read::{ChannelReader, PartReader, ReadBuffers, StoredCheck, check_stored, taken};
pub(crate) use sink::{Sink, SinkParts};
pub(crate) use source::Source;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};

const MIB: usize = 1024 * 1024;

/// Sizes of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipelineOptions {
    /// Raw bytes of a frame; 4 MiB.
    pub frame_bytes: usize,
    /// Bytes of an upload's chunks; 8 MiB. Stores with multipart uploads want at least 5 MiB.
    pub chunk_bytes: usize,
    /// Stored bytes after which an object of a part ends and the next begins; 64 GiB. So chunks can stay
    /// small: S3 takes 10,000 of them.
    pub object_bytes: u64,
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self { frame_bytes: 4 * MIB, chunk_bytes: 8 * MIB, object_bytes: 64 << 30 }
    }
}

impl PipelineOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: &str| Err(Error::new(ErrorKind::Usage, why.to_owned()));
        // A frame's lengths are kept as u32, and lz4 knows no block above 4 MiB: one frame may hold several.
        if !(4096..=64 * MIB).contains(&self.frame_bytes) {
            return wrong("a frame has from 4 KiB to 64 MiB");
        }
        if !(4096..=1024 * MIB).contains(&self.chunk_bytes) {
            return wrong("a chunk has from 4 KiB to 1 GiB");
        }
        if self.object_bytes == 0 {
            return wrong("an object cannot be empty");
        }
        Ok(())
    }
}

/// Sums over a run, for its events and its summary.
#[derive(Default)]
pub(crate) struct Totals {
    raw: AtomicU64,
    stored: AtomicU64,
}

impl Totals {
    pub(crate) fn add(&self, raw: u64, stored: u64, observer: &dyn Observer) {
        let raw_bytes = self.raw.fetch_add(raw, Ordering::Relaxed) + raw;
        let stored_bytes = self.stored.fetch_add(stored, Ordering::Relaxed) + stored;
        observer.event(&Event::Progress { raw_bytes, stored_bytes });
    }

    pub(crate) fn raw(&self) -> u64 {
        self.raw.load(Ordering::Relaxed)
    }

    pub(crate) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}

/// The first failure of a run: the one that is reported, whatever else fails because of it.
#[derive(Clone, Default)]
pub(crate) struct FirstError(Arc<std::sync::Mutex<Option<Error>>>);

impl FirstError {
    /// Others are stopped by a part that fails, and may say so while it still tidies up: they are not the cause.
    pub(crate) fn set(&self, error: Error) {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cancelled = |error: &Error| error.kind() == ErrorKind::Cancelled;
        if slot.as_ref().is_none_or(|first| cancelled(first) && !cancelled(&error)) {
            *slot = Some(error);
        }
    }

    pub(crate) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_stopped_is_not_the_cause() {
        let failure = FirstError::default();
        failure.set(Error::cancelled());
        failure.set(Error::internal("the cause"));
        failure.set(Error::cancelled());
        failure.set(Error::internal("another"));
        assert!(failure.take().unwrap().to_string().contains("the cause"));
    }
}
