//! All databases of a server, one after another, and what belongs to none of them: roles, memberships, tablespaces.

mod databases;
mod globals;
mod parts;
mod restore;
mod roles;
mod statements;

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

pub use restore::ServerLoad;

use self::databases::Databases;
use self::globals::Globals;
use self::parts::DatabaseParts;
use super::contents::{DatabaseContents, DatabaseFailure, LogicalContents};
use super::database::maintenance;
use super::dump::{Dump, server_facts};
use super::{KIND, contents::LeftOut};
use crate::dumper::{Ctx, Dumped, Dumper, PartSink, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, Session, Tools};
use crate::repository::PARTIAL;

/// What the tasks of the parts hold beside what the sessions do: a piece each, and a small table as a whole.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// Dumps every database of a server that lets anybody connect, but `template0` and `template1`, and the globals.
///
/// A database that cannot be dumped is written down with its error, and the others are kept: the backup is then not
/// [complete](crate::repository::BackupSummary::is_complete).
#[derive(Debug, Clone)]
pub struct ServerDump {
    connection: ConnInfo,
    tools: Tools,
    no_role_passwords: bool,
}

impl ServerDump {
    /// Dumps the server that `connection` reaches, whatever database it names.
    pub fn new(connection: ConnInfo) -> Self {
        Self { connection, tools: Tools::installed(), no_role_passwords: false }
    }

    /// Where `pg_dump` and `pg_dumpall` are looked for.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// Leaves the passwords of roles out, as is done in any case where the user may not read them.
    #[must_use]
    pub fn no_role_passwords(mut self, without: bool) -> Self {
        self.no_role_passwords = without;
        self
    }

    /// Looks at what a backup would meet, and changes nothing.
    ///
    /// # Errors
    /// Those that the backup would end with before it begins: no connection, no fitting `pg_dump` or `pg_dumpall`.
    pub async fn preview(&self) -> Result<ServerPreview> {
        let session = maintenance(&self.connection).await?;
        let (major, server_version) = session.server_version().await?;
        let tool = self.tools.find_for("pg_dump", major, session.info()).await?;
        self.tools.find_for("pg_dumpall", major, session.info()).await?;
        let Databases { dumped, bytes, .. } = Databases::read(&session).await?;
        Ok(ServerPreview {
            databases: dumped,
            server_version,
            pg_dump_version: tool.version,
            raw_bytes: bytes,
        })
    }

    /// Dumps one database. Only what ends the whole run is an error.
    async fn database(
        &self,
        server: &ConnInfo,
        name: &str,
        parts: &Arc<dyn PartSink>,
        ctx: &Ctx,
    ) -> Result<Result<(DatabaseContents, Vec<String>), (DatabaseFailure, Error)>> {
        let own = Arc::new(DatabaseParts::new(Arc::clone(parts)));
        let connection = server.with_database(name);
        let dumped = async {
            let session = tokio::select! {
                biased;
                () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
                session = connection.connect() => session?,
            };
            let dump = Dump::new(connection).tools(self.tools.clone());
            dump.database(&session, &(Arc::clone(&own) as Arc<dyn PartSink>), ctx).await
        };
        let dumped = dumped.await;
        let written = own.settle().await;
        match dumped {
            Ok((mut contents, warnings)) => {
                // The database's own sessions see its name through its encoding.
                name.clone_into(&mut contents.facts.name);
                Ok(Ok((contents, warnings)))
            }
            Err(error) if ctx.cancel.is_cancelled() || error.kind() == ErrorKind::Cancelled => Err(error),
            Err(error) => {
                let failed =
                    DatabaseFailure { name: name.to_owned(), error: error.with_causes(), parts: written };
                Ok(Err((failed, error)))
            }
        }
    }
}

/// Brings the globals back, as far as the server takes them; what it does not take is told.
pub(super) async fn restore_globals(
    session: &Session,
    parts: &dyn PartSource,
    part: u32,
    ctx: &Ctx,
) -> Result<()> {
    roles::Roles::on(session).await?.run(parts, part, ctx).await.map(drop)
}

/// What [`ServerDump::preview`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServerPreview {
    /// The databases.
    pub databases: Vec<String>,
    /// The server's version.
    pub server_version: String,
    /// Version of the `pg_dump` that would run.
    pub pg_dump_version: String,
    /// Bytes of the databases as the server counts them, with indexes.
    pub raw_bytes: u64,
}

#[async_trait]
impl Dumper for ServerDump {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn max_open(&self, jobs: usize) -> usize {
        Dump::new(self.connection.clone()).max_open(jobs)
    }

    fn working_bytes(&self) -> usize {
        Dump::new(self.connection.clone()).working_bytes() + PART_BYTES
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped> {
        let session = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
            session = maintenance(&self.connection) => session?,
        };
        let (major, _) = session.server_version().await?;
        self.tools.find_for("pg_dump", major, session.info()).await?;
        let mut facts = server_facts(&session).await?;
        let databases = Databases::read(&session).await?;
        ctx.observer.event(&Event::Expected { raw_bytes: databases.bytes });
        let mut told = Told { ctx, warnings: Vec::new() };
        ctx.observer.event(&Event::Step { what: "dumping the globals".to_owned() });
        let globals = Globals { tools: &self.tools, no_role_passwords: self.no_role_passwords };
        let (part, passwords) = globals.dump(&session, major, &*parts, &mut told).await?;
        told.left_out(None, &databases.left_out);

        let mut contents = LogicalContents { globals: Some(part), ..LogicalContents::default() };
        // Its own estimate would take the place of the one for all.
        let observer = Arc::clone(&ctx.observer);
        let quiet = Arc::new(move |event: &Event| match event {
            Event::Expected { .. } => {}
            event => observer.event(event),
        });
        let each = Ctx { observer: quiet, ..ctx.clone() };
        let mut first_error = None;
        for name in &databases.dumped {
            ctx.observer.event(&Event::Step { what: format!("dumping the database {name}") });
            match self.database(session.info(), name, &parts, &each).await? {
                Ok((database, warnings)) => {
                    for warning in warnings {
                        told.warn(format!("{name}: {warning}"));
                    }
                    told.left_out(Some(name), &database.left_out);
                    contents.databases.push(database);
                }
                Err((failed, error)) => {
                    told.warn(format!("the database {name} is not in the backup: {}", failed.error));
                    contents.failed.push(failed);
                    first_error.get_or_insert(error.doing(format!("dumping the database {name}")));
                }
            }
        }
        if let (Some(error), true) = (first_error, contents.databases.is_empty()) {
            return Err(error.doing("no database of the server could be dumped"));
        }
        let names = |names: Vec<&str>| Value::from(names);
        facts.remove("database");
        facts.insert(
            "databases".to_owned(),
            names(contents.databases.iter().map(|d| d.facts.name.as_str()).collect()),
        );
        facts.insert("globals".to_owned(), if passwords { "whole" } else { "without passwords" }.into());
        if let Some(first) = contents.databases.first() {
            facts.insert("pg_dump_version".to_owned(), first.pg_dump_version.clone().into());
        }
        if !databases.left_out.is_empty() {
            let count: u64 = databases.left_out.iter().map(|left| left.count).sum();
            facts.insert("databases_left_out".to_owned(), count.into());
        }
        if !contents.failed.is_empty() {
            facts.insert(PARTIAL.to_owned(), true.into());
            facts.insert(
                "databases_failed".to_owned(),
                names(contents.failed.iter().map(|failed| failed.name.as_str()).collect()),
            );
        }
        let Told { warnings, .. } = told;
        Ok(Dumped { facts, contents: contents.to_contents()?, warnings, ..Dumped::default() })
    }
}

/// Warnings, told at once and kept.
struct Told<'a> {
    ctx: &'a Ctx,
    warnings: Vec<String>,
}

impl Told<'_> {
    fn warn(&mut self, message: String) {
        self.ctx.observer.event(&Event::Warning { message: message.clone() });
        self.warnings.push(message);
    }

    fn left_out(&mut self, database: Option<&str>, left_out: &[LeftOut]) {
        let of = database.map(|name| format!("{name}: ")).unwrap_or_default();
        for left in left_out {
            self.warn(format!("{of}left out: {} {}: {}", left.count, left.what, left.why));
        }
    }
}
