//! `[retention]`: which backups stay.

use std::ops::Range;
use std::time::Duration;

use backup_core::event::Observer;
use backup_core::repository::ClusterName;
use backup_core::retention::{
    DEFAULT_MAX_SHARE, DEFAULT_WAIT, Period, PinAnswer, Prune, PrunePlan, Pruned, Rules, pin, unpin,
};
use backup_core::{CancellationToken, Error, ErrorKind, Result};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Settings;

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionTable {
    keep_last: Option<Spanned<u32>>,
    keep_hourly: Option<Spanned<u32>>,
    keep_daily: Option<Spanned<u32>>,
    keep_weekly: Option<Spanned<u32>>,
    keep_monthly: Option<Spanned<u32>>,
    keep_yearly: Option<Spanned<u32>>,
    keep_within: Option<Spanned<String>>,
    recovery_window: Option<Spanned<String>>,
    minimum: Option<Spanned<u32>>,
    time_zone: Option<Spanned<String>>,
    max_share: Option<Spanned<u8>>,
    wait: Option<u32>,
}

/// Which backups stay, and how the others go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionSettings {
    /// The rules.
    pub rules: Rules,
    /// The share of all backups, in percent, that may go at once.
    pub max_share: u8,
    /// How long a prune waits between its marks and its second look.
    pub wait: Duration,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self { rules: Rules::default(), max_share: DEFAULT_MAX_SHARE, wait: DEFAULT_WAIT }
    }
}

impl RetentionSettings {
    /// Sets the zone in which days begin, by its IANA name.
    pub fn set_zone(&mut self, name: &str) -> Result<()> {
        self.rules.zone = TimeZone::get(name).map_err(|e| {
            Error::new(ErrorKind::Usage, format!("there is no time zone {name:?}"))
                .with_hint(
                    "write a name as in Europe/Berlin, or UTC; other names than UTC need the package tzdata",
                )
                .caused_by(e)
        })?;
        Ok(())
    }

    /// Sets the share of all backups, in percent, that may go at once.
    pub fn set_max_share(&mut self, percent: u8) -> Result<()> {
        if !(1..=100).contains(&percent) {
            return Err(Error::new(ErrorKind::Usage, "the share is 1 to 100 percent"));
        }
        self.max_share = percent;
        Ok(())
    }
}

impl RetentionTable {
    /// Checks it; errors are placed by `at`.
    pub(super) fn settings(
        table: Spanned<Self>,
        at: &dyn Fn(Range<usize>, &Error) -> Error,
    ) -> Result<RetentionSettings> {
        let (place, table) = (table.span(), table.into_inner());
        let mut settings = RetentionSettings::default();
        let count = |value: Option<Spanned<u32>>| -> Result<Option<usize>> {
            let Some(value) = value else { return Ok(None) };
            if *value.get_ref() == 0 {
                let error = Error::new(ErrorKind::Config, "a rule keeps at least 1; leave it out instead");
                return Err(at(value.span(), &error));
            }
            Ok(usize::try_from(value.into_inner()).ok())
        };
        let rules = &mut settings.rules;
        rules.last = count(table.keep_last)?;
        rules.hourly = count(table.keep_hourly)?;
        rules.daily = count(table.keep_daily)?;
        rules.weekly = count(table.keep_weekly)?;
        rules.monthly = count(table.keep_monthly)?;
        rules.yearly = count(table.keep_yearly)?;
        rules.minimum = count(table.minimum)?;
        let period = |value: Option<Spanned<String>>| -> Result<Option<Period>> {
            value.map(|value| value.get_ref().parse().map_err(|e| at(value.span(), &e))).transpose()
        };
        rules.within = period(table.keep_within)?;
        rules.recovery_window = period(table.recovery_window)?;
        if let Some(zone) = table.time_zone {
            settings.set_zone(zone.get_ref()).map_err(|e| at(zone.span(), &e))?;
        }
        if let Some(share) = table.max_share {
            settings.set_max_share(*share.get_ref()).map_err(|e| at(share.span(), &e))?;
        }
        if let Some(seconds) = table.wait {
            settings.wait = Duration::from_secs(seconds.into());
        }
        if settings.rules.is_empty() {
            let error = Error::new(ErrorKind::Config, "no rule in [retention] says which backups to keep")
                .with_hint("add keep_last, keep_daily or another rule; a minimum alone is none");
            return Err(at(place, &error));
        }
        Ok(settings)
    }
}

/// The answer to a prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PruneAnswer {
    /// What was to be done.
    pub plan: PrunePlan,
    /// What was done; nothing where only the plan was asked for.
    pub applied: Option<Pruned>,
}

impl Settings {
    /// What is said of a cluster, or else of all; nothing where there is no table.
    pub fn retention(&self, cluster: &ClusterName) -> RetentionSettings {
        let own = self.clusters.get(cluster).and_then(|of| of.retention.as_ref());
        own.or(self.retention.as_ref()).cloned().unwrap_or_default()
    }

    /// Removes what the rules do not keep, or says what would be removed.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where there are no rules, or too much would go.
    pub async fn prune(
        &self,
        cluster: &ClusterName,
        retention: &RetentionSettings,
        how: PruneHow,
        cancel: &CancellationToken,
    ) -> Result<PruneAnswer> {
        retention.rules.policy()?;
        let repository = self.open_repository().await?;
        let mut prune = Prune::new(repository, cluster.clone(), retention.rules.clone())?
            .wait(retention.wait)
            .max_share(retention.max_share)
            .allow_more(how.allow_more);
        if let Some(observer) = how.observer {
            prune = prune.observer(observer);
        }
        if how.apply {
            let (plan, done) = prune.apply(cancel).await?;
            return Ok(PruneAnswer { plan, applied: Some(done) });
        }
        Ok(PruneAnswer { plan: prune.plan().await?, applied: None })
    }

    /// Keeps a backup whatever the rules say: until then, or for ever.
    pub async fn pin(
        &self,
        cluster: &ClusterName,
        wanted: &str,
        until: Option<Timestamp>,
    ) -> Result<PinAnswer> {
        pin(&self.open_repository().await?, cluster, wanted, until).await
    }

    /// Leaves a backup to the rules again.
    pub async fn unpin(&self, cluster: &ClusterName, wanted: &str) -> Result<PinAnswer> {
        unpin(&self.open_repository().await?, cluster, wanted).await
    }
}

/// How a prune is done.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct PruneHow {
    /// Carries the plan out.
    pub apply: bool,
    /// Lets more go at once than the settings allow.
    pub allow_more: bool,
    /// Who is told what happens.
    pub observer: Option<std::sync::Arc<dyn Observer>>,
}

/// Reads until when a pin counts: `forever`, a date (to its end, in this zone), a time, or a length of time from now.
///
/// # Errors
/// [`Usage`](ErrorKind::Usage)
pub fn until(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Option<Timestamp>> {
    if text == "forever" {
        return Ok(None);
    }
    let day = |date: Date| {
        date.tomorrow().and_then(|next| next.to_zoned(zone.clone())).map(|next| next.timestamp())
    };
    let until = if let Ok(period) = text.parse::<Period>() {
        Some(period.after(now, zone))
    } else if let Ok(time) = text.parse::<Timestamp>() {
        Some(time)
    } else {
        text.parse::<Date>().ok().and_then(|date| day(date).ok())
    };
    let hint = "write forever, 2027-01-31, 2027-01-31T12:00:00Z, or 90d";
    match until {
        Some(until) if until > now => Ok(Some(until)),
        Some(_) => Err(Error::new(ErrorKind::Usage, format!("{text:?} is over")).with_hint(hint)),
        None => Err(Error::new(ErrorKind::Usage, format!("{text:?} is no time")).with_hint(hint)),
    }
}
