//! Reading an archive through.

use std::collections::HashSet;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use super::name::{SegmentName, WalName};
use super::object::{Piece, RESOLVED, ShortDigest};
use super::place::Place;
use super::read::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Meta;

/// What is wrong with an object of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalFinding {
    /// Its key.
    pub object: String,
    /// What is wrong.
    pub why: String,
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
        let objects = self.objects();
        self.verify_objects(objects, stored_only, jobs, cancel).await
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
                let why = "it is missing, or not all of it is there".to_owned();
                missing.push(WalFinding { object: segment.to_string(), why });
            }
            objects.extend(stored.pieces.into_iter().map(|(_, meta)| meta));
        }
        let objects = futures::stream::iter(objects.into_iter().map(Ok)).boxed();
        let mut report = self.verify_objects(objects, stored_only, jobs, cancel).await?;
        report.findings.append(&mut missing);
        Ok(report)
    }

    async fn verify_objects(
        &self,
        objects: BoxStream<'_, Result<Meta>>,
        stored_only: bool,
        jobs: usize,
        cancel: &CancellationToken,
    ) -> Result<WalReport> {
        let keys = self.key_objects().await?;
        let keys = &keys;
        let checked = objects
            .take_until(cancel.cancelled())
            .map(|meta| async move { self.verify_object(&meta?, stored_only, keys).await })
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
        report.findings.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(report)
    }

    async fn verify_object(
        &self,
        meta: &Meta,
        stored_only: bool,
        keys: &HashSet<String>,
    ) -> Result<(u64, u64, Option<WalFinding>)> {
        let name = meta.key.rsplit('/').next().unwrap_or_default();
        let found = |why: String| Some(WalFinding { object: meta.key.clone(), why });
        // The text of histories is compared when they are read for the windows.
        if name.starts_with(RESOLVED) || name.ends_with(".history") {
            return Ok((meta.bytes, 0, None));
        }
        let Some(piece) = Piece::parse(name) else {
            return Ok((meta.bytes, 0, found("it has no name of WAL".to_owned())));
        };
        if let Some((id, method)) = &piece.key
            && !keys.contains(&format!("{id}.{method}"))
        {
            return Ok((meta.bytes, 0, found(format!("its key {id} is missing: nobody can read it"))));
        }
        let read = if stored_only {
            self.compare_stored(&piece, &meta.key).await.map(|()| 0)
        } else {
            let place = match meta.key.rsplit('/').nth(1).map(str::parse) {
                Some(Ok(WalName::Segment(segment))) => Some(Place::new(&piece, segment, self.system())),
                _ => None,
            };
            self.read_piece(&piece, &meta.key, Look { count: 0, place }).await
        };
        match read {
            Ok(raw) => Ok((meta.bytes, raw, None)),
            Err(e) if matches!(e.kind(), ErrorKind::Integrity | ErrorKind::ObjectMissing) => {
                Ok((meta.bytes, 0, found(e.to_string())))
            }
            Err(e) => Err(e),
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
