//! Rules by marks of backups.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{RetentionPolicy, Verdict};
use crate::repository::{BackupId, BackupSummary};

/// Keeps what is pinned: until then, or for ever.
#[derive(Debug, Clone, Default)]
pub struct Pinned(
    /// The pins.
    pub BTreeMap<BackupId, Option<Timestamp>>,
);

impl RetentionPolicy for Pinned {
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict> {
        let reason = |backup: &BackupSummary| match self.0.get(&backup.id) {
            Some(None) => Some("pinned".to_owned()),
            Some(Some(until)) if now < *until => Some(format!("pinned until {until:.0}")),
            _ => None,
        };
        backups.iter().map(|backup| Verdict::of(backup, reason(backup))).collect()
    }
}

/// Keeps the newest of those that a verification found good.
#[derive(Debug, Clone, Default)]
pub struct Verified(
    /// Those.
    pub BTreeSet<BackupId>,
);

impl RetentionPolicy for Verified {
    fn decide(&self, backups: &[BackupSummary], _: Timestamp) -> Vec<Verdict> {
        let newest = backups.iter().rfind(|backup| self.0.contains(&backup.id)).map(|backup| &backup.id);
        let reason = |backup: &BackupSummary| {
            (Some(&backup.id) == newest).then(|| "the newest verified one of its kind".to_owned())
        };
        backups.iter().map(|backup| Verdict::of(backup, reason(backup))).collect()
    }
}
