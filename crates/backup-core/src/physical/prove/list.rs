//! The list of an increment.

use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use super::{FilesRead, Seen, full_path};
use crate::error::Result;
use crate::physical::increment::{Entry, ListReader, Stored};
use crate::physical::unpack::below;

/// Reads the list of an increment.
pub(crate) struct ListLook {
    read: Arc<FilesRead>,
    list: ListReader,
    found: Vec<String>,
}

impl ListLook {
    pub(super) fn new(read: Arc<FilesRead>) -> Self {
        Self { read, list: ListReader::default(), found: Vec::new() }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { read, list, found } = self;
        list.take(bytes, |entry| {
            found.extend(take_entry(read, &entry)?);
            Ok(())
        })
    }

    pub(super) fn finish(self) -> Result<Vec<String>> {
        self.list.finish()?;
        self.read.has_list.store(true, Ordering::Release);
        Ok(self.found)
    }
}

/// Notes what the list says of a file; what is wrong with that.
fn take_entry(read: &FilesRead, entry: &Entry<'_>) -> Result<Option<String>> {
    below(entry.path)?;
    if entry.stored == Stored::Folder {
        return Ok(None);
    }
    let path = full_path(entry.archive, entry.path);
    let seen = Seen { stored: entry.stored, bytes: entry.bytes, crc: None };
    match read.files().entry(xxh3_64(&path)) {
        Slot::Occupied(_) => {
            return Ok(Some(format!("{} is listed twice", String::from_utf8_lossy(&path))));
        }
        Slot::Vacant(slot) => slot.insert(seen),
    };
    let fits = |blocks: super::Blocks| {
        entry.bytes.is_multiple_of(blocks.bytes.into())
            && entry.bytes / u64::from(blocks.bytes) <= blocks.segment
    };
    let odd = entry.stored == Stored::Blocks && read.blocks.is_some_and(|blocks| !fits(blocks));
    Ok(odd.then(|| {
        let path = String::from_utf8_lossy(&path);
        format!("{path} is listed with {} bytes, which no segment of a relation has", entry.bytes)
    }))
}
