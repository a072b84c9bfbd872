//! The trait of a retention rule, and the simplest rules. Rules are pure: records and the time go in,
//! verdicts come out, and nothing is deleted here.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::repository::{BackupId, BackupSummary};

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

/// Decides which backups to keep.
///
/// # Contract
/// - Pure: the same records and the same `now` give the same verdicts; it reads no clock and no store.
/// - One verdict for each record, in the records' order.
/// - A verdict to remove is no more than a rule's opinion: united rules keep what any of them keeps, and
///   whoever deletes adds what the kept backups need.
pub trait RetentionPolicy: Send + Sync {
    /// Gives the verdicts. `backups` are the committed backups of one cluster, oldest first.
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict>;
}

/// Keeps the newest backups. One that is not [complete](BackupSummary::is_complete) does not count as one of them; it is
/// kept until a complete one follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepLast(
    /// How many.
    pub usize,
);

impl RetentionPolicy for KeepLast {
    fn decide(&self, backups: &[BackupSummary], _: Timestamp) -> Vec<Verdict> {
        // How many complete ones follow.
        let mut newer = 0;
        let mut verdicts: Vec<Verdict> = backups
            .iter()
            .rev()
            .map(|backup| {
                let complete = backup.is_complete();
                let (keep, reason) = if complete {
                    (newer < self.0, format!("one of the last {}", self.0))
                } else {
                    (newer == 0, "no complete one follows it".to_owned())
                };
                newer += usize::from(complete);
                Verdict { id: backup.id.clone(), keep, reasons: keep.then_some(reason).into_iter().collect() }
            })
            .collect();
        verdicts.reverse();
        verdicts
    }
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
