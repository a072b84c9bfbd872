use jiff::Timestamp;

use super::{RetentionPolicy, Verdict};
use crate::repository::BackupSummary;

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
                Verdict::of(backup, keep.then_some(reason))
            })
            .collect();
        verdicts.reverse();
        verdicts
    }
}
