use std::io::{Cursor, Write};

use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::{broken, read_exactly};
use crate::compressor::Compressor;
use crate::error::{Error, ErrorKind, Result};

/// The end mark of an lz4 frame: a block of length zero ("LZ4 Frame Format Description", `EndMark`).
const END_MARK: [u8; 4] = [0; 4];
/// Length of the checksum over the contents, which follows the end mark.
const CHECKSUM: usize = 4;

/// lz4 frames: fast, compresses less.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lz4;

impl Compressor for Lz4 {
    fn name(&self) -> &'static str {
        "lz4"
    }

    fn suffix(&self) -> Option<&'static str> {
        Some("lz4")
    }

    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        let info = FrameInfo::new()
            .block_size(BlockSize::Max4MB)
            .block_mode(BlockMode::Independent)
            .content_checksum(true)
            .content_size(Some(raw.len() as u64));
        let failed = |e| Error::new(ErrorKind::Internal, "compressing with lz4 failed").caused_by(e);
        let mut encoder = FrameEncoder::with_frame_info(info, frame);
        encoder.write_all(raw).map_err(|e| failed(e.into()))?;
        encoder.finish().map_err(failed)?;
        Ok(())
    }

    fn decompress(&self, frame: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<()> {
        // lz4_flex accepts a frame without its end mark, so that is looked for first.
        let tail =
            frame.len().checked_sub(END_MARK.len() + CHECKSUM).map(|at| &frame[at..at + END_MARK.len()]);
        if tail != Some(&END_MARK[..]) {
            return Err(broken("lz4", "it has no end"));
        }
        let mut input = Cursor::new(frame);
        read_exactly("lz4", FrameDecoder::new(&mut input), raw_len, raw)?;
        if input.position() != frame.len() as u64 {
            return Err(broken("lz4", "something stands behind its end"));
        }
        Ok(())
    }

    fn working_bytes(&self, _: usize) -> usize {
        // The encoder's own copies of a block, raw and compressed, at the largest block size of 4 MiB.
        9 * 1024 * 1024
    }
}
