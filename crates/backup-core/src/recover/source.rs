//! Where the table is as it was: a throwaway server, or a scratch database.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::table::literal_of;
use super::{Recover, TargetFacts};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::logical::{Load, LoadOptions, TableName};
use crate::physical::{DATA, Outcome, PartialDirectory, settled};
use crate::postgres::work_folder::{self, WorkFolder, default_parent};
use crate::postgres::{
    ConnInfo, Session, Throwaway, major_of, quote_identifier, quote_literal, server_owner,
};
use crate::restore::Restore;

/// The folders of throwaway servers begin so.
const FOLDER: &str = "pgark-recover-";
const SCRATCH: &str = "_pgark_recover_";
/// Bytes of a name (`NAMEDATALEN`).
const NAME_BYTES: usize = 63;

/// A session where the table is as it was, and what it takes to have it.
pub(super) struct Source {
    session: Session,
    /// Its major version.
    pub(super) major: u32,
    opened: Opened,
    place: Place,
}

/// What was restored for it.
#[derive(Clone, Copy)]
pub(super) struct Opened {
    pub(super) restored: &'static str,
    pub(super) raw_bytes: u64,
    pub(super) spared_bytes: u64,
}

enum Place {
    /// In this order they end: the server, and then its folder.
    Server {
        outcome: Outcome,
        _server: Throwaway,
        folder: WorkFolder,
    },
    Scratch {
        _scratch: Scratch,
    },
}

impl Source {
    pub(super) async fn open(
        recover: &Recover,
        facts: &TargetFacts,
        whole: bool,
        more: &HashSet<u32>,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        if recover.record.kind == crate::physical::KIND {
            physical(recover, whole, more, cancel).await
        } else {
            logical(recover, facts, cancel).await
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn opened(&self) -> Opened {
        self.opened
    }

    /// Numbers of files that tables have here and that were left out: without them they are not whole.
    pub(super) async fn missing_files(&self, tables: &[TableName], indexes: bool) -> Result<Vec<u32>> {
        let Place::Server { outcome, .. } = &self.place else { return Ok(Vec::new()) };
        let Some(database) = outcome.database else { return Ok(Vec::new()) };
        let here = self
            .session
            .value("SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()");
        if here.await?.and_then(|oid| oid.parse().ok()) != Some(database) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the database of this name is another one than when the backup was made",
            ));
        }
        let named = tables.iter().map(literal_of).collect::<Vec<_>>().join(", ");
        let named = if named.is_empty() { "('', '')".to_owned() } else { named };
        let sql = format!(
            "WITH RECURSIVE tree(oid) AS (
               SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE (n.nspname::text, c.relname::text) IN ({named})
               UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid),
             toast(oid) AS (SELECT c.reltoastrelid FROM pg_catalog.pg_class c JOIN tree USING (oid) WHERE c.reltoastrelid <> 0),
             files(oid) AS (
               SELECT oid FROM tree UNION SELECT oid FROM toast
               UNION SELECT i.indexrelid FROM pg_catalog.pg_index i
                 WHERE i.indrelid IN (SELECT oid FROM toast) OR ({indexes} AND i.indrelid IN (SELECT oid FROM tree))
               UNION SELECT d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
                   AND d.refobjid IN (SELECT oid FROM tree)
               UNION SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid < 16384)
             SELECT DISTINCT pg_catalog.pg_relation_filenode(oid) FROM files"
        );
        let rows = self.session.rows(&sql).await?;
        let numbers =
            rows.into_iter().filter_map(|row| row.into_iter().next().flatten()?.parse::<u32>().ok());
        Ok(numbers.filter(|number| outcome.left_out.contains(number)).collect())
    }

    /// Removes what stands for the files that were left out, so that whoever reads them meets an error and not an empty
    /// table. What the server still has of them in memory is written before, and nothing reads it again without looking how
    /// long the file is.
    pub(super) async fn remove_left_out(&self) -> Result<()> {
        let Place::Server { outcome, folder, .. } = &self.place else { return Ok(()) };
        if outcome.left_out_paths.is_empty() {
            return Ok(());
        }
        self.session.rows("CHECKPOINT").await?;
        let (data, paths) = (folder.path().join(DATA), outcome.left_out_paths.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let mut folders = std::collections::BTreeMap::<_, HashSet<String>>::new();
            for path in &paths {
                let number = path.file_name().map(|name| name.to_string_lossy().into_owned());
                folders.entry(path.parent().unwrap_or(Path::new(""))).or_default().extend(number);
            }
            for (below, numbers) in folders {
                let failed = |e| Error::io("removing files that were left out", e);
                let Ok(entries) = std::fs::read_dir(data.join(below)) else { continue };
                for entry in entries {
                    let entry = entry.map_err(failed)?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let number = name.split(['.', '_']).next().unwrap_or_default();
                    if numbers.contains(number) {
                        std::fs::remove_file(entry.path()).map_err(failed)?;
                    }
                }
            }
            Ok(())
        });
        removed.await.map_err(|e| Error::internal("removing files failed").caused_by(e))?
    }
}

async fn physical(
    recover: &Recover,
    whole: bool,
    more: &HashSet<u32>,
    cancel: &CancellationToken,
) -> Result<Source> {
    let version = recover.record.source.get("server_version").and_then(Value::as_str).unwrap_or_default();
    let major = major_of(version).unwrap_or(0);
    let bin = Throwaway::programs(&recover.tools, major)?;
    let parent = recover.work_dir.clone().unwrap_or_else(default_parent);
    // What killed ones left had nothing else running.
    work_folder::sweep(&parent, FOLDER, |_| {});
    let folder = WorkFolder::make(&parent, FOLDER, server_owner()?, settled)?;
    let database = recover.database.clone().unwrap_or_else(|| recover.into.database().to_owned());
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let names = || recover.tables.iter().map(|table| (table.schema.clone(), table.name.clone())).collect();
    let everything = whole || recover.tables.is_empty();
    let partial = PartialDirectory {
        folder: folder.path().to_owned(),
        recovery: recover.recovery.clone(),
        database: database.clone(),
        tables: (!everything).then(names),
        indexes: recover.needs_indexes(),
        more: more.clone(),
        outcome: Arc::clone(&outcome),
    };
    let mut builder = Restore::builder()
        .backup(recover.repository.clone(), recover.record.clone())
        .restorer(partial)
        .observer(Arc::clone(&recover.observer))
        .shared_encryptor(recover.encryptor.clone());
    if let Some(jobs) = recover.jobs {
        builder = builder.jobs(jobs);
    }
    let restored = builder.build()?.open_and_restore(cancel).await?;
    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let step = |what: &str| recover.observer.event(&Event::Step { what: what.to_owned() });
    step("replaying the WAL in a throwaway server");
    let users = outcome.superusers.clone();
    let started =
        tokio::task::spawn_blocking(move || Throwaway::start(bin, &folder, users).map(|s| (s, folder)));
    let (server, folder) =
        started.await.map_err(|e| Error::internal("starting a server failed").caused_by(e))??;
    let session = server.connect(&database, cancel).await.map_err(|e| no_database(e, &database))?;
    // Event triggers of the source do not fire here: the settings say so.
    let mut damaged = None;
    server.invalid_pages(|path| {
        if !outcome.left_out_paths.contains(path) {
            damaged.get_or_insert_with(|| path.to_owned());
        }
    })?;
    if let Some(path) = damaged {
        let message = format!("the WAL changes pages of {} that the backup does not have", path.display());
        return Err(Error::new(ErrorKind::Integrity, message)
            .with_hint("the backup or its WAL is damaged: recover from another backup"));
    }
    let opened = Opened {
        restored: if everything { "cluster" } else { "tables" },
        raw_bytes: restored.raw_bytes,
        spared_bytes: outcome.spared,
    };
    let place = Place::Server { outcome, _server: server, folder };
    Ok(Source { session, major, opened, place })
}

fn no_database(error: Error, database: &str) -> Error {
    if error.kind() == ErrorKind::NoDatabase {
        return Error::new(ErrorKind::NoDatabase, format!("there was no database {database} at this time"))
            .with_hint("--database names the one that the table was in")
            .caused_by(error);
    }
    error
}

/// A scratch database, which goes with this value.
struct Scratch {
    info: ConnInfo,
    name: String,
    /// It holds a lock that says that somebody works with it.
    _guard: Session,
}

impl Scratch {
    /// Takes a name beside a database, after those are dropped that killed processes left.
    async fn beside(info: &ConnInfo) -> Result<Self> {
        let guard = info.connect().await?;
        let database = info.database();
        let mut cut = database.len().min(NAME_BYTES - SCRATCH.len() - 8);
        while !database.is_char_boundary(cut) {
            cut -= 1;
        }
        let prefix = format!("{}{SCRATCH}", &database[..cut]);
        let left = format!(
            "SELECT datname FROM pg_catalog.pg_database WHERE pg_catalog.starts_with(datname, {}) AND pg_catalog.length(datname) = {}",
            quote_literal(&prefix),
            prefix.chars().count() + 8
        );
        for name in guard.rows(&left).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
            if guard.value(&lock(&name)).await?.as_deref() == Some("t") {
                let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(&name));
                // It may belong to somebody else.
                let _ = guard.rows(&drop).await;
            }
        }
        let id = ulid::Ulid::generate().to_string().to_lowercase();
        let name = format!("{prefix}{}", &id[id.len() - 8..]);
        guard.value(&lock(&name)).await?;
        Ok(Self { info: info.clone(), name, _guard: guard })
    }
}

fn lock(name: &str) -> String {
    format!("SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended({}, 0))", quote_literal(name))
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let (info, name) = (self.info.clone(), self.name.clone());
        let drop = async move {
            if let Ok(session) = info.connect().await {
                let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(&name));
                let _ = session.rows(&sql).await;
            }
        };
        // On a thread of its own: this may be called from a task.
        let dropped = std::thread::spawn(move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                runtime.block_on(drop);
            }
        });
        let _ = dropped.join();
    }
}

async fn logical(recover: &Recover, facts: &TargetFacts, cancel: &CancellationToken) -> Result<Source> {
    if recover.tables.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "no table is named")
            .with_hint("of a logical backup the query can read the tables that --table names"));
    }
    let scratch = Scratch::beside(&recover.into).await?;
    let info = recover.into.with_database(&scratch.name);
    let options = LoadOptions {
        no_owner: true,
        no_acl: true,
        no_tablespaces: true,
        tables: recover.tables.clone(),
        ..LoadOptions::default()
    };
    let mut load = Load::into(info.clone()).tools(recover.tools.clone()).options(options);
    let of_server = recover.record.source.get("databases").is_some();
    let named = of_server.then(|| recover.into.database().to_owned());
    if let Some(database) = recover.database.clone().or(named) {
        load = load.database(database);
    }
    let mut builder = Restore::builder()
        .backup(recover.repository.clone(), recover.record.clone())
        .restorer(load)
        .observer(Arc::clone(&recover.observer))
        .shared_encryptor(recover.encryptor.clone());
    if let Some(jobs) = recover.jobs {
        builder = builder.jobs(jobs);
    }
    let restored = builder.build()?.open_and_restore(cancel).await?;
    let session = info.connect().await?;
    let opened = Opened { restored: "chunks", raw_bytes: restored.raw_bytes, spared_bytes: 0 };
    Ok(Source { session, major: facts.major, opened, place: Place::Scratch { _scratch: scratch } })
}
