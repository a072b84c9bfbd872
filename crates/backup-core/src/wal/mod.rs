//! The WAL archive: every change after a backup, so that a cluster can be brought to any moment.
//!
//! [`Pusher`] is what `archive_command` runs, [`Receiver`] streams from the server instead, [`Fetcher`] is what
//! `restore_command` runs; [`Archive`] is what lies between them in a repository, and [`Inventory`] says from which backup which moments can be reached.

mod archive;
mod copy;
mod destination;
mod fetch;
mod history;
mod inventory;
mod key;
mod name;
mod needed;
mod object;
mod page;
mod place;
mod points;
mod push;
mod read;
mod receive;
mod route;
mod seal;
mod segments;
mod surplus;
mod survey;
mod verify;

pub use archive::{Archive, StoredHistory};
pub(crate) use copy::{WalCopy, Written};
pub use destination::Destination;
pub use fetch::{Asking, Fetcher};
pub use history::{History, Switch};
pub use inventory::{BackupSpan, Inventory, Reach, Run};
pub use name::{SegmentName, WalName};
pub use needed::ArchivedWal;
pub use object::{Piece, ShortDigest, Stored};
pub use page::{Commit, SegmentHeader, TimeScan, Times};
pub use points::RestorePoint;
pub use push::{Pushed, Pusher};
pub use receive::Receiver;
pub(crate) use surplus::Sieve;
pub(crate) use survey::Surveyor;
pub use survey::{Newest, Segment, Stretch, Survey};
pub use verify::{WalFinding, WalReport};

/// The digest of a stored object of WAL, as its key says it.
pub(crate) fn digest_in(key: &str) -> Option<ShortDigest> {
    let (_, name) = object::split(key);
    match name.strip_suffix(".history") {
        Some(history) => history.split_once('-').and_then(|(_, digest)| ShortDigest::parse(digest)),
        None => Piece::parse(name).map(|piece| piece.stored),
    }
}
