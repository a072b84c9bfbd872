//! Definitions, through stock `pg_restore` from the table of contents alone.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};

use super::super::archive::{BLOBS, DATA, Entry, POST_DATA, STATISTICS_DATA, TABLE_DATA, Toc};
use super::archive::{needs_script, plain_name, run_script};
use super::choice::Choice;
use super::failure::{self, Failure};
use super::options::LoadOptions;
use crate::dumper::Ctx;
use crate::error::{Error, Result};
use crate::postgres::{ConnInfo, Process, ProcessRun, Session, Staged, Tool, Tools};

/// Memory of the sessions that build indexes, together; PostgreSQL's own setting counts where it is higher.
const INDEX_MEMORY: u64 = 512 * 1024 * 1024;

/// Whether an entry stands in a list.
fn is_of(list: &str, entry: &Entry) -> bool {
    match list {
        WITHOUT_ROWS => entry.kind != TABLE_DATA && entry.kind != BLOBS,
        VIEWS => entry.kind == "MATERIALIZED VIEW DATA",
        _ => true,
    }
}

/// What restores the definitions of one database.
pub(super) struct Definitions<'a> {
    folder: Staged,
    tool: Tool,
    tools: &'a Tools,
    options: &'a LoadOptions,
    toc: &'a Toc,
    info: ConnInfo,
    target_major: u32,
    /// Where the restore goes on after errors.
    failures: Mutex<Vec<Failure>>,
    /// Whether nothing is left out.
    everything: bool,
    /// What is built as soon as a table has its rows, by the number of the rows' entry.
    early: HashMap<i32, Vec<Early>>,
    /// Lists of what is built of the other tables when all rows are there.
    small: Vec<String>,
    /// Whether there is something for [`beside`](Self::beside) and [`after`](Self::after) to do.
    beside: bool,
    after: bool,
}

/// An index, or what is made of one, that needs its table alone.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) list: String,
    /// `ALTER TABLE` lets nobody else at the table meanwhile; `CREATE INDEX` lets others of its kind.
    pub(super) exclusive: bool,
    /// How many of the table can be built at once with this one.
    pub(super) at_once: usize,
}

/// The entries of a file for `--use-list`.
const ALL: &str = "all";
/// Those that no rows belong to.
const WITHOUT_ROWS: &str = "without-rows";
/// What is made of rows.
const VIEWS: &str = "materialized-views";
/// What comes after the rows, without what is built as soon as tables have them.
const LATE: &str = "late";
/// Indexes of small tables that are worth a process of `pg_restore`.
const SMALL_INDEXES: usize = 100;
/// At most so many such processes: each reads the whole table of contents.
const SMALL_LISTS: usize = 16;

impl<'a> Definitions<'a> {
    /// Puts the table of contents where `pg_restore` reads it. Indexes of tables that are `large` can be built on their
    /// own; without any, all of them come after the rows.
    pub(super) async fn new(
        toc: &'a Toc,
        choice: &Choice,
        info: &ConnInfo,
        target_major: u32,
        tools: &'a Tools,
        options: &'a LoadOptions,
        large: &HashSet<i32>,
    ) -> Result<Self> {
        // pg_restore refuses archives of a newer pg_dump, and does best with a server of its own version.
        let tool = tools.find_for("pg_restore", toc.header.dump_major().max(target_major), info).await?;
        let mut files = Vec::new();
        let mut early: HashMap<i32, Vec<Early>> = HashMap::new();
        let mut is_early = HashSet::new();
        let mut of_small = Vec::new();
        for (rows, index) in indexes(toc).into_iter().filter(|(_, index)| choice.has(index.id)) {
            if !large.contains(&rows) {
                of_small.push(index.id);
                continue;
            }
            let list = format!("index-{}", index.id);
            files.push((list.clone(), of_entries([index.id])));
            early.entry(rows).or_default().push(Early { list, exclusive: index.kind != "INDEX", at_once: 1 });
            is_early.insert(index.id);
        }
        for builds in early.values_mut() {
            // Those that lock others out first: what goes on beside them is of other tables, which have theirs now.
            builds.sort_by_key(|early| !early.exclusive);
            let shared = builds.iter().filter(|early| !early.exclusive).count();
            builds.iter_mut().filter(|early| !early.exclusive).for_each(|early| early.at_once = shared);
        }
        let mut small = Vec::new();
        if !large.is_empty() && !of_small.is_empty() {
            let lists = of_small.len().div_ceil(SMALL_INDEXES).min(SMALL_LISTS);
            for (number, ids) in of_small.chunks(of_small.len().div_ceil(lists)).enumerate() {
                let list = format!("small-{number}");
                files.push((list.clone(), of_entries(ids.iter().copied())));
                small.push(list);
                is_early.extend(ids);
            }
        }
        // Definitions of large objects and sequences' values are among the data, and need no file.
        for name in [ALL, WITHOUT_ROWS, VIEWS, LATE] {
            let entries = toc.entries.iter().filter(|entry| choice.has(entry.id) && is_of(name, entry));
            let ids = entries.map(|entry| entry.id).filter(|id| name != LATE || !is_early.contains(id));
            files.push((name.to_owned(), of_entries(ids)));
        }
        let mut chosen =
            toc.entries.iter().filter(|entry| choice.has(entry.id) && entry.kind != STATISTICS_DATA);
        let beside = chosen.clone().any(|entry| entry.section == DATA && is_of(WITHOUT_ROWS, entry));
        let after = chosen.any(|entry| entry.section == POST_DATA && !is_early.contains(&entry.id));
        let folder = tool.stage().await?;
        folder.file("toc.dat", |to| toc.pieces().try_for_each(|piece| to.write_all(&piece))).await?;
        for (name, list) in files {
            folder.file(&name, |to| to.write_all(&list)).await?;
        }
        let failures = Mutex::default();
        Ok(Self {
            folder,
            tool,
            tools,
            options,
            toc,
            info: info.clone(),
            target_major,
            failures,
            everything: choice.is_everything(),
            early,
            small,
            beside,
            after,
        })
    }

    /// What failed, where the restore goes on after errors.
    pub(super) fn failures(&self) -> Vec<Failure> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What comes before the rows.
    pub(super) async fn before(&self, ctx: &Ctx) -> Result<Vec<String>> {
        self.run(&["--section=pre-data"], ALL, 1, &self.info, ctx).await
    }

    /// Values of sequences, and definitions of large objects where they are among the data.
    pub(super) async fn beside(&self, ctx: &Ctx) -> Result<Vec<String>> {
        if !self.beside {
            return Ok(Vec::new());
        }
        self.run(&["--section=data"], WITHOUT_ROWS, 1, &self.info, ctx).await
    }

    /// The same for a database that has the definitions: large objects themselves are made as well. All or nothing.
    pub(super) async fn data_only(&self, ctx: &Ctx) -> Result<Vec<String>> {
        self.run(&["--data-only", "--single-transaction"], WITHOUT_ROWS, 1, &self.info, ctx).await
    }

    /// Materialized views, which are made of rows.
    pub(super) async fn views(&self, ctx: &Ctx) -> Result<Vec<String>> {
        self.run(&["--section=post-data"], VIEWS, 1, &self.info, ctx).await
    }

    /// Removes what was put where `pg_restore` reads it.
    pub(super) async fn remove(self) -> Result<()> {
        self.folder.remove().await
    }

    /// What is built as soon as a table has its rows.
    pub(super) fn early(&self, rows: i32) -> &[Early] {
        self.early.get(&rows).map(Vec::as_slice).unwrap_or_default()
    }

    /// Builds what a list has, one after another; with `workers` the server may take more than one process for an index.
    pub(super) async fn build(
        &self,
        list: &str,
        workers: bool,
        info: &ConnInfo,
        ctx: &Ctx,
    ) -> Result<Vec<String>> {
        let alone = (!workers).then(|| info.with_options("-c max_parallel_maintenance_workers=0"));
        self.run(&["--section=post-data"], list, 1, alone.as_ref().unwrap_or(info), ctx).await
    }

    /// How many times [`build`](Self::build) is called.
    pub(super) fn builds(&self) -> usize {
        self.early.values().map(Vec::len).sum::<usize>() + self.small.len()
    }

    /// Lists of what is built of the other tables.
    pub(super) fn small(&self) -> &[String] {
        &self.small
    }

    /// What comes after the rows: constraints, triggers, materialized views, and indexes that are not there yet.
    pub(super) async fn after(&self, info: &ConnInfo, ctx: &Ctx) -> Result<Vec<String>> {
        if !self.after {
            return Ok(Vec::new());
        }
        let list = if self.early.is_empty() && self.small.is_empty() { ALL } else { LATE };
        self.run(&["--section=post-data"], list, ctx.jobs, info, ctx).await
    }

    /// How to connect for building indexes, in a database of so many bytes: with enough memory. From 18 on the server reads
    /// ahead by processes of its own, which costs a fifth more: what was just written, and fits into the cache of the
    /// operating system, need not be waited for.
    pub(super) async fn for_indexes(&self, session: &Session, bytes: u64, ctx: &Ctx) -> Result<ConnInfo> {
        let setting = async |name: &str| {
            let sql = format!("SELECT pg_catalog.pg_size_bytes(pg_catalog.current_setting('{name}'))");
            Ok::<u64, Error>(session.value(&sql).await?.and_then(|bytes| bytes.parse().ok()).unwrap_or(0))
        };
        let mut info = self.info.clone();
        let memory = INDEX_MEMORY / ctx.jobs.max(1) as u64;
        if setting("maintenance_work_mem").await? < memory {
            info = info.with_options(&format!("-c maintenance_work_mem={}kB", memory / 1024));
        }
        if bytes < setting("effective_cache_size").await? {
            info = info.with_options("-c effective_io_concurrency=0 -c maintenance_io_concurrency=0");
        }
        Ok(info)
    }

    async fn run(
        &self,
        what: &[&str],
        list: &str,
        jobs: usize,
        info: &ConnInfo,
        ctx: &Ctx,
    ) -> Result<Vec<String>> {
        let info = info.with_options("-c synchronous_commit=off");
        let script = needs_script(&self.tool, self.target_major);
        let mut args: Vec<String> = what.iter().map(|&arg| arg.to_owned()).collect();
        args.push("--no-password".to_owned());
        args.extend(self.options.arguments(self.tool.major));
        if list != ALL || !self.everything {
            args.push(format!("--use-list={}", self.folder.path().join(list).display()));
        }
        if script {
            args.push("--file=-".to_owned());
        } else {
            if !self.options.keep_going {
                args.push("--exit-on-error".to_owned());
            }
            args.push(format!("--dbname={}", plain_name(info.database())));
            args.push(format!("--jobs={jobs}"));
        }
        args.push(self.folder.path().display().to_string());
        let connection = (!script).then_some(&info);
        let run = ProcessRun { tool: &self.tool, args, connection, stdin: false, stdout: script };
        let mut process = Process::start(run)?;
        let mut words = Vec::new();
        if script {
            let stop = !self.options.keep_going;
            words = match run_script(&mut process, &info, &self.tool, self.tools, stop, ctx).await {
                Ok(words) => self.note(words),
                Err(error) => {
                    process.kill().await;
                    return Err(failure::explain(error, self.toc));
                }
            };
        }
        match process.finish(&ctx.cancel).await {
            Ok(more) => words.extend(more),
            Err(error) if self.options.keep_going && is_of_objects(&error) => {
                let said = error.source().map(ToString::to_string).unwrap_or_default();
                self.note(said.lines().map(str::to_owned).collect());
            }
            Err(error) => return Err(failure::explain(error, self.toc)),
        }
        Ok(words)
    }

    /// Keeps what failed; without it what was said.
    fn note(&self, words: Vec<String>) -> Vec<String> {
        let failures = failure::failures(&words.join("\n"), self.toc);
        if failures.is_empty() {
            return words;
        }
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).extend(failures);
        Vec::new()
    }
}

/// Whether the tool went through to the end.
fn is_of_objects(error: &Error) -> bool {
    error.source().is_some_and(|words| words.to_string().contains("errors ignored on restore"))
}

/// A file for `--use-list`.
fn of_entries(ids: impl IntoIterator<Item = i32>) -> Vec<u8> {
    ids.into_iter().flat_map(|id| format!("{id};\n").into_bytes()).collect()
}

/// What each table's index is made by, with the number of the rows' entry: it needs the table alone, and nothing else
/// needs to wait for it.
fn indexes(toc: &Toc) -> Vec<(i32, &Entry)> {
    let before: HashMap<i32, &Entry> = toc
        .entries
        .iter()
        .filter(|entry| entry.section != POST_DATA)
        .map(|entry| (entry.id, entry))
        .collect();
    let of_rows = toc.entries.iter().filter(|entry| entry.kind == TABLE_DATA);
    let tables: HashMap<i32, i32> = of_rows
        .flat_map(|rows| {
            let tables =
                rows.dependencies.iter().filter(|id| before.get(id).is_some_and(|e| e.kind == "TABLE"));
            tables.map(|table| (*table, rows.id)).collect::<Vec<_>>()
        })
        .collect();
    toc.entries
        .iter()
        .filter(|entry| entry.section == POST_DATA && matches!(entry.kind.as_str(), "INDEX" | "CONSTRAINT"))
        .filter(|entry| entry.dependencies.iter().all(|id| before.contains_key(id)))
        .filter_map(|entry| Some((entry.dependencies.iter().find_map(|id| tables.get(id).copied())?, entry)))
        .collect()
}
