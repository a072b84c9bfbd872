//! Logical backups: a database as SQL and rows.
//!
//! [`PgDump`] streams what `pg_dump` writes, [`PgRestore`] feeds it to `pg_restore`. Both are serial; a dumper
//! that opens many parts at once fits the same traits.

mod database;
mod pg_dump;
mod pg_restore;

pub use database::DatabaseFacts;
pub use pg_dump::{PgDump, Preview};
pub use pg_restore::PgRestore;

/// [`Dumper::kind`](crate::Dumper::kind) of logical backups.
pub const KIND: &str = "logical";
/// Kind of the part that holds an archive of `pg_dump` in custom format.
pub const ARCHIVE: &str = "pgdump";
