//! A backup without WAL of its own: an archive has it, and the backup commits when all of it is there.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::postgres::Session;
use crate::wal::{ArchivedWal, BackupSpan, SegmentName};

/// The fact that says where a backup's WAL is; absent where the backup has it.
const FACT: &str = "wal";
const IN_ARCHIVE: &str = "archive";
/// Waits between two looks: the first, and the longest.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How many segments are looked for at a time. They come in their order, so that the first ones tell enough.
const AT_A_TIME: usize = 16;
/// How many segments an error names.
const NAMED: usize = 3;
const STREAM_HINT: &str = "--wal stream stores the WAL with the backup, and needs no archive";

/// The archive that a backup relies on.
#[derive(Debug, Clone)]
pub(super) struct FromArchive {
    pub(super) archive: Arc<dyn ArchivedWal>,
    /// How long the backup waits for it at its end.
    pub(super) wait: Duration,
}

impl FromArchive {
    /// Refuses what could not end well, before anything is done.
    pub(super) async fn check(&self, system: u64, session: &Session) -> Result<()> {
        if session.value("SELECT pg_catalog.pg_is_in_recovery()").await?.as_deref() != Some("f") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the backup of a standby cannot leave its WAL to the archive",
            )
            // do_pg_backup_stop (xlogbackup.c, before 15 xlog.c) switches to the next segment on a primary only.
            .with_hint(format!(
                "a standby does not end its last segment, which would not be archived for as long as the primary \
                 writes little: {STREAM_HINT}; or back up the primary"
            )));
        }
        if self.archive.system() != system {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the WAL archive is of another cluster than {system}, that of the server"),
            )
            .with_hint(format!("check --cluster and --db; {STREAM_HINT}")));
        }
        if !self.archive.has_any().await? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the repository has no WAL archive of this cluster",
            )
            .with_hint(format!(
                "archive_command = 'pgark wal push \"%p\"' or pgark wal receive makes one; where that was set up just \
                 now, SELECT pg_switch_wal() sends the first segment; {STREAM_HINT}"
            )));
        }
        // Known now, and not when all has been sent. A receiver that is down for a moment has a slot. The backup's own
        // connections do not stream; of others the role may not see what they do.
        let nobody = "SELECT pg_catalog.current_setting('archive_mode') = 'off' \
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_replication \
                WHERE coalesce(state, 'streaming') IN ('catchup', 'streaming')) \
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical')";
        if session.value(nobody).await?.as_deref() == Some("t") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "nothing sends the server's WAL to the archive: archive_mode is off, and nobody replicates from it",
            )
            .with_hint(format!("set archive_mode and archive_command, or start pgark wal receive; {STREAM_HINT}")));
        }
        Ok(())
    }

    /// Waits until the archive has all of a backup's WAL.
    ///
    /// No slot is needed meanwhile: with `archive_mode` on, the server keeps each segment until `archive_command`
    /// has taken it (`RemoveOldXlogFiles` asks `XLogArchiveCheckDone`), and a receiver has a slot of its own. The last
    /// segment is whole without further writes: a primary switches to the next one at the end of a backup
    /// (`do_pg_backup_stop`), also where it is not asked to wait.
    pub(super) async fn wait(&self, span: BackupSpan, observer: &dyn Observer) -> Result<()> {
        let all: Vec<SegmentName> = span.segments().collect();
        let mut waiting = &all[..];
        let (begun, mut pause, mut told) = (Instant::now(), LOOK.0, false);
        while !waiting.is_empty() {
            let (next, behind) = waiting.split_at(waiting.len().min(AT_A_TIME));
            let missing = self.archive.missing(next).await?;
            let Some(first) = missing.first() else {
                (waiting, pause) = (behind, LOOK.0);
                continue;
            };
            let there = next.iter().take_while(|segment| *segment != first).count();
            waiting = &waiting[there..];
            let left = self.wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(self.never_came(&self.archive.missing(waiting).await?));
            }
            if !told {
                told = true;
                let what = format!("waiting until the WAL archive has {}", names(waiting));
                observer.event(&Event::Step { what });
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(LOOK.1);
        }
        Ok(())
    }

    fn never_came(&self, missing: &[SegmentName]) -> Error {
        let message = format!(
            "after {} s the WAL archive does not have {}, without which the backup cannot be restored",
            self.wait.as_secs_f64(),
            names(missing)
        );
        Error::new(ErrorKind::ObjectMissing, message).with_hint(format!(
            "does archive_command fail? pg_stat_archiver and the server's log tell; or does pgark wal receive not run? \
             --wal-wait gives it more time; {STREAM_HINT}"
        ))
    }
}

/// The first ones, and how many.
fn names(segments: &[SegmentName]) -> String {
    let first: Vec<String> = segments.iter().take(NAMED).map(SegmentName::to_string).collect();
    let first = first.join(", ");
    match segments.len() {
        n if n <= NAMED => first,
        n => format!("{n} segments: {first} …"),
    }
}

/// Says among a backup's facts that its WAL is in the archive.
pub(super) fn note(facts: &mut Map<String, Value>) {
    facts.insert(FACT.to_owned(), IN_ARCHIVE.into());
}

/// Whether a backup has the WAL that makes it consistent.
pub(super) fn brings_wal(facts: &Map<String, Value>) -> bool {
    facts.get(FACT).and_then(Value::as_str) != Some(IN_ARCHIVE)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::postgres::Lsn;

    const SIZE: u64 = 16 << 20;

    /// Gets a segment more with each look, up to a limit.
    #[derive(Debug)]
    struct Coming {
        looks: Mutex<u64>,
        first: u64,
        limit: u64,
    }

    #[async_trait]
    impl ArchivedWal for Coming {
        fn system(&self) -> u64 {
            7
        }

        async fn has_any(&self) -> Result<bool> {
            Ok(true)
        }

        async fn missing(&self, segments: &[SegmentName]) -> Result<Vec<SegmentName>> {
            let mut looks = self.looks.lock().unwrap();
            *looks = (*looks + 1).min(self.limit);
            let end = self.first + *looks;
            Ok(segments.iter().copied().filter(|s| s.number(SIZE) >= end).collect())
        }
    }

    /// What it told, and how it ended.
    async fn wait(segments: u64, limit: u64, longest: Duration) -> (Vec<Event>, Result<()>) {
        let archive = Arc::new(Coming { looks: Mutex::new(0), first: 5, limit });
        let from = FromArchive { archive, wait: longest };
        let (start, end) = (Lsn(5 * SIZE + 40), Lsn((5 + segments) * SIZE));
        let span = BackupSpan { timeline: 1, start, end, segment_bytes: SIZE, brings_wal: false };
        let told = Mutex::new(Vec::new());
        let told = Arc::new(told);
        let seen = Arc::clone(&told);
        let ended = from.wait(span, &move |event: &Event| seen.lock().unwrap().push(event.clone())).await;
        let told = told.lock().unwrap().clone();
        (told, ended)
    }

    #[tokio::test]
    async fn a_backup_waits_for_its_segments_and_no_longer_than_it_shall() {
        let (told, ended) = wait(4, 4, Duration::from_mins(5)).await;
        ended.unwrap();
        let what = "waiting until the WAL archive has 000000010000000000000006, 000000010000000000000007, 000000010000000000000008";
        assert_eq!(told, [Event::Step { what: what.to_owned() }]);
        // The end of a backup at the end of a segment does not need the next one.
        let (told, ended) = wait(1, 1, Duration::ZERO).await;
        assert!(told.is_empty() && ended.is_ok());
        let error = wait(30, 2, Duration::from_millis(500)).await.1.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ObjectMissing);
        let words = error.to_string();
        assert!(
            words.contains("after 0.5 s") && words.contains("28 segments: 000000010000000000000007, "),
            "{words}"
        );
    }
}
