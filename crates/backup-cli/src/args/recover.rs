//! Which table is recovered, and what becomes of it.

use std::path::PathBuf;

use clap::Args;
use pgark::config::{RecoverOptions, RecoverWay};
use pgark::logical::TableName;
use pgark::postgres::Via;
use pgark::{Error, Result};

use super::recovery::TargetArgs;
use super::{ReadKeys, via};

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown, clippy::struct_excessive_bools)]
pub(crate) struct RecoverArgs {
    /// latest, an id, or the beginning of one [default: the newest physical one from before the target; without any, the
    /// newest logical one]
    pub(crate) backup: Option<String>,
    /// The table: SCHEMA.TABLE. With --query all tables that it reads (several times); without any, the whole cluster is
    /// restored for the query
    #[arg(long, short, value_name = "SCHEMA.TABLE", required_unless_present = "query", value_parser = table)]
    table: Vec<TableName>,
    /// The live database: "host=… dbname=…" or a URI
    #[arg(long, value_name = "CONNECTION")]
    pub(crate) into: String,
    /// Connects through docker:CONTAINER, kubectl:NAMESPACE/POD:CONTAINER or ssh:USER@HOST:PORT
    #[arg(long, value_name = "PLACE", value_parser = via)]
    pub(crate) via: Option<Via>,
    /// Name of the new table [default: TABLE_recovered_TIME]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Schema of the new table, which must be there [default: that of the table]
    #[arg(long, value_name = "SCHEMA")]
    schema: Option<String>,
    /// Recovers the result of a query, which is run where everything is as it was
    #[arg(long, value_name = "SQL", requires = "name")]
    query: Option<String>,
    /// Puts rows back into the live table that it does not have, by primary key; all of them or none. Rows that are there
    /// stay as they are
    #[arg(long, conflicts_with_all = ["name", "schema", "query"])]
    merge_missing: bool,
    /// A column of the backup has another name in the live table; OLD= leaves it out (may be given several times)
    #[arg(long, value_name = "OLD=NEW", requires = "merge_missing", value_parser = column)]
    column: Vec<(String, Option<String>)>,
    /// The database that the table was in [default: that of the live one's name]
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Takes the newest logical backup, though there are physical ones
    #[arg(long, conflicts_with = "target")]
    from_logical: bool,
    /// Fetches WAL with another command than pgark wal fetch
    #[arg(long, value_name = "COMMAND")]
    restore_command: Option<String>,
    /// Where the throwaway server is made that a physical backup is restored into; it is removed afterwards. It needs room
    /// for the catalogs, the table, and what the WAL changes [default: TMPDIR, or /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Restores the whole cluster for it, and not only what the table needs
    #[arg(long)]
    whole_cluster: bool,
    /// Does not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Says what it would do, and does nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
    /// How much is done at once [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Folder of PostgreSQL's programs: of a server of the backup's version for a physical one
    #[arg(long, value_name = "FOLDER")]
    pub(crate) pg_bin: Option<PathBuf>,
    #[command(flatten, next_help_heading = "As it was when (a physical backup)")]
    target: TargetArgs,
}

impl RecoverArgs {
    /// What they ask for.
    pub(crate) fn options(&self) -> Result<RecoverOptions> {
        let mut recovery = self.target.recovery()?;
        recovery.restore_command.clone_from(&self.restore_command);
        let mut options = RecoverOptions::default();
        options.tables.clone_from(&self.table);
        let (name, schema) = (self.name.clone(), self.schema.clone());
        options.way = match &self.query {
            Some(sql) => RecoverWay::Query { sql: sql.clone(), name: name.unwrap_or_default(), schema },
            None if self.merge_missing => RecoverWay::MergeMissing { columns: self.column.clone() },
            None => RecoverWay::Copy { name, schema },
        };
        options.backup.clone_from(&self.backup);
        options.from_logical = self.from_logical;
        options.recovery = recovery;
        options.database.clone_from(&self.database);
        options.work_dir.clone_from(&self.work_dir);
        options.whole = self.whole_cluster;
        Ok(options)
    }

    /// Whether rows go back into a live table.
    pub(crate) fn merges(&self) -> bool {
        self.merge_missing
    }
}

fn table(text: &str) -> std::result::Result<TableName, String> {
    text.parse().map_err(|e: Error| format!("{e}; {}", e.hint().unwrap_or_default()))
}

/// `OLD=NEW`, or `OLD=`
fn column(text: &str) -> std::result::Result<(String, Option<String>), String> {
    let (old, new) = text.split_once('=').ok_or("write OLD=NEW, or OLD= to leave the column out")?;
    if old.is_empty() {
        return Err("the old name is missing".to_owned());
    }
    Ok((old.to_owned(), Some(new.to_owned()).filter(|new| !new.is_empty())))
}
