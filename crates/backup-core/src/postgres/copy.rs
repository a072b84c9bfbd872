//! A session that copies rows, out of tables and into them.

use super::client::{Session, server_error};
use super::wire::{Reply, Wire, garbled};
use crate::error::{Error, Result};

/// A connection for COPY. Its statements are in the encoding that it was told last; at first that is UTF-8. It
/// ends when the value is dropped.
pub struct CopySession {
    wire: Wire,
}

impl Session {
    /// A second connection to the same server and database, for COPY.
    ///
    /// # Errors
    /// Those of a connection.
    pub async fn copy_session(&self) -> Result<CopySession> {
        let host = self.info().hosts().first().ok_or_else(|| Error::internal("a session without a host"))?;
        let opened = self.info().open(host, false).await?;
        Ok(CopySession { wire: Wire::new(opened.into_socket()) })
    }
}

impl CopySession {
    /// Runs SQL; the rows of its results as text.
    ///
    /// # Errors
    /// What the server says, and [`ConnectionLost`](crate::ErrorKind::ConnectionLost).
    pub async fn rows(&mut self, sql: impl AsRef<[u8]>) -> Result<Vec<Vec<Option<String>>>> {
        self.wire.rows(sql).await
    }

    /// Runs SQL; the first column of the first row.
    ///
    /// # Errors
    /// As [`CopySession::rows`].
    pub async fn value(&mut self, sql: impl AsRef<[u8]>) -> Result<Option<String>> {
        Ok(self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Starts SQL of which one statement is a COPY to standard output: [`CopySession::copied`] reads its rows,
    /// [`CopySession::copied_out`] the rest.
    ///
    /// # Errors
    /// As [`CopySession::rows`].
    pub async fn copy_out(&mut self, sql: impl AsRef<[u8]>) -> Result<()> {
        self.wire.send(sql).await?;
        loop {
            match self.wire.expect().await? {
                Reply::CopyOut => return Ok(()),
                Reply::Complete(_) | Reply::Row(_) => {}
                _ => return Err(garbled()),
            }
        }
    }

    /// Passes on the rows that have come, in pieces, each with whether a row ends with it. True while more may come.
    ///
    /// # Errors
    /// As [`CopySession::rows`].
    pub async fn copied(&mut self, take: impl FnMut(&[u8], bool)) -> Result<bool> {
        self.wire.copied(take).await
    }

    /// Ends the SQL of a copy; how many rows the server says that it copied.
    ///
    /// # Errors
    /// As [`CopySession::rows`].
    pub async fn copied_out(&mut self) -> Result<u64> {
        self.conclude().await
    }

    /// Starts SQL of which one statement is a COPY from standard input.
    ///
    /// # Errors
    /// As [`CopySession::rows`].
    pub async fn copy_in(&mut self, sql: impl AsRef<[u8]>) -> Result<()> {
        self.wire.send(sql).await?;
        loop {
            match self.wire.expect().await? {
                Reply::CopyIn => return Ok(()),
                Reply::Complete(_) | Reply::Row(_) => {}
                _ => return Err(garbled()),
            }
        }
    }

    /// Sends rows, cut anywhere.
    ///
    /// # Errors
    /// As [`CopySession::rows`]; what the server says of rows that were sent before.
    pub async fn send(&mut self, rows: &[u8]) -> Result<()> {
        self.wire.send_data(rows).await?;
        match self.wire.heard()? {
            None => Ok(()),
            Some(Reply::Failed(words)) => {
                // It takes no more rows, and waits for a command.
                self.wire.settle().await;
                Err(server_error(&words))
            }
            Some(_) => Err(garbled()),
        }
    }

    /// Ends the rows and the SQL; how many rows the server says that it took.
    ///
    /// # Errors
    /// As [`CopySession::rows`].
    pub async fn copied_in(&mut self) -> Result<u64> {
        self.wire.send_copy_done().await?;
        self.conclude().await
    }

    /// Takes the warnings that the server has sent.
    pub fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wire.warnings)
    }

    /// Ends the session with a word: a server logs those that just go.
    pub async fn close(mut self) {
        // It may have ended already.
        let _ = self.wire.send_terminate().await;
    }

    async fn conclude(&mut self) -> Result<u64> {
        let mut copied = 0;
        loop {
            match self.wire.expect().await? {
                Reply::Complete(tag) => {
                    if let Some(rows) = tag.strip_prefix("COPY ").and_then(|rows| rows.parse().ok()) {
                        copied = rows;
                    }
                }
                Reply::Row(_) => {}
                Reply::Ready => return Ok(copied),
                _ => return Err(garbled()),
            }
        }
    }
}
