use super::broken;
use crate::compressor::Compressor;
use crate::error::Result;

/// No compression: a frame is its contents.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uncompressed;

impl Compressor for Uncompressed {
    fn name(&self) -> &'static str {
        "none"
    }

    fn suffix(&self) -> Option<&'static str> {
        None
    }

    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        frame.extend_from_slice(raw);
        Ok(())
    }

    fn decompress(&self, frame: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<()> {
        if frame.len() != raw_len {
            return Err(broken("plain", format!("{} bytes instead of {raw_len}", frame.len())));
        }
        raw.extend_from_slice(frame);
        Ok(())
    }

    fn working_bytes(&self, _: usize) -> usize {
        0
    }
}
