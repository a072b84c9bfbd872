//! The parallel dump: names and definitions from `pg_dump`, rows by COPY sessions that share its snapshot.

mod large_objects;
mod left_out;
mod plan;
mod selection;
mod snapshot;
mod tables;
mod toc;
mod work;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::task::JoinSet;

pub use selection::Selection;

use self::plan::Sizes;
pub(super) use self::snapshot::SETTINGS;
use self::snapshot::{Locked, Snapshot};
pub(super) use self::tables::Table;
use self::work::Work;
use self::worker::{Locks, Worker};
use super::archive::{BLOBS, Toc};
use super::contents::{DatabaseContents, ExtensionContents, LogicalContents};
use super::{DatabaseFacts, KIND, TOC};
use crate::dumper::{Ctx, Dumped, Dumper, PartSink, PartSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, Session, Tool, Tools};

/// How often a dump begins again when tables change under it.
const ATTEMPTS: usize = 3;
/// What each session takes: rows collected, and bytes that have come.
const SESSION_BYTES: usize = 6 * 1024 * 1024;

/// Dumps one database, with as many sessions as there are jobs.
#[derive(Debug, Clone)]
pub struct Dump {
    connection: ConnInfo,
    tools: Tools,
    selection: Selection,
    sizes: Sizes,
}

impl Dump {
    /// Dumps the database that `connection` names.
    pub fn new(connection: ConnInfo) -> Self {
        Self {
            connection,
            tools: Tools::installed(),
            selection: Selection::default(),
            sizes: Sizes::default(),
        }
    }

    /// Where `pg_dump` is looked for.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// Dumps only some of it.
    #[must_use]
    pub fn selection(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Reads tables in ranges of this size: small, so that tests see many of a small table.
    #[doc(hidden)]
    #[must_use]
    pub fn range_bytes(mut self, bytes: u64) -> Self {
        self.sizes = Sizes::of(bytes);
        self
    }

    /// Looks at what a backup would meet, and changes nothing.
    ///
    /// # Errors
    /// Those that the backup would end with before it begins: no connection, no fitting `pg_dump`.
    pub async fn preview(&self) -> Result<Preview> {
        let session = self.connection.connect().await?;
        let (major, server_version) = session.server_version().await?;
        let tool = self.tools.find_for("pg_dump", major, &self.connection).await?;
        let sql = "SELECT sum(pg_catalog.pg_table_size(oid))::bigint FROM pg_catalog.pg_class WHERE relkind = 'r' \
                   AND relnamespace <> 'pg_catalog'::pg_catalog.regnamespace AND relpersistence <> 't'";
        // The sizes are behind locks, and an estimate is not worth waiting for.
        session.rows("SET lock_timeout = '100ms'").await?;
        let raw_bytes = session.value(sql).await.ok().flatten().and_then(|bytes| bytes.parse().ok());
        Ok(Preview {
            database: session.info().database().to_owned(),
            server_version,
            pg_dump_version: tool.version,
            raw_bytes: raw_bytes.unwrap_or(0),
        })
    }

    /// Dumps the database into parts.
    ///
    /// # Errors
    /// Those of connections, of `pg_dump` and of the server. [`Conflict`](ErrorKind::Conflict) where tables kept
    /// changing.
    pub(crate) async fn database(
        &self,
        session: &Session,
        parts: &Arc<dyn PartSink>,
        ctx: &Ctx,
    ) -> Result<(DatabaseContents, Vec<String>)> {
        let (major, server_version) = session.server_version().await?;
        refuse_pooler(session, &self.connection).await?;
        let tool = self.tools.find_for("pg_dump", major, &self.connection).await?;
        let facts = DatabaseFacts::read(session, major).await?;
        let Frozen { mut snapshot, toc, encoding, tables, warnings } =
            self.freeze(session, major, &tool, ctx).await?;
        let moment = snapshot.moment.take();
        let own = &mut snapshot.session;
        let left_out = left_out::count(own).await?;
        let extensions = extensions(own).await?;
        let bytes = own.value("SELECT pg_catalog.pg_database_size(current_database())").await?;
        let has_blobs = toc.entries.iter().any(|entry| entry.kind == BLOBS);
        let (ranges, blob_bytes) =
            if has_blobs { large_objects::ranges(own, ctx.jobs).await? } else { (Vec::new(), 0) };
        let raw_bytes = tables.iter().map(|table| table.bytes).sum::<u64>() + blob_bytes;
        ctx.observer.event(&Event::Expected { raw_bytes });

        step(ctx, "copying");
        let spec = PartSpec { kind: TOC.to_owned(), name: format!("{}.toc", facts.name) };
        let mut part = parts.open(spec).await?;
        for piece in toc.pieces() {
            part.write(piece.into()).await?;
        }
        let toc_part = part.finish().await?;

        let plan = plan::plan(&tables, &ranges, blob_bytes, ctx.jobs, self.sizes);
        let work = Arc::new(Work::new(tables, plan));
        let mut workers = Vec::new();
        for _ in 0..ctx.jobs {
            let mut own = session.copy_session().await?;
            snapshot::begin(&mut own, major, Some(&snapshot.name)).await?;
            snapshot::set_encoding(&mut own, &encoding).await?;
            workers.push(Worker::new(own, Locks::OwnEach, Arc::clone(&work), Arc::clone(parts)));
        }
        let mut tasks = JoinSet::new();
        for worker in workers {
            tasks.spawn(worker.run());
        }
        all(tasks, ctx).await?;
        self.rest(snapshot, &encoding, &work, parts, ctx).await?;
        let (tables, large_objects) = work.take();
        let contents = DatabaseContents {
            facts,
            server_version,
            pg_dump_version: tool.version,
            toc: toc_part,
            snapshot: moment,
            database_bytes: bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
            tables,
            large_objects: has_blobs.then_some(large_objects),
            extensions,
            left_out,
        };
        Ok((contents, warnings))
    }

    /// What only the session with the locks can do, and the proof that it held them to the end.
    async fn rest(
        &self,
        snapshot: Snapshot,
        encoding: &str,
        work: &Arc<Work>,
        parts: &Arc<dyn PartSink>,
        ctx: &Ctx,
    ) -> Result<()> {
        let Snapshot { session: mut own, .. } = snapshot;
        let held = snapshot::set_encoding(&mut own, encoding).await;
        held.map_err(|e| e.doing("the session that held the tables' locks was lost; the backup is no good"))?;
        let rest = Worker::new(own, Locks::Held, Arc::clone(work), Arc::clone(parts)).run();
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => Err(Error::cancelled()),
            rest = rest => rest,
        }
    }

    /// A snapshot, the table of contents that belongs to it, and every table locked as the snapshot sees it.
    async fn freeze(&self, session: &Session, major: u32, tool: &Tool, ctx: &Ctx) -> Result<Frozen> {
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            let mut snapshot = Snapshot::take(session, major).await?;
            step(ctx, "reading the definitions");
            let arguments = self.selection.with_statistics(tool.major)?;
            let read = toc::read(tool, session.info(), &snapshot.name, arguments, ctx).await;
            let (toc, warnings) = match read {
                Err(error) if is_race(&error) => {
                    why = error.to_string();
                    continue;
                }
                // pg_dump waits for locks by this timeout.
                Err(error) if error.causes().join(" ").contains("statement timeout") => {
                    let who = snapshot::waiting(session).await;
                    let message = format!("a table cannot be locked: {error}{who}");
                    return Err(Error::new(ErrorKind::Conflict, message).caused_by(error).with_hint(
                        "make the backup when no migration is running, or end the session that has the table",
                    ));
                }
                Err(error) if error.causes().join(" ").contains("max_locks_per_transaction") => {
                    return Err(too_many(error));
                }
                read => read?,
            };
            let encoding = toc.encoding().ok_or_else(|| Error::internal("pg_dump named no encoding"))?;
            step(ctx, "locking the tables");
            match snapshot.lock(&toc, &encoding, session).await? {
                Locked::Yes(tables) => return Ok(Frozen { snapshot, toc, encoding, tables, warnings }),
                Locked::Changed(what) => why = what,
                Locked::TooMany(error) if attempt == ATTEMPTS => return Err(too_many(error)),
                Locked::TooMany(error) => {
                    // The session of pg_dump, which has as many, may not have ended yet.
                    why = error.to_string();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("the database kept changing: {why}")).with_hint(
            "make the backup when no migration is running; a dump may not run at the same time as DDL",
        ))
    }
}

/// Waits for the sessions. The first error ends the others, and is the one that is told: a session that fails drops
/// its part, which cancels the run, and that must not hide why.
async fn all(mut tasks: JoinSet<Result<()>>, ctx: &Ctx) -> Result<()> {
    let done = async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap_or_else(|e| Err(Error::internal("a session of the dump failed").caused_by(e)))?;
        }
        Ok(())
    };
    let mut done = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        done = done => done,
    };
    tasks.abort_all();
    while let Some(other) = tasks.join_next().await {
        if let (Err(first), Ok(Err(error))) = (&done, other)
            && first.kind() == ErrorKind::Cancelled
            && error.kind() != ErrorKind::Cancelled
        {
            done = Err(error);
        }
    }
    done
}

struct Frozen {
    snapshot: Snapshot,
    toc: Toc,
    encoding: String,
    tables: Vec<tables::Table>,
    warnings: Vec<String>,
}

/// Every table is locked, as `pg_dump` does.
fn too_many(error: Error) -> Error {
    error.doing("locking the tables").with_hint(
        "the server has no room for a lock on each table: raise max_locks_per_transaction, which takes a restart, until \
         max_locks_per_transaction * (max_connections + max_prepared_transactions) exceeds the number of tables twofold",
    )
}

fn step(ctx: &Ctx, what: &str) {
    ctx.observer.event(&Event::Step { what: what.to_owned() });
}

/// Whether `pg_dump` failed because something changed since the snapshot.
fn is_race(error: &Error) -> bool {
    let text = std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join("\n");
    error.kind() == ErrorKind::ToolFailed
        && ["does not exist", "could not open relation", "cache lookup failed", "lock timeout"]
            .iter()
            .any(|words| text.contains(words))
}

/// What [`Dump::preview`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// The database.
    pub database: String,
    /// The server's version.
    pub server_version: String,
    /// Version of the `pg_dump` that would run.
    pub pg_dump_version: String,
    /// Estimate of the bytes before compression.
    pub raw_bytes: u64,
}

/// A pooler that gives each transaction another session would tear the snapshot from its locks.
async fn refuse_pooler(session: &Session, connection: &ConnInfo) -> Result<()> {
    let pid = "SELECT pg_catalog.pg_backend_pid()";
    let mine = session.value(pid).await?;
    let other = connection.connect().await?;
    other.rows("BEGIN").await?;
    let theirs = other.value(pid).await?;
    let again = session.value(pid).await?;
    other.rows("ROLLBACK").await?;
    if mine != theirs && mine == again {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "a pooler in transaction mode stands before the server")
        .with_hint("connect to PostgreSQL itself, or through a pool in session mode"))
}

async fn extensions(session: &mut crate::postgres::CopySession) -> Result<Vec<ExtensionContents>> {
    let rows = session.rows("SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY 1").await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(name), Some(version)]) => Some(ExtensionContents { name, version }),
            _ => None,
        })
        .collect())
}

/// What may stand in the clear of a database and its server.
pub(in crate::logical) async fn server_facts(session: &Session) -> Result<Map<String, Value>> {
    let (_, version) = session.server_version().await?;
    let mut facts = Map::new();
    facts.insert("server_version".to_owned(), version.into());
    facts.insert("database".to_owned(), session.info().database().into());
    // Some managed services forbid it: then the backup does not say which cluster it is from.
    if let Ok(Some(id)) = session.value("SELECT system_identifier FROM pg_catalog.pg_control_system()").await
    {
        facts.insert("system_identifier".to_owned(), id.into());
    }
    Ok(facts)
}

#[async_trait]
impl Dumper for Dump {
    fn kind(&self) -> &'static str {
        KIND
    }

    /// What each session copies, and what it copied before that is not stored yet.
    fn max_open(&self, jobs: usize) -> usize {
        2 * jobs
    }

    fn working_bytes(&self) -> usize {
        4 * SESSION_BYTES
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped> {
        let session = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
            session = self.connection.connect() => session?,
        };
        let mut facts = server_facts(&session).await?;
        let (database, mut warnings) = self.database(&session, &parts, ctx).await?;
        facts.insert("pg_dump_version".to_owned(), database.pg_dump_version.clone().into());
        if !self.selection.is_everything() {
            facts.insert("selection".to_owned(), true.into());
        }
        warnings.extend(
            database
                .left_out
                .iter()
                .map(|left| format!("left out: {} {}: {}", left.count, left.what, left.why)),
        );
        for message in &warnings {
            ctx.observer.event(&Event::Warning { message: message.clone() });
        }
        let contents = LogicalContents { databases: vec![database], ..LogicalContents::default() };
        Ok(Dumped { facts, contents: contents.to_contents()?, warnings, ..Dumped::default() })
    }
}

/// What `pg_dump` writes of the session's database.
pub(super) async fn read_definitions(session: &Session, major: u32, tools: &Tools, ctx: &Ctx) -> Result<Toc> {
    definitions_of(session, major, tools, &Selection::default(), ctx).await
}

/// Has `pg_dump` write down what is selected of the session's database.
pub(crate) async fn definitions_of(
    session: &Session,
    major: u32,
    tools: &Tools,
    selection: &Selection,
    ctx: &Ctx,
) -> Result<Toc> {
    let tool = tools.find_for("pg_dump", major, session.info()).await?;
    let snapshot = Snapshot::take(session, major).await?;
    let arguments = selection.arguments(tool.major)?;
    toc::read(&tool, session.info(), &snapshot.name, arguments, ctx).await.map(|(toc, _)| toc)
}
