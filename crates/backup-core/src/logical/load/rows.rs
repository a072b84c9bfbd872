//! Loading rows, and what is done with tables that have them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::options::LoadOptions;
use super::plan::Task;
use super::worker::{Full, Work, Worker};
use crate::dumper::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{CopySession, Session, quote_identifier, quote_literal};

/// Settings of every session that loads rows; those of the text that a dump holds.
const SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = 'UTC'; \
     SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET row_security = off; \
     SET xmloption = content; SET array_nulls = on; SET standard_conforming_strings = on; SET synchronous_commit = off; \
     SET idle_session_timeout = 0";

/// What a row of a result holds.
type Row = Vec<Option<String>>;

/// The same with the encoding of the text.
pub(super) fn settings(encoding: &str) -> String {
    format!("{SETTINGS}; SET client_encoding = {}", quote_literal(encoding))
}

/// Sessions for rows.
pub(super) async fn sessions(
    session: &Session,
    major: u32,
    encoding: &str,
    options: &LoadOptions,
    count: usize,
) -> Result<Vec<CopySession>> {
    let mut sql = settings(encoding);
    if major >= 17 {
        sql += "; SET transaction_timeout = 0";
    }
    if let Some(role) = &options.role {
        sql += "; SET ROLE ";
        sql += &quote_identifier(role);
    }
    if options.disable_triggers {
        sql += "; SET session_replication_role = replica";
    }
    if options.data_only {
        sql += "; BEGIN; SET CONSTRAINTS ALL DEFERRED";
    }
    prepared(session, count, &sql).await
}

/// Sessions in which a statement was run.
async fn prepared(session: &Session, count: usize, setup: impl AsRef<[u8]>) -> Result<Vec<CopySession>> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut own = session.copy_session().await?;
        own.rows(&setup).await?;
        sessions.push(own);
    }
    Ok(sessions)
}

/// Loads what the plan says, and gives the sessions back.
pub(super) async fn load(
    sessions: Vec<CopySession>,
    work: &Arc<Work>,
    first: Vec<Task>,
    finished: mpsc::UnboundedSender<Full>,
    ctx: &Ctx,
) -> Result<Vec<CopySession>> {
    let worker =
        |session| Worker { session, work: Arc::clone(work), finished: finished.clone(), permit: None };
    let mut workers: Vec<Worker> = sessions.into_iter().map(worker).collect();
    // The workers' own copies end with them.
    drop(finished);
    let loaded = async {
        if let Some(worker) = workers.first_mut() {
            for task in first {
                worker.task(task).await?;
            }
        }
        let mut tasks = tokio::task::JoinSet::new();
        for worker in workers {
            tasks.spawn(worker.run());
        }
        let mut sessions = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let done =
                done.unwrap_or_else(|e| Err(Error::internal("a session of the restore failed").caused_by(e)));
            sessions.push(done?);
        }
        Ok(sessions)
    };
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        loaded = loaded => loaded,
    }
}

/// The encoding of the database.
pub(super) async fn encoding(session: &Session) -> Result<String> {
    Ok(session.value("SELECT pg_catalog.getdatabaseencoding()").await?.unwrap_or_default())
}

/// Runs statements, several at once, in sessions that `setup` prepares. What each was given with, in no order, and its
/// rows, or what the server said.
pub(super) async fn each<S: AsRef<[u8]> + Send, T: Send>(
    session: &Session,
    setup: impl AsRef<[u8]>,
    statements: Vec<(S, T)>,
    ctx: &Ctx,
) -> Result<Vec<(T, Result<Vec<Row>>)>> {
    let sessions = prepared(session, ctx.jobs.min(statements.len()), setup).await?;
    let statements = Mutex::new(VecDeque::from(statements));
    let next = || statements.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    let run = async |mut own: CopySession| {
        let mut done = Vec::new();
        while let Some((sql, with)) = next() {
            match own.rows(sql).await {
                Err(error) if error.kind() != ErrorKind::Database => return Err(error),
                rows => done.push((with, rows)),
            }
        }
        own.close().await;
        Ok(done)
    };
    let done = futures::future::try_join_all(sessions.into_iter().map(run));
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        done = done => Ok(done?.into_iter().flatten().collect()),
    }
}

/// Runs statements in an encoding, several at once. The first value of each, in no order, with its statement.
pub(super) async fn values(
    session: &Session,
    encoding: &str,
    statements: Vec<Vec<u8>>,
    ctx: &Ctx,
) -> Result<Vec<(Vec<u8>, Option<String>)>> {
    let statements = statements.into_iter().map(|sql| (sql.clone(), sql)).collect();
    let setup = format!("SET client_encoding = {}", quote_literal(encoding));
    let done = each(session, setup, statements, ctx).await?;
    let first = |rows: Vec<Row>| rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    done.into_iter()
        .map(|(sql, rows)| match rows {
            Ok(rows) => Ok((sql, first(rows))),
            Err(error) => Err(error.doing(String::from_utf8_lossy(&sql))),
        })
        .collect()
}

/// Compares how many rows tables have with what the backup says: name as SQL, rows.
pub(super) async fn compare(
    session: &Session,
    encoding: &str,
    expected: Vec<(Vec<u8>, u64)>,
    ctx: &Ctx,
) -> Result<()> {
    let sql = |name: &[u8]| [b"SELECT pg_catalog.count(*) FROM ONLY ", name].concat();
    let by_sql: std::collections::HashMap<Vec<u8>, (Vec<u8>, u64)> =
        expected.into_iter().map(|(name, rows)| (sql(&name), (name, rows))).collect();
    let counted = values(session, encoding, by_sql.keys().cloned().collect(), ctx).await?;
    let mut wrong: Vec<String> = counted
        .into_iter()
        .filter_map(|(sql, count)| {
            let (name, rows) = by_sql.get(&sql)?;
            let count = count.and_then(|count| count.parse().ok()).unwrap_or(0_u64);
            let name = String::from_utf8_lossy(name);
            (count != *rows).then(|| format!("{name} has {count} rows, and the backup {rows}"))
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.sort();
    Err(Error::new(ErrorKind::Integrity, wrong.join("; "))
        .doing("comparing the restored rows with the backup")
        .with_hint("a rule or an event trigger of the database may do that"))
}
