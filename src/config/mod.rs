//! The configuration file `pgark.toml`, and the engine that it describes.
//!
//! A [`Settings`] is what a frontend works with: it comes from a file ([`Settings::load`]), and a frontend's own
//! options are laid over it. `docs/configuration.md` describes the file.

mod build;
mod copies;
mod hooks;
mod place;
mod repository;
mod schema;
mod wal;
mod work;

pub use hooks::Hooks;
pub use repository::CopySettings;
pub use schema::{ClusterSettings, DEFAULT_PATHS, EncryptionSettings, Settings};
pub use wal::{Timeline, WalListing, WalVerified, Window};
pub use work::{BackedUp, ClusterOptions, IncrementOf, Listing, ServerOptions, WalOf, What};
