//! Where a drill works: its folder, and the container that the server runs in where this host has no programs.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use super::container::{self, Container};
use crate::error::Result;
use crate::physical::settled;
use crate::postgres::Cluster;
use crate::postgres::work_folder::{self, WorkFolder};

/// How the folders of drills are called. Nothing else is touched.
const PREFIX: &str = "pgark-drill-";

/// The folder, and what runs in it. Both are gone when the value is dropped, the container first.
pub(super) struct Workplace {
    pub(super) container: Option<Container>,
    /// The server, once it was started.
    pub(super) cluster: Option<Cluster>,
    folder: WorkFolder,
}

impl Workplace {
    /// Makes the folder. It belongs to `owner`, whom the server runs as.
    pub(super) fn make(parent: &Path, owner: Option<(u32, u32)>) -> Result<Self> {
        Ok(Self { container: None, cluster: None, folder: WorkFolder::make(parent, PREFIX, owner, settled)? })
    }

    /// Starts the container of the drill. Its name is written down first, so that the next drill finds it.
    pub(super) fn start_container(&mut self, image: &str) -> Result<()> {
        let name = container::new_name();
        self.note(&name)?;
        // The image need not know the user.
        let (uid, gid) = self
            .owner()
            .unwrap_or_else(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        let passwd = self.write("passwd", &format!("postgres:x:{uid}:{gid}::/tmp:/bin/sh\n"))?;
        self.container = Some(Container::start(image, name, self.path(), &passwd, (uid, gid))?);
        Ok(())
    }
}

impl Deref for Workplace {
    type Target = WorkFolder;

    fn deref(&self) -> &WorkFolder {
        &self.folder
    }
}

impl DerefMut for Workplace {
    fn deref_mut(&mut self) -> &mut WorkFolder {
        &mut self.folder
    }
}

/// Removes what drills left whose process is gone; the folders that were removed.
pub(super) fn sweep(parent: &Path) -> Vec<PathBuf> {
    work_folder::sweep(parent, PREFIX, container::remove_left)
}
