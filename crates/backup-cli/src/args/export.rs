//! What stock tools get, and what is taken from them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgark::logical::{ExportFormat, Method};
use pgark::{Error, ErrorKind, Result};

use super::{ReadKeys, WriteKeys, tablespace};

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
