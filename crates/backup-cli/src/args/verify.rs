//! What is verified, and how.

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgark::config::{Settings, VerifyWanted};
use pgark::verify::Sample;
use pgark::{Error, ErrorKind, Result};

use super::recovery::moment;
use super::{ReadKeys, apply_jobs};

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::struct_excessive_bools, clippy::doc_markdown)]
pub(crate) struct VerifyArgs {
    /// latest, an id, or the beginning of one [default: latest]
    backup: Option<String>,
    /// Every backup of the cluster, its WAL, and all other objects
    #[arg(long, conflicts_with = "backup")]
    all: bool,
    /// Compares the stored bytes only; needs no key
    #[arg(long)]
    stored: bool,
    /// Reads the WAL of the archive that the backup needs as well
    #[arg(long)]
    wal: bool,
    /// Every backup that was made since: a time, or how long ago, "7d" or "12h" for example
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    since: Option<String>,
    /// Every backup that was not verified since: a time, or how long ago
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    not_verified_since: Option<String>,
    /// Reads some parts only, "5%" for example: of each backup at least one, others each time
    #[arg(long, value_name = "PERCENT", conflicts_with = "resume", value_parser = percent)]
    sample: Option<f64>,
    /// Chooses the sample that had this seed
    #[arg(long, value_name = "N", requires = "sample")]
    seed: Option<u64>,
    /// Goes on with a verification that was interrupted: passes over the backups that it found good
    #[arg(long)]
    resume: bool,
    /// Replaces what is damaged or missing in a copy of the repository by what another copy has
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

impl VerifyArgs {
    /// Lays them over the settings; what is verified.
    pub(crate) fn apply(&self, settings: &mut Settings) -> Result<VerifyWanted> {
        self.keys.apply(settings)?;
        apply_jobs(self.jobs, settings)?;
        let mut wanted = VerifyWanted::default();
        wanted.backup.clone_from(&self.backup);
        wanted.all = self.all;
        wanted.stored = self.stored;
        wanted.wal = self.wal;
        wanted.since = self.since.as_deref().map(ago).transpose()?;
        wanted.unverified_since = self.not_verified_since.as_deref().map(ago).transpose()?;
        wanted.sample = self.sample.map(|percent| match self.seed {
            Some(seed) => Sample::new(percent, seed),
            None => Sample::random(percent),
        });
        wanted.resume = self.resume;
        wanted.repair = self.repair;
        Ok(wanted)
    }
}

/// A moment, or how long ago.
fn ago(text: &str) -> Result<Timestamp> {
    let Ok(span) = text.parse::<jiff::Span>() else { return moment(text, None) };
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let then = now
        .checked_sub(span.abs())
        .map_err(|e| Error::new(ErrorKind::Usage, format!("{text:?} is too long ago")).caused_by(e))?;
    Ok(then.timestamp())
}

/// `5%`
fn percent(text: &str) -> std::result::Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| "write a percentage, 5%")?;
    if number > 0.0 && number <= 100.0 { Ok(number) } else { Err("it is above 0% and up to 100%".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_said_in_either_way() {
        let day = Timestamp::now().duration_since(ago("1d").unwrap()).as_hours();
        assert!((23..=25).contains(&day), "{day}");
        assert_eq!(ago("2026-11-21T14:30:00Z").ok(), "2026-11-21T14:30:00Z".parse().ok());
        assert!(ago("yesterday").is_err());
        assert!(percent("5%").is_ok() && percent("0.1").is_ok());
        assert!(percent("0").is_err() && percent("101%").is_err() && percent("x").is_err());
    }
}
