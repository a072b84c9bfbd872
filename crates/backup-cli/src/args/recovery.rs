//! The arguments that say up to where a restored server recovers: of `restore`, `recover` and `drill`.

use clap::{ArgGroup, Args, ValueEnum};
use pgark::physical::{Recovery, Target, TargetAction};
use pgark::postgres::Lsn;
use pgark::{Error, ErrorKind, Result};

/// Up to where a physical backup recovers.
#[derive(Args)]
#[group(skip)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(super) struct TargetArgs {
    /// Recovers to a moment, by the server's clock: "2026-11-21 14:30:00+01", or without a zone and with --timezone
    #[arg(long, value_name = "TIME", group = "target")]
    to_time: Option<String>,
    /// Time zone of --to-time, Europe/Berlin for example
    #[arg(long, value_name = "ZONE", requires = "to_time")]
    timezone: Option<String>,
    /// Recovers to a position in the WAL
    #[arg(long, value_name = "LSN", group = "target")]
    to_lsn: Option<String>,
    /// Recovers to the commit of a transaction
    #[arg(long, value_name = "XID", group = "target")]
    to_xid: Option<u64>,
    /// Recovers to a point that pg_create_restore_point made
    #[arg(long, value_name = "NAME", group = "target")]
    to_name: Option<String>,
    /// Recovers to the end of the backup and no further [default: as far as there is WAL]
    #[arg(long, group = "target")]
    to_backup_end: bool,
    /// Stops just before the target, and not behind it
    #[arg(long, requires = "target")]
    exclusive: bool,
    /// Recovers along this timeline [default: the only one that leads on from the backup]
    #[arg(long, value_name = "N", group = "along")]
    timeline: Option<u32>,
}

/// Up to where a restored cluster recovers, and what it does then.
#[derive(Args)]
#[group(skip)]
#[command(next_help_heading = "Recovery, with --target-dir")]
#[command(group = ArgGroup::new("target").requires("target_dir").conflicts_with("into"))]
#[command(group = ArgGroup::new("along").requires("target_dir").conflicts_with("into"))]
#[allow(clippy::doc_markdown)]
pub(crate) struct RecoveryArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// What the server does at its target
    #[arg(long, value_enum, default_value_t, requires = "target")]
    action: Action,
    /// Makes it a standby of the server that a connection string names; without one it only follows the archive
    #[arg(long, value_name = "CONNECTION", requires = "target_dir", conflicts_with = "target", num_args = 0..=1, default_missing_value = "")]
    standby: Option<String>,
    /// Leaves it to archive and replicate as its source does: only where it takes its source's place
    #[arg(long, requires = "target_dir")]
    keep_archiving: bool,
    /// Fetches WAL with another command than pgark wal fetch
    #[arg(long, value_name = "COMMAND", requires = "target_dir")]
    pub(crate) restore_command: Option<String>,
    /// Starts the server, and waits until it has recovered
    #[arg(long, requires = "target_dir")]
    pub(crate) start: bool,
}

#[allow(clippy::doc_markdown)]
#[derive(Clone, Copy, Default, ValueEnum)]
enum Action {
    /// Takes writes, on a timeline of its own
    #[default]
    Promote,
    /// Waits for pg_wal_replay_resume()
    Pause,
    /// Stops
    Shutdown,
}

impl RecoveryArgs {
    /// What they ask for.
    pub(crate) fn recovery(&self) -> Result<Recovery> {
        let mut recovery = self.target.recovery()?;
        recovery.action = match self.action {
            Action::Promote => TargetAction::Promote,
            Action::Pause => TargetAction::Pause,
            Action::Shutdown => TargetAction::Shutdown,
        };
        recovery.standby.clone_from(&self.standby);
        recovery.keep_archiving = self.keep_archiving;
        recovery.restore_command.clone_from(&self.restore_command);
        Ok(recovery)
    }
}

impl TargetArgs {
    /// What they ask for: as far as there is WAL where no target is named.
    pub(super) fn recovery(&self) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        // They exclude each other.
        recovery.target = if let Some(time) = &self.to_time {
            Target::Time(moment(time, self.timezone.as_deref())?)
        } else if let Some(lsn) = &self.to_lsn {
            Target::Lsn(lsn.parse::<Lsn>()?)
        } else if let Some(xid) = self.to_xid {
            Target::Xid(xid)
        } else if let Some(name) = &self.to_name {
            Target::Name(name.clone())
        } else if self.to_backup_end {
            Target::Immediate
        } else {
            Target::Latest
        };
        recovery.exclusive = self.exclusive;
        recovery.timeline = self.timeline;
        Ok(recovery)
    }
}

/// A moment: with an offset or Z in the text, or in a zone.
pub(super) fn moment(text: &str, zone: Option<&str>) -> Result<jiff::Timestamp> {
    let wrong = |why: String| {
        Error::new(ErrorKind::Usage, why).with_hint(
            "write it as 2026-11-21T14:30:00+01:00, or without an offset and with --timezone Europe/Berlin",
        )
    };
    let text = text.trim();
    // PostgreSQL writes an offset of whole hours without minutes.
    let end = text.len().checked_sub(3).and_then(|at| text.get(at..)).unwrap_or_default();
    let short = end.starts_with(['+', '-']) && text.contains(':');
    let whole = if short { format!("{text}:00") } else { text.to_owned() };
    if let Ok(time) = whole.parse::<jiff::Timestamp>() {
        return match zone {
            None => Ok(time),
            Some(_) => Err(wrong(format!("{text:?} has an offset, and a time zone is given as well"))),
        };
    }
    let civil: jiff::civil::DateTime =
        text.parse().map_err(|_| wrong(format!("{text:?} is not a moment that can be understood")))?;
    let zone = zone.ok_or_else(|| wrong(format!("{text:?} does not say in which time zone it is")))?;
    let zoned = jiff::tz::TimeZone::get(zone)
        .map_err(|_| wrong(format!("{zone:?} is not a time zone")))?
        .to_ambiguous_zoned(civil)
        .unambiguous()
        .map_err(|_| wrong(format!("{text:?} is not there, or twice, in {zone}: the clock was changed")))?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn a_moment_has_a_zone() {
        let expected = "2026-11-21T13:30:00Z".parse().ok();
        for text in ["2026-11-21T14:30:00+01:00", "2026-11-21 14:30:00+01", "2026-11-21 13:30:00Z"] {
            assert_eq!(moment(text, None).ok(), expected, "{text}");
        }
        assert_eq!(moment("2026-11-21 14:30:00", Some("Europe/Berlin")).ok(), expected);
        for (text, zone) in [
            ("2026-11-21 14:30:00", None),
            ("2026-11-21 14:30:00+01", Some("Europe/Berlin")),
            ("2026-10-25 02:30:00", Some("Europe/Berlin")),
            ("2026-03-29 02:30:00", Some("Europe/Berlin")),
            ("half past two", Some("Europe/Berlin")),
            ("2026-11-21 14:30:00", Some("Mars")),
            ("é00", None),
        ] {
            assert!(moment(text, zone).is_err(), "{text} {zone:?}");
        }
    }
}
