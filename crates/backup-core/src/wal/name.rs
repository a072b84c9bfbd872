//! Names of WAL files, as PostgreSQL gives them (`xlog_internal.h`).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;

/// A segment of one timeline: 24 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Its timeline.
    pub timeline: u32,
    /// The upper half of its positions.
    pub log: u32,
    /// Its number among those with the same upper half.
    pub segment: u32,
}

/// A file that PostgreSQL archives, or asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// `000000010000000A000000FE`
    Segment(SegmentName),
    /// `000000010000000A000000FE.partial`: the last one of a timeline that was left.
    Partial(SegmentName),
    /// `000000010000000A000000FE.00000028.backup`: where a backup began in it.
    Backup(SegmentName, u32),
    /// `00000002.history`: where a timeline began.
    History(u32),
}

impl SegmentName {
    /// The segment that holds a position.
    pub fn at(timeline: u32, lsn: Lsn, segment_bytes: u64) -> Self {
        Self::numbered(timeline, lsn.0 / segment_bytes, segment_bytes)
    }

    /// The segment with a number: how many come before it (`XLogFileName`).
    pub fn numbered(timeline: u32, number: u64, segment_bytes: u64) -> Self {
        let per_log = 0x1_0000_0000 / segment_bytes;
        let half = |n: u64| u32::try_from(n & 0xffff_ffff).unwrap_or(0);
        Self { timeline, log: half(number / per_log), segment: half(number % per_log) }
    }

    /// How many segments come before it (`XLogFromFileName`).
    pub fn number(&self, segment_bytes: u64) -> u64 {
        u64::from(self.log) * (0x1_0000_0000 / segment_bytes) + u64::from(self.segment)
    }

    /// The position of its first byte.
    pub fn start(&self, segment_bytes: u64) -> Lsn {
        Lsn(self.number(segment_bytes).wrapping_mul(segment_bytes))
    }

    /// The segment that follows on the same timeline.
    #[must_use]
    pub fn next(&self, segment_bytes: u64) -> Self {
        Self::numbered(self.timeline, self.number(segment_bytes) + 1, segment_bytes)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::Backup(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{timeline:08X}.history"),
        }
    }
}

/// Eight upper-case hexadecimal digits.
fn half(text: &str) -> Option<u32> {
    let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

fn segment(text: &str) -> Option<SegmentName> {
    let part = |range| text.get(range).and_then(half);
    let name = SegmentName { timeline: part(0..8)?, log: part(8..16)?, segment: part(16..24)? };
    (text.len() == 24 && name.timeline > 0).then_some(name)
}

fn parse(text: &str) -> Option<WalName> {
    let mut pieces = text.split('.');
    let first = pieces.next()?;
    let rest: Vec<&str> = pieces.collect();
    match rest[..] {
        [] => segment(first).map(WalName::Segment),
        ["partial"] => segment(first).map(WalName::Partial),
        ["history"] => half(first).filter(|timeline| *timeline > 0).map(WalName::History),
        [offset, "backup"] => Some(WalName::Backup(segment(first)?, half(offset)?)),
        _ => None,
    }
}

impl FromStr for WalName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} is not the name of a WAL file"))
                .with_hint("PostgreSQL gives it: %p of archive_command, %f of restore_command")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for text in [
            "000000010000000A000000FE",
            "000000010000000A000000FE.partial",
            "000000010000000A000000FE.00000028.backup",
            "00000002.history",
        ] {
            assert_eq!(text.parse::<WalName>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "000000010000000A000000F",
            "000000010000000a000000fe",
            "000000000000000A000000FE",
            "000000010000000A000000FE.",
            "000000010000000A000000FE.28.backup",
            "../000000010000000A000000FE",
            "00000002.history.x",
            "RECOVERYXLOG",
            "é00000010000000A000000F",
        ] {
            assert!(wrong.parse::<WalName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        // SELECT pg_walfile_name('16/B374D848') says so.
        let lsn = Lsn(0x16_B374_D848);
        let name = SegmentName::at(1, lsn, 16 << 20);
        assert_eq!(name.to_string(), "0000000100000016000000B3");
        assert_eq!(name.start(16 << 20), Lsn(0x16_B300_0000));
        assert_eq!(SegmentName::at(2, lsn, 64 << 20).to_string(), "00000002000000160000002C");
        let last = SegmentName::at(1, Lsn(0xFF00_0000), 16 << 20);
        assert_eq!(last.next(16 << 20).to_string(), "000000010000000100000000");
    }
}
