//! The arguments.

mod audit;
mod backup;
mod check;
mod copy;
mod drill;
mod export;
mod load;
mod prune;
mod recover;
mod recovery;
mod restore;
mod selection;
mod server;
mod status;
mod sync;
mod verify;
mod wal;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pgark::config::{DEFAULT_PATHS, Settings};
use pgark::postgres::Via;
use pgark::repository::ClusterName;
use pgark::{Error, ErrorKind, Result};

pub(crate) use audit::AuditCommand;
pub(crate) use backup::BackupArgs;
pub(crate) use check::CheckArgs;
pub(crate) use copy::CopyArgs;
pub(crate) use drill::DrillArgs;
pub(crate) use export::{ExportArgs, ImportArgs};
pub(crate) use prune::{PinArgs, PruneArgs, UnpinArgs};
pub(crate) use recover::RecoverArgs;
pub(crate) use restore::RestoreArgs;
pub(crate) use status::StatusArgs;
pub(crate) use sync::SyncArgs;
pub(crate) use verify::VerifyArgs;
pub(crate) use wal::WalCommand;

/// Backups of PostgreSQL that can be trusted: streamed, compressed, encrypted, verified, restored.
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Parser)]
#[command(name = "pgark", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Configuration file [default: ./pgark.toml, then /etc/pgark/pgark.toml, where there is one]
    #[arg(long, global = true, env = "PGARK_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the cluster in the repository [default: the only one of the configuration, or main]
    #[arg(long, global = true, env = "PGARK_CLUSTER", value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// The repository: a folder, s3://bucket/folder, gs://bucket/folder, az://container/folder (several times: it is kept
    /// in all of them)
    #[arg(long, global = true, env = "PGARK_REPO", value_name = "URL")]
    pub(crate) repo: Vec<String>,
    /// Folder of what is kept on this host from one run to the next
    /// [default: /var/lib/pgark for root, else ~/.local/state/pgark]
    #[arg(long, global = true, env = "PGARK_STATE", value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
    /// Prints JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Says nothing unless it fails
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0 success, 2 usage, 3 configuration
  PostgreSQL: 10 no connection, 11 login refused, 12 no such database,
    13 connection lost, 14 error
  client tools: 20 missing or too old, 21 failed
  store: 30 no answer, 31 denied, 32 no such bucket, 33 wrong region,
    34 clock, 35 full, 36 input or output
  repository: 40 none there, 41 newer format, 42 no such backup,
    43 object missing, 44 exists already, 45 abandoned
  46 only part of it was done: databases of a server failed, the rest is there
  47 check or status found something that will fail, or is late
  data: 50 damaged, 51 key missing, 52 wrong key
  60 not supported, 70 internal, 130 cancelled";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a repository
    Init,
    /// Backs a database up, or all of a server
    Backup(BackupArgs),
    /// Lists the backups
    List,
    /// Shows one backup
    Show(ShowArgs),
    /// Restores a backup
    Restore(RestoreArgs),
    /// Recovers a table as it was at a time into a live database: under a new name, or the rows that are missing there
    Recover(RecoverArgs),
    /// Writes a backup as stock tools have it: a physical one for pg_verifybackup and pg_combinebackup, a logical one for
    /// pg_restore and psql, or one of its tables as CSV
    #[allow(clippy::doc_markdown)]
    Export(ExportArgs),
    /// Makes a file of pg_dump a backup: custom, directory, tar or plain format, read whole and checked
    #[allow(clippy::doc_markdown)]
    Import(ImportArgs),
    /// Shows how well clusters are protected: newest backups, what would be lost, what was proved, and what is late
    Status(StatusArgs),
    /// Looks for what would make the next backup, the archiving of WAL or a restore fail, and says what to do
    Check(CheckArgs),
    /// Reads backups through and compares every byte with its digest
    Verify(VerifyArgs),
    /// Restores a backup into a throwaway server, proves it, and measures how long that takes
    Drill(DrillArgs),
    /// Removes the backups that no retention rule keeps, and the WAL that no remaining one needs. Shows what would go,
    /// and why, until --apply says so
    Prune(PruneArgs),
    /// Keeps a backup whatever the retention rules say
    Pin(PinArgs),
    /// Leaves a backup to the retention rules again
    Unpin(UnpinArgs),
    /// Copies backups to another repository, whole and verified, with what they build on
    Copy(CopyArgs),
    /// Fills in what a copy of the repository lacks, where it is kept in several places
    Sync(SyncArgs),
    /// Archives WAL, gives it back to a server in recovery, and shows what can be reached with it
    #[command(subcommand)]
    Wal(WalCommand),
    /// Makes keys, and changes who can read a backup
    #[command(subcommand)]
    Key(KeyCommand),
    /// Shows who did what to the backups, and whether that log was changed
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Shows it all on a throwaway PostgreSQL
    Demo(DemoArgs),
    /// Prints completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// What opens backups.
#[derive(Args, Default)]
pub(crate) struct ReadKeys {
    /// File with an age identity or an SSH key (may be given several times)
    #[arg(long, short, value_name = "FILE", env = "PGARK_IDENTITY", value_delimiter = ':')]
    pub(crate) identity: Vec<PathBuf>,
    /// File whose first line is the passphrase
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ShowArgs {
    /// latest, an id, or the beginning of one
    #[arg(default_value = "latest")]
    pub(crate) backup: String,
    /// Of a logical backup, what is in it: databases, tables with rows and bytes, large objects, extensions, what was left
    /// out. Needs the key
    #[arg(long)]
    pub(crate) contents: bool,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
}

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes an identity: the file stays secret, the recipient that is printed does not
    Generate {
        /// Where the identity goes (mode 0600; never replaced)
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Prints the recipients that belong to an identity file
    Recipient {
        /// The identity file
        identity: PathBuf,
    },
    /// Changes who can read a backup: its key is sealed anew, its parts stay as they are
    Rotate {
        /// latest, an id, or the beginning of one
        #[arg(default_value = "latest")]
        backup: String,
        /// Every encrypted backup of the cluster
        #[arg(long, conflicts_with = "backup")]
        all: bool,
        /// Who can read it from now on (may be given several times)
        #[arg(long, short, value_name = "RECIPIENT")]
        recipient: Vec<String>,
        /// Seals with the passphrase in the first line of a file instead
        #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
        new_passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        keys: ReadKeys,
    },
}

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Rows of the largest table
    #[arg(long, default_value_t = 200_000)]
    pub(crate) rows: u32,
}

/// What seals backups.
#[derive(Args, Default)]
pub(crate) struct WriteKeys {
    /// Encrypts to age1… or an SSH public key (may be given several times)
    #[arg(long, short, value_name = "RECIPIENT")]
    pub(crate) recipient: Vec<String>,
    /// Encrypts with the passphrase in the first line of a file
    #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

impl WriteKeys {
    /// Lays the keys over the settings. Those of a file do not count beside them.
    pub(crate) fn apply(&self, settings: &mut Settings) {
        if !self.recipient.is_empty() {
            settings.encryption.recipients.clone_from(&self.recipient);
            settings.encryption.passphrase_file = None;
        }
        if self.passphrase_file.is_some() {
            settings.encryption.passphrase_file.clone_from(&self.passphrase_file);
            settings.encryption.recipients.clear();
        }
    }
}

impl Cli {
    /// The configuration file: as named, or the first that there is.
    pub(crate) fn config_file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists()))
    }

    /// The configuration, with the arguments laid over it.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let mut settings = match self.config_file() {
            Some(path) => Settings::load(&path)?,
            None => Settings::default(),
        };
        settings.set_places(&self.repo);
        settings.state = self.state.clone().or(settings.state);
        Ok(settings)
    }

    /// The cluster to work on.
    pub(crate) fn cluster(&self, settings: &Settings) -> Result<ClusterName> {
        let named = self.cluster.as_deref().map(str::parse).transpose()?;
        settings.cluster(named.as_ref())
    }
}

impl ReadKeys {
    /// Lays the keys over the settings. Those of a file do not count beside them.
    pub(crate) fn apply(&self, settings: &mut Settings) -> Result<()> {
        self.identity.iter().chain(&self.passphrase_file).try_for_each(|path| refuse_secret(path))?;
        if !self.identity.is_empty() || self.passphrase_file.is_some() {
            settings.encryption.identity_files.clone_from(&self.identity);
            settings.encryption.passphrase_file.clone_from(&self.passphrase_file);
        }
        Ok(())
    }
}

/// Refuses an identity where the file is asked for that it is in: errors repeat names of files.
pub(crate) fn refuse_secret(path: &Path) -> Result<()> {
    if path.to_string_lossy().trim_start().to_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(Error::new(ErrorKind::Usage, "this is a secret key, not the name of a file").with_hint(
            "write it into a file (mode 0600) and name that; the key stands in the shell's history now",
        ));
    }
    Ok(())
}

/// Lays the number of jobs over the settings.
pub(crate) fn apply_jobs(jobs: Option<usize>, settings: &mut Settings) -> Result<()> {
    settings.jobs = jobs.or(settings.jobs);
    if settings.jobs == Some(0) {
        return Err(Error::new(ErrorKind::Usage, "there must be at least one job")
            .with_hint("leave --jobs out to use all cores"));
    }
    Ok(())
}

/// What leads somewhere else.
fn via(text: &str) -> std::result::Result<Via, String> {
    text.parse().map_err(|e: Error| format!("{e}; {}", e.hint().unwrap_or_default()))
}

/// `OID=FOLDER`
fn tablespace(text: &str) -> std::result::Result<(u32, PathBuf), String> {
    let (oid, folder) = text.split_once('=').ok_or("write OID=FOLDER")?;
    let oid = oid.parse().map_err(|_| format!("{oid:?} is not the OID of a tablespace"))?;
    if folder.is_empty() { Err("the folder is missing".to_owned()) } else { Ok((oid, folder.into())) }
}
