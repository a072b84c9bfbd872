//! Which backups stay, and throwing the others away.
//!
//! A rule is a [`RetentionPolicy`]: records and the time go in, verdicts come out, and nothing is deleted. [`Rules`] are
//! pgark's own, united; [`decide`] adds what no rule may forget: what the kept backups build on, pins, the newest good
//! backup. [`Prune`] carries it out.

mod bucket;
mod count;
mod decide;
mod marked;
mod period;
mod pin;
mod prune;
mod rules;
mod wal;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::repository::{BackupId, BackupSummary};

pub use bucket::{Every, Newest};
pub use count::KeepLast;
pub use decide::{Decision, Known, decide};
pub use marked::{Pinned, Verified};
pub use period::Period;
pub use pin::{PinAnswer, pin, unpin};
pub use prune::{DEFAULT_MAX_SHARE, DEFAULT_WAIT, Left, Planned, Prune, PrunePlan, Pruned, Sums, WalRemoval};
pub use rules::Rules;
pub use wal::WalNeeds;
pub use window::{RecoveryWindow, Within};

/// What a rule says of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The backup.
    pub id: BackupId,
    /// Whether the rule keeps it.
    pub keep: bool,
    /// Why: one short phrase each, "one of the last 7".
    pub reasons: Vec<String>,
}

impl Verdict {
    /// Kept, where there is a reason.
    fn of(backup: &BackupSummary, reason: Option<String>) -> Self {
        Self { id: backup.id.clone(), keep: reason.is_some(), reasons: reason.into_iter().collect() }
    }
}

/// Decides which backups to keep.
///
/// # Contract
/// - Pure: the same records and the same `now` give the same verdicts; it reads no clock and no store.
/// - One verdict for each record, in the records' order.
/// - A verdict to remove is no more than a rule's opinion: united rules keep what any of them keeps, and
///   whoever deletes adds what the kept backups need.
pub trait RetentionPolicy: Send + Sync {
    /// Gives the verdicts. `backups` are committed backups of one cluster, oldest first; [`decide`] gives the good ones of
    /// one kind and one database at a time.
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict>;
}

/// Several rules: a backup is kept when any of them keeps it.
#[derive(Clone, Default)]
pub struct AnyOf(
    /// The rules.
    pub Vec<Arc<dyn RetentionPolicy>>,
);

impl RetentionPolicy for AnyOf {
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict> {
        let mut reasons: BTreeMap<BackupId, Vec<String>> = BTreeMap::new();
        for verdict in self.0.iter().flat_map(|rule| rule.decide(backups, now)).filter(|v| v.keep) {
            reasons.entry(verdict.id).or_default().extend(verdict.reasons);
        }
        backups
            .iter()
            .map(|b| {
                let found = reasons.remove(&b.id);
                Verdict { id: b.id.clone(), keep: found.is_some(), reasons: found.unwrap_or_default() }
            })
            .collect()
    }
}
