//! PostgreSQL as pgark meets it: connections that follow libpq, client tools, throwaway servers.

mod client;
mod conninfo;
mod process;
mod temp_server;
mod tls;
mod tools;
mod x509;

pub use client::{Session, quote_identifier, quote_literal};
pub use conninfo::{ConnInfo, Environment, Host};
pub(crate) use process::{Process, Run as ProcessRun};
pub use temp_server::{TempServer, TempServerOptions};
pub use tools::{Tool, Tools};

/// The oldest major version that pgark works with.
pub const OLDEST_MAJOR: u32 = 15;
