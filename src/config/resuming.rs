//! What an interrupted verification has done.

use std::fmt::Write as _;

use backup_core::Repository;
use backup_core::repository::{BackupId, ClusterName};
use backup_core::state::HostState;

use super::{Settings, VerifyWanted};

/// Where the state has it.
const STATE: &str = "verified";
/// What its first line is.
const STORED: &str = "stored";
const RAW: &str = "raw";

/// Keeps on this host what was done, so that it need not be done again: how deep, and the backups that were good, a line
/// each. That it cannot be kept is no failure.
pub(super) struct Resuming {
    state: Option<HostState>,
    before: Vec<BackupId>,
    text: String,
}

impl Resuming {
    pub(super) fn begin(
        settings: &Settings,
        repository: &Repository,
        cluster: &ClusterName,
        wanted: &VerifyWanted,
    ) -> Self {
        // A sample is another one each time.
        let state = settings.host_state(repository, cluster).ok().filter(|_| wanted.sample.is_none());
        let read = state.as_ref().filter(|_| wanted.resume).and_then(|state| state.read(STATE).ok()?);
        let text = String::from_utf8(read.unwrap_or_default()).unwrap_or_default();
        let mut lines = text.lines();
        // What was read deeper was read.
        let before = match lines.next() {
            Some(depth) if depth == RAW || wanted.stored => {
                lines.filter_map(|line| line.parse().ok()).collect()
            }
            _ => Vec::new(),
        };
        let depth = if wanted.stored { STORED } else { RAW };
        let text = before.iter().fold(format!("{depth}\n"), |text, id| format!("{text}{id}\n"));
        Self { state, before, text }
    }

    pub(super) fn has(&self, id: &BackupId) -> bool {
        self.before.contains(id)
    }

    pub(super) fn note(&mut self, id: &BackupId) {
        let _ = writeln!(self.text, "{id}");
        if let Some(state) = &self.state
            && state.write(STATE, self.text.as_bytes()).is_err()
        {
            self.state = None;
        }
    }

    pub(super) fn end(self) {
        if let Some(state) = self.state {
            // One that stays is overwritten by the next verification, unless that resumes.
            let _ = state.remove(STATE);
        }
    }
}
