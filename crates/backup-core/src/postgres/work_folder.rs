//! Folders of throwaway servers: nobody else's, and gone afterwards, however the process ends that made them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use ulid::Ulid;

use super::empty::empty;
use super::temp_server::server_owner;
use crate::error::{Error, ErrorKind, Result};

/// Held by the process that works in the folder.
const LOCK: &str = "pgark.lock";
/// What a path of a Unix socket may have (`sun_path` in `unix(7)`), without the name of the socket and of its lock.
const SOCKET_PATH: usize = 107 - "/.s.PGSQL.5432.lock".len();
/// How long a server may take to end that is told to end at once.
const TIME_TO_END: Duration = Duration::from_secs(20);

/// Where such folders are made by default: `TMPDIR`, else `/var/tmp`, which is on a disk, else the temporary folder.
pub(crate) fn default_parent() -> PathBuf {
    let disk = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && disk.is_dir() { disk.to_owned() } else { std::env::temp_dir() }
}

/// A folder for a throwaway server and its data. It is locked as long as this value lives, and removed with it, after the
/// server in it was ended.
pub(crate) struct WorkFolder {
    path: PathBuf,
    lock: File,
    owner: Option<(u32, u32)>,
    settled: fn(&Path),
}

impl WorkFolder {
    /// Makes one. It belongs to `owner`, whom the server runs as. Before it is removed, `settled` waits until nobody writes
    /// into its data directory any more.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where a socket in it would have too long a name.
    pub(crate) fn make(
        parent: &Path,
        prefix: &str,
        owner: Option<(u32, u32)>,
        settled: fn(&Path),
    ) -> Result<Self> {
        let doing = || format!("making a folder in {}", parent.display());
        let failed = |e| Error::io(doing(), e);
        let parent = std::path::absolute(parent).map_err(failed)?;
        let path = parent.join(format!("{prefix}{}", &Ulid::generate().to_string()[16..]));
        if path.as_os_str().len() > SOCKET_PATH {
            let message = format!("the name of {} is too long for a Unix socket", path.display());
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("choose a folder with a shorter name: --work-dir, or work_dir in [drill]"));
        }
        std::fs::create_dir_all(&parent).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock = options.create_new(true).write(true).mode(0o600).open(path.join(LOCK)).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let made = Self { path, lock, owner, settled };
        made.own(&made.path).map_err(failed)?;
        Ok(made)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Whom the server runs as, where that is not this process's user.
    pub(crate) fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// Gives a file or folder to the server's user.
    pub(crate) fn own(&self, path: &Path) -> std::io::Result<()> {
        match self.owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Writes a file that the server's user can read. One of the name is replaced, and not followed where it is a link.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let written = || {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = OpenOptions::new();
            options.create_new(true).write(true).mode(0o600).open(&path)?.write_all(text.as_bytes())?;
            self.own(&path)
        };
        written().map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        Ok(path)
    }

    /// Makes a folder that belongs to the server's user.
    pub(crate) fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| self.own(&path));
        made.map_err(|e| Error::io(format!("making {}", path.display()), e))?;
        Ok(path)
    }

    /// Writes down what else is to be ended when this process was killed: [`sweep`] reads it.
    pub(crate) fn note(&mut self, text: &str) -> Result<()> {
        let noted = self.lock.write_all(text.as_bytes()).and_then(|()| self.lock.sync_all());
        noted.map_err(|e| Error::io(format!("writing {}", self.path.join(LOCK).display()), e))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        end_server(&self.data());
        (self.settled)(&self.data());
        // What is left, and why, is found below.
        let _ = empty(&self.path, "data");
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && self.path.exists()
        {
            tracing::warn!(%error, "the folder {} stays: the next run removes it", self.path.display());
        }
    }
}

/// Removes the folders of processes that are gone, with the servers in them; those that were removed. What another process
/// works in, what somebody else made, and what cannot be removed, stays. `noted` is given what a process wrote down.
pub(crate) fn sweep(parent: &Path, prefix: &str, noted: impl Fn(&str)) -> Vec<PathBuf> {
    let Ok(parent) = std::path::absolute(parent) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let ours = |path: &PathBuf| {
        let named =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix));
        named && path.symlink_metadata().is_ok_and(|found| found.is_dir() && is_trusted(found.uid()))
    };
    let paths = entries.flatten().map(|entry| entry.path()).filter(ours);
    paths.filter(|path| sweep_one(path, &noted).is_some()).collect()
}

fn sweep_one(folder: &Path, noted: &impl Fn(&str)) -> Option<()> {
    let mut lock = File::open(folder.join(LOCK)).ok()?;
    lock.try_lock().ok()?;
    let mut note = String::new();
    if lock.read_to_string(&mut note).is_ok() && !note.is_empty() {
        noted(&note);
    }
    end_server(&folder.join("data"));
    std::fs::remove_dir_all(folder).ok()
}

/// Whether a folder is of whom this process makes them for. Temporary folders are open to all.
fn is_trusted(uid: u32) -> bool {
    uid == rustix::process::geteuid().as_raw()
        || server_owner().ok().flatten().is_some_and(|(owner, _)| owner == uid)
}

/// The process of the server that runs in a data directory: one whose working directory it is (`ChangeToDataDir` in
/// `postmaster.c`), so that a number that was given to another process since is no reason to end that one.
pub(super) fn postmaster(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    let is_it = match std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())) {
        Ok(at) => at == data,
        // Elsewhere than on Linux the number must do.
        Err(_) => !Path::new("/proc/self").exists() && test_kill_process(pid).is_ok(),
    };
    is_it.then_some(pid)
}

/// Ends the server of a data directory at once, where one runs.
fn end_server(data: &Path) {
    let begun = Instant::now();
    let mut signal = Signal::QUIT;
    while let Some(pid) = postmaster(data) {
        // It may have ended this moment.
        let _ = kill_process(pid, signal);
        if begun.elapsed() > TIME_TO_END {
            if signal == Signal::KILL {
                return;
            }
            signal = Signal::KILL;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
