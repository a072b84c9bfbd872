//! Messages of the protocol, version 3.0, on a connection that is logged in (PostgreSQL documentation,
//! "Message Formats"). No length is trusted.

use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::client::{ServerWords, server_error};
use super::super::socket::Socket;
use crate::error::{Error, ErrorKind, Result};

/// `CopyBothResponse`, which postgres-protocol does not know.
const COPY_BOTH: u8 = b'W';
/// No message of a WAL sender is near as large: WAL comes in 128 KiB, files in 32 KiB.
const LARGEST: usize = 16 * 1024 * 1024;
/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Warnings that are kept.
const KEPT_WARNINGS: usize = 200;

/// One row, as text.
pub(super) type Row = Vec<Option<String>>;

/// What the server says.
pub(super) enum Reply {
    Row(Row),
    /// A command, or one of its results, is complete.
    Complete,
    CopyIn,
    CopyOut,
    CopyBoth,
    Data(Bytes),
    CopyDone,
    Failed(ServerWords),
    Ready,
}

pub(super) struct Wire {
    socket: Socket,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Warnings of the server since they were last taken.
    pub(super) warnings: Vec<String>,
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, incoming: BytesMut::new(), outgoing: BytesMut::new(), warnings: Vec::new() }
    }

    /// The next thing that the server says. Nothing is lost where the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Reply> {
        loop {
            while let Some(message) = next_message(&mut self.incoming)? {
                if let Some(reply) = self.understand(message)? {
                    return Ok(reply);
                }
            }
            self.incoming.reserve(READ_BYTES);
            let read = self.socket.read_buf(&mut self.incoming).await.map_err(|e| lost(&e.to_string()))?;
            if read == 0 {
                return Err(lost("it closed the connection"));
            }
        }
    }

    fn understand(&mut self, message: Heard) -> Result<Option<Reply>> {
        let Heard::Message(message) = message else { return Ok(Some(Reply::CopyBoth)) };
        Ok(Some(match message {
            Message::CopyData(body) => Reply::Data(body.into_bytes()),
            Message::CopyDone => Reply::CopyDone,
            Message::CopyInResponse(_) => Reply::CopyIn,
            Message::CopyOutResponse(_) => Reply::CopyOut,
            Message::CommandComplete(_) => Reply::Complete,
            Message::ReadyForQuery(_) => Reply::Ready,
            Message::DataRow(row) => {
                let buffer = row.buffer();
                let text = |range: std::ops::Range<usize>| {
                    buffer.get(range).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
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
    pub(super) async fn expect(&mut self) -> Result<Reply> {
        match self.next().await? {
            Reply::Failed(words) => {
                self.settle().await;
                Err(server_error(&words))
            }
            reply => Ok(reply),
        }
    }

    /// Reads on to where the server waits for a command.
    pub(super) async fn settle(&mut self) {
        // One that ends the session does not get there.
        while !matches!(self.next().await, Ok(Reply::Ready) | Err(_)) {}
    }

    pub(super) async fn send(&mut self, command: &str) -> Result<()> {
        frontend::query(command, &mut self.outgoing).map_err(|e| Error::internal(e.to_string()))?;
        self.flush().await
    }

    pub(super) async fn send_data(&mut self, data: &[u8]) -> Result<()> {
        let message = frontend::CopyData::new(data).map_err(|e| Error::internal(e.to_string()))?;
        message.write(&mut self.outgoing);
        self.flush().await
    }

    pub(super) async fn send_copy_done(&mut self) -> Result<()> {
        frontend::copy_done(&mut self.outgoing);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        let sent = async {
            self.socket.write_all_buf(&mut self.outgoing).await?;
            self.socket.flush().await
        };
        sent.await.map_err(|e| lost(&e.to_string()))
    }

    /// Runs a command, and returns the rows of all its results.
    pub(super) async fn rows(&mut self, command: &str) -> Result<Vec<Row>> {
        self.send(command).await?;
        let mut rows = Vec::new();
        loop {
            match self.expect().await? {
                Reply::Row(row) => rows.push(row),
                Reply::Complete => {}
                Reply::Ready => return Ok(rows),
                _ => return Err(garbled()),
            }
        }
    }

    /// The rows of one result.
    pub(super) async fn result(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        loop {
            match self.expect().await? {
                Reply::Row(row) => rows.push(row),
                Reply::Complete => return Ok(rows),
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
            _ => {}
        }
    }
    Ok(words)
}

fn lost(why: &str) -> Error {
    Error::new(ErrorKind::ConnectionLost, format!("the connection to the server broke: {why}"))
        .with_hint("see the server's log; pg_stat_replication lists who is connected")
}

pub(super) fn garbled() -> Error {
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
