//! Physical backups: the files of a whole cluster and the WAL that makes them consistent.
//!
//! [`BaseBackupDump`] takes them over the replication protocol, so that it needs nothing on the database's host.
//! [`DataDirectory`] makes them a data directory again.

mod configuration;
mod dump;
mod files;
mod restore;
mod shards;
mod tar;
mod wal;

pub use dump::{BaseBackupDump, PhysicalPreview};
pub use restore::DataDirectory;

/// [`Dumper::kind`](crate::Dumper::kind) of physical backups.
pub const KIND: &str = "physical";
/// Kind of the parts that hold files: a tar archive each. They are named `base/1`, or `<OID>/1` for a tablespace.
pub const FILES: &str = "tar";
/// Kind of the part that holds WAL: a tar archive of whole segments, below `pg_wal/`.
pub const WAL: &str = "wal";
/// Kind of the part that holds the server's `backup_manifest`.
pub const MANIFEST: &str = "manifest";
/// Name that the server gives to the archive of the data directory, without its ending.
const BASE: &str = "base";
