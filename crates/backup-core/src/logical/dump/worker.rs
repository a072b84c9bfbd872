//! A session that copies rows into parts.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::super::contents::Chunk;
use super::super::fingerprint::{Fingerprint, RowHasher};
use super::super::{COPY, PACK, tar_writer};
use super::large_objects;
use super::plan::Task;
use super::tables::{Blocks, Table};
use super::work::Work;
use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::CopySession;

/// Rows are given to a part in pieces of about this size.
const PIECE_BYTES: usize = 128 * 1024;
/// Rows of a table in a pack are collected first: a member's header says its size.
const MEMBER_BYTES: usize = 4 * 1024 * 1024;

/// Whether a session must lock a table before it reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Locks {
    /// It takes the lock, and gives it back afterwards: so thousands of tables fit into the lock table.
    OwnEach,
    /// It has them all.
    Held,
}

pub(super) struct Worker {
    session: CopySession,
    locks: Locks,
    work: Arc<Work>,
    parts: Arc<dyn PartSink>,
    /// A part that is being stored while the next rows come: a disk takes its time to sync it, and a store in the
    /// cloud to put its chunks together.
    ending: Option<JoinHandle<Result<()>>>,
}

/// Where a chunk stands among those of its table: the first block of its range, and its number in that.
pub(super) type Place = (u64, usize);

/// Rows of a table, all or a chunk of them, that are stored.
pub(super) struct Done {
    pub(super) table: usize,
    pub(super) place: Place,
    pub(super) chunk: Option<Chunk>,
    pub(super) rows: Fingerprint,
}

/// What came of copying a table into a pack.
enum Small {
    Fits(Bytes, Fingerprint),
    /// It is larger as text than the server counts.
    TooLarge,
    /// Another process wants it alone, and has to wait until the backup is done.
    Wanted,
}

impl Worker {
    pub(super) fn new(session: CopySession, locks: Locks, work: Arc<Work>, parts: Arc<dyn PartSink>) -> Self {
        Self { session, locks, work, parts, ending: None }
    }

    /// Takes tasks until there are none.
    pub(super) async fn run(mut self) -> Result<()> {
        if self.locks == Locks::OwnEach {
            self.session.rows("SAVEPOINT pgark").await?;
        }
        while let Some(task) = self.work.next(self.locks) {
            self.task(task).await?;
        }
        self.settle().await?;
        self.session.close().await;
        Ok(())
    }

    async fn task(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Rows { table, blocks } => self.rows(table, blocks).await,
            Task::Pack(tables) => self.pack(tables).await,
            Task::LargeObjects { from, to } => {
                let done = large_objects::copy(&mut self.session, &*self.parts, from, to).await?;
                self.work.large_objects(done);
                Ok(())
            }
        }
    }

    /// Copies rows into parts of their own.
    async fn rows(&mut self, number: usize, blocks: Option<Blocks>) -> Result<()> {
        let work = Arc::clone(&self.work);
        let table = &work.tables[number];
        if !self.start(table, blocks).await? {
            self.work.leave(Task::Rows { table: number, blocks });
            return Ok(());
        }
        let name = format!("{}.{}", table.schema, table.name);
        let mut part: Option<Box<dyn PartWriter>> = None;
        let (mut hasher, mut text, mut rows) = (RowHasher::default(), Text::default(), 0);
        let (mut bytes, mut place) = (0_u64, (blocks.map_or(0, |blocks| blocks.from), 0));
        loop {
            let more = self.copied(table, &mut hasher, &mut text).await?;
            let is_whole = !more || (bytes + text.bytes.len() as u64 >= work.chunk_bytes && text.rows > 0);
            if text.bytes.len() >= PIECE_BYTES || is_whole {
                // The beginning of a row belongs to the next chunk.
                let piece = if is_whole { text.take_rows() } else { text.take() };
                bytes += piece.len() as u64;
                if !piece.is_empty() {
                    let part = match &mut part {
                        Some(part) => part,
                        None => part.insert(
                            self.parts.open(PartSpec { kind: COPY.to_owned(), name: name.clone() }).await?,
                        ),
                    };
                    part.write(piece).await?;
                }
            }
            if is_whole {
                let ended = std::mem::take(&mut hasher.done);
                rows += ended.rows;
                let done = move |chunk| Done { table: number, place, chunk, rows: ended };
                match part.take() {
                    Some(part) => {
                        let chunk = move |part| Chunk { part, bytes, rows: ended.rows };
                        self.end(part, move |part| vec![done(Some(chunk(part)))]).await?;
                    }
                    None => self.work.done(done(None)),
                }
                (bytes, place.1) = (0, place.1 + 1);
            }
            if !more {
                break;
            }
        }
        self.stop(table, rows).await
    }

    /// Ends a part beside what comes next.
    async fn end(
        &mut self,
        part: Box<dyn PartWriter>,
        done: impl FnOnce(u32) -> Vec<Done> + Send + 'static,
    ) -> Result<()> {
        self.settle().await?;
        let work = Arc::clone(&self.work);
        self.ending = Some(tokio::spawn(async move {
            for done in done(part.finish().await?) {
                work.done(done);
            }
            Ok(())
        }));
        Ok(())
    }

    /// Waits until every part that was ended is stored.
    async fn settle(&mut self) -> Result<()> {
        let Some(ending) = self.ending.take() else { return Ok(()) };
        ending.await.unwrap_or_else(|e| Err(Error::internal("storing rows failed").caused_by(e)))
    }

    /// Copies small tables into one part, a tar archive.
    async fn pack(&mut self, tables: Vec<usize>) -> Result<()> {
        let work = Arc::clone(&self.work);
        let mut part: Option<Box<dyn PartWriter>> = None;
        let mut members = Vec::new();
        for number in tables {
            let table = &work.tables[number];
            match self.small(table).await? {
                Small::Fits(text, rows) if text.is_empty() => {
                    self.work.done(Done { table: number, place: (0, 0), chunk: None, rows });
                }
                Small::Fits(text, rows) => {
                    let part = if let Some(part) = &mut part {
                        part
                    } else {
                        let spec = PartSpec { kind: PACK.to_owned(), name: format!("pack {}", table.entry) };
                        part.insert(self.parts.open(spec).await?)
                    };
                    let bytes = text.len() as u64;
                    part.write(tar_writer::member(&format!("{}.dat", table.entry), bytes)).await?;
                    part.write(text).await?;
                    part.write(tar_writer::filling(bytes)).await?;
                    members.push((number, bytes, rows));
                }
                Small::TooLarge => self.work.put_back(Task::Rows { table: number, blocks: None }),
                Small::Wanted => self.work.leave(Task::Rows { table: number, blocks: None }),
            }
        }
        let Some(mut part) = part else { return Ok(()) };
        part.write(tar_writer::end()).await?;
        let done = |part| {
            let done = |(table, bytes, rows): (usize, u64, Fingerprint)| {
                let chunk = Some(Chunk { part, bytes, rows: rows.rows });
                Done { table, place: (0, 0), chunk, rows }
            };
            members.into_iter().map(done).collect()
        };
        self.end(part, done).await
    }

    async fn small(&mut self, table: &Table) -> Result<Small> {
        if !self.start(table, None).await? {
            return Ok(Small::Wanted);
        }
        let (mut hasher, mut text, mut fits) = (RowHasher::default(), Text::default(), true);
        while self.copied(table, &mut hasher, &mut text).await? {
            if text.bytes.len() > MEMBER_BYTES {
                text.take();
                fits = false;
            }
        }
        self.stop(table, hasher.done.rows).await?;
        let fits = fits && text.bytes.len() <= MEMBER_BYTES;
        Ok(if fits { Small::Fits(text.take(), hasher.done) } else { Small::TooLarge })
    }

    /// Begins to copy. False where another process wants the table alone: it waits for this backup's lock, and a
    /// session that does not hold one would wait behind it.
    async fn start(&mut self, table: &Table, blocks: Option<Blocks>) -> Result<bool> {
        let mut sql = Vec::new();
        if self.locks == Locks::OwnEach && table.is_lockable() {
            // Indexes and TOAST tables are locked as rows are read: a REINDEX of one is waited for.
            sql.extend(b"SET LOCAL lock_timeout = '1s'; ");
            sql.extend(table.lock_sql());
            sql.extend(b"; SET LOCAL lock_timeout = 0; ");
        }
        sql.extend(table.copy_sql(blocks));
        if self.locks == Locks::OwnEach {
            sql.extend(b"; ROLLBACK TO SAVEPOINT pgark");
        }
        match self.session.copy_out(&sql).await {
            Ok(()) => Ok(true),
            Err(error) if self.locks == Locks::OwnEach && is_lock_timeout(&error) => {
                self.session.rows("ROLLBACK TO SAVEPOINT pgark").await?;
                Ok(false)
            }
            Err(error) => Err(of_table(error, table)),
        }
    }

    async fn copied(&mut self, table: &Table, hasher: &mut RowHasher, text: &mut Text) -> Result<bool> {
        let more = self.session.copied(|piece, ends| {
            hasher.piece(piece, ends);
            text.add(piece, ends);
        });
        more.await.map_err(|e| of_table(e, table))
    }

    /// Ends a copy; the server and we must have counted the same.
    async fn stop(&mut self, table: &Table, rows: u64) -> Result<()> {
        let said = self.session.copied_out().await.map_err(|e| of_table(e, table))?;
        if said == rows {
            return Ok(());
        }
        let message = format!(
            "the server says that it copied {said} rows of {}.{}, and {} came",
            table.schema, table.name, rows
        );
        Err(Error::new(ErrorKind::ConnectionLost, message))
    }
}

/// Rows as they come.
#[derive(Default)]
struct Text {
    bytes: BytesMut,
    /// Bytes of the rows that have ended.
    rows: usize,
}

impl Text {
    fn add(&mut self, piece: &[u8], ends: bool) {
        self.bytes.extend_from_slice(piece);
        if ends {
            self.rows = self.bytes.len();
        }
    }

    fn take(&mut self) -> Bytes {
        self.rows = 0;
        self.bytes.split().freeze()
    }

    /// The rows that have ended.
    fn take_rows(&mut self) -> Bytes {
        let rows = std::mem::take(&mut self.rows);
        self.bytes.split_to(rows).freeze()
    }
}

/// `lock_not_available`
fn is_lock_timeout(error: &Error) -> bool {
    error.sqlstate() == Some("55P03")
}

fn of_table(error: Error, table: &Table) -> Error {
    let text = error.to_string();
    let error = error.doing(format!("copying the rows of {}.{}", table.schema, table.name));
    // insufficient_privilege, with row_security = off; the user may read the table: it is locked already.
    if error.sqlstate() == Some("42501") {
        return error.with_hint(
            "where a policy hides rows from the user: use the table's owner, a superuser, or a role with BYPASSRLS",
        );
    }
    // program_limit_exceeded, out_of_memory, internal_error
    if error.sqlstate().is_some_and(|code| ["54000", "53200"].contains(&code))
        || text.contains("invalid memory alloc")
    {
        return error.with_hint(
            "a row of more than 1 GB as text cannot be copied: PostgreSQL's own limit; leave the table out with \
             --exclude-table-data, or split the value",
        );
    }
    error
}

/// What sessions share; locked for moments only.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
