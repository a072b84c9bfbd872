//! Filling a database: definitions, rows, what is made of rows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc};

use super::super::archive::{BLOBS, Entry, Toc};
use super::super::contents::{DatabaseContents, TableContents};
use super::choice::Choice;
use super::definitions::Definitions;
use super::failure::Failure;
use super::options::LoadOptions;
use super::permits::Permits;
use super::plan::{Destination, Plan, Task, Wanted};
use super::rename::Renamed;
use super::statistics::Carried;
use super::target::Target;
use super::worker::{Full, Work};
use super::{flush, order, rows, statistics, timescale};
use crate::dumper::{Ctx, PartSource};
use crate::error::{Error, Result};
use crate::postgres::{ConnInfo, CopySession, Session, Tools, quote_identifier};

/// Bytes of rows from which on a table's indexes are built on their own.
const LARGE_TABLE: u64 = 32 * 1024 * 1024;

/// What goes where.
pub(super) struct Fill<'a> {
    pub(super) source: &'a Arc<dyn PartSource>,
    pub(super) database: &'a DatabaseContents,
    pub(super) toc: &'a Toc,
    pub(super) choice: &'a Choice,
    pub(super) target: &'a Target,
    pub(super) tools: &'a Tools,
    pub(super) options: &'a LoadOptions,
    /// Whether everything in the database is of this restore.
    pub(super) fresh: bool,
    /// Where schemas get other names, the backup's own table of contents, and the rows' entries with the new names.
    pub(super) renamed: Option<&'a Renamed>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Filled {
    pub(super) words: Vec<String>,
    /// Where the restore goes on after errors.
    pub(super) failures: Vec<Failure>,
}

impl Fill<'_> {
    pub(super) async fn run(&self, ctx: &Ctx) -> Result<Filled> {
        let info = self.target.info();
        let large = if self.overlaps() {
            self.database.tables.iter().filter(|t| t.bytes >= LARGE_TABLE).map(|t| t.entry).collect()
        } else {
            HashSet::new()
        };
        let major = self.target.major;
        let definitions =
            Definitions::new(self.toc, self.choice, &info, major, self.tools, self.options, &large).await?;
        let filled = self.fill(&definitions, ctx).await;
        let removed = definitions.remove().await;
        let filled = filled?;
        removed?;
        Ok(filled)
    }

    /// Whether indexes are built while rows of other tables are loaded.
    fn overlaps(&self) -> bool {
        !self.options.data_only && !self.options.schema_only && self.renamed.is_none()
    }

    async fn fill(&self, definitions: &Definitions<'_>, ctx: &Ctx) -> Result<Filled> {
        let session = self.target.info().connect().await?;
        // It waits while rows are loaded and indexes are built.
        session.rows("SET idle_session_timeout = 0").await?;
        // An archive that was imported does not say how large its database was.
        let bytes =
            self.tables().map(|(table, _)| table.bytes).sum::<u64>().max(self.database.database_bytes);
        let for_indexes = definitions.for_indexes(&session, bytes, ctx).await?;
        let mut filled = Filled::default();
        let timescale = self.fresh && timescale::is_wanted(self.toc, self.choice);
        if timescale {
            timescale::before(&session).await?;
        }
        if self.options.data_only {
            self.data_only(definitions, &session, &mut filled, ctx).await?;
        } else {
            filled.words.extend(definitions.before(ctx).await?);
            if !self.options.schema_only {
                filled.words.extend(definitions.beside(ctx).await?);
                let major = self.target.major;
                let sessions =
                    rows::sessions(&session, major, &self.encoding(), self.options, ctx.jobs).await?;
                let wanted = |id: i32| match self.renamed {
                    Some(renamed) => renamed.rows.contains_key(&id).then_some(0),
                    None => self.choice.has(id).then(|| definitions.early(id).len()),
                };
                let (finished, of_tables) = mpsc::unbounded_channel();
                let permits = Arc::new(Permits::new(ctx.jobs));
                let rows = async {
                    tokio::select! {
                        rows = self.rows(sessions, &wanted, &permits, finished, &mut filled, ctx) => rows,
                        never = flush::keep_flushing(&session) => match never {},
                    }
                };
                let indexes = self.indexes(definitions, &session, &for_indexes, of_tables, &permits, ctx);
                let (sessions, words) = tokio::try_join!(rows, indexes)?;
                for session in sessions {
                    session.close().await;
                }
                filled.words.extend(words);
            }
            filled.words.extend(definitions.after(&for_indexes, ctx).await?);
        }
        if timescale {
            timescale::after(&session).await?;
        }
        filled.failures.extend(definitions.failures());
        filled.words.extend(self.afterwards(&session, ctx).await?);
        flush::flush(&session).await?;
        Ok(filled)
    }

    fn encoding(&self) -> String {
        self.toc.encoding().unwrap_or_else(|| "UTF8".to_owned())
    }

    /// The tables whose rows are loaded.
    fn tables(&self) -> impl Iterator<Item = (&TableContents, &Entry)> {
        let entries = self.toc.by_id();
        let tables = self.database.tables.iter().filter(|table| self.choice.has(table.entry));
        tables.filter_map(move |table| Some((table, *entries.get(&table.entry)?)))
    }

    /// Rows into tables that are there: all of them are committed when the last one is in.
    async fn data_only(
        &self,
        definitions: &Definitions<'_>,
        session: &Session,
        filled: &mut Filled,
        ctx: &Ctx,
    ) -> Result<()> {
        let tables: Vec<&TableContents> = self.tables().map(|(table, _)| table).collect();
        // Sessions do not see each other's rows before the end, and foreign keys need to.
        let (jobs, levels) = if self.options.disable_triggers {
            (ctx.jobs, vec![tables.iter().map(|table| table.entry).collect::<HashSet<i32>>()])
        } else {
            (1, order::levels(session, &tables).await?)
        };
        let mut sessions =
            rows::sessions(session, self.target.major, &self.encoding(), self.options, jobs).await?;
        for level in levels {
            sessions =
                self.rows_alone(sessions, &|id| level.contains(&id).then_some(0), jobs, filled, ctx).await?;
        }
        if !self.options.schema_only {
            filled.words.extend(definitions.data_only(ctx).await?);
        }
        for own in &mut sessions {
            own.rows("COMMIT").await?;
        }
        let of_objects = |id: i32| {
            let entry = self.toc.entry(id).filter(|entry| entry.kind == BLOBS && self.choice.has(id));
            entry.map(|_| 0)
        };
        let mut plain = self.options.clone();
        plain.data_only = false;
        let sessions = rows::sessions(session, self.target.major, &self.encoding(), &plain, ctx.jobs).await?;
        self.rows_alone(sessions, &of_objects, ctx.jobs, filled, ctx).await?;
        filled.words.extend(definitions.views(ctx).await?);
        Ok(())
    }

    /// Rows, and no index meanwhile.
    async fn rows_alone(
        &self,
        sessions: Vec<CopySession>,
        wanted: &Wanted<'_>,
        jobs: usize,
        filled: &mut Filled,
        ctx: &Ctx,
    ) -> Result<Vec<CopySession>> {
        let (finished, _) = mpsc::unbounded_channel();
        self.rows(sessions, wanted, &Arc::new(Permits::new(jobs)), finished, filled, ctx).await
    }

    /// Builds indexes of large tables as these have their rows, and gathers statistics, when a job is free; those of
    /// small tables when all rows are there.
    async fn indexes(
        &self,
        definitions: &Definitions<'_>,
        session: &Session,
        info: &ConnInfo,
        mut of_tables: mpsc::UnboundedReceiver<Full>,
        permits: &Permits,
        ctx: &Ctx,
    ) -> Result<Vec<String>> {
        let carried = self.carried();
        let to_begin = AtomicUsize::new(definitions.builds());
        let begin = async |weight: u64| {
            let permit = permits.acquire(weight).await;
            (permit, to_begin.fetch_sub(1, Ordering::Relaxed) == 1)
        };
        let counts: HashMap<i32, u64> = self.tables().map(|(table, _)| (table.entry, table.rows)).collect();
        let table = async |Full { rows, permit }: Full| {
            let turns = Semaphore::new(ctx.jobs);
            let builds = definitions.early(rows).iter().map(async |early| {
                // Who would wait for the server's lock must not keep others from working.
                let wanted = if early.exclusive { u32::try_from(ctx.jobs).unwrap_or(u32::MAX) } else { 1 };
                let turn = turns.acquire_many(wanted).await.map_err(|_| Error::cancelled())?;
                // To sort takes the most time; and others wait for who has the table alone.
                let weight = counts.get(&rows).copied().unwrap_or(0) * if early.exclusive { 2 } else { 1 };
                let (permit, is_last) = begin(weight).await;
                // Several processes for one index cost more than one does: only where they would be idle otherwise, at
                // once or as soon as the others have ended.
                let workers = is_last || (early.at_once < ctx.jobs && permits.free() > 0);
                let words = definitions.build(&early.list, workers, info, ctx).await?;
                // Those who wait for the table ask before a permit is given on, so that it goes to the longest job.
                drop(turn);
                tokio::task::yield_now().await;
                drop(permit);
                Ok::<_, Error>(words)
            });
            let have_asked = async { drop(permit) };
            let (words, ()) = futures::future::join(futures::future::try_join_all(builds), have_asked).await;
            let mut words = words?.concat();
            if self.fresh
                && !self.options.no_analyze
                && let Some(entry) = self.toc.entry(rows).filter(|entry| !carried.has(entry))
            {
                let _permit = permits.acquire(0).await;
                let names = vec![entry.qualified()];
                words.extend(statistics::analyze(session, &self.encoding(), names, ctx).await?);
            }
            Ok::<_, Error>(words)
        };
        let of_small = async |list: &str| {
            let (_permit, _) = begin(0).await;
            definitions.build(list, false, info, ctx).await
        };
        let (mut of_large, mut small) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut words = Vec::new();
        let mut open = true;
        while open || !of_large.is_empty() || !small.is_empty() {
            tokio::select! {
                full = of_tables.recv(), if open => {
                    if let Some(full) = full {
                        of_large.push(table(full));
                    } else {
                        open = false;
                        small.extend(definitions.small().iter().map(|list| of_small(list)));
                    }
                }
                Some(built) = of_large.next(), if !of_large.is_empty() => words.extend(built?),
                Some(built) = small.next(), if !small.is_empty() => words.extend(built?),
            }
        }
        Ok(words)
    }

    async fn rows(
        &self,
        sessions: Vec<CopySession>,
        wanted: &Wanted<'_>,
        permits: &Arc<Permits>,
        finished: mpsc::UnboundedSender<Full>,
        filled: &mut Filled,
        ctx: &Ctx,
    ) -> Result<Vec<CopySession>> {
        // Rows have the numbers that their entries have in the backup.
        let of_backup = self.renamed.map_or(self.toc, |renamed| &renamed.toc);
        let jobs = permits.free();
        let plan = Plan::new(of_backup, self.database, &**self.source, jobs, wanted)?;
        let Plan { mut tables, first, then } = plan;
        for (id, table) in &mut tables {
            if let Some(entry) = self.renamed.and_then(|renamed| renamed.rows.get(id)) {
                table.name = format!("{}.{}", entry.schema_text(), entry.name_text());
                table.to = Destination::of(entry)?;
            }
        }
        let (mut large_objects, mut tasks) = (VecDeque::new(), VecDeque::new());
        for task in then {
            if matches!(task, Task::LargeObjects(_)) {
                large_objects.push_back(task);
            } else {
                tasks.push_back(task);
            }
        }
        tasks.append(&mut large_objects);
        let mut waiting = HashMap::new();
        for task in &tasks {
            if let Task::Chunks { table, .. } = task {
                *waiting.entry(*table).or_default() += 1;
            }
        }
        let work = Arc::new(Work {
            tables,
            waiting: Mutex::new(waiting),
            permits: Arc::clone(permits),
            tasks: Mutex::new(tasks),
            source: Arc::clone(self.source),
            fresh: !self.options.data_only,
            held: self.options.data_only,
            // What is one transaction fails as a whole.
            failures: (self.options.keep_going && !self.options.data_only).then(Mutex::default),
        });
        let sessions = rows::load(sessions, &work, first, finished, ctx).await?;
        if let Some(failures) = &work.failures {
            filled.failures.append(&mut *failures.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(sessions)
    }

    /// Statistics that the backup has: tables that are made now are as they were.
    fn carried(&self) -> Carried<'_> {
        if self.options.no_analyze
            || self.options.data_only
            || self.options.schema_only
            || self.renamed.is_some()
        {
            return Carried::default();
        }
        Carried::new(self.toc, self.choice, self.target.major)
    }

    /// Statistics, and indexes where that is asked for.
    async fn afterwards(&self, session: &Session, ctx: &Ctx) -> Result<Vec<String>> {
        let names: Vec<Vec<u8>> = if self.fresh {
            statistics::names(session).await?
        } else if let Some(renamed) = self.renamed {
            renamed.rows.values().map(Entry::qualified).collect()
        } else {
            self.tables().map(|(_, entry)| entry.qualified()).collect()
        };
        // Names of all tables are in the encoding of the database, those of a backup in that of the backup.
        let encoding = if self.fresh { rows::encoding(session).await? } else { self.encoding() };
        let with = |verb: &str| names.iter().map(|name| [verb.as_bytes(), name].concat()).collect();
        if self.options.reindex {
            if self.fresh {
                let sql = format!("REINDEX DATABASE {}", quote_identifier(&self.target.name));
                rows::values(session, "UTF8", vec![sql.into_bytes()], ctx).await?;
            } else {
                rows::values(session, &encoding, with("REINDEX TABLE "), ctx).await?;
            }
        }
        if self.options.no_analyze {
            return Ok(Vec::new());
        }
        let taken = self.carried().load(session, &self.encoding(), ctx).await?;
        let names = names.into_iter().filter(|name| !taken.contains(name)).collect();
        statistics::analyze(session, &encoding, names, ctx).await
    }

    /// Compares the numbers of rows with those of the backup. Tables of extensions have rows of their own, and rows that
    /// go in through the root of partitions are elsewhere.
    pub(super) async fn compare(&self, ctx: &Ctx) -> Result<()> {
        let is_table = |entry: &&Entry| entry.kind == "TABLE";
        let made: HashSet<i32> = self.toc.entries.iter().filter(is_table).map(|entry| entry.id).collect();
        let of_table = |entry: &Entry| entry.dependencies.iter().any(|id| made.contains(id));
        let expected = self
            .tables()
            .filter(|(_, entry)| !entry.through_root() && of_table(entry))
            .map(|(table, entry)| (entry.qualified(), table.rows));
        let session = self.target.info().connect().await?;
        rows::compare(&session, &self.encoding(), expected.collect(), ctx).await
    }
}
