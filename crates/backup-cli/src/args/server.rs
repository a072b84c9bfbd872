//! The arguments that say what of a server's backup is restored.

use clap::Args;
use pgark::config::Settings;
use pgark::logical::ServerLoad;
use pgark::postgres::ConnInfo;

/// What of a server's backup is restored.
#[derive(Args)]
#[group(skip)]
#[command(next_help_heading = "Backups of a whole server, with --into")]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(crate) struct ServerArgs {
    /// Restores every database under its own name, with owner, settings and privileges. Those that exist must be empty,
    /// else nothing is changed. What fails is reported (exit code 46), and the rest is restored
    #[arg(long, requires = "into")]
    all_databases: bool,
    /// First restores roles, memberships and tablespaces. A role that exists keeps its attributes and its password
    #[arg(long, requires = "all_databases")]
    globals: bool,
    /// Restores roles, memberships and tablespaces, and no database
    #[arg(long, requires = "into", conflicts_with = "all_databases")]
    globals_only: bool,
    /// Restores one database of a server's backup
    #[arg(long, value_name = "NAME", requires = "into", conflicts_with_all = ["all_databases", "globals_only"])]
    database: Option<String>,
}

impl ServerArgs {
    /// Whether it is of the whole server.
    pub(crate) fn is_server(&self) -> bool {
        self.all_databases || self.globals_only
    }

    /// Which database it is of.
    pub(crate) fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// What takes the parts of a whole server.
    pub(crate) fn restorer(&self, settings: &Settings, target: ConnInfo) -> ServerLoad {
        let load = settings.server_restorer(target);
        if self.globals_only { load.globals_only() } else { load.globals(self.globals) }
    }
}
