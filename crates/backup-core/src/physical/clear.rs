//! What of a data directory goes before a backup is restored over it.

use std::collections::{BTreeMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;

use super::check::{Listed, parse};
use super::journal::MARKER;
use super::overlay::on_disk;
use super::restore::LEFT_OUT;
use super::unpack::{blocking, empty_but};
use super::{BASE, MANIFEST};
use crate::dumper::PartSource;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::ChannelReader;
use crate::postgres::major_of;

pub(super) const PG_WAL: &str = "pg_wal";
pub(super) const PG_TBLSPC: &str = "pg_tblspc";
/// What a file system has at its root, and the server never.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

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
pub(super) fn version_folder(server_version: Option<&Value>) -> Option<String> {
    let version = server_version.and_then(Value::as_str).unwrap_or_default();
    major_of(version).map(|major| format!("PG_{major}_"))
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
                    let link = (found.is_symlink() && archive == BASE && folder == Path::new(PG_TBLSPC))
                        .then(|| path.canonicalize().unwrap_or_default());
                    if self.is_to_descend(archive, &name, &path, &found).map_err(removing)? {
                        folders.push(name);
                    } else if let Some(led) = link
                        && self.targets.values().all(|target| target.canonicalize().is_ok_and(|t| t != led))
                    {
                        told.push(format!(
                            "the link {} is removed; the folder that it led to is left as it is: {}",
                            path.display(),
                            led.display()
                        ));
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
            return empty_but(LOST_AND_FOUND, path).map(|()| false);
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
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_keeps_what_the_backup_has() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for file in [
            "data/PG_VERSION",
            "data/stray",
            "data/base/5/1",
            "data/base/5/stray",
            "data/base/6/1",
            "data/pg_wal/summaries/x",
            "data/global/pg_control.pgark",
            "data/standby.signal",
            "data/inside/PG_15_1/5/9",
            "data/inside/PG_15_1/7/9",
            "data/inside/PG_14_1/7/9",
            "space/PG_15_1/5/1",
            "gone/PG_15_1/5/1",
        ] {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), file).unwrap();
        }
        std::fs::create_dir(at("data/pg_tblspc")).unwrap();
        for (oid, leads) in [("1", "data/inside"), ("2", "space"), ("3", "gone")] {
            symlink(at(leads), at("data/pg_tblspc").join(oid)).unwrap();
        }
        symlink(at("gone"), at("data/base/5/linked")).unwrap();
        let targets = [(BASE, "data"), ("1", "data/inside"), ("2", "space")];
        let targets = targets.map(|(name, path)| (name.to_owned(), at(path))).into();
        let mut names = Names::default();
        for name in [
            "PG_VERSION",
            "base/5/1",
            "base/5/linked",
            "global/pg_control",
            "standby.signal",
            "pg_tblspc/1/PG_15_1/5/9",
            "pg_tblspc/2/PG_15_1/5/1",
            "pg_tblspc/3/PG_15_1/5/1",
        ] {
            names.add_listed(Path::new(name));
        }
        let clearing = Clearing { targets: &targets, names: &names, version_folder: "PG_15_" };
        let told = clearing.run().unwrap();
        assert!(told.len() == 1 && told[0].contains("/gone"), "{told:?}");
        // Once more there is nothing to do.
        for _ in 0..2 {
            let mut left: Vec<String> = Vec::new();
            let mut folders = vec![folder.path().to_owned()];
            while let Some(path) = folders.pop() {
                for entry in std::fs::read_dir(path).unwrap().map(std::result::Result::unwrap) {
                    if entry.file_type().unwrap().is_dir() {
                        folders.push(entry.path());
                    } else {
                        let name = entry.path();
                        left.push(name.strip_prefix(folder.path()).unwrap().display().to_string());
                    }
                }
            }
            left.sort();
            let wanted = [
                "data/PG_VERSION",
                "data/base/5/1",
                "data/global/pg_control.pgark",
                "data/inside/PG_14_1/7/9",
                "data/inside/PG_15_1/5/9",
                "data/pg_tblspc/1",
                "data/pg_tblspc/2",
                "gone/PG_15_1/5/1",
                "space/PG_15_1/5/1",
            ];
            assert_eq!(left, wanted);
            assert!(at("data/pg_wal").is_dir() && clearing.run().unwrap().is_empty());
        }
    }
}
