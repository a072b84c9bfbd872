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
}

impl Route {
    pub(super) fn new(survey: &Survey, history: &History, segment_bytes: u64) -> Self {
        let mut route =
            Self { history: history.clone(), segment_bytes, rows: Vec::new(), newest: None };
        let mut waiting: Option<Step> = None;
        let mut begin = 0;
        let ends = history.switches.iter().map(|s| (s.timeline, s.at.0)).chain([(history.timeline, u64::MAX)]);
        // As in History::candidates. Of two timelines one segment at most has both: that of the switch.
        for (timeline, end) in ends {
            let newest = survey.timelines.get(&timeline).map(|newest| newest.segment);
            for (name, found) in survey.all().within(timeline..=timeline) {
                if name.number(segment_bytes) < begin || name.start(segment_bytes).0 >= end {
                    continue;
                }
                let step = Step {
                    name,
                    found: *found,
                    contiguous: survey.contiguous(name, found, segment_bytes),
                    conflict: survey.conflicts.contains(&name),
                };
                match waiting {
                    Some(older) if older.name.number(segment_bytes) == name.number(segment_bytes) => {
                        // Of the newer timeline nothing is served that is not whole, unless it ends there.
                        let served = step.conflict || found.whole || newest == Some(name);
                        if served || !older.found.whole || older.conflict {
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
        let Some(Step { name, found, contiguous, conflict }) = step else { return };
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
        let conflict =
            history.candidates(missing, size).any(|timeline| survey.conflicts.contains(&named(timeline, missing)));
        if later || conflict || reach.to < span.end {
            let timeline = history.candidates(missing, size).next().unwrap_or(history.timeline);
            reach.gap = Some(named(timeline, missing).to_string());
        }
        reach
    }
}
