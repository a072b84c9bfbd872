//! Several copies of a repository, and copies of backups in other repositories.
//!
//! [`sync`] fills in what a copy of a repository lacks; [`copy()`] brings backups from one repository to another;
//! [`repair`] replaces a damaged object by what another copy has. Everything is compared with its digest while it is
//! copied, and the record of a backup comes last: so all of them can be interrupted anywhere and be run again.

mod announce;
mod copy;
mod marker;
mod repair;
mod reseal;
mod sync;
pub(crate) mod transfer;

use serde::Serialize;

pub use copy::{Copied, CopyOptions, CopyReport, copy};
pub use repair::{Repaired, Repairs, repair};
pub use sync::{CopySynced, SyncOptions, SyncReport, sync};

/// Something that could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// In which copy.
    pub copy: String,
    /// With what: an object's key, or a backup.
    pub what: String,
    /// Why, in a line.
    pub why: String,
}
