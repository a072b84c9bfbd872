//! The traits between pgark and what it backs up: a [`Dumper`] turns a source into parts, a [`Restorer`]
//! turns parts back.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::repository::{BackupId, BackupSummary};
use crate::store::Bytestream;

/// What a dumper or restorer is given beside its parts.
#[derive(Clone)]
#[non_exhaustive]
pub struct Ctx {
    /// Ends every long call; also triggered when another part of the run fails.
    pub cancel: CancellationToken,
    /// How much may run at once.
    pub jobs: usize,
    /// Where events go.
    pub observer: Arc<dyn Observer>,
    /// The backup that the run makes, or restores.
    pub backup: Option<BackupId>,
}

impl Ctx {
    /// A context for `jobs` jobs.
    pub fn new(cancel: CancellationToken, jobs: usize, observer: Arc<dyn Observer>) -> Self {
        Self { cancel, jobs, observer, backup: None }
    }

    /// Names the backup.
    #[must_use]
    pub fn of(mut self, backup: BackupId) -> Self {
        self.backup = Some(backup);
        self
    }
}

/// Turns a source into parts.
///
/// # Contract
/// - `dump` opens parts in `parts`, writes to each, and finishes each; when it returns `Ok`, all are
///   finished. At most [`Dumper::max_open`] are open at a time: memory is reserved for exactly these, and one
///   more is an error, never a wait.
/// - What it writes is uncompressed and in the clear: the pipeline compresses and seals.
/// - It returns `Ok` only when the source is whole in its parts. After an error nothing of the run remains.
/// - It watches [`Ctx::cancel`], and leaves no process or session behind, however it ends.
#[async_trait]
pub trait Dumper: Send + Sync {
    /// What the backup is: a word for the id and the record, `"logical"`.
    fn kind(&self) -> &'static str;

    /// How many parts it holds open at most, with `jobs` jobs.
    fn max_open(&self, jobs: usize) -> usize;

    /// The backup that this one is meant to build on: it is announced before anything is stored, so that nobody
    /// removes it meanwhile. [`Dumped::parent`] says what came of it.
    fn parent(&self) -> Option<BackupId> {
        None
    }

    /// Bytes of memory that it takes at most, beside what it gives to its parts.
    fn working_bytes(&self) -> usize {
        0
    }

    /// Does it.
    async fn dump(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped>;
}

/// What a dumper knows of its source when it is done.
#[derive(Debug, Default)]
pub struct Dumped {
    /// What may stand in the clear: server version, database name. It goes into the record.
    pub facts: Map<String, Value>,
    /// What is secret: names of tables, settings. It is sealed with the contents.
    pub contents: SourceContents,
    /// Warnings, one line each; sealed, and counted in the record.
    pub warnings: Vec<String>,
    /// The backup that this one builds on: without it, it cannot be restored. It must be there at the commit.
    pub parent: Option<BackupId>,
    /// What is to be done when the backup has committed. It is dropped where the backup fails.
    pub after_commit: Option<AfterCommit>,
}

/// What a dumper keeps with the contents, by name. It stays JSON text until it is wanted: parsed, what 20,000 tables need
/// takes five times the memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceContents(BTreeMap<String, Box<RawValue>>);

impl SourceContents {
    /// One value.
    ///
    /// # Errors
    /// Those of [`SourceContents::insert`].
    pub fn of(name: &str, value: &impl Serialize) -> Result<Self> {
        let mut contents = Self::default();
        contents.insert(name, value)?;
        Ok(contents)
    }

    /// Adds a value, or replaces it.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) where it cannot be written as JSON.
    pub fn insert(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let json = serde_json::value::to_raw_value(value);
        let json = json.map_err(|e| Error::internal(format!("{name} as JSON")).caused_by(e))?;
        self.0.insert(name.to_owned(), json);
        Ok(())
    }

    /// A value, where it is there.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it makes no sense.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(json) = self.0.get(name) else { return Ok(None) };
        serde_json::from_str(json.get()).map(Some).map_err(|e| {
            Error::new(ErrorKind::Integrity, format!("the contents do not describe {name}: {e}"))
        })
    }

    /// All of them, parsed.
    ///
    /// # Errors
    /// Those of [`SourceContents::get`].
    pub fn to_map(&self) -> Result<Map<String, Value>> {
        self.0.keys().map(|name| Ok((name.clone(), self.get(name)?.unwrap_or_default()))).collect()
    }
}

impl PartialEq for SourceContents {
    fn eq(&self, other: &Self) -> bool {
        let texts = self.0.iter().map(|(name, json)| (name, json.get()));
        texts.eq(other.0.iter().map(|(name, json)| (name, json.get())))
    }
}

/// What a dumper does when its backup has committed. A failure is a warning: the backup is there.
pub struct AfterCommit(Box<Work>);

type Work = dyn FnOnce(&BackupSummary) -> Result<()> + Send;

impl AfterCommit {
    /// `work` may block.
    pub fn new(work: impl FnOnce(&BackupSummary) -> Result<()> + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does it.
    pub(crate) fn run(self, backup: &BackupSummary) -> Result<()> {
        (self.0)(backup)
    }
}

impl fmt::Debug for AfterCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AfterCommit")
    }
}

/// Turns parts back into what they were made from.
///
/// # Contract
/// - It reads every part that it needs to its end: the check of a part is complete only there.
/// - When it fails, what it made is removed, or it says in the error what remains.
#[async_trait]
pub trait Restorer: Send + Sync {
    /// Whether it can restore a backup of this [`Dumper::kind`].
    fn accepts(&self, kind: &str) -> bool;

    /// Does it, to its end: cut short by a cancellation it is an error.
    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>>;
}

/// Describes a part to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSpec {
    /// What kind of bytes: lower-case letters, for the object's name: `"pgdump"`, `"tar"`.
    pub kind: String,
    /// Name of the part, for whoever reads the contents; secret.
    pub name: String,
}

/// Where a dumper puts its parts.
#[async_trait]
pub trait PartSink: Send + Sync {
    /// Opens a part. More than [`Dumper::max_open`] at once is an error, never a wait.
    async fn open(&self, spec: PartSpec) -> Result<Box<dyn PartWriter>>;
}

/// A part being written. Dropped without `finish` it fails the run.
#[async_trait]
pub trait PartWriter: Send {
    /// Adds bytes; waits while the pipeline is full. When this future is dropped before it ends, the part
    /// is torn, and every later call fails.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;

    /// Ends the part; it is stored when this returns. Returns its number.
    async fn finish(self: Box<Self>) -> Result<u32>;
}

/// Where a restorer finds the parts of a backup.
#[async_trait]
pub trait PartSource: Send + Sync {
    /// The parts, by number.
    fn parts(&self) -> Vec<PartInfo>;

    /// What the dumper kept with the contents.
    fn contents(&self) -> &SourceContents;

    /// What the record says of the source.
    fn facts(&self) -> &Map<String, Value>;

    /// The raw bytes of a part. The stream ends without an error only when length and digest of the whole
    /// part are right.
    async fn open(&self, part: u32) -> Result<Bytestream>;

    /// A part of which not all is read. Nothing where a part can only be read from its beginning.
    ///
    /// # Errors
    /// [`ObjectMissing`](crate::ErrorKind::ObjectMissing) where there is no such part.
    fn frames(&self, part: u32) -> Result<Option<Box<dyn PartFrames>>> {
        let _ = part;
        Ok(None)
    }

    /// The backup, for messages.
    fn name(&self) -> String {
        "the backup".to_owned()
    }

    /// The backups that this one builds on, oldest first: the first is whole, and each other one builds on the
    /// one before. None where the backup is whole itself.
    fn ancestors(&self) -> &[Arc<dyn PartSource>] {
        &[]
    }
}

/// A part of which some frames are read, in any order. Each is checked by itself, by its seal and by the checksum that
/// its compression has: the part's digest is not compared, so the reader compares what it makes of them with something
/// else.
#[async_trait]
pub trait PartFrames: Send {
    /// The frame that has the byte at an offset: where it begins in the part, and its raw bytes.
    async fn at(&mut self, offset: u64) -> Result<(u64, Bytes)>;
}

/// A part of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartInfo {
    /// Its number, from 1.
    pub part: u32,
    /// Kind and name.
    pub spec: PartSpec,
    /// Length before compression, in bytes.
    pub raw_bytes: u64,
}
