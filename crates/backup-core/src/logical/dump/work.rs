//! What the sessions of a dump share: tasks, and what is done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use super::super::contents::{Chunk, LargeObjectsContents, TableContents};
use super::super::fingerprint::Fingerprint;
use super::plan::{Plan, Task};
use super::tables::Table;
use super::worker::{Done, Locks, Place, locked};

pub(super) struct Work {
    pub(super) tables: Vec<Table>,
    /// Bytes of rows from which on they go into the next chunk.
    pub(super) chunk_bytes: u64,
    tasks: Mutex<VecDeque<Task>>,
    /// Tasks for the session that holds the locks.
    left: Mutex<VecDeque<Task>>,
    done: Mutex<Vec<Done>>,
    large_objects: Mutex<LargeObjectsContents>,
}

impl Work {
    pub(super) fn new(tables: Vec<Table>, plan: Plan) -> Self {
        Self {
            tables,
            chunk_bytes: plan.chunk_bytes,
            tasks: Mutex::new(plan.tasks),
            left: Mutex::default(),
            done: Mutex::default(),
            large_objects: Mutex::new(LargeObjectsContents { parts: Vec::new(), count: 0, bytes: 0 }),
        }
    }

    /// The next task for a session.
    pub(super) fn next(&self, locks: Locks) -> Option<Task> {
        let from = if locks == Locks::Held { &self.left } else { &self.tasks };
        let next = locked(from).pop_front();
        // What was put back by one that filled a pack.
        next.or_else(|| if locks == Locks::Held { locked(&self.tasks).pop_front() } else { None })
    }

    /// Leaves a task to the session that holds the locks.
    pub(super) fn leave(&self, task: Task) {
        locked(&self.left).push_back(task);
    }

    pub(super) fn put_back(&self, task: Task) {
        locked(&self.tasks).push_front(task);
    }

    pub(super) fn done(&self, done: Done) {
        locked(&self.done).push(done);
    }

    pub(super) fn large_objects(&self, more: LargeObjectsContents) {
        let mut all = locked(&self.large_objects);
        all.parts.extend(more.parts);
        all.count += more.count;
        all.bytes += more.bytes;
    }

    /// What there is at the end: the tables in the order of the table of contents, and the large objects.
    pub(super) fn take(&self) -> (Vec<TableContents>, LargeObjectsContents) {
        let mut by_table: BTreeMap<usize, (Fingerprint, BTreeMap<Place, Chunk>)> = BTreeMap::new();
        for done in std::mem::take(&mut *locked(&self.done)) {
            let (rows, chunks) = by_table.entry(done.table).or_default();
            rows.add_all(done.rows);
            if let Some(chunk) = done.chunk {
                chunks.insert(done.place, chunk);
            }
        }
        let tables = by_table.into_iter().map(|(number, (rows, chunks))| {
            let table = &self.tables[number];
            let chunks: Vec<Chunk> = chunks.into_values().collect();
            TableContents {
                entry: table.entry,
                schema: table.schema.clone(),
                name: table.name.clone(),
                rows: rows.rows,
                bytes: chunks.iter().map(|chunk| chunk.bytes).sum(),
                fingerprint: rows.hex(),
                chunks,
            }
        });
        let mut large_objects = locked(&self.large_objects).clone();
        large_objects.parts.sort_unstable();
        (tables.collect(), large_objects)
    }
}
