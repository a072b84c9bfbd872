//! The trait of a compression method. Implementations are in [`crate::codec`].

use crate::error::Result;

/// Compresses frames: pieces of a part, each on its own.
///
/// # Contract
/// - Every frame is complete in itself, and the concatenation of frames is a stream that the method's stock
///   tool decompresses to the concatenation of their contents: zstd frames (RFC 8878), gzip members
///   (RFC 1952), lz4 frames.
/// - Both functions fill their last argument, which comes empty, and are called from many threads at once.
/// - `decompress` fails on anything but one whole frame of exactly `raw_len` bytes. It must not allocate
///   more than `raw_len` for the output: the frame may be hostile.
/// - [`Compressor::name`] goes into the record and finds the method again for a restore.
pub trait Compressor: Send + Sync {
    /// Name in the record, `"zstd"`.
    fn name(&self) -> &'static str;

    /// End of the name of a part's object, without a dot, `"zst"`; none where nothing is compressed.
    fn suffix(&self) -> Option<&'static str>;

    /// Compresses `raw` into one frame: fills `frame`.
    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()>;

    /// Decompresses one whole frame: fills `raw` with its `raw_len` bytes.
    fn decompress(&self, frame: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<()>;

    /// Memory of one running call beside its buffers, in bytes.
    fn working_bytes(&self, frame_bytes: usize) -> usize;
}
