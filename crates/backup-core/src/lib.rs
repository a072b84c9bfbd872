//! The engine of pgark: backups of PostgreSQL from a database to a store, and back.
//!
//! Applications depend on the crate `pgark`, which re-exports this one together with the stores. Five traits
//! carry everything, and each can be replaced by an application's own:
//!
//! | trait | turns | pgark's own |
//! | --- | --- | --- |
//! | [`Dumper`], [`Restorer`] | a database into parts, and back | [`logical::Dump`], [`logical::Load`] |
//! | [`Compressor`] | frames of a part into smaller ones | [`codec`] |
//! | [`Encryptor`] | a part's bytes into sealed ones | [`crypt::Age`] |
//! | [`Store`] | keys into objects | the crate `backup-storage` |
//! | [`RetentionPolicy`] | records into verdicts | [`retention`] |
//!
//! [`Backup`] composes them, [`Restore`] and [`verify`] read what it wrote, [`repository`] holds the rules of
//! what is a backup and what is not.

mod backup;
mod compressor;
mod dumper;
mod encryptor;
mod error;
mod passwd;
mod restore;
mod shared_writer;
mod store;
mod tar_reader;

pub mod audit;
pub mod check;
pub mod codec;
pub mod copies;
pub mod crypt;
pub mod drill;
pub mod event;
pub mod logical;
pub mod physical;
pub mod pipeline;
pub mod postgres;
pub mod recover;
pub mod repository;
pub mod retention;
pub mod state;
pub mod status;
pub mod verify;
pub mod wal;

pub use backup::{Backup, BackupBuilder, Summary};
pub use compressor::Compressor;
pub use dumper::{
    AfterCommit, Ctx, Dumped, Dumper, PartFrames, PartInfo, PartSink, PartSource, PartSpec, PartWriter,
    Restorer, SourceContents,
};
pub use encryptor::{Cipher, Encryptor, ReadSeek, Seal};
pub use error::{Error, ErrorKind, Result};
pub use event::{Event, Observer};
pub use pipeline::{CpuPool, MemoryPlan, PipelineOptions};
pub use repository::Repository;
pub use restore::{Restore, RestoreBuilder, Restored};
pub use retention::RetentionPolicy;
pub use store::{
    Bytestream, Created, Entry, Kept, Meta, Missed, Store, Take, Upload, list_deep, list_sorted,
    read_if_there, read_whole, walk_folders,
};
pub use tokio_util::sync::CancellationToken;
