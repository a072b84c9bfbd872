//! The WAL along the history of a timeline: how far recovery comes on it, from any place.

use jiff::Timestamp;

use super::history::History;
use super::inventory::{BackupSpan, Reach};
use super::name::SegmentName;
use super::segments::Found;
use super::survey::Survey;
use crate::postgres::Lsn;

/// The segments that recovery takes along one history, in rows without a gap. It is made with one pass over the
/// segments, and answers for thousands of backups.
#[derive(Debug)]
pub(super) struct Route {
    history: History,
    segment_bytes: u64,
    rows: Vec<Row>,
    /// The number of the newest segment.
    newest: Option<u64>,
}

/// Segments without a gap, by number.
#[derive(Debug)]
struct Row {
    first: u64,
    last: u64,
    /// Whether the last one is there to its end; else nothing follows it.
    whole: bool,
    /// The position up to which they go.
    end: u64,
    /// The latest commit from a segment on to the end of the row. Commits follow each other, so that this is
    /// a single one as a rule, that of the last segment.
    commits: Vec<(u64, i64)>,
}

/// A segment that recovery finds.
#[derive(Clone, Copy)]
struct Step {
    name: SegmentName,
    found: Found,
    contiguous: u64,
    conflict: bool,
    /// Whether a fetch answers with it, or with an error: of a timeline that goes on, nothing is served that is not whole.
    served: bool,
}

impl Route {
    pub(super) fn new(survey: &Survey, history: &History, segment_bytes: u64) -> Self {
        let mut route = Self { history: history.clone(), segment_bytes, rows: Vec::new(), newest: None };
        let mut waiting: Option<Step> = None;
        let mut begin = 0;
        let ends =
            history.switches.iter().map(|s| (s.timeline, s.at.0)).chain([(history.timeline, u64::MAX)]);
        // As in History::candidates. Of two timelines one segment at most has both: that of the switch.
        for (timeline, end) in ends {
            let newest = survey.timelines.get(&timeline).map(|newest| newest.segment);
            for (name, found) in survey.all().within(timeline..=timeline) {
                if name.number(segment_bytes) < begin || name.start(segment_bytes).0 >= end {
                    continue;
                }
                let conflict = survey.conflicts.contains(&name);
                let served = conflict || found.whole || newest == Some(name);
                let contiguous = survey.contiguous(name, found, segment_bytes);
                let step = Step { name, found: *found, contiguous, conflict, served };
                match waiting {
                    Some(older) if older.name.number(segment_bytes) == name.number(segment_bytes) => {
                        if served || !older.served {
                            waiting = Some(step);
                        }
                    }
                    other => {
                        route.push(other);
                        waiting = Some(step);
                    }
                }
            }
            begin = end / segment_bytes;
        }
        route.push(waiting);
        route
    }

    fn push(&mut self, step: Option<Step>) {
        let Some(Step { name, found, contiguous, conflict, .. }) = step else { return };
        let number = name.number(self.segment_bytes);
        self.newest = self.newest.max(Some(number));
        if conflict || contiguous == 0 {
            return;
        }
        let end = name.start(self.segment_bytes).0.saturating_add(contiguous);
        let follows = self.rows.last().is_some_and(|row| row.whole && row.last + 1 == number);
        if !follows {
            self.rows.push(Row { first: number, last: number, whole: true, end, commits: Vec::new() });
        }
        let Some(row) = self.rows.last_mut() else { return };
        (row.last, row.whole, row.end) = (number, found.whole, end);
        if found.last != 0 {
            while row.commits.pop_if(|(_, last)| *last <= found.last).is_some() {}
            row.commits.push((number, found.last));
        }
    }

    pub(super) fn is_of(&self, history: &History, segment_bytes: u64) -> bool {
        self.segment_bytes == segment_bytes && self.history == *history
    }

    /// How far recovery comes from a backup.
    pub(super) fn reach(&self, survey: &Survey, span: BackupSpan) -> Reach {
        let (size, history) = (self.segment_bytes, &self.history);
        let from = span.needs_from();
        let mut reach =
            Reach { timeline: history.timeline, from: span.end, to: from, last_commit: None, gap: None };
        let number = from.0 / size;
        let named = |timeline, number| SegmentName::numbered(timeline, number, size);
        // Not a segment of a timeline that was left before the backup began.
        let begins = history
            .candidates(number, size)
            .any(|timeline| timeline >= span.timeline && survey.all().get(named(timeline, number)).is_some());
        let row = self.rows.get(self.rows.partition_point(|row| row.last < number));
        if let Some(row) = row.filter(|row| begins && row.first <= number) {
            reach.to = reach.to.max(Lsn(row.end));
            let commit = row.commits.get(row.commits.partition_point(|(of, _)| *of < number));
            reach.last_commit = commit.and_then(|(_, last)| Timestamp::from_microsecond(*last).ok());
        }
        let missing = reach.to.0 / size;
        let later = self.newest.is_some_and(|newest| newest > missing);
        let conflict = history
            .candidates(missing, size)
            .any(|timeline| survey.conflicts.contains(&named(timeline, missing)));
        if later || conflict || reach.to < span.end {
            let timeline = history.candidates(missing, size).next().unwrap_or(history.timeline);
            reach.gap = Some(named(timeline, missing).to_string());
        }
        reach
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repository::Digest;
    use crate::store::Meta;
    use crate::wal::object::split;
    use crate::wal::survey::Surveyor;
    use crate::wal::{Piece, ShortDigest, Stored, Switch, WalName};

    const SIZE: u64 = 1 << 20;

    /// A piece: timeline, number, which part of the segment, which bytes, when its last commit was.
    type Bit = (u32, u64, usize, u8, i64);

    fn meta(&(timeline, number, part, seed, last): &Bit) -> Meta {
        let (offset, length) =
            [(0, SIZE), (0, SIZE), (0, SIZE), (0, SIZE / 2), (SIZE / 2, SIZE / 2), (SIZE / 4, SIZE / 2)]
                [part];
        let digest = ShortDigest::from(Digest::of(&[seed]));
        let piece = Piece {
            offset,
            length,
            segment_bytes: SIZE,
            stored_bytes: Some(1),
            raw: digest.clone(),
            stored: digest,
            first: None,
            last: Timestamp::from_microsecond(last).ok().filter(|_| last != 0),
            key: None,
        };
        let name = SegmentName::numbered(timeline, number, SIZE);
        // As it lies in an archive, now or formerly.
        let between = if piece.is_whole() && seed % 2 == 0 { '-' } else { '/' };
        let key = format!("a/{name}{between}{}", piece.name());
        Meta { key, bytes: 1, modified: Timestamp::UNIX_EPOCH }
    }

    fn decision(timeline: u32, number: u64, seed: u8, order: usize) -> Meta {
        let digest = ShortDigest::from(Digest::of(&[seed]));
        let name = SegmentName::numbered(timeline, number, SIZE);
        let key = format!("a/{name}/resolved-{order:026}-{}", digest.as_str());
        Meta { key, bytes: 1, modified: Timestamp::UNIX_EPOCH }
    }

    /// Step by step, as recovery goes: the answer that a route must give.
    fn steps(stored: &[(SegmentName, Stored)], span: BackupSpan, history: &History) -> (Lsn, Option<i64>) {
        let find = |name| stored.iter().find(|(other, _)| *other == name).map(|(_, stored)| stored);
        let later = |name: SegmentName| {
            stored.iter().any(|(other, _)| other.timeline == name.timeline && *other > name)
        };
        let (mut to, mut last) = (span.needs_from().0, None);
        let mut number = to / SIZE;
        loop {
            let there: Vec<(SegmentName, &Stored)> = history
                .candidates(number, SIZE)
                .map(|timeline| SegmentName::numbered(timeline, number, SIZE))
                .filter_map(|name| Some((name, find(name)?)))
                .collect();
            let taken = there
                .iter()
                .find(|(name, stored)| stored.in_conflict() || stored.is_complete() || !later(*name))
                .or(there.first());
            let Some((_, stored)) = taken.filter(|(_, s)| !s.in_conflict() && s.contiguous() > 0) else {
                break;
            };
            last = last
                .max(stored.pieces.iter().filter_map(|(p, _)| p.last).map(Timestamp::as_microsecond).max());
            to = to.max(number * SIZE + stored.contiguous().min(SIZE));
            if !stored.is_complete() {
                break;
            }
            number += 1;
        }
        (Lsn(to), last)
    }

    proptest! {
        #[test]
        fn a_route_says_what_steps_say(
            bits in prop::collection::vec((1..4_u32, 0..9_u64, 0..6_usize, 0..2_u8, 0..50_i64), 0..60),
            decisions in prop::collection::vec((1..4_u32, 0..9_u64, 0..3_u8), 0..9),
            switches in (0..9 * SIZE, 0..9 * SIZE),
            from in 0..9 * SIZE,
        ) {
            let mut metas: Vec<Meta> = bits.iter().map(meta).collect();
            metas.sort_by(|a, b| a.key.cmp(&b.key));
            metas.dedup_by(|a, b| a.key == b.key);
            let made = decisions.iter().enumerate().map(|(n, (t, number, seed))| decision(*t, *number, *seed, n));
            metas.extend(made);
            let mut surveyor = Surveyor::of(7);
            for meta in &metas {
                surveyor.take(&meta.key, meta.bytes);
            }
            let survey = surveyor.finish();
            let mut stored: Vec<(SegmentName, Stored)> = Vec::new();
            for name in survey.names() {
                let of = |meta: &&Meta| split(&meta.key).0 == Some(WalName::Segment(name));
                stored.push((name, Stored::of(metas.iter().filter(of).cloned())));
            }
            for (name, stored) in &stored {
                let found = survey.segment(*name).unwrap();
                prop_assert_eq!(found.conflict, stored.in_conflict(), "{}", name);
                prop_assert_eq!(found.complete, stored.is_complete(), "{}", name);
                prop_assert_eq!(found.contiguous, stored.contiguous(), "{}", name);
            }
            let (a, b) = (switches.0.min(switches.1), switches.0.max(switches.1));
            let history = History {
                timeline: 3,
                switches: vec![Switch { timeline: 1, at: Lsn(a) }, Switch { timeline: 2, at: Lsn(b) }],
            };
            let span = BackupSpan { timeline: 1, start: Lsn(from), end: Lsn(from), segment_bytes: SIZE, brings_wal: true };
            let reach = survey.reach(span, &history);
            let (to, last) = steps(&stored, span, &history);
            prop_assert_eq!((reach.to, reach.last_commit.map(Timestamp::as_microsecond)), (to, last));
            let later = stored.iter().any(|(name, _)| {
                name.number(SIZE) > to.0 / SIZE && history.candidates(name.number(SIZE), SIZE).any(|t| t == name.timeline)
            });
            prop_assert!(reach.gap.is_some() || !later, "{:?}", reach);
        }
    }
}
