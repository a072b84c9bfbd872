//! Recovering a table, as frontends do it.

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::logical::TableName;
use backup_core::physical::{Recovery, Target, span};
use backup_core::postgres::ConnInfo;
use backup_core::recover::{Recover, Way};
use backup_core::repository::{BackupRecord, BackupSummary, Catalog};
use backup_core::{Encryptor, Error, ErrorKind, Repository, Result, logical, physical};
use jiff::Timestamp;
use serde::Serialize;

use super::Settings;

/// What is to be recovered, and from what.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RecoverOptions {
    /// The table; of a query all that it reads.
    pub tables: Vec<TableName>,
    /// What becomes of it.
    pub way: RecoverWay,
    /// The backup: an id, the beginning of one, or `latest`. The fitting one by default.
    pub backup: Option<String>,
    /// From a logical backup, though there are physical ones.
    pub from_logical: bool,
    /// Up to where a physical backup recovers.
    pub recovery: Recovery,
    /// The database in the backup; by default that of the live one's name.
    pub database: Option<String>,
    /// Where the throwaway server is made.
    pub work_dir: Option<PathBuf>,
    /// Restores the whole cluster for it.
    pub whole: bool,
}

/// What becomes of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoverWay {
    /// A new table.
    Copy {
        /// Its name; one that says of when it is by default.
        name: Option<String>,
        /// Its schema; that of the old one by default.
        schema: Option<String>,
    },
    /// A new table with the rows of a query.
    Query {
        /// The query.
        sql: String,
        /// The table's name.
        name: String,
        /// Its schema; that of the first table, or `public`, by default.
        schema: Option<String>,
    },
    /// Rows go back into the live table.
    MergeMissing {
        /// Columns that have another name now: old, new; or are left out.
        columns: Vec<(String, Option<String>)>,
    },
}

impl Default for RecoverWay {
    fn default() -> Self {
        Self::Copy { name: None, schema: None }
    }
}

/// What a recovery will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RecoverPlan {
    /// The backup.
    pub backup: BackupSummary,
    /// Its record.
    #[serde(skip)]
    pub record: BackupRecord,
    /// Up to where it recovers, in words.
    pub target: String,
    /// How it recovers. A frontend adds the command that fetches WAL where it [is needed](Self::needs_archive).
    #[serde(skip)]
    pub recovery: Recovery,
    /// Whether WAL comes from the archive.
    pub needs_archive: bool,
    /// The table that is made, or that rows go back into.
    pub into: String,
}

impl Settings {
    /// Chooses the backup to recover a table from, and looks whether the target can be reached.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) for what contradicts itself; those of
    /// [`plan_recovery`](Settings::plan_recovery).
    pub async fn plan_recover(
        &self,
        repository: &Repository,
        catalog: &Catalog,
        options: &RecoverOptions,
    ) -> Result<RecoverPlan> {
        let recovery = &options.recovery;
        let given = options.backup.as_deref().filter(|backup| *backup != "latest");
        let physical: Vec<BackupSummary> = match given {
            Some(wanted) => vec![catalog.find(wanted)?.clone()],
            None => catalog.staying().filter(|backup| backup.kind == physical::KIND).cloned().collect(),
        };
        let of_logical = options.from_logical
            || matches!(&physical[..], [one] if one.kind == logical::KIND)
            || (physical.is_empty() && recovery.target == Target::Latest);
        if of_logical {
            return self.plan_logical(repository, catalog, options, given).await;
        }
        let (plan, archived) = self.plan_recovery(repository, catalog.cluster(), &physical, recovery).await?;
        let mut recovery = recovery.clone();
        recovery.timeline = Some(plan.timeline);
        let brings_wal = span(&plan.backup).is_none_or(|span| span.wal.brings_wal);
        let needs_archive = recovery.restore_command.is_none()
            && archived
            && !(brings_wal && recovery.target == Target::Immediate);
        let record = repository.record(catalog.cluster(), &plan.backup.id).await?;
        Ok(RecoverPlan {
            into: options.new_name()?.to_string(),
            target: words(&recovery),
            backup: record.summary.clone(),
            record,
            recovery,
            needs_archive,
        })
    }

    async fn plan_logical(
        &self,
        repository: &Repository,
        catalog: &Catalog,
        options: &RecoverOptions,
        given: Option<&str>,
    ) -> Result<RecoverPlan> {
        if options.recovery.target != Target::Latest {
            let message = "a logical backup has its tables as they were when it began, and at no other time";
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("name the backup without a target; pgark list shows when each was made"));
        }
        let id = if let Some(wanted) = given {
            catalog.find(wanted)?.id.clone()
        } else {
            let newest = catalog.latest_whole(logical::KIND).ok_or_else(|| {
                Error::new(ErrorKind::BackupNotFound, "there is no backup to recover from")
                    .with_hint("pgark backup makes one")
            })?;
            newest.id.clone()
        };
        let record = repository.record(catalog.cluster(), &id).await?;
        if record.kind != logical::KIND {
            return Err(Error::new(ErrorKind::Usage, format!("backup {id} is no logical one"))
                .with_hint("leave --from-logical out"));
        }
        Ok(RecoverPlan {
            into: options.new_name()?.to_string(),
            target: format!("as it was at {}", record.started),
            backup: record.summary.clone(),
            record,
            recovery: options.recovery.clone(),
            needs_archive: false,
        })
    }

    /// What recovers as it was planned.
    ///
    /// # Errors
    /// Those of keys.
    pub fn recover(
        &self,
        repository: Repository,
        plan: &RecoverPlan,
        options: &RecoverOptions,
        into: ConnInfo,
    ) -> Result<Recover> {
        let way = match &options.way {
            RecoverWay::Copy { .. } => Way::Copy(options.new_name()?),
            RecoverWay::Query { sql, .. } => Way::Query { sql: sql.clone(), name: options.new_name()? },
            RecoverWay::MergeMissing { columns } => Way::MergeMissing { columns: columns.clone() },
        };
        let encryptor = self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
        let recover = Recover::new(repository, plan.record.clone(), into, options.tables.clone(), way);
        Ok(recover
            .database(options.database.clone())
            .recovery(plan.recovery.clone())
            .whole(options.whole)
            .tools(self.tools())
            .work_dir(options.work_dir.clone())
            .encryptor(encryptor)
            .jobs(self.jobs))
    }
}

impl RecoverOptions {
    /// The name of the table that is made, or that rows go back into.
    fn new_name(&self) -> Result<TableName> {
        let first = self.tables.first();
        let table = || {
            first.cloned().ok_or_else(|| {
                Error::new(ErrorKind::Usage, "no table is named")
                    .with_hint("name it with --table SCHEMA.TABLE")
            })
        };
        let within = |schema: &Option<String>| {
            let of_table = || first.map_or_else(|| "public".to_owned(), |table| table.schema.clone());
            schema.clone().unwrap_or_else(of_table)
        };
        Ok(match &self.way {
            RecoverWay::MergeMissing { .. } => table()?,
            RecoverWay::Query { name, schema, .. } => {
                TableName { schema: within(schema), name: name.clone() }
            }
            RecoverWay::Copy { name: Some(name), schema } => {
                table()?;
                TableName { schema: within(schema), name: name.clone() }
            }
            RecoverWay::Copy { name: None, schema } => {
                let time = match self.recovery.target {
                    Target::Time(time) => time,
                    _ => Timestamp::now(),
                };
                let end = format!("_recovered_{}", time.strftime("%Y%m%d_%H%M%S"));
                let table = table()?.name;
                let mut cut = table.len().min(63 - end.len());
                while !table.is_char_boundary(cut) {
                    cut -= 1;
                }
                TableName { schema: within(schema), name: format!("{}{end}", &table[..cut]) }
            }
        })
    }
}

/// Up to where it recovers.
fn words(recovery: &Recovery) -> String {
    let before = if recovery.exclusive { "just before" } else { "at" };
    match &recovery.target {
        Target::Latest => "as far as there is WAL".to_owned(),
        Target::Immediate => "at the end of the backup".to_owned(),
        Target::Time(time) => format!("{before} {time}"),
        Target::Lsn(lsn) => format!("{before} {lsn}"),
        Target::Xid(xid) => format!("{before} the commit of transaction {xid}"),
        Target::Name(name) => format!("{before} the restore point {name:?}"),
    }
}
