//! A session that copies rows into parts.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

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
const PIECE_BYTES: usize = 1024 * 1024;
/// Rows of a table in a pack are collected first: a member's header says its size.
const MEMBER_BYTES: usize = 4 * PIECE_BYTES;

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
}

/// Rows of a table, or of a chunk, that are stored.
pub(super) struct Done {
    pub(super) table: usize,
    pub(super) number: usize,
    pub(super) chunk: Option<Chunk>,
    pub(super) rows: Fingerprint,
}

/// What came of copying a table into a pack.
enum Small {
    Fits(BytesMut, Fingerprint),
    /// It is larger as text than the server counts.
    TooLarge,
    /// Another process wants it alone, and has to wait until the backup is done.
    Wanted,
}

impl Worker {
    pub(super) fn new(session: CopySession, locks: Locks, work: Arc<Work>, parts: Arc<dyn PartSink>) -> Self {
        Self { session, locks, work, parts }
    }

    /// Takes tasks until there are none.
    pub(super) async fn run(mut self) -> Result<()> {
        if self.locks == Locks::OwnEach {
            self.session.rows("SAVEPOINT pgark").await?;
        }
        while let Some(task) = self.work.next(self.locks) {
            self.task(task).await?;
        }
        self.session.close().await;
        Ok(())
    }

    async fn task(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Rows { table, blocks, chunk } => self.rows(table, blocks, chunk).await,
            Task::Pack(tables) => self.pack(tables).await,
            Task::LargeObjects { from, to } => {
                let done = large_objects::copy(&mut self.session, &*self.parts, from, to).await?;
                self.work.large_objects(done);
                Ok(())
            }
        }
    }

    /// Copies rows into a part of their own.
    async fn rows(&mut self, number: usize, blocks: Option<Blocks>, chunk: usize) -> Result<()> {
        let work = Arc::clone(&self.work);
        let table = &work.tables[number];
        if !self.start(table, blocks).await? {
            self.work.leave(Task::Rows { table: number, blocks, chunk });
            return Ok(());
        }
        let name = format!("{}.{}", table.schema, table.name);
        let mut part: Option<Box<dyn PartWriter>> = None;
        let (mut hasher, mut collected, mut bytes) = (RowHasher::default(), BytesMut::new(), 0_u64);
        loop {
            let more = self.copied(table, &mut hasher, &mut collected).await?;
            if collected.len() >= PIECE_BYTES || (!more && !collected.is_empty()) {
                let piece = collected.split().freeze();
                bytes += piece.len() as u64;
                let part = match &mut part {
                    Some(part) => part,
                    None => part.insert(
                        self.parts.open(PartSpec { kind: COPY.to_owned(), name: name.clone() }).await?,
                    ),
                };
                part.write(piece).await?;
            }
            if !more {
                break;
            }
        }
        self.stop(table, hasher.done).await?;
        let chunk_rows = hasher.done.rows;
        let stored = match part {
            Some(part) => Some(Chunk { part: part.finish().await?, bytes, rows: chunk_rows }),
            None => None,
        };
        self.work.done(Done { table: number, number: chunk, chunk: stored, rows: hasher.done });
        Ok(())
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
                    self.work.done(Done { table: number, number: 0, chunk: None, rows });
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
                    part.write(text.freeze()).await?;
                    part.write(tar_writer::filling(bytes)).await?;
                    members.push((number, bytes, rows));
                }
                Small::TooLarge => self.work.put_back(Task::Rows { table: number, blocks: None, chunk: 0 }),
                Small::Wanted => self.work.leave(Task::Rows { table: number, blocks: None, chunk: 0 }),
            }
        }
        let Some(mut part) = part else { return Ok(()) };
        part.write(tar_writer::end()).await?;
        let part = part.finish().await?;
        for (table, bytes, rows) in members {
            let chunk = Some(Chunk { part, bytes, rows: rows.rows });
            self.work.done(Done { table, number: 0, chunk, rows });
        }
        Ok(())
    }

    async fn small(&mut self, table: &Table) -> Result<Small> {
        if !self.start(table, None).await? {
            return Ok(Small::Wanted);
        }
        let (mut hasher, mut text, mut fits) = (RowHasher::default(), BytesMut::new(), true);
        while self.copied(table, &mut hasher, &mut text).await? {
            if text.len() > MEMBER_BYTES {
                text.clear();
                fits = false;
            }
        }
        self.stop(table, hasher.done).await?;
        Ok(if fits && text.len() <= MEMBER_BYTES { Small::Fits(text, hasher.done) } else { Small::TooLarge })
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

    async fn copied(&mut self, table: &Table, hasher: &mut RowHasher, text: &mut BytesMut) -> Result<bool> {
        let more = self.session.copied(|piece, ends| {
            hasher.piece(piece, ends);
            text.extend_from_slice(piece);
        });
        more.await.map_err(|e| of_table(e, table))
    }

    /// Ends a copy; the server and we must have counted the same.
    async fn stop(&mut self, table: &Table, rows: Fingerprint) -> Result<()> {
        let said = self.session.copied_out().await.map_err(|e| of_table(e, table))?;
        if said == rows.rows {
            return Ok(());
        }
        let message = format!(
            "the server says that it copied {said} rows of {}.{}, and {} came",
            table.schema, table.name, rows.rows
        );
        Err(Error::new(ErrorKind::ConnectionLost, message))
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

/// Gives a part bytes that are borrowed.
pub(super) async fn write(part: &mut dyn PartWriter, bytes: &[u8]) -> Result<()> {
    part.write(Bytes::copy_from_slice(bytes)).await
}
