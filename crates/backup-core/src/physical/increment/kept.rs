//! Files that a host keeps of its last backups, one a backup: block maps, manifests.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::repository::BackupId;
use crate::state::{HostState, StateFile};

/// How many are kept: those that were made or used last.
const KEPT: usize = 4;
/// What a run that died left is removed after this time; a run at work writes more often.
const STALE: Duration = Duration::from_hours(48);

/// The files of one kind, in a folder of the host's state.
#[derive(Clone)]
pub(super) struct Kept {
    state: HostState,
    folder: &'static str,
}

impl Kept {
    pub(super) fn new(state: &HostState, folder: &'static str) -> Self {
        Self { state: state.clone(), folder }
    }

    /// Begins that of a backup.
    pub(super) fn begin(&self, backup: &BackupId) -> Result<StateFile> {
        self.state.begin(&self.name(backup))
    }

    /// Whether there is one of a backup.
    pub(super) fn has(&self, backup: &BackupId) -> bool {
        self.state.path(&self.name(backup)).is_file()
    }

    pub(super) fn open(&self, backup: &BackupId) -> io::Result<File> {
        File::open(self.state.path(&self.name(backup)))
    }

    /// Keeps that of a backup that has committed, and that of its parent; removes those not used for longest.
    pub(super) fn keep(&self, file: Option<StateFile>, parent: Option<&BackupId>) -> Result<()> {
        if let Some(parent) = parent {
            // Used, not made: a parent of many increments must not go.
            let _ = File::options()
                .append(true)
                .open(self.state.path(&self.name(parent)))
                .and_then(|file| file.set_modified(SystemTime::now()));
        }
        if let Some(file) = file {
            file.keep()?;
        }
        self.prune()
    }

    fn prune(&self) -> Result<()> {
        let folder = self.state.folder(self.folder)?;
        let listing = |e| Error::io(format!("listing {}", folder.display()), e);
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Another run may have removed it just now.
            let Ok(modified) = entry.metadata().and_then(|m| m.modified()) else { continue };
            if entry.path().extension().is_some_and(|ending| ending == "tmp") {
                if modified.elapsed().is_ok_and(|age| age > STALE) {
                    self.state.remove(&format!("{}/{name}", self.folder))?;
                }
            } else if name.parse::<BackupId>().is_ok() {
                kept.push((modified, name));
            }
        }
        kept.sort_unstable_by(|a, b| b.cmp(a));
        kept.iter().skip(KEPT).try_for_each(|(_, name)| self.state.remove(&format!("{}/{name}", self.folder)))
    }

    fn name(&self, backup: &BackupId) -> String {
        format!("{}/{backup}", self.folder)
    }
}
