//! The newest backup of each hour, day, week, month or year.

use jiff::civil::{Date, ISOWeekDate};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::{RetentionPolicy, Verdict};
use crate::repository::BackupSummary;

/// What time is divided into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Every {
    /// An hour of the clock. Where clocks are set back there are two of one name.
    Hour,
    /// A day of the calendar, of 23 to 25 hours.
    Day,
    /// An ISO week, from Monday on. Week 1 is that of the year's first Thursday.
    Week,
    /// A month of the calendar.
    Month,
    /// A year of the calendar.
    Year,
}

impl Every {
    /// All of them, the finest first.
    pub const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    fn name(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// What is equal for two times in one of them, and only then.
    fn bucket(self, at: &Zoned) -> (i64, i64) {
        let date: Date = at.date();
        let year = i64::from(date.year());
        match self {
            // Whole hours since 1970 as the zone counts them: zones may be off by half an hour.
            Self::Hour => {
                let offset = i64::from(at.offset().seconds());
                ((at.timestamp().as_second() + offset).div_euclid(3600), offset)
            }
            Self::Day => (year, i64::from(date.day_of_year())),
            Self::Week => {
                let week: ISOWeekDate = date.iso_week_date();
                (i64::from(week.year()), i64::from(week.week()))
            }
            Self::Month => (year, i64::from(date.month())),
            Self::Year => (year, 0),
        }
    }
}

/// Keeps the newest backup of each of the last hours, days, weeks, months or years that have one: those without a backup
/// do not count. As long as there are fewer than `count`, the oldest backup of all is kept, too, from which the next
/// ones grow.
#[derive(Debug, Clone)]
pub struct Newest {
    /// Of each of these.
    pub every: Every,
    /// How many of them.
    pub count: usize,
    /// In which days begin.
    pub zone: TimeZone,
}

impl RetentionPolicy for Newest {
    fn decide(&self, backups: &[BackupSummary], _: Timestamp) -> Vec<Verdict> {
        let (mut left, mut last) = (self.count, None);
        let name = self.every.name();
        let mut verdicts: Vec<Verdict> = backups
            .iter()
            .enumerate()
            .rev()
            .map(|(older, backup)| {
                let bucket = self.every.bucket(&backup.started.to_zoned(self.zone.clone()));
                let reason = if left == 0 {
                    None
                } else if last != Some(bucket) {
                    left -= 1;
                    last = Some(bucket);
                    Some(format!("{name}, {} of {}", self.count - left, self.count))
                } else {
                    (older == 0)
                        .then(|| format!("the oldest, while there are fewer than {} {name}", self.count))
                };
                Verdict::of(backup, reason)
            })
            .collect();
        verdicts.reverse();
        verdicts
    }
}
