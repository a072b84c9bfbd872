//! Unpacks the parts of a backup into files.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use tar::{EntryType, Header};

use super::configuration::{self, CONFIG};
use super::dump::block_bytes;
use super::files::{Counts, FileWriter};
use super::incremental::IncrementalUnpacker;
use super::overlay::{DeltaUnpacker, Ground, unknown_archive};
use super::restore::{LEFT_OUT, PG_CONTROL, PG_CONTROL_UNTIL_THEN};
use super::{BASE, DELTA, FILES, INCREMENTAL, MANIFEST, WAL};
use crate::dumper::{PartInfo, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::tar_reader::{Piece, Reader};

/// What may stand where a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// Nothing: it would be a file that a backup has twice.
    Refused,
    /// A file that an interrupted restore left, which is of no use.
    Replaced,
    /// A file of the data directory that is restored over: only what differs is written.
    WrittenOver,
}

/// Unpacks one part.
pub(super) async fn unpack(parts: &dyn PartSource, part: &PartInfo, ground: &Ground) -> Result<()> {
    let name = part.spec.name.split('/').next().unwrap_or_default();
    let is_files = matches!(part.spec.kind.as_str(), FILES | DELTA | INCREMENTAL);
    let folder = match part.spec.kind.as_str() {
        FILES | DELTA | INCREMENTAL => ground.targets.get(name).cloned(),
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
        ground: ground.clone(),
        reader: Reader::default(),
        files: FileWriter::default().counted(Arc::clone(&ground.counts)),
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
    if part.spec.kind == INCREMENTAL && !ground.as_sent {
        let mut unpacker = IncrementalUnpacker::new(unpacker, block_bytes(parts.facts())?);
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

/// Runs what blocks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("unpacking failed").caused_by(e)))
}

/// Writes the members of an archive below a folder.
pub(super) struct Unpacker {
    folder: PathBuf,
    is_base: bool,
    /// It holds the journal: no other restore begins before the last bytes of this one are written.
    ground: Ground,
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

    /// The sums of what was written.
    pub(super) fn counts(&self) -> &Counts {
        &self.ground.counts
    }

    fn begin(&mut self, path: &Path, mode: u32, size: u64) -> Result<()> {
        self.path = self.folder.join(path);
        let begun = self.open(mode).and_then(|(file, over)| {
            if over { self.files.begin_over(file, size) } else { self.files.begin(file, size) }
        });
        begun.map_err(|e| self.failed(e))
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
            EntryType::Directory => make_folder(&self.folder.join(path), mode, self.ground.owner),
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

    /// The file at `path`, and whether it is written over.
    fn open(&self, mode: u32) -> io::Result<(File, bool)> {
        let (path, owner) = (&self.path, self.ground.owner);
        if self.ground.existing == Existing::WrittenOver
            && let Some(file) = open_over(path, mode, owner)
        {
            return Ok((file, true));
        }
        let create = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
            own(path, owner)?;
            Ok::<_, io::Error>((file, false))
        };
        match create() {
            // Its folder may stand in another part, which comes later.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_folder(path.parent().unwrap_or(&self.folder), 0o700, owner).map_err(io::Error::other)?;
                create()
            }
            // A link goes, and not what it leads to.
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists && self.ground.existing != Existing::Refused =>
            {
                std::fs::remove_file(path)?;
                create()
            }
            created => created,
        }
    }
}

/// Opens a file to be written over, with mode and owner as they should be. Not where something else has its name, or
/// where the file has another name too: what that one holds is nobody's business here.
fn open_over(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Option<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes()));
    let file = options.open(path).ok()?;
    let found = file.metadata().ok().filter(|found| found.is_file() && found.nlink() == 1)?;
    if let Some((uid, gid)) = owner.filter(|owner| *owner != (found.uid(), found.gid())) {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).ok()?;
    }
    if !has_mode(&found, mode) {
        file.set_permissions(Permissions::from_mode(mode)).ok()?;
    }
    Some(file)
}

pub(super) fn has_mode(found: &Metadata, mode: u32) -> bool {
    found.permissions().mode() & 0o7777 == mode
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

/// Removes what is in a folder, but what has this name.
pub(super) fn empty_but(kept: &str, folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == kept {
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

/// Makes a folder and its parents; one that is there gets the mode.
pub(super) fn make_folder(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let failed = |e| Error::io(format!("making the folder {}", path.display()), e);
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.exists()) {
        make_folder(parent, mode, owner)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => own(path, owner).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            if let Some((uid, gid)) = owner {
                // The one link that may be here is that of pg_wal, whose folder is meant.
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed)?;
            }
            std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Gives a file, or a link itself, to its owner.
pub(super) fn own(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(uid, gid)| std::os::unix::fs::lchown(path, Some(uid), Some(gid)))
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
