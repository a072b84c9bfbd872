//! How a restored server recovers: up to where, along which timeline, and what it does then.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::archived;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;

/// Up to where a restored server recovers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// As far as there is WAL.
    #[default]
    Latest,
    /// To the end of the backup, and no further.
    Immediate,
    /// To the last commit at or before a moment, by the server's clock.
    Time(Timestamp),
    /// To a position.
    Lsn(Lsn),
    /// To the commit of a transaction.
    Xid(u64),
    /// To a point that `pg_create_restore_point` made.
    Name(String),
}

/// What a server does when it has reached its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetAction {
    /// It begins a timeline of its own and takes writes.
    #[default]
    Promote,
    /// It waits, so that one can look; `pg_wal_replay_resume()` lets it go on.
    Pause,
    /// It stops.
    Shutdown,
}

/// How a restored server recovers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Up to where.
    pub target: Target,
    /// Stops before the target, and not behind it: a time, a position, a transaction.
    pub exclusive: bool,
    /// Along which timeline; that of the backup by default.
    pub timeline: Option<u32>,
    /// What it does then.
    pub action: TargetAction,
    /// Where it finds WAL that is not in the backup: `restore_command`. Without one it has that of the backup, and a
    /// backup that has none is refused.
    pub restore_command: Option<String>,
    /// Makes it a standby, which goes on with what its primary sends: `primary_conninfo`; empty, it only has the
    /// archive.
    pub standby: Option<String>,
    /// Leaves it to archive and to replicate as its source did. Otherwise it does not touch what belongs to its source.
    pub keep_archiving: bool,
}

impl Recovery {
    /// The file that tells the server to recover.
    pub(super) fn signal(&self) -> &'static str {
        if self.standby.is_some() { "standby.signal" } else { "recovery.signal" }
    }

    /// Refuses a backup whose WAL is in an archive where nothing says how the server gets it.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported)
    pub(super) fn check_wal_of(&self, facts: &Map<String, Value>) -> Result<()> {
        let has_primary = self.standby.as_ref().is_some_and(|primary| !primary.is_empty());
        if archived::brings_wal(facts) || self.restore_command.is_some() || has_primary {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "the backup has no WAL of its own, and no restore_command is given that fetches it from the archive",
        )
        .with_hint("give the recovery a restore_command, as pgark restore does: pgark wal fetch \"%f\" \"%p\""))
    }

    /// Lines for `postgresql.auto.conf`. `timeline` is that of the backup.
    pub(super) fn settings(&self, timeline: u32) -> String {
        let mut text = String::from("\n# Written by pgark.\n");
        let mut set = |name: &str, value: &str| {
            // Backslashes and quotes mean something in such a file (guc-file.l).
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            let _ = writeln!(text, "{name} = '{value}'");
        };
        if !self.keep_archiving {
            // A restored copy does not touch what belongs to its source.
            for (name, value) in [
                ("archive_mode", "off"),
                ("primary_slot_name", ""),
                ("synchronous_standby_names", ""),
                ("recovery_end_command", ""),
                ("archive_cleanup_command", ""),
            ] {
                set(name, value);
            }
        }
        if !self.keep_archiving || self.standby.is_some() {
            set("primary_conninfo", self.standby.as_deref().unwrap_or_default());
        }
        set("restore_command", self.restore_command.as_deref().unwrap_or("exit 1"));
        // The source may have set another one, and more than one would be an error: so would be one that is emptied
        // when another is set already (assign_recovery_target_name in xlogrecovery.c).
        let mut targets = self.targets();
        targets.sort_by_key(|(_, value)| value.is_some());
        for (name, value) in targets {
            set(name, &value.unwrap_or_default());
        }
        set("recovery_target_inclusive", if self.exclusive { "off" } else { "on" });
        set(
            "recovery_target_action",
            match self.action {
                TargetAction::Promote => "promote",
                TargetAction::Pause => "pause",
                TargetAction::Shutdown => "shutdown",
            },
        );
        // By number, since 'latest' may be the timeline of another copy. A standby follows its primary.
        let timeline = self.timeline.unwrap_or(timeline).to_string();
        set("recovery_target_timeline", if self.standby.is_some() { "latest" } else { &timeline });
        text
    }

    fn targets(&self) -> [(&'static str, Option<String>); 5] {
        let target = &self.target;
        let time =
            |time: Timestamp| time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string();
        [
            ("recovery_target", (*target == Target::Immediate).then(|| "immediate".to_owned())),
            ("recovery_target_lsn", if let Target::Lsn(lsn) = target { Some(lsn.to_string()) } else { None }),
            ("recovery_target_name", if let Target::Name(name) = target { Some(name.clone()) } else { None }),
            ("recovery_target_time", if let Target::Time(at) = target { Some(time(*at)) } else { None }),
            ("recovery_target_xid", if let Target::Xid(xid) = target { Some(xid.to_string()) } else { None }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_one_target_and_nothing_of_the_source() {
        let recovery = Recovery {
            target: Target::Time("2026-11-21T14:30:00.5Z".parse().unwrap()),
            restore_command: Some(r"pgark --repo 'a\b' wal fetch %f %p".to_owned()),
            ..Recovery::default()
        };
        let text = recovery.settings(3);
        for line in [
            "recovery_target_time = '2026-11-21 14:30:00.500000+00'",
            "recovery_target_lsn = ''",
            "recovery_target_timeline = '3'",
            "archive_mode = 'off'",
            r"restore_command = 'pgark --repo ''a\\b'' wal fetch %f %p'",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(Recovery::default().settings(1).contains("restore_command = 'exit 1'"));
    }
}
