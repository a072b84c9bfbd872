//! Filling a database: definitions, rows, what is made of rows.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::archive::{Entry, Toc};
use super::super::contents::{DatabaseContents, TableContents};
use super::choice::Choice;
use super::definitions::Definitions;
use super::failure::Failure;
use super::options::LoadOptions;
use super::plan::{Plan, Task};
use super::rename::Renamed;
use super::target::Target;
use super::worker::Work;
use super::{order, rows, timescale};
use crate::dumper::{Ctx, PartSource};
use crate::error::Result;
use crate::postgres::{CopySession, Session, Tools, quote_identifier};

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
        let definitions =
            Definitions::new(self.toc, self.choice, &info, self.target.major, self.tools, self.options)?;
        let session = info.connect().await?;
        let mut filled = Filled::default();
        let timescale = self.fresh && timescale::is_wanted(self.toc, self.choice);
        if timescale {
            timescale::before(&session).await?;
        }
        if self.options.data_only {
            self.data_only(&definitions, &session, &mut filled, ctx).await?;
        } else {
            filled.words.extend(definitions.before(ctx).await?);
            if !self.options.schema_only {
                filled.words.extend(definitions.beside(ctx).await?);
                let sessions = rows::sessions(&session, &self.encoding(), self.options, ctx.jobs).await?;
                let wanted = |id: i32| match self.renamed {
                    Some(renamed) => renamed.rows.contains_key(&id),
                    None => self.choice.has(id),
                };
                self.rows(sessions, &wanted, ctx.jobs, &mut filled, ctx).await?;
            }
            filled.words.extend(definitions.after(ctx).await?);
        }
        if timescale {
            timescale::after(&session).await?;
        }
        filled.failures.extend(definitions.failures());
        self.afterwards(&session, ctx).await?;
        Ok(filled)
    }

    fn encoding(&self) -> String {
        self.toc.encoding().unwrap_or_else(|| "UTF8".to_owned())
    }

    /// The tables whose rows are loaded.
    fn tables(&self) -> impl Iterator<Item = (&TableContents, &Entry)> {
        let entries = self.toc.entries.iter().map(|entry| (entry.id, entry));
        let entries: std::collections::HashMap<i32, &Entry> = entries.collect();
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
        let mut sessions = rows::sessions(session, &self.encoding(), self.options, jobs).await?;
        for level in levels {
            sessions = self.rows(sessions, &|id| level.contains(&id), jobs, filled, ctx).await?;
        }
        if !self.options.schema_only {
            filled.words.extend(definitions.data_only(ctx).await?);
        }
        for own in &mut sessions {
            own.rows("COMMIT").await?;
        }
        let of_objects = |id: i32| {
            self.choice.has(id) && self.toc.entry(id).is_some_and(|e| e.kind == super::super::archive::BLOBS)
        };
        let mut plain = self.options.clone();
        plain.data_only = false;
        let sessions = rows::sessions(session, &self.encoding(), &plain, ctx.jobs).await?;
        self.rows(sessions, &of_objects, ctx.jobs, filled, ctx).await?;
        filled.words.extend(definitions.views(ctx).await?);
        Ok(())
    }

    async fn rows(
        &self,
        sessions: Vec<CopySession>,
        wanted: &(dyn Fn(i32) -> bool + Sync),
        jobs: usize,
        filled: &mut Filled,
        ctx: &Ctx,
    ) -> Result<Vec<CopySession>> {
        // Rows have the numbers that their entries have in the backup.
        let of_backup = self.renamed.map_or(self.toc, |renamed| &renamed.toc);
        let plan = Plan::new(of_backup, self.database, &**self.source, jobs, wanted)?;
        let Plan { mut tables, first, then } = plan;
        for (id, table) in &mut tables {
            if let Some(entry) = self.renamed.and_then(|renamed| renamed.rows.get(id)) {
                table.name = format!("{}.{}", entry.schema_text(), entry.name_text());
                table.entry = entry.clone();
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
        let work = Arc::new(Work {
            tables,
            tasks: Mutex::new(tasks),
            source: Arc::clone(self.source),
            fresh: !self.options.data_only,
            held: self.options.data_only,
            // What is one transaction fails as a whole.
            failures: (self.options.keep_going && !self.options.data_only).then(Mutex::default),
        });
        let sessions = rows::load(sessions, &work, first, ctx).await?;
        if let Some(failures) = &work.failures {
            filled.failures.append(&mut *failures.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(sessions)
    }

    /// Statistics, and indexes where that is asked for.
    async fn afterwards(&self, session: &Session, ctx: &Ctx) -> Result<()> {
        let names = if self.fresh {
            rows::tables(session).await?
        } else if let Some(renamed) = self.renamed {
            let name = |entry: &Entry| String::from_utf8_lossy(&entry.qualified()).into_owned();
            renamed.rows.values().map(name).collect()
        } else {
            self.tables().map(|(_, entry)| String::from_utf8_lossy(&entry.qualified()).into_owned()).collect()
        };
        if self.options.reindex {
            if self.fresh {
                let sql = format!("REINDEX DATABASE {}", quote_identifier(&self.target.name));
                rows::run_all(session, vec![sql], ctx).await?;
            } else {
                let statements = names.iter().map(|name| format!("REINDEX TABLE {name}"));
                rows::run_all(session, statements.collect(), ctx).await?;
            }
        }
        if self.options.no_analyze {
            return Ok(());
        }
        rows::run_all(session, names.iter().map(|name| format!("ANALYZE {name}")).collect(), ctx).await
    }

    /// Compares the numbers of rows with those of the backup. Tables of extensions have rows of their own, and rows that
    /// go in through the root of partitions are elsewhere.
    pub(super) async fn compare(&self, ctx: &Ctx) -> Result<()> {
        let of_table = |entry: &Entry| {
            let tables = entry.dependencies.iter().filter_map(|id| self.toc.entry(*id));
            tables.into_iter().any(|table| table.kind == "TABLE")
        };
        let expected = self
            .tables()
            .filter(|(_, entry)| !entry.through_root() && of_table(entry))
            .map(|(table, entry)| (String::from_utf8_lossy(&entry.qualified()).into_owned(), table.rows));
        rows::compare(&self.target.info().connect().await?, expected.collect(), ctx).await
    }
}
