//! Where the replay of a cluster stops so that it has what a snapshot saw.
//!
//! A snapshot sees the transactions that had ended in the server's memory. Each writes its commit to the WAL first, and
//! with many at once some have written it and have not ended yet. So the end of the WAL, as it was just after the
//! snapshot, may lie behind commits that the snapshot does not see. The WAL around it tells which.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::workplace::Workplace;
use crate::error::{Error, Result};
use crate::logical::SnapshotContents;
use crate::postgres::Lsn;
use crate::wal::{
    Archive, Asking, BackupSpan, Commit, Fetcher, SegmentHeader, SegmentName, TimeScan, WalName,
};

/// How much WAL is read at once.
const PIECE: usize = 256 * 1024;

/// What the WAL around a snapshot says of the commits in it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Around {
    /// The first commit that the snapshot does not see.
    first_unseen: Option<Lsn>,
    /// The last one that it sees.
    last_seen: Option<Lsn>,
}

impl Around {
    fn look(&mut self, commit: Commit, is_seen: bool) {
        if is_seen {
            self.last_seen = self.last_seen.max(Some(commit.lsn));
        } else if self.first_unseen.is_none_or(|first| commit.lsn < first) {
            self.first_unseen = Some(commit.lsn);
        }
    }

    /// Replay stops before the record that begins here, or behind. Where commits ended in another order than they were
    /// written, no position is right: then everything that the snapshot sees is replayed, and as little more as can be.
    fn stop(&self, end: Lsn) -> Lsn {
        match (self.last_seen, self.first_unseen) {
            // A standby had replayed it, and not said so yet.
            (Some(seen), _) if seen >= end => Lsn(seen.0 + 1),
            (Some(seen), Some(unseen)) if unseen < seen => Lsn(seen.0 + 1),
            (_, Some(unseen)) => unseen.min(end),
            _ => end,
        }
    }
}

/// Looks through the WAL around a snapshot. A backup's WAL ends at `backup.end`: replay cannot stop before.
///
/// # Errors
/// Those of the archive. WAL that it does not have is not looked at.
pub(super) async fn stop(
    archive: &Archive,
    backup: BackupSpan,
    snapshot: &SnapshotContents,
    at: &Workplace,
) -> Result<Lsn> {
    let Some(sees) = snapshot.sees() else { return Ok(snapshot.lsn) };
    let timeline = snapshot.timeline.unwrap_or(backup.timeline);
    let last = SegmentName::at(timeline, snapshot.lsn, backup.segment_bytes);
    // A commit that waits for the disk is not old: the segment before is enough.
    let before = last.number(backup.segment_bytes).checked_sub(1);
    let before = before.map(|number| SegmentName::numbered(timeline, number, backup.segment_bytes));
    let fetcher = Fetcher::new(archive.clone(), Asking::Recovery);
    let mut around = Around::default();
    for segment in before.into_iter().chain([last]) {
        if segment.next(backup.segment_bytes).start(backup.segment_bytes) <= backup.end {
            continue;
        }
        let path = at.path().join(format!("around.{segment}"));
        if !fetcher.fetch(WalName::Segment(segment), &path).await? {
            continue;
        }
        let sees = sees.clone();
        let looked = tokio::task::spawn_blocking(move || {
            commits(&path, |commit| {
                // What was committed before the backup's end is replayed in any case.
                if commit.lsn >= backup.end {
                    around.look(commit, sees.has(commit.xid));
                }
            })?;
            std::fs::remove_file(&path).map_err(|e| Error::io(format!("removing {}", path.display()), e))?;
            Ok(around)
        });
        around = looked.await.unwrap_or_else(|e| Err(Error::internal("reading WAL failed").caused_by(e)))?;
    }
    Ok(around.stop(snapshot.lsn).max(backup.end))
}

/// Gives each commit of a segment to `each`.
fn commits(path: &Path, mut each: impl FnMut(Commit)) -> Result<()> {
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    let mut file = File::open(path).map_err(failed)?;
    let mut piece = vec![0; PIECE];
    let mut scan: Option<TimeScan> = None;
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        let scan = match &mut scan {
            Some(scan) => scan,
            // A file is read in pieces of this size but for its end.
            none => none.insert(TimeScan::new(SegmentHeader::read(&piece[..read])?).with_commits()),
        };
        scan.update(&piece[..read]);
        scan.take_commits().into_iter().for_each(&mut each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_stops_between_what_is_seen_and_what_is_not() {
        let stop = |commits: &[(u64, bool)], end: u64| {
            let mut around = Around::default();
            for (lsn, is_seen) in commits {
                around.look(Commit::new(Lsn(*lsn), 7), *is_seen);
            }
            around.stop(Lsn(end)).0
        };
        assert_eq!(stop(&[], 100), 100);
        assert_eq!(stop(&[(60, true), (120, false)], 100), 100);
        // Written and not ended yet.
        assert_eq!(stop(&[(60, true), (80, false), (90, false)], 100), 80);
        assert_eq!(stop(&[(80, false), (90, false), (60, true)], 100), 80);
        // In another order.
        assert_eq!(stop(&[(60, false), (80, true), (90, false)], 100), 81);
        // Replayed by a standby, and not said.
        assert_eq!(stop(&[(100, true), (160, false)], 100), 101);
    }
}
