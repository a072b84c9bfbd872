//! The live database, before anything is done to it.

use serde::Serialize;

use super::Way;
use super::table::{absent, literal_of};
use crate::error::{Error, ErrorKind, Result};
use crate::logical::TableName;
use crate::postgres::{ConnInfo, quote_literal};

/// The database that a table goes into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TargetFacts {
    /// Where the server is.
    pub server: String,
    /// The server's version.
    pub server_version: String,
    /// Its major version.
    #[serde(skip)]
    pub major: u32,
    /// The database.
    pub database: String,
    /// The table that is made, or that rows are put back into.
    pub table: String,
    /// Estimated rows of the live table that rows are put back into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Triggers of the live table that fire for each row that is put back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<String>,
}

pub(super) async fn look(into: &ConnInfo, name: &TableName, way: &Way) -> Result<TargetFacts> {
    let session = into.connect().await?;
    let (major, server_version) = session.server_version().await?;
    let mut facts = TargetFacts {
        server: session.info().hosts().first().map(ToString::to_string).unwrap_or_default(),
        server_version,
        major,
        database: into.database().to_owned(),
        table: name.to_string(),
        rows: None,
        triggers: Vec::new(),
    };
    let sql = format!(
        "SELECT c.oid, c.relkind, c.reltuples::bigint FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE (n.nspname::text, c.relname::text) = {}",
        literal_of(name)
    );
    let rows = session.rows(&sql).await?;
    let there = match rows.first().map(Vec::as_slice) {
        Some([Some(oid), Some(kind), estimate]) => Some((oid, kind, estimate)),
        _ => None,
    };
    if matches!(way, Way::MergeMissing { .. }) {
        let Some((oid, kind, estimate)) = there else {
            let hint = absent(&session, name).await?.hint().map(str::to_owned).unwrap_or_default();
            return Err(Error::new(ErrorKind::Usage, format!("the live database has no table {name}"))
                .with_hint(format!("recover it under a new name: leave --merge-missing out; {hint}")));
        };
        if !matches!(kind.as_str(), "r" | "p") {
            return Err(Error::new(ErrorKind::Usage, format!("{name} is no table in the live database")));
        }
        facts.rows = estimate.as_ref().and_then(|n| n.parse().ok());
        // 4: on insert (pg_trigger.h).
        let sql = format!(
            "SELECT tgname FROM pg_catalog.pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal AND tgtype & 4 <> 0 \
             AND tgenabled IN ('O', 'A') ORDER BY tgname"
        );
        facts.triggers = session
            .rows(&sql)
            .await?
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect();
        return Ok(facts);
    }
    if there.is_some() {
        let message = format!("the live database has {name} already");
        return Err(Error::new(ErrorKind::Conflict, message).with_hint("choose another name with --as"));
    }
    let schema =
        format!("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = {}", quote_literal(&name.schema));
    if session.value(&schema).await?.is_none() {
        let message = format!("the live database has no schema {}", name.schema);
        return Err(Error::new(ErrorKind::Usage, message).with_hint("make it, or choose one with --schema"));
    }
    Ok(facts)
}
