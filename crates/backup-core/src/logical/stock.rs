//! Archives of `pg_dump` as it writes them, read entry by entry.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, Read};

use super::archive::{BLOBS, Block, Blocks, Entry, Toc, broken, damaged};
use crate::error::{Error, Result};

/// Where the data of an archive go.
pub(super) trait Sink {
    /// The data of a table as they are in the archive, to be read to their end.
    fn table(&mut self, toc: &Toc, entry: &Entry, data: &mut dyn Read) -> Result<()>;

    /// A large object, to be read to its end.
    fn object(&mut self, toc: &Toc, object: Object<'_>) -> Result<()>;
}

/// A large object of an archive.
pub(super) struct Object<'a> {
    pub(super) oid: u32,
    /// Its entry, where the archive says it.
    pub(super) entry: Option<i32>,
    /// Its length, where it is known beforehand.
    pub(super) bytes: Option<u64>,
    pub(super) data: &'a mut dyn Read,
    /// The same data once more.
    pub(super) again: Again<'a>,
}

/// Opens data once more.
pub(super) type Again<'a> = &'a dyn Fn() -> Result<Box<dyn Read>>;

/// What was found of an archive: everything must be there once.
pub(super) struct Seen<'a> {
    toc: &'a Toc,
    by_id: HashMap<i32, &'a Entry>,
    entries: HashSet<i32>,
    objects: HashSet<u32>,
}

impl<'a> Seen<'a> {
    pub(super) fn new(toc: &'a Toc) -> Self {
        Self { toc, by_id: toc.by_id(), entries: HashSet::new(), objects: HashSet::new() }
    }

    /// Notes that data of an entry begin.
    pub(super) fn entry(&mut self, id: i32, objects: bool) -> Result<&'a Entry> {
        let entry =
            self.by_id.get(&id).copied().filter(|entry| entry.has_data && (entry.kind == BLOBS) == objects);
        let entry = entry.ok_or_else(|| damaged(&format!("it has data of an entry {id} that has none")))?;
        if !self.entries.insert(id) {
            return Err(damaged(&format!("it has the data of {} twice", named(entry))));
        }
        Ok(entry)
    }

    /// Notes a large object.
    pub(super) fn object(&mut self, oid: u32) -> Result<()> {
        if self.objects.insert(oid) {
            return Ok(());
        }
        Err(damaged(&format!("it has the large object {oid} twice")))
    }

    /// The large objects so far.
    pub(super) fn objects(&self) -> &HashSet<u32> {
        &self.objects
    }

    /// Checks that nothing is missing.
    pub(super) fn finish(self) -> Result<()> {
        let missing =
            self.toc.entries.iter().find(|entry| entry.has_data && !self.entries.contains(&entry.id));
        if let Some(entry) = missing {
            return Err(damaged(&format!("the data of {} are missing", named(entry))));
        }
        // A dump of data alone does not make them.
        if self.toc.entries.iter().all(|entry| !entry.has_data || entry.kind != BLOBS) {
            return Ok(());
        }
        let made: HashSet<u32> = self.toc.objects().into_iter().collect();
        if let Some(oid) = made.difference(&self.objects).min() {
            return Err(damaged(&format!("the large object {oid} is missing")));
        }
        Ok(())
    }
}

/// An entry in words.
pub(super) fn named(entry: &Entry) -> String {
    match entry.kind.as_str() {
        BLOBS => "the large objects".to_owned(),
        _ => format!("table {}.{}", entry.schema_text(), entry.name_text()),
    }
}

/// Gives data to a reader of them, and sees that they were read to their end.
pub(super) fn to_the_end(mut data: impl Read, read: impl FnOnce(&mut dyn Read) -> Result<()>) -> Result<()> {
    read(&mut data)?;
    match data.read(&mut [0]).map_err(broken)? {
        0 => Ok(()),
        _ => Err(Error::internal("data of an archive were not read to their end")),
    }
}

/// Reads all blocks of a custom archive. `again` opens the data at an offset once more.
pub(super) fn each_block<R: BufRead>(
    toc: &Toc,
    blocks: &mut Blocks<R>,
    again: &dyn Fn(u64) -> Result<Box<dyn Read>>,
    sink: &mut dyn Sink,
) -> Result<()> {
    let mut seen = Seen::new(toc);
    while let Some((block, offset)) = blocks.next_block()? {
        let (id, objects) = match block {
            Block::Rows(id) => (id, false),
            Block::Objects(id) => (id, true),
        };
        let entry = seen.entry(id, objects)?;
        if let super::archive::Place::Custom(Some(told)) = entry.place
            && told != offset
        {
            return Err(damaged(&format!(
                "{} is at byte {offset}, and the table of contents says {told}",
                named(entry)
            )));
        }
        if !objects {
            to_the_end(blocks.data()?, |data| sink.table(toc, entry, data))
                .map_err(|e| e.doing(named(entry)))?;
            continue;
        }
        while let Some(oid) = blocks.next_object()? {
            seen.object(oid)?;
            let at = blocks.position();
            to_the_end(blocks.data()?, |data| {
                let again = || again(at);
                sink.object(toc, Object { oid, entry: Some(id), bytes: None, data, again: &again })
            })
            .map_err(|e| e.doing(format!("large object {oid}")))?;
        }
    }
    seen.finish()
}
