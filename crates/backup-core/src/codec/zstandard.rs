use std::fmt;
use std::sync::Mutex;

use zstd::bulk::{Compressor as Context, Decompressor};
use zstd::zstd_safe;

use super::{broken, level_in};
use crate::compressor::Compressor;
use crate::error::{Error, ErrorKind, Result};

/// zstd (RFC 8878), the default: a frame is a zstd frame with its content size and checksum.
pub struct Zstd {
    level: i32,
    // Contexts are megabytes of tables: each is made once and used for many frames.
    compressors: Mutex<Vec<Context<'static>>>,
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

impl Zstd {
    /// A level from 1 to 19. Those above take memory that this crate does not want to take by surprise.
    pub fn new(level: i32) -> Result<Self> {
        Ok(Self::at(level_in("zstd", level, 1..=19)?))
    }

    fn at(level: i32) -> Self {
        Self { level, compressors: Mutex::default(), decompressors: Mutex::default() }
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self::at(3)
    }
}

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd").field("level", &self.level).finish_non_exhaustive()
    }
}

fn take<T>(from: &Mutex<Vec<T>>) -> Option<T> {
    from.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop()
}

fn put<T>(to: &Mutex<Vec<T>>, context: T) {
    to.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(context);
}

impl Compressor for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn suffix(&self) -> Option<&'static str> {
        Some("zst")
    }

    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        let failed = |e| Error::new(ErrorKind::Internal, "compressing with zstd failed").caused_by(e);
        let mut context = match take(&self.compressors) {
            Some(context) => context,
            None => Context::new(self.level).map_err(failed)?,
        };
        context.include_checksum(true).map_err(failed)?;
        frame.reserve(zstd_safe::compress_bound(raw.len()));
        context.compress_to_buffer(raw, frame).map_err(failed)?;
        put(&self.compressors, context);
        Ok(())
    }

    fn decompress(&self, frame: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<()> {
        let whole =
            zstd_safe::find_frame_compressed_size(frame).map_err(|_| broken("zstd", "it is cut off"))?;
        if whole != frame.len() {
            return Err(broken("zstd", "something stands behind its end"));
        }
        let mut context = match take(&self.decompressors) {
            Some(context) => context,
            None => Decompressor::new().map_err(|e| broken("zstd", e))?,
        };
        raw.reserve_exact(raw_len);
        let written = context.decompress_to_buffer(frame, raw).map_err(|e| broken("zstd", e))?;
        if written != raw_len {
            return Err(broken("zstd", format!("{written} bytes instead of {raw_len}")));
        }
        put(&self.decompressors, context);
        Ok(())
    }

    fn working_bytes(&self, frame_bytes: usize) -> usize {
        // The window, and tables of hashes and chains that grow with the level (measured for 4 MiB frames:
        // 3.3 MiB at level 3, 11 MiB at 9, 28 MiB at 19).
        let tables = match self.level {
            ..=3 => 4,
            4..=9 => 12,
            _ => 32,
        };
        tables * 1024 * 1024 + frame_bytes.min(1024 * 1024)
    }
}
