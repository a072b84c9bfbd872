//! A session that loads rows.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::super::contents::Chunk;
use super::failure::Failure;
use super::large_objects;
use super::permits::{Permit, Permits};
use super::plan::{Rows, Task};
use crate::dumper::PartSource;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::CopySession;
use crate::tar_reader::{Piece, Reader};

/// Rows are sent in messages of at most this size.
const MESSAGE_BYTES: usize = 256 * 1024;

/// Rows come before everything that waits for them.
const ROWS_WEIGHT: u64 = u64::MAX;

/// What the sessions of a restore share.
pub(super) struct Work {
    pub(super) tables: HashMap<i32, Rows>,
    pub(super) tasks: Mutex<VecDeque<Task>>,
    pub(super) source: Arc<dyn PartSource>,
    /// Tasks that each table waits for.
    pub(super) waiting: Mutex<HashMap<i32, usize>>,
    /// Bounds how much is done at once, of rows and indexes together.
    pub(super) permits: Arc<Permits>,
    /// Whether tables were made by this restore, so that rows can be frozen as they are loaded.
    pub(super) fresh: bool,
    /// Whether all rows of a session are of one transaction, which is open and stays so.
    pub(super) held: bool,
    /// Where the restore goes on after errors: those that there were.
    pub(super) failures: Option<Mutex<Vec<Failure>>>,
}

impl Work {
    /// More chunks for a COPY into a table that sessions share, where they are next.
    fn more(&self, shared: i32) -> Vec<Chunk> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_next =
            |task: &Task| matches!(task, Task::Chunks { table, alone: false, .. } if *table == shared);
        match tasks.front().is_some_and(is_next).then(|| tasks.pop_front()).flatten() {
            Some(Task::Chunks { chunks, .. }) => chunks,
            _ => Vec::new(),
        }
    }
}

pub(super) struct Worker {
    pub(super) session: CopySession,
    pub(super) work: Arc<Work>,
    /// Hears of tables that have all their rows.
    pub(super) finished: mpsc::UnboundedSender<Full>,
    /// What it works with.
    pub(super) permit: Option<Arc<Permit>>,
}

/// A table that has all its rows.
#[derive(Debug)]
pub(super) struct Full {
    /// The number of the rows' entry.
    pub(super) rows: i32,
    /// That of the session that loaded the last ones: held until those who wait for the table have asked for theirs.
    pub(super) permit: Option<Arc<Permit>>,
}

impl Worker {
    /// Takes tasks until there are none. Gives the session back.
    pub(super) async fn run(mut self) -> Result<CopySession> {
        loop {
            let task = self.work.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(task) = task else { return Ok(self.session) };
            self.permit = Some(Arc::new(self.work.permits.acquire(ROWS_WEIGHT).await));
            self.task(task).await?;
            self.permit = None;
        }
    }

    /// Whether the restore goes on after an error of a table.
    async fn goes_on(&mut self, error: Error, table: &Rows) -> Result<()> {
        let Some(failures) = self.work.failures.as_ref().filter(|_| error.kind() == ErrorKind::Database)
        else {
            return Err(error);
        };
        let message = error.to_string();
        let message =
            message.rsplit_once("the server says: ").map_or(message.clone(), |(_, said)| said.to_owned());
        note(failures, table, message);
        self.session.rows("ROLLBACK").await.map(drop)
    }

    pub(super) async fn task(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Chunks { table, chunks, alone } => self.chunks(table, chunks, alone).await,
            Task::Pack { part, of_extensions } => self.pack(part, of_extensions).await,
            Task::LargeObjects(part) => {
                let source = Arc::clone(&self.work.source);
                large_objects::load(&mut self.session, &*source, part).await
            }
        }
    }

    async fn chunks(&mut self, number: i32, chunks: Vec<Chunk>, alone: bool) -> Result<()> {
        let work = Arc::clone(&self.work);
        let table = work.tables.get(&number).ok_or_else(|| Error::internal("a task without its table"))?;
        let mut tasks = 1;
        if let Err(error) = self.copy_chunks(number, table, chunks, alone, &mut tasks).await {
            self.goes_on(error, table).await?;
        }
        let mut waiting = work.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = waiting.get_mut(&number) {
            *waiting -= tasks;
            if *waiting == 0 {
                // Nobody listens where indexes come later.
                let _ = self.finished.send(Full { rows: number, permit: self.permit.clone() });
            }
        }
        Ok(())
    }

    /// One COPY. As long as it is not committed, autovacuum does not hear of the rows: it would read them again while
    /// they are loaded, and the first index would wait for it.
    async fn copy_chunks(
        &mut self,
        number: i32,
        table: &Rows,
        mut chunks: Vec<Chunk>,
        alone: bool,
        tasks: &mut usize,
    ) -> Result<()> {
        let work = Arc::clone(&self.work);
        self.start(table, alone).await?;
        let mut rows = 0;
        while !chunks.is_empty() {
            for chunk in &chunks {
                let mut data = work.source.open(chunk.part).await?;
                while let Some(bytes) = data.next().await {
                    self.send(table, bytes?).await?;
                }
                rows += chunk.rows;
            }
            chunks = if alone { Vec::new() } else { work.more(number) };
            *tasks += usize::from(!chunks.is_empty());
        }
        self.stop(table, rows).await
    }

    async fn pack(&mut self, part: u32, of_extensions: bool) -> Result<()> {
        let work = Arc::clone(&self.work);
        let mut data = work.source.open(part).await?;
        let mut reader = Reader::default();
        let mut open: Option<&Rows> = None;
        while let Some(bytes) = data.next().await {
            reader.push(bytes?);
            while let Some(piece) = reader.next()? {
                match piece {
                    Piece::Member(header) => {
                        if let Some(table) = open.take()
                            && let Err(error) = self.stop(table, table.count).await
                        {
                            self.goes_on(error, table).await?;
                        }
                        let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
                        let entry = name.strip_suffix(".dat").and_then(|id| id.parse().ok());
                        // A table that is not restored is passed over.
                        open = entry.and_then(|id: i32| work.tables.get(&id));
                        open = open.filter(|table| table.of_extension == of_extensions);
                        if let Some(table) = open
                            // Small ones are not worth the files that TRUNCATE makes and the sync of its commit.
                            && let Err(error) = self.start(table, false).await
                        {
                            self.goes_on(error, table).await?;
                            open = None;
                        }
                    }
                    Piece::Data(bytes) => {
                        if let Some(table) = open
                            && let Err(error) = self.send(table, bytes).await
                        {
                            self.goes_on(error, table).await?;
                            open = None;
                        }
                    }
                }
            }
        }
        reader.finish()?;
        if let Some(table) = open
            && let Err(error) = self.stop(table, table.count).await
        {
            self.goes_on(error, table).await?;
        }
        Ok(())
    }

    /// Begins a COPY. Into a table that nobody else knows yet, rows are written frozen: they need no vacuum later,
    /// and what reads them first has nothing to write.
    async fn start(&mut self, table: &Rows, alone: bool) -> Result<()> {
        let to = &table.to;
        let frozen = alone && self.work.fresh && !to.through_root;
        let mut sql: Vec<u8> = if self.work.held { Vec::new() } else { b"BEGIN; ".to_vec() };
        if frozen {
            sql.extend(b"TRUNCATE TABLE ONLY ");
            sql.extend(&to.table);
            sql.extend(b"; ");
        }
        sql.extend(&to.copy);
        sql.extend(if frozen { &b" FROM STDIN WITH (FREEZE)"[..] } else { b" FROM STDIN" });
        if !self.work.held {
            sql.extend(b"; COMMIT");
        }
        self.session.copy_in(&sql).await.map_err(|e| of_table(e, table))
    }

    async fn send(&mut self, table: &Rows, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MESSAGE_BYTES));
            self.session.send(&piece).await.map_err(|e| of_table(e, table))?;
        }
        Ok(())
    }

    async fn stop(&mut self, table: &Rows, expected: u64) -> Result<()> {
        let rows = self.session.copied_in().await.map_err(|e| of_table(e, table))?;
        if rows == expected {
            return Ok(());
        }
        let message = format!("{} took {rows} rows, and the backup has {expected}", table.name);
        if let Some(failures) = &self.work.failures {
            note(failures, table, message);
            return Ok(());
        }
        Err(Error::new(ErrorKind::Integrity, message)
            .with_hint("a rule or trigger of the database may do that"))
    }
}

/// Keeps what the rows of a table failed with.
fn note(failures: &Mutex<Vec<Failure>>, table: &Rows, message: String) {
    let object = Some(format!("rows of {}", table.name));
    failures.lock().unwrap_or_else(PoisonError::into_inner).push(Failure { object, message });
}

fn of_table(error: Error, table: &Rows) -> Error {
    error.doing(format!("loading the rows of {}", table.name))
}
