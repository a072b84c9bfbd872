//! Removes the files of a data directory, several at once: the system takes its time to give up what it holds of large
//! ones.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Result;

/// More do not help: they wait for the same folder.
const THREADS: usize = 8;

/// A folder, and not what a link leads to: whoever the folders belong to must not choose what is removed.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes the files below `name` in a folder. Links and folders are left, and what cannot be removed.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn empty(parent: &Path, name: &str) -> Result<()> {
    let parent = open(parent, FOLDER, Mode::empty())?;
    empty_folder(openat(&parent, name, FOLDER, Mode::empty())?.as_fd())
}

fn empty_folder(folder: BorrowedFd<'_>) -> Result<()> {
    let (mut files, mut folders) = (Vec::<CString>::new(), Vec::<CString>::new());
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        match entry.file_type() {
            FileType::RegularFile => files.push(entry.file_name().to_owned()),
            FileType::Directory if !matches!(entry.file_name().to_bytes(), b"." | b"..") => {
                folders.push(entry.file_name().to_owned());
            }
            _ => {}
        }
    }
    let next = AtomicUsize::new(0);
    let remove = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Whoever removes the folder says what stays.
            let _ = unlinkat(folder, file, AtFlags::empty());
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(files.len());
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(remove)));
        remove();
    });
    folders.iter().try_for_each(|name| empty_folder(openat(folder, name, FOLDER, Mode::empty())?.as_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_and_what_links_lead_to_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        std::fs::create_dir_all(path("data/base/1")).unwrap();
        std::fs::create_dir(path("other")).unwrap();
        for n in 0..20 {
            std::fs::write(path(&format!("data/base/1/{n}")), "x").unwrap();
        }
        for file in ["data/PG_VERSION", "other/kept", "beside"] {
            std::fs::write(path(file), "x").unwrap();
        }
        std::os::unix::fs::symlink(path("other"), path("data/base/link")).unwrap();
        std::os::unix::fs::symlink(path("data"), path("linked")).unwrap();
        assert!(empty(parent.path(), "linked").is_err() && path("data/PG_VERSION").exists());
        empty(parent.path(), "data").unwrap();
        assert!(path("other/kept").exists() && path("beside").exists() && path("data/base/link").exists());
        assert_eq!(std::fs::read_dir(path("data/base/1")).unwrap().count(), 0);
        assert!(!path("data/PG_VERSION").exists());
        assert!(empty(parent.path(), "absent").is_err());
    }
}
