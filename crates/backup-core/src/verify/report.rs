//! What a verification found.

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::repository::{BackupId, ClusterName, layout};

/// How deep a verification went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// The stored bytes, against the record. It needs no key.
    Stored,
    /// The stored bytes, opened and decompressed, against the contents too.
    Raw,
}

/// Something that is wrong with a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What: the key of an object, or `part 3`.
    pub what: String,
    /// The key of the object to put back, as far as it is known.
    pub key: Option<String>,
    /// Whether it is there at all.
    pub missing: bool,
    /// Why, in a line.
    pub why: String,
    /// Where it is of a backup that the one that was looked at builds on: which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupId>,
    /// The place that was read, where the repository has several copies; a backup's findings leave it to the report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

impl Finding {
    /// An object that is damaged or missing.
    pub(crate) fn of_object(key: &str, missing: bool, why: impl Into<String>) -> Self {
        Self::of(key.to_owned(), Some(key.to_owned()), missing, why)
    }

    /// Something, and the object to put back.
    pub(crate) fn of(what: String, key: Option<String>, missing: bool, why: impl Into<String>) -> Self {
        Self { what, key, missing, why: why.into(), parent: None, copy: None }
    }
}

/// The result for one backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The backup.
    pub id: BackupId,
    /// The backup that it builds on. It is not read, but must be there with all its objects, and so must those that it
    /// builds on; and the last verification of none of them may have found damage.
    pub parent: Option<BackupId>,
    /// How deep.
    pub depth: Depth,
    /// How many objects were read.
    pub objects: u64,
    /// How many stored bytes the record names for them.
    pub stored_bytes: u64,
    /// How many raw bytes were compared.
    pub raw_bytes: u64,
    /// Whether only some of the parts were read.
    pub sampled: bool,
    /// Seconds.
    pub seconds: f64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The place that was read, where the repository has several copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    /// That of a backup whose record cannot be read.
    pub fn without_record(cluster: &ClusterName, id: &BackupId, error: &Error) -> Self {
        let key = format!("{}/{}", layout::backup(cluster, id), layout::RECORD);
        let missing = error.kind() == ErrorKind::BackupNotFound;
        Self::with(id, Depth::Stored, Finding::of_object(&key, missing, error.to_string()))
    }

    /// That of a backup of which nothing could be read, for this reason.
    pub(crate) fn with(id: &BackupId, depth: Depth, finding: Finding) -> Self {
        Self {
            id: id.clone(),
            parent: None,
            depth,
            objects: 0,
            stored_bytes: 0,
            raw_bytes: 0,
            sampled: false,
            seconds: 0.0,
            findings: vec![finding],
            copy: None,
        }
    }
}
