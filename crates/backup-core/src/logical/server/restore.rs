//! Restoring a server: its globals, every database, and what belongs to each database from outside: owner, settings,
//! privileges, comment.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::roles::Roles;
use super::statements::Statements;
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::logical::archive::{Toc, quote};
use crate::logical::contents::{DatabaseContents, LogicalContents};
use crate::logical::database::maintenance;
use crate::logical::load::{is_taken, read_toc};
use crate::logical::{DatabaseFacts, KIND, Load, LoadOptions};
use crate::postgres::{ConnInfo, Session, Tools, major_of, quote_literal};

/// Settings of a role or a database that come back must not stand in the way of what comes after them.
const OPTIONS: &str = "-c default_transaction_read_only=off";

/// Restores the databases of a whole server's backup under their own names, its globals, or both.
#[derive(Debug, Clone)]
pub struct ServerLoad {
    connection: ConnInfo,
    tools: Tools,
    options: LoadOptions,
    databases: bool,
    globals: bool,
}

impl ServerLoad {
    /// Restores every database into the server that `connection` reaches, whatever database it names.
    pub fn into(connection: ConnInfo) -> Self {
        let options = LoadOptions::default();
        Self { connection, tools: Tools::installed(), options, databases: true, globals: false }
    }

    /// Where `pg_restore` is looked for.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// How each database is restored.
    #[must_use]
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// Restores roles, memberships and tablespaces first. A role that exists keeps its attributes and its password,
    /// and gets the memberships and settings that it had.
    #[must_use]
    pub fn globals(mut self, globals: bool) -> Self {
        self.globals = globals;
        self
    }

    /// Restores the globals and no database.
    #[must_use]
    pub fn globals_only(mut self) -> Self {
        (self.globals, self.databases) = (true, false);
        self
    }

    /// Looks whether everything can begin, before anything is changed: no database that has something in it, the tools.
    async fn check(&self, contents: &LogicalContents, server: &Session, major: u32) -> Result<()> {
        let mut taken = Vec::new();
        for database in &contents.databases {
            let name = &database.facts.name;
            let is_taken = is_taken(&server.info().with_database(name)).await;
            if is_taken.map_err(|e| e.doing(format!("looking at the database {name}")))? {
                taken.push(name.as_str());
            }
        }
        if !taken.is_empty() {
            let message = format!("databases exist and are not empty: {}", taken.join(", "));
            return Err(Error::new(ErrorKind::Conflict, message).with_hint(
                "nothing was changed; drop or rename them, restore into another server, or single databases with --database",
            ));
        }
        let dumped_by =
            contents.databases.iter().filter_map(|d| major_of(&d.pg_dump_version)).max().unwrap_or(0);
        self.tools.find_for("pg_restore", dumped_by.max(major), server.info()).await.map(drop)
    }

    async fn database(
        &self,
        parts: &Arc<dyn PartSource>,
        database: &DatabaseContents,
        server: &ConnInfo,
        ctx: &Ctx,
    ) -> Result<Vec<String>> {
        let connection = server.with_database(&database.facts.name);
        let toc = read_toc(&**parts, database).await?;
        let mut load = Load::into(connection.clone())
            .tools(self.tools.clone())
            .options(self.options.clone())
            .database(&database.facts.name);
        if !self.options.no_tablespaces {
            load = load.keep_tablespace();
        }
        let told = load.restore(Arc::clone(parts), ctx).await?;
        let session = connection.connect().await?;
        if told.get("created").and_then(Value::as_bool) == Some(false) {
            compare(&session, &database.facts, ctx).await?;
        }
        self.around(&toc, &session).await
    }

    /// What stands in an archive of a database and is restored with `pg_restore --create` alone (`_tocEntryRequired` in
    /// `pg_backup_archiver.c`, PostgreSQL 15 to 18). The statements name the database, which has its own name again. What
    /// failed of them is returned.
    async fn around(&self, toc: &Toc, session: &Session) -> Result<Vec<String>> {
        let mut own = session.copy_session().await?;
        if let Some(encoding) = toc.encoding() {
            own.rows(format!("SET client_encoding = {}", quote_literal(&encoding))).await?;
        }
        let mut failed = Vec::new();
        let mut all = Vec::new();
        for entry in &toc.entries {
            let of_database = entry.name.as_deref().is_some_and(|name| name.starts_with(b"DATABASE "));
            match entry.kind.as_str() {
                "DATABASE" if !self.options.no_owner => {
                    let (Some(name), Some(owner)) = (&entry.name, &entry.owner) else { continue };
                    let mut sql = b"ALTER DATABASE ".to_vec();
                    quote(name, &mut sql);
                    sql.extend(b" OWNER TO ");
                    quote(owner, &mut sql);
                    all.extend(Statements::of(&sql));
                }
                "DATABASE PROPERTIES" => all.extend(definition(entry.definition.as_deref())),
                "ACL" if of_database && !self.options.no_acl => {
                    all.extend(definition(entry.definition.as_deref()));
                }
                "COMMENT" | "SECURITY LABEL" if of_database => {
                    all.extend(definition(entry.definition.as_deref()));
                }
                _ => {}
            }
        }
        for statement in all {
            match own.rows(&statement.sql).await {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionLost => return Err(error),
                Err(error) => failed.push(format!("{}: {}", statement.describe(), error.with_causes())),
            }
        }
        Ok(failed)
    }
}

fn definition(text: Option<&[u8]>) -> Vec<super::statements::Statement> {
    Statements::of(text.unwrap_or_default())
}

/// A database that was there keeps how it encodes and sorts.
async fn compare(session: &Session, wanted: &DatabaseFacts, ctx: &Ctx) -> Result<()> {
    let (major, _) = session.server_version().await?;
    let found = DatabaseFacts::read(session, major).await?;
    let of = |facts: &DatabaseFacts| format!("{} {} {}", facts.encoding, facts.collate, facts.ctype);
    if of(&found) != of(wanted) {
        let message = format!(
            "the database {} was there with another encoding or locale: {}, in the backup {}",
            wanted.name,
            of(&found),
            of(wanted)
        );
        ctx.observer.event(&Event::Warning { message });
    }
    Ok(())
}

#[async_trait]
impl Restorer for ServerLoad {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let none = |what: &str| {
            Error::new(ErrorKind::Unsupported, format!("the backup holds {what}"))
                .with_hint("only backups made with --all-databases hold a whole server")
        };
        let contents =
            LogicalContents::from_contents(parts.contents())?.ok_or_else(|| none("one database"))?;
        if self.globals && contents.globals.is_none() {
            return Err(none("no globals"));
        }
        let server = maintenance(&self.connection.with_options(OPTIONS)).await?;
        let (major, version) = server.server_version().await?;
        if self.databases {
            self.check(&contents, &server, major).await?;
        }
        let mut told = Map::new();
        let mut failed = Vec::new();
        if let (true, Some(part)) = (self.globals, contents.globals) {
            ctx.observer.event(&Event::Step { what: "restoring the globals".to_owned() });
            let done = Roles::on(&server).await?.run(&*parts, part, ctx).await?;
            failed.extend(done.failed.iter().map(|failed| format!("globals: {failed}")));
            let done =
                serde_json::to_value(done).map_err(|e| Error::internal("an answer as JSON").caused_by(e))?;
            told.insert("globals".to_owned(), done);
        }
        let mut restored = Vec::new();
        let warn = |message: String| ctx.observer.event(&Event::Warning { message });
        if self.databases {
            for failed in &contents.failed {
                warn(format!("the database {} is not in the backup: {}", failed.name, failed.error));
            }
            for database in &contents.databases {
                let name = &database.facts.name;
                ctx.observer.event(&Event::Step { what: format!("restoring the database {name}") });
                match self.database(&parts, database, server.info(), ctx).await {
                    Ok(words) => {
                        restored.push(name.clone());
                        for words in words.into_iter().map(|words| format!("{name}: {words}")) {
                            warn(words.clone());
                            failed.push(words);
                        }
                    }
                    Err(error) if ctx.cancel.is_cancelled() || error.kind() == ErrorKind::Cancelled => {
                        return Err(error);
                    }
                    Err(error) => {
                        let words = format!("the database {name} was not restored: {}", error.with_causes());
                        warn(words.clone());
                        failed.push(words);
                    }
                }
            }
        }
        if !failed.is_empty() {
            let done = if restored.is_empty() { "nothing".to_owned() } else { restored.join(", ") };
            let message = format!("{} things could not be restored; restored: {done}", failed.len());
            return Err(Error::new(ErrorKind::Partial, message)
                .with_hint("put right what is said; then restore what is missing with --database, or again with --globals-only")
                .caused_by(failed.join("; ")));
        }
        told.insert("databases".to_owned(), restored.into());
        told.insert("server_version".to_owned(), version.into());
        Ok(told)
    }
}
