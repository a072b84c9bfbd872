use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::client::server_error;
use super::super::wire::{Reply, Row, garbled};
use super::{Replication, WalPosition, field};
use crate::error::{Error, Result};

/// `ERRCODE_DATA_CORRUPTED`: pages failed their checksums. It comes when everything has been sent.
const DATA_CORRUPTED: &str = "XX001";

/// What the server is asked for.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BaseBackupOptions {
    /// Words for `backup_label` and the server's log.
    pub label: String,
    /// The checkpoint at the beginning is done at once, not spread.
    pub fast_checkpoint: bool,
    /// KiB a second; unlimited where there is none. The server takes 32 to 1,048,576.
    pub max_rate: Option<u32>,
    /// Sends what changed since the backup whose manifest was given with [`Replication::upload_manifest`].
    pub incremental: bool,
}

impl BaseBackupOptions {
    /// The command of version 15 and later; INCREMENTAL of 17 and later. WAIT is off: with a failing `archive_command` the server would wait
    /// for ever, before it sends the manifest.
    fn command(&self) -> String {
        let label = self.label.replace('\'', "''");
        let checkpoint = if self.fast_checkpoint { "fast" } else { "spread" };
        let rate = self.max_rate.map(|rate| format!(", MAX_RATE {rate}")).unwrap_or_default();
        let incremental = if self.incremental { ", INCREMENTAL true" } else { "" };
        format!(
            "BASE_BACKUP (LABEL '{label}', PROGRESS true, CHECKPOINT '{checkpoint}', WAL false, WAIT false, \
             TABLESPACE_MAP true, MANIFEST 'yes'{rate}{incremental})"
        )
    }
}

/// How much is read ahead, in buffers of a connection.
const AHEAD: usize = 8;

/// A tablespace outside of the data directory, or the data directory itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID; none for the data directory.
    pub oid: Option<u32>,
    /// Where it is on the server's host; empty for the data directory.
    pub location: String,
    /// Estimate of its size in KiB.
    pub kib: u64,
}

/// What a base backup consists of, in the server's order: archives of tablespaces, that of the data directory,
/// then the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A tar archive begins.
    Archive {
        /// `base.tar`, or the OID of a tablespace with `.tar`.
        name: String,
        /// Where the tablespace is; empty for the data directory.
        location: String,
    },
    /// The manifest begins.
    Manifest,
    /// Bytes of what began last.
    Data(Bytes),
    /// Bytes that the server has sent until now.
    Progress(u64),
}

/// A base backup on its way. It has the connection: one whose backup is dropped half-way cannot be used again.
///
/// What the server sends is read ahead by a task: a Unix socket holds 200 KB, and a server that has filled it waits until
/// most of that was read.
pub struct BaseBackup {
    coming: mpsc::Receiver<Result<Vec<Item>>>,
    items: std::vec::IntoIter<Item>,
    reading: AbortOnDropHandle<Option<Replication>>,
    /// Where its recovery begins.
    pub start: WalPosition,
    /// Data directory and tablespaces.
    pub tablespaces: Vec<Tablespace>,
}

/// How a base backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupEnd {
    /// Recovery must reach this position for the cluster to be consistent.
    pub end: WalPosition,
    /// The server's words where pages failed their checksums. The backup is complete, and holds these pages.
    pub checksum_failures: Option<String>,
    /// Warnings of the server. Symbolic links to files, for example, are left out of the backup.
    pub warnings: Vec<String>,
}

impl Replication {
    /// Starts a base backup. The answer comes when the checkpoint is done.
    ///
    /// # Errors
    /// What the server says: [`Database`](crate::ErrorKind::Database) in most cases.
    pub async fn base_backup(mut self, options: &BaseBackupOptions) -> Result<BaseBackup> {
        self.wire.warnings.clear();
        self.wire.send(&options.command()).await?;
        let start = position(&self.wire.result().await?)?;
        let mut tablespaces = Vec::new();
        for row in self.wire.result().await? {
            let oid = row.first().cloned().flatten().map(|oid| oid.parse()).transpose();
            tablespaces.push(Tablespace {
                oid: oid.map_err(|_| garbled())?,
                location: row.get(1).cloned().flatten().unwrap_or_default(),
                kib: field(&row, 2).unwrap_or(0),
            });
        }
        match self.wire.expect().await? {
            Reply::CopyOut => {
                let (sender, coming) = mpsc::channel(AHEAD);
                let reading = AbortOnDropHandle::new(tokio::spawn(self.read_items(sender)));
                Ok(BaseBackup { coming, items: Vec::new().into_iter(), reading, start, tablespaces })
            }
            _ => Err(garbled()),
        }
    }

    /// Passes items on until the server has sent all of them. Nothing where it fails, or where nobody takes them.
    async fn read_items(mut self, to: mpsc::Sender<Result<Vec<Item>>>) -> Option<Self> {
        loop {
            let mut items = Vec::new();
            let all = self.take_items(&mut items).await;
            to.send(Ok(items)).await.ok()?;
            match all {
                Ok(true) => return Some(self),
                Ok(false) => {}
                Err(error) => {
                    // Where nobody takes it, nobody asks.
                    let _ = to.send(Err(error)).await;
                    return None;
                }
            }
        }
    }

    /// Takes what has come. Whether that was all.
    async fn take_items(&mut self, items: &mut Vec<Item>) -> Result<bool> {
        let mut next = Some(self.wire.expect().await?);
        while let Some(reply) = next {
            match reply {
                Reply::Data(message) => items.push(item(message)?),
                Reply::CopyDone => return Ok(true),
                Reply::Failed(words) => return Err(server_error(&words)),
                _ => return Err(garbled()),
            }
            next = self.wire.buffered()?;
        }
        Ok(false)
    }
}

impl BaseBackup {
    /// The next item; nothing when everything has been sent.
    ///
    /// # Errors
    /// [`ConnectionLost`](crate::ErrorKind::ConnectionLost), and what the server says.
    pub async fn next(&mut self) -> Result<Option<Item>> {
        loop {
            if let Some(item) = self.items.next() {
                return Ok(Some(item));
            }
            match self.coming.recv().await.transpose()? {
                Some(items) => self.items = items.into_iter(),
                None => return Ok(None),
            }
        }
    }

    /// Where the backup ended, once [`BaseBackup::next`] had nothing more. The connection takes commands again.
    pub async fn finish(self) -> Result<(BaseBackupEnd, Replication)> {
        drop(self.coming);
        let read =
            self.reading.await.map_err(|e| Error::internal("reading a base backup failed").caused_by(e))?;
        let mut replication = read.ok_or_else(garbled)?;
        let wire = &mut replication.wire;
        let end = position(&wire.result().await?)?;
        let mut checksum_failures = None;
        loop {
            match wire.next().await? {
                Reply::Complete(_) => {}
                Reply::Failed(words) if words.code == DATA_CORRUPTED => {
                    checksum_failures = Some(words.message);
                }
                Reply::Failed(words) => {
                    wire.settle().await;
                    return Err(server_error(&words));
                }
                Reply::Ready => break,
                _ => return Err(garbled()),
            }
        }
        let warnings = std::mem::take(&mut wire.warnings);
        Ok((BaseBackupEnd { end, checksum_failures, warnings }, replication))
    }
}

fn position(rows: &[Row]) -> Result<WalPosition> {
    let row = rows.first().ok_or_else(garbled)?;
    Ok(WalPosition { lsn: field(row, 0)?, timeline: field(row, 1)? })
}

/// One message of the stream (`bbsink_copystream` in `basebackup_copy.c`, PostgreSQL 15 to 18).
fn item(mut message: Bytes) -> Result<Item> {
    if message.is_empty() {
        return Err(garbled());
    }
    match message.get_u8() {
        b'd' => Ok(Item::Data(message)),
        b'm' => Ok(Item::Manifest),
        b'p' => message.try_get_u64().map(Item::Progress).map_err(|_| garbled()),
        b'n' => Ok(Item::Archive { name: text(&mut message)?, location: text(&mut message)? }),
        _ => Err(garbled()),
    }
}

/// A text that a zero ends.
fn text(message: &mut Bytes) -> Result<String> {
    let end = message.iter().position(|b| *b == 0).ok_or_else(garbled)?;
    let text = String::from_utf8(message.split_to(end).to_vec()).map_err(|_| garbled())?;
    message.advance(1);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_what_the_server_names() {
        let archive =
            |name: &str, location: &str| Item::Archive { name: name.into(), location: location.into() };
        assert_eq!(item(Bytes::from_static(b"nbase.tar\0\0")).unwrap(), archive("base.tar", ""));
        assert_eq!(item(Bytes::from_static(b"n1.tar\0/ts\0")).unwrap(), archive("1.tar", "/ts"));
        assert_eq!(item(Bytes::from_static(b"p\0\0\0\0\0\0\x01\0")).unwrap(), Item::Progress(256));
        assert_eq!(item(Bytes::from_static(b"d")).unwrap(), Item::Data(Bytes::new()));
        for wrong in [&b""[..], b"n", b"nbase.tar\0", b"n\xff\0\0", b"p\0\0", b"x"] {
            assert!(item(Bytes::from_static(wrong)).is_err(), "{wrong:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn messages_of_any_kind_are_parsed(message: Vec<u8>) {
            let _ = item(message.into());
        }
    }
}
