//! Restores over an existing data directory: whether it may be, and what of it goes before the files come.
//!
//! What is left is compared while the backup's files are unpacked, byte by byte. So it does not depend on times, lengths
//! or checksums of what is there.

use std::collections::{BTreeMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;

use super::check::{Listed, parse};
use super::journal::{Head, MARKER};
use super::overlay::on_disk;
use super::place::is_empty;
use super::restore::LEFT_OUT;
use super::unpack::blocking;
use super::{BASE, MANIFEST};
use crate::dumper::PartSource;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::ChannelReader;
use crate::postgres::system_identifier;
use crate::wal::WalName;

const PG_WAL: &str = "pg_wal";
const PG_TBLSPC: &str = "pg_tblspc";
/// What a file system has at its root, and the server never.
const LOST_AND_FOUND: &str = "lost+found";

/// Looks whether a data directory may be restored over, and touches nothing. `begun` is the head of a restore over it
/// that was interrupted.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) where it may not.
pub(super) fn look(targets: &BTreeMap<String, PathBuf>, system: u64, begun: Option<&Head>) -> Result<()> {
    let base = targets.get(BASE).ok_or_else(|| Error::internal("no data directory"))?;
    let found = match begun.and_then(|head| head.over) {
        Some(found) => found,
        None => system_of(base)?,
    };
    if found != system {
        let message =
            format!("{} is of another cluster: {found}, and the backup of {system}", base.display());
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_hint("choose the data directory of the cluster that was backed up, or a new folder"));
    }
    for (name, path) in targets.iter().filter(|(name, _)| *name != BASE) {
        let was_agreed = begun.is_some_and(|head| head.folders.get(name) == Some(path));
        if !is_empty(path)? && !was_agreed && !is_linked(base, name, path) {
            let message = format!("{} is not empty, and is not the data directory's", path.display());
            return Err(Error::new(ErrorKind::Conflict, message).with_hint(format!(
                "{PG_TBLSPC}/{name} does not lead there; --tablespace-map {name}=FOLDER names an empty folder",
            )));
        }
    }
    look_at_wal(base)?;
    targets.iter().try_for_each(|(name, root)| refuse_mounts(name == BASE, root))
}

/// The system identifier of what must be a data directory.
fn system_of(base: &Path) -> Result<u64> {
    if !std::fs::symlink_metadata(base.join("PG_VERSION")).is_ok_and(|found| found.is_file()) {
        let message = format!("{} is not empty, and no data directory", base.display());
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_hint("it has no PG_VERSION, so nothing in it is touched; choose another folder"));
    }
    system_identifier(base).map_err(|e| {
        let message = format!("it cannot be told which cluster {} is of", base.display());
        Error::new(ErrorKind::Conflict, message)
            .with_hint("restore into a new folder, or move this one away")
            .caused_by(e)
    })
}

/// Whether the data directory has its tablespace there.
fn is_linked(base: &Path, name: &str, path: &Path) -> bool {
    let link = base.join(PG_TBLSPC).join(name);
    let is_link = std::fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink());
    is_link && matches!((link.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// A link of `pg_wal` is kept, and the folder that it leads to is emptied: so it must hold WAL and nothing else.
fn look_at_wal(base: &Path) -> Result<()> {
    let link = base.join(PG_WAL);
    if !std::fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()) {
        return Ok(());
    }
    let refuse = |why: String| {
        Err(Error::new(ErrorKind::Conflict, format!("{} leads to {why}", link.display()))
            .with_hint("its folder would be emptied; remove the link, or what does not belong there"))
    };
    let listing = |e| Error::io(format!("listing {}", link.display()), e);
    let Ok(folder) = link.canonicalize() else { return refuse("a folder that is not there".to_owned()) };
    if base.canonicalize().is_ok_and(|base| folder.starts_with(base)) {
        return refuse("a folder of the data directory".to_owned());
    }
    for entry in std::fs::read_dir(&folder).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        let (name, is_folder) = (entry.file_name(), entry.file_type().map_err(listing)?.is_dir());
        let name = name.to_string_lossy();
        let known = if is_folder {
            ["archive_status", "summaries", LOST_AND_FOUND].contains(&&*name)
        } else {
            name.parse::<WalName>().is_ok()
                || ["RECOVERYXLOG", "RECOVERYHISTORY"].contains(&&*name)
                || name.starts_with("xlogtemp.")
        };
        if !known {
            return refuse(format!("{}, which holds {name}", folder.display()));
        }
    }
    Ok(())
}

/// What is mounted within would be emptied like a folder.
fn refuse_mounts(is_base: bool, root: &Path) -> Result<()> {
    let listing = |path: &Path, e| Error::io(format!("listing {}", path.display()), e);
    if is_empty(root)? {
        return Ok(());
    }
    let device = std::fs::metadata(root).map_err(|e| listing(root, e))?.dev();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| listing(&folder, e))? {
            let entry = entry.map_err(|e| listing(&folder, e))?;
            let at_root = folder == root;
            if !entry.file_type().map_err(|e| listing(&folder, e))?.is_dir()
                || (at_root && is_base && entry.file_name() == PG_WAL)
                || (at_root && entry.file_name() == LOST_AND_FOUND)
            {
                continue;
            }
            let path = entry.path();
            if entry.metadata().map_err(|e| listing(&path, e))?.dev() != device {
                let message = format!("{} is on another file system than {}", path.display(), root.display());
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_hint("what is in it would be removed; unmount it first"));
            }
            folders.push(path);
        }
    }
    Ok(())
}

/// Digests of the files of a backup and of their folders: 16 bytes each.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<u128>);

impl Names {
    /// Reads them from the server's manifest, so that what is absent goes before the files need its room.
    pub(super) async fn of(parts: &dyn PartSource) -> Result<Self> {
        let mut all = Self::default();
        all.add(BASE, Path::new("backup_manifest"));
        let Some(part) = parts.parts().into_iter().find(|part| part.spec.kind == MANIFEST) else {
            // Then nothing is kept, and the restore writes it all.
            return Ok(all);
        };
        let (chunks, queue) = mpsc::channel(2);
        let reading = tokio::spawn(blocking(move || all.read(ChannelReader::new(queue))));
        let mut stream = parts.open(part.part).await?;
        while let Some(bytes) = stream.next().await {
            if chunks.send(bytes?).await.is_err() {
                break;
            }
        }
        drop(chunks);
        reading.await.map_err(|e| Error::internal("reading a manifest failed").caused_by(e))?
    }

    fn read(mut self, manifest: impl io::Read + Send) -> Result<Self> {
        let (files, queue) = std::sync::mpsc::sync_channel::<Listed>(64);
        std::thread::scope(|scope| {
            let parsed = scope.spawn(|| parse(manifest, files));
            for listed in queue {
                self.add_listed(&listed.path()?);
            }
            let parsed =
                parsed.join().map_err(|_| Error::internal("a thread that reads a manifest failed"))?;
            parsed.map_err(|e| {
                Error::new(ErrorKind::Integrity, "the backup's manifest cannot be read")
                    .with_hint("restore another backup, or this one into a new folder")
                    .caused_by(e)
            })?;
            Ok(self)
        })
    }

    /// `path` is one of the manifest, where tablespaces are below their links.
    fn add_listed(&mut self, path: &Path) {
        if LEFT_OUT.iter().any(|left_out| path == Path::new(left_out)) {
            return;
        }
        let mut parts = path.iter();
        if parts.next().is_some_and(|first| first == PG_TBLSPC)
            && let Some(name) = parts.next().and_then(|name| name.to_str())
        {
            return self.add(name, parts.as_path());
        }
        self.add(BASE, &on_disk(BASE, path.to_owned()));
    }

    fn add(&mut self, archive: &str, path: &Path) {
        self.0.insert(digest(false, archive, path));
        // Folders that are known already have known ones above them.
        let mut folders = path.ancestors().skip(1);
        while folders.next().is_some_and(|folder| self.0.insert(digest(true, archive, folder))) {}
    }

    fn has(&self, is_folder: bool, archive: &str, path: &Path) -> bool {
        self.0.contains(&digest(is_folder, archive, path))
    }
}

fn digest(is_folder: bool, archive: &str, path: &Path) -> u128 {
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = blake3::Hasher::new();
    let kind: &[u8] = if is_folder { b"d" } else { b"f" };
    hasher.update(kind).update(archive.as_bytes()).update(b"/").update(path.as_os_str().as_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(digest)
}

/// What a tablespace's folder has of servers of one major version begins so: `PG_15_` (`relpath.h`,
/// `TABLESPACE_VERSION_DIRECTORY`). Clusters of other versions may have theirs beside it.
pub(super) fn version_folder(server_version: Option<&Value>) -> String {
    let version = server_version.and_then(Value::as_str).unwrap_or_default();
    let major: String = version.chars().take_while(char::is_ascii_digit).collect();
    format!("PG_{major}_")
}

/// Removes from folders what a backup does not have.
pub(super) struct Clearing<'a> {
    pub(super) targets: &'a BTreeMap<String, PathBuf>,
    pub(super) names: &'a Names,
    /// See [`version_folder`].
    pub(super) version_folder: &'a str,
}

impl Clearing<'_> {
    /// Does it. It can be done again when it did not end. Returns what a person should know.
    pub(super) fn run(&self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for (archive, root) in self.targets {
            let mut folders = vec![PathBuf::new()];
            while let Some(folder) = folders.pop() {
                let path = root.join(&folder);
                let listing = |e| Error::io(format!("listing {}", path.display()), e);
                for entry in std::fs::read_dir(&path).map_err(listing)? {
                    let entry = entry.map_err(listing)?;
                    let (name, path) = (folder.join(entry.file_name()), entry.path());
                    let found = entry.metadata().map_err(listing)?;
                    let removing = |e| Error::io(format!("removing {}", path.display()), e);
                    if self.is_to_descend(archive, &name, &path, &found).map_err(removing)? {
                        folders.push(name);
                    } else if found.is_symlink() && archive == BASE && folder == Path::new(PG_TBLSPC) {
                        told.extend(self.dropped(&path));
                    }
                }
            }
        }
        Ok(told)
    }

    /// Keeps or removes something. Whether it is a folder to look into.
    fn is_to_descend(&self, archive: &str, name: &Path, path: &Path, found: &Metadata) -> io::Result<bool> {
        let is_base = archive == BASE;
        let at_root = name.parent() == Some(Path::new(""));
        let others = !is_base && at_root && !name.to_string_lossy().starts_with(self.version_folder);
        let nested = self.targets.values().any(|target| target == path);
        if others || nested || (at_root && name == Path::new(LOST_AND_FOUND)) {
            return Ok(false);
        }
        if is_base && name == Path::new(MARKER) {
            return Ok(false);
        }
        if is_base && name == Path::new(PG_WAL) && (found.is_dir() || found.is_symlink()) {
            return empty_wal(path).map(|()| false);
        }
        if is_base && found.is_symlink() && name.parent() == Some(Path::new(PG_TBLSPC)) {
            return if self.is_right_link(path)? {
                Ok(false)
            } else {
                std::fs::remove_file(path).map(|()| false)
            };
        }
        if found.is_dir()
            && (self.names.has(true, archive, name) || (is_base && name == Path::new(PG_TBLSPC)))
        {
            return Ok(true);
        }
        if found.is_dir() {
            return self.remove_folder(path).map(|()| false);
        }
        if !found.is_file() || !self.names.has(false, archive, name) {
            std::fs::remove_file(path)?;
        }
        Ok(false)
    }

    /// Removes a folder, but not a tablespace that was put into it.
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        if !self.targets.values().any(|target| target.starts_with(path)) {
            return std::fs::remove_dir_all(path);
        }
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if self.targets.values().any(|target| *target == entry.path()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                self.remove_folder(&entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn is_right_link(&self, path: &Path) -> io::Result<bool> {
        let leads = std::fs::read_link(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Ok(self.targets.get(name).is_some_and(|target| *target == leads))
    }

    /// What to say of a link that is gone: its folder is left as it is.
    fn dropped(&self, path: &Path) -> Option<String> {
        let name = path.file_name()?.to_str()?;
        let is_gone = std::fs::symlink_metadata(path).is_err();
        (is_gone && !self.targets.contains_key(name))
            .then(|| format!("the backup has no tablespace {name}: its link is removed, its folder is left"))
    }
}

/// Empties `pg_wal`, or the folder that it leads to.
fn empty_wal(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
