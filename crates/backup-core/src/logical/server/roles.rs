//! Bringing the globals back: what `pg_dumpall` wrote, statement by statement.

use std::collections::HashSet;

use futures::StreamExt;
use serde::Serialize;

use super::statements::{Statement, Statements};
use crate::dumper::{Ctx, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{CopySession, Session};

/// The server's log shall not repeat passwords. Whoever is no superuser may not say so.
const QUIET: [&str; 3] = [
    "SET log_statement = none",
    "SET log_min_error_statement = panic",
    "SET log_min_duration_statement = -1",
];

/// What came of the globals.
#[derive(Debug, Default, Serialize)]
pub(super) struct GlobalsDone {
    /// Statements that were carried out.
    pub(super) statements: u64,
    /// Roles that were there: they keep their attributes and passwords.
    pub(super) roles_kept: Vec<String>,
    /// Tablespaces that were there.
    pub(super) tablespaces_kept: Vec<String>,
    /// Statements that failed, each with why.
    pub(super) failed: Vec<String>,
}

/// The globals while they are brought back.
pub(super) struct Roles {
    session: CopySession,
    /// Roles that were there before.
    known: HashSet<String>,
    tablespaces: HashSet<String>,
    /// Grants that failed: they may need one that comes later.
    grants: Vec<(Statement, Error)>,
    done: GlobalsDone,
}

impl Roles {
    pub(super) async fn on(session: &Session) -> Result<Self> {
        let mut own = session.copy_session().await?;
        for setting in QUIET {
            // Without the right to, the server logs as it was told.
            let _ = own.rows(setting).await;
        }
        let mut names = async |sql: &str| -> Result<HashSet<String>> {
            Ok(own.rows(sql).await?.into_iter().filter_map(|row| row.into_iter().next()?).collect())
        };
        let known = names("SELECT rolname FROM pg_catalog.pg_roles").await?;
        let tablespaces = names("SELECT spcname FROM pg_catalog.pg_tablespace").await?;
        Ok(Self { session: own, known, tablespaces, grants: Vec::new(), done: GlobalsDone::default() })
    }

    /// Carries a part of SQL out.
    pub(super) async fn run(mut self, source: &dyn PartSource, part: u32, ctx: &Ctx) -> Result<GlobalsDone> {
        let mut data = source.open(part).await?;
        let mut statements = Statements::default();
        loop {
            let piece = tokio::select! {
                biased;
                () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
                piece = data.next() => piece,
            };
            let Some(piece) = piece else { break };
            for statement in statements.push(&piece?) {
                self.statement(statement).await?;
            }
        }
        if !statements.is_done() {
            return Err(Error::new(ErrorKind::Integrity, "the globals of the backup end within a statement"));
        }
        self.grants().await?;
        for message in &self.done.failed {
            ctx.observer.event(&Event::Warning { message: format!("globals: {message}") });
        }
        Ok(self.done)
    }

    async fn statement(&mut self, statement: Statement) -> Result<()> {
        if statement.begins("CREATE ROLE") {
            if let Some(role) = statement.name(2).filter(|role| self.known.contains(role)) {
                self.done.roles_kept.push(role);
                return Ok(());
            }
        } else if statement.begins("CREATE TABLESPACE") {
            if let Some(name) = statement.name(2).filter(|name| self.tablespaces.contains(name)) {
                self.done.tablespaces_kept.push(name);
                return Ok(());
            }
        } else if statement.begins("ALTER ROLE")
            && statement.name(3).as_deref() == Some("WITH")
            && statement.name(2).is_some_and(|role| self.known.contains(&role))
        {
            // Its attributes and its password: it keeps its own.
            return Ok(());
        }
        match self.try_statement(&statement).await? {
            Some(error) if statement.begins("GRANT") => self.grants.push((statement, error)),
            Some(error) => self.failed(&statement, &error),
            None => {}
        }
        Ok(())
    }

    /// What the server says against it.
    async fn try_statement(&mut self, statement: &Statement) -> Result<Option<Error>> {
        match self.session.rows(&statement.sql).await {
            Ok(_) => {
                self.done.statements += 1;
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionLost => Err(error),
            Err(error) => Ok(Some(error)),
        }
    }

    /// Tries grants again while some succeed: before PostgreSQL 16 they come in an order in which a grantor may not
    /// have its right yet. Where a grantor must not, whoever restores grants it.
    async fn grants(&mut self) -> Result<()> {
        loop {
            let left = std::mem::take(&mut self.grants);
            let before = left.len();
            for (statement, _) in left {
                if let Some(error) = self.try_statement(&statement).await? {
                    self.grants.push((statement, error));
                }
            }
            if self.grants.len() == before || self.grants.is_empty() {
                break;
            }
        }
        for (statement, error) in std::mem::take(&mut self.grants) {
            if let Some(plain) = statement.without_grantor()
                && self.try_statement(&plain).await?.is_none()
            {
                continue;
            }
            self.failed(&statement, &error);
        }
        Ok(())
    }

    fn failed(&mut self, statement: &Statement, error: &Error) {
        self.done.failed.push(format!("{}: {}", statement.describe(), error.with_causes()));
    }
}
