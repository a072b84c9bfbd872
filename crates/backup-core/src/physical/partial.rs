//! Restores of a physical backup only what one database's tables need.
//!
//! First what is no relation, what all databases share, and the WAL; then the database's catalogs; then, as they say,
//! the tables' files. What is left out becomes a file of holes, of the length that it had: the WAL finds its pages where
//! they should be, and does not make them anew.
//!
//! What is left out is known by its numbers. So it can be said afterwards whether a table, as it is at the end of the
//! WAL, has a file that was left out: then it is not whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::catalog::{Catalogs, FIRST_NORMAL, Sought};
use super::clear::version_folder;
use super::dump::{block_bytes, position};
use super::journal::MARKER;
use super::place::Wanted;
use super::recovery::Recovery;
use super::relation::{Relation, relation_file};
use super::restore::{Unpacked, targets, unpack_backup};
use super::select::{Selecting, Wants};
use super::unpack::{blocking, own};
use super::{BASE, KIND, check};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::major_of;

/// Restores what a server needs that is only asked for some tables of one database. Its folder is of no use for anything
/// else.
#[derive(Debug, Clone)]
pub(crate) struct PartialDirectory {
    /// A folder of its own, in which everything comes to be. The data directory is `data`.
    pub(crate) folder: PathBuf,
    pub(crate) recovery: Recovery,
    /// The database.
    pub(crate) database: String,
    /// Schema and name of the tables; nothing where everything is restored.
    pub(crate) tables: Option<Vec<(String, String)>>,
    /// Their indexes as well.
    pub(crate) indexes: bool,
    /// Numbers of more files that are wanted.
    pub(crate) more: HashSet<u32>,
    /// What came of it.
    pub(crate) outcome: Arc<Mutex<Outcome>>,
}

/// What came of a [`PartialDirectory`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// OID of the database, where something was left out of it.
    pub(crate) database: Option<u32>,
    /// Numbers of the database's files that were left out.
    pub(crate) left_out: HashSet<u32>,
    /// Paths of all files that were left out, in the data directory, without the numbers of segments.
    pub(crate) left_out_paths: BTreeSet<PathBuf>,
    /// Bytes of files that were written.
    pub(crate) written: u64,
    /// Bytes of files that were left out.
    pub(crate) spared: u64,
    /// Roles with which one can log in.
    pub(crate) superusers: BTreeSet<String>,
}

/// The name of the data directory in the folder.
pub(crate) const DATA: &str = "data";

impl PartialDirectory {
    fn targets(&self, name: &str, parts: &dyn PartSource) -> Result<BTreeMap<String, PathBuf>> {
        let spaces = self.folder.join(format!("{name}.spaces"));
        targets(&self.folder.join(name), &BTreeMap::new(), parts.contents(), |t| {
            spaces.join(t.oid.to_string())
        })
    }

    /// Unpacks what is wanted below a name.
    async fn unpack(
        &self,
        name: &str,
        parts: &Arc<dyn PartSource>,
        ctx: &Ctx,
        checks: bool,
    ) -> Result<Unpacked> {
        let wanted = Wanted {
            backup: ctx.backup.as_ref().map(ToString::to_string).unwrap_or_default(),
            targets: self.targets(name, &**parts)?,
            over: None,
            version_folder: version_folder(parts.facts().get("server_version")).unwrap_or_default(),
        };
        let unpacked = unpack_backup(parts, wanted, ctx).await?;
        // A chain compares by itself.
        if checks && parts.ancestors().is_empty() {
            let (base, jobs, cancel) = (self.folder.join(name), ctx.jobs, ctx.cancel.clone());
            blocking(move || check::check_restored(&base, None, jobs, &cancel)).await?;
        }
        Ok(unpacked)
    }

    /// Unpacks more into the data directory.
    async fn add(&self, selecting: &Selecting, wants: Wants, ctx: &Ctx) -> Result<u64> {
        let parts = selecting.select(wants, false).await?;
        let unpacked = self.unpack("more", &parts, ctx, true).await?;
        let (from, to) = (self.targets("more", &*parts)?, self.targets(DATA, &*parts)?);
        let folder = self.folder.clone();
        blocking(move || {
            for (archive, root) in &from {
                if let Some(into) = to.get(archive) {
                    move_files(archive, root, into)?;
                }
            }
            drop(unpacked.place);
            for gone in ["more", "more.spaces"] {
                let path = folder.join(gone);
                if path.exists() {
                    std::fs::remove_dir_all(&path)
                        .map_err(|e| Error::io(format!("removing {}", path.display()), e))?;
                }
            }
            Ok(unpacked.counts.written())
        })
        .await
    }

    async fn selected(
        &self,
        tables: &[(String, String)],
        parts: &Arc<dyn PartSource>,
        ctx: &Ctx,
    ) -> Result<Unpacked> {
        let selecting = Selecting::begin(Arc::clone(parts), &self.folder.join("manifest")).await?;
        let step = |what: &str| ctx.observer.event(&Event::Step { what: what.to_owned() });
        step("restoring what all databases share");
        let shared: Wants = Arc::new(|relation| relation.is_none_or(|r| r.database == 0));
        let first = selecting.select(shared.clone(), true).await?;
        let unpacked = self.unpack(DATA, &first, ctx, true).await?;
        let block_bytes = block_bytes(parts.facts())?;
        let data = self.folder.join(DATA);
        let global = Catalogs::in_folder(&data.join("global"), block_bytes)?;
        let (oid, folder) = find_database(&global, &self.database, &self.targets(DATA, &**parts)?)?;
        step("restoring the catalogs of the database");
        let catalogs: Wants =
            Arc::new(move |relation| relation.is_some_and(|r| r.database == oid && r.number < FIRST_NORMAL));
        let mut written = unpacked.counts.written() + self.add(&selecting, catalogs.clone(), ctx).await?;
        let version = parts.facts().get("server_version").and_then(Value::as_str).unwrap_or_default();
        let (major, tables, indexes) = (major_of(version).unwrap_or(0), tables.to_vec(), self.indexes);
        let mut files = blocking(move || {
            let catalogs = Catalogs::in_folder(&folder, block_bytes)?;
            catalogs.files(major, &Sought { tables: &tables, indexes })
        })
        .await?;
        files.extend(&self.more);
        let wanted: Wants = Arc::new(move |relation| {
            relation
                .is_some_and(|r| r.database == oid && r.number >= FIRST_NORMAL && files.contains(&r.number))
        });
        step("restoring the files of the tables");
        written += self.add(&selecting, wanted.clone(), ctx).await?;
        let has = move |r: Relation| [&shared, &catalogs, &wanted].iter().any(|wants| wants(Some(r)));
        let mut outcome = self.leave_out(&selecting, oid, has).await?;
        outcome.written = written;
        outcome.superusers = global.superusers()?;
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        Ok(unpacked)
    }

    /// Makes files of holes of what is left out.
    async fn leave_out(
        &self,
        selecting: &Selecting,
        database: u32,
        has: impl Fn(Relation) -> bool + Send + 'static,
    ) -> Result<Outcome> {
        let data = self.folder.join(DATA);
        let owner = if rustix::process::geteuid().is_root() {
            let found =
                std::fs::metadata(&data).map_err(|e| Error::io("looking at the data directory", e))?;
            Some((found.uid(), found.gid()))
        } else {
            None
        };
        let outcome = Arc::new(Mutex::new(Outcome { database: Some(database), ..Outcome::default() }));
        let into = Arc::clone(&outcome);
        selecting
            .relations(move |listed, relation, bytes| {
                if has(relation) {
                    return Ok(());
                }
                let mut outcome = into.lock().unwrap_or_else(PoisonError::into_inner);
                if relation.database == database {
                    outcome.left_out.insert(relation.number);
                }
                outcome.left_out_paths.insert(listed.with_file_name(relation.number.to_string()));
                let Some(bytes) = bytes else { return Ok(()) };
                outcome.spared += bytes;
                let path = data.join(listed);
                let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
                made.and_then(|file| file.set_len(bytes))
                    .and_then(|()| own(&path, owner))
                    .map_err(|e| Error::io(format!("making {}", path.display()), e))
            })
            .await?;
        let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(outcome)
    }
}

/// The one database of a name, and its folder.
fn find_database(
    global: &Catalogs,
    name: &str,
    targets: &BTreeMap<String, PathBuf>,
) -> Result<(u32, PathBuf)> {
    let mut folders = Vec::new();
    for oid in global.databases(name)? {
        for (archive, root) in targets {
            let roots = if archive == BASE {
                vec![root.join("base")]
            } else {
                let entries =
                    std::fs::read_dir(root).map(|entries| entries.flatten().map(|e| e.path()).collect());
                entries.unwrap_or_default()
            };
            let own = roots.into_iter().map(|root| root.join(oid.to_string()));
            folders.extend(own.filter(|f| f.join("pg_filenode.map").exists()).map(|f| (oid, f)));
        }
    }
    match <[_; 1]>::try_from(folders) {
        Ok([found]) => Ok(found),
        Err(several) if !several.is_empty() => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the catalogs of the backup do not say which files database {name} has"),
        )),
        Err(_) => {
            let names = global.database_names()?.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("there is no database {name} in the backup");
            Err(Error::new(ErrorKind::NoDatabase, message).with_hint(format!(
                "--database names another one: {names}; where it was made or renamed after the backup, --whole-cluster looks \
                 for it behind the WAL"
            )))
        }
    }
}

/// Moves the files of relations from one folder into another.
fn move_files(archive: &str, from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = from.join(&folder);
        let failed = |e| Error::io(format!("moving {}", path.display()), e);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let (name, kind) = (folder.join(entry.file_name()), entry.file_type().map_err(failed)?);
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file()
                && name != Path::new(MARKER)
                && relation_file(archive, name.as_os_str().as_bytes()).is_some()
            {
                std::fs::rename(entry.path(), to.join(&name)).map_err(failed)?;
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Restorer for PartialDirectory {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let (timeline, _) = position(parts.facts())?;
        self.recovery.check_wal_of(parts.facts())?;
        let unpacked = if let Some(tables) = &self.tables {
            self.selected(tables, &parts, ctx).await?
        } else {
            let unpacked = self.unpack(DATA, &parts, ctx, false).await?;
            let global = self.folder.join(DATA).join("global");
            let global = Catalogs::in_folder(&global, block_bytes(parts.facts())?)?;
            *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Outcome {
                written: unpacked.counts.written(),
                superusers: global.superusers()?,
                ..Outcome::default()
            };
            unpacked
        };
        let recovery = self.recovery.clone();
        blocking(move || unpacked.place.complete_throwaway(timeline, &recovery)).await?;
        let mut told = Map::new();
        told.insert("data_directory".to_owned(), json!(self.folder.join(DATA)));
        Ok(told)
    }
}
