//! The compression methods: zstd, gzip, lz4 and none.

mod gzip;
mod lz4;
mod none;
mod zstandard;

use std::sync::Arc;

pub use gzip::Gzip;
pub use lz4::Lz4;
pub use none::Uncompressed;
pub use zstandard::Zstd;

use crate::compressor::Compressor;
use crate::error::{Error, ErrorKind, Result};

/// The method with this name in a record, at its default level: enough to decompress.
pub fn by_name(name: &str) -> Result<Arc<dyn Compressor>> {
    match name {
        "zstd" => Ok(Arc::new(Zstd::default())),
        "gzip" => Ok(Arc::new(Gzip::default())),
        "lz4" => Ok(Arc::new(Lz4)),
        "none" => Ok(Arc::new(Uncompressed)),
        _ => Err(Error::new(ErrorKind::Unsupported, format!("unknown compression method {name:?}"))
            .with_hint("a newer pgark, or the application that wrote the backup, can read it")),
    }
}

/// Parses `zstd:3`, `gzip:6`, `lz4` or `none`. Without a level the method's default counts.
pub fn parse(text: &str) -> Result<Arc<dyn Compressor>> {
    let wrong = |why: String| {
        Error::new(ErrorKind::Usage, why).with_hint("write zstd:1 to zstd:19, gzip:1 to gzip:9, lz4 or none")
    };
    let (name, level) = match text.split_once(':') {
        Some((name, level)) => {
            let level =
                level.parse::<i32>().map_err(|_| wrong(format!("{level:?} is not a compression level")))?;
            (name, Some(level))
        }
        None => (text, None),
    };
    match (name, level) {
        ("zstd", None) => Ok(Arc::new(Zstd::default())),
        ("zstd", Some(level)) => Ok(Arc::new(Zstd::new(level)?)),
        ("gzip", None) => Ok(Arc::new(Gzip::default())),
        ("gzip", Some(level)) => Ok(Arc::new(Gzip::new(level)?)),
        ("lz4" | "none", Some(_)) => Err(wrong(format!("{name} has no levels"))),
        ("lz4" | "none", None) => by_name(name),
        _ => Err(wrong(format!("unknown compression method {name:?}"))),
    }
}

fn level_in(method: &str, level: i32, range: std::ops::RangeInclusive<i32>) -> Result<i32> {
    if range.contains(&level) {
        return Ok(level);
    }
    let (low, high) = (range.start(), range.end());
    Err(Error::new(ErrorKind::Usage, format!("{method} has no level {level}"))
        .with_hint(format!("use a level from {low} to {high}")))
}

fn broken(method: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Integrity, format!("a {method} frame is damaged: {why}"))
        .with_hint("restore from another backup, or put back a good copy of the part's objects")
}

/// Reads one frame through a stock decoder: exactly `raw_len` bytes, and nothing after the frame.
fn read_exactly(
    method: &str,
    mut decoder: impl std::io::Read,
    raw_len: usize,
    raw: &mut Vec<u8>,
) -> Result<()> {
    raw.resize(raw_len, 0);
    decoder.read_exact(raw).map_err(|e| broken(method, e))?;
    // The decoder checks its checksum only when it is asked for more.
    match decoder.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(broken(method, "it is longer than it should be")),
        Err(e) => Err(broken(method, e)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Arc<dyn Compressor>> {
        ["zstd:1", "zstd:3", "gzip:1", "lz4", "none"].iter().map(|t| parse(t).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(raw in proptest::collection::vec(any::<u8>(), 0..20_000), repeat in 1usize..20) {
            let raw = raw.repeat(repeat);
            for codec in all() {
                let (mut frame, mut back) = (Vec::new(), Vec::new());
                codec.compress(&raw, &mut frame).unwrap();
                codec.decompress(&frame, raw.len(), &mut back).unwrap();
                prop_assert_eq!(&raw, &back);
            }
        }

        #[test]
        fn a_frame_cut_or_extended_is_refused(raw in proptest::collection::vec(any::<u8>(), 1..5_000), cut in 1usize..5_000) {
            for codec in all() {
                let mut frame = Vec::new();
                codec.compress(&raw, &mut frame).unwrap();
                let cut = cut.min(frame.len());
                prop_assert!(codec.decompress(&frame[..frame.len() - cut], raw.len(), &mut Vec::new()).is_err());
                frame.push(7);
                prop_assert!(codec.decompress(&frame, raw.len(), &mut Vec::new()).is_err(), "{}", codec.name());
                frame.pop();
                prop_assert!(codec.decompress(&frame, raw.len() + 1, &mut Vec::new()).is_err());
                prop_assert!(codec.decompress(&frame, raw.len() - 1, &mut Vec::new()).is_err());
            }
        }
    }

    #[test]
    fn wrong_methods_are_refused() {
        for text in ["zstd:99", "zstd:x", "gzip:0", "lz4:1", "brotli", ""] {
            assert_eq!(parse(text).err().map(|e| e.kind()), Some(ErrorKind::Usage), "{text}");
        }
    }
}
