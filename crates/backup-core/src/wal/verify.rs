//! Reading an archive through.

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use super::name::{SegmentName, WalName};
use super::object::{Piece, RESOLVED, ShortDigest};
use super::page::{LONG_HEADER, SegmentHeader};
use super::read::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;
use crate::store::{Meta, list_deep};

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

/// Every page that WAL can be written in ends here, whatever their size (1 to 64 KiB, `XLOG_BLCKSZ`).
const PAGE_BOUNDARY: u64 = 64 << 10;
/// Up to the position that a page's header says it stands at (`xlp_pageaddr` in `xlog_internal.h`).
const PAGE_HEAD: usize = 16;

/// Counts, and looks whether the bytes say that they are of the place that they are stored for. An object that was
/// put below the name of another segment is not damaged itself.
struct Look {
    count: u64,
    /// The segment of the folder that it is in, and its position; none of other files.
    of: Option<(SegmentName, Lsn)>,
    system: u64,
    /// Where the first header of a page is in the piece.
    head_at: u64,
    head: Vec<u8>,
    /// How much is wanted of it.
    wanted: usize,
}

impl Look {
    fn new(piece: &Piece, segment: Option<SegmentName>, system: u64) -> Self {
        let (wanted, head_at) = match piece.offset {
            0 => (LONG_HEADER, 0),
            offset => (PAGE_HEAD, offset.next_multiple_of(PAGE_BOUNDARY) - offset),
        };
        let of = segment
            .filter(|_| piece.segment_bytes.is_power_of_two() && piece.segment_bytes >= PAGE_BOUNDARY)
            .map(|segment| (segment, Lsn(segment.start(piece.segment_bytes).0 + piece.offset + head_at)));
        Self { count: 0, of, system, head_at, head: Vec::new(), wanted }
    }

    /// A piece need not have a header, and behind a switch of segments a page may be all zeros.
    fn is_of_its_place(&self) -> bool {
        let Some((segment, at)) = self.of else { return true };
        if self.head.len() < self.wanted {
            return true;
        }
        if self.wanted == LONG_HEADER {
            let header = SegmentHeader::read(&self.head);
            return header.is_ok_and(|h| h.is_of(segment) && h.system_identifier == self.system);
        }
        let (magic, position) = (&self.head[..2], &self.head[8..]);
        magic == [0; 2] || position == at.0.to_le_bytes()
    }
}

impl Sink for Look {
    type Out = u64;

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.count + bytes.len() as u64;
        let missing = self.wanted - self.head.len();
        if missing > 0 && end > self.head_at {
            let from = usize::try_from(self.head_at.saturating_sub(self.count)).unwrap_or(usize::MAX);
            let rest = bytes.get(from..).unwrap_or_default();
            self.head.extend_from_slice(&rest[..missing.min(rest.len())]);
        }
        self.count = end;
        Ok(())
    }

    fn end(self) -> Result<u64> {
        if self.is_of_its_place() {
            return Ok(self.count);
        }
        Err(Error::new(ErrorKind::Integrity, "it holds the WAL of another place or cluster")
            .with_hint("it was put there by hand: remove it, and put back the object that belongs there"))
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
        let objects = list_deep(self.store(), &self.root()).await?;
        let checked: Vec<(u64, u64, Option<WalFinding>)> = futures::stream::iter(objects)
            .take_until(cancel.cancelled())
            .map(|meta| async move { self.verify_object(&meta, stored_only).await })
            .buffer_unordered(jobs.max(1))
            .try_collect()
            .await?;
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let mut report = WalReport { opened: !stored_only, ..WalReport::default() };
        for (stored, raw, finding) in checked {
            report.objects += 1;
            report.stored_bytes += stored;
            report.raw_bytes += raw;
            report.findings.extend(finding);
        }
        report.findings.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(report)
    }

    async fn verify_object(&self, meta: &Meta, stored_only: bool) -> Result<(u64, u64, Option<WalFinding>)> {
        let name = meta.key.rsplit('/').next().unwrap_or_default();
        let found = |why: String| Some(WalFinding { object: meta.key.clone(), why });
        // The text of histories is compared when they are read for the windows.
        if name.starts_with(RESOLVED) || name.ends_with(".history") {
            return Ok((meta.bytes, 0, None));
        }
        let Some(piece) = Piece::parse(name) else {
            return Ok((meta.bytes, 0, found("it has no name of WAL".to_owned())));
        };
        let read = if stored_only {
            self.compare_stored(&piece, &meta.key).await.map(|()| 0)
        } else {
            let segment = meta.key.rsplit('/').nth(1).and_then(|name| match name.parse() {
                Ok(WalName::Segment(segment)) => Some(segment),
                _ => None,
            });
            self.read_piece(&piece, &meta.key, Look::new(&piece, segment, self.system())).await
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
