//! Rows on their way from one server to another.

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{CopySession, Session, quote_literal};

/// Settings of both sessions: values are written so that they are read as the same.
const SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; \
     SET bytea_output = hex; SET timezone = 'UTC'; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
     SET row_security = off; SET xmloption = content; SET array_nulls = on; SET standard_conforming_strings = on; \
     SET check_function_bodies = off; SET default_tablespace = ''; SET synchronize_seqscans = off";

/// A session for rows, in an encoding.
pub(super) async fn session(of: &Session, encoding: &str, major: u32) -> Result<CopySession> {
    let mut session = of.copy_session().await?;
    let mut sql = format!("{SETTINGS}; SET client_encoding = {}", quote_literal(encoding));
    if major >= 17 {
        sql += "; SET transaction_timeout = 0";
    }
    session.rows(&sql).await?;
    Ok(session)
}

/// The encoding of a session's database.
pub(super) async fn encoding(session: &Session) -> Result<String> {
    Ok(session.value("SELECT pg_catalog.getdatabaseencoding()").await?.unwrap_or_default())
}

/// Copies rows from one table into another: `out` and `into` are COPY statements. How many there were.
pub(super) async fn copy(from: &mut CopySession, out: &str, to: &mut CopySession, into: &str) -> Result<u64> {
    from.copy_out(out).await?;
    to.copy_in(into).await?;
    let mut rows = Vec::new();
    loop {
        let more = from.copied(|piece, _| rows.extend_from_slice(piece)).await?;
        if !rows.is_empty() {
            to.send(&rows).await?;
            rows.clear();
        }
        if !more {
            break;
        }
    }
    let (sent, taken) = (from.copied_out().await?, to.copied_in().await?);
    if sent == taken {
        return Ok(sent);
    }
    Err(Error::new(ErrorKind::Integrity, format!("{sent} rows were sent, and {taken} taken")))
}
