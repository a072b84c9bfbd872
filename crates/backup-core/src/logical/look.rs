//! Reads the parts of a logical backup through: rows are counted and fingerprinted, and compared with its contents.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::archive::TocReader;
use super::contents::{LogicalContents, TableContents};
use super::pieces::object_of;
use super::{COPY, Fingerprint, LARGE_OBJECTS, PACK, RowHasher, TOC};
use crate::dumper::SourceContents;
use crate::error::{Error, ErrorKind, Result};
use crate::tar_reader::{Piece, Reader};

/// Rows that were read.
#[derive(Default, Clone, Copy)]
struct Sum {
    rows: Fingerprint,
    bytes: u64,
    chunks: usize,
}

#[derive(Default)]
struct Sums {
    /// By database and entry.
    tables: HashMap<(usize, i32), Sum>,
    /// By part: how many large objects, and their bytes.
    objects: BTreeMap<u32, (u64, u64)>,
}

/// What was read of the rows of a backup.
pub(crate) struct RowsRead {
    contents: LogicalContents,
    /// The database and the table that a part's rows are of; packs have several tables.
    parts: HashMap<u32, (usize, i32)>,
    sums: Mutex<Sums>,
}

impl RowsRead {
    /// For a backup's contents; nothing where they say nothing of tables.
    pub(crate) fn of(contents: &SourceContents) -> Result<Option<Arc<Self>>> {
        let Some(contents) = LogicalContents::from_contents(contents)? else { return Ok(None) };
        let mut parts = HashMap::new();
        for (number, database) in contents.databases.iter().enumerate() {
            for table in &database.tables {
                parts.extend(table.chunks.iter().map(|chunk| (chunk.part, (number, table.entry))));
            }
        }
        Ok(Some(Arc::new(Self { contents, parts, sums: Mutex::default() })))
    }

    /// What reads a part; nothing for one that has no form of its own.
    pub(crate) fn look(self: &Arc<Self>, part: u32, kind: &str) -> Option<RowsLook> {
        let what = match kind {
            TOC => What::Toc(TocReader::default()),
            COPY => What::Rows(RowHasher::default(), 0),
            PACK | LARGE_OBJECTS => {
                What::Tar { reader: Reader::default(), member: None, objects: kind == LARGE_OBJECTS }
            }
            _ => return None,
        };
        Some(RowsLook { read: Arc::clone(self), part, what, objects: (0, 0) })
    }

    fn add(&self, of: (usize, i32), rows: Fingerprint, bytes: u64) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = sums.tables.entry(of).or_default();
        sum.rows.add_all(rows);
        sum.bytes += bytes;
        sum.chunks += 1;
    }

    /// Compares what was read with what the contents say. Tables of which not all was read are passed over. Each
    /// finding with a part that it is in.
    pub(crate) fn compare(&self) -> Vec<(u32, String)> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for (number, database) in self.contents.databases.iter().enumerate() {
            for table in &database.tables {
                let sum = sums.tables.get(&(number, table.entry)).copied().unwrap_or_default();
                let part = table.chunks.first().map_or(database.toc, |chunk| chunk.part);
                if sum.chunks == table.chunks.len()
                    && let Some(why) = differs(table, &sum)
                {
                    found.push((part, why));
                }
            }
            let Some(objects) = &database.large_objects else { continue };
            let read: Vec<_> = objects.parts.iter().filter_map(|part| sums.objects.get(part)).collect();
            let (count, bytes) = read.iter().fold((0, 0), |(c, b), (count, bytes)| (c + count, b + bytes));
            if read.len() == objects.parts.len() && (count, bytes) != (objects.count, objects.bytes) {
                let part = objects.parts.first().copied().unwrap_or(database.toc);
                let (wanted, long) = (objects.count, objects.bytes);
                found.push((
                    part,
                    format!("{count} large objects of {bytes} bytes instead of {wanted} of {long}"),
                ));
            }
        }
        found
    }
}

fn differs(table: &TableContents, sum: &Sum) -> Option<String> {
    let name = format!("{}.{}", table.schema, table.name);
    if (sum.rows.rows, sum.bytes) != (table.rows, table.bytes) {
        let (rows, bytes) = (sum.rows.rows, sum.bytes);
        return Some(format!(
            "table {name} has {rows} rows in {bytes} bytes instead of {} in {}",
            table.rows, table.bytes
        ));
    }
    (sum.rows.hex() != table.fingerprint)
        .then(|| format!("the rows of table {name} do not have the fingerprint of those that were backed up"))
}

enum What {
    Toc(TocReader),
    Rows(RowHasher, u64),
    Tar { reader: Reader, member: Option<(i32, RowHasher, u64)>, objects: bool },
}

/// Reads one part.
pub(crate) struct RowsLook {
    read: Arc<RowsRead>,
    part: u32,
    what: What,
    objects: (u64, u64),
}

impl RowsLook {
    /// Takes bytes of the part.
    pub(crate) fn take(&mut self, bytes: Bytes) -> Result<()> {
        match &mut self.what {
            What::Toc(reader) => reader.push(&bytes).map(drop)?,
            What::Rows(rows, length) => {
                rows.text(&bytes);
                *length += bytes.len() as u64;
            }
            What::Tar { reader, member, objects } => {
                reader.push(bytes);
                while let Some(piece) = reader.next()? {
                    match piece {
                        Piece::Member(header) => {
                            let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
                            let strange = || {
                                Error::new(ErrorKind::Integrity, format!("{name} does not belong into it"))
                            };
                            if *objects {
                                object_of(&name).ok_or_else(strange)?;
                                self.objects.0 += 1;
                                continue;
                            }
                            if let Some(done) = member.take() {
                                end_member(&self.read, self.part, done);
                            }
                            let entry = name.strip_suffix(".dat").and_then(|entry| entry.parse().ok());
                            *member = Some((entry.ok_or_else(strange)?, RowHasher::default(), 0));
                        }
                        Piece::Data(data) if *objects => self.objects.1 += data.len() as u64,
                        Piece::Data(data) => {
                            if let Some((_, rows, length)) = member {
                                rows.text(&data);
                                *length += data.len() as u64;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The end of the part.
    pub(crate) fn finish(self) -> Result<()> {
        match self.what {
            What::Toc(reader) => reader.finish().map(drop),
            What::Rows(rows, bytes) => {
                if let Some(of) = self.read.parts.get(&self.part) {
                    self.read.add(*of, rows.done, bytes);
                }
                Ok(())
            }
            What::Tar { reader, member, objects } => {
                reader.finish()?;
                if !reader.has_ended() {
                    return Err(Error::new(ErrorKind::Integrity, "it is a tar archive without an end"));
                }
                if let Some(done) = member {
                    end_member(&self.read, self.part, done);
                }
                if objects {
                    let mut sums = self.read.sums.lock().unwrap_or_else(PoisonError::into_inner);
                    sums.objects.insert(self.part, self.objects);
                }
                Ok(())
            }
        }
    }
}

fn end_member(read: &RowsRead, part: u32, (entry, rows, bytes): (i32, RowHasher, u64)) {
    if let Some((database, _)) = read.parts.get(&part) {
        read.add((*database, entry), rows.done, bytes);
    }
}
