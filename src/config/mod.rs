//! The configuration file `pgark.toml`, and the engine that it describes.
//!
//! A [`Settings`] is what a frontend works with: it comes from a file ([`Settings::load`]), and a frontend's own
//! options are laid over it. `docs/configuration.md` describes the file.

mod audit;
mod build;
mod hooks;
mod place;
mod recover;
mod schema;
mod wal;
mod work;

pub use audit::{AuditListing, AuditVerified};
pub use hooks::Hooks;
pub use recover::{RecoverOptions, RecoverPlan, RecoverWay};
pub use schema::{ClusterSettings, DEFAULT_PATHS, EncryptionSettings, Settings};
pub use wal::{Timeline, WalListing, WalVerified, Window};
pub use work::{BackedUp, ClusterOptions, IncrementOf, Listing, ServerOptions, WalOf, What};
