//! What an archive has, cheaply: a million objects are counted as they are listed, and none of their names is held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::history::History;
use super::inventory::{BackupSpan, Reach, Run};
use super::name::{SegmentName, WalName};
use super::object::{Fields, RESOLVED, hex, split};
use super::route::Route;
use super::segments::{Found, Segments};
use crate::error::Result;

/// What an archive has, at one time. It takes 32 bytes of memory a segment, and one listing.
#[derive(Debug, Clone, Default)]
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
    segments: Segments,
    segment_bytes: Option<u64>,
    /// Of segments that are not there to their end, what is: from, to.
    pieces: BTreeMap<SegmentName, Vec<(u64, u64)>>,
    /// The ways along histories that were asked for.
    routes: Arc<Mutex<Vec<Arc<Route>>>>,
}

/// The end of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Newest {
    /// Its newest segment, whole or not.
    pub segment: SegmentName,
    /// The last commit or abort in any of its segments.
    pub last_commit: Option<Timestamp>,
    /// When the newest object of this segment was stored, by the store's clock.
    pub stored: Option<Timestamp>,
}

/// What the archive has of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// Whether it is there to its end.
    pub complete: bool,
    /// Up to where it is there without a gap, in bytes.
    pub contiguous: u64,
    /// Whether there are several that differ, and nobody has said which one counts.
    pub conflict: bool,
    /// The latest commit or abort in it.
    pub last: Option<Timestamp>,
    /// Bytes as stored.
    pub stored_bytes: u64,
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
pub(super) struct Glance {
    offset: u64,
    length: u64,
    pub(super) segment_bytes: u64,
    /// The beginning of the raw digest; not 0.
    digest: u64,
    last: i64,
}

impl Glance {
    /// Of a name as [`Piece`](super::Piece) has it, without copies.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let fields = Fields::of(name)?;
        Some(Self {
            offset: hex(fields.offset)?,
            length: hex(fields.length)?,
            segment_bytes: hex(fields.segment_bytes)?,
            digest: beginning(fields.raw)?,
            last: fields.last.parse().ok()?,
        })
    }
}

/// The beginning of a digest, as a number that is not 0.
fn beginning(digest: &str) -> Option<u64> {
    hex(digest.get(..16)?).map(|digest| digest.max(1))
}

/// Makes a survey of objects as they come.
#[derive(Default)]
pub(crate) struct Surveyor {
    survey: Survey,
    /// Of segments of which whole files differ, the beginnings of their digests.
    differing: BTreeMap<SegmentName, BTreeSet<u64>>,
    /// The names of the newest decisions between these.
    resolved: BTreeMap<SegmentName, String>,
}

impl Surveyor {
    pub(super) fn of(system: u64) -> Self {
        Self { survey: Survey { system, ..Survey::default() }, ..Self::default() }
    }

    /// Whether it is a piece of a segment.
    pub(crate) fn take(&mut self, key: &str, bytes: u64) -> bool {
        self.survey.objects += 1;
        self.survey.stored_bytes += bytes;
        let (Some(WalName::Segment(segment)), name) = split(key) else { return false };
        if name.starts_with(RESOLVED) {
            let newest = self.resolved.entry(segment).or_default();
            if newest.as_str() < name {
                name.clone_into(newest);
            }
        }
        let Some(piece) = Glance::parse(name) else { return false };
        self.survey.segment_bytes = Some(piece.segment_bytes);
        let last = Timestamp::from_microsecond(piece.last).ok().filter(|_| piece.last != 0);
        let newest = Newest { segment, last_commit: None, stored: None };
        let newest = self.survey.timelines.entry(segment.timeline).or_insert(newest);
        newest.segment = newest.segment.max(segment);
        newest.last_commit = newest.last_commit.max(last);

        let found = self.survey.segments.entry(segment);
        found.bytes += bytes;
        // Before 1970 is no commit.
        found.last = found.last.max(piece.last);
        let pieces = &mut self.survey.pieces;
        if piece.offset == 0 && piece.length == piece.segment_bytes {
            if found.digest != 0 && found.digest != piece.digest {
                let differing = self.differing.entry(segment).or_default();
                differing.extend([found.digest, piece.digest]);
            }
            (found.whole, found.digest) = (true, piece.digest);
        } else if !found.whole {
            let covered = pieces.entry(segment).or_default();
            cover(covered, (piece.offset, piece.offset + piece.length));
            // Whole, of pieces: there is no digest of it.
            found.whole = covered.first().is_some_and(|(from, to)| *from == 0 && *to >= piece.segment_bytes);
        }
        if found.whole && !pieces.is_empty() {
            pieces.remove(&segment);
        }
        true
    }

    pub(crate) fn finish(mut self) -> Survey {
        for (segment, digests) in self.differing {
            let chosen = self.resolved.get(&segment).and_then(|name| beginning(name.rsplit('-').next()?));
            if chosen.is_none_or(|chosen| !digests.contains(&chosen)) {
                self.survey.conflicts.insert(segment);
            }
        }
        self.survey
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

impl Survey {
    /// Lists an archive.
    pub async fn load(archive: &Archive) -> Result<Self> {
        let mut surveyor = Surveyor::of(archive.system());
        let mut objects = archive.objects();
        while let Some((key, bytes)) = objects.try_next().await? {
            surveyor.take(&key, bytes);
        }
        let mut survey = surveyor.finish();
        for newest in survey.timelines.values_mut() {
            let stored = archive.stored(&WalName::Segment(newest.segment)).await?;
            newest.stored = stored.pieces.iter().map(|(_, meta)| meta.modified).max();
        }
        Ok(survey)
    }

    /// How far recovery comes from a backup along a history. The first question about a history takes a look at all
    /// segments, further ones a search.
    pub fn reach(&self, span: BackupSpan, history: &History) -> Reach {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = routes.iter().find(|route| route.is_of(history, span.segment_bytes)).cloned();
        let route = known.unwrap_or_else(|| {
            let new = Arc::new(Route::new(self, history, span.segment_bytes));
            routes.push(Arc::clone(&new));
            new
        });
        drop(routes);
        route.reach(self, span)
    }

    /// What is there of a segment; nothing where there is none of it.
    pub fn segment(&self, name: SegmentName) -> Option<Segment> {
        let found = self.segments.get(name)?;
        let size = self.segment_bytes?;
        Some(Segment {
            complete: found.whole,
            contiguous: self.contiguous(name, found, size),
            conflict: self.conflicts.contains(&name),
            last: Timestamp::from_microsecond(found.last).ok().filter(|_| found.last != 0),
            stored_bytes: found.bytes,
        })
    }

    /// The segments, whole or not, sorted.
    pub fn names(&self) -> impl Iterator<Item = SegmentName> {
        self.segments.iter().map(|(name, _)| name)
    }

    pub(super) fn all(&self) -> &Segments {
        &self.segments
    }

    /// Up to where a segment is there without a gap.
    pub(super) fn contiguous(&self, name: SegmentName, found: &Found, segment_bytes: u64) -> u64 {
        if found.whole {
            return segment_bytes;
        }
        let first = self.pieces.get(&name).and_then(|pieces| pieces.first());
        first.filter(|(from, _)| *from == 0).map_or(0, |(_, to)| *to)
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

    /// All segments, whole or not, in rows.
    pub fn rows(&self) -> Vec<Stretch> {
        self.stretches(|_, _| true)
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
                    *last = segment;
                }
                _ => all.push((
                    Stretch {
                        timeline: segment.timeline,
                        first: segment.to_string(),
                        last: String::new(),
                        segments: 1,
                        stored_bytes: found.bytes,
                    },
                    segment,
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
    use crate::wal::{Piece, ShortDigest};

    const SIZE: u64 = 16 << 20;

    fn survey(objects: &[(u32, u64, u64, u64, u8)]) -> Survey {
        let mut surveyor = Surveyor::of(7);
        for (timeline, number, offset, length, seed) in objects {
            let raw = ShortDigest::from(Digest::of(&[*seed]));
            let piece = Piece {
                offset: *offset,
                length: *length,
                segment_bytes: SIZE,
                stored_bytes: None,
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
            surveyor.take(&key, 10);
        }
        surveyor.finish()
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
        let rows = found.rows();
        let rows: Vec<_> = rows.iter().map(|s| (s.first.as_str(), s.segments, s.stored_bytes)).collect();
        let names = [name(1, 2), name(1, 6), name(2, 4)].map(|name| name.to_string());
        assert_eq!(rows, [(&*names[0], 3, 40), (&*names[1], 2, 20), (&*names[2], 1, 30)]);
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
