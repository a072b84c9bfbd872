//! Loading rows, and what is done with tables that have them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::options::LoadOptions;
use super::plan::Task;
use super::worker::{Work, Worker};
use crate::dumper::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{CopySession, Session, quote_identifier, quote_literal};

/// Settings of every session that loads rows; those of the text that a dump holds.
const SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = 'UTC'; \
     SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET row_security = off; \
     SET xmloption = content; SET standard_conforming_strings = on; SET synchronous_commit = off";

/// Sessions for rows.
pub(super) async fn sessions(
    session: &Session,
    encoding: &str,
    options: &LoadOptions,
    count: usize,
) -> Result<Vec<CopySession>> {
    let mut sql = format!("{SETTINGS}; SET client_encoding = {}", quote_literal(encoding));
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
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut own = session.copy_session().await?;
        own.rows(&sql).await?;
        sessions.push(own);
    }
    Ok(sessions)
}

/// Loads what the plan says, and gives the sessions back.
pub(super) async fn load(
    sessions: Vec<CopySession>,
    work: &Arc<Work>,
    first: Vec<Task>,
    ctx: &Ctx,
) -> Result<Vec<CopySession>> {
    let mut workers: Vec<Worker> =
        sessions.into_iter().map(|session| Worker { session, work: Arc::clone(work) }).collect();
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

/// Every table of the database that may have rows, the largest first, as SQL.
pub(super) async fn tables(session: &Session) -> Result<Vec<String>> {
    let sql = "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
               ORDER BY c.relpages DESC";
    Ok(session.rows(sql).await?.into_iter().filter_map(|r| r.into_iter().next()?).collect())
}

/// Runs statements, several at once. Each has a word for errors.
pub(super) async fn run_all(session: &Session, statements: Vec<String>, ctx: &Ctx) -> Result<()> {
    values(session, statements, ctx).await.map(drop)
}

/// The same; the first value of each, in no order, with its statement.
pub(super) async fn values(
    session: &Session,
    statements: Vec<String>,
    ctx: &Ctx,
) -> Result<Vec<(String, Option<String>)>> {
    let count = ctx.jobs.min(statements.len());
    let statements = Arc::new(Mutex::new(VecDeque::from(statements)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let mut own = session.copy_session().await?;
        let statements = Arc::clone(&statements);
        tasks.spawn(async move {
            let mut values = Vec::new();
            loop {
                let next = statements.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
                let Some(sql) = next else { return Ok(values) };
                let value = own.value(&sql).await.map_err(|e| e.doing(&sql))?;
                values.push((sql, value));
            }
        });
    }
    let done = async {
        let mut values = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let done: Result<Vec<_>> =
                done.unwrap_or_else(|e| Err(Error::internal("a session of the restore failed").caused_by(e)));
            values.extend(done?);
        }
        Ok(values)
    };
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        done = done => done,
    }
}

/// Compares how many rows tables have with what the backup says: name as SQL, rows.
pub(super) async fn compare(session: &Session, expected: Vec<(String, u64)>, ctx: &Ctx) -> Result<()> {
    let sql = |name: &str| format!("SELECT pg_catalog.count(*) FROM ONLY {name}");
    let by_sql: std::collections::HashMap<String, (String, u64)> =
        expected.into_iter().map(|(name, rows)| (sql(&name), (name, rows))).collect();
    let counted = values(session, by_sql.keys().cloned().collect(), ctx).await?;
    let mut wrong: Vec<String> = counted
        .into_iter()
        .filter_map(|(sql, count)| {
            let (name, rows) = by_sql.get(&sql)?;
            let count = count.and_then(|count| count.parse().ok()).unwrap_or(0_u64);
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
