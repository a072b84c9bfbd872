//! The stores of pgark: a local folder, S3 and what is compatible with it, Google Cloud Storage, Azure Blob,
//! and memory for tests; and several of them kept equal, as one ([`Replicas`]).
//!
//! [`open`] makes a store from a URL. Remote stores have two layers: a [`Transport`] makes single requests,
//! and [`Remote`] adds what the contract of [`Store`] asks for on top: retries with backoff, time limits,
//! creates whose answer was lost, reads that go on where they broke off. An own object store needs only the
//! first. The crate's feature `conformance` holds a suite that checks an implementation of [`Store`], and a
//! transport that injects faults.

mod classes;
mod local;
mod memory;
mod object;
mod open;
mod remote;
mod replicas;
mod transport;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use backup_core::Store;
pub use classes::StorageClasses;
pub use local::LocalStore;
pub use memory::MemoryTransport;
pub use open::{Credentials, StoreOptions, open};
pub use remote::{Remote, RetryPolicy};
pub use replicas::Replicas;
pub use transport::{Got, Page, Transport};
