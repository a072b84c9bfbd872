//! The repository: what stands where in a store, when a backup exists, and who may delete what.
//!
//! `docs/format.md` specifies every object. The rules in one paragraph: a run announces itself in
//! `started.json`, stores its parts, and commits by creating `backup.json`; nothing is a backup without it.
//! `backup.json` is created exactly once, as *committed* by the run or as *abandoned* by whoever gives the
//! run up, so that only one of them wins. Nothing is overwritten.

mod catalog;
mod chain;
mod contents;
mod copies;
mod id;
mod identity;
mod keys;
pub mod layout;
mod marks;
mod open;
mod raw_digest;
mod record;
mod run;
mod small;
mod sweep;

pub use catalog::{BackupPlace, Catalog, Unfinished};
pub(crate) use chain::{ancestors, check_objects, lacking};
pub(crate) use contents::{open_contents, seal_contents};
pub use id::{BackupId, ClusterName};
pub use identity::ClusterIdentity;
pub use keys::{Rotated, rotate_key};
pub(crate) use keys::{age_of_key, has_key, keys_in, open_cipher, open_key};
pub use marks::{Mark, Marks, Verb};
pub(crate) use open::RECORD_LIMIT;
pub(crate) use open::announcement;
pub use open::{Abilities, FORMAT, Repository};
pub(crate) use raw_digest::RawHasher;
pub use raw_digest::{Hash128, RawDigest};
pub use record::{
    BackupContents, BackupRecord, BackupSummary, Digest, Encryption, Frame, ObjectRecord, PartContents,
    PartRecord, Started, State, Tool,
};
pub(crate) use record::{PARTIAL, from_json, to_json};
pub(crate) use run::{Run, check_clock, delete_leftovers, host_name, signed};
pub(crate) use small::check_small;
pub use sweep::{DEFAULT_GRACE, Swept};
