//! What a WAL segment says of itself: its first page, and the times in its records.
//!
//! Layouts are those of `xlog_internal.h`, `xlogrecord.h` and `xact.h`, the same from PostgreSQL 15 to 18. Numbers
//! are in the byte order of the server's host; only little-endian ones are read.

use jiff::Timestamp;

use super::name::SegmentName;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Lsn, POSTGRES_EPOCH};

/// Size of a long page header, with which every segment begins (`XLogLongPageHeaderData`).
pub(super) const LONG_HEADER: usize = 40;
/// Size of the header of every other page (`XLogPageHeaderData`, aligned).
const SHORT_HEADER: usize = 24;
/// Size of a record's header (`XLogRecord`).
const RECORD_HEADER: usize = 24;
/// Bytes of a record that are looked at: its header, the headers before its data, and a restore point's data.
const LOOKED_AT: usize = RECORD_HEADER + 16 + 72;
/// The page begins with the rest of a record (`XLP_FIRST_IS_CONTRECORD`).
const CONTINUES: u16 = 1;
/// The header is a long one (`XLP_LONG_HEADER`).
const LONG: u16 = 2;
/// The record before was given up after a crash, and a new one begins (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
const OVERWRITES: u16 = 8;

/// The long header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentHeader {
    /// Timeline that wrote the page: that of the segment, or an older one where the segment was copied when a
    /// timeline began.
    pub timeline: u32,
    /// Position of the page.
    pub start: Lsn,
    /// Number of the cluster.
    pub system_identifier: u64,
    /// Size of segments.
    pub segment_bytes: u64,
    /// Size of pages.
    page_bytes: usize,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        number.copy_from_slice(found);
    }
    number
}

impl SegmentHeader {
    /// Reads the header at the beginning of a segment.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it is none.
    pub fn read(page: &[u8]) -> Result<Self> {
        let damaged = |why: &str| Error::new(ErrorKind::Integrity, format!("it is not a WAL segment: {why}"));
        if page.len() < LONG_HEADER {
            return Err(damaged("it is too short"));
        }
        let (magic, info) = (u16::from_le_bytes(number(page, 0)), u16::from_le_bytes(number(page, 2)));
        // The versions from 15 to 18 have 0xD110 to 0xD118.
        if magic >> 8 != 0xD1 {
            return Err(damaged("its first page does not begin as one"));
        }
        let segment_bytes = u64::from(u32::from_le_bytes(number(page, 32)));
        let page_bytes = u32::from_le_bytes(number(page, 36)) as usize;
        let sizes = segment_bytes.is_power_of_two()
            && (1 << 20..=1 << 30).contains(&segment_bytes)
            && page_bytes.is_power_of_two()
            && (1 << 10..=1 << 16).contains(&page_bytes);
        if info & LONG == 0 || !sizes {
            return Err(damaged("its first page has no long header"));
        }
        Ok(Self {
            timeline: u32::from_le_bytes(number(page, 4)),
            start: Lsn(u64::from_le_bytes(number(page, 8))),
            system_identifier: u64::from_le_bytes(number(page, 24)),
            segment_bytes,
            page_bytes,
        })
    }

    /// Whether it can be the header of the segment with a name.
    pub fn is_of(&self, name: SegmentName) -> bool {
        self.timeline <= name.timeline && self.start == name.start(self.segment_bytes)
    }
}

/// What a piece of WAL tells about time. Recovery to a time stops at the first commit or abort after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Times {
    /// The earliest commit or abort in it.
    pub first: Option<Timestamp>,
    /// The latest.
    pub last: Option<Timestamp>,
    /// Restore points: where their records begin, when they were made, their names.
    pub points: Vec<(Lsn, Timestamp, String)>,
}

/// Looks for times in WAL as it passes by, from the beginning of a segment on. A record that another segment
/// began is not looked at.
#[derive(Debug)]
pub struct TimeScan {
    header: SegmentHeader,
    /// Position in the segment.
    at: usize,
    /// The header of the page that is being read, as far as it has come.
    page: Vec<u8>,
    state: State,
    times: Times,
    /// Where they are wanted.
    commits: Option<Vec<Commit>>,
}

/// A commit in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// Where its record begins.
    pub lsn: Lsn,
    /// The transaction, without its epoch.
    pub xid: u32,
}

#[derive(Debug)]
enum State {
    /// So many bytes of a record do not matter, the padding behind it included.
    Skip(usize),
    /// A record: where it begins, and its bytes so far.
    Record(usize, Vec<u8>),
    /// No more WAL: the rest of a segment that was switched, or not written yet.
    End,
}

/// Records begin at multiples of eight (`MAXALIGN`).
fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

impl Commit {
    #[cfg(test)]
    pub(crate) fn new(lsn: Lsn, xid: u32) -> Self {
        Self { lsn, xid }
    }
}

impl TimeScan {
    /// Begins at the beginning of the segment that `header` is of.
    pub fn new(header: SegmentHeader) -> Self {
        let page = Vec::with_capacity(LONG_HEADER);
        Self { header, at: 0, page, state: State::Skip(0), times: Times::default(), commits: None }
    }

    /// Looks for commits as well, but for those of prepared transactions.
    #[must_use]
    pub fn with_commits(mut self) -> Self {
        self.commits = Some(Vec::new());
        self
    }

    /// The commits that were found since the last call.
    pub fn take_commits(&mut self) -> Vec<Commit> {
        self.commits.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Reads on.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !matches!(self.state, State::End) {
            let within = self.at % self.header.page_bytes;
            let header = if self.at < self.header.page_bytes { LONG_HEADER } else { SHORT_HEADER };
            let taken = if within < header {
                let taken = bytes.len().min(header - within);
                self.page.extend_from_slice(&bytes[..taken]);
                if within + taken == header {
                    self.begin_page();
                }
                taken
            } else {
                let room = bytes.len().min(self.header.page_bytes - within);
                self.data(&bytes[..room])
            };
            self.at += taken;
            bytes = &bytes[taken..];
        }
    }

    /// What was found since the last call.
    pub fn take(&mut self) -> Times {
        std::mem::take(&mut self.times)
    }

    fn begin_page(&mut self) {
        let (magic, info) =
            (u16::from_le_bytes(number(&self.page, 0)), u16::from_le_bytes(number(&self.page, 2)));
        let begins = self.at / self.header.page_bytes * self.header.page_bytes;
        let address = u64::from_le_bytes(number(&self.page, 8));
        let rest = u32::from_le_bytes(number(&self.page, 16)) as usize;
        self.page.clear();
        // What is left of an older use of the file has the address that it had then.
        if magic >> 8 != 0xD1 || address != self.header.start.0 + begins as u64 {
            self.state = State::End;
        } else if info & OVERWRITES != 0 {
            self.state = State::Skip(0);
        } else if begins == 0 && info & CONTINUES != 0 {
            self.state = State::Skip(aligned(rest));
        }
    }

    /// Takes data of a page; how much of it.
    fn data(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::Skip(0) => {
                self.state = State::Record(self.at, Vec::new());
                0
            }
            State::Skip(rest) => {
                let taken = bytes.len().min(*rest);
                *rest -= taken;
                taken
            }
            State::Record(start, record) => {
                let length = u32::from_le_bytes(number(record, 0)) as usize;
                let wanted = if record.len() < RECORD_HEADER { RECORD_HEADER } else { length.min(LOOKED_AT) };
                let taken = bytes.len().min(wanted - record.len());
                record.extend_from_slice(&bytes[..taken]);
                if record.len() == wanted {
                    let length = u32::from_le_bytes(number(record, 0)) as usize;
                    if length < RECORD_HEADER {
                        self.state = State::End;
                    } else if record.len() == length.min(LOOKED_AT) {
                        let (start, record) = (*start, std::mem::take(record));
                        self.state = State::Skip(aligned(length) - record.len());
                        self.record(start, &record);
                    }
                }
                taken
            }
            State::End => bytes.len(),
        }
    }

    fn record(&mut self, start: usize, record: &[u8]) {
        const XLOG: u8 = 0;
        const XACT: u8 = 1;
        let (info, manager) = (record[16], record[17]);
        if let (Some(commits), XACT, 0x00) = (&mut self.commits, manager, info & 0x70) {
            let xid = u32::from_le_bytes(number(record, 4));
            commits.push(Commit { lsn: Lsn(self.header.start.0 + start as u64), xid });
        }
        match (manager, info & 0x70) {
            // Commit and abort, of prepared transactions too (xact.h): they begin with their time.
            (XACT, 0x00 | 0x20 | 0x30 | 0x40) => {
                if let Some(time) = data_of(record).and_then(time_of) {
                    let times = &mut self.times;
                    times.first = Some(times.first.map_or(time, |first| first.min(time)));
                    times.last = Some(times.last.map_or(time, |last| last.max(time)));
                }
            }
            // XLOG_RESTORE_POINT (pg_control.h): time, and a name of 64 bytes.
            (XLOG, 0x70) if info & 0x80 == 0 => {
                let Some(data) = data_of(record) else { return };
                let name = data.get(8..).unwrap_or_default();
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                if let Some(time) = time_of(data) {
                    let lsn = Lsn(self.header.start.0 + start as u64);
                    self.times.points.push((lsn, time, String::from_utf8_lossy(name).into_owned()));
                }
            }
            _ => {}
        }
    }
}

/// The data of a record without blocks (xlogrecord.h).
fn data_of(record: &[u8]) -> Option<&[u8]> {
    let mut rest = record.get(RECORD_HEADER..)?;
    loop {
        let (id, after) = rest.split_first()?;
        rest = match id {
            255 => return after.get(1..),
            254 => return after.get(4..),
            // An origin, a transaction.
            253 => after.get(2..)?,
            252 => after.get(4..)?,
            _ => return None,
        };
    }
}

fn time_of(data: &[u8]) -> Option<Timestamp> {
    let micros = i64::from_le_bytes(data.get(..8)?.try_into().ok()?);
    Timestamp::from_microsecond(micros.checked_add(POSTGRES_EPOCH)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A long page header of the first segment of 1 MiB.
    fn header() -> Vec<u8> {
        let mut page = vec![0; LONG_HEADER];
        page[..2].copy_from_slice(&0xD116_u16.to_le_bytes());
        page[2..4].copy_from_slice(&LONG.to_le_bytes());
        page[4..8].copy_from_slice(&1_u32.to_le_bytes());
        page[8..16].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        page[24..32].copy_from_slice(&7_u64.to_le_bytes());
        page[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        page[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        page
    }

    /// A record without blocks, aligned.
    fn record(manager: u8, info: u8, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(RECORD_HEADER + 2 + data.len()).unwrap();
        let mut record = vec![0; RECORD_HEADER];
        record[..4].copy_from_slice(&length.to_le_bytes());
        (record[16], record[17]) = (info, manager);
        record.extend([255, u8::try_from(data.len()).unwrap()]);
        record.extend_from_slice(data);
        record.resize(aligned(record.len()), 0);
        record
    }

    fn scanned(segment: &[u8], step: usize) -> Times {
        let mut scan = TimeScan::new(SegmentHeader::read(segment).unwrap());
        segment.chunks(step).for_each(|piece| scan.update(piece));
        scan.take()
    }

    #[test]
    fn commits_aborts_and_restore_points_are_found() {
        let mut segment = header();
        let committed = Commit { lsn: Lsn((1 << 20) + segment.len() as u64), xid: 0x0102_0304 };
        let mut commit = record(1, 0x80, &5_000_000_i64.to_le_bytes());
        commit[4..8].copy_from_slice(&committed.xid.to_le_bytes());
        segment.extend(commit);
        segment.extend(record(10, 0x00, &9_000_000_i64.to_le_bytes()));
        segment.extend(record(1, 0x20, &2_000_000_i64.to_le_bytes()));
        let mut point = 3_000_000_i64.to_le_bytes().to_vec();
        point.extend_from_slice(b"before");
        point.resize(72, 0);
        let at = Lsn((1 << 20) + segment.len() as u64);
        segment.extend(record(0, 0x70, &point));
        segment.resize(8192, 0);
        let time = |micros| Timestamp::from_microsecond(POSTGRES_EPOCH + micros).ok();
        for step in [1, 7, 4096, 8192] {
            let times = scanned(&segment, step);
            assert_eq!((times.first, times.last), (time(2_000_000), time(5_000_000)), "step {step}");
            assert_eq!(times.points, [(at, time(3_000_000).unwrap(), "before".to_owned())]);
            let mut scan = TimeScan::new(SegmentHeader::read(&segment).unwrap()).with_commits();
            segment.chunks(step).for_each(|piece| scan.update(piece));
            assert_eq!(scan.take_commits(), [committed], "an abort is none");
        }
    }

    proptest::proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_and_steps_do_not_matter(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..20_000),
            step in 1_usize..9000,
        ) {
            let _ = SegmentHeader::read(&bytes);
            let segment = [&header()[..], &bytes].concat();
            proptest::prop_assert_eq!(scanned(&segment, step), scanned(&segment, segment.len()));
        }
    }
}
