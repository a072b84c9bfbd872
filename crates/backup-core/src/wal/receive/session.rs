//! One connection: where to begin, and streaming from there.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Receiver;
use super::incoming::{Begin, Chunk, Incoming};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::physical::size_of_setting;
use crate::postgres::{
    Lsn, NextTimeline, Replication, Session, System, WalMessage, WalPosition, quote_literal,
};
use crate::wal::archive::{Archive, key_name};
use crate::wal::history::History;
use crate::wal::key::WalKey;
use crate::wal::name::{SegmentName, WalName};
use crate::wal::object::Piece;
use crate::wal::points;
use crate::wal::seal::Sealer;

/// How long a stream that was told to end may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a stream ended.
enum Ended {
    Stopped,
    Timeline(NextTimeline),
}

/// What does not change while a connection lives.
struct Source {
    session: Session,
    system: System,
    segment_bytes: u64,
    archive: Archive,
}

impl Receiver {
    /// Streams until it is told to stop, or fails. Sets `progressed` when something was stored.
    pub(super) async fn session(&self, cancel: &CancellationToken, progressed: &mut bool) -> Result<()> {
        let session = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            session = self.connection.connect() => session?,
        };
        let mut replication = session.replication().await?;
        let system = replication.identify().await?;
        let (_, version) = session.server_version().await?;
        let segment_bytes = size_of_setting(&replication.setting("wal_segment_size").await?)?;
        let archive = self.to.archive(system.identifier, &version).await?;
        let source = Source { session, system, segment_bytes, archive };
        let kept = self.slot_position(&mut replication).await?;
        let mut begin = self.begin(&source, &mut replication, kept).await?;
        loop {
            self.observer.event(&Event::Step {
                what: format!("receiving WAL of timeline {} from {}", begin.timeline, begin.stored),
            });
            let next = match self.stream(&source, &mut replication, begin, cancel, progressed).await? {
                Ended::Stopped => return Ok(()),
                Ended::Timeline(next) => next.ok_or_else(|| {
                    Error::new(ErrorKind::ConnectionLost, "the server ended the stream of its WAL")
                        .retryable_if(true)
                })?,
            };
            // A history is stored before its WAL: whoever finds WAL of a timeline knows where it began.
            self.store_histories(&source, &mut replication, next.timeline).await?;
            let segment = SegmentName::at(next.timeline, next.lsn, segment_bytes);
            begin = self.after(&source, segment).await?;
        }
    }

    async fn slot_position(&self, replication: &mut Replication) -> Result<Option<Lsn>> {
        let there = replication.slot_position(&self.slot).await?;
        if there.is_some() || !self.create_slot {
            return Ok(there);
        }
        match replication.create_slot(&self.slot, false).await {
            // It was there, and has kept nothing yet.
            Err(e) if e.kind() == ErrorKind::Database && e.to_string().contains("exists") => Ok(None),
            Err(e) => Err(e),
            Ok(()) => replication.slot_position(&self.slot).await,
        }
    }

    /// Where to begin: behind what the archive has; else where the slot begins; else where the server is.
    async fn begin(
        &self,
        source: &Source,
        replication: &mut Replication,
        kept: Option<Lsn>,
    ) -> Result<Begin> {
        let now = source.system.timeline;
        let history = self.store_histories(source, replication, now).await?;
        let Some(newest) = source.archive.newest(now).await? else {
            let at = kept.unwrap_or(source.system.flushed);
            let segment = SegmentName::at(now, at, source.segment_bytes);
            let start = segment.start(source.segment_bytes);
            return Ok(Begin { timeline: now, at: start, stored: start });
        };
        let begin = self.after(source, newest).await?;
        let slot = kept.map(|kept| SegmentName::at(now, kept, source.segment_bytes));
        if let (Some(kept), Some(slot)) = (kept, slot)
            && slot.start(source.segment_bytes) > begin.stored
        {
            self.warn(format!(
                "the slot begins at {kept}, and the archive ends at {}: what is in between is missing, and no backup from \
                 before it can be recovered beyond; make a backup",
                begin.stored
            ));
            return self.after(source, slot).await;
        }
        let next = |at: Lsn| {
            let mut later = history.switches.iter().map(|s| s.timeline).chain([now]);
            let timeline = later.find(|timeline| *timeline > newest.timeline).unwrap_or(now);
            SegmentName::at(timeline, at, source.segment_bytes)
        };
        match history.end_of(newest.timeline) {
            Some(None) => Ok(begin),
            Some(Some(end)) if begin.stored < end => Ok(begin),
            Some(Some(end)) => {
                if begin.stored > end {
                    self.warn(format!(
                        "the server left timeline {} at {end}, and WAL up to {} of it was acknowledged: what was \
                         committed in between is in the archive only, on that timeline",
                        newest.timeline, begin.stored
                    ));
                }
                self.after(source, next(end)).await
            }
            None => {
                self.warn(format!(
                    "the server's timeline {now} does not come from timeline {}, which the archive has: both are kept",
                    newest.timeline
                ));
                let at = kept.unwrap_or(source.system.flushed);
                self.after(source, SegmentName::at(now, at, source.segment_bytes)).await
            }
        }
    }

    fn warn(&self, message: String) {
        self.observer.event(&Event::Warning { message });
    }

    /// Behind what is stored of a segment.
    async fn after(&self, source: &Source, segment: SegmentName) -> Result<Begin> {
        let stored = source.archive.stored(&WalName::Segment(segment)).await?;
        let size = source.segment_bytes;
        if stored.is_complete() {
            let start = segment.next(size).start(size);
            return Ok(Begin { timeline: segment.timeline, at: start, stored: start });
        }
        let start = segment.start(size);
        let stored = Lsn(start.0 + stored.contiguous());
        Ok(Begin { timeline: segment.timeline, at: start, stored })
    }

    /// Stores the history of a timeline and of those that it comes from.
    async fn store_histories(
        &self,
        source: &Source,
        replication: &mut Replication,
        timeline: u32,
    ) -> Result<History> {
        if timeline == 1 {
            return Ok(History::first(1));
        }
        let there = source.archive.histories().await?;
        let text = replication.timeline_history(timeline).await?.text;
        let history = History::parse(timeline, &text)?;
        for ancestor in history.switches.iter().map(|s| s.timeline).filter(|t| *t > 1) {
            if there.iter().all(|h| h.timeline != ancestor) {
                let text = replication.timeline_history(ancestor).await?.text;
                source.archive.store_history(ancestor, text.as_bytes()).await?;
            }
        }
        source.archive.store_history(timeline, text.as_bytes()).await?;
        Ok(history)
    }

    async fn stream(
        &self,
        source: &Source,
        replication: &mut Replication,
        begin: Begin,
        cancel: &CancellationToken,
        progressed: &mut bool,
    ) -> Result<Ended> {
        let from = WalPosition { timeline: begin.timeline, lsn: begin.at };
        let mut stream = replication.stream_wal(Some(&self.slot), from).await.map_err(|e| {
            if e.hint().is_some() {
                return e;
            }
            e.with_hint(
                "--create-slot makes the slot; where the server no longer has this WAL, there is a gap: drop \
                         the slot, and make a backup",
            )
        })?;
        let mut incoming = Incoming::new(begin, source.segment_bytes, source.system.identifier);
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stored, mut server_end) = (begin.stored, begin.stored);
        let (mut waiting, mut storing) = (Bytes::new(), None::<BoxFuture<'_, Result<Lsn>>>);
        let (mut due, mut synchronous, mut stopping, mut ended) = (false, false, false, None);
        loop {
            incoming.take(&mut waiting)?;
            let last = stopping || ended.is_some();
            if storing.is_none() && (due || synchronous || last || incoming.is_full()) {
                due = false;
                storing = incoming.cut().map(|chunk| self.store(source, chunk));
            }
            if last && storing.is_none() && incoming.is_empty() && (stopping || waiting.is_empty()) {
                break;
            }
            tokio::select! {
                biased;
                () = cancel.cancelled(), if !stopping => stopping = true,
                done = async { match &mut storing { Some(s) => s.await, None => std::future::pending().await } } => {
                    stored = done?;
                    storing = None;
                    *progressed = true;
                    if ended.is_none() {
                        stream.confirm(stored, stored).await?;
                    }
                }
                // While the store stalls, the server hears of it all the same.
                _ = tick.tick() => {
                    due = true;
                    if ended.is_none() {
                        stream.confirm(stored, stored).await?;
                    }
                    synchronous = self.is_synchronous(&source.session).await?;
                    self.observer.event(&Event::Wal {
                        timeline: begin.timeline,
                        stored: stored.to_string(),
                        server: server_end.to_string(),
                        lag_bytes: server_end.0.saturating_sub(stored.0),
                        synchronous,
                    });
                }
                message = stream.next(), if waiting.is_empty() && !last => match message? {
                    WalMessage::Data { bytes, server_end: end, .. } => (waiting, server_end) = (bytes, end),
                    WalMessage::Keepalive { server_end: end, answer } => {
                        server_end = end;
                        if answer {
                            stream.confirm(stored, stored).await?;
                        }
                    }
                    WalMessage::End(next) => ended = Some(next),
                },
            }
        }
        if let Some(next) = ended {
            return Ok(Ended::Timeline(next));
        }
        stream.confirm(stored, stored).await?;
        // The server may have much on its way that nobody wants any more.
        let _ = tokio::time::timeout(FAREWELL, stream.finish()).await;
        Ok(Ended::Stopped)
    }

    /// Whether commits wait for this side.
    async fn is_synchronous(&self, session: &Session) -> Result<bool> {
        let query = format!(
            "SELECT 1 FROM pg_catalog.pg_stat_replication r JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid \
             WHERE s.slot_name = {} AND r.sync_state IN ('sync', 'quorum')",
            quote_literal(&self.slot)
        );
        Ok(!session.rows(&query).await?.is_empty())
    }

    /// Stores a piece; the position behind it.
    fn store<'a>(&'a self, source: &'a Source, chunk: Chunk) -> BoxFuture<'a, Result<Lsn>> {
        Box::pin(async move {
            let key = self.to.key().await?;
            let end = chunk.end(source.segment_bytes);
            let (name, times) = (WalName::Segment(chunk.segment), chunk.times.clone());
            let (level, sealing, segment_bytes) = (self.to.level, key.clone(), source.segment_bytes);
            let sealed =
                tokio::task::spawn_blocking(move || seal(&chunk, level, sealing.as_ref(), segment_bytes))
                    .await;
            let (piece, sealed) =
                sealed.unwrap_or_else(|e| Err(Error::internal("sealing WAL failed").caused_by(e)))?;
            points::store(&source.archive, &name, &times, key.as_ref()).await?;
            source.archive.store_piece(&name, &piece.with_times(&times), sealed).await?;
            Ok(end)
        })
    }
}

fn seal(
    chunk: &Chunk,
    level: i32,
    key: Option<&WalKey>,
    segment_bytes: u64,
) -> Result<(Piece, crate::wal::seal::Sealed)> {
    let mut writer = Sealer::new(level, key)?;
    writer.write(&chunk.bytes)?;
    let sealed = writer.finish()?;
    let piece = Piece {
        offset: chunk.offset,
        length: chunk.bytes.len() as u64,
        segment_bytes,
        stored_bytes: Some(sealed.bytes),
        raw: blake3::hash(&chunk.bytes).into(),
        stored: sealed.digest.clone(),
        first: None,
        last: None,
        key: key_name(key),
    };
    Ok((piece, sealed))
}
