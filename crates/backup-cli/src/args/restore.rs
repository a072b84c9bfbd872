//! What is restored, and to where.

use std::path::PathBuf;

use clap::Args;
use pgark::postgres::Via;

use super::load::LoadArgs;
use super::recovery::RecoveryArgs;
use super::server::ServerArgs;
use super::{ReadKeys, tablespace, via};

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
