//! What an archive has, and which moments can be reached from a backup.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::archive::Archive;
use super::history::History;
use super::name::SegmentName;
use super::survey::Survey;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;

/// What an archive has, at one time, and the histories of its timelines.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Inventory {
    /// Its objects.
    pub survey: Survey,
    /// Histories of the timelines behind the first.
    pub histories: BTreeMap<u32, History>,
    /// Timelines that several servers began: their histories differ.
    pub ambiguous: BTreeSet<u32>,
}

/// A run of segments of one timeline that is there, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Run {
    /// The first segment.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How many.
    pub segments: u64,
}

/// How far recovery comes from a backup, along one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reach {
    /// The timeline on which it ends.
    pub timeline: u32,
    /// Where the backup is consistent: nothing before it can be reached.
    pub from: Lsn,
    /// Up to where the WAL goes without a gap. Before `from`, nothing can be reached.
    pub to: Lsn,
    /// The latest commit on the way.
    pub last_commit: Option<Timestamp>,
    /// A segment that is missing or in conflict though there are later ones, or though the backup needs it.
    pub gap: Option<String>,
}

/// Where a backup begins and ends, and whether it has the WAL in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupSpan {
    /// Its timeline.
    pub timeline: u32,
    /// From here on it needs WAL.
    pub start: Lsn,
    /// Up to here it needs all of it.
    pub end: Lsn,
    /// Size of segments.
    pub segment_bytes: u64,
    /// Whether it has this WAL of its own. Otherwise all of it must come from the archive.
    pub brings_wal: bool,
}

impl BackupSpan {
    /// The segments that it needs to be consistent. One that ends where a segment ends does not need the next one
    /// (`XLByteToPrevSeg` in `xlog_internal.h`).
    pub fn segments(&self) -> impl Iterator<Item = SegmentName> + use<> {
        let Self { timeline, segment_bytes, .. } = *self;
        let numbers = self.start.0 / segment_bytes..=self.end.0.saturating_sub(1) / segment_bytes;
        numbers.map(move |number| SegmentName::numbered(timeline, number, segment_bytes))
    }

    /// From here on its recovery needs the archive.
    pub(super) fn needs_from(&self) -> Lsn {
        if self.brings_wal { self.end } else { self.start }
    }
}

impl Inventory {
    /// Lists an archive, and reads its histories.
    ///
    /// # Errors
    /// Those of the store; [`Integrity`](ErrorKind::Integrity) where a history is damaged, of which much depends.
    pub async fn load(archive: &Archive) -> Result<Self> {
        match Self::load_sound(archive).await? {
            (_, Some(error)) => Err(error),
            (inventory, None) => Ok(inventory),
        }
    }

    /// The same without histories that are damaged; and what is wrong with one of these. For whoever tells of damage.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load_sound(archive: &Archive) -> Result<(Self, Option<Error>)> {
        let mut damaged = None;
        let mut inventory = Self { survey: Survey::load(archive).await?, ..Self::default() };
        for stored in archive.histories().await? {
            let read = async {
                let text = archive.read_history(&stored).await?;
                History::parse(stored.timeline, &String::from_utf8_lossy(&text))
            };
            let history = match read.await {
                Ok(history) => history,
                Err(error) if error.kind() == ErrorKind::Integrity => {
                    damaged = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if inventory.histories.insert(stored.timeline, history).is_some() {
                inventory.ambiguous.insert(stored.timeline);
            }
        }
        Ok((inventory, damaged))
    }

    /// The timelines that there is WAL or a history of.
    pub fn timelines(&self) -> BTreeSet<u32> {
        self.survey.timelines.keys().chain(self.histories.keys()).copied().collect()
    }

    /// The history of a timeline.
    ///
    /// # Errors
    /// [`ObjectMissing`](ErrorKind::ObjectMissing) where the archive does not have it,
    /// [`Conflict`](ErrorKind::Conflict) where it has several.
    pub fn history(&self, timeline: u32) -> Result<History> {
        if self.ambiguous.contains(&timeline) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the archive has several files {timeline:08X}.history that differ"),
            )
            .with_hint("two servers began the same timeline: restore to another one with --timeline"));
        }
        match self.histories.get(&timeline) {
            Some(history) => Ok(history.clone()),
            None if timeline == 1 => Ok(History::first(1)),
            None => Err(Error::new(
                ErrorKind::ObjectMissing,
                format!("the archive has no {timeline:08X}.history"),
            )
            .with_hint("pgark wal list shows the timelines that there are")),
        }
    }

    /// The timelines on which something lies behind a position that lies on no other one: those that nobody left,
    /// and those that have WAL behind the point where they were left. More than one is for the user to choose from.
    pub fn leaves(&self, span: BackupSpan) -> Vec<u32> {
        let behind: Vec<&History> = self
            .histories
            .values()
            .filter(|h| h.timeline != span.timeline && h.passes(span.timeline, span.end))
            .collect();
        let goes_on = |timeline: u32| {
            let left = behind
                .iter()
                .flat_map(|h| &h.switches)
                .filter(|s| s.timeline == timeline)
                .map(|s| s.at)
                .max();
            let Some(left) = left else { return true };
            let newest = self.survey.timelines.get(&timeline);
            newest.is_some_and(|newest| newest.segment.start(span.segment_bytes) >= left)
        };
        let mut all: Vec<u32> = behind.iter().map(|h| h.timeline).chain([span.timeline]).collect();
        all.sort_unstable();
        all.retain(|timeline| goes_on(*timeline));
        all
    }

    /// A newer timeline than those of a history that was begun before a backup ended: the backup is of a branch that was
    /// left.
    pub fn left_for(&self, span: BackupSpan, history: &History) -> Option<u32> {
        let other = |h: &&History| h.timeline > history.timeline && !h.passes(span.timeline, span.end);
        self.histories.values().filter(other).map(|h| h.timeline).max()
    }

    /// How far recovery comes from a backup along a history.
    pub fn reach(&self, span: BackupSpan, history: &History) -> Reach {
        self.survey.reach(span, history)
    }
}

#[cfg(test)]
impl Inventory {
    /// What tests say of an archive of 16 MiB segments: timeline and number of each segment, whether it is whole, the
    /// time of its last commit; timeline and text of each history.
    pub(crate) fn sample(
        segments: &[(u32, u64, bool, Option<jiff::Timestamp>)],
        histories: &[(u32, &str)],
    ) -> Self {
        let size = 16 << 20;
        let mut surveyor = super::survey::Surveyor::of(7);
        for (timeline, number, complete, last) in segments {
            let digest = super::ShortDigest::from(crate::repository::Digest::of(&[]));
            let piece = super::Piece {
                offset: 0,
                length: if *complete { size } else { 4096 },
                segment_bytes: size,
                stored_bytes: None,
                raw: digest.clone(),
                stored: digest,
                first: None,
                last: *last,
                key: None,
            };
            let name = SegmentName::numbered(*timeline, *number, size);
            let key = format!("{name}/{}", piece.name());
            surveyor.take(&key, 1);
        }
        Self {
            survey: surveyor.finish(),
            histories: histories.iter().map(|(t, text)| (*t, History::parse(*t, text).unwrap())).collect(),
            ambiguous: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn inventory(segments: &[(u32, u64, bool)], histories: &[(u32, &str)]) -> Inventory {
        let segments: Vec<_> = segments.iter().map(|(t, n, complete)| (*t, *n, *complete, None)).collect();
        Inventory::sample(&segments, histories)
    }

    fn span(start: u64, end: u64) -> BackupSpan {
        BackupSpan { timeline: 1, start: Lsn(start), end: Lsn(end), segment_bytes: SIZE, brings_wal: true }
    }

    #[test]
    fn recovery_comes_as_far_as_there_is_wal() {
        let span = span(2 * SIZE + 40, 2 * SIZE + 100);
        let reach = |inventory: &Inventory, t| inventory.reach(span, &inventory.history(t).unwrap());
        let none = reach(&inventory(&[], &[]), 1);
        assert_eq!((none.to, none.gap), (span.end, None));

        let whole = inventory(&[(1, 2, true), (1, 3, true), (1, 4, false)], &[]);
        assert_eq!(reach(&whole, 1).to, Lsn(4 * SIZE + 4096));

        let gap = reach(&inventory(&[(1, 2, true), (1, 3, true), (1, 5, true)], &[]), 1);
        assert_eq!((gap.to, gap.gap.as_deref()), (Lsn(4 * SIZE), Some("000000010000000000000004")));

        // Timeline 2 began in segment 3.
        let two =
            inventory(&[(1, 2, true), (1, 3, true), (1, 4, true), (2, 3, true)], &[(2, "1\t0/3000100\tx\n")]);
        assert_eq!((reach(&two, 1).to, reach(&two, 2).to), (Lsn(5 * SIZE), Lsn(4 * SIZE)));
        assert_eq!(reach(&two, 2).gap, None, "what timeline 1 did later is not on the way");
        // But it is there, and nobody can tell which one is meant.
        assert_eq!(two.leaves(span), [1, 2]);
        let left = inventory(&[(1, 2, true), (1, 3, true), (2, 3, true)], &[(2, "1\t0/3000100\tx\n")]);
        assert_eq!(left.leaves(span), [2]);
        let later = BackupSpan { end: Lsn(3 * SIZE + 0x200), ..span };
        let own = History::first(1);
        assert_eq!((left.left_for(span, &own), left.left_for(later, &own)), (None, Some(2)));
    }

    #[test]
    fn a_backup_without_wal_needs_it_from_its_beginning() {
        let alone = span(2 * SIZE + 40, 4 * SIZE);
        let span = BackupSpan { brings_wal: false, ..alone };
        assert_eq!(span.segments().map(|s| s.segment).collect::<Vec<_>>(), [2, 3]);
        let reach = |segments: &[(u32, u64, bool)], span| {
            let reach = inventory(segments, &[]).reach(span, &History::first(1));
            (reach.to, reach.gap.map(|gap| gap[16..].to_owned()))
        };
        let gap = |n: u64| Some(format!("{n:08X}"));
        assert_eq!(reach(&[], alone), (Lsn(4 * SIZE), None));
        assert_eq!(reach(&[], span), (span.start, gap(2)));
        assert_eq!(reach(&[(1, 2, true)], span), (Lsn(3 * SIZE), gap(3)));
        assert_eq!(reach(&[(1, 3, true)], span), (span.start, gap(2)));
        assert_eq!(reach(&[(1, 2, true), (1, 3, false)], span), (Lsn(3 * SIZE + 4096), gap(3)));
        assert_eq!(reach(&[(1, 2, true), (1, 3, true)], span), (Lsn(4 * SIZE), None));
    }

    #[test]
    fn branches_are_told_apart() {
        let text = "1\t0/3000100\tx\n";
        let two = inventory(&[], &[(2, text), (3, text), (4, "1\t0/3000100\tx\n2\t0/5000000\ty\n")]);
        assert_eq!(two.leaves(span(2 * SIZE, 2 * SIZE + 9)), [3, 4]);
        // Behind the switch only the old timeline leads on.
        assert_eq!(two.leaves(span(4 * SIZE, 4 * SIZE + 9)), [1]);
    }
}
