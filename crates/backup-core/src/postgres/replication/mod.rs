//! Physical replication: the commands that a WAL sender takes (PostgreSQL documentation, "Streaming
//! Replication Protocol").

mod base_backup;
mod manifest;
mod wal;

pub use base_backup::{BaseBackup, BaseBackupEnd, BaseBackupOptions, Item, Tablespace};
pub use manifest::ManifestUpload;
pub use wal::{NextTimeline, WalMessage, WalPosition, WalStream};

use super::client::{Session, quote_identifier};
use super::lsn::Lsn;
use super::wire::{Row, Wire};
use crate::error::{Error, Result};

/// A connection that takes replication commands, one at a time. It ends when the value is dropped, and so do
/// its temporary slots.
pub struct Replication {
    wire: Wire,
}

/// Which cluster it is, and where its WAL is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The number that `initdb` gave it.
    pub identifier: u64,
    /// The timeline that it is on.
    pub timeline: u32,
    /// What it has flushed; on a standby, what it has replayed or received.
    pub flushed: Lsn,
}

/// The file `<timeline>.history`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// Its name, `00000002.history` for example.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl Session {
    /// A second connection to the same server, for replication commands.
    ///
    /// # Errors
    /// Those of a connection: [`Auth`](crate::ErrorKind::Auth) also where the user may not replicate, and
    /// [`Connect`](crate::ErrorKind::Connect) where the server has no free WAL sender.
    pub async fn replication(&self) -> Result<Replication> {
        let host = self.info().hosts().first().ok_or_else(|| Error::internal("a session without a host"))?;
        let opened = self.info().open(host, true).await?;
        Ok(Replication { wire: Wire::new(opened.into_socket()) })
    }
}

impl Replication {
    /// `IDENTIFY_SYSTEM`
    pub async fn identify(&mut self) -> Result<System> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        Ok(System { identifier: field(&row, 0)?, timeline: field(&row, 1)?, flushed: field(&row, 2)? })
    }

    /// A server setting, as `SHOW` prints it.
    pub async fn setting(&mut self, name: &str) -> Result<String> {
        let row = self.row(&format!("SHOW {}", quote_identifier(name))).await?;
        field(&row, 0)
    }

    /// Makes a physical slot that keeps WAL from now on. A temporary one ends with the connection.
    pub async fn create_slot(&mut self, name: &str, temporary: bool) -> Result<()> {
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let name = quote_identifier(name);
        self.row(&format!("CREATE_REPLICATION_SLOT {name}{temporary} PHYSICAL (RESERVE_WAL)")).await.map(drop)
    }

    /// Removes a slot.
    pub async fn drop_slot(&mut self, name: &str) -> Result<()> {
        self.wire.rows(&format!("DROP_REPLICATION_SLOT {}", quote_identifier(name))).await.map(drop)
    }

    /// Where a physical slot begins to keep WAL; nothing where there is no such slot.
    pub async fn slot_position(&mut self, name: &str) -> Result<Option<Lsn>> {
        let row = self.row(&format!("READ_REPLICATION_SLOT {}", quote_identifier(name))).await?;
        row.get(1).cloned().flatten().map(|lsn| lsn.parse()).transpose()
    }

    /// The history of a timeline other than the first.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory> {
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        Ok(TimelineHistory { name: field(&row, 0)?, text: field(&row, 1)? })
    }

    async fn row(&mut self, command: &str) -> Result<Row> {
        self.wire.rows(command).await?.into_iter().next().ok_or_else(super::wire::garbled)
    }
}

/// One column of a row.
fn field<T: std::str::FromStr>(row: &Row, column: usize) -> Result<T> {
    row.get(column)
        .and_then(Option::as_ref)
        .and_then(|text| text.parse().ok())
        .ok_or_else(super::wire::garbled)
}
