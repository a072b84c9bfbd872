//! What kept backups need of a WAL archive.

use jiff::{SignedDuration, Timestamp};

use super::RecoveryWindow;
use super::window::reaches_from;
use crate::physical::span;
use crate::postgres::Lsn;
use crate::repository::{BackupId, BackupSummary};
use crate::wal::{BackupSpan, SegmentName};

/// How far clocks of two hosts may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_hours(1);

/// What is needed of the WAL of one PostgreSQL cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalNeeds {
    /// From here on everything is, on every timeline; nothing where all of it is.
    pub from: Option<Lsn>,
    /// Of what lies before it, what backups need that left their WAL to the archive.
    pub apart: Vec<BackupSpan>,
    /// Why it is needed from there on.
    pub why: String,
}

impl WalNeeds {
    /// All of it is needed.
    pub(super) fn everything(why: impl Into<String>) -> Self {
        Self { from: None, apart: Vec::new(), why: why.into() }
    }

    /// What `kept` backups need of the WAL of one system.
    ///
    /// Positions grow along every timeline that leads on from a backup. So what ends before the first position that is
    /// needed is needed by none, on whatever timeline it lies.
    /// `all` are all backups that there were, `running` the times at which physical backups began that are at work; `current`
    /// says whether the cluster is this system now. A backup that is made of it later needs all that comes.
    pub fn of(
        system: u64,
        kept: &[&BackupSummary],
        all: &[BackupSummary],
        running: &[&BackupId],
        window: Option<&RecoveryWindow>,
        current: bool,
        now: Timestamp,
    ) -> Self {
        // The window of all systems: after `pg_upgrade` it may begin with a backup of the one before.
        let good = kept.iter().copied().filter(|backup| span(backup).is_some() && backup.started <= now);
        let base = window.and_then(|window| window.base(good, now));
        let of_it = |backup: &BackupSummary| span(backup).filter(|span| span.system == system);
        let mut from: Option<(Lsn, &BackupId)> = None;
        let mut apart = Vec::new();
        for backup in kept {
            let Some(span) = of_it(backup) else { continue };
            if base.is_some_and(|base| reaches_from(backup) < base) {
                if !span.wal.brings_wal {
                    apart.push(span.wal);
                }
                continue;
            }
            if from.is_none_or(|(lsn, _)| span.wal.start < lsn) {
                from = Some((span.wal.start, &backup.id));
            }
        }
        let known = all.iter().filter_map(|backup| of_it(backup).map(|span| (backup, span.wal)));
        let known: Vec<(&BackupSummary, BackupSpan)> = known.collect();
        if known.is_empty() && current {
            return Self::everything("no physical backup of this cluster is here yet");
        }
        let mut why = match from {
            Some((_, id)) if base.is_some() => format!("the recovery window begins with {id}"),
            Some((_, id)) => format!("{id} is the oldest backup that stays"),
            None => "no backup that stays can be brought further with it".to_owned(),
        };
        let mut from = from.map(|(lsn, _)| lsn);
        if from.is_none() && current {
            return Self::everything("no physical backup of this cluster stays");
        }
        for run in running {
            // It begins behind whatever had ended before it.
            let before = known
                .iter()
                .filter(|(b, _)| b.finished.saturating_add(CLOCKS).is_ok_and(|t| t <= run.started()));
            match before.map(|(_, span)| span.start).max() {
                Some(start) if from.is_none_or(|from| start < from) => {
                    from = Some(start);
                    why = format!("{run} is at work and may need it");
                }
                Some(_) => {}
                None => return Self::everything(format!("{run} is at work and may need it")),
            }
        }
        Self { from: Some(from.unwrap_or(Lsn(u64::MAX))), apart, why }
    }

    /// Whether nothing is needed at all.
    pub(super) fn is_nothing(&self) -> bool {
        self.from == Some(Lsn(u64::MAX)) && self.apart.is_empty()
    }

    /// Whether something of a segment is needed.
    pub fn needs(&self, segment: SegmentName, segment_bytes: u64) -> bool {
        let Some(from) = self.from else { return true };
        let start = segment.start(segment_bytes).0;
        let end = start.saturating_add(segment_bytes);
        let of = |apart: &BackupSpan| {
            apart.timeline == segment.timeline && start <= apart.end.0 && apart.start.0 < end
        };
        end > from.0 || self.apart.iter().any(of)
    }
}
