//! Increments: what differs from an earlier backup, found by comparing contents block by block.
//!
//! The server's whole stream is read. Every backup leaves a map of its blocks' digests on the host that made it; the
//! next one stores the blocks whose digests differ, and all that is no relation. Page LSNs would not do: hint bits, the
//! visibility map, and databases that were copied as files change without them.
//!
//! A server of 17 or later can make increments itself, from its WAL summaries: [`begin_from_summaries`].

mod compare;
mod host;
mod intake;
mod kept;
mod list;
mod manifest;
mod map;
mod parent;
mod plan;
mod summaries;
#[cfg(test)]
mod tests;
mod window;

pub(super) use intake::{Coming, Intake, Taken, made_path};
pub(super) use list::{Entry, ListReader, Stored, listed_path};
pub(super) use manifest::{Copied, ManifestCopy, Manifests};
pub use parent::Parent;
pub(super) use plan::Plan;
pub(super) use summaries::begin as begin_from_summaries;
pub(super) use window::Window;

/// Folder of whole files in an increment's archives.
pub(super) const FILES: &str = "files";
/// Folder of windows in an increment's archives.
pub(super) const BLOCKS: &str = "blocks";
