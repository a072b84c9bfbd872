//! Where an export goes. A file takes its name when it is whole.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, ErrorKind, Result};
use crate::logical::archive::{Encoder, Method, Within, unwritten};

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 * 1024;
/// What unfinished names begin with.
const PREFIX: &str = ".pgark-export-";

/// One file, or a stream.
pub(super) enum Output {
    File { file: BufWriter<NamedTempFile>, path: PathBuf },
    Stream(Box<dyn Write + Send>),
}

impl Output {
    pub(super) fn file(path: &Path) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(taken(path));
        }
        let failed = |e| Error::io(format!("creating {}", path.display()), e);
        let file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(parent(path)).map_err(failed)?;
        Ok(Self::File { file: BufWriter::with_capacity(WRITE_BYTES, file), path: path.to_owned() })
    }

    /// Gives the file to `last`, which may write over its beginning, and then its name. A stream is flushed.
    pub(super) fn keep(self, last: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        match self {
            Self::Stream(mut stream) => stream.flush().map_err(unwritten),
            Self::File { file, path } => {
                let failed = |e| Error::io(format!("writing {}", path.display()), e);
                let mut file = file.into_inner().map_err(|e| failed(e.into_error()))?;
                last(file.as_file_mut())?;
                file.as_file().sync_all().map_err(failed)?;
                file.persist_noclobber(&path).map_err(|e| match e.error.kind() {
                    io::ErrorKind::AlreadyExists => taken(&path),
                    _ => failed(e.error),
                })?;
                sync_folder(parent(&path))
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File { file, .. } => file.write(bytes),
            Self::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.flush(),
            Self::Stream(stream) => stream.flush(),
        }
    }
}

/// A folder of files.
pub(super) struct OutputFolder {
    folder: TempDir,
    path: PathBuf,
}

impl OutputFolder {
    pub(super) fn new(path: &Path) -> Result<Self> {
        match std::fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(taken(path)),
        }
        let failed = |e| Error::io(format!("creating {}", path.display()), e);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent(path)).map_err(failed)?;
        Ok(Self { folder, path: path.to_owned() })
    }

    /// Writes a file of data, compressed.
    pub(super) fn data(
        &self,
        name: &str,
        method: Method,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let path = self.folder.path().join(format!("{name}{}", method.suffix()));
        let failed = |e| Error::io(format!("writing {}", path.display()), e);
        let to = BufWriter::with_capacity(WRITE_BYTES, File::create_new(&path).map_err(failed)?);
        let mut encoder = Encoder::new(method, Within::File, 1, to).map_err(unwritten)?;
        fill(&mut encoder)?;
        let to = encoder.finish().map_err(unwritten)?;
        let to = to.into_inner().map_err(|e| failed(e.into_error()))?;
        to.sync_all().map_err(failed)
    }

    /// Gives the folder its name. One that is there and empty is replaced.
    pub(super) fn keep(self) -> Result<()> {
        sync_folder(self.folder.path())?;
        std::fs::rename(self.folder.path(), &self.path).map_err(|e| match e.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => taken(&self.path),
            _ => Error::io(format!("writing {}", self.path.display()), e),
        })?;
        // Its old name is gone.
        drop(self.folder.keep());
        sync_folder(parent(&self.path))
    }
}

fn taken(path: &Path) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} exists already", path.display()))
        .with_hint("export to a new name, or remove it before")
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| Error::io(format!("syncing {}", folder.display()), e))
}
