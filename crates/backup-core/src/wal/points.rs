//! Restore points, an object each: they are rare, and their names are the user's.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::archive::{Archive, key_name};
use super::key::WalKey;
use super::name::WalName;
use super::object::{Piece, ShortDigest, split};
use super::page::Times;
use super::seal::Sealer;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Lsn;
use crate::repository::Digest;
use crate::store::list_deep;

/// What `pg_create_restore_point` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RestorePoint {
    /// The timeline.
    pub timeline: u32,
    /// Where it stands in the WAL.
    pub lsn: Lsn,
    /// When it was made, by the server's clock.
    pub time: Timestamp,
    /// Its name.
    pub name: String,
}

fn folder(archive: &Archive) -> String {
    format!("{}/points", archive.root())
}

/// Stores what a segment has.
pub(super) async fn store(
    archive: &Archive,
    name: &WalName,
    times: &Times,
    key: Option<&WalKey>,
) -> Result<()> {
    let (WalName::Segment(segment) | WalName::Partial(segment)) = name else { return Ok(()) };
    for (lsn, time, name) in &times.points {
        let point = RestorePoint { timeline: segment.timeline, lsn: *lsn, time: *time, name: name.clone() };
        let json = serde_json::to_vec(&point).map_err(|e| Error::internal("a restore point").caused_by(e))?;
        let mut writer = Sealer::new(3, key)?;
        writer.write(&json)?;
        let sealed = writer.finish()?;
        let piece = Piece {
            offset: 0,
            length: json.len() as u64,
            segment_bytes: 0,
            stored_bytes: Some(sealed.bytes),
            raw: ShortDigest::from(Digest::of(&json)),
            stored: sealed.digest.clone(),
            first: None,
            last: None,
            key: key_name(key),
        };
        let key = format!("{}/{:08X}-{:016X}/{}", folder(archive), point.timeline, lsn.0, piece.name());
        sealed.store(archive.store(), &key).await?;
    }
    Ok(())
}

impl Archive {
    /// The restore points of all timelines, by time.
    pub async fn points(&self) -> Result<Vec<RestorePoint>> {
        let mut points = Vec::<RestorePoint>::new();
        for meta in list_deep(self.store(), &folder(self)).await? {
            let Some(piece) = Piece::parse(split(&meta.key).1) else { continue };
            let json = self.read_small(&piece, &meta.key).await?;
            let point = serde_json::from_slice(&json).map_err(|e| {
                Error::new(ErrorKind::Integrity, format!("{} is not a restore point", meta.key)).caused_by(e)
            })?;
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points.sort_by_key(|p| (p.time, p.timeline, p.lsn));
        Ok(points)
    }
}
