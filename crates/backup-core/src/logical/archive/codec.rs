//! How the data of an archive are compressed (`compress_gzip.c`, `compress_lz4.c`, `compress_zstd.c`, PostgreSQL 18;
//! `compress_io.c`, PostgreSQL 15). A stream that is cut is an error here, also where the decoder would not notice.

use std::io::{self, BufRead, Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};
use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::Header;
use crate::error::{Error, ErrorKind, Result};

/// How the data of an archive are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    None,
    /// deflate: with the head of gzip in files, with that of zlib within a custom archive.
    Gzip,
    /// lz4 frames; PostgreSQL 16 and later.
    Lz4,
    /// zstd; PostgreSQL 16 and later.
    Zstd,
}

impl std::str::FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [("none", Self::None), ("gzip", Self::Gzip), ("lz4", Self::Lz4), ("zstd", Self::Zstd)];
        all.into_iter().find(|(name, _)| *name == text).map(|(_, method)| method).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("unknown compression method {text:?}"))
                .with_hint("an export knows none, gzip, lz4 and zstd")
        })
    }
}

impl Method {
    /// Every method that a file's name can tell.
    pub(crate) const ALL: [Self; 4] = [Self::None, Self::Gzip, Self::Lz4, Self::Zstd];

    /// That of the data in a custom archive.
    pub(crate) fn of(header: &Header) -> Result<Self> {
        match (header.minor(), header.compression) {
            (_, 0) => Ok(Self::None),
            // Before 1.15 it is a level.
            (..=14, _) | (_, 1) => Ok(Self::Gzip),
            (_, 2) => Ok(Self::Lz4),
            (_, 3) => Ok(Self::Zstd),
            (_, other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the archive is compressed with method {other}, which is not known"),
            )),
        }
    }

    /// As it stands in a header.
    pub(crate) fn in_header(self, minor: u8) -> i32 {
        match self {
            Self::None => 0,
            // The level: zlib's own choice.
            Self::Gzip if minor < 15 => -1,
            Self::Gzip => 1,
            Self::Lz4 => 2,
            Self::Zstd => 3,
        }
    }

    /// Whether the stock tools of an archive's version can read it.
    pub(crate) fn check(self, minor: u8) -> Result<()> {
        if minor >= 15 || matches!(self, Self::None | Self::Gzip) {
            return Ok(());
        }
        let message = "pg_restore 15 and earlier reads gzip only";
        Err(Error::new(ErrorKind::Unsupported, message).with_hint("use --compress gzip or none"))
    }

    /// What a file's name ends with.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zstd => ".zst",
        }
    }
}

/// Where a compressed stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Within {
    /// In a file of its own.
    File,
    /// In the blocks of a custom archive.
    Blocks,
}

/// Reads what is compressed. At its end it has looked whether the stream is whole and nothing stands behind it.
pub(crate) fn decoder<'a>(
    method: Method,
    within: Within,
    mut from: impl BufRead + 'a,
) -> io::Result<Box<dyn Read + 'a>> {
    // pg_dump makes an empty file of nothing with lz4 and zstd (`LZ4Stream_close`, `Zstd_close`), and never with gzip or
    // in blocks.
    let may_be_empty =
        method == Method::None || (within == Within::File && matches!(method, Method::Lz4 | Method::Zstd));
    if from.fill_buf()?.is_empty() {
        return if may_be_empty { Ok(Box::new(io::empty())) } else { Err(cut()) };
    }
    Ok(match (method, within) {
        (Method::None, _) => Box::new(from),
        (Method::Gzip, Within::File) => Box::new(MultiGzDecoder::new(from)),
        (Method::Gzip, Within::Blocks) => {
            Box::new(Inflate { from, stream: Decompress::new(true), ended: false })
        }
        (Method::Lz4, _) => Box::new(Lz4 { frame: FrameDecoder::new(Tail::new(from)) }),
        (Method::Zstd, _) => Box::new(zstd::Decoder::with_buffer(from)?),
    })
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the compressed data are cut")
}

/// A zlib stream. That of `flate2` ends quietly where its input ends.
struct Inflate<R> {
    from: R,
    stream: Decompress,
    ended: bool,
}

impl<R: BufRead> Read for Inflate<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while !self.ended {
            let input = self.from.fill_buf()?;
            let at_end = input.is_empty();
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.decompress(input, out, FlushDecompress::None);
            let status = status.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            let used = usize::try_from(self.stream.total_in() - before_in).unwrap_or(usize::MAX);
            let made = usize::try_from(self.stream.total_out() - before_out).unwrap_or(usize::MAX);
            self.from.consume(used);
            if status == Status::StreamEnd {
                self.ended = true;
                if !self.from.fill_buf()?.is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "something stands behind the end",
                    ));
                }
            } else if at_end && made == 0 {
                return Err(cut());
            }
            if made > 0 {
                return Ok(made);
            }
        }
        Ok(0)
    }
}

/// lz4 frames. `lz4_flex` accepts one without its end mark.
struct Lz4<R: Read> {
    frame: FrameDecoder<Tail<R>>,
}

/// Remembers the descriptor of a frame and its last bytes.
struct Tail<R> {
    from: R,
    head: Vec<u8>,
    last: Vec<u8>,
}

impl<R> Tail<R> {
    fn new(from: R) -> Self {
        Self { from, head: Vec::new(), last: Vec::new() }
    }

    /// Whether the frame has its end mark ("LZ4 Frame Format Description").
    fn has_end(&self) -> bool {
        let checksum = if self.head.get(4).is_some_and(|flags| flags & 4 != 0) { 4 } else { 0 };
        let end = self.last.len().checked_sub(checksum).map(|end| &self.last[..end]);
        end.is_some_and(|last| last.ends_with(&[0; 4]))
    }
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(out)?;
        let bytes = &out[..read];
        self.head.extend(bytes.iter().take(5_usize.saturating_sub(self.head.len())));
        self.last.extend(&bytes[bytes.len().saturating_sub(8)..]);
        let excess = self.last.len().saturating_sub(8);
        self.last.drain(..excess);
        Ok(read)
    }
}

impl<R: Read> Read for Lz4<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.frame.read(out)?;
        if read == 0 && !out.is_empty() {
            let tail = self.frame.get_mut();
            // What the decoder left behind the end of the frame.
            if io::copy(&mut tail.from, &mut io::sink())? > 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "something stands behind the end"));
            }
            if !tail.has_end() {
                return Err(cut());
            }
        }
        Ok(read)
    }
}

/// Compresses a stream. It is whole only after [`Encoder::finish`].
pub(crate) enum Encoder<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zlib(ZlibEncoder<W>),
    Lz4(Box<FrameEncoder<W>>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// `threads` beside the caller's own, for a method that can use them.
    pub(crate) fn new(method: Method, within: Within, threads: u32, to: W) -> io::Result<Self> {
        Ok(match (method, within) {
            (Method::None, _) => Self::None(to),
            (Method::Gzip, Within::File) => Self::Gzip(GzEncoder::new(to, Compression::default())),
            (Method::Gzip, Within::Blocks) => Self::Zlib(ZlibEncoder::new(to, Compression::default())),
            (Method::Lz4, _) => {
                let info = FrameInfo::new().block_size(BlockSize::Max256KB).content_checksum(true);
                Self::Lz4(Box::new(FrameEncoder::with_frame_info(info, to)))
            }
            (Method::Zstd, _) => {
                let mut encoder = zstd::Encoder::new(to, 3)?;
                encoder.include_checksum(true)?;
                if threads > 1 {
                    encoder.multithread(threads)?;
                }
                Self::Zstd(encoder)
            }
        })
    }

    /// Ends the stream.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(to) => Ok(to),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zlib(encoder) => encoder.finish(),
            Self::Lz4(mut encoder) => {
                // A frame begins with the first bytes; of none there would be no frame.
                encoder.write_all(&[])?;
                encoder.finish().map_err(io::Error::other)
            }
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(to) => to.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zlib(encoder) => encoder.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn compressed(method: Method, within: Within, raw: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(method, within, 1, Vec::new()).unwrap();
        encoder.write_all(raw).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(method: Method, within: Within, stored: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(method, within, BufReader::with_capacity(step, stored))?.read_to_end(&mut out)?;
        Ok(out)
    }

    proptest::proptest! {
        #[test]
        fn what_goes_in_comes_out_and_a_cut_is_seen(text: Vec<u8>, times in 1_usize..300, step in 1_usize..9000, cut in 1_usize..5000) {
            let text = text.repeat(times);
            for method in Method::ALL {
                for within in [Within::File, Within::Blocks] {
                    let mut stored = compressed(method, within, &text);
                    proptest::prop_assert_eq!(&raw(method, within, &stored, step).unwrap(), &text);
                    if method == Method::None {
                        continue;
                    }
                    // A file that was cut to nothing is taken for one of nothing.
                    let cut = cut.min(stored.len() - 1);
                    proptest::prop_assert!(raw(method, within, &stored[..stored.len() - cut], step).is_err(), "{:?} cut", method);
                    stored.extend(b"junk");
                    proptest::prop_assert!(raw(method, within, &stored, step).is_err(), "{:?} junk", method);
                }
            }
        }
    }
}
