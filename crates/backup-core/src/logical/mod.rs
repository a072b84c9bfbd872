//! Logical backups: a database as SQL and rows.
//!
//! [`Dump`] takes names and definitions from what `pg_dump` writes, and rows by COPY over several sessions that share
//! one snapshot. [`Load`] gives the definitions to `pg_restore`, and the rows to COPY. [`LogicalContents`] says which
//! part holds what.

pub mod archive;
mod contents;
mod database;
mod dump;
mod fingerprint;
mod load;
mod tar_writer;

pub use contents::{
    Chunk, DatabaseContents, ExtensionContents, LargeObjectsContents, LeftOut, LogicalContents, TableContents,
};
pub use database::DatabaseFacts;
pub use dump::{Dump, Preview, Selection};
pub use fingerprint::{Fingerprint, RowHasher};
pub use load::{Existing, Load, LoadOptions, Prospect, TableName};

/// [`Dumper::kind`](crate::Dumper::kind) of logical backups.
pub const KIND: &str = "logical";
/// Kind of the part that holds an archive of `pg_dump` in custom format.
pub const ARCHIVE: &str = "pgdump";
/// Kind of the part that holds a table of contents, a `toc.dat` of the directory format.
pub const TOC: &str = "toc";
/// Kind of a part that holds rows of one table as COPY text, without a terminator.
pub const COPY: &str = "copy";
/// Kind of a part that holds the rows of small tables: a tar archive with a member `<entry>.dat` for each.
pub const PACK: &str = "pack";
/// Kind of a part that holds large objects: a tar archive with a member `blob_<oid>.dat` for each.
pub const LARGE_OBJECTS: &str = "blobs";
/// Kind of the part that holds the globals of a server as SQL.
pub const GLOBALS: &str = "globals";
