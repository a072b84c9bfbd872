//! Which large objects an entry holds.

use std::collections::HashMap;

use super::{BLOBS, Entry, Toc};

/// An entry that makes one large object.
const OBJECT: &str = "BLOB";
/// An entry that makes many, from 1.16 on.
const MANY_OBJECTS: &str = "BLOB METADATA";

impl Toc {
    /// The OIDs of all large objects that the table of contents makes; nothing where it makes none, as a dump of data
    /// alone does.
    pub(crate) fn objects(&self) -> Vec<u32> {
        self.entries.iter().flat_map(made_by).collect()
    }

    /// For each large object the entry that holds its bytes. Where a single entry holds all it is not said: see
    /// [`Toc::only_holder`].
    pub(crate) fn holders(&self) -> HashMap<u32, i32> {
        let (mut holders, by_id) = (HashMap::new(), self.by_id());
        for entry in self.with_data(BLOBS) {
            // The one entry of older archives depends on none of them.
            for made in entry.dependencies.iter().filter_map(|id| by_id.get(id)) {
                holders.extend(made_by(made).into_iter().map(|oid| (oid, entry.id)));
            }
        }
        holders
    }

    /// The entry of all large objects, where there is only one.
    pub(crate) fn only_holder(&self) -> Option<i32> {
        let mut holders = self.with_data(BLOBS);
        let only = holders.next()?.id;
        holders.next().is_none().then_some(only)
    }
}

fn made_by(entry: &Entry) -> Vec<u32> {
    let text = match entry.kind.as_str() {
        OBJECT => entry.name.as_deref(),
        // A line with its OID for each (`dumpLO` in pg_dump.c, PostgreSQL 17).
        MANY_OBJECTS => entry.definition.as_deref(),
        _ => None,
    };
    let text = String::from_utf8_lossy(text.unwrap_or_default());
    text.split_whitespace().filter_map(|oid| oid.parse().ok()).collect()
}
