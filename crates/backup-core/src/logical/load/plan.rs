//! How rows are divided among sessions.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::super::PACK;
use super::super::archive::{BLOBS, COPY_END, Entry, TABLE_DATA, Toc};
use super::super::contents::{Chunk, DatabaseContents, TableContents};
use crate::dumper::PartSource;
use crate::error::{Error, ErrorKind, Result};

/// To build an index takes about this part of the time that it takes to load the rows.
const INDEX_SHARE: u64 = 5;

/// A table that is loaded.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) name: String,
    pub(super) count: u64,
    /// Whether an extension made the table, with rows of its own.
    pub(super) of_extension: bool,
    pub(super) to: Destination,
}

/// Where rows go, as SQL in the encoding of the dump.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    /// The table.
    pub(super) table: Vec<u8>,
    /// `COPY` with the table, or the root of its partitions, and the columns.
    pub(super) copy: Vec<u8>,
    pub(super) through_root: bool,
}

impl Destination {
    /// What the entry of rows says.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) where it has no `COPY` as `pg_dump` writes it.
    pub(super) fn of(entry: &Entry) -> Result<Self> {
        let copy = entry.copy.as_deref().and_then(|copy| copy.strip_suffix(COPY_END));
        let copy = copy.ok_or_else(|| Error::internal("an entry without COPY"))?.to_vec();
        Ok(Self { table: entry.qualified(), copy, through_root: entry.through_root() })
    }
}

/// A piece of work for one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// Chunks of a table, by one COPY. Alone where no other session loads into the table; otherwise a session that took
    /// some takes more of them within the same COPY.
    Chunks { table: i32, chunks: Vec<Chunk>, alone: bool },
    /// The tables of a pack that extensions made, or the others.
    Pack { part: u32, of_extensions: bool },
    /// Large objects of a part.
    LargeObjects(u32),
}

/// Which entries' rows are loaded: how many indexes are built once a table has them, nothing where they are not wanted.
pub(super) type Wanted<'a> = dyn Fn(i32) -> Option<usize> + Sync + 'a;

/// What is to be loaded.
pub(super) struct Plan {
    /// By number of the entry in the backup.
    pub(super) tables: HashMap<i32, Rows>,
    /// Tables that extensions configure: they may refer to each other and have their constraints already, so they
    /// come first, one after another.
    pub(super) first: Vec<Task>,
    pub(super) then: VecDeque<Task>,
}

impl Plan {
    /// Of the entries that are `wanted`.
    pub(super) fn new(
        toc: &Toc,
        database: &DatabaseContents,
        source: &dyn PartSource,
        jobs: usize,
        wanted: &Wanted<'_>,
    ) -> Result<Self> {
        let kinds: HashMap<u32, String> = source.parts().into_iter().map(|p| (p.part, p.spec.kind)).collect();
        let entries = toc.by_id();
        let tables = || database.tables.iter().filter(|table| wanted(table.entry).is_some());
        let builds = |table: &TableContents| wanted(table.entry).unwrap_or(0) as u64;
        let work = |table: &TableContents| table.bytes + table.bytes / INDEX_SHARE * builds(table);
        let all: u64 = tables().map(work).sum();
        let mut plan = Self { tables: HashMap::new(), first: Vec::new(), then: VecDeque::new() };
        let (mut packs, mut weighed) = (BTreeMap::<u32, u64>::new(), Vec::new());
        for table in tables() {
            let entry =
                entries.get(&table.entry).filter(|entry| entry.kind == TABLE_DATA && entry.copy.is_some());
            let Some(entry) = entry else { return Err(unknown(table)) };
            let of_extension = !entry
                .dependencies
                .iter()
                .filter_map(|id| entries.get(id))
                .any(|e| e.kind.ends_with("TABLE"));
            let rows = Rows {
                to: Destination::of(entry)?,
                name: format!("{}.{}", table.schema, table.name),
                count: table.rows,
                of_extension,
            };
            plan.tables.insert(table.entry, rows);
            let in_pack = |chunk: &Chunk| kinds.get(&chunk.part).is_some_and(|kind| kind == PACK);
            if let (true, Some(chunk)) = (of_extension, table.chunks.iter().find(|chunk| in_pack(chunk))) {
                let task = Task::Pack { part: chunk.part, of_extensions: true };
                // The order in a pack is that of the tables.
                if plan.first.last() != Some(&task) {
                    plan.first.push(task);
                }
            } else if of_extension {
                plan.first.push(Task::Chunks {
                    table: table.entry,
                    chunks: table.chunks.clone(),
                    alone: false,
                });
            } else if table.chunks.iter().any(in_pack) {
                for chunk in &table.chunks {
                    *packs.entry(chunk.part).or_default() += chunk.bytes;
                }
            } else if is_shared(table.bytes, all - work(table), jobs) && table.chunks.len() > 1 {
                for chunk in &table.chunks {
                    let task = Task::Chunks { table: table.entry, chunks: vec![chunk.clone()], alone: false };
                    weighed.push((work(table), task));
                }
            } else if !table.chunks.is_empty() {
                let task = Task::Chunks { table: table.entry, chunks: table.chunks.clone(), alone: true };
                weighed.push((work(table), task));
            }
        }
        weighed.extend(
            packs.into_iter().map(|(part, bytes)| (bytes, Task::Pack { part, of_extensions: false })),
        );
        let of_objects = toc.entries.iter().any(|entry| entry.kind == BLOBS && wanted(entry.id).is_some());
        if let Some(objects) = database.large_objects.as_ref().filter(|_| of_objects) {
            let each = objects.bytes / (objects.parts.len() as u64).max(1);
            weighed.extend(objects.parts.iter().map(|part| (each, Task::LargeObjects(*part))));
        }
        // The table with the most to do comes first, with all its chunks: its indexes are built while others are loaded.
        weighed.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        plan.then = weighed.into_iter().map(|(_, task)| task).collect();
        Ok(plan)
    }
}

/// Whether several sessions load a table, with so much work beside it. One session can freeze what it loads, several
/// cannot: so a table is shared only where one session alone would still load it when the others have nothing left.
fn is_shared(bytes: u64, beside: u64, jobs: usize) -> bool {
    bytes > (beside + bytes) / jobs as u64 * 21 / 20
}

fn unknown(table: &TableContents) -> Error {
    let message = format!("the table of contents does not know the rows of {}.{}", table.schema, table.name);
    Error::new(ErrorKind::Integrity, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_shared_where_its_session_would_be_the_last() {
        for (bytes, beside, jobs, shared) in [
            (100, 0, 1, false),
            (100, 0, 2, true),
            (100, 80, 2, true),
            (100, 95, 2, false),
            (100, 200, 4, true),
        ] {
            assert_eq!(is_shared(bytes, beside, jobs), shared, "{bytes} {beside} {jobs}");
        }
    }
}
