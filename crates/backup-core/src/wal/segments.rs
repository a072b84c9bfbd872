//! What is there of each segment of an archive, in 32 bytes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::name::SegmentName;

/// What is there of a segment. Kept small: there are a million of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// The beginning of the raw digest of its whole file; 0 where it is made of pieces.
    pub(super) digest: u64,
    /// As stored.
    pub(super) bytes: u64,
    /// The latest commit or abort in it, in microseconds since 1970; 0 where there is none.
    pub(super) last: i64,
    /// Whether it is there to its end.
    pub(super) whole: bool,
    /// The last byte of its number, within the group.
    low: u8,
}

/// Segments by name. 256 of them at a time are in a row: a tree of single ones takes twice the memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Segments {
    /// By timeline, upper half of the position, and number without its last byte.
    groups: BTreeMap<(u32, u32, u32), Vec<Found>>,
    count: usize,
}

fn place(name: SegmentName) -> ((u32, u32, u32), u8) {
    let [low, ..] = name.segment.to_le_bytes();
    ((name.timeline, name.log, name.segment >> 8), low)
}

impl Segments {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, name: SegmentName) -> Option<&Found> {
        let (group, low) = place(name);
        let row = self.groups.get(&group)?;
        row.binary_search_by_key(&low, |found| found.low).ok().and_then(|at| row.get(at))
    }

    /// What is there of a segment, made where nothing was.
    pub(super) fn entry(&mut self, name: SegmentName) -> &mut Found {
        let (group, low) = place(name);
        let row = self.groups.entry(group).or_default();
        let at = match row.binary_search_by_key(&low, |found| found.low) {
            Ok(at) => at,
            Err(at) => {
                row.insert(at, Found { low, ..Found::default() });
                self.count += 1;
                at
            }
        };
        &mut row[at]
    }

    /// All of them, sorted.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SegmentName, &Found)> {
        self.within(1..=u32::MAX)
    }

    /// Those of some timelines, sorted.
    pub(super) fn within(
        &self,
        timelines: RangeInclusive<u32>,
    ) -> impl Iterator<Item = (SegmentName, &Found)> {
        let groups = self.groups.range((*timelines.start(), 0, 0)..=(*timelines.end(), u32::MAX, u32::MAX));
        groups.flat_map(|((timeline, log, high), row)| {
            row.iter().map(move |found| {
                let segment = (high << 8) | u32::from(found.low);
                (SegmentName { timeline: *timeline, log: *log, segment }, found)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_and_sorted() {
        let mut segments = Segments::default();
        let nth = |n: u32| SegmentName { timeline: 1 + n % 3, log: n % 7, segment: n * 37 % 1024 };
        let mut names: Vec<SegmentName> = (0..5000).map(nth).collect();
        for (name, n) in names.iter().zip(1..) {
            segments.entry(*name).bytes = n;
        }
        assert_eq!(segments.get(names[4999]).map(|found| found.bytes), Some(5000));
        names.sort();
        names.dedup();
        assert_eq!(segments.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
        assert_eq!(segments.len(), names.len());
        assert!(segments.within(2..=2).all(|(name, _)| name.timeline == 2));
        assert!(segments.get(SegmentName { timeline: 9, log: 0, segment: 0 }).is_none());
        assert_eq!(size_of::<Found>(), 32);
    }
}
