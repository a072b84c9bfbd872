//! What is drilled, and how.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgark::config::{DrillWanted, Settings};
use pgark::drill::Check;
use pgark::{Error, Result};

use super::recovery::TargetArgs;
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
    /// Compares the rows of a physical backup with the counts and fingerprints of a logical one: latest, an id, or the
    /// beginning of one. Without a target it recovers up to that backup's snapshot, from the newest backup before it; with
    /// one, what changed between the two moments is reported as well
    #[arg(long, value_name = "BACKUP")]
    compare: Option<String>,
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
    keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of PostgreSQL's programs
    #[arg(long, value_name = "FOLDER")]
    pg_bin: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Recovery of a physical backup")]
    target: TargetArgs,
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
        wanted.compare.clone_from(&self.compare);
        Ok(wanted)
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
