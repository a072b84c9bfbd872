//! Whether a piece of WAL is of the place that it is stored for. An object that was put below the name of another
//! segment is not damaged itself: only its pages say where they belong.

use super::name::SegmentName;
use super::object::Piece;
use super::page::{LONG_HEADER, SegmentHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;

/// A page begins here, whatever the size of pages (1 to 64 KiB, `XLOG_BLCKSZ`).
const PAGE_BOUNDARY: u64 = 64 << 10;
/// Of a page's header: up to the position that it says it stands at (`xlp_pageaddr` in `xlog_internal.h`).
const PAGE_HEAD: usize = 16;

/// Looks at the first header of a page in a piece, as its bytes pass by.
#[derive(Debug)]
pub(super) struct Place {
    segment: SegmentName,
    system: u64,
    /// Position that the page must say.
    page: Lsn,
    /// Where its header is in the piece.
    at: u64,
    /// How much of it is wanted.
    wanted: usize,
    head: Vec<u8>,
    /// Bytes that have passed.
    passed: u64,
}

impl Place {
    /// Of a piece that is stored for a segment of a cluster.
    pub(super) fn new(piece: &Piece, segment: SegmentName, system: u64) -> Self {
        let (wanted, at) = match piece.offset {
            0 => (LONG_HEADER, 0),
            offset => (PAGE_HEAD, offset.wrapping_neg() % PAGE_BOUNDARY),
        };
        let start = segment.start(piece.segment_bytes.max(PAGE_BOUNDARY));
        let page = Lsn(start.0.wrapping_add(piece.offset).wrapping_add(at));
        Self { segment, system, page, at, wanted, head: Vec::new(), passed: 0 }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let missing = self.wanted - self.head.len();
        if missing > 0 && self.passed + bytes.len() as u64 > self.at {
            let from = usize::try_from(self.at.saturating_sub(self.passed)).unwrap_or(usize::MAX);
            let rest = bytes.get(from..).unwrap_or_default();
            self.head.extend_from_slice(&rest[..missing.min(rest.len())]);
        }
        self.passed += bytes.len() as u64;
    }

    /// Whether it is of its place, as far as it says. A piece in the middle need not have a header, and where a segment
    /// was ended early there are zeros.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it is not.
    pub(super) fn check(&self) -> Result<()> {
        let right = if self.wanted == LONG_HEADER {
            SegmentHeader::read(&self.head)
                .is_ok_and(|h| h.is_of(self.segment) && h.system_identifier == self.system)
        } else {
            self.head.len() < self.wanted
                || self.head[..2] == [0; 2]
                || self.head[8..] == self.page.0.to_le_bytes()
        };
        if right {
            return Ok(());
        }
        let message = format!("it holds WAL of another place or cluster than {}", self.segment);
        Err(Error::new(ErrorKind::Integrity, message)
            .with_hint("it does not belong there: put the segment's own object back from another copy"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Digest;
    use crate::wal::ShortDigest;

    const SIZE: u64 = 1 << 20;

    /// A segment with a header on each page of 8 KiB.
    fn segment(number: u64, system: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for (n, page) in (0_u64..).zip(bytes.chunks_mut(8192)) {
            page[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
            page[4..8].copy_from_slice(&1_u32.to_le_bytes());
            page[8..16].copy_from_slice(&(number * SIZE + n * 8192).to_le_bytes());
        }
        bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
        bytes[24..32].copy_from_slice(&system.to_le_bytes());
        bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    /// Whether bytes that were cut out of a segment at `offset` are taken for those of segment 5, in steps of any size.
    fn fits(bytes: &[u8], offset: u64, step: usize) -> bool {
        let digest = ShortDigest::from(Digest::of(bytes));
        let piece = Piece {
            offset,
            length: bytes.len() as u64,
            segment_bytes: SIZE,
            stored_bytes: None,
            raw: digest.clone(),
            stored: digest,
            first: None,
            last: None,
            key: None,
        };
        let mut place = Place::new(&piece, SegmentName::numbered(1, 5, SIZE), 7);
        bytes.chunks(step).for_each(|bytes| place.update(bytes));
        place.check().is_ok()
    }

    #[test]
    fn pieces_are_of_their_place() {
        let (own, other, foreign) = (segment(5, 7), segment(6, 7), segment(5, 8));
        let zeros = vec![0; 200_000];
        for step in [1, 7, 8192, 1 << 20] {
            for (offset, end) in [(0, 1 << 20), (0, 100), (40, 200_000), (65_536, 65_552), (100_000, 1 << 20)]
            {
                let cut = |bytes: &[u8]| fits(&bytes[offset..end], offset as u64, step);
                assert!(cut(&own) && !cut(&other), "{offset} to {end} by {step}");
                assert_eq!(cut(&foreign), offset > 0, "only the first page names the cluster");
            }
            // Nothing says where these are from.
            assert!(fits(&other[65_537..131_072], 65_537, step) && fits(&zeros, 100_000, step));
            assert!(!fits(&zeros, 0, step) && !fits(&own[..20], 0, step));
        }
    }
}
