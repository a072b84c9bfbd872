//! How a logical backup is restored.

use clap::Args;
use pgark::logical::{Existing, LoadOptions, TableName};
use pgark::{Error, ErrorKind, Result};

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(next_help_heading = "What of a logical backup, and how")]
pub(crate) struct LoadArgs {
    /// Only this table, with all that belongs to it: indexes, constraints, triggers, sequences, comments, privileges; and
    /// what it needs and the database does not have, types for example. A foreign key only comes where the other table
    /// does or is there (may be given several times)
    #[arg(long, value_name = "SCHEMA.TABLE", requires = "into")]
    table: Vec<TableName>,
    /// Only this schema, and what it needs (may be given several times)
    #[arg(long, value_name = "NAME", requires = "into")]
    schema: Vec<String>,
    /// A schema gets another name. In a database with other things in it only what is renamed is restored where nothing
    /// else is named; the definitions are made in a scratch database first (may be given several times)
    #[arg(long, value_name = "OLD=NEW", requires = "into", conflicts_with = "data_only", value_parser = names)]
    rename_schema: Vec<(String, String)>,
    /// Definitions only, no rows
    #[arg(long, requires = "into", conflicts_with = "data_only")]
    schema_only: bool,
    /// Rows only, into tables that are there: all or none. Tables are loaded in the order that their foreign keys need
    #[arg(long, requires = "into")]
    data_only: bool,
    /// Rows only, and neither triggers nor foreign keys act on them: needs a superuser, or the right to set
    /// session_replication_role
    #[arg(long, requires = "data_only")]
    disable_triggers: bool,
    /// Everything belongs to the user who restores
    #[arg(long, requires = "into")]
    no_owner: bool,
    /// Leaves privileges out
    #[arg(long, requires = "into")]
    no_acl: bool,
    /// SET ROLE first
    #[arg(long, value_name = "NAME", requires = "into")]
    role: Option<String>,
    /// Leaves tablespaces out: everything goes into the database's own
    #[arg(long, requires = "into")]
    no_tablespaces: bool,
    /// Neither loads the statistics that the backup has, nor gathers any
    #[arg(long, requires = "into")]
    no_analyze: bool,
    /// Builds the indexes anew afterwards
    #[arg(long, requires = "into")]
    reindex: bool,
    /// Goes on after errors of the server, and tells all of them at the end; it has failed then
    #[arg(long, requires = "into", conflicts_with_all = ["swap", "replace"])]
    keep_going: bool,
    /// Restores beside the database that is there, counts the rows, and then takes its name, settings, owner, privileges.
    /// The old one is kept as NAME_pgark_old_TIME, and is as it was when anything fails
    #[arg(long, requires = "into")]
    swap: bool,
    /// Drops the old database when the swap succeeded. Without --swap nothing is restored: the databases are dropped that
    /// earlier swaps kept
    #[arg(long, requires = "into", conflicts_with_all = ["replace", "clean"])]
    drop_old: bool,
    /// The same as --swap --drop-old
    #[arg(long, requires = "into", conflicts_with = "swap")]
    replace: bool,
    /// Drops the objects of the backup that are there, and makes them anew; what is not in the backup stays. A backup of
    /// the database is made first, and brings it back when the restore fails
    #[arg(long, requires = "into", conflicts_with_all = ["swap", "replace", "data_only", "rename_schema", "keep_going"])]
    clean: bool,
    /// Makes no backup of the database first
    #[arg(long, requires = "clean")]
    no_safety_backup: bool,
    /// Ends sessions that are in the way of the swap; new ones wait until it is done
    #[arg(long, requires = "into")]
    end_sessions: bool,
    /// Does not ask before a database is changed that exists
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Command for sh that runs first; when it fails, nothing is restored. It sees PGARK_BACKUP and PGARK_DATABASE
    /// or PGARK_TARGET_DIR
    #[arg(long, value_name = "COMMAND")]
    pub(crate) before: Option<String>,
    /// Command for sh that runs last, whatever came of it: PGARK_RESULT is ok or failed
    #[arg(long, value_name = "COMMAND")]
    pub(crate) after: Option<String>,
}

impl LoadArgs {
    /// As options of the library.
    pub(crate) fn options(&self) -> LoadOptions {
        let mut options = LoadOptions::default();
        options.tables.clone_from(&self.table);
        options.schemas.clone_from(&self.schema);
        options.rename_schemas.clone_from(&self.rename_schema);
        options.schema_only = self.schema_only;
        options.data_only = self.data_only;
        options.disable_triggers = self.disable_triggers;
        options.no_owner = self.no_owner;
        options.no_acl = self.no_acl;
        options.role.clone_from(&self.role);
        options.no_tablespaces = self.no_tablespaces;
        options.no_analyze = self.no_analyze;
        options.reindex = self.reindex;
        options.keep_going = self.keep_going;
        options
    }

    /// What is done where the database exists.
    pub(crate) fn existing(&self) -> Result<Existing> {
        if self.clean {
            return Ok(Existing::Clean);
        }
        if self.end_sessions && !self.swap && !self.replace {
            return Err(Error::new(ErrorKind::Usage, "sessions are only in the way of a swap")
                .with_hint("leave --end-sessions out, or add --swap or --replace"));
        }
        Ok(if self.swap || self.replace {
            Existing::Swap { drop_old: self.drop_old || self.replace }
        } else {
            Existing::Refuse
        })
    }

    /// Whether nothing is restored, and databases that swaps kept are dropped.
    pub(crate) fn only_drops_old(&self) -> bool {
        self.drop_old && !self.swap
    }

    /// Whether the database is backed up first.
    pub(crate) fn safety_backup(&self) -> bool {
        self.clean && !self.no_safety_backup
    }

    /// Whether sessions in the way are ended.
    pub(crate) fn end_sessions(&self) -> bool {
        self.end_sessions
    }
}

/// `OLD=NEW`
fn names(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err("write OLD=NEW".to_owned()),
    }
}
