//! Drills: a backup is restored into a throwaway server, proved, and timed.
//!
//! The server is one of this host's programs, or a Docker container. It listens on a socket in the drill's own folder
//! only, archives nothing and follows nobody. The folder, the server and the container are gone afterwards, however the
//! drill ends; what a killed one left is removed by the next.

mod compare;
mod container;
mod logical;
mod look;
mod physical;
mod place;
mod record;
mod run;
mod settings;
mod stop;
mod wal;
mod workplace;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use compare::Compare;
pub use look::Check;
pub use record::{ComparedWith, DrillRecord, Failure, Outcome, Phase, Step, records};

use crate::encryptor::Encryptor;
use crate::error::Result;
use crate::event::Observer;
use crate::physical::Recovery;
use crate::postgres::Tools;
use crate::repository::{BackupRecord, Repository};
use crate::wal::Archive;

/// How a drill is made.
#[derive(Clone)]
#[non_exhaustive]
pub struct DrillOptions {
    /// The folder in which the drill makes its own; `TMPDIR` or `/var/tmp` by default. It needs room for the restored
    /// backup.
    pub work_dir: Option<PathBuf>,
    /// Where server programs and client tools are.
    pub tools: Tools,
    /// Takes a container even where this host has the programs.
    pub docker: bool,
    /// The image of the container; `{major}` in it is the major version. `postgres:{major}` by default.
    pub image: Option<String>,
    /// Settings of the throwaway server: name, value.
    pub settings: Vec<(String, String)>,
    /// The superuser of a physical backup's cluster.
    pub user: String,
    /// The user's own checks.
    pub checks: Vec<Check>,
    /// Where they run; by default in the databases of a logical backup, and in `postgres` of a physical one.
    pub databases: Vec<String>,
    /// How a physical backup recovers. Its `restore_command` is left alone where it has one.
    pub recovery: Recovery,
    /// The logical backup that a physical one is compared with.
    pub compare: Option<Compare>,
    /// The WAL archive that recovery needs, if it does.
    pub archive: Option<Archive>,
    /// Opens the backup.
    pub encryptor: Option<Arc<dyn Encryptor>>,
    /// How much is done at once; by default as much as there are cores.
    pub jobs: Option<usize>,
    /// Who is told what happens.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Default for DrillOptions {
    fn default() -> Self {
        Self {
            work_dir: None,
            tools: Tools::installed(),
            docker: false,
            image: None,
            settings: Vec::new(),
            user: "postgres".to_owned(),
            checks: Vec::new(),
            databases: Vec::new(),
            recovery: Recovery::default(),
            compare: None,
            archive: None,
            encryptor: None,
            jobs: None,
            observer: None,
        }
    }
}

/// Restores a backup into a throwaway server, looks at everything, and keeps what was found in the repository. What is
/// wrong with the backup is in the record, whatever it is: a restore that failed, a server that does not start, damaged
/// pages, other rows.
///
/// # Errors
/// What ends it before the restore begins: no server programs and no Docker, no room, an unknown kind of backup; that
/// it was cancelled; and that the record could not be kept.
pub async fn drill(
    repository: &Repository,
    record: &BackupRecord,
    options: DrillOptions,
    cancel: &CancellationToken,
) -> Result<DrillRecord> {
    run::Run::new(repository, record, options)?.run(cancel).await
}
