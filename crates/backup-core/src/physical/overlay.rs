//! Lays an increment over the data directory that its predecessor left, in place.
//!
//! First the list: what is not in it goes, files of which blocks come are cut to their length or extended with zeros, and
//! what comes whole is removed. Then the archives, in any order: whole files are written anew, blocks to their places.

use std::collections::{BTreeMap, HashSet};
use std::fs::{Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tar::Header;

use super::blocks::{BlocksWriter, damaged, no_predecessor};
use super::files::Counts;
use super::increment::{BLOCKS, Entry, FILES, ListReader, Stored, Window};
use super::journal::{Journal, MARKER};
use super::restore::{PG_CONTROL, PG_CONTROL_UNTIL_THEN};
use super::unpack::{Existing, Unpacker, below, has_mode, make_folder};
use super::{BASE, LIST};
use crate::dumper::PartSource;
use crate::error::{Error, ErrorKind, Result};
use crate::tar_reader::{Piece, Reader};

/// What writing files needs to know of the restore.
#[derive(Clone)]
pub(super) struct Ground {
    /// Where each archive goes.
    pub(super) targets: BTreeMap<String, PathBuf>,
    /// Whom the files belong to, where this process is root.
    pub(super) owner: Option<(u32, u32)>,
    /// Whether it is the backup that was asked for: an older one may have tablespaces that were dropped since.
    pub(super) newest: bool,
    /// What may stand where a file goes.
    pub(super) existing: Existing,
    /// Whether increments of the server's are left as they were sent, and not laid over anything.
    pub(super) as_sent: bool,
    /// What a tablespace's folder has of this cluster begins so; the rest of it is of no concern.
    pub(super) version_folder: String,
    pub(super) counts: Arc<Counts>,
    /// The folders are locked as long as anybody may write there.
    pub(super) journal: Arc<Journal>,
}

/// Does what the list of an increment says, before its files come.
pub(super) async fn apply_list(parts: &dyn PartSource, ground: Ground) -> Result<()> {
    let part = parts.parts().into_iter().find(|part| part.spec.kind == LIST).ok_or_else(|| {
        Error::new(ErrorKind::Integrity, "the increment has no list of its files")
            .with_hint("restore another backup")
    })?;
    let mut stream = parts.open(part.part).await?;
    let mut list = Lister { ground, kept: HashSet::new() };
    let mut reader = ListReader::default();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?;
        (list, reader) = blocking(move || {
            reader.take(&bytes, |entry| list.entry(&entry))?;
            Ok((list, reader))
        })
        .await?;
    }
    // The stream has ended well: the list is all of it, and what is absent is gone.
    reader.finish()?;
    blocking(move || list.remove_absent()).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("laying an increment over its predecessor failed").caused_by(e))?
}

struct Lister {
    ground: Ground,
    /// Digests of the names in the list: 16 bytes a file.
    kept: HashSet<u128>,
}

impl Lister {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<()> {
        let Some(folder) = self.ground.targets.get(entry.archive) else {
            return if self.ground.newest { Err(unknown_archive(entry.archive)) } else { Ok(()) };
        };
        let path = on_disk(entry.archive, below(entry.path)?);
        self.kept.insert(name_digest(entry.archive, &path));
        let path = folder.join(path);
        let found = match std::fs::symlink_metadata(&path) {
            Ok(found) => Some(found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(format!("looking at {}", path.display()), e)),
        };
        match entry.stored {
            Stored::Folder if found.as_ref().is_some_and(Metadata::is_dir) => {
                set_mode(&path, found, entry.mode)
            }
            // It may lie elsewhere where a data directory is restored over.
            Stored::Folder if entry.archive == BASE && entry.path == b"pg_wal" && path.is_dir() => Ok(()),
            Stored::Folder => {
                remove(&path, found.as_ref())?;
                make_folder(&path, entry.mode, self.ground.owner)
            }
            Stored::Whole => remove(&path, found.as_ref()),
            Stored::Summarized => {
                let Some(before) = found.filter(Metadata::is_file) else { return Err(no_predecessor(&path)) };
                set_mode(&path, Some(before), entry.mode)
            }
            Stored::Blocks => {
                let Some(before) = found.filter(Metadata::is_file) else { return Err(no_predecessor(&path)) };
                if before.len() != entry.bytes {
                    OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .and_then(|file| file.set_len(entry.bytes))
                        .map_err(|e| Error::io(format!("cutting {}", path.display()), e))?;
                }
                set_mode(&path, Some(before), entry.mode)
            }
        }
    }

    /// Whether something at the root of an archive's folder is of the cluster at all: folders that were empty have nothing
    /// else.
    fn is_of_cluster(&self, archive: &str, name: &Path) -> bool {
        if self.ground.existing != Existing::WrittenOver {
            return true;
        }
        let name = name.to_string_lossy();
        if archive == BASE { name != "lost+found" } else { name.starts_with(&self.ground.version_folder) }
    }

    /// Removes what is not in the list.
    fn remove_absent(&self) -> Result<()> {
        for (archive, root) in &self.ground.targets {
            let mut folders = vec![PathBuf::new()];
            while let Some(folder) = folders.pop() {
                let path = root.join(&folder);
                let listing = |e| Error::io(format!("listing {}", path.display()), e);
                for entry in std::fs::read_dir(&path).map_err(listing)? {
                    let entry = entry.map_err(listing)?;
                    let (name, found) = (folder.join(entry.file_name()), entry.metadata().map_err(listing)?);
                    // The links are those that this restore made; another archive may have its folder here.
                    let at_root = folder.as_os_str().is_empty();
                    let ours = found.is_symlink()
                        || (archive == BASE && name == Path::new(MARKER))
                        || (at_root && !self.is_of_cluster(archive, &name))
                        || self.ground.targets.values().any(|target| *target == entry.path());
                    if ours {
                        continue;
                    }
                    if !self.kept.contains(&name_digest(archive, &name)) {
                        remove(&entry.path(), Some(&found))?;
                    } else if found.is_dir() {
                        folders.push(name);
                    }
                }
            }
        }
        Ok(())
    }
}

fn name_digest(archive: &str, path: &Path) -> u128 {
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = blake3::Hasher::new();
    hasher.update(archive.as_bytes()).update(b"/").update(path.as_os_str().as_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(digest)
}

/// Where a file is while the restore is under way.
pub(super) fn on_disk(archive: &str, path: PathBuf) -> PathBuf {
    if archive == BASE && path == Path::new(PG_CONTROL) { PathBuf::from(PG_CONTROL_UNTIL_THEN) } else { path }
}

fn set_mode(path: &Path, found: Option<Metadata>, mode: u32) -> Result<()> {
    if found.is_some_and(|found| has_mode(&found, mode)) {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|e| Error::io(format!("setting the mode of {}", path.display()), e))
}

fn remove(path: &Path, found: Option<&Metadata>) -> Result<()> {
    let removed = match found {
        None => return Ok(()),
        Some(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Some(_) => std::fs::remove_file(path),
    };
    removed.map_err(|e| Error::io(format!("removing {}", path.display()), e))
}

pub(super) fn unknown_archive(name: &str) -> Error {
    Error::new(
        ErrorKind::Integrity,
        format!("the backup has files of tablespace {name}, which it does not know"),
    )
    .with_hint("restore another backup")
}

/// Unpacks an archive of an increment.
pub(super) struct DeltaUnpacker {
    files: Unpacker,
    reader: Reader,
    /// The window whose bytes come; those of others are of a whole file.
    blocks: Option<WindowWriter>,
}

impl DeltaUnpacker {
    /// `files` takes the whole ones.
    pub(super) fn new(files: Unpacker) -> Self {
        Self { files, reader: Reader::default(), blocks: None }
    }

    pub(super) fn take(&mut self, bytes: Bytes) -> Result<()> {
        self.reader.push(bytes);
        while let Some(piece) = self.reader.next()? {
            match (piece, &mut self.blocks) {
                (Piece::Member(header), _) => self.member(*header)?,
                (Piece::Data(data), Some(blocks)) => blocks.write(&data)?,
                (Piece::Data(data), None) => self.files.write(&data)?,
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.end_blocks()?;
        self.files.end()?;
        self.reader.finish()
    }

    fn member(&mut self, mut header: Header) -> Result<()> {
        self.end_blocks()?;
        self.files.end()?;
        let name = header.path_bytes().into_owned();
        if let Some(path) = name.strip_prefix(BLOCKS.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")) {
            let end = path.iter().rposition(|b| *b == b'/').unwrap_or(path.len());
            let path = self.files.folder().join(below(&path[..end])?);
            let bytes =
                header.entry_size().map_err(|e| Error::internal("a member without a size").caused_by(e))?;
            self.blocks = Some(WindowWriter::new(path, bytes));
            return Ok(());
        }
        if !above_files(&mut header) {
            let message = format!("an increment has a member {}", String::from_utf8_lossy(&name));
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("restore another backup"));
        }
        self.files.member(&header)
    }

    fn end_blocks(&mut self) -> Result<()> {
        let Some(blocks) = self.blocks.take() else { return Ok(()) };
        self.files.counts().add_written(blocks.finish()?);
        Ok(())
    }
}

/// Takes the folder of whole files off a member's name. False where it has none.
fn above_files(header: &mut Header) -> bool {
    let Some(ustar) = header.as_ustar_mut() else { return false };
    let Some(rest) = ustar.prefix.strip_prefix(FILES.as_bytes()) else { return false };
    let rest = match rest {
        [b'/', rest @ ..] => rest.to_vec(),
        [0, ..] => Vec::new(),
        _ => return false,
    };
    ustar.prefix = [0; 155];
    ustar.prefix[..rest.len()].copy_from_slice(&rest);
    true
}

/// Writes the blocks of a window to their places.
struct WindowWriter {
    path: PathBuf,
    /// Length of the member.
    bytes: u64,
    /// What stands before the blocks, while it is not whole.
    head: Vec<u8>,
    writer: Option<BlocksWriter>,
}

impl WindowWriter {
    fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes, head: Vec::new(), writer: None }
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            return writer.write(data);
        }
        self.head.extend_from_slice(data);
        let Some(window) = Window::parse(&self.head, self.bytes)? else { return Ok(()) };
        let used = window.head().len();
        let mut writer = BlocksWriter::open(&self.path, window.block_bytes, window.blocks)?;
        if writer.length()? != window.file_bytes {
            return Err(damaged(&self.path, "its list has another length"));
        }
        writer.write(&std::mem::take(&mut self.head)[used..])?;
        self.writer = Some(writer);
        Ok(())
    }

    /// How many bytes were written.
    fn finish(self) -> Result<u64> {
        self.writer.ok_or_else(|| damaged(&self.path, "they are cut"))?.finish()
    }
}
