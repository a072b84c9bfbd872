//! PostgreSQL as pgark meets it: connections that follow libpq, client tools, throwaway servers.

mod client;
mod conninfo;
mod control;
mod copy;
mod empty;
mod lsn;
mod page;
mod process;
mod replication;
mod server_programs;
mod socket;
mod staged;
mod start;
mod temp_server;
mod throwaway;
mod tls;
mod tools;
mod via;
mod wire;
pub(crate) mod work_folder;
mod x509;

pub use client::{Session, quote_identifier, quote_literal};
pub use conninfo::{ConnInfo, Environment, Host};
pub use control::system_identifier;
pub use copy::CopySession;
pub use lsn::Lsn;
pub(crate) use page::Page;
pub(crate) use process::{Process, Run as ProcessRun};
pub use replication::{
    BaseBackup, BaseBackupEnd, BaseBackupOptions, Item, ManifestUpload, NextTimeline, Replication, System,
    Tablespace, TimelineHistory, WalMessage, WalPosition, WalStream,
};
pub(crate) use server_programs::ServerPrograms;
pub use staged::Staged;
pub(crate) use start::Cluster;
pub use start::{Recovered, start_and_recover};
pub(crate) use temp_server::server_owner;
pub use temp_server::{TempServer, TempServerOptions};
pub(crate) use throwaway::Throwaway;
pub use tools::{Tool, Tools};
pub use via::Via;

/// The oldest major version that pgark works with.
pub const OLDEST_MAJOR: u32 = 15;
/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
pub(crate) const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// The major version of a version as servers and tools write it: `18.1`, `19beta1`.
pub(crate) fn major_of(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
