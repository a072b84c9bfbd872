//! Rules by age.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Period, RetentionPolicy, Verdict};
use crate::physical::span;
use crate::repository::BackupSummary;

/// Keeps what is not older than this, counted from the newest backup: where no backups are made any more, none age.
#[derive(Debug, Clone)]
pub struct Within {
    /// How old.
    pub period: Period,
    /// In which days begin.
    pub zone: TimeZone,
}

impl RetentionPolicy for Within {
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict> {
        let newest = backups.iter().map(|b| b.started).filter(|started| *started <= now).max();
        let since = newest.map(|newest| self.period.before(newest, &self.zone));
        let verdict = |backup: &BackupSummary| {
            let keep = since.is_none_or(|since| backup.started >= since);
            Verdict::of(backup, keep.then(|| format!("within {} of the newest", self.period)))
        };
        backups.iter().map(verdict).collect()
    }
}

/// Keeps what is needed to reach any moment of the last time, counted from now: the newest backup that ended before it,
/// and all that follow. With the WAL in between that is any moment; of logical backups, the states that they hold.
#[derive(Debug, Clone)]
pub struct RecoveryWindow {
    /// How long.
    pub period: Period,
    /// In which days begin.
    pub zone: TimeZone,
}

/// When a backup can be restored to the earliest: a physical one is consistent at its end.
pub(super) fn reaches_from(backup: &BackupSummary) -> Timestamp {
    span(backup).map_or(backup.started, |span| span.ended)
}

impl RecoveryWindow {
    /// The time of the backup that begins the window; nothing where all are within.
    pub(super) fn base<'a>(
        &self,
        backups: impl Iterator<Item = &'a BackupSummary>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let since = self.period.before(now, &self.zone);
        backups.map(reaches_from).filter(|reached| *reached <= since).max()
    }
}

impl RetentionPolicy for RecoveryWindow {
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict> {
        let base = self.base(backups.iter(), now);
        let verdict = |backup: &BackupSummary| {
            let reached = reaches_from(backup);
            let reason = match base {
                Some(base) if reached < base => None,
                Some(base) if reached == base => {
                    Some(format!("the recovery window of {} begins with it", self.period))
                }
                _ => Some(format!("in the recovery window of {}", self.period)),
            };
            Verdict::of(backup, reason)
        };
        backups.iter().map(verdict).collect()
    }
}
