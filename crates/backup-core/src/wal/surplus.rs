//! What nothing needs of an archive.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::archive::Archive;
use super::name::{SegmentName, WalName};
use super::object::split;
use super::survey::Glance;
use crate::error::{ErrorKind, Result};
use crate::postgres::Lsn;
use crate::repository::{ClusterName, Repository, layout};
use crate::store::{Entry, Meta, list_sorted};

/// Keys and histories that are younger stay in any case. A host seals with a key for a day, a copy of an archive for as long as it
/// takes; a server stores the history of a timeline before its WAL.
const REST: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What an object of an archive is of, as far as its name says.
enum Of {
    Segment(SegmentName, Option<u64>),
    Point(u32, Lsn),
    History(u32),
    Unknown,
}

/// Goes through the objects of archives, and says of each whether something needs it. It remembers what
/// the others need of histories and keys, so that it must see all archives of a cluster to judge these.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    /// Of the archive that is gone through: its oldest timeline of which something stays.
    oldest: Option<u32>,
    /// Its histories: their keys.
    histories: Vec<(u32, String)>,
    /// Whatever may be a key's id in the names of what stays.
    keys: BTreeSet<String>,
}

impl Sieve {
    /// Whether an object goes. `needed` is asked with the size of segments, where the object's name says it; without it,
    /// it knows the size or keeps. Histories are judged at the end.
    pub(crate) fn goes(
        &mut self,
        archive: &Archive,
        key: &str,
        needed: impl Fn(SegmentName, Option<u64>) -> bool,
        point_needed: impl Fn(u32, Lsn) -> bool,
    ) -> bool {
        let timeline = match of(archive, key) {
            Of::Segment(segment, size) if !needed(segment, size) => return true,
            Of::Point(timeline, lsn) if !point_needed(timeline, lsn) => return true,
            Of::Segment(SegmentName { timeline, .. }, _) | Of::Point(timeline, _) => Some(timeline),
            Of::History(timeline) => {
                self.histories.push((timeline, key.to_owned()));
                None
            }
            // Nobody knows what it needs.
            Of::Unknown => Some(0),
        };
        if let Some(timeline) = timeline {
            self.needs_timeline(timeline);
        }
        self.stays(key);
        false
    }

    /// An object that was to go stays: the store did not let it go.
    pub(crate) fn is_left(&mut self, key: &str) {
        if let Some(WalName::Segment(of) | WalName::Partial(of) | WalName::Backup(of, _)) = split(key).0 {
            self.needs_timeline(of.timeline);
        }
        self.stays(key);
    }

    /// Something stays that is sealed with the keys that its name has.
    fn stays(&mut self, key: &str) {
        let name = key.rsplit('/').next().unwrap_or_default();
        let words = name.as_bytes().split(|byte| matches!(byte, b'-' | b'.'));
        let ids = words
            .filter(|word| word.len() == ulid::ULID_LEN)
            .filter_map(|word| std::str::from_utf8(word).ok());
        for id in ids {
            if !self.keys.contains(id) {
                self.keys.insert(id.to_owned());
            }
        }
    }

    /// Something stays that is of a timeline.
    pub(crate) fn needs_timeline(&mut self, timeline: u32) {
        self.oldest = Some(self.oldest.map_or(timeline, |oldest| oldest.min(timeline)));
    }

    /// Ends an archive: its histories that go, those of timelines older than all of which something stays. Whoever recovers asks for the
    /// history of the timeline that it begins with and of newer ones, each of which names its ancestors
    /// (`readTimeLineHistory`, `findNewestTimeLine`, `restoreTimeLineHistoryFiles` in `timeline.c` and `xlogrecovery.c`).
    pub(crate) async fn end(&mut self, archive: &Archive, now: Timestamp) -> Result<Vec<String>> {
        let oldest = self.oldest.take();
        let mut histories = std::mem::take(&mut self.histories);
        histories.retain(|(timeline, _)| oldest.is_none_or(|oldest| *timeline < oldest));
        // Copies have the same ones.
        let keys: BTreeSet<String> = histories.into_iter().map(|(_, key)| key).collect();
        let mut gone = Vec::new();
        for key in keys {
            match archive.store().head(&key).await {
                Ok(meta) => gone.extend(rested(&meta, now).then_some(key)),
                Err(error) if error.kind() == ErrorKind::ObjectMissing => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// The keys of a cluster that nothing needs.
    pub(crate) async fn keys(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        now: Timestamp,
    ) -> Result<Vec<String>> {
        let listed = list_sorted(&**repository.store(), &layout::wal_keys(cluster), None).await?;
        let goes = |entry: Entry| match entry {
            Entry::Object(meta) => {
                let id = meta.key.rsplit('/').next()?.split('.').next()?;
                let ours = id.parse::<ulid::Ulid>().is_ok();
                (ours && !self.keys.contains(id) && rested(&meta, now)).then_some(meta.key)
            }
            Entry::Folder(_) => None,
        };
        Ok(listed.into_iter().filter_map(goes).collect())
    }
}

fn rested(meta: &Meta, now: Timestamp) -> bool {
    now.duration_since(meta.modified) > REST
}

fn of(archive: &Archive, key: &str) -> Of {
    let (Some(name), object) = split(key) else { return beside(archive, key) };
    match name {
        WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup(segment, _) => {
            let size = Glance::parse(object).map(|piece| piece.segment_bytes).filter(|bytes| *bytes > 0);
            Of::Segment(segment, size)
        }
        WalName::History(_) => Of::Unknown,
    }
}

/// Of what has no folder of a file: `history/<timeline>-<digest>.history`, `points/<timeline>-<lsn>/<piece>`.
fn beside(archive: &Archive, key: &str) -> Of {
    let Some(rest) = key.strip_prefix(&archive.root()).and_then(|rest| rest.strip_prefix('/')) else {
        return Of::Unknown;
    };
    let names: Vec<&str> = rest.split('/').collect();
    let hex = |text: &str, digits: usize| {
        (text.len() == digits).then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    match names[..] {
        ["history", name] => {
            Archive::parse_history("", name).map_or(Of::Unknown, |found| Of::History(found.timeline))
        }
        ["points", place, _] => {
            let point = place.split_once('-').and_then(|(timeline, lsn)| {
                Some(Of::Point(u32::try_from(hex(timeline, 8)?).ok()?, Lsn(hex(lsn, 16)?)))
            });
            point.unwrap_or(Of::Unknown)
        }
        _ => Of::Unknown,
    }
}
