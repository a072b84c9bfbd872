//! Logical backups: a database as SQL and rows, or all databases of a server with its roles.
//!
//! [`Dump`] takes names and definitions from what `pg_dump` writes, and rows by COPY over several sessions that share
//! one snapshot. [`Load`] gives the definitions to `pg_restore`, and the rows to COPY. [`ServerDump`] and
//! [`ServerLoad`] do that for every database of a server. [`LogicalContents`] says which part holds what.

pub mod archive;
mod contents;
mod database;
mod describe;
mod dump;
mod export;
mod fingerprint;
mod import;
mod load;
mod look;
mod moment;
mod pieces;
mod prove;
mod reference;
mod server;
mod stock;
mod tar_writer;

pub use archive::Method;
pub use contents::{
    Chunk, DatabaseContents, DatabaseFailure, ExtensionContents, LargeObjectsContents, LeftOut,
    LogicalContents, TableContents,
};
pub use database::DatabaseFacts;
pub use describe::Describe;
pub(crate) use dump::definitions_of;
pub use dump::{Dump, Preview, Selection};
pub use export::{Export, ExportFormat};
pub use fingerprint::{Fingerprint, RowHasher};
pub use import::Import;
pub(crate) use load::near;
pub use load::{
    Existing, Load, LoadOptions, OldDatabase, Prospect, TableName, drop_old_database, old_databases,
};
pub(crate) use look::{RowsLook, RowsRead};
pub use moment::SnapshotContents;
pub(crate) use prove::{Compared, Known, ProofLoad, compare};
pub use reference::Reference;
pub use server::{ServerDump, ServerLoad, ServerPreview};

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
/// Kind of the part that holds a database as SQL that `psql` takes: what `pg_dump --format=plain` writes.
pub const SQL: &str = "sql";
/// Kind of the part that holds the globals of a server as SQL.
pub const GLOBALS: &str = "globals";
