//! WAL on its way from the server to pieces of segments.

use bytes::Bytes;

use super::super::name::SegmentName;
use super::super::page::{LONG_HEADER, SegmentHeader, TimeScan, Times};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;

/// The largest piece. What is received while one is stored waits in a second one.
const PIECE: usize = 2 * 1024 * 1024;

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) timeline: u32,
    /// The beginning of a segment.
    pub(super) at: Lsn,
    /// Everything before this position is stored.
    pub(super) stored: Lsn,
}

/// A piece to be stored.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) segment: SegmentName,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) times: Times,
}

impl Chunk {
    /// The position behind it.
    pub(super) fn end(&self, segment_bytes: u64) -> Lsn {
        Lsn(self.segment.start(segment_bytes).0 + self.offset + self.bytes.len() as u64)
    }
}

/// What was received and is not stored yet.
pub(super) struct Incoming {
    timeline: u32,
    segment_bytes: u64,
    system: u64,
    /// Position of the next byte.
    at: u64,
    /// Bytes before it are only looked at.
    stored: u64,
    /// Bytes from here on, up to `at`.
    buffer: Vec<u8>,
    /// The segment's first bytes, until its header is whole.
    head: Vec<u8>,
    scan: Option<TimeScan>,
}

impl Incoming {
    pub(super) fn new(begin: Begin, segment_bytes: u64, system: u64) -> Self {
        Self {
            timeline: begin.timeline,
            segment_bytes,
            system,
            at: begin.at.0,
            stored: begin.stored.0,
            buffer: Vec::new(),
            head: Vec::new(),
            scan: None,
        }
    }

    /// The position of the next byte.
    pub(super) fn at(&self) -> Lsn {
        Lsn(self.at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether no more fits into the piece.
    pub(super) fn is_full(&self) -> bool {
        !self.buffer.is_empty() && (self.buffer.len() >= PIECE || self.at.is_multiple_of(self.segment_bytes))
    }

    /// Takes as much as fits into the piece; the rest stays.
    pub(super) fn take(&mut self, bytes: &mut Bytes) -> Result<()> {
        while !bytes.is_empty() && !self.is_full() {
            let within = self.at % self.segment_bytes;
            if within == 0 {
                (self.head, self.scan) = (Vec::with_capacity(LONG_HEADER), None);
            }
            let room = usize::try_from(self.segment_bytes - within).unwrap_or(usize::MAX);
            let mut room = room.min(PIECE - self.buffer.len());
            if self.at < self.stored {
                room = room.min(usize::try_from(self.stored - self.at).unwrap_or(usize::MAX));
            }
            let taken = bytes.split_to(room.min(bytes.len()));
            self.look(&taken)?;
            if self.at >= self.stored {
                // At once: grown step by step it leaves holes behind that nothing else fits into.
                self.buffer.reserve_exact(PIECE - self.buffer.len());
                self.buffer.extend_from_slice(&taken);
            }
            self.at += taken.len() as u64;
            if self.at == self.stored
                && let Some(scan) = &mut self.scan
            {
                // What was stored before has its times.
                scan.take();
            }
        }
        Ok(())
    }

    /// Reads the header of the segment, and then the times.
    fn look(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        if self.scan.is_none() {
            let missing = LONG_HEADER - self.head.len();
            let (head, behind) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend_from_slice(head);
            rest = behind;
            if self.head.len() < LONG_HEADER {
                return Ok(());
            }
            let header = SegmentHeader::read(&self.head)?;
            let name = SegmentName::at(self.timeline, self.at(), self.segment_bytes);
            if !header.is_of(name) || header.system_identifier != self.system {
                return Err(Error::new(
                    ErrorKind::Integrity,
                    format!("what the server sent as {name} is other WAL"),
                )
                .with_hint("see the server's log"));
            }
            let mut scan = TimeScan::new(header);
            scan.update(&self.head);
            self.scan = Some(scan);
        }
        if let Some(scan) = &mut self.scan {
            scan.update(rest);
        }
        Ok(())
    }

    /// Takes the piece out; nothing where there is none.
    pub(super) fn cut(&mut self) -> Option<Chunk> {
        if self.buffer.is_empty() {
            return None;
        }
        let start = self.at - self.buffer.len() as u64;
        Some(Chunk {
            segment: SegmentName::at(self.timeline, Lsn(start), self.segment_bytes),
            offset: start % self.segment_bytes,
            bytes: std::mem::take(&mut self.buffer),
            times: self.scan.as_mut().map(TimeScan::take).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    /// A segment that only has its header.
    fn segment(number: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        bytes[..2].copy_from_slice(&0xD116_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(number * SIZE).to_le_bytes());
        bytes[24..32].copy_from_slice(&7_u64.to_le_bytes());
        bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        let end = bytes.len() - 1;
        bytes[end] = u8::try_from(number).unwrap();
        bytes
    }

    proptest::proptest! {
        #[test]
        fn pieces_are_the_stream(step in 1_usize..300_000, stored in 0_u64..SIZE * 2, cuts in 1_usize..9) {
            let stream: Vec<u8> = (3..6).flat_map(segment).collect();
            let begin = Begin { timeline: 1, at: Lsn(3 * SIZE), stored: Lsn(3 * SIZE + stored) };
            let mut incoming = Incoming::new(begin, SIZE, 7);
            let mut pieces = Vec::new();
            for (n, message) in stream.chunks(step).enumerate() {
                let mut message = Bytes::copy_from_slice(message);
                while !message.is_empty() {
                    incoming.take(&mut message).unwrap();
                    if incoming.is_full() || n % cuts == 0 {
                        pieces.extend(incoming.cut());
                    }
                }
            }
            pieces.extend(incoming.cut());
            let mut at = begin.stored;
            let mut received = Vec::new();
            for piece in &pieces {
                proptest::prop_assert_eq!(Lsn(piece.segment.start(SIZE).0 + piece.offset), at);
                proptest::prop_assert!(piece.offset + piece.bytes.len() as u64 <= SIZE, "it spans segments");
                at = piece.end(SIZE);
                received.extend_from_slice(&piece.bytes);
            }
            proptest::prop_assert!(received == stream[usize::try_from(stored).unwrap()..]);
        }
    }

    #[test]
    fn other_wal_is_refused() {
        let begin = Begin { timeline: 1, at: Lsn(3 * SIZE), stored: Lsn(3 * SIZE) };
        for (system, number) in [(8, 3), (7, 4)] {
            let mut incoming = Incoming::new(begin, SIZE, system);
            assert!(incoming.take(&mut Bytes::from(segment(number))).is_err());
        }
    }
}
