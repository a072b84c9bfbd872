//! What a drill found, as it is kept: `clusters/<cluster>/drills/<id>.json`.

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Recovered;
use crate::repository::{BackupId, ClusterName, RECORD_LIMIT, Repository, Tool, from_json, layout, to_json};
use crate::store::{Created, Entry, list_sorted, read_whole};

/// How many records are read at once.
const READS: usize = 16;

/// A step of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// The backup was restored.
    Restore,
    /// The server was started, and recovered to its target.
    Recover,
    /// `pg_amcheck` read every table and B-tree index.
    Amcheck,
    /// Rows of all tables were counted and fingerprinted, and compared with the backup's contents, or with those of
    /// [another one](DrillRecord::compared).
    Compare,
    /// The user's own SQL was run.
    Checks,
    /// Every page was compared with its checksum.
    Checksums,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing was wrong.
    Passed,
    /// Something was wrong: see what was found.
    Failed,
    /// It was not done: the note says why.
    NotDone,
}

/// A step, what came of it, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Phase {
    /// Which.
    pub step: Step,
    /// What came of it.
    pub outcome: Outcome,
    /// Seconds.
    pub seconds: f64,
    /// How many things are wrong.
    pub findings: u64,
    /// What was done, or why not, in a line. It may name tables, and is not kept.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What is wrong, a line each; at most a hundred. Not kept either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
}

/// The logical backup that a physical one was compared with, and how far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ComparedWith {
    /// The logical backup.
    pub backup: BackupId,
    /// Whether the cluster was as the backup's snapshot saw it. What differs between two moments proves nothing.
    pub same_moment: bool,
    /// Databases whose rows were read.
    pub databases: u64,
    /// Those of the backup that were not: their snapshots are of other moments.
    pub databases_left_out: u64,
    /// Tables whose rows were read.
    pub tables: u64,
    /// Their rows, as the logical backup counts them.
    pub rows: u64,
}

/// The error that ended a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// Its kind, `Integrity`.
    pub kind: String,
    /// The exit code of that kind.
    pub code: u8,
    /// The error and its causes. It may name tables, and is not kept.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A drill: which backup, how far it was recovered, what was looked at, what was found, how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DrillRecord {
    /// Version of the format: 1.
    pub format: u32,
    /// Its id, `20261121T020000Z-drill-k7qd`.
    pub id: BackupId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The backup that was restored.
    pub backup: BackupId,
    /// Its kind.
    pub kind: String,
    /// Up to where it was recovered, in words: `latest`, `the end of the backup`, a time, a position.
    pub target: String,
    /// When the drill began, by the host's clock.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Name of the host.
    pub host: String,
    /// The program.
    pub tool: Tool,
    /// Where the server ran: `this host`, or the image.
    pub place: String,
    /// Version of the server.
    pub server_version: Option<String>,
    /// Bytes that were restored, before compression.
    pub raw_bytes: u64,
    /// The steps, in order.
    pub phases: Vec<Phase>,
    /// Seconds from the first byte to a server that takes statements: restore, start and replay.
    pub rto_seconds: f64,
    /// How far a physical backup was recovered.
    pub recovered: Option<Recovered>,
    /// What a physical backup was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<ComparedWith>,
    /// Whether the backup can be restored, and nothing that was looked at is wrong.
    pub good: bool,
    /// What ended it before its end.
    pub error: Option<Failure>,
    /// What a person should know, a line each. It may name roles, and is not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What else stands there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl DrillRecord {
    /// The exit code of the command: 0 for a good one, that of the error which ended it, or 50 for bad data.
    pub fn code(&self) -> u8 {
        match &self.error {
            _ if self.good => 0,
            Some(error) => error.code,
            None => ErrorKind::Integrity.code(),
        }
    }

    /// Whether what was found is wrong with the backup: the user's own checks may be wrong themselves, and a server
    /// that does not start may lack something of this host. Of two backups that differ nothing says which is wrong.
    pub fn is_damage(&self) -> bool {
        let damaged = |phase: &Phase| {
            phase.outcome == Outcome::Failed
                && match phase.step {
                    Step::Amcheck | Step::Checksums => true,
                    Step::Compare => self.compared.is_none(),
                    _ => false,
                }
        };
        match &self.error {
            Some(error) => {
                [ErrorKind::Integrity, ErrorKind::ObjectMissing].iter().any(|k| k.name() == error.kind)
            }
            None => self.phases.iter().any(damaged),
        }
    }

    /// Without what is secret of the backup: the repository's records are in the clear.
    fn without_words(&self) -> Self {
        let mut bare = self.clone();
        bare.warnings.clear();
        if let Some(error) = &mut bare.error {
            error.message.clear();
        }
        for phase in &mut bare.phases {
            phase.note.clear();
            phase.found.clear();
        }
        bare
    }

    /// Keeps it in the repository.
    pub(super) async fn store(&self, repository: &Repository) -> Result<()> {
        let key = format!("{}/{}.json", layout::drills(&self.cluster), self.id);
        match repository.store().create(&key, to_json(&self.without_words())?).await? {
            Created::New | Created::Same => Ok(()),
            Created::Other => Err(Error::internal("a new name is taken already")),
        }
    }
}

/// The newest drills of a cluster, oldest first; at most so many. A damaged record proves nothing, and is left out.
///
/// # Errors
/// Those of the store.
pub async fn records(
    repository: &Repository,
    cluster: &ClusterName,
    most: usize,
) -> Result<Vec<DrillRecord>> {
    let store = &**repository.store();
    let entries = list_sorted(store, &layout::drills(cluster), None).await?;
    let keys: Vec<String> = entries
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Object(meta) => Some(meta.key),
            Entry::Folder(_) => None,
        })
        .collect();
    futures::stream::iter(keys[keys.len().saturating_sub(most)..].to_vec())
        .map(|key| async move {
            let read = read_whole(store, &key, RECORD_LIMIT).await.and_then(|body| from_json(&body, &key));
            match read {
                Err(error) if error.kind() == ErrorKind::Integrity => {
                    tracing::warn!(%error, "the record of a drill is damaged");
                    Ok(None)
                }
                other => other.map(Some),
            }
        })
        .buffered(READS)
        .try_filter_map(|record| async move { Ok(record) })
        .try_collect()
        .await
}
