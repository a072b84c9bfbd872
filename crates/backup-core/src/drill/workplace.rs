//! The folder of a drill: nobody else's, and gone when the drill is over, however it ends.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use ulid::Ulid;

use super::container::{self, Container};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Cluster;

/// How the folders of drills are called. Nothing else is touched.
const PREFIX: &str = "pgark-drill-";
/// Held by the process of the drill; what it says is the name of its container.
const LOCK: &str = "pgark.drill";
/// What a path of a Unix socket may have (`sun_path`), without the name of the socket in its folder.
const SOCKET_LIMIT: usize = 107 - ".s.PGSQL.5432".len() - 1;
/// How long a server may take to end that is told to end at once.
const TIME_TO_END: Duration = Duration::from_secs(20);

/// The folder, and what runs in it.
pub(super) struct Workplace {
    folder: PathBuf,
    /// Held until the folder is gone.
    lock: File,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) container: Option<Container>,
    pub(super) cluster: Option<Cluster>,
}

/// Where drills are made by default: `TMPDIR`, else `/var/tmp`, which is on a disk, else the temporary folder.
pub(super) fn default_parent() -> PathBuf {
    let disk = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && disk.is_dir() { disk.to_owned() } else { std::env::temp_dir() }
}

impl Workplace {
    /// Makes the folder. It belongs to `owner`, whom the server runs as.
    pub(super) fn make(parent: &Path, owner: Option<(u32, u32)>) -> Result<Self> {
        let parent = std::path::absolute(parent).map_err(|e| Error::io("naming the drill's folder", e))?;
        let folder = parent.join(format!("{PREFIX}{}", &Ulid::generate().to_string()[16..]));
        if folder.as_os_str().len() > SOCKET_LIMIT {
            let message = format!("the name of {} is too long for a Unix socket", parent.display());
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("choose a folder with a shorter name: --work-dir, or work_dir in [drill]"));
        }
        let failed = |e| Error::io(format!("making the drill's folder {}", folder.display()), e);
        std::fs::create_dir_all(&parent).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock =
            options.create_new(true).write(true).mode(0o600).open(folder.join(LOCK)).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let made = Self { folder, lock, owner, container: None, cluster: None };
        made.own(made.folder()).map_err(|e| Error::io("making the drill's folder", e))?;
        Ok(made)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Gives a file or folder to the server's user.
    pub(super) fn own(&self, path: &Path) -> std::io::Result<()> {
        match self.owner {
            Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Writes a file that the server's user can read.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let written = || {
            let mut options = OpenOptions::new();
            options
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&path)?
                .write_all(text.as_bytes())?;
            self.own(&path)
        };
        written().map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        Ok(path)
    }

    /// Makes a folder that belongs to the server's user.
    pub(super) fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| self.own(&path));
        made.map_err(|e| Error::io(format!("making {}", path.display()), e))?;
        Ok(path)
    }

    /// Starts the container of the drill. Its name is written down first, so that the next drill finds it.
    pub(super) fn start_container(&mut self, image: &str) -> Result<()> {
        let name = container::new_name();
        self.lock
            .write_all(name.as_bytes())
            .and_then(|()| self.lock.sync_all())
            .map_err(|e| Error::io("writing down the drill's container", e))?;
        // The image need not know the user.
        let (uid, gid) = self
            .owner
            .unwrap_or_else(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        let passwd = self.write("passwd", &format!("postgres:x:{uid}:{gid}::/tmp:/bin/sh\n"))?;
        self.container = Some(Container::start(image, name, &self.folder, &passwd, (uid, gid))?);
        Ok(())
    }

    /// Ends what runs, and removes the folder. It blocks.
    fn clear(&mut self) {
        if let Some(container) = self.container.take() {
            container.remove();
            self.cluster = None;
        }
        if let Some(cluster) = self.cluster.take() {
            end_server(&cluster.data);
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder)
            && self.folder.exists()
        {
            tracing::warn!(%error, "the drill's folder {} stays: the next drill removes it", self.folder.display());
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Removes what drills left whose process is gone; the folders that were removed. What another drill works in, or what
/// cannot be removed, stays.
pub(super) fn sweep(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let ours = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX))
    };
    entries.flatten().map(|entry| entry.path()).filter(ours).filter(|path| sweep_one(path)).collect()
}

fn sweep_one(folder: &Path) -> bool {
    let Ok(mut lock) = File::open(folder.join(LOCK)) else { return false };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return false,
    }
    let mut name = String::new();
    if lock.read_to_string(&mut name).is_ok() && !name.is_empty() {
        container::remove_left(&name);
    } else {
        end_server(&folder.join("data"));
    }
    std::fs::remove_dir_all(folder).is_ok()
}

/// Ends the server of a data directory at once, where one runs. `postmaster.pid` may name a process that is another one
/// by now, so its working folder is looked at: a server works in its data directory (`ChangeToDataDir` in
/// `postmaster.c`).
fn end_server(data: &Path) {
    let pid = std::fs::read_to_string(data.join("postmaster.pid")).ok();
    let Some(pid) = pid.and_then(|text| text.lines().next()?.trim().parse().ok()).and_then(Pid::from_raw)
    else {
        return;
    };
    let is_it = || {
        let at = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        match at {
            Ok(at) => at == data,
            // Elsewhere than on Linux the number must do.
            Err(_) => !Path::new("/proc/self").exists() && test_kill_process(pid).is_ok(),
        }
    };
    let begun = Instant::now();
    let mut signal = Signal::QUIT;
    while is_it() {
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
