//! Which backups stay.

use std::time::Duration;

use clap::Args;
use pgark::config::RetentionSettings;
use pgark::retention::Period;
use pgark::{Error, Result};

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(crate) struct PruneArgs {
    /// Does it. Without it nothing is changed
    #[arg(long)]
    pub(crate) apply: bool,
    #[command(flatten)]
    rules: RuleArgs,
    /// Zone in which hours, days, weeks, months and years begin, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Refuses to remove more than this share of the backups at once, in percent [default: 50]
    #[arg(long, value_name = "PERCENT")]
    max_share: Option<u8>,
    /// Removes them although they are more
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Seconds between the marks of what goes and the second look, after which it is deleted [default: 60]
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u32>,
}

/// Rules. Where any is given, those of the configuration do not count.
#[derive(Args)]
#[group(multiple = true)]
struct RuleArgs {
    /// Keeps the newest backups
    #[arg(long, value_name = "N", value_parser = count)]
    keep_last: Option<usize>,
    /// Keeps the newest of each of the last hours that have one
    #[arg(long, value_name = "N", value_parser = count)]
    keep_hourly: Option<usize>,
    /// Keeps the newest of each of the last days that have one
    #[arg(long, value_name = "N", value_parser = count)]
    keep_daily: Option<usize>,
    /// Keeps the newest of each of the last weeks (from Monday on) that have one
    #[arg(long, value_name = "N", value_parser = count)]
    keep_weekly: Option<usize>,
    /// Keeps the newest of each of the last months that have one
    #[arg(long, value_name = "N", value_parser = count)]
    keep_monthly: Option<usize>,
    /// Keeps the newest of each of the last years that have one
    #[arg(long, value_name = "N", value_parser = count)]
    keep_yearly: Option<usize>,
    /// Keeps what is not older than the newest by more than this: 36h, 30d, 12w, 6mo, 1y
    #[arg(long, value_name = "TIME", value_parser = period)]
    keep_within: Option<Period>,
    /// Keeps what is needed to reach any moment of the last time: 7d, 4w
    #[arg(long, value_name = "TIME", value_parser = period)]
    recovery_window: Option<Period>,
    /// Keeps so many, whatever else is said
    #[arg(long, value_name = "N", value_parser = count)]
    minimum: Option<usize>,
}

#[derive(Args)]
pub(crate) struct PinArgs {
    /// latest, an id, or the beginning of one
    pub(crate) backup: String,
    /// forever, a date (2027-01-31), a time (2027-01-31T12:00:00Z), or how long (90d)
    #[arg(long = "pin-until", alias = "until", value_name = "TIME", default_value = "forever")]
    pub(crate) until: String,
}

#[derive(Args)]
pub(crate) struct UnpinArgs {
    /// latest, an id, or the beginning of one
    pub(crate) backup: String,
}

impl PruneArgs {
    /// Lays the arguments over the settings.
    pub(crate) fn apply(&self, settings: &mut RetentionSettings) -> Result<()> {
        let RuleArgs {
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            keep_within,
            recovery_window,
            minimum,
        } = self.rules;
        let rules = &mut settings.rules;
        let counts = [keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly];
        if counts.iter().any(Option::is_some) || keep_within.is_some() || recovery_window.is_some() {
            [rules.last, rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly] = counts;
            (rules.within, rules.recovery_window) = (keep_within, recovery_window);
        }
        rules.minimum = minimum.or(rules.minimum);
        if let Some(zone) = &self.time_zone {
            settings.set_zone(zone)?;
        }
        if let Some(share) = self.max_share {
            settings.set_max_share(share)?;
        }
        if let Some(wait) = self.wait {
            settings.wait = Duration::from_secs(wait.into());
        }
        Ok(())
    }
}

fn count(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("a rule keeps at least 1; leave it out instead".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("write a number".to_owned()),
    }
}

fn period(text: &str) -> std::result::Result<Period, String> {
    text.parse().map_err(|e: Error| format!("{e}; {}", e.hint().unwrap_or_default()))
}
