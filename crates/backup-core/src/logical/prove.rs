//! A logical backup in a throwaway server: restored whatever roles and locales are there, and compared with itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::archive::{Entry, Toc};
use super::contents::{DatabaseContents, LogicalContents, TableContents};
use super::dump::{SETTINGS, Table};
use super::load::{read_toc, roles_of};
use super::{DatabaseFacts, KIND, Load, LoadOptions, RowHasher};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, CopySession, Session, Tools, quote_identifier, quote_literal};

/// What a backup says of a database.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) contents: DatabaseContents,
    pub(crate) toc: Arc<Toc>,
}

/// Restores every database of a backup into an empty server.
#[derive(Clone)]
pub(crate) struct ProofLoad {
    connection: ConnInfo,
    tools: Tools,
    restored: Arc<Mutex<Vec<Known>>>,
    names: Arc<Mutex<Vec<String>>>,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Tables whose rows were read.
    pub(crate) tables: u64,
    /// Their rows, as the backup counts them.
    pub(crate) rows: u64,
    /// Tables that cannot be compared: rows of extensions, rows that were loaded through the root of partitions, and what
    /// a physical backup does not bring.
    pub(crate) left_out: u64,
    /// What differs, a line each.
    pub(crate) found: Vec<String>,
}

impl ProofLoad {
    /// Into the server that `connection` reaches, as its superuser.
    pub(crate) fn into(connection: ConnInfo, tools: Tools) -> Self {
        Self { connection, tools, restored: Arc::default(), names: Arc::default() }
    }

    /// The databases that were restored.
    pub(crate) fn databases(&self) -> Vec<String> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes roles that the backup names and does not bring.
    async fn roles(&self, session: &Session, toc: &Toc, ctx: &Ctx) -> Result<()> {
        let known = session.rows("SELECT rolname FROM pg_catalog.pg_roles").await?;
        let known: HashSet<String> = known.into_iter().filter_map(|row| row.into_iter().next()?).collect();
        let missing: Vec<String> = roles_of(toc).into_iter().filter(|role| !known.contains(role)).collect();
        for role in &missing {
            session.rows(&format!("CREATE ROLE {}", quote_identifier(role))).await?;
        }
        if !missing.is_empty() {
            let message = format!(
                "roles that the backup names and does not bring were made for this drill, without rights: {}; a real restore needs them",
                missing.join(", ")
            );
            ctx.observer.event(&Event::Warning { message });
        }
        Ok(())
    }

    /// Makes the database. One whose locale this server does not know gets another one: rows are the same in it.
    async fn create(&self, session: &Session, facts: &DatabaseFacts, major: u32, ctx: &Ctx) -> Result<()> {
        let name = quote_identifier(&facts.name);
        session.rows(&format!("DROP DATABASE IF EXISTS {name}")).await?;
        let mut facts = facts.clone();
        facts.tablespace = None;
        let Err(error) = facts.create(session, &facts.name, major).await else { return Ok(()) };
        if !matches!(error.kind(), ErrorKind::Database | ErrorKind::Unsupported) {
            return Err(error);
        }
        let sql = format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'",
            quote_literal(&facts.encoding)
        );
        if session.rows(&sql).await.is_err() {
            return Err(error);
        }
        let message = format!(
            "the database {} has locale C in this drill: its own, {}, is not known here; a real restore needs it",
            facts.name, facts.collate
        );
        ctx.observer.event(&Event::Warning { message });
        Ok(())
    }

    async fn load(
        &self,
        parts: &Arc<dyn PartSource>,
        facts: &DatabaseFacts,
        load: Load,
        ctx: &Ctx,
    ) -> Result<()> {
        let session = self.connection.with_database("template1").connect().await?;
        let (major, _) = session.server_version().await?;
        self.create(&session, facts, major, ctx).await?;
        // Nobody may be connected to what databases are made of.
        drop(session);
        load.tools(self.tools.clone()).restore(Arc::clone(parts), ctx).await?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(facts.name.clone());
        Ok(())
    }
}

#[async_trait]
impl Restorer for ProofLoad {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let Some(contents) = LogicalContents::from_contents(parts.contents())? else {
            let facts = DatabaseFacts::from_contents(parts.contents())?;
            let load = Load::into(self.connection.with_database(&facts.name));
            self.load(&parts, &facts, load, ctx).await?;
            return Ok(Map::new());
        };
        let session = self.connection.with_database("postgres").connect().await?;
        if let Some(part) = contents.globals {
            super::server::restore_globals(&session, &*parts, part, ctx).await?;
        }
        let mut tocs = Vec::new();
        for database in contents.databases {
            let toc = read_toc(&*parts, &database).await?;
            self.roles(&session, &toc, ctx).await?;
            tocs.push((database, toc));
        }
        drop(session);
        for (database, toc) in tocs {
            let name = &database.facts.name;
            let options = LoadOptions { no_tablespaces: true, ..LoadOptions::default() };
            let load = Load::into(self.connection.with_database(name)).options(options).database(name);
            let loaded = self.load(&parts, &database.facts, load, ctx).await;
            loaded.map_err(|e| e.doing(format!("restoring the database {name}")))?;
            let restored = Known { contents: database, toc: Arc::new(toc) };
            self.restored.lock().unwrap_or_else(PoisonError::into_inner).push(restored);
        }
        Ok(Map::new())
    }
}

/// A table to compare.
struct Task {
    sql: Vec<u8>,
    name: String,
    rows: u64,
    fingerprint: String,
    bytes: u64,
}

impl ProofLoad {
    /// Reads the rows of all tables and compares them with what the backup says of them. `connection` may lead there
    /// another way than the restore did. Nothing where the backup says nothing of its tables.
    pub(crate) async fn compare(
        &self,
        connection: &ConnInfo,
        jobs: usize,
        cancel: &CancellationToken,
    ) -> Result<Option<Compared>> {
        let restored = std::mem::take(&mut *self.restored.lock().unwrap_or_else(PoisonError::into_inner));
        if restored.is_empty() {
            return Ok(None);
        }
        compare(&restored, connection, true, jobs, cancel).await.map(Some)
    }
}

/// Reads the rows of all tables of databases and compares them with what a backup says of them. Unlogged and foreign
/// tables only where the server `has_all` of them.
///
/// # Errors
/// Those of connections. What the server cannot read is a finding.
pub(crate) async fn compare(
    databases: &[Known],
    connection: &ConnInfo,
    has_all: bool,
    jobs: usize,
    cancel: &CancellationToken,
) -> Result<Compared> {
    let mut all = Compared::default();
    for database in databases {
        let name = &database.contents.facts.name;
        let session = match connection.with_database(name).connect().await {
            Ok(session) => session,
            Err(error) if error.kind() == ErrorKind::NoDatabase => {
                all.found.push(format!("database {name}: it is not there"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let compared = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::cancelled()),
            compared = compare_database(&session, database, has_all, jobs) => compared,
        };
        let mut compared = compared.map_err(|e| e.doing(format!("comparing the database {name}")))?;
        all.tables += compared.tables;
        all.rows += compared.rows;
        all.left_out += compared.left_out;
        compared.found.sort();
        all.found.extend(compared.found.into_iter().map(|found| format!("database {name}: {found}")));
    }
    Ok(all)
}

/// Whether the rows are those of the backup alone: not those of an extension, and not elsewhere.
fn comparable<'a>(
    entries: &HashMap<i32, &'a Entry>,
    table: &TableContents,
    made: &HashSet<i32>,
) -> Option<&'a Entry> {
    let entry =
        entries.get(&table.entry).copied().filter(|entry| Table::has_rows(entry) && !entry.through_root())?;
    entry.dependencies.iter().any(|id| made.contains(id)).then_some(entry)
}

/// Tables whose rows a physical backup does not bring: unlogged ones, which a recovery empties, and foreign ones.
async fn not_of_the_cluster(session: &Session) -> Result<HashSet<(String, String)>> {
    let sql = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind = 'f' OR c.relpersistence = 'u'";
    let pair = |row: Vec<Option<String>>| match <[Option<String>; 2]>::try_from(row) {
        Ok([Some(schema), Some(name)]) => Some((schema, name)),
        _ => None,
    };
    Ok(session.rows(sql).await?.into_iter().filter_map(pair).collect())
}

async fn compare_database(
    session: &Session,
    database: &Known,
    has_all: bool,
    jobs: usize,
) -> Result<Compared> {
    let Known { contents, toc } = database;
    let is_table = |entry: &&Entry| entry.kind == "TABLE";
    let made: HashSet<i32> = toc.entries.iter().filter(is_table).map(|entry| entry.id).collect();
    let (mut compared, entries) = (Compared::default(), toc.by_id());
    let mut tasks = Vec::new();
    let elsewhere = if has_all { HashSet::new() } else { not_of_the_cluster(session).await? };
    for table in &contents.tables {
        let own = |_: &&Entry| !elsewhere.contains(&(table.schema.clone(), table.name.clone()));
        let Some(entry) = comparable(&entries, table, &made).filter(own) else {
            compared.left_out += 1;
            continue;
        };
        compared.tables += 1;
        compared.rows += table.rows;
        tasks.push(Task {
            sql: Table::new(entry, table.schema.clone(), table.name.clone()).copy_sql(None),
            name: format!("{}.{}", table.schema, table.name),
            rows: table.rows,
            fingerprint: table.fingerprint.clone(),
            bytes: table.bytes,
        });
    }
    // The largest first, so that none is left alone at the end.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.bytes));
    let encoding = toc.encoding().unwrap_or_else(|| "UTF8".to_owned());
    let tasks = Arc::new(Mutex::new(VecDeque::from(tasks)));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..jobs.max(1) {
        let mut own = session.copy_session().await?;
        own.rows(format!("{SETTINGS} SET client_encoding = {}", quote_literal(&encoding))).await?;
        let tasks = Arc::clone(&tasks);
        workers.spawn(async move {
            let mut found = Vec::new();
            loop {
                let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(task) = next else { break };
                found.extend(compare_table(&mut own, &task).await?);
            }
            own.close().await;
            Ok::<_, Error>(found)
        });
    }
    while let Some(done) = workers.join_next().await {
        let done = done.unwrap_or_else(|e| Err(Error::internal("a session failed").caused_by(e)));
        compared.found.extend(done?);
    }
    if let Some(objects) = &contents.large_objects {
        let count = session.value("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata").await?;
        let count: u64 = count.and_then(|count| count.parse().ok()).unwrap_or(0);
        if count != objects.count {
            compared.found.push(format!("{count} large objects, and in the backup {}", objects.count));
        }
    }
    Ok(compared)
}

/// What is wrong with a table.
async fn compare_table(session: &mut CopySession, task: &Task) -> Result<Option<String>> {
    let mut hasher = RowHasher::default();
    let name = &task.name;
    let read = async {
        session.copy_out(&task.sql).await?;
        while session.copied(|piece, ends| hasher.piece(piece, ends)).await? {}
        session.copied_out().await
    };
    match read.await {
        Ok(_) => {}
        // What the server cannot read is a finding.
        Err(error) if error.kind() == ErrorKind::Database => {
            return Ok(Some(format!("table {name} cannot be read: {error}")));
        }
        Err(error) => return Err(error.doing(format!("reading table {name}"))),
    }
    let found = hasher.done;
    Ok(if found.rows != task.rows {
        Some(format!("table {name} has {} rows, and in the backup {}", found.rows, task.rows))
    } else if found.hex() != task.fingerprint {
        Some(format!("table {name} has other rows than those that were backed up"))
    } else {
        None
    })
}
