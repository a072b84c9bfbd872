//! A table as it was: out of a backup, into a live database.
//!
//! A [`Recover`] restores as little of a backup as the table needs: of a physical one into a throwaway server on this host
//! ([`physical`](crate::physical) leaves out the files of other tables), of a logical one into a scratch database beside
//! the live one. There the table is read, and goes under a new name into the live database; or what a query says of it; or
//! the rows go back that the live table has lost. In the live database everything happens in one transaction.

mod copy;
mod merge;
mod rows;
mod source;
mod table;
mod target;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use self::merge::Merged;
use self::source::{Opened, Source};
use self::table::Table;
pub use self::target::TargetFacts;
use crate::audit::{self, Act, Outcome};
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::logical::TableName;
use crate::physical::Recovery;
use crate::postgres::{ConnInfo, Tools};
use crate::repository::{BackupRecord, BackupSummary, Repository};

/// What becomes of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// A new table, with the rows, indexes, defaults and checks of the old one. Its foreign keys, triggers, policies and
    /// privileges do not come along; one that was partitioned is a plain one.
    Copy(TableName),
    /// A new table with the rows of a query, which is run where the table is as it was.
    Query {
        /// The query.
        sql: String,
        /// The new table.
        name: TableName,
    },
    /// Rows go back into the live table whose primary keys it does not have.
    MergeMissing {
        /// Columns of the backup that have another name now: old, new; or are left out.
        columns: Vec<(String, Option<String>)>,
    },
}

/// Recovers a table. Needed are a repository, a backup and a database.
#[derive(Clone)]
pub struct Recover {
    repository: Repository,
    record: BackupRecord,
    into: ConnInfo,
    tables: Vec<TableName>,
    way: Way,
    database: Option<String>,
    recovery: Recovery,
    whole: bool,
    tools: Tools,
    work_dir: Option<PathBuf>,
    encryptor: Option<Arc<dyn Encryptor>>,
    jobs: Option<usize>,
    observer: Arc<dyn Observer>,
}

/// What was recovered.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RecoveredTable {
    /// The backup.
    pub backup: BackupSummary,
    /// The table in the backup; of a query the first that was named.
    pub table: Option<String>,
    /// The table in the live database.
    pub into: String,
    /// Rows that were copied; where they were merged, those that were put back.
    pub rows: u64,
    /// What became of the rows that were merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged: Option<Merged>,
    /// What was restored for it: `tables`, `cluster`, of a logical backup `chunks`.
    pub restored: &'static str,
    /// Raw bytes that were read from the backup.
    pub raw_bytes: u64,
    /// Bytes of files of the backup that were left out.
    pub spared_bytes: u64,
    /// What a person should know: what did not come along, what was done otherwise.
    pub notes: Vec<String>,
}

impl Recover {
    /// Out of a backup, into the database that `into` names. `tables` are those that are needed: the table itself; of a
    /// query all that it reads, or none where everything is to be restored for it.
    pub fn new(
        repository: Repository,
        record: BackupRecord,
        into: ConnInfo,
        tables: Vec<TableName>,
        way: Way,
    ) -> Self {
        Self {
            repository,
            record,
            into,
            tables,
            way,
            database: None,
            recovery: Recovery::default(),
            whole: false,
            tools: Tools::installed(),
            work_dir: None,
            encryptor: None,
            jobs: None,
            observer: Arc::new(Silent),
        }
    }

    /// The database in the backup; by default that of the name which the live one has, or the only one.
    #[must_use]
    pub fn database(mut self, name: Option<String>) -> Self {
        self.database = name;
        self
    }

    /// Up to where a physical backup recovers.
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// Restores the whole cluster from a physical backup.
    #[must_use]
    pub fn whole(mut self, whole: bool) -> Self {
        self.whole = whole;
        self
    }

    /// Where PostgreSQL's programs are. A physical backup needs those of a server of its own major version.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// Where the throwaway server's folder is made; the system's temporary folder by default.
    #[must_use]
    pub fn work_dir(mut self, folder: Option<PathBuf>) -> Self {
        self.work_dir = folder;
        self
    }

    /// What opens the backup's key.
    #[must_use]
    pub fn encryptor(mut self, encryptor: Option<Arc<dyn Encryptor>>) -> Self {
        self.encryptor = encryptor;
        self
    }

    /// How much is done at once; by default as much as there are cores.
    #[must_use]
    pub fn jobs(mut self, jobs: Option<usize>) -> Self {
        self.jobs = jobs;
        self
    }

    /// Who is told what happens.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// The new table's name, or that of the live table.
    fn name(&self) -> Result<TableName> {
        match &self.way {
            Way::Copy(name) | Way::Query { name, .. } => Ok(name.clone()),
            Way::MergeMissing { .. } => self.table().cloned(),
        }
    }

    fn table(&self) -> Result<&TableName> {
        self.tables.first().ok_or_else(|| Error::new(ErrorKind::Usage, "no table is named"))
    }

    /// Looks at the live database, and changes nothing: whether the new table's name is free there, or the live table is
    /// one that rows can be put back into.
    ///
    /// # Errors
    /// Those of a connection; [`Conflict`](ErrorKind::Conflict) where the name is taken; [`Usage`](ErrorKind::Usage) where
    /// the table is not there.
    pub async fn look(&self) -> Result<TargetFacts> {
        target::look(&self.into, &self.name()?, &self.way).await
    }

    /// Runs it.
    ///
    /// # Errors
    /// Nothing is changed in the live database then.
    pub async fn run(&self, cancel: &CancellationToken) -> Result<RecoveredTable> {
        let facts = self.look().await?;
        let act =
            || Act::new("recover").backups([&self.record.id]).detail("database", facts.database.clone());
        let note = |outcome| audit::note_if_possible(&self.repository, &self.record.cluster, act(), outcome);
        note(Outcome::Begun).await;
        let result = self.attempts(&facts, cancel).await;
        note(Outcome::of(&result)).await;
        result
    }

    /// Tries with as little as it takes, and with more where that was not enough.
    async fn attempts(&self, facts: &TargetFacts, cancel: &CancellationToken) -> Result<RecoveredTable> {
        let (mut more, mut whole, mut notes) = (HashSet::new(), self.whole, Vec::new());
        // By then every file that a table can have is known.
        for last in [false, false, true] {
            let attempt = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::cancelled()),
                attempt = self.attempt(facts, whole, &more, cancel) => attempt,
            };
            let again = match attempt {
                Ok(Attempt::Done(mut done)) => {
                    notes.append(&mut done.notes);
                    done.notes = notes;
                    return Ok(*done);
                }
                Ok(Attempt::Needs(missing)) if !last => {
                    more.extend(missing);
                    "the table had another name or other files when the backup was made".to_owned()
                }
                Ok(Attempt::Needs(_)) => return Err(Error::internal("files of the table are missing again")),
                Ok(Attempt::NotThisWay(e)) if !whole && !last => {
                    whole = true;
                    std::iter::once(e.to_string()).chain(e.causes()).collect::<Vec<_>>().join(": ")
                }
                Ok(Attempt::NotThisWay(e)) | Err(e) => return Err(e),
            };
            let what = if whole { "the whole cluster" } else { "more files" };
            let message = format!("restoring {what}: {again}");
            self.observer.event(&Event::Step { what: message.clone() });
            notes.push(message);
        }
        Err(Error::internal("a table was not recovered, without a reason"))
    }

    async fn attempt(
        &self,
        facts: &TargetFacts,
        whole: bool,
        more: &HashSet<u32>,
        cancel: &CancellationToken,
    ) -> Result<Attempt> {
        let opened = async {
            let source = Source::open(self, facts, whole, more, cancel).await?;
            let missing = source.missing_files(&self.tables, self.needs_indexes()).await?;
            Ok((source, missing))
        };
        let is_physical = self.record.kind == crate::physical::KIND;
        let (source, missing) = match opened.await {
            Ok(opened) => opened,
            Err(e) if is_physical && may_start_whole(&e) => return Ok(Attempt::NotThisWay(e)),
            Err(e) => return Err(e),
        };
        if !missing.is_empty() {
            return Ok(Attempt::Needs(missing));
        }
        match self.extract(&source, facts, cancel).await {
            Ok(done) => Ok(Attempt::Done(Box::new(done))),
            Err(e) if is_physical && is_of_files(&e) => Ok(Attempt::NotThisWay(e)),
            Err(e) => Err(e),
        }
    }

    fn needs_indexes(&self) -> bool {
        matches!(self.way, Way::Query { .. })
    }

    async fn extract(
        &self,
        source: &Source,
        facts: &TargetFacts,
        cancel: &CancellationToken,
    ) -> Result<RecoveredTable> {
        let step = |what: String| self.observer.event(&Event::Step { what });
        let name = self.name()?;
        let mut notes = Vec::new();
        let (table, rows, merged) = match &self.way {
            Way::Copy(_) => {
                let table = Table::find(source.session(), self.table()?).await?;
                step(format!("copying {}", table.name));
                let rows = copy::copy(source, &table, &self.into, &name, &self.tools, cancel, &mut notes);
                (Some(table.name.to_string()), rows.await?, None)
            }
            Way::Query { sql, .. } => {
                source.remove_left_out().await?;
                step("running the query".to_owned());
                let rows = copy::query(source, sql, &self.into, &name, &self.tools, cancel, &mut notes);
                (self.tables.first().map(ToString::to_string), rows.await?, None)
            }
            Way::MergeMissing { columns } => {
                let table = Table::find(source.session(), self.table()?).await?;
                step(format!("putting back rows of {}", table.name));
                let merged = merge::merge(source, &table, &self.into, columns, facts, &mut notes).await?;
                (Some(table.name.to_string()), merged.put_back, Some(merged))
            }
        };
        let Opened { restored, raw_bytes, spared_bytes } = source.opened();
        Ok(RecoveredTable {
            backup: self.record.summary.clone(),
            table,
            into: name.to_string(),
            rows,
            merged,
            restored,
            raw_bytes,
            spared_bytes,
            notes,
        })
    }
}

/// What came of an attempt.
enum Attempt {
    Done(Box<RecoveredTable>),
    /// Numbers of files without which the table is not whole.
    Needs(Vec<u32>),
    /// It failed, and may come from what was left out.
    NotThisWay(Error),
}

/// Whether a server that does not start, or does not answer as it should, may do so with the whole cluster.
fn may_start_whole(error: &Error) -> bool {
    let unreached = || error.causes().iter().any(|cause| cause.contains("recovery target"));
    match error.kind() {
        ErrorKind::ToolFailed => !unreached(),
        ErrorKind::Unsupported | ErrorKind::ConnectionLost => true,
        _ => is_of_files(error),
    }
}

/// Whether the server misses a file, or finds damage in one.
fn is_of_files(error: &Error) -> bool {
    // A library that is not here is none of the cluster's files.
    let library = || {
        error.to_string().contains("could not access file")
            || error.to_string().contains("could not load library")
    };
    matches!(error.sqlstate(), Some("58P01" | "58030" | "XX000" | "XX001" | "XX002")) && !library()
}
