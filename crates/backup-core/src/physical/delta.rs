//! Whether an existing data directory may be restored over.
//!
//! What of it goes before the files come is in [`clear`](super::clear). What is left is compared while the backup's files
//! are unpacked, byte by byte: so it does not depend on times, lengths or checksums of what is there.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::BASE;
use super::clear::{LOST_AND_FOUND, PG_TBLSPC, PG_WAL};
use super::journal::Head;
use super::place::is_empty;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::system_identifier;
use crate::wal::WalName;

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

/// A link of `pg_wal` is kept, and the folder that it leads to is emptied: so it must hold WAL and nothing else. So must
/// what is mounted there.
fn look_at_wal(base: &Path) -> Result<()> {
    let link = base.join(PG_WAL);
    let Ok(found) = std::fs::symlink_metadata(&link) else { return Ok(()) };
    let is_mounted = || std::fs::metadata(base).is_ok_and(|base| base.dev() != found.dev());
    let is_elsewhere = found.is_symlink() || (found.is_dir() && is_mounted());
    if !is_elsewhere {
        return Ok(());
    }
    let refuse = |why: String| {
        Err(Error::new(ErrorKind::Conflict, format!("{} leads to {why}", link.display()))
            .with_hint("its folder would be emptied; remove the link, or what does not belong there"))
    };
    let listing = |e| Error::io(format!("listing {}", link.display()), e);
    let Ok(folder) = link.canonicalize() else { return refuse("a folder that is not there".to_owned()) };
    if found.is_symlink() && base.canonicalize().is_ok_and(|base| folder.starts_with(base)) {
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
