//! What of a database is backed up.

use clap::Args;
use pgark::logical::Selection;

#[derive(Args)]
// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(next_help_heading = "What of a database, with the patterns of pg_dump")]
#[group(id = "selection", multiple = true, conflicts_with = "files")]
pub(crate) struct SelectionArgs {
    /// Only schemas of this pattern (may be given several times)
    #[arg(long, value_name = "PATTERN")]
    schema: Vec<String>,
    /// No schemas of this pattern (may be given several times)
    #[arg(long, value_name = "PATTERN")]
    exclude_schema: Vec<String>,
    /// Only tables of this pattern (may be given several times)
    #[arg(long, value_name = "PATTERN")]
    table: Vec<String>,
    /// No tables of this pattern (may be given several times)
    #[arg(long, value_name = "PATTERN")]
    exclude_table: Vec<String>,
    /// Tables of this pattern without their rows (may be given several times)
    #[arg(long, value_name = "PATTERN")]
    exclude_table_data: Vec<String>,
    /// Definitions only, no rows
    #[arg(long, conflicts_with = "data_only")]
    schema_only: bool,
    /// Rows only, no definitions
    #[arg(long)]
    data_only: bool,
    /// Only this section (may be given several times)
    #[arg(long, value_name = "SECTION", value_parser = ["pre-data", "data", "post-data"])]
    section: Vec<String>,
    /// Rows of partitions go in through the root of the partitions when they are restored
    #[arg(long)]
    load_via_partition_root: bool,
    /// No large objects
    #[arg(long)]
    no_large_objects: bool,
}

impl SelectionArgs {
    pub(crate) fn selection(&self) -> Selection {
        let mut selection = Selection::default();
        selection.schemas.clone_from(&self.schema);
        selection.exclude_schemas.clone_from(&self.exclude_schema);
        selection.tables.clone_from(&self.table);
        selection.exclude_tables.clone_from(&self.exclude_table);
        selection.exclude_table_data.clone_from(&self.exclude_table_data);
        selection.schema_only = self.schema_only;
        selection.data_only = self.data_only;
        selection.sections.clone_from(&self.section);
        selection.load_via_partition_root = self.load_via_partition_root;
        selection.no_large_objects = self.no_large_objects;
        selection
    }
}
