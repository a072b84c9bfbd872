//! Databases that swaps kept.

use serde::Serialize;

use super::swap::is_old_name;
use super::target::maintenance;
use crate::error::Result;
use crate::postgres::{ConnInfo, quote_identifier};

/// A database whose place a restore took: it has another name since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OldDatabase {
    /// Its name: that of the database it was, and the time when it was put aside.
    pub name: String,
    /// Its bytes, as the server counts them.
    pub bytes: u64,
}

/// The databases that [`Existing::Swap`](super::Existing::Swap) kept of the database that `connection` names, oldest
/// first.
///
/// # Errors
/// Those of a connection.
pub async fn old_databases(connection: &ConnInfo) -> Result<Vec<OldDatabase>> {
    let session = maintenance(connection).await?;
    let sql = "SELECT datname, pg_catalog.pg_database_size(oid) FROM pg_catalog.pg_database ORDER BY datname";
    let found = session.rows(sql).await?.into_iter().filter_map(|row| {
        let [name, bytes] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some(OldDatabase { name: name?, bytes: bytes?.parse().ok()? })
    });
    Ok(found.filter(|old| is_old_name(&old.name, connection.database())).collect())
}

/// Drops one of them. Sessions that use it are in the way, unless they are ended.
///
/// # Errors
/// [`Database`](crate::ErrorKind::Database) where the server does not do it.
pub async fn drop_old_database(connection: &ConnInfo, old: &OldDatabase, end_sessions: bool) -> Result<()> {
    let force = if end_sessions { " WITH (FORCE)" } else { "" };
    let sql = format!("DROP DATABASE {}{force}", quote_identifier(&old.name));
    let dropped = maintenance(connection).await?.rows(&sql).await;
    dropped.map(drop).map_err(|e| e.doing(format!("dropping {}", old.name)))
}
