//! What an archive has, cheaply: a million objects are counted as they are listed, and none of their names is held.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::inventory::Run;
use super::name::{SegmentName, WalName};
use super::object::{RESOLVED, ShortDigest};
use crate::error::Result;
use crate::store::Meta;

/// What an archive has, at one time. Other than [`Inventory`](super::Inventory) it does not say how far recovery comes
/// from a backup; it takes 50 bytes of memory a segment, and one listing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Survey {
    /// The system identifier.
    pub system: u64,
    /// Objects of all kinds.
    pub objects: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// The last commit that is in the archive, and the newest segment, of each timeline.
    pub timelines: BTreeMap<u32, Newest>,
    /// Segments of which several differ, and nobody has said which one counts.
    pub conflicts: BTreeSet<SegmentName>,
    segments: BTreeMap<SegmentName, Found>,
    segment_bytes: Option<u64>,
}

/// The end of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Newest {
    /// Its newest segment, whole or not.
    pub segment: SegmentName,
    /// The last commit or abort in any of its segments.
    pub last_commit: Option<Timestamp>,
    /// When the newest object was stored, by the store's clock.
    pub stored: Timestamp,
}

/// What is there of a segment. Kept small: there are a million of them.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    /// The beginning of the raw digest of the first whole file.
    digest: u64,
    bytes: u64,
    objects: u32,
    whole: bool,
}

/// Segments in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stretch {
    /// Their timeline.
    pub timeline: u32,
    /// The first segment.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
}

/// What a survey reads of an object's name.
struct Glance {
    offset: u64,
    length: u64,
    segment_bytes: u64,
    digest: u64,
    last: i64,
}

impl Glance {
    /// Of a name as [`Piece`](super::Piece) has it, without copies.
    fn parse(name: &str) -> Option<Self> {
        let (stem, suffix) = name.split_once('.')?;
        if !suffix.starts_with("zst") {
            return None;
        }
        let mut fields = stem.split('-');
        let mut number = || u64::from_str_radix(fields.next()?, 16).ok();
        let (offset, length, segment_bytes) = (number()?, number()?, number()?);
        let digest = fields.next().and_then(|raw| u64::from_str_radix(raw.get(..16)?, 16).ok())?;
        fields.next().and_then(ShortDigest::is_one)?;
        fields.next()?;
        let last = fields.next()?.parse().ok()?;
        Some(Self { offset, length, segment_bytes, digest, last })
    }
}

/// Of a key `…/<file>/<object>`.
pub(super) fn file_of(key: &str) -> Option<(WalName, &str)> {
    let mut names = key.rsplit('/');
    let object = names.next()?;
    Some((names.next()?.parse().ok()?, object))
}

/// Makes a survey of objects as they come.
struct Surveyor {
    survey: Survey,
    /// Of segments that are not whole in one piece, what is covered: from, to.
    pieces: BTreeMap<SegmentName, Vec<(u64, u64)>>,
    conflicts: BTreeSet<SegmentName>,
    resolved: BTreeSet<SegmentName>,
}

impl Surveyor {
    fn take(&mut self, meta: &Meta) {
        self.survey.objects += 1;
        self.survey.stored_bytes += meta.bytes;
        let Some((WalName::Segment(segment), name)) = file_of(&meta.key) else { return };
        if name.starts_with(RESOLVED) {
            self.resolved.insert(segment);
        }
        let Some(piece) = Glance::parse(name) else { return };
        self.survey.segment_bytes = Some(piece.segment_bytes);
        let last = Timestamp::from_microsecond(piece.last).ok().filter(|_| piece.last != 0);
        let newest = Newest { segment, last_commit: None, stored: meta.modified };
        let newest = self.survey.timelines.entry(segment.timeline).or_insert(newest);
        newest.segment = newest.segment.max(segment);
        newest.last_commit = newest.last_commit.max(last);
        newest.stored = newest.stored.max(meta.modified);

        let found = self.survey.segments.entry(segment).or_default();
        found.bytes += meta.bytes;
        found.objects += 1;
        if piece.offset == 0 && piece.length == piece.segment_bytes {
            if found.whole && found.digest != piece.digest && found.digest != 0 {
                self.conflicts.insert(segment);
            }
            (found.whole, found.digest) = (true, piece.digest);
        } else if !found.whole {
            let covered = self.pieces.entry(segment).or_default();
            cover(covered, (piece.offset, piece.offset + piece.length));
            // Whole, of pieces: there is no digest of it.
            if covered.first().is_some_and(|(from, to)| *from == 0 && *to >= piece.segment_bytes) {
                found.whole = true;
            }
        }
        if found.whole && !self.pieces.is_empty() {
            self.pieces.remove(&segment);
        }
    }
}

/// Adds a range to ranges that are sorted and do not touch.
fn cover(ranges: &mut Vec<(u64, u64)>, (mut from, mut to): (u64, u64)) {
    ranges.retain(|range| {
        let apart = range.1 < from || to < range.0;
        if !apart {
            (from, to) = (from.min(range.0), to.max(range.1));
        }
        apart
    });
    let at = ranges.partition_point(|range| range.0 < from);
    ranges.insert(at, (from, to));
}

impl Archive {
    /// The objects of segments that are not needed, and of what belongs to these.
    /// `unneeded` is asked with the size of segments, where the object's name says it.
    pub(crate) fn unneeded<'a>(
        &'a self,
        unneeded: impl Fn(SegmentName, Option<u64>) -> bool + Send + Sync + 'a,
    ) -> BoxStream<'a, Result<Meta>> {
        let goes = move |meta: &Meta| {
            let Some((name, object)) = file_of(&meta.key) else { return false };
            let size = Glance::parse(object).map(|piece| piece.segment_bytes).filter(|bytes| *bytes > 0);
            match name {
                WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup(segment, _) => {
                    unneeded(segment, size)
                }
                WalName::History(_) => false,
            }
        };
        self.store().walk(&self.root()).try_filter(move |meta| std::future::ready(goes(meta))).boxed()
    }
}

impl Survey {
    /// Lists an archive.
    pub async fn load(archive: &Archive) -> Result<Self> {
        let survey = Self {
            system: archive.system(),
            objects: 0,
            stored_bytes: 0,
            timelines: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            segments: BTreeMap::new(),
            segment_bytes: None,
        };
        let (pieces, conflicts, resolved) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut surveyor = Surveyor { survey, pieces, conflicts, resolved };
        let mut objects = archive.store().walk(&archive.root());
        while let Some(meta) = objects.try_next().await? {
            surveyor.take(&meta);
        }
        let mut survey = surveyor.survey;
        survey.conflicts = &surveyor.conflicts - &surveyor.resolved;
        Ok(survey)
    }

    /// How many segments there are, whole or not.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Size of segments; nothing where there are none.
    pub fn segment_bytes(&self) -> Option<u64> {
        self.segment_bytes
    }

    /// The runs of whole segments of a timeline: between them some are missing.
    pub fn runs(&self, timeline: u32) -> Vec<Run> {
        let of = |segment: &SegmentName, found: &Found| segment.timeline == timeline && found.whole;
        let stretches = self.stretches(of);
        let run = |s: Stretch| Run { first: s.first, last: s.last, segments: s.segments };
        stretches.into_iter().map(run).collect()
    }

    /// The segments, whole or not, that something holds for, in rows.
    pub fn those(&self, holds: impl Fn(SegmentName) -> bool) -> Vec<Stretch> {
        self.stretches(|segment, _| holds(*segment))
    }

    fn stretches(&self, holds: impl Fn(&SegmentName, &Found) -> bool) -> Vec<Stretch> {
        let Some(size) = self.segment_bytes.filter(|size| *size > 0) else { return Vec::new() };
        let mut all: Vec<(Stretch, SegmentName)> = Vec::new();
        for (segment, found) in self.segments.iter().filter(|(segment, found)| holds(segment, found)) {
            match all.last_mut() {
                Some((stretch, last))
                    if last.timeline == segment.timeline && last.number(size) + 1 == segment.number(size) =>
                {
                    stretch.segments += 1;
                    stretch.stored_bytes += found.bytes;
                    *last = *segment;
                }
                _ => all.push((
                    Stretch {
                        timeline: segment.timeline,
                        first: segment.to_string(),
                        last: String::new(),
                        segments: 1,
                        stored_bytes: found.bytes,
                    },
                    *segment,
                )),
            }
        }
        all.into_iter().map(|(stretch, last)| Stretch { last: last.to_string(), ..stretch }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Digest;
    use crate::wal::Piece;

    const SIZE: u64 = 16 << 20;

    fn survey(objects: &[(u32, u64, u64, u64, u8)]) -> Survey {
        let survey = Survey {
            system: 7,
            objects: 0,
            stored_bytes: 0,
            timelines: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            segments: BTreeMap::new(),
            segment_bytes: None,
        };
        let mut surveyor = Surveyor {
            survey,
            pieces: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            resolved: BTreeSet::new(),
        };
        for (timeline, number, offset, length, seed) in objects {
            let raw = ShortDigest::from(Digest::of(&[*seed]));
            let piece = Piece {
                offset: *offset,
                length: *length,
                segment_bytes: SIZE,
                raw: raw.clone(),
                stored: raw,
                first: None,
                last: Timestamp::from_microsecond(i64::try_from(*number).unwrap())
                    .ok()
                    .filter(|_| *number > 0),
                key: None,
            };
            let segment = SegmentName::numbered(*timeline, *number, SIZE);
            let key = format!("clusters/main/wal/7/x/y/{segment}/{}", piece.name());
            surveyor.take(&Meta { key, bytes: 10, modified: Timestamp::UNIX_EPOCH });
        }
        assert!(surveyor.pieces.len() <= objects.len());
        let mut survey = surveyor.survey;
        survey.conflicts = &surveyor.conflicts - &surveyor.resolved;
        survey
    }

    #[test]
    fn runs_gaps_and_conflicts_are_seen() {
        let found = survey(&[
            (1, 4, 0, SIZE, 1),
            (1, 2, 0, SIZE, 1),
            (1, 3, SIZE / 2, SIZE / 2, 1),
            (1, 3, 0, SIZE / 2 + 9, 2),
            (1, 6, 0, SIZE, 1),
            (1, 7, 0, 4096, 1),
            (2, 4, 0, SIZE, 1),
            (2, 4, 0, SIZE, 2),
            (2, 4, 0, SIZE, 2),
        ]);
        let runs =
            |timeline| found.runs(timeline).into_iter().map(|r| (r.first, r.segments)).collect::<Vec<_>>();
        let name = |t, n| SegmentName::numbered(t, n, SIZE);
        assert_eq!(runs(1), [(name(1, 2).to_string(), 3), (name(1, 6).to_string(), 1)]);
        assert_eq!(runs(2), [(name(2, 4).to_string(), 1)]);
        assert_eq!(found.conflicts.iter().collect::<Vec<_>>(), [&name(2, 4)]);
        let newest = found.timelines[&1];
        assert_eq!((newest.segment, newest.last_commit), (name(1, 7), Timestamp::from_microsecond(7).ok()));
        assert_eq!((found.objects, found.segments(), found.stored_bytes), (9, 6, 90));
        let some = found.those(|segment| segment.number(SIZE) > 3 && segment.timeline == 1);
        let some: Vec<_> = some.iter().map(|s| (s.first.as_str(), s.segments, s.stored_bytes)).collect();
        let (four, six) = (name(1, 4).to_string(), name(1, 6).to_string());
        assert_eq!(some, [(four.as_str(), 1, 10), (six.as_str(), 2, 20)]);
    }

    #[test]
    fn ranges_join() {
        let mut ranges = Vec::new();
        for range in [(10, 20), (30, 40), (20, 25), (0, 5), (24, 31), (5, 10)] {
            cover(&mut ranges, range);
        }
        assert_eq!(ranges, [(0, 40)]);
    }
}
