//! What is looked at before something fails.

use clap::Args;
use pgark::postgres::Via;

use super::{ReadKeys, via};

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
pub(crate) struct CheckArgs {
    /// The database: "host=… dbname=…", a URI, or a name; completed as libpq does (PG…, service, ~/.pgpass)
    #[arg(long, value_name = "CONNECTION")]
    pub(crate) db: Option<String>,
    /// Connects through docker:CONTAINER, kubectl:POD or ssh:HOST, as backup does
    #[arg(long, value_name = "PLACE", value_parser = via)]
    pub(crate) via: Option<Via>,
    /// Looks at what logical backups need [default: the kinds of backups that the cluster has had]
    #[arg(long)]
    pub(crate) logical: bool,
    /// Looks at what physical backups need
    #[arg(long)]
    pub(crate) physical: bool,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
}
