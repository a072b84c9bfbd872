//! The configuration file `pgark.toml`, and the engine that it describes.
//!
//! A [`Settings`] is what a frontend works with: it comes from a file ([`Settings::load`]), and a frontend's own
//! options are laid over it. `docs/configuration.md` describes the file.

mod audit;
mod build;
mod check;
mod copies;
mod drill;
mod hooks;
mod objectives;
mod place;
mod recover;
mod repository;
mod resuming;
mod retention;
mod schema;
mod verify;
mod wal;
mod wal_verified;
mod work;

pub use audit::{AuditListing, AuditVerified};
pub use check::CheckOptions;
pub use drill::{DrillSettings, DrillWanted};
pub use hooks::Hooks;
pub use recover::{RecoverOptions, RecoverPlan, RecoverWay};
pub use repository::CopySettings;
pub use retention::{PruneAnswer, PruneHow, RetentionSettings, until};
pub use schema::{ClusterSettings, DEFAULT_PATHS, EncryptionSettings, Settings};
pub use verify::{OthersVerified, SampleOf, Verified, VerifyWanted};
pub use wal::{Timeline, WalListing, Window};
pub use wal_verified::WalVerified;
pub use work::{BackedUp, ClusterOptions, IncrementOf, Listing, ServerOptions, WalOf, What};
