//! `TimescaleDB` wants to know when it is restored (its documentation: "Logical backups with `pg_dump` and `pg_restore`").

use super::super::archive::Toc;
use super::choice::Choice;
use crate::error::Result;
use crate::postgres::{Session, quote_identifier};

/// Whether the extension is restored.
pub(super) fn is_wanted(toc: &Toc, choice: &Choice) -> bool {
    toc.entries.iter().any(|e| e.kind == "EXTENSION" && e.name_text() == "timescaledb" && choice.has(e.id))
}

/// Before anything else is.
pub(super) async fn before(session: &Session) -> Result<()> {
    session.rows("CREATE EXTENSION IF NOT EXISTS timescaledb").await?;
    call(session, "timescaledb_pre_restore").await
}

/// After everything.
pub(super) async fn after(session: &Session) -> Result<()> {
    call(session, "timescaledb_post_restore").await
}

/// The functions are where the extension is.
async fn call(session: &Session, function: &str) -> Result<()> {
    let sql = "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
               WHERE e.extname = 'timescaledb'";
    let schema = session.value(sql).await?.unwrap_or_else(|| "public".to_owned());
    session
        .rows(&format!("SELECT {}.{function}()", quote_identifier(&schema)))
        .await
        .map(drop)
        .map_err(|e| e.doing(format!("calling {function}")))
}
