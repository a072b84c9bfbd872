//! WAL that is streamed along with a base backup.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tar::{EntryType, Header};
use tokio::sync::watch;

use super::WAL;
use super::shards::Shards;
use crate::dumper::PartSink;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Lsn, Replication, WalMessage, WalPosition};
use crate::wal::SegmentName;

/// How often the server hears how far this side is. It gives up after `wal_sender_timeout`, 60 s.
const CONFIRM: Duration = Duration::from_secs(10);
/// Zeros that are written at a time where a segment has no more WAL.
const ZEROS: &[u8] = &[0; 64 * 1024];

/// Streams whole segments into a part, from that of `start` on, to the one that holds the position that `end`
/// will say. The last one is filled up with zeros.
pub(super) async fn stream(
    replication: &mut Replication,
    slot: &str,
    start: WalPosition,
    segment_bytes: u64,
    end: watch::Receiver<Option<Lsn>>,
    sink: Arc<dyn PartSink>,
) -> Result<()> {
    let mut archive = Shards::new(sink, WAL, "pg_wal");
    add_history(replication, start.timeline, &mut archive).await?;
    let mut writer = Segments {
        archive,
        timeline: start.timeline,
        segment_bytes,
        at: start.lsn.0 / segment_bytes * segment_bytes,
    };
    let from = WalPosition { lsn: Lsn(writer.at), ..start };
    let mut stream = replication.stream_wal(Some(slot), from).await?;
    let mut end = Some(end);
    let mut until = None;
    let mut tick = tokio::time::interval(CONFIRM);
    while until.is_none_or(|until: Lsn| writer.at < until.0) {
        let changed = async {
            match &mut end {
                Some(end) => end.changed().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            known = changed => {
                match known {
                    Ok(()) => until = end.as_ref().and_then(|end| *end.borrow()),
                    // The backup itself failed, and says why.
                    Err(_) => end = None,
                }
                continue;
            }
            _ = tick.tick() => {
                stream.confirm(Lsn(writer.at), Lsn(writer.at)).await?;
                continue;
            }
            message = stream.next() => message?,
        };
        match message {
            WalMessage::Data { bytes, .. } => writer.write(bytes).await?,
            WalMessage::Keepalive { answer: true, .. } => {
                stream.confirm(Lsn(writer.at), Lsn(writer.at)).await?;
            }
            WalMessage::Keepalive { .. } => {}
            WalMessage::End(_) => {
                return Err(Error::new(
                    ErrorKind::Database,
                    "the server changed its timeline during the backup",
                )
                .with_hint("a standby was promoted: run the backup again"));
            }
        }
    }
    writer.finish().await
}

/// Stores the history of a timeline alone, where it has one. Recovery along a timeline does not begin without it
/// (`validateRecoveryParameters` in `xlogrecovery.c`), and an archive that was begun later need not have it.
pub(super) async fn store_history(
    replication: &mut Replication,
    timeline: u32,
    sink: Arc<dyn PartSink>,
) -> Result<()> {
    if timeline == 1 {
        return Ok(());
    }
    let mut archive = Shards::new(sink, WAL, "pg_wal");
    add_history(replication, timeline, &mut archive).await?;
    archive.close().await
}

/// The first timeline has no history.
async fn add_history(replication: &mut Replication, timeline: u32, archive: &mut Shards) -> Result<()> {
    if timeline > 1 {
        let history = replication.timeline_history(timeline).await?;
        archive.member(&header(&history.name, history.text.len() as u64)).await?;
        archive.data(history.text.into()).await?;
    }
    Ok(())
}

struct Segments {
    archive: Shards,
    timeline: u32,
    segment_bytes: u64,
    /// Position of the next byte.
    at: u64,
}

impl Segments {
    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let within = self.at % self.segment_bytes;
            if within == 0 {
                let name = SegmentName::at(self.timeline, Lsn(self.at), self.segment_bytes).to_string();
                self.archive.member(&header(&name, self.segment_bytes)).await?;
            }
            let room = usize::try_from(self.segment_bytes - within).unwrap_or(usize::MAX);
            let piece = bytes.split_to(room.min(bytes.len()));
            self.at += piece.len() as u64;
            self.archive.data(piece).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        while !self.at.is_multiple_of(self.segment_bytes) {
            let missing =
                usize::try_from(self.segment_bytes - self.at % self.segment_bytes).unwrap_or(usize::MAX);
            self.write(Bytes::from_static(&ZEROS[..missing.min(ZEROS.len())])).await?;
        }
        self.archive.close().await
    }
}

fn header(name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    // Such a name is short.
    let _ = header.set_path(format!("pg_wal/{name}"));
    header.set_size(size);
    header.set_mode(0o600);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    header
}
