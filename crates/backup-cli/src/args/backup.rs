//! What is backed up, and how.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pgark::Result;
use pgark::config::{ClusterOptions, IncrementOf, ServerOptions, Settings, WalOf, What};
use pgark::postgres::Via;

use super::selection::SelectionArgs;
use super::{WriteKeys, apply_jobs, via};

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
    /// Keeps it whatever the retention rules say: forever, or until a date (2027-01-31), a time, or for so long (90d)
    #[arg(long, value_name = "TIME")]
    pub(crate) pin_until: Option<String>,
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
