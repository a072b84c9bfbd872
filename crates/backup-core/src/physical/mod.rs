//! Physical backups: the files of a whole cluster and the WAL that makes them consistent.
//!
//! [`BaseBackupDump`] takes them over the replication protocol, so that it needs nothing on the database's host.
//! [`DataDirectory`] makes them a data directory again.

mod archived;
mod blocks;
mod catalog;
mod chain;
mod check;
mod clear;
mod configuration;
mod delta;
mod dump;
mod export;
mod files;
mod increment;
mod incremental;
mod journal;
mod manifest;
mod overlay;
mod pages;
mod partial;
mod place;
mod plan;
mod prove;
mod recovery;
mod relation;
mod restore;
mod select;
mod shards;
mod unpack;
mod wal;

pub(crate) use dump::size_of_setting;
pub use dump::{BaseBackupDump, PhysicalPreview, Span, span};
pub use export::Export;
pub use increment::Parent;
pub(crate) use journal::settled;
pub(crate) use pages::{Pages, read_cluster};
pub(crate) use partial::{DATA, Outcome, PartialDirectory};
pub use plan::{Archived, Plan};
pub(crate) use prove::{FilesLook, FilesRead, is_manifest};
pub use recovery::{Recovery, Target, TargetAction};
pub use restore::DataDirectory;

/// [`Dumper::kind`](crate::Dumper::kind) of physical backups.
pub const KIND: &str = "physical";
/// Kind of the parts that hold files: a tar archive each. They are named `base/1`, or `<OID>/1` for a tablespace.
pub const FILES: &str = "tar";
/// Kind of the parts that hold what changed since the parent, in place of [`FILES`]: tar archives, named alike.
pub const DELTA: &str = "delta";
/// Kind of the parts that hold what changed, as the server found it in its WAL summaries, in place of [`FILES`]: the
/// server's own tar archives, with its `INCREMENTAL.*` files, named alike.
pub const INCREMENTAL: &str = "incremental";
/// Kind of the part of an increment that lists all files of the cluster.
pub const LIST: &str = "list";
/// Kind of the part that holds WAL: a tar archive of whole segments, below `pg_wal/`.
pub const WAL: &str = "wal";
/// Kind of the part that holds the server's `backup_manifest`.
pub const MANIFEST: &str = "manifest";
/// Name that the server gives to the archive of the data directory, without its ending.
const BASE: &str = "base";
