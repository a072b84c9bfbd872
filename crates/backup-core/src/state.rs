//! What pgark keeps on a host from one run to the next.
//!
//! All of it can be lost: then the next backup is a full one, the next WAL gets a new key, and what was read ahead
//! is read again. Some of it is secret, so that folders have mode 0700 and files 0600.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ulid::Ulid;

use crate::error::{Error, ErrorKind, Result};
use crate::repository::{ClusterName, Digest, Repository};

/// The state of one cluster in one repository: a folder on this host.
#[derive(Debug, Clone)]
pub struct HostState {
    folder: PathBuf,
}

/// A lock between processes of this host; dropped, or when its process ends, it is given back.
#[derive(Debug)]
pub struct HostLock(#[allow(dead_code, reason = "it is held")] File);

impl HostState {
    /// Where state is kept by default: `/var/lib/pgark` for root, else `$XDG_STATE_HOME/pgark`, else
    /// `~/.local/state/pgark`.
    pub fn default_folder() -> Result<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/pgark"));
        }
        let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        set("XDG_STATE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".local/state")))
            .map(|state| state.join("pgark"))
            .ok_or_else(|| {
                Error::new(ErrorKind::Usage, "there is no folder for what pgark keeps on this host")
                    .with_hint("set HOME, or name a folder: [host] state in pgark.toml, or PGARK_STATE")
            })
    }

    /// The state of a cluster below `folder`. Nothing is made before something is kept.
    pub fn of(folder: &Path, repository: &Repository, cluster: &ClusterName) -> Self {
        // A copy of a repository has its id, and not all that was stored in the other one since.
        let place = Digest::of(repository.store().location().as_bytes()).to_string();
        let of = format!("{}-{}", repository.id(), &place[..8]);
        Self { folder: folder.join(of).join(cluster.as_str()) }
    }

    #[cfg(test)]
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Path of a file or folder of the state.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a folder of the state, and those above it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::io(format!("making the folder {}", path.display()), e))?;
        Ok(path)
    }

    /// Reads a file; nothing where it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
        }
    }

    /// Writes a file, or replaces it: whoever reads it meanwhile sees the old or the new one, whole.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.begin(name)?;
        file.write_all(bytes).map_err(|e| Error::io(format!("writing {}", self.path(name).display()), e))?;
        file.keep()
    }

    /// Begins to write a file: it takes its place when [`StateFile::keep`] is called.
    pub fn begin(&self, name: &str) -> Result<StateFile> {
        let path = self.path(name);
        let parent = Path::new(name).parent().and_then(Path::to_str).unwrap_or_default();
        self.folder(parent)?;
        let temporary = path.with_extension(format!("{}.tmp", Ulid::generate()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| Error::io(format!("creating {}", temporary.display()), e))?;
        Ok(StateFile { file, temporary: Some(temporary), path })
    }

    /// Removes a file; one that is not there is a success.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// Takes a lock; nothing where another process has it.
    pub fn try_lock(&self, name: &str) -> Result<Option<HostLock>> {
        let (file, failed) = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(HostLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// Takes a lock, and waits where another process has it.
    pub async fn lock(&self, name: &str) -> Result<HostLock> {
        let (file, failed) = self.lock_file(name)?;
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let locked = locked.map_err(|e| Error::internal("waiting for a lock failed").caused_by(e))?;
        locked.map(HostLock).map_err(failed)
    }

    fn lock_file(&self, name: &str) -> Result<(File, impl Fn(io::Error) -> Error + use<>)> {
        self.folder("")?;
        let path = self.path(name);
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(&path);
        let failed = move |e| Error::io(format!("locking {}", path.display()), e);
        Ok((file.map_err(&failed)?, failed))
    }
}

/// A file of the state being written. Dropped without [`StateFile::keep`] it is removed.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl StateFile {
    /// Puts it in its place, durably.
    pub fn keep(mut self) -> Result<()> {
        let kept = |temporary: &Path| {
            self.file.sync_all()?;
            std::fs::rename(temporary, &self.path)?;
            self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        match &self.temporary {
            Some(temporary) => {
                kept(temporary).map_err(|e| Error::io(format!("writing {}", self.path.display()), e))?;
            }
            None => return Ok(()),
        }
        self.temporary = None;
        Ok(())
    }
}

impl Write for StateFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What stays is a file with another name, which nobody reads.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_found_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = HostState { folder: folder.path().join("repository/main") };
        assert_eq!(state.read("maps/a").unwrap(), None);
        state.write("maps/a", b"one").unwrap();
        state.write("maps/a", b"two").unwrap();
        assert_eq!(state.read("maps/a").unwrap().as_deref(), Some(&b"two"[..]));
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(state.path("maps")), mode(state.path("maps/a"))), (0o700, 0o600));

        // Given up in the middle, nothing changes and nothing stays.
        state.begin("maps/a").unwrap().write_all(b"three").unwrap();
        assert_eq!(state.read("maps/a").unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(std::fs::read_dir(state.path("maps")).unwrap().count(), 1);

        let held = state.try_lock("busy").unwrap();
        assert!(held.is_some() && state.try_lock("busy").unwrap().is_none());
        drop(held);
        assert!(state.try_lock("busy").unwrap().is_some());
        state.remove("maps/a").unwrap();
        state.remove("maps/a").unwrap();
    }
}
