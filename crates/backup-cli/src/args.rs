//! The arguments.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use pgark::config::{ClusterOptions, DEFAULT_PATHS, IncrementOf, ServerOptions, Settings, WalOf, What};
use pgark::logical::{ExportFormat, Method};
use pgark::postgres::Via;
use pgark::repository::ClusterName;
use pgark::{Error, ErrorKind, Result};

use crate::load_args::LoadArgs;
use crate::recovery::RecoveryArgs;
use crate::selection_args::SelectionArgs;
use crate::server::ServerArgs;

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
    /// The repository: a folder, s3://bucket/folder, gs://bucket/folder, az://container/folder
    #[arg(long, global = true, env = "PGARK_REPO", value_name = "URL")]
    pub(crate) repo: Option<String>,
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
    /// Writes a backup as stock tools have it: a physical one for pg_verifybackup and pg_combinebackup, a logical one for
    /// pg_restore and psql, or one of its tables as CSV
    #[allow(clippy::doc_markdown)]
    Export(ExportArgs),
    /// Reads backups through and compares every byte with its digest
    Verify(VerifyArgs),
    /// Archives WAL, gives it back to a server in recovery, and shows what can be reached with it
    #[command(subcommand)]
    Wal(WalCommand),
    /// Makes keys, and changes who can read a backup
    #[command(subcommand)]
    Key(KeyCommand),
    /// Shows it all on a throwaway PostgreSQL
    Demo(DemoArgs),
    /// Makes a file of pg_dump a backup: custom, directory, tar or plain format, read whole and checked
    #[allow(clippy::doc_markdown)]
    Import(ImportArgs),
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
#[command(group = clap::ArgGroup::new("files").multiple(true))]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct BackupArgs {
    /// The database: "host=… dbname=…", a URI, or a name; completed as libpq does (PG…, service, ~/.pgpass)
    #[arg(long, value_name = "CONNECTION")]
    pub(crate) db: Option<String>,
    /// Connects through docker:CONTAINER, kubectl:NAMESPACE/POD:CONTAINER or ssh:USER@HOST:PORT (only the names of the
    /// container, the pod and the host are needed), and runs the client tools there. The database is named as it is
    /// seen from there; without a host it is the one of that place
    #[arg(long, value_name = "PLACE", value_parser = via)]
    pub(crate) via: Option<Via>,
    /// Backs up every database of the server but template0 and template1, one after another, with roles, memberships,
    /// tablespaces and database settings. What fails is reported (exit code 46), and the rest is kept
    #[arg(long, conflicts_with = "files")]
    pub(crate) all_databases: bool,
    /// Leaves the passwords of roles out
    #[arg(long, requires = "all_databases")]
    pub(crate) no_role_passwords: bool,
    /// Backs up the files of the whole cluster, and the WAL that they need, over the replication protocol
    #[arg(long, group = "files")]
    pub(crate) physical: bool,
    /// The same, but stores only what differs from an earlier physical backup; a full backup where that cannot be
    #[arg(long, group = "files")]
    pub(crate) incremental: bool,
    /// The backup that the increment builds on: latest, an id, or the beginning of one
    /// [default: the newest physical one that this host has the block map of]
    #[arg(long, value_name = "BACKUP", requires = "incremental")]
    pub(crate) from: Option<String>,
    /// Has the server find out what differs, from its WAL summaries (17.11, 18.6 or later); where that cannot be,
    /// pgark compares contents
    #[arg(long, requires = "incremental")]
    pub(crate) server_summaries: bool,
    /// Limits what the server sends, in KiB a second (32 to 1048576)
    #[arg(long, value_name = "KIB", requires = "files", value_parser = clap::value_parser!(u32).range(32..=1_048_576))]
    pub(crate) max_rate: Option<u32>,
    /// Spreads the checkpoint at the beginning, which takes longer and disturbs less
    #[arg(long, requires = "files")]
    pub(crate) spread_checkpoint: bool,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    /// Where the WAL is that the files need
    #[arg(long, value_enum, default_value_t, requires = "files")]
    wal: WalIn,
    /// Seconds that the end of the backup waits at most for the WAL archive
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "wal", value_parser = clap::value_parser!(u64).range(1..=43_200))]
    wal_wait: u64,
    #[command(flatten)]
    pub(crate) write: WriteKeys,
    /// Compression: zstd:1 to zstd:19, gzip:1 to gzip:9, lz4, none [default: zstd:3]
    #[arg(long, value_name = "METHOD")]
    pub(crate) compress: Option<String>,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Words to find the backup by
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Folder of PostgreSQL's client tools; with --via, of those there
    #[arg(long, value_name = "FOLDER")]
    pub(crate) pg_bin: Option<PathBuf>,
    /// Hours after which a run that stored nothing counts as dead and is swept
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    pub(crate) grace: u32,
    /// Leaves alone what dead runs left
    #[arg(long)]
    pub(crate) no_sweep: bool,
    /// Connects, looks, and says what would be done and how much memory it can take
    #[arg(long)]
    pub(crate) dry_run: bool,
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

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(crate) struct RestoreArgs {
    /// latest, an id, or the beginning of one [default: the newest; with a target the newest from before it]
    pub(crate) backup: Option<String>,
    /// Of a logical backup, the database: "host=… dbname=…" or a URI. It is created; one that exists must be empty, unless
    /// --swap or --replace takes its place, or a part of the backup is added to it
    #[arg(long, value_name = "CONNECTION", required_unless_present = "target_dir")]
    pub(crate) into: Option<String>,
    /// Connects through docker:CONTAINER, kubectl:NAMESPACE/POD:CONTAINER or ssh:USER@HOST:PORT (only the names of the
    /// container, the pod and the host are needed), and runs the client tools there. That of the configuration does not
    /// count here: a restore may go elsewhere
    #[arg(long, value_name = "PLACE", requires = "into", value_parser = via)]
    pub(crate) via: Option<Via>,
    /// Of a physical backup, the new data directory; one that exists must be empty, or what a killed restore left: it goes
    /// on. An increment is restored with all that it builds on
    #[arg(long, value_name = "FOLDER", conflicts_with = "into")]
    pub(crate) target_dir: Option<PathBuf>,
    /// Restores over the data directory that is there, and writes only what differs: its server must be stopped, and it
    /// must be of the cluster that was backed up. What the backup does not have is removed, its WAL too; a link of
    /// pg_wal is kept, and its folder emptied. A tablespace is restored over where the directory's own link leads to it
    #[arg(long, requires = "target_dir")]
    pub(crate) delta: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Puts a tablespace elsewhere than it was (may be given several times)
    #[arg(long, value_name = "OID=FOLDER", requires = "target_dir", value_parser = tablespace)]
    pub(crate) tablespace_map: Vec<(u32, PathBuf)>,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Folder of PostgreSQL's client tools; with --via, of those there
    #[arg(long, value_name = "FOLDER")]
    pub(crate) pg_bin: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) recovery: RecoveryArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(crate) struct ExportArgs {
    /// latest, an id, or the beginning of one
    #[arg(default_value = "latest")]
    pub(crate) backup: String,
    /// Of a physical backup, the folder; one that exists must be empty, or what a killed export left: it goes on. An
    /// increment and all that it builds on become one full backup. Of a logical backup, the file or folder, which must not
    /// exist, or - for standard output
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// Exports each backup of a chain to a folder of its own, for pg_combinebackup: only with increments of the server's
    /// (--server-summaries)
    #[arg(long)]
    pub(crate) raw: bool,
    /// Puts a tablespace elsewhere than beside the folder, FOLDER.tablespace-OID (may be given several times)
    #[arg(long, value_name = "OID=FOLDER", conflicts_with = "raw", value_parser = tablespace)]
    pub(crate) tablespace_map: Vec<(u32, PathBuf)>,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    #[command(flatten)]
    pub(crate) logical: LogicalExportArgs,
}

/// Of logical backups.
#[derive(Args)]
pub(crate) struct LogicalExportArgs {
    /// Of a logical backup, what it becomes [default: directory; with --table copy]
    #[arg(long, value_enum, conflicts_with_all = ["raw", "tablespace_map"])]
    pub(crate) format: Option<FormatArg>,
    /// Of a logical backup with several databases, which one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["raw", "tablespace_map"])]
    pub(crate) database: Option<String>,
    /// Of a logical backup, the rows of this table alone, as --format csv or copy
    #[arg(long, value_name = "SCHEMA.NAME", conflicts_with_all = ["raw", "tablespace_map"])]
    pub(crate) table: Option<String>,
    /// Of a logical backup, how data are compressed: none, gzip, lz4, zstd
    /// [default: gzip for dumps of PostgreSQL 15 and earlier, else zstd]
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["raw", "tablespace_map"])]
    pub(crate) compress: Option<Method>,
    /// Folder of PostgreSQL's client tools
    #[arg(long, value_name = "FOLDER")]
    pub(crate) pg_bin: Option<PathBuf>,
}

/// What a logical backup is exported as.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// A folder for `pg_restore`, which can restore it in parallel
    Directory,
    /// A file for `pg_restore`
    Custom,
    /// SQL for psql
    Plain,
    /// One table as CSV with a header
    Csv,
    /// One table as COPY text
    Copy,
}

impl LogicalExportArgs {
    /// Whether something is asked for that only logical backups have.
    pub(crate) fn any(&self) -> bool {
        self.format.is_some() || self.database.is_some() || self.table.is_some() || self.compress.is_some()
    }

    /// The format, with the table.
    pub(crate) fn format(&self) -> Result<ExportFormat> {
        let default = if self.table.is_some() { FormatArg::Copy } else { FormatArg::Directory };
        let usage = |message: &str, hint: &str| Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
        match (self.format.unwrap_or(default), &self.table) {
            (FormatArg::Directory, None) => Ok(ExportFormat::Directory),
            (FormatArg::Custom, None) => Ok(ExportFormat::Custom),
            (FormatArg::Plain, None) => Ok(ExportFormat::Plain),
            (FormatArg::Csv, Some(table)) => Ok(ExportFormat::Csv(table.clone())),
            (FormatArg::Copy, Some(table)) => Ok(ExportFormat::Copy(table.clone())),
            (FormatArg::Csv | FormatArg::Copy, None) => {
                usage("csv and copy are formats of one table", "name it: --table SCHEMA.NAME")
            }
            (_, Some(_)) => {
                usage("one table is exported as csv or copy", "give --format csv or --format copy")
            }
        }
    }
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// latest, an id, or the beginning of one
    #[arg(default_value = "latest")]
    pub(crate) backup: String,
    /// Every backup of the cluster
    #[arg(long, conflicts_with = "backup")]
    pub(crate) all: bool,
    /// Compares the stored bytes only; needs no key
    #[arg(long)]
    pub(crate) stored: bool,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<usize>,
}

// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Subcommand)]
pub(crate) enum WalCommand {
    /// Stores a WAL file: archive_command = 'pgark wal push %p'
    Push {
        /// The file, %p
        path: PathBuf,
        /// How many files that wait are pushed at once, in the background; 0 pushes none
        #[arg(long, value_name = "N", default_value_t = 2)]
        ahead: usize,
        /// Pushes the files that wait in the folder, and not this one
        #[arg(long, hide = true)]
        background: bool,
    },
    /// Fetches a WAL file: restore_command = 'pgark wal fetch %f %p'
    Fetch {
        /// Its name, %f
        name: String,
        /// Where it goes, %p
        to: PathBuf,
        /// How many segments behind it are read ahead, in the background; 0 reads none
        #[arg(long, value_name = "N", default_value_t = 8)]
        ahead: u64,
        /// Reads the segments behind it ahead, and not this one
        #[arg(long, hide = true)]
        background: bool,
        #[command(flatten)]
        keys: ReadKeys,
    },
    /// Streams WAL from the server until it is stopped, and acknowledges it when it is stored
    Receive {
        /// The server: "host=…", a URI; completed as libpq does (PG…, service, ~/.pgpass)
        #[arg(long, value_name = "CONNECTION")]
        db: Option<String>,
        /// Name of the replication slot
        #[arg(long, value_name = "NAME", default_value = "pgark")]
        slot: String,
        /// Makes the slot where it is not there
        #[arg(long)]
        create_slot: bool,
        /// Seconds that WAL waits at most; as a synchronous standby it never waits
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=30))]
        every: u64,
    },
    /// Shows timelines, gaps, and up to where each backup can be recovered
    List,
    /// Reads the archive through, compares every byte with its digest, and looks for gaps
    Verify {
        /// Compares the stored bytes only; needs no key
        #[arg(long)]
        stored: bool,
        #[command(flatten)]
        keys: ReadKeys,
        /// How much is done at once [default: all cores]
        #[arg(long, short, value_name = "N")]
        jobs: Option<usize>,
    },
    /// Says which one of several different files of a name counts; the others are kept
    Resolve {
        /// The segment
        segment: String,
        /// Digest of the one that counts, or its beginning
        digest: String,
    },
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

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The file, or the folder of the directory format
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) write: WriteKeys,
    /// Compression: zstd:1 to zstd:19, gzip:1 to gzip:9, lz4, none [default: zstd:3]
    #[arg(long, value_name = "METHOD")]
    pub(crate) compress: Option<String>,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Words to find the backup by
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
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
        if let Some(repo) = &self.repo {
            settings.repository = Some(repo.clone());
        }
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

/// Where the WAL of a physical backup is.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum WalIn {
    /// In the backup, which restores alone
    #[default]
    Stream,
    /// In the WAL archive alone: the backup waits until all of it is there
    Archive,
}

impl BackupArgs {
    /// What is backed up.
    pub(crate) fn what(&self) -> What {
        if self.all_databases {
            let mut options = ServerOptions::default();
            options.no_role_passwords = self.no_role_passwords;
            return What::Server(options);
        }
        if !self.physical && !self.incremental {
            return What::Database(self.selection.selection());
        }
        let mut options = ClusterOptions::default();
        options.max_rate = self.max_rate;
        options.spread_checkpoint = self.spread_checkpoint;
        options.server_summaries = self.server_summaries;
        options.wal = match self.wal {
            WalIn::Stream => WalOf::Backup,
            WalIn::Archive => WalOf::Archive { wait: Duration::from_secs(self.wal_wait) },
        };
        options.increment = self.incremental.then(|| match &self.from {
            Some(backup) => IncrementOf::Backup(backup.clone()),
            None => IncrementOf::Newest,
        });
        What::Cluster(options)
    }

    /// Lays the arguments over the settings.
    pub(crate) fn apply(&self, settings: &mut Settings) -> Result<()> {
        self.write.apply(settings);
        settings.via.clone_from(&self.via);
        settings.compress = self.compress.clone().or_else(|| settings.compress.take());
        apply_jobs(self.jobs, settings)?;
        settings.pg_bin = self.pg_bin.clone().or_else(|| settings.pg_bin.take());
        Ok(())
    }
}
