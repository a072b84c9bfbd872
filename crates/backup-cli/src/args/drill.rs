//! What is drilled, and how.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgark::config::{DrillWanted, Settings};
use pgark::drill::Check;
use pgark::physical::Recovery;
use pgark::{Error, Result};

use super::recovery::Asked;
use super::{ReadKeys, apply_jobs};

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(crate) struct DrillArgs {
    /// latest, an id, or the beginning of one [default: the newest; with a target the newest from before it]
    backup: Option<String>,
    /// Only backups of this kind
    #[arg(long, value_enum, conflicts_with = "backup")]
    kind: Option<Kind>,
    /// The folder in which the drill makes its own, with room for the restored backup [default: TMPDIR or /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Runs the server in a Docker container, even where this host has its version
    #[arg(long)]
    docker: bool,
    /// The image of the container, which is used where this host has no server of the version
    /// [default: postgres:{major}]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// SQL that must return one row, true (may be given several times)
    #[arg(long, value_name = "SQL")]
    check: Vec<String>,
    /// A file of SQL: no statement may fail, and every row that one returns must be true (may be given several times)
    #[arg(long, value_name = "FILE")]
    sql_file: Vec<PathBuf>,
    /// A database that the checks run in (may be given several times) [default: those of a logical backup; postgres]
    #[arg(long, value_name = "NAME")]
    database: Vec<String>,
    /// The superuser of a physical backup's cluster [default: postgres]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A setting of the throwaway server, "shared_buffers=128MB" for example (may be given several times)
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of PostgreSQL's programs
    #[arg(long, value_name = "FOLDER")]
    pg_bin: Option<PathBuf>,
}

/// Up to where a physical backup recovers.
#[derive(Args)]
#[group(skip)]
#[command(next_help_heading = "Recovery of a physical backup")]
#[allow(clippy::doc_markdown)]
struct TargetArgs {
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
    /// Recovers along this timeline [default: the only one that leads on from the backup]
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Logical,
    Physical,
}

impl DrillArgs {
    /// Lays them over the settings; what is drilled.
    pub(crate) fn apply(&self, settings: &mut Settings) -> Result<DrillWanted> {
        self.keys.apply(settings)?;
        apply_jobs(self.jobs, settings)?;
        settings.pg_bin = self.pg_bin.clone().or(settings.pg_bin.take());
        let drill = &mut settings.drill;
        drill.work_dir = self.work_dir.clone().or(drill.work_dir.take());
        drill.image = self.image.clone().or(drill.image.take());
        drill.user = self.user.clone().or(drill.user.take());
        drill.docker |= self.docker;
        drill.settings.extend(self.set.iter().cloned());
        if !self.database.is_empty() {
            drill.databases.clone_from(&self.database);
        }
        drill.checks.extend(self.check.iter().map(Check::statement));
        for path in &self.sql_file {
            let sql = std::fs::read_to_string(path)
                .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
            drill.checks.push(Check::script(path.display().to_string(), sql));
        }
        let mut wanted = DrillWanted::default();
        wanted.backup.clone_from(&self.backup);
        wanted.kind = self.kind.map(|kind| match kind {
            Kind::Logical => pgark::logical::KIND.to_owned(),
            Kind::Physical => pgark::physical::KIND.to_owned(),
        });
        wanted.recovery = self.target.recovery()?;
        Ok(wanted)
    }
}

impl TargetArgs {
    fn recovery(&self) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        recovery.target = Asked {
            time: self.to_time.as_deref(),
            zone: self.timezone.as_deref(),
            lsn: self.to_lsn.as_deref(),
            xid: self.to_xid,
            name: self.to_name.as_deref(),
            backup_end: self.to_backup_end,
        }
        .target()?;
        recovery.timeline = self.timeline;
        Ok(recovery)
    }
}

/// `NAME=VALUE`
fn setting(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("{name:?} is not the name of a setting"));
    }
    Ok((name.to_owned(), value.to_owned()))
}
