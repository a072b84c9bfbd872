//! Reading an archive through.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use super::history::History;
use super::name::{SegmentName, WalName};
use super::object::{Piece, RESOLVED, ShortDigest, split};
use super::place::Place;
use super::read::Sink;
use crate::error::{Error, ErrorKind, Result};

/// What is wrong with an object of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalFinding {
    /// Its key; of a segment that is not there its name.
    pub object: String,
    /// Whether it is not there at all.
    pub missing: bool,
    /// What is wrong.
    pub why: String,
    /// The place that was read, where the repository has several copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

impl WalFinding {
    fn new(object: String, missing: bool, why: impl Into<String>) -> Self {
        Self { object, missing, why: why.into(), copy: None }
    }
}

/// What a verification of an archive found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct WalReport {
    /// Objects that were read.
    pub objects: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
    /// Their bytes before compression, where they were opened.
    pub raw_bytes: u64,
    /// Whether they were opened, or only their stored bytes compared.
    pub opened: bool,
    /// What is wrong.
    pub findings: Vec<WalFinding>,
}

impl WalReport {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, mut found: Self) {
        self.objects += found.objects;
        self.stored_bytes += found.stored_bytes;
        self.raw_bytes += found.raw_bytes;
        self.opened |= found.opened;
        self.findings.append(&mut found.findings);
    }

    /// Adds what was found in one of several copies.
    pub fn add_copy(&mut self, copy: &str, mut found: Self) {
        for finding in &mut found.findings {
            finding.copy = Some(copy.to_owned());
        }
        self.add(found);
    }
}

/// The keys that pieces are sealed with: those that cannot be used, and why.
type Closed = BTreeMap<String, Error>;

/// Id and method of a key.
type Key = (String, String);

/// The key that an object is sealed with.
fn key_of(object: &str) -> Option<Key> {
    Piece::parse(split(object).1)?.key
}

/// Counts, and looks whether the bytes are of their place.
struct Look {
    count: u64,
    place: Option<Place>,
}

impl Sink for Look {
    type Out = u64;

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.count += bytes.len() as u64;
        if let Some(place) = &mut self.place {
            place.update(bytes);
        }
        Ok(())
    }

    fn end(self) -> Result<u64> {
        self.place.map_or(Ok(()), |place| place.check()).map(|()| self.count)
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Integrity | ErrorKind::ObjectMissing)
}

impl Archive {
    /// Reads every object of the archive and compares it with its digest: the raw bytes too, unless `stored_only`.
    ///
    /// # Errors
    /// Those of the store and of the key. What is damaged is in the report.
    pub async fn verify(
        &self,
        stored_only: bool,
        jobs: usize,
        cancel: &CancellationToken,
    ) -> Result<WalReport> {
        // Keys first: what none of them opens is a question of who asks.
        let keys = self.objects().try_filter_map(async |(object, _)| Ok(key_of(&object)));
        let used = keys.try_collect().await?;
        self.verify_objects(self.objects(), used, stored_only, jobs, cancel).await
    }

    /// The same for the objects of some segments. One that is not there to its end is a finding.
    ///
    /// # Errors
    /// As [`Archive::verify`].
    pub async fn verify_segments(
        &self,
        segments: &[SegmentName],
        stored_only: bool,
        jobs: usize,
        cancel: &CancellationToken,
    ) -> Result<WalReport> {
        let (mut objects, mut missing) = (Vec::new(), Vec::new());
        for segment in segments {
            let stored = self.stored(&WalName::Segment(*segment)).await?;
            if !stored.is_complete() {
                let why = "it is missing, or not all of it is there";
                missing.push(WalFinding::new(segment.to_string(), true, why));
            }
            objects.extend(stored.pieces.into_iter().map(|(_, meta)| (meta.key, meta.bytes)));
        }
        let used = objects.iter().filter_map(|(object, _)| key_of(object)).collect();
        let objects = futures::stream::iter(objects.into_iter().map(Ok)).boxed();
        let mut report = self.verify_objects(objects, used, stored_only, jobs, cancel).await?;
        report.findings.append(&mut missing);
        Ok(report)
    }

    /// The keys of the archive that do not open, though they may in another copy.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn unopened_keys(&self) -> Result<Vec<WalFinding>> {
        let mut found = Vec::new();
        for name in self.key_objects().await? {
            let Some((id, method)) = name.split_once('.') else { continue };
            match self.open_named_key(id, method).await {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Integrity | ErrorKind::WrongKey) => {
                    let why = format!("{error}; keys of another copy open");
                    found.push(WalFinding::new(self.key_object(id, method), false, why));
                }
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(found)
    }

    async fn verify_objects(
        &self,
        objects: BoxStream<'_, Result<(String, u64)>>,
        used: BTreeSet<Key>,
        stored_only: bool,
        jobs: usize,
        cancel: &CancellationToken,
    ) -> Result<WalReport> {
        let closed = self.closed_keys(used, stored_only).await?;
        let keys = &closed;
        let checked = objects
            .take_until(cancel.cancelled())
            .map(|object| async move {
                let (object, bytes) = object?;
                self.verify_object(&object, bytes, stored_only, keys).await
            })
            .buffer_unordered(jobs.max(1));
        let mut checked = std::pin::pin!(checked);
        let mut report = WalReport { opened: !stored_only, ..WalReport::default() };
        while let Some((stored, raw, finding)) = checked.try_next().await? {
            report.objects += 1;
            report.stored_bytes += stored;
            report.raw_bytes += raw;
            report.findings.extend(finding);
        }
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        report.findings.extend(closed.iter().map(|(object, error)| {
            let missing = error.kind() == ErrorKind::ObjectMissing;
            WalFinding::new(object.clone(), missing, error.to_string())
        }));
        report.findings.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(report)
    }

    /// The keys of pieces that are not there, or do not open.
    ///
    /// # Errors
    /// That none of them opens: then it is a question of who asks.
    async fn closed_keys(&self, used: BTreeSet<Key>, stored_only: bool) -> Result<Closed> {
        let there = self.key_objects().await?;
        let (mut closed, mut opened) = (Closed::new(), 0);
        for (id, method) in used {
            let key = self.key_object(&id, &method);
            if !there.contains(&format!("{id}.{method}")) {
                let message = format!("key {id} is missing: nobody can read what is sealed with it");
                closed.insert(key, Error::new(ErrorKind::ObjectMissing, message));
                continue;
            }
            if stored_only {
                continue;
            }
            match self.open_named_key(&id, &method).await {
                Ok(()) => opened += 1,
                Err(error) if matches!(error.kind(), ErrorKind::Integrity | ErrorKind::WrongKey) => {
                    closed.insert(key, error);
                }
                Err(error) => return Err(error),
            }
        }
        let refused = closed.iter().find(|(_, error)| error.kind() == ErrorKind::WrongKey);
        match refused.map(|(key, _)| key.clone()).and_then(|key| closed.remove_entry(&key)) {
            Some((_, error)) if opened == 0 => return Err(error),
            Some((key, error)) => drop(closed.insert(key, error)),
            None => {}
        }
        Ok(closed)
    }

    async fn verify_object(
        &self,
        object: &str,
        bytes: u64,
        stored_only: bool,
        closed: &Closed,
    ) -> Result<(u64, u64, Option<WalFinding>)> {
        let (file, name) = split(object);
        let found = |error: &Error| {
            let missing = error.kind() == ErrorKind::ObjectMissing;
            Some(WalFinding::new(object.to_owned(), missing, error.to_string()))
        };
        // All that counts is in its name.
        if name.starts_with(RESOLVED) {
            return Ok((bytes, 0, None));
        }
        if name.ends_with(".history") {
            return match self.check_history(object).await {
                Ok(()) => Ok((bytes, 0, None)),
                Err(e) if is_damage(&e) => Ok((bytes, 0, found(&e))),
                Err(e) => Err(e),
            };
        }
        let Some(piece) = Piece::parse(name) else {
            let error = Error::new(ErrorKind::Integrity, "it has no name of WAL");
            return Ok((bytes, 0, found(&error)));
        };
        // What nothing opens is told once, of the key.
        let is_closed =
            piece.key.as_ref().is_some_and(|(id, method)| closed.contains_key(&self.key_object(id, method)));
        let read = if stored_only || is_closed {
            self.compare_stored(&piece, object).await.map(|()| 0)
        } else {
            let place = match file {
                Some(WalName::Segment(segment)) => Some(Place::new(&piece, segment, self.system())),
                _ => None,
            };
            self.read_piece(&piece, object, Look { count: 0, place }).await
        };
        match read {
            Ok(raw) => Ok((bytes, raw, None)),
            Err(e) if is_damage(&e) => Ok((bytes, 0, found(&e))),
            Err(e) => Err(e),
        }
    }

    /// Compares the text of a history with its name.
    async fn check_history(&self, key: &str) -> Result<()> {
        match self.history_at(key) {
            Some(history) => {
                let text = self.read_history(&history).await?;
                History::parse(history.timeline, &String::from_utf8_lossy(&text)).map(drop)
            }
            None => Err(Error::new(ErrorKind::Integrity, "it has no name of a history")),
        }
    }

    async fn compare_stored(&self, piece: &Piece, key: &str) -> Result<()> {
        let mut stored = self.store().read(key, None).await?;
        let mut hasher = blake3::Hasher::new();
        while let Some(chunk) = stored.next().await {
            hasher.update(&chunk?);
        }
        if ShortDigest::from(hasher.finalize()) == piece.stored {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Integrity, "its bytes are not those that were written"))
    }
}
