//! Backups of PostgreSQL that can be trusted.
//!
//! One engine, used three ways: this library, the command `pgark`, and a C ABI. A backup is streamed from the
//! database through compression and encryption into a store, with bounded memory; it exists only when it is
//! whole; everything in a repository can be read with stock tools (`age`, `zstd`, `pg_restore`).
//!
//! ```no_run
//! use pgark::crypt::Age;
//! use pgark::logical::{Dump, Load};
//! use pgark::postgres::ConnInfo;
//! use pgark::{Backup, CancellationToken, Repository, Restore, StoreOptions, open_store};
//!
//! # async fn example() -> pgark::Result<()> {
//! let cancel = CancellationToken::new();
//! let store = open_store("s3://acme-backups/prod", &StoreOptions::default())?;
//! let (repository, _new) = Repository::init(store).await?;
//!
//! let summary = Backup::builder()
//!     .repository(repository.clone())
//!     .dumper(Dump::new(ConnInfo::parse("service=prod dbname=shop")?))
//!     .encryptor(Age::new().to("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")?)
//!     .build()?
//!     .run(&cancel)
//!     .await?;
//!
//! let record = repository.record(&summary.backup.cluster, &summary.backup.id).await?;
//! Restore::builder()
//!     .backup(repository, record)
//!     .encryptor(Age::new().identities(pgark::crypt::IdentityFile::read("key.txt".as_ref())?))
//!     .restorer(Load::into(ConnInfo::parse("service=test dbname=shop_restored")?))
//!     .build()?
//!     .run(&cancel)
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! Each part can be an application's own: see the traits [`Dumper`], [`Restorer`], [`Compressor`],
//! [`Encryptor`], [`Store`] and [`RetentionPolicy`]. [`config`] reads the file that the command uses.

pub mod config;

pub use backup_core::*;
pub use backup_storage::{
    Credentials, Got, LocalStore, MemoryTransport, Page, Remote, Replicas, RetryPolicy, StorageClasses,
    StoreOptions, Transport, open as open_store,
};

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
