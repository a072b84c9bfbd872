//! Messages of the protocol, version 3.0, on a connection that is logged in (PostgreSQL documentation,
//! "Message Formats"). No length is trusted.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use futures::FutureExt;
use postgres_protocol::message::backend::{ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{ServerWords, server_error};
use super::socket::Socket;
use crate::error::{Error, ErrorKind, Result};

/// `CopyBothResponse`, which postgres-protocol does not know.
const COPY_BOTH: u8 = b'W';
/// `CopyData`
const COPY_DATA: u8 = b'd';
/// No message of a WAL sender is near as large: WAL comes in 128 KiB, files in 32 KiB.
const LARGEST: usize = 16 * 1024 * 1024;
/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Less room than this is not read into: what is in the buffer is moved to a larger one.
const READ_LEAST: usize = 64 * 1024;
/// Buffers that are kept to be read into again: what is read ahead of a base backup fits into them.
const KEPT_BUFFERS: usize = 12;
/// Warnings that are kept.
const KEPT_WARNINGS: usize = 200;

/// One row, as text.
pub(crate) type Row = Vec<Option<String>>;

/// What the server says.
pub(crate) enum Reply {
    Row(Row),
    /// A command, or one of its results, is complete; its tag, `COPY 5`.
    Complete(String),
    CopyIn,
    CopyOut,
    CopyBoth,
    Data(Bytes),
    CopyDone,
    Failed(ServerWords),
    Ready,
}

pub(crate) struct Wire {
    socket: Socket,
    incoming: BytesMut,
    /// Buffers before it, of which messages may still be used.
    full: Vec<BytesMut>,
    /// Bytes of a `CopyData` message that are still to come, while a copy is read piece by piece.
    open_row: usize,
    outgoing: BytesMut,
    /// Warnings of the server since they were last taken.
    pub(crate) warnings: Vec<String>,
}

impl Wire {
    pub(crate) fn new(socket: Socket) -> Self {
        Self {
            socket,
            incoming: BytesMut::new(),
            full: Vec::new(),
            open_row: 0,
            outgoing: BytesMut::new(),
            warnings: Vec::new(),
        }
    }

    /// The next thing that the server says. Nothing is lost where the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Reply> {
        loop {
            if let Some(reply) = self.buffered()? {
                return Ok(reply);
            }
            self.read().await?;
        }
    }

    /// The next thing that has come already.
    pub(crate) fn buffered(&mut self) -> Result<Option<Reply>> {
        while let Some(message) = next_message(&mut self.incoming)? {
            if let Some(reply) = self.understand(message)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// Reads what has come. Nothing is lost where the future is dropped.
    async fn read(&mut self) -> Result<()> {
        if self.incoming.capacity() - self.incoming.len() < READ_LEAST {
            self.make_room();
        }
        let read = self.socket.read_buf(&mut self.incoming).await.map_err(|e| lost(&e.to_string()))?;
        if read == 0 { Err(lost("it closed the connection")) } else { Ok(()) }
    }

    /// Goes on with a buffer of which nothing is used any more: fresh memory costs a page fault for every 4 KiB.
    fn make_room(&mut self) {
        if self.incoming.len() > READ_LEAST || self.incoming.try_reclaim(READ_BYTES) {
            return self.incoming.reserve(READ_BYTES);
        }
        let begun = self.incoming.split();
        let free = self.full.iter_mut().position(|buffer| buffer.try_reclaim(READ_BYTES));
        let free =
            free.map_or_else(|| BytesMut::with_capacity(READ_BYTES), |free| self.full.swap_remove(free));
        let full = std::mem::replace(&mut self.incoming, free);
        self.incoming.extend_from_slice(&begun);
        if self.full.len() < KEPT_BUFFERS {
            self.full.push(full);
        }
    }

    /// Passes on what has come of a copy from the server, without waiting for a message to be whole: a row may be
    /// as large as a gigabyte. `take` is given pieces, and whether a message ends with it; a message is a row.
    /// True while more may come.
    ///
    /// # Errors
    /// As [`Wire::expect`].
    pub(crate) async fn copied(&mut self, mut take: impl FnMut(&[u8], bool)) -> Result<bool> {
        let mut taken = false;
        loop {
            if self.open_row > 0 {
                let piece = self.open_row.min(self.incoming.len());
                self.open_row -= piece;
                if piece > 0 {
                    take(&self.incoming[..piece], self.open_row == 0);
                    self.incoming.advance(piece);
                    taken = true;
                }
            }
            if self.open_row == 0
                && let Some(header) = Header::parse(&self.incoming).map_err(|_| garbled())?
            {
                if header.tag() == COPY_DATA {
                    let length = usize::try_from(header.len()).map_err(|_| garbled())?;
                    self.open_row = length.checked_sub(4).ok_or_else(garbled)?;
                    self.incoming.advance(5);
                    continue;
                }
                if taken {
                    return Ok(true);
                }
                return match self.expect().await? {
                    Reply::CopyDone => Ok(false),
                    _ => Err(garbled()),
                };
            }
            if taken {
                return Ok(true);
            }
            self.read().await?;
        }
    }

    fn understand(&mut self, message: Heard) -> Result<Option<Reply>> {
        let Heard::Message(message) = message else { return Ok(Some(Reply::CopyBoth)) };
        Ok(Some(match message {
            Message::CopyData(body) => Reply::Data(body.into_bytes()),
            Message::CopyDone => Reply::CopyDone,
            Message::CopyInResponse(_) => Reply::CopyIn,
            Message::CopyOutResponse(_) => Reply::CopyOut,
            Message::CommandComplete(body) => Reply::Complete(body.tag().unwrap_or_default().to_owned()),
            Message::ReadyForQuery(_) => Reply::Ready,
            Message::DataRow(row) => {
                let buffer = row.buffer();
                let text = |range: std::ops::Range<usize>| {
                    buffer.get(range).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                };
                let columns = row.ranges().map(|range| Ok(range.and_then(text))).collect();
                Reply::Row(columns.map_err(|_| garbled())?)
            }
            Message::ErrorResponse(body) => Reply::Failed(words(body.fields())?),
            Message::NoticeResponse(body) => {
                let words = words(body.fields())?;
                if words.severity == "WARNING" && self.warnings.len() < KEPT_WARNINGS {
                    self.warnings.push(words.message);
                }
                return Ok(None);
            }
            Message::RowDescription(_) | Message::ParameterStatus(_) | Message::NotificationResponse(_) => {
                return Ok(None);
            }
            _ => return Err(garbled()),
        }))
    }

    /// Like [`Wire::next`]; what the server refuses is an error, after which the connection can be used again.
    pub(crate) async fn expect(&mut self) -> Result<Reply> {
        match self.next().await? {
            Reply::Failed(words) => {
                self.settle().await;
                Err(server_error(&words))
            }
            reply => Ok(reply),
        }
    }

    /// Reads on to where the server waits for a command.
    pub(crate) async fn settle(&mut self) {
        // One that ends the session does not get there.
        while !matches!(self.next().await, Ok(Reply::Ready) | Err(_)) {}
    }

    /// Sends a query, in the encoding of the session.
    pub(crate) async fn send(&mut self, command: impl AsRef<[u8]>) -> Result<()> {
        let command = command.as_ref();
        let length = u32::try_from(command.len() + 5).ok().filter(|_| !command.contains(&0));
        let length = length.ok_or_else(|| Error::internal("a command that cannot be sent"))?;
        self.outgoing.put_u8(b'Q');
        self.outgoing.put_u32(length);
        self.outgoing.put_slice(command);
        self.outgoing.put_u8(0);
        self.flush().await
    }

    pub(crate) async fn send_data(&mut self, data: &[u8]) -> Result<()> {
        let message = frontend::CopyData::new(data).map_err(|e| Error::internal(e.to_string()))?;
        message.write(&mut self.outgoing);
        self.flush().await
    }

    pub(crate) async fn send_copy_done(&mut self) -> Result<()> {
        frontend::copy_done(&mut self.outgoing);
        self.flush().await
    }

    pub(crate) async fn send_terminate(&mut self) -> Result<()> {
        frontend::terminate(&mut self.outgoing);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        let sent = async {
            self.socket.write_all_buf(&mut self.outgoing).await?;
            self.socket.flush().await
        };
        sent.await.map_err(|e| lost(&e.to_string()))
    }

    /// What the server has said by now; nothing where it is silent.
    pub(crate) fn heard(&mut self) -> Result<Option<Reply>> {
        self.next().now_or_never().transpose()
    }

    /// Runs a command, and returns the rows of all its results.
    pub(crate) async fn rows(&mut self, command: impl AsRef<[u8]>) -> Result<Vec<Row>> {
        self.send(command).await?;
        let mut rows = Vec::new();
        loop {
            match self.expect().await? {
                Reply::Row(row) => rows.push(row),
                Reply::Complete(_) => {}
                Reply::Ready => return Ok(rows),
                _ => return Err(garbled()),
            }
        }
    }

    /// The rows of one result.
    pub(crate) async fn result(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        loop {
            match self.expect().await? {
                Reply::Row(row) => rows.push(row),
                Reply::Complete(_) => return Ok(rows),
                _ => return Err(garbled()),
            }
        }
    }
}

/// A message from the server.
enum Heard {
    CopyBoth,
    Message(Message),
}

/// The next message, once it is whole.
fn next_message(incoming: &mut BytesMut) -> Result<Option<Heard>> {
    let Some(header) = Header::parse(incoming).map_err(|_| garbled())? else { return Ok(None) };
    let whole = usize::try_from(header.len()).map_err(|_| garbled())? + 1;
    if whole > LARGEST {
        return Err(garbled());
    }
    if incoming.len() < whole {
        return Ok(None);
    }
    if header.tag() == COPY_BOTH {
        incoming.advance(whole);
        return Ok(Some(Heard::CopyBoth));
    }
    Message::parse(incoming).map(|message| message.map(Heard::Message)).map_err(|e| garbled().caused_by(e))
}

fn words(mut fields: ErrorFields<'_>) -> Result<ServerWords> {
    let mut words = ServerWords::default();
    while let Some(field) = fields.next().map_err(|_| garbled())? {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'V' => words.severity = text(),
            b'C' => words.code = text(),
            b'M' => words.message = text(),
            b'H' => words.hint = Some(text()),
            b'D' => words.detail = Some(text()),
            _ => {}
        }
    }
    Ok(words)
}

fn lost(why: &str) -> Error {
    Error::new(ErrorKind::ConnectionLost, format!("the connection to the server broke: {why}"))
        .with_hint("see the server's log; pg_stat_replication lists who is connected")
}

pub(crate) fn garbled() -> Error {
    Error::new(ErrorKind::ConnectionLost, "the server sent something that the protocol does not allow")
        .with_hint("is something between pgark and PostgreSQL, a connection pooler for example?")
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Whatever comes: messages, errors or a wish for more, and no panic. What is asked for is bounded.
        #[test]
        fn bytes_of_any_kind_are_parsed(bytes: Vec<u8>, tag in proptest::sample::select(b"dDETNZCHWcS1X".as_slice()), cut in 0_u8..12) {
            let mut framed = vec![tag];
            let length = u32::try_from(bytes.len()).unwrap() + 4 - u32::from(cut).min(4);
            framed.extend(length.to_be_bytes());
            framed.extend(&bytes);
            for input in [bytes, framed] {
                let mut incoming = BytesMut::from(&input[..]);
                let before = incoming.len();
                while let Ok(Some(message)) = next_message(&mut incoming) {
                    match message {
                        Heard::Message(Message::ErrorResponse(body)) => drop(words(body.fields())),
                        Heard::Message(Message::DataRow(row)) => drop(row.ranges().count()),
                        _ => {}
                    }
                }
                proptest::prop_assert!(incoming.len() <= before && incoming.capacity() <= LARGEST);
            }
        }
    }

    #[test]
    fn an_absurd_length_is_refused_at_once() {
        let mut incoming = BytesMut::from(&b"d\x7f\xff\xff\xff"[..]);
        assert!(next_message(&mut incoming).is_err());
    }
}
