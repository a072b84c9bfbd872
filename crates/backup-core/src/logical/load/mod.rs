//! Restoring a database: definitions by `pg_restore`, rows by COPY sessions.

mod add;
mod archive;
mod choice;
mod definitions;
mod failure;
mod fill;
mod flush;
mod large_objects;
mod old;
mod options;
mod order;
mod permits;
mod plan;
mod preflight;
mod rename;
mod rows;
mod statistics;
mod swap;
mod target;
mod there;
mod timescale;
mod whole;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Map, Value};

pub use old::{OldDatabase, drop_old_database, old_databases};
pub(crate) use options::near;
pub use options::{LoadOptions, TableName};
pub(super) use preflight::roles_of;
pub use target::Prospect;
pub(super) use target::is_taken;

use self::choice::Choice;
use self::fill::{Fill, Filled};
use self::swap::Swapped;
use self::target::{Ground, Target};
use super::archive::{Toc, TocReader};
use super::contents::{DatabaseContents, LogicalContents};
use super::{DatabaseFacts, KIND};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, Tools};

/// Restores a database: into a new one, into one that is empty, or as [`Existing`] and [`LoadOptions`] say.
#[derive(Debug, Clone)]
pub struct Load {
    connection: ConnInfo,
    tools: Tools,
    options: LoadOptions,
    database: Option<String>,
    existing: Existing,
    end_sessions: bool,
    cleared: Arc<AtomicBool>,
    keep_tablespace: bool,
}

/// What is done where the database exists and is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// It is left alone, and the restore fails; unless the options only add what is not there
    /// ([`LoadOptions::adds`]).
    #[default]
    Refuse,
    /// The backup is restored beside it, rows are counted, and then it takes the name. The old database is as it was
    /// until then, and after any failure.
    Swap {
        /// Drops the old database in the end. Otherwise it is kept as `NAME_pgark_old_<time>`.
        drop_old: bool,
    },
    /// The objects of the backup are dropped where they are there, in one transaction, and made anew. What is not in the
    /// backup stays; where it depends on something that is, nothing is dropped. A failure after that leaves the database
    /// without these objects: make a backup of it before.
    Clean,
}

/// The entries of a database that has nothing.
static NOTHING: std::sync::LazyLock<HashSet<i32>> = std::sync::LazyLock::new(HashSet::new);

/// What comes of the target and this restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing is there.
    Fresh,
    /// It is added to what is there.
    Add,
    /// A new database takes the old one's place.
    Swap { drop_old: bool },
}

impl Load {
    /// Restores into the database that `connection` names.
    pub fn into(connection: ConnInfo) -> Self {
        Self {
            connection,
            tools: Tools::installed(),
            options: LoadOptions::default(),
            database: None,
            existing: Existing::Refuse,
            end_sessions: false,
            cleared: Arc::default(),
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

    /// What is done where the database exists and is not empty.
    #[must_use]
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// Ends the sessions of others that are in the way of a swap.
    #[must_use]
    pub fn end_sessions(mut self, end: bool) -> Self {
        self.end_sessions = end;
        self
    }

    /// Whether a restore with [`Existing::Clean`] has dropped objects; of this value or a clone of it.
    pub fn has_cleared(&self) -> bool {
        self.cleared.load(Ordering::Relaxed)
    }

    /// Looks at the database that the restore goes into, and changes nothing.
    ///
    /// # Errors
    /// Those of a connection.
    pub async fn prospect(&self) -> Result<Prospect> {
        Ok(Ground::look(&self.connection).await?.prospect())
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

    /// What is done with the database, or that nothing is.
    fn way(&self, ground: &Ground, source: &dyn PartSource) -> Result<Way> {
        let name = &ground.name;
        let usage = |message: &str, hint: &str| {
            Err(Error::new(ErrorKind::Usage, message.to_owned()).with_hint(hint.to_owned()))
        };
        let is_empty = ground.database.as_ref().map(|there| there.empty);
        if let (Existing::Swap { drop_old }, Some(_)) = (self.existing, is_empty) {
            let of_selection = source.facts().get("selection").and_then(Value::as_bool) == Some(true);
            if self.options.adds() || self.options.schema_only || of_selection {
                return usage(
                    "only a whole database can take the place of another: the rest of it would be lost",
                    "restore into another name, or add to the database that is there: leave --swap and --replace out",
                );
            }
            if self.options.keep_going {
                return usage(
                    "a database that is restored in spite of errors does not take the place of another",
                    "restore into another name with --keep-going",
                );
            }
            return Ok(Way::Swap { drop_old });
        }
        if self.existing == Existing::Clean && is_empty == Some(false) {
            if self.options.data_only || !self.options.rename_schemas.is_empty() {
                return usage(
                    "objects are only dropped to make the same ones anew",
                    "leave --clean out, or --data-only and --rename-schema",
                );
            }
            return Ok(Way::Add);
        }
        match is_empty {
            None if self.options.data_only => {
                Err(Error::new(ErrorKind::NoDatabase, format!("there is no database {name}"))
                    .with_hint("rows alone need tables that are there; leave --data-only out to make them"))
            }
            Some(_) if self.options.data_only => Ok(Way::Add),
            None | Some(true) => Ok(Way::Fresh),
            Some(false) if self.options.adds() => Ok(Way::Add),
            Some(false) => {
                Err(Error::new(ErrorKind::Conflict, format!("the database {name} exists and is not empty"))
                    .with_hint(
                        "restore into another name, which will be created; or let it take the place of this one: --swap \
                         keeps the old one under another name, --replace drops it in the end; or add a part of the backup \
                         to it: --table, --schema, --data-only",
                    ))
            }
        }
    }

    async fn restore_database(
        &self,
        source: &Arc<dyn PartSource>,
        database: &DatabaseContents,
        ctx: &Ctx,
    ) -> Result<Map<String, Value>> {
        let ground = Ground::look(&self.connection).await?;
        let way = self.way(&ground, &**source)?;
        let toc = read_toc(&**source, database).await?;
        let there = match way {
            Way::Add => there::there(&self.connection.connect().await?, &toc).await?,
            _ => HashSet::new(),
        };
        let renames = way == Way::Add && !self.options.rename_schemas.is_empty();
        // A scratch database has nothing that the target has.
        let asked = if renames { rename::selection(&self.options) } else { self.options.clone() };
        let choice = Choice::new(&toc, &asked, if renames { &NOTHING } else { &there })?;
        let creates = ground.database.is_none() || matches!(way, Way::Swap { .. });
        let mut findings = preflight::check(&ground, &toc, &choice, database, &self.options, creates).await?;
        findings.warnings.extend(swap::left_behind(&ground.maintenance, &ground.name).await?);
        match way {
            Way::Fresh => {}
            Way::Add if self.existing == Existing::Clean => {}
            Way::Add if renames => {
                let session = self.connection.connect().await?;
                findings.problems.extend(rename::obstacles(&session, &self.options).await?);
            }
            Way::Add => findings.problems.extend(add::obstacles(&toc, &choice, &there, &self.options)),
            Way::Swap { .. } => {
                let found = swap::obstacles(&ground.maintenance, &ground.name, self.end_sessions).await?;
                findings.problems.extend(found);
            }
        }
        warn(findings.into_warnings()?, ctx);
        warn(choice.left_out.clone(), ctx);
        let mut other_names = None;
        let clean = way == Way::Add && self.existing == Existing::Clean;
        let (mut toc, mut choice, mut there) = (toc, choice, there);
        if clean {
            (choice, there) = self.clear(&toc, &choice, &there).await?;
        }
        if renames {
            let mut new =
                rename::in_scratch(&ground, database, &toc, &choice, &asked, &self.tools, ctx).await?;
            there = there::there(&self.connection.connect().await?, &new.toc).await?;
            choice = Choice::new(&new.toc, &new.options, &there)?;
            let problems = add::obstacles(&new.toc, &choice, &there, &new.options);
            preflight::Findings { problems, ..preflight::Findings::default() }.into_warnings()?;
            new.keep(&choice);
            std::mem::swap(&mut toc, &mut new.toc);
            other_names = Some(new);
        }
        let target = self.target(ground, way, &database.facts).await?;
        let fill = Fill {
            source,
            database,
            toc: &toc,
            choice: &choice,
            target: &target,
            tools: &self.tools,
            options: &self.options,
            fresh: way != Way::Add,
            renamed: other_names.as_ref(),
        };
        let done = async {
            let filled = fill.run(ctx).await?;
            if way != Way::Add {
                rename::at_the_end(&target.info().connect().await?, &self.options).await?;
            }
            let Way::Swap { drop_old } = way else { return Ok((filled, None)) };
            fill.compare(ctx).await?;
            let swapped = swap::swap(&target, &self.connection, self.end_sessions, drop_old, ctx).await?;
            Ok((filled, Some(swapped)))
        };
        let (Filled { words, failures }, swapped) = match done.await {
            Ok(done) => done,
            Err(error) if clean => {
                let error = add::undo(&target, &toc, &choice, &there, &self.options, error).await;
                return Err(error.doing("the objects of the backup are dropped"));
            }
            Err(error) if way == Way::Add => {
                return Err(add::undo(&target, &toc, &choice, &there, &self.options, error).await);
            }
            Err(error) => return Err(target.undo(&self.connection, error).await),
        };
        warn(words, ctx);
        if let Some(error) = failure::all(&failures) {
            return Err(error);
        }
        Ok(told(&target, swapped.map(|swapped| (swapped, &self.connection))))
    }

    /// The database that is filled: made where it is not there.
    async fn target(&self, ground: Ground, way: Way, facts: &DatabaseFacts) -> Result<Target> {
        if let Way::Swap { .. } = way {
            let name = swap::new_name(&ground.name);
            return ground.beside(name, facts).await;
        }
        let mut facts = facts.clone();
        facts.tablespace = facts.tablespace.filter(|_| self.keep_tablespace);
        ground.target(&facts).await
    }

    /// Drops what is made anew. What is left to restore, and what is there now.
    async fn clear(
        &self,
        toc: &Toc,
        choice: &Choice,
        there: &HashSet<i32>,
    ) -> Result<(Choice, HashSet<i32>)> {
        let session = self.connection.connect().await?;
        add::clear(&session, toc, choice, there).await?;
        self.cleared.store(true, Ordering::Relaxed);
        let there = there::there(&session, toc).await?;
        let mut choice = Choice::new(toc, &self.options, &there)?;
        choice.without_shared(toc, &there);
        Ok((choice, there))
    }
}

/// What is told of a restore; where the new database took the place of another, that connection.
fn told(target: &Target, swapped: Option<(Swapped, &ConnInfo)>) -> Map<String, Value> {
    let mut told = Map::new();
    told.insert("server_version".to_owned(), target.version.clone().into());
    let Some((swapped, connection)) = swapped else {
        told.insert("database".to_owned(), target.name.clone().into());
        told.insert("created".to_owned(), target.created.into());
        return told;
    };
    told.insert("database".to_owned(), connection.database().into());
    told.insert("created".to_owned(), false.into());
    told.insert("swapped".to_owned(), true.into());
    told.insert("old_database".to_owned(), swapped.kept.into());
    told
}

fn warn(words: Vec<String>, ctx: &Ctx) {
    for message in words {
        ctx.observer.event(&Event::Warning { message });
    }
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

#[async_trait]
impl Restorer for Load {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        self.options.check()?;
        if let Some(contents) = LogicalContents::from_contents(parts.contents())? {
            return self.restore_database(&parts, self.choose(&contents)?, ctx).await;
        }
        let facts = DatabaseFacts::from_contents(parts.contents())?;
        self.restore_whole(&*parts, &facts, ctx).await
    }
}
