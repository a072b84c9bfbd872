use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Map, Value, json};
use tar::{EntryType, Header};

use super::chain::unpack_chain;
use super::configuration::{self, CONFIG, Outside};
use super::dump::{TablespaceOf, position};
use super::files::FileWriter;
use super::overlay::{DeltaUnpacker, Ground, unknown_archive};
use super::recovery::Recovery;
use super::tar::{Piece, Reader};
use super::{BASE, DELTA, FILES, KIND, MANIFEST, WAL};
use crate::dumper::{Ctx, PartInfo, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};

/// Written first and removed last: a folder that has it is not a data directory yet.
pub(super) const MARKER: &str = "pgark.restore";
pub(super) const PG_CONTROL: &str = "global/pg_control";
/// `pg_control` until everything else is safe.
pub(super) const PG_CONTROL_UNTIL_THEN: &str = "global/pg_control.pgark";
/// What must not come along. Links are made from the backup's own list; a copy must not follow a primary; the
/// others are of another start of the server.
pub(super) const LEFT_OUT: [&str; 6] = [
    "tablespace_map",
    "tablespace_map.old",
    "backup_label.old",
    "standby.signal",
    "recovery.signal",
    "postmaster.opts",
];
/// Restores a physical backup into a data directory. The server that is started on it recovers from the WAL of the
/// backup, and begins a timeline of its own.
#[derive(Debug, Clone)]
pub struct DataDirectory {
    path: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
    recovery: Recovery,
}

impl DataDirectory {
    /// Restores into a folder that is empty or not there. One that an interrupted restore left is emptied.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), tablespaces: BTreeMap::new(), recovery: Recovery::default() }
    }

    /// Where the tablespace with an OID goes, in place of where it was.
    #[must_use]
    pub fn tablespace(mut self, oid: u32, path: impl Into<PathBuf>) -> Self {
        self.tablespaces.insert(oid, path.into());
        self
    }

    /// How the server recovers; by default with the WAL of the backup, to its end.
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// Where each archive of the backup goes.
    fn targets(&self, contents: &Map<String, Value>) -> Result<BTreeMap<String, PathBuf>> {
        let known: Vec<TablespaceOf> =
            contents.get("tablespaces").and_then(|v| serde_json::from_value(v.clone()).ok()).ok_or_else(
                || Error::new(ErrorKind::Integrity, "the backup does not say what tablespaces it has"),
            )?;
        if let Some(oid) = self.tablespaces.keys().find(|oid| known.iter().all(|t| t.oid != **oid)) {
            let message = format!("the backup has no tablespace {oid}");
            let list: Vec<String> = known.iter().map(|t| format!("{} at {}", t.oid, t.location)).collect();
            let hint = if list.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", list.join(", "))
            };
            return Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
        }
        let mut targets = BTreeMap::from([(BASE.to_owned(), self.path.clone())]);
        for TablespaceOf { oid, location } in known {
            let path = self.tablespaces.get(&oid).cloned().unwrap_or_else(|| PathBuf::from(location));
            let path =
                std::path::absolute(&path).map_err(|e| Error::io(format!("naming tablespace {oid}"), e))?;
            targets.insert(oid.to_string(), path);
        }
        Ok(targets)
    }
}

#[async_trait]
impl Restorer for DataDirectory {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let targets = self.targets(parts.contents())?;
        let (timeline, end) = position(parts.facts())?;
        self.recovery.check_wal_of(parts.facts())?;
        let place = Place::prepare(&targets)?;
        let restored = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => Err(Error::cancelled()),
            restored = unpack_chain(&parts, &targets, &place, ctx) => restored,
        };
        restored.map_err(|e| {
            let again = format!(
                "{} is incomplete, and no server starts on it: run the restore again, or remove the folder",
                self.path.display()
            );
            if e.hint().is_some() { e } else { e.with_hint(again) }
        })?;
        let recovery = self.recovery.clone();
        let outside = parts.contents().get(configuration::CONTENTS);
        let outside = outside.and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
        blocking(move || {
            place.configure(&outside)?;
            place.complete(&targets, timeline, &recovery)
        })
        .await?;
        let mut target = Map::new();
        target.insert("data_directory".to_owned(), json!(self.path));
        target.insert(
            "server_version".to_owned(),
            parts.facts().get("server_version").cloned().unwrap_or_default(),
        );
        target.insert("timeline".to_owned(), timeline.into());
        target.insert("consistent_at".to_owned(), end.to_string().into());
        Ok(target)
    }
}

/// Unpacks one part.
pub(super) async fn unpack(parts: &dyn PartSource, part: &PartInfo, ground: &Ground) -> Result<()> {
    let name = part.spec.name.split('/').next().unwrap_or_default();
    let is_files = matches!(part.spec.kind.as_str(), FILES | DELTA);
    let folder = match part.spec.kind.as_str() {
        FILES | DELTA => ground.targets.get(name).cloned(),
        WAL | MANIFEST => ground.targets.get(BASE).cloned(),
        CONFIG => ground.targets.get(BASE).map(|base| base.join(configuration::FOLDER)),
        _ => {
            return Err(Error::new(
                ErrorKind::NewerFormat,
                format!("part {} is of an unknown kind", part.part),
            )
            .with_hint("use a newer pgark"));
        }
    };
    let folder = match folder {
        Some(folder) => folder,
        None if ground.newest => return Err(unknown_archive(name)),
        // Of a tablespace that was dropped later.
        None => return Ok(()),
    };
    let mut stream = parts.open(part.part).await?;
    let mut unpacker = Unpacker {
        folder,
        is_base: is_files && name == BASE,
        owner: ground.owner,
        reader: Reader::default(),
        files: FileWriter::default(),
        path: PathBuf::new(),
    };
    if part.spec.kind == DELTA {
        let mut unpacker = DeltaUnpacker::new(unpacker);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            unpacker = blocking(move || unpacker.take(bytes).map(|()| unpacker)).await?;
        }
        return blocking(move || unpacker.finish()).await;
    }
    if part.spec.kind == MANIFEST {
        unpacker.begin(Path::new("backup_manifest"), 0o600, part.raw_bytes)?;
    }
    let plain = part.spec.kind == MANIFEST;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?;
        unpacker = blocking(move || {
            if plain {
                unpacker.write(&bytes)?;
            } else {
                unpacker.take(bytes)?;
            }
            Ok(unpacker)
        })
        .await?;
    }
    blocking(move || {
        unpacker.end()?;
        unpacker.reader.finish()
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("unpacking failed").caused_by(e)))
}

/// Writes the members of an archive below a folder.
pub(super) struct Unpacker {
    folder: PathBuf,
    is_base: bool,
    owner: Option<(u32, u32)>,
    reader: Reader,
    /// Has no file where the bytes that come are of no use.
    files: FileWriter,
    /// Of the file whose bytes come.
    path: PathBuf,
}

impl Unpacker {
    fn take(&mut self, bytes: bytes::Bytes) -> Result<()> {
        self.reader.push(bytes);
        while let Some(piece) = self.reader.next()? {
            match piece {
                Piece::Member(header) => self.member(&header)?,
                Piece::Data(data) => self.write(&data)?,
            }
        }
        Ok(())
    }

    /// The folder that it writes below.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds bytes to the file that began last.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<()> {
        self.files.write(data).map_err(|e| self.failed(e))
    }

    fn begin(&mut self, path: &Path, mode: u32, size: u64) -> Result<()> {
        let (file, path) = self.create(path, mode)?;
        self.path = path;
        self.files.begin(file, size).map_err(|e| self.failed(e))
    }

    /// Ends the file that began last: what waits in a buffer is written.
    pub(super) fn end(&mut self) -> Result<()> {
        self.files.end().map_err(|e| self.failed(e))
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(format!("writing {}", self.path.display()), error)
    }

    /// Begins a file, or makes a folder.
    pub(super) fn member(&mut self, header: &Header) -> Result<()> {
        self.end()?;
        let name = header.path_bytes().into_owned();
        let path = below(&name)?;
        let mode = header.mode().unwrap_or(0o600) & 0o777;
        match header.entry_type() {
            EntryType::Directory => make_folder(&self.folder.join(path), mode, self.owner),
            EntryType::Regular if self.is_base && LEFT_OUT.iter().any(|l| path == Path::new(l)) => Ok(()),
            EntryType::Regular => {
                let control = self.is_base && path == Path::new(PG_CONTROL);
                let path = if control { PathBuf::from(PG_CONTROL_UNTIL_THEN) } else { path };
                let size = header.entry_size().unwrap_or(0);
                self.begin(&path, mode, size)
            }
            // Links to tablespaces are made from the backup's own list.
            EntryType::Symlink if path.starts_with("pg_tblspc") => Ok(()),
            other => Err(Error::new(
                ErrorKind::Integrity,
                format!("an archive of files has a member of type {other:?}"),
            )
            .with_hint("restore another backup")),
        }
    }

    fn create(&self, path: &Path, mode: u32) -> Result<(File, PathBuf)> {
        let path = self.folder.join(path);
        let opened = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
            own(&path, self.owner)?;
            Ok::<_, io::Error>(file)
        };
        match opened() {
            Ok(file) => Ok((file, path)),
            // Its folder may stand in another part, which comes later.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(&self.folder);
                make_folder(parent, 0o700, self.owner)?;
                opened()
                    .map_err(|e| Error::io(format!("creating {}", path.display()), e))
                    .map(|file| (file, path.clone()))
            }
            Err(e) => Err(Error::io(format!("creating {}", path.display()), e)),
        }
    }
}

/// The path of a member; never one that leads out of the folder.
pub(super) fn below(name: &[u8]) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(OsStr::from_bytes(name));
    let inside: Option<PathBuf> = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| matches!(part, Component::Normal(_)).then_some(part))
        .collect();
    inside.ok_or_else(|| {
        Error::new(ErrorKind::Integrity, format!("an archive of files names {}", path.display()))
            .with_hint("such a file is outside of the folder; restore another backup")
    })
}

/// Makes a folder and its parents; one that is there gets the mode.
pub(super) fn make_folder(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let failed = |e| Error::io(format!("making the folder {}", path.display()), e);
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.exists()) {
        make_folder(parent, mode, owner)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => own(path, owner).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

fn own(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(uid, gid)| std::os::unix::fs::lchown(path, Some(uid), Some(gid)))
}

/// The folders that a restore fills.
pub(super) struct Place {
    pub(super) base: PathBuf,
    /// Whom the files belong to, where this process is root.
    pub(super) owner: Option<(u32, u32)>,
    /// The marker, locked: another restore into the folder is refused as long as this one works.
    _marker: File,
}

impl Place {
    /// Looks at every folder before the first one is touched.
    pub(super) fn prepare(targets: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let base = targets.get(BASE).ok_or_else(|| Error::internal("no data directory"))?.clone();
        let interrupted = base.join(MARKER).exists();
        for path in targets.values() {
            if !interrupted && !is_empty(path)? {
                return Err(Error::new(ErrorKind::Conflict, format!("{} is not empty", path.display()))
                    .with_hint(
                        "restore into a new or an empty folder; --tablespace-map moves tablespaces elsewhere",
                    ));
            }
        }
        let owner = owner_at(&base)?;
        make_folder(&base, 0o700, owner)?;
        if base.join("postmaster.pid").exists() {
            let message = format!("a server runs in {}, or did when it was killed", base.display());
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("choose another folder; where no server runs, remove postmaster.pid"));
        }
        let this = Self { _marker: mark(&base, targets, interrupted)?, base, owner };
        if interrupted {
            // Only what an interrupted restore made is emptied: the marker says so, and lists the folders.
            let begun = std::fs::read_to_string(this.base.join(MARKER)).unwrap_or_default();
            for path in targets.values().filter(|path| **path != this.base && !is_empty(path).unwrap_or(true))
            {
                if !begun.lines().any(|line| Path::new(line) == path) {
                    return Err(Error::new(ErrorKind::Conflict, format!("{} is not empty", path.display()))
                        .with_hint(
                            "the restore that was interrupted did not write there; choose another folder",
                        ));
                }
            }
        }
        for path in targets.values() {
            make_folder(path, 0o700, this.owner)?;
            if interrupted {
                empty(path)?;
            }
        }
        for (name, path) in targets {
            if name != BASE {
                let links = this.base.join("pg_tblspc");
                make_folder(&links, 0o700, this.owner)?;
                let link = links.join(name);
                std::os::unix::fs::symlink(path, &link)
                    .and_then(|()| own(&link, this.owner))
                    .map_err(|e| Error::io(format!("linking {}", link.display()), e))?;
            }
        }
        Ok(this)
    }

    /// Puts configuration files where a server finds them, if it has none of its own.
    fn configure(&self, outside: &Outside) -> Result<()> {
        let written = configuration::place(&self.base, &self.base.join(configuration::FOLDER), outside)
            .and_then(|written| written.iter().try_for_each(|path| own(path, self.owner)));
        written.map_err(|e| Error::io("writing configuration files", e))
    }

    /// Makes it a data directory, when all files are there: settings, signal, and last `pg_control`.
    fn complete(
        &self,
        targets: &BTreeMap<String, PathBuf>,
        timeline: u32,
        recovery: &Recovery,
    ) -> Result<()> {
        let failed = |doing: &'static str| move |e: io::Error| Error::io(doing, e);
        let wal = self.base.join("pg_wal");
        make_folder(&wal.join("archive_status"), 0o700, self.owner)?;
        for entry in std::fs::read_dir(&wal).map_err(failed("listing pg_wal"))? {
            let name = entry.map_err(failed("listing pg_wal"))?.file_name();
            let name = name.to_string_lossy();
            if name.len() == 24 {
                self.write(&format!("pg_wal/archive_status/{name}.done"), b"", false)?;
            }
        }
        self.write("postgresql.auto.conf", recovery.settings(timeline).as_bytes(), true)?;
        self.write(recovery.signal(), b"", false)?;
        for path in targets.values() {
            sync_all(path)?;
        }
        let (from, to) = (self.base.join(PG_CONTROL_UNTIL_THEN), self.base.join(PG_CONTROL));
        std::fs::rename(from, to).map_err(failed("putting pg_control in place"))?;
        std::fs::remove_file(self.base.join(MARKER)).map_err(failed("removing the marker of the restore"))?;
        sync_all(&self.base)
    }

    fn write(&self, name: &str, contents: &[u8], append: bool) -> Result<()> {
        let path = self.base.join(name);
        let written = || {
            let mut file =
                OpenOptions::new().create(true).write(true).append(append).mode(0o600).open(&path)?;
            file.write_all(contents)?;
            own(&path, self.owner)
        };
        written().map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }
}

/// Makes the marker, which lists the folders that the restore fills, or finds it; locked for this process.
fn mark(base: &Path, targets: &BTreeMap<String, PathBuf>, interrupted: bool) -> Result<File> {
    let path = base.join(MARKER);
    let failed = |e| Error::io(format!("writing {}", path.display()), e);
    let mut file = if interrupted { File::open(&path) } else { File::create_new(&path) }.map_err(failed)?;
    if file.try_lock().is_err() {
        return Err(Error::new(ErrorKind::Conflict, format!("another restore fills {}", base.display()))
            .with_hint("wait for it, or choose another folder"));
    }
    if !interrupted {
        let list: Vec<String> = targets.values().map(|path| path.display().to_string()).collect();
        file.write_all(list.join("\n").as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    Ok(file)
}

/// PostgreSQL does not run as root: then files belong to the owner of the folder, or of the one that it is made in.
fn owner_at(path: &Path) -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let absolute =
        std::path::absolute(path).map_err(|e| Error::io(format!("naming {}", path.display()), e))?;
    let there = absolute.ancestors().find_map(|path| std::fs::metadata(path).ok());
    Ok(there.map(|meta| (meta.uid(), meta.gid())))
}

fn is_empty(path: &Path) -> Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(Error::io(format!("looking into {}", path.display()), e)),
    }
}

/// Removes what is in a folder, but the marker.
fn empty(path: &Path) -> Result<()> {
    let emptied = || {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name() == MARKER {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    emptied().map_err(|e| Error::io(format!("emptying {}", path.display()), e))
}

/// Everything of the file system that holds a folder.
fn sync_all(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&folder).map_err(|e| Error::io(format!("syncing {}", path.display()), e.into()))?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        rustix::fs::sync();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn members_stay_in_their_folder() {
        assert_eq!(below(b"./base/1/2").unwrap(), std::path::Path::new("base/1/2"));
        for name in ["../x", "/etc/passwd", "base/../../x"] {
            assert!(below(name.as_bytes()).is_err(), "{name}");
        }
    }
}
