use std::io::Write;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::{broken, level_in, read_exactly};
use crate::compressor::Compressor;
use crate::error::{Error, Result};

/// gzip (RFC 1952): a frame is a member. Slow; for stock tools that read nothing else, such as `pg_restore` 15.
#[derive(Debug, Clone, Copy)]
pub struct Gzip(u32);

impl Gzip {
    /// A level from 1 to 9.
    pub fn new(level: i32) -> Result<Self> {
        Ok(Self(level_in("gzip", level, 1..=9)?.unsigned_abs()))
    }
}

impl Default for Gzip {
    fn default() -> Self {
        Self(6)
    }
}

impl Compressor for Gzip {
    fn name(&self) -> &'static str {
        "gzip"
    }

    fn suffix(&self) -> Option<&'static str> {
        Some("gz")
    }

    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        let mut encoder = GzEncoder::new(frame, Compression::new(self.0));
        encoder
            .write_all(raw)
            .and_then(|()| encoder.finish())
            .map_err(|e| Error::io("compressing with gzip", e))?;
        Ok(())
    }

    fn decompress(&self, frame: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<()> {
        let mut input = frame;
        read_exactly("gzip", GzDecoder::new(&mut input), raw_len, raw)?;
        if !input.is_empty() {
            return Err(broken("gzip", "something stands behind its end"));
        }
        Ok(())
    }

    fn working_bytes(&self, _: usize) -> usize {
        // deflate's window, chains and pending output: about 400 KiB with zlib-rs.
        512 * 1024
    }
}
