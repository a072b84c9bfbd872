use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{AnyOf, Every, KeepLast, Newest, Period, RecoveryWindow, RetentionPolicy, Verdict, Within};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::BackupSummary;

/// The rules of a configuration, united.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rules {
    /// The newest backups.
    pub last: Option<usize>,
    /// The newest of each hour.
    pub hourly: Option<usize>,
    /// The newest of each day.
    pub daily: Option<usize>,
    /// The newest of each week.
    pub weekly: Option<usize>,
    /// The newest of each month.
    pub monthly: Option<usize>,
    /// The newest of each year.
    pub yearly: Option<usize>,
    /// What is not older than the newest by more than this.
    pub within: Option<Period>,
    /// Any moment of this last time can be reached.
    pub recovery_window: Option<Period>,
    /// So many stay whatever else is said. No rule of its own: nothing follows from it alone.
    pub minimum: Option<usize>,
    /// In which hours, days, weeks, months and years begin.
    pub zone: TimeZone,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            last: None,
            hourly: None,
            daily: None,
            weekly: None,
            monthly: None,
            yearly: None,
            within: None,
            recovery_window: None,
            minimum: None,
            zone: TimeZone::UTC,
        }
    }
}

impl Rules {
    fn tiers(&self) -> [(Every, Option<usize>); 5] {
        let counts = [self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        std::array::from_fn(|n| (Every::ALL[n], counts[n]))
    }

    /// Whether they say nothing of what is to be kept. A count of 0 says nothing.
    pub fn is_empty(&self) -> bool {
        let counts = self.tiers().into_iter().map(|(_, count)| count).chain([self.last]);
        counts.flatten().all(|count| count == 0) && self.within.is_none() && self.recovery_window.is_none()
    }

    /// The rule of the recovery window.
    pub(super) fn window(&self) -> Option<RecoveryWindow> {
        self.recovery_window.map(|period| RecoveryWindow { period, zone: self.zone.clone() })
    }

    /// The rules as one policy.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where there are none: everything would go.
    pub fn policy(&self) -> Result<AnyOf> {
        if self.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no rule says which backups to keep").with_hint(
                "give --keep-last, --keep-daily or others, or a table [retention] in pgark.toml",
            ));
        }
        Ok(self.united())
    }

    fn united(&self) -> AnyOf {
        let mut rules: Vec<Arc<dyn RetentionPolicy>> = Vec::new();
        for count in [self.last, self.minimum].into_iter().flatten() {
            rules.push(Arc::new(KeepLast(count)));
        }
        for (every, count) in self.tiers() {
            if let Some(count) = count {
                rules.push(Arc::new(Newest { every, count, zone: self.zone.clone() }));
            }
        }
        if let Some(period) = self.within {
            rules.push(Arc::new(Within { period, zone: self.zone.clone() }));
        }
        if let Some(window) = self.window() {
            rules.push(Arc::new(window));
        }
        AnyOf(rules)
    }
}

impl RetentionPolicy for Rules {
    fn decide(&self, backups: &[BackupSummary], now: Timestamp) -> Vec<Verdict> {
        self.united().decide(backups, now)
    }
}
