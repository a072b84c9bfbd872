//! Histories of timelines: from which one, and where, each began (`timeline.c`).

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;

/// Where a timeline was left for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: u32,
    /// Its end.
    pub at: Lsn,
}

/// The ancestors of a timeline, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// The timeline itself.
    pub timeline: u32,
    /// Where its ancestors were left.
    pub switches: Vec<Switch>,
}

impl History {
    /// That of a timeline without ancestors.
    pub fn first(timeline: u32) -> Self {
        Self { timeline, switches: Vec::new() }
    }

    /// Reads the text of `<timeline>.history`.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it is none.
    pub fn parse(timeline: u32, text: &str) -> Result<Self> {
        let damaged = |line: &str| {
            Error::new(ErrorKind::Integrity, format!("{timeline:08X}.history has a line {line:?}"))
                .with_hint("it is written by PostgreSQL: put back a good copy of it")
        };
        let mut switches = Vec::<Switch>::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_ascii_whitespace();
            let parent = words.next().and_then(|word| word.parse().ok());
            let at = words.next().and_then(|word| word.parse().ok());
            let (Some(parent), Some(at)) = (parent, at) else { return Err(damaged(line)) };
            // They ascend (readTimeLineHistory).
            if parent >= timeline || switches.last().is_some_and(|last| last.timeline >= parent) {
                return Err(damaged(line));
            }
            switches.push(Switch { timeline: parent, at });
        }
        Ok(Self { timeline, switches })
    }

    /// Where a timeline of this history ends: nowhere for the newest one. Nothing where it is none of them.
    pub fn end_of(&self, timeline: u32) -> Option<Option<Lsn>> {
        if timeline == self.timeline {
            return Some(None);
        }
        self.switches.iter().find(|s| s.timeline == timeline).map(|s| Some(s.at))
    }

    /// Whether recovery along this history passes a position of a timeline.
    pub fn passes(&self, timeline: u32, lsn: Lsn) -> bool {
        self.end_of(timeline).is_some_and(|end| end.is_none_or(|end| lsn <= end))
    }

    /// The timelines in which recovery finds a segment, in its order: the newest first, as far as they had begun
    /// (`XLogFileReadAnyTLI` in `xlogrecovery.c`) and were not left before.
    pub fn candidates(&self, number: u64, segment_bytes: u64) -> impl Iterator<Item = u32> {
        let mut begin = 0;
        let mut found = Vec::new();
        let ends = self.switches.iter().map(|s| (s.timeline, s.at.0)).chain([(self.timeline, u64::MAX)]);
        for (timeline, end) in ends {
            if begin <= number && number.saturating_mul(segment_bytes) < end {
                found.push(timeline);
            }
            begin = end / segment_bytes;
        }
        found.into_iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_says_where_timelines_were_left() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# x\n2\t0/5000000\tbefore 2026-11-21\n";
        let history = History::parse(3, text).unwrap();
        let at = |lsn: &str| lsn.parse::<Lsn>().unwrap();
        assert!(history.passes(1, at("0/3000148")) && !history.passes(1, at("0/3000149")));
        assert!(history.passes(3, at("F/0")) && !history.passes(4, at("0/1")));
        let candidates = |n| history.candidates(n, 16 << 20).collect::<Vec<_>>();
        assert_eq!(candidates(2), [1]);
        assert_eq!(candidates(3), [2, 1]);
        assert_eq!(candidates(4), [2]);
        assert_eq!(candidates(5), [3]);
        for wrong in ["x", "1", "1 2", "3\t0/1\tx", "2\t0/1\n1\t0/2"] {
            assert!(History::parse(3, wrong).is_err(), "{wrong}");
        }
    }
}
