//! How well a cluster is protected now: what there is, how much would be lost, what was proved, and what is late.

mod judge;
mod look;

pub use judge::length;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::check::{Checked, Level};
use crate::repository::{BackupId, ClusterName};

/// What an operator promised. What is not set is not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Objectives {
    /// How much may be lost at most: the age of the newest data that is stored.
    pub rpo: Option<SignedDuration>,
    /// How long a restore may take: what drills measured.
    pub rto: Option<SignedDuration>,
    /// How old the newest good backup of each kind may be.
    pub backup_age: Option<SignedDuration>,
    /// How long ago the last verification may be.
    pub verify_age: Option<SignedDuration>,
    /// How long ago the last good drill may be.
    pub drill_age: Option<SignedDuration>,
}

/// The good backups of one kind, and of one database where they are logical.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Series {
    /// `logical` or `physical`.
    pub kind: String,
    /// The database; nothing of physical backups and of those of a whole server.
    pub database: Option<String>,
    /// How many there are.
    pub backups: usize,
    /// The newest one.
    pub newest: BackupId,
    /// The moment that it holds: when a logical one began, when a physical one ended.
    pub holds: Timestamp,
    /// Seconds since then.
    pub age_seconds: i64,
    /// Bytes as stored, of the newest one.
    pub stored_bytes: u64,
    /// The median of the full ones before it, where there are three at least; at most ten count.
    pub median_bytes: Option<u64>,
}

/// What may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Exposure {
    /// Seconds since the newest data that is stored: what was written since then is lost with the server.
    pub seconds: i64,
    /// Where they are: `wal`, or `backup` where there is no WAL archive or it has a gap.
    pub by: &'static str,
}

/// The moments that can be recovered, any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Window {
    /// The first: the end of the oldest physical backup from which the WAL leads on without a gap.
    pub from: Timestamp,
    /// The last commit in the archive, where there is any.
    pub to: Option<Timestamp>,
}

/// The WAL archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalStatus {
    /// Segments, whole or not.
    pub segments: usize,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// The last commit in it.
    pub last_commit: Option<Timestamp>,
    /// When the newest object was stored.
    pub last_stored: Option<Timestamp>,
    /// The first segment that recovery from the newest physical backup would miss.
    pub gap: Option<String>,
    /// Segments of which several differ.
    pub conflicts: usize,
}

/// What verifications found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyStatus {
    /// When the last one was.
    pub last: Option<Timestamp>,
    /// How many backups were never verified.
    pub never: usize,
    /// Backups that were found damaged.
    pub damaged: Vec<BackupId>,
}

/// The last drill.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DrillStatus {
    /// The backup that was restored.
    pub backup: BackupId,
    /// When it ended.
    pub at: Timestamp,
    /// Whether the backup was proved.
    pub good: bool,
    /// How long the restore took: the recovery time.
    pub rto_seconds: f64,
    /// When the last good one ended.
    pub last_good: Option<Timestamp>,
}

/// One of the places of a repository that is in several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CopyStatus {
    /// Which place.
    pub place: String,
    /// How many backups it has; nothing where it did not answer.
    pub backups: Option<usize>,
}

/// The size of one backup, for its course over time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Size {
    /// The backup.
    pub id: BackupId,
    /// Bytes as stored.
    pub stored_bytes: u64,
}

/// How well a cluster is protected.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The cluster.
    pub cluster: ClusterName,
    /// When it was looked at, by this host's clock.
    pub at: Timestamp,
    /// How bad the worst finding is.
    pub level: Level,
    /// What is late, missing or damaged.
    pub findings: Vec<Checked>,
    /// The good backups, by kind and database.
    pub series: Vec<Series>,
    /// What may be lost; nothing where there is no backup.
    pub rpo: Option<Exposure>,
    /// What can be recovered to any moment; nothing where there is no physical backup.
    pub window: Option<Window>,
    /// The WAL archive; nothing where there is none.
    pub wal: Option<WalStatus>,
    /// Verifications.
    pub verify: VerifyStatus,
    /// The last drill; nothing where there was none.
    pub drill: Option<DrillStatus>,
    /// The places of the repository, where it is in several.
    pub copies: Vec<CopyStatus>,
    /// Backups that not all places have that answered.
    pub not_everywhere: usize,
    /// Bytes of all backups as stored.
    pub backup_bytes: u64,
    /// The last backups, oldest first; twenty at most.
    pub sizes: Vec<Size>,
    /// Runs without a record: at work, or dead.
    pub unfinished: Vec<BackupId>,
}
