//! Restoring a database: definitions by `pg_restore`, rows by COPY sessions.

mod analyze;
mod archive;
mod definitions;
mod large_objects;
mod options;
mod plan;
mod target;
mod worker;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Map, Value};

pub use options::LoadOptions;
pub(super) use target::exists;

use self::definitions::Definitions;
use self::plan::{Plan, Task};
use self::target::Target;
use self::worker::{Work, Worker};
use super::archive::{Toc, TocReader};
use super::contents::{DatabaseContents, LogicalContents};
use super::{DatabaseFacts, KIND};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, CopySession, Session, Tools, quote_literal};

/// Settings of every session that loads rows; those of the text that a dump holds.
const SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = 'UTC'; \
     SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET row_security = off; \
     SET xmloption = content; SET array_nulls = on; SET standard_conforming_strings = on; SET synchronous_commit = off; \
     SET idle_session_timeout = 0";

/// Restores a database into a new database, or into one that is there and empty.
#[derive(Debug, Clone)]
pub struct Load {
    connection: ConnInfo,
    tools: Tools,
    options: LoadOptions,
    database: Option<String>,
    keep_tablespace: bool,
}

impl Load {
    /// Restores into the database that `connection` names.
    pub fn into(connection: ConnInfo) -> Self {
        Self {
            connection,
            tools: Tools::installed(),
            options: LoadOptions::default(),
            database: None,
            keep_tablespace: false,
        }
    }

    /// Where `pg_restore` is looked for.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// How it is restored.
    #[must_use]
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// Which database of the backup; needed where there are several.
    #[must_use]
    pub fn database(mut self, name: impl Into<String>) -> Self {
        self.database = Some(name.into());
        self
    }

    /// A database that the restore makes gets its own tablespace.
    pub(super) fn keep_tablespace(mut self) -> Self {
        self.keep_tablespace = true;
        self
    }

    /// The database of the backup that is restored.
    fn choose<'a>(&self, contents: &'a LogicalContents) -> Result<&'a DatabaseContents> {
        let names =
            || contents.databases.iter().map(|d| d.facts.name.as_str()).collect::<Vec<_>>().join(", ");
        match (&self.database, &contents.databases[..]) {
            (None, [one]) => Ok(one),
            (None, _) => Err(Error::new(ErrorKind::Usage, "the backup holds several databases").with_hint(
                format!("say which one with --database, or restore --all-databases: {}", names()),
            )),
            (Some(name), _) => contents.database(name).ok_or_else(|| {
                let why = contents.failed.iter().find(|failed| failed.name == *name);
                let why =
                    why.map(|failed| format!(": its dump failed: {}", failed.error)).unwrap_or_default();
                let message = format!("the backup does not hold the database {name}{why}");
                Error::new(ErrorKind::NoDatabase, message).with_hint(format!("it holds: {}", names()))
            }),
        }
    }

    async fn load(
        &self,
        source: &Arc<dyn PartSource>,
        database: &DatabaseContents,
        target: &Target,
        ctx: &Ctx,
    ) -> Result<Vec<String>> {
        let info = target.info();
        let toc = read_toc(&**source, database).await?;
        let encoding = toc.encoding().unwrap_or_else(|| "UTF8".to_owned());
        let Plan { tables, first, then } = Plan::new(&toc, database, &**source, ctx.jobs)?;
        let definitions = Definitions::new(&toc, &info, target.major, &self.tools, &self.options)?;
        let mut words = definitions.before(ctx).await?;
        words.extend(definitions.beside(ctx).await?);
        let (mut large_objects, mut rows) = (VecDeque::new(), VecDeque::new());
        for task in then {
            if matches!(task, Task::LargeObjects(_)) {
                large_objects.push_back(task);
            } else {
                rows.push_back(task);
            }
        }
        rows.append(&mut large_objects);
        let work = Work { tables, tasks: Mutex::new(rows), source: Arc::clone(source), fresh: true };
        let session = info.connect().await?;
        // It waits while rows are loaded and indexes are built.
        session.rows("SET idle_session_timeout = 0").await?;
        let copied = load_rows(&session, target.major, Arc::new(work), first, &encoding, &self.options, ctx);
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
            copied = copied => copied?,
        }
        words.extend(definitions.after(ctx).await?);
        if !self.options.no_analyze {
            words.extend(analyze::analyze(&session, ctx).await?);
        }
        flush(&session).await?;
        Ok(words)
    }
}

/// Makes what sessions committed without waiting durable.
async fn flush(session: &Session) -> Result<()> {
    // A commit that wrote something waits for all WAL before it.
    let sql =
        "SET synchronous_commit = on; SELECT pg_catalog.pg_logical_emit_message(true, 'pgark', 'restored')";
    session.rows(sql).await.map(drop)
}

/// The table of contents of a database.
pub(super) async fn read_toc(source: &dyn PartSource, database: &DatabaseContents) -> Result<Toc> {
    let mut data = source.open(database.toc).await?;
    let mut reader = TocReader::default();
    while let Some(bytes) = data.next().await {
        reader.push(&bytes?)?;
    }
    reader.finish().map(|(toc, _)| toc)
}

async fn load_rows(
    session: &Session,
    major: u32,
    work: Arc<Work>,
    first: Vec<Task>,
    encoding: &str,
    options: &LoadOptions,
    ctx: &Ctx,
) -> Result<()> {
    let mut workers = Vec::new();
    for _ in 0..ctx.jobs {
        let mut own = session.copy_session().await?;
        settle(&mut own, major, encoding, options).await?;
        workers.push(Worker { session: own, work: Arc::clone(&work) });
    }
    if let Some(worker) = workers.first_mut() {
        for task in first {
            worker.task(task).await?;
        }
    }
    let mut tasks = tokio::task::JoinSet::new();
    for worker in workers {
        tasks.spawn(worker.run());
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap_or_else(|e| Err(Error::internal("a session of the restore failed").caused_by(e)))?;
    }
    Ok(())
}

async fn settle(session: &mut CopySession, major: u32, encoding: &str, options: &LoadOptions) -> Result<()> {
    let mut sql = format!("{SETTINGS}; SET client_encoding = {}", quote_literal(encoding));
    if major >= 17 {
        sql += "; SET transaction_timeout = 0";
    }
    if let Some(role) = &options.role {
        sql += "; SET ROLE ";
        sql += &crate::postgres::quote_identifier(role);
    }
    session.rows(&sql).await.map(drop)
}

#[async_trait]
impl Restorer for Load {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let contents = LogicalContents::from_contents(parts.contents())?;
        let database = contents.as_ref().map(|contents| self.choose(contents)).transpose()?;
        let mut facts = match database {
            Some(database) => database.facts.clone(),
            None => DatabaseFacts::from_contents(parts.contents())?,
        };
        if !self.keep_tablespace {
            facts.tablespace = None;
        }
        let target = Target::make(&self.connection, &facts).await?;
        let done = match database {
            Some(database) => self.load(&parts, database, &target, ctx).await,
            None => archive::load(&*parts, &target.info(), target.major, &self.tools, ctx).await,
        };
        match done {
            Ok(words) => {
                for message in words {
                    ctx.observer.event(&Event::Warning { message });
                }
            }
            Err(error) => return Err(target.undo(&self.connection, error).await),
        }
        let mut told = Map::new();
        told.insert("database".to_owned(), target.name.into());
        told.insert("server_version".to_owned(), target.version.into());
        told.insert("created".to_owned(), target.created.into());
        Ok(told)
    }
}
