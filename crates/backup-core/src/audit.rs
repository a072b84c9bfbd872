//! Who did what to a cluster's backups: a log to which entries are only added, each with the digest of the one before it.
//!
//! Whoever can write to the store could still cut the end off. So a reader compares what it saw last, the [`Head`], with
//! what is there now; and a store with object lock lets nobody cut.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::passwd;
use crate::repository::{
    BackupId, ClusterName, Digest, FORMAT, Repository, Tool, check_small, from_json, host_name, layout,
    to_json,
};
use crate::store::{Created, Store, list_sorted, read_if_there, read_whole, sources};

/// Entries of one folder, so that finding the last one takes two short lists.
const IN_FOLDER: u64 = 1000;
/// More than any entry has.
const LIMIT: usize = 1 << 20;
/// How often the next number is tried: each time somebody else was faster.
const TRIES: usize = 50;
/// How many entries are read at once.
const READS: usize = 16;

/// How far something went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It begins. Where nothing follows, the process died.
    Begun,
    /// It was done.
    Done,
    /// It failed, with an error of this kind ([`ErrorKind::name`]). Its words may name tables, and stay out.
    Failed(String),
}

impl Outcome {
    /// That of a result.
    pub fn of<T>(result: &Result<T>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => Self::Failed(error.kind().name().to_owned()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun => f.write_str("begun"),
            Self::Done => f.write_str("done"),
            Self::Failed(kind) => write!(f, "failed: {kind}"),
        }
    }
}

/// What is noted: nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    action: &'static str,
    backups: Vec<BackupId>,
    details: Map<String, Value>,
}

impl Act {
    /// Something that was done, in the word of its verb: `backup`, `restore`, `prune`.
    pub fn new(action: &'static str) -> Self {
        Self { action, backups: Vec::new(), details: Map::new() }
    }

    /// The backups that it was done with.
    #[must_use]
    pub fn backups<'a>(mut self, ids: impl IntoIterator<Item = &'a BackupId>) -> Self {
        self.backups.extend(ids.into_iter().cloned());
        self
    }

    pub(crate) fn add_backup(&mut self, id: &BackupId) {
        self.backups.push(id.clone());
    }

    /// What else is to be known. The log is in the clear: no names of tables, no secrets.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}

/// `audit/<folder>/<number>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// Version of the format: 1.
    pub format: u32,
    /// Its number, from 1, without gaps.
    pub number: u64,
    /// BLAKE3 of the object before it; nothing in the first one.
    pub previous: Option<Digest>,
    /// When it was noted, by the host's clock.
    pub at: Timestamp,
    /// Who: the user of the host.
    pub user: String,
    /// From where: the host's name.
    pub host: String,
    /// Process id on the host.
    pub process: u32,
    /// The program.
    pub tool: Tool,
    /// What was done: `backup`, `restore`, `prune`.
    pub action: String,
    /// How far it went.
    pub outcome: Outcome,
    /// The backups that it was done with.
    pub backups: Vec<BackupId>,
    /// What else there is to say.
    pub details: Map<String, Value>,
    /// What else stands there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The last entry of a log. Kept somewhere else, it shows whether the end was cut off since. As text it is
/// `<number>:<digest>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// BLAKE3 of its object.
    pub digest: Digest,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.digest)
    }
}

impl FromStr for Head {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.trim().split_once(':').and_then(|(number, digest)| {
            Some(Self { number: number.parse().ok()?, digest: digest.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} is no entry of an audit log"))
                .with_hint("it looks like 12:af13…, with a digest of 64 digits; pgark audit verify prints it")
        })
    }
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Its key.
    pub(crate) key: String,
    /// Whether it is gone.
    pub(crate) missing: bool,
    /// Why, in a line.
    pub(crate) why: String,
}

/// What a verification of a log found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditReport {
    /// How many entries were read.
    pub entries: u64,
    /// The last one.
    pub head: Option<Head>,
    /// What is wrong, a line each.
    pub findings: Vec<String>,
}

fn key_of(cluster: &ClusterName, number: u64) -> String {
    format!("{}/{:07}/{number:010}.json", layout::audit(cluster), number / IN_FOLDER)
}

/// The number in the name of an entry.
fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".json").filter(|n| n.len() == 10)?.parse().ok()
}

/// The number of the last entry.
async fn last_number(store: &dyn Store, cluster: &ClusterName) -> Result<Option<u64>> {
    let root = layout::audit(cluster);
    for folder in list_sorted(store, &root, None).await?.iter().rev() {
        let entries = list_sorted(store, &format!("{root}/{}", folder.name()), None).await?;
        if let Some(last) = entries.iter().rev().find_map(|entry| number_of(entry.name())) {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

/// The last entry of the log; nothing where it is empty.
pub async fn head(repository: &Repository, cluster: &ClusterName) -> Result<Option<Head>> {
    let store = &**repository.store();
    let Some(number) = last_number(store, cluster).await? else { return Ok(None) };
    let key = key_of(cluster, number);
    // One that is damaged in all copies has a digest, too.
    let body = match read_entry(repository, &key).await? {
        Some(body) => body,
        None => read_whole(store, &key, LIMIT).await?,
    };
    Ok(Some(Head { number, digest: Digest::of(&body) }))
}

/// Adds an entry.
///
/// # Errors
/// Those of the store: a reader's credentials may not be allowed to write, for example.
pub async fn note(
    repository: &Repository,
    cluster: &ClusterName,
    act: Act,
    outcome: Outcome,
) -> Result<Head> {
    let mut entry = Entry {
        format: FORMAT,
        number: 0,
        previous: None,
        at: Timestamp::now(),
        user: passwd::own_name(),
        host: host_name(),
        process: std::process::id(),
        tool: Tool::this(),
        action: act.action.to_owned(),
        outcome,
        backups: act.backups,
        details: act.details,
        other: Map::new(),
    };
    for _ in 0..TRIES {
        let last = head(repository, cluster).await?;
        entry.number = last.map_or(1, |head| head.number + 1);
        entry.previous = last.map(|head| head.digest);
        let body = to_json(&entry)?;
        let digest = Digest::of(&body);
        if repository.store().create(&key_of(cluster, entry.number), body).await? != Created::Other {
            return Ok(Head { number: entry.number, digest });
        }
    }
    Err(Error::new(ErrorKind::Conflict, "others kept writing to the audit log").retryable_if(true))
}

/// Adds an entry where the store lets this host write. What was done does not fail for want of it: whoever may only
/// read can restore.
pub(crate) async fn note_if_possible(
    repository: &Repository,
    cluster: &ClusterName,
    act: Act,
    outcome: Outcome,
) {
    let action = act.action;
    match note(repository, cluster, act, outcome).await {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::StoreDenied => {
            tracing::debug!(%error, action, "the audit log has no entry of this");
        }
        Err(error) => tracing::warn!(%error, action, "the audit log has no entry of this"),
    }
}

/// The entries from a number on, oldest first.
///
/// # Errors
/// [`Integrity`](ErrorKind::Integrity) where one is damaged: [`verify`] tells which ones.
pub async fn entries(repository: &Repository, cluster: &ClusterName, from: u64) -> Result<Vec<Entry>> {
    let store = &**repository.store();
    let Some(last) = last_number(store, cluster).await? else { return Ok(Vec::new()) };
    futures::stream::iter(from.max(1)..=last)
        .map(|number| async move {
            let key = key_of(cluster, number);
            let body = read_whole(store, &key, LIMIT).await?;
            check_small(&key, &body).and_then(|()| from_json(&body, &key))
        })
        .buffered(READS)
        .try_collect()
        .await
}

/// The bytes of an entry: from the first copy that has it undamaged, else from any that has it at all.
async fn read_entry(repository: &Repository, key: &str) -> Result<Option<Bytes>> {
    let (mut damaged, mut failed) = (None, None);
    for source in sources(repository.store()) {
        match read_if_there(&*source, key, LIMIT).await {
            Ok(Some(body)) if check_small(key, &body).is_ok() => return Ok(Some(body)),
            Ok(Some(body)) => damaged = damaged.or(Some(body)),
            Ok(None) => {}
            Err(error) => failed = Some(error),
        }
    }
    match (damaged, failed) {
        (None, Some(error)) => Err(error),
        (damaged, _) => Ok(damaged),
    }
}

/// Reads the whole log: every number is there, each entry has the digest of the one before it, and the log has what was
/// its last entry at an earlier time. Where the repository has several copies, an entry is damaged where it is in all.
pub async fn verify(
    repository: &Repository,
    cluster: &ClusterName,
    earlier: Option<Head>,
) -> Result<AuditReport> {
    look(repository, cluster, earlier).await.map(|(report, _)| report)
}

/// The same; and which entries are wrong.
pub(crate) async fn look(
    repository: &Repository,
    cluster: &ClusterName,
    earlier: Option<Head>,
) -> Result<(AuditReport, Vec<Wrong>)> {
    let store = &**repository.store();
    let (mut entries, mut before, mut wrong) = (0, None::<Head>, Vec::new());
    let last = last_number(store, cluster).await?.unwrap_or(0).max(earlier.map_or(0, |head| head.number));
    let mut bodies = futures::stream::iter(1..=last)
        .map(|number| async move {
            let key = key_of(cluster, number);
            read_entry(repository, &key).await.map(|body| (number, key, body))
        })
        .buffered(READS);
    while let Some(read) = bodies.next().await {
        let (number, key, body) = read?;
        let mut found = |missing, why| wrong.push(Wrong { key: key.clone(), missing, why });
        let Some(body) = body else {
            found(true, format!("entry {number} is missing"));
            before = None;
            continue;
        };
        entries += 1;
        let digest = Digest::of(&body);
        match from_json::<Entry>(&body, &key) {
            Ok(entry) if entry.number != number => found(false, format!("{key} is entry {}", entry.number)),
            // Behind a missing entry nothing can be compared; that it is missing is said already.
            Ok(entry)
                if entry.previous != before.map(|head| head.digest) && (number == 1 || before.is_some()) =>
            {
                found(false, format!("entry {number} does not follow the one before it"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Integrity => found(false, error.to_string()),
            Err(error) => return Err(error),
        }
        if earlier.is_some_and(|head| head.number == number && head.digest != digest) {
            found(false, format!("entry {number} is not the one that was there before"));
        }
        before = Some(Head { number, digest });
    }
    let findings = wrong.iter().map(|wrong| wrong.why.clone()).collect();
    Ok((AuditReport { entries, head: before, findings }, wrong))
}
