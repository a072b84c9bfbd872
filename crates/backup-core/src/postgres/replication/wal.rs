use bytes::{Buf, BufMut, Bytes, BytesMut};
use jiff::Timestamp;

use super::super::POSTGRES_EPOCH;
use super::super::client::quote_identifier;
use super::super::lsn::Lsn;
use super::super::wire::{Reply, garbled};
use super::{Replication, field};
use crate::error::{Error, ErrorKind, Result};

/// A position on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPosition {
    /// The timeline.
    pub timeline: u32,
    /// The position.
    pub lsn: Lsn,
}

/// The timeline that follows one that has ended. The server says nothing of it where the stream was ended by
/// this side.
pub type NextTimeline = Option<WalPosition>;

/// What comes over a [`WalStream`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMessage {
    /// WAL, without a gap to what came before.
    Data {
        /// Position of the first byte.
        start: Lsn,
        /// Its bytes.
        bytes: Bytes,
        /// The end of the server's WAL.
        server_end: Lsn,
    },
    /// A sign of life. Where an answer is wanted, the server ends the connection if [`WalStream::confirm`] is not
    /// called before its `wal_sender_timeout`.
    Keepalive {
        /// The end of the server's WAL.
        server_end: Lsn,
        /// Whether the server wants an answer.
        answer: bool,
    },
    /// The timeline has ended; the connection takes commands again.
    End(NextTimeline),
}

/// WAL as it is written. A connection whose stream was dropped before its end cannot be used again.
pub struct WalStream<'a> {
    replication: &'a mut Replication,
    next: Lsn,
}

impl Replication {
    /// Streams WAL from a position on, of one timeline.
    ///
    /// # Errors
    /// What the server says: [`Database`](ErrorKind::Database) where it no longer has this WAL.
    pub async fn stream_wal(&mut self, slot: Option<&str>, start: WalPosition) -> Result<WalStream<'_>> {
        let slot = slot.map(|slot| format!("SLOT {} ", quote_identifier(slot))).unwrap_or_default();
        let WalPosition { lsn, timeline } = start;
        self.wire.send(&format!("START_REPLICATION {slot}PHYSICAL {lsn} TIMELINE {timeline}")).await?;
        match self.wire.expect().await? {
            Reply::CopyBoth => Ok(WalStream { replication: self, next: lsn }),
            _ => Err(garbled()),
        }
    }
}

impl WalStream<'_> {
    /// The next message. Nothing is lost where the future is dropped.
    ///
    /// # Errors
    /// [`ConnectionLost`](ErrorKind::ConnectionLost); [`Integrity`](ErrorKind::Integrity) where the WAL has a gap;
    /// what the server says.
    pub async fn next(&mut self) -> Result<WalMessage> {
        match self.replication.wire.expect().await? {
            Reply::Data(message) => {
                let message = parse(message)?;
                if let WalMessage::Data { start, bytes, .. } = &message {
                    if *start != self.next {
                        let message = format!("the server sent WAL from {start}, not from {}", self.next);
                        return Err(
                            Error::new(ErrorKind::Integrity, message).with_hint("see the server's log")
                        );
                    }
                    self.next = start.checked_add(bytes.len() as u64).ok_or_else(garbled)?;
                }
                Ok(message)
            }
            Reply::CopyDone => {
                self.replication.wire.send_copy_done().await?;
                self.end().await.map(WalMessage::End)
            }
            _ => Err(garbled()),
        }
    }

    /// Tells the server up to where WAL is safe. A synchronous standby's commits wait for `flushed`.
    pub async fn confirm(&mut self, written: Lsn, flushed: Lsn) -> Result<()> {
        let mut message = BytesMut::with_capacity(34);
        message.put_u8(b'r');
        message.put_u64(written.0);
        message.put_u64(flushed.0);
        // Nothing is applied here.
        message.put_u64(0);
        message.put_i64(Timestamp::now().as_microsecond() - POSTGRES_EPOCH);
        message.put_u8(0);
        self.replication.wire.send_data(&message).await
    }

    /// Ends the stream; the connection takes commands again. What the server had on its way is dropped.
    pub async fn finish(mut self) -> Result<()> {
        self.replication.wire.send_copy_done().await?;
        loop {
            match self.replication.wire.expect().await? {
                Reply::Data(_) => {}
                Reply::CopyDone => break,
                _ => return Err(garbled()),
            }
        }
        self.end().await.map(drop)
    }

    async fn end(&mut self) -> Result<NextTimeline> {
        let mut next = None;
        loop {
            match self.replication.wire.expect().await? {
                Reply::Row(row) => {
                    next = Some(WalPosition { timeline: field(&row, 0)?, lsn: field(&row, 1)? });
                }
                Reply::Complete(_) => {}
                Reply::Ready => return Ok(next),
                _ => return Err(garbled()),
            }
        }
    }
}

/// One message of the stream (PostgreSQL documentation, "Streaming Replication Protocol": `XLogData` and
/// primary keepalive).
fn parse(mut message: Bytes) -> Result<WalMessage> {
    let number = |message: &mut Bytes| message.try_get_u64().map(Lsn).map_err(|_| garbled());
    match message.try_get_u8().map_err(|_| garbled())? {
        b'w' => {
            let (start, server_end, _sent_at) =
                (number(&mut message)?, number(&mut message)?, number(&mut message)?);
            Ok(WalMessage::Data { start, bytes: message, server_end })
        }
        b'k' => {
            let (server_end, _sent_at) = (number(&mut message)?, number(&mut message)?);
            let answer = message.try_get_u8().map_err(|_| garbled())? != 0;
            Ok(WalMessage::Keepalive { server_end, answer })
        }
        _ => Err(garbled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_the_server_means() {
        let numbers = [[0_u8, 0, 0, 1, 0, 0, 0, 2], [0, 0, 0, 1, 0, 0, 0, 9], [0; 8]].concat();
        let data = [&b"w"[..], &numbers, b"wal"].concat();
        let (start, server_end) = (Lsn(0x1_0000_0002), Lsn(0x1_0000_0009));
        let expected = WalMessage::Data { start, bytes: Bytes::from_static(b"wal"), server_end };
        assert_eq!(parse(data.into()).unwrap(), expected);
        let alive = [&b"k"[..], &numbers[8..], &[1]].concat();
        assert_eq!(parse(alive.clone().into()).unwrap(), WalMessage::Keepalive { server_end, answer: true });
        for wrong in [&b""[..], b"w", b"k\0", &alive[..alive.len() - 1], b"x"] {
            assert!(parse(Bytes::copy_from_slice(wrong)).is_err(), "{wrong:?}");
        }
    }
}
