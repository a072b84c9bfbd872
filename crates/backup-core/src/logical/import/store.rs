//! Where imported data go: parts of a backup.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, Result};
use crate::logical::archive::{
    BLOBS, CustomWriter, Entry, Rows, TERMINATOR, Toc, broken, damaged, unwritten,
};
use crate::logical::stock::{Object, Sink};
use crate::logical::{COPY, Chunk, LARGE_OBJECTS, LargeObjectsContents, PACK, TableContents, tar_writer};

/// A table, or large object, of up to so many bytes is held in memory until its length is known. A larger table gets
/// its own part; a larger object is read twice.
const SMALL: usize = 4 * 1024 * 1024;
/// A pack ends when it has so many bytes.
const PACK_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;
/// What an import takes at most: something small, and buffers of decoders.
pub(super) const WORKING_BYTES: usize = SMALL + 16 * 1024 * 1024;

/// The parts of the backup, on a thread that may block.
pub(super) struct Target {
    pub(super) parts: Arc<dyn PartSink>,
    pub(super) runtime: Handle,
    pub(super) cancel: CancellationToken,
}

impl Target {
    pub(super) fn open(&self, kind: &str, name: &str) -> Result<Part> {
        let spec = PartSpec { kind: kind.to_owned(), name: name.to_owned() };
        let writer = self.runtime.block_on(self.parts.open(spec))?;
        let (runtime, cancel) = (self.runtime.clone(), self.cancel.clone());
        Ok(Part { writer, runtime, cancel, bytes: 0, gathered: Vec::new() })
    }

    /// A part of a few bytes.
    pub(super) fn store(&self, kind: &str, name: &str, bytes: &[u8]) -> Result<u32> {
        let mut part = self.open(kind, name)?;
        part.add(bytes)?;
        part.end()
    }
}

/// A part being written.
pub(super) struct Part {
    writer: Box<dyn PartWriter>,
    runtime: Handle,
    cancel: CancellationToken,
    bytes: u64,
    /// Small pieces, until they are worth being handed on.
    gathered: Vec<u8>,
}

impl Part {
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE { self.hand_on() } else { Ok(()) }
    }

    /// Ends it, and gives its number.
    pub(super) fn end(mut self) -> Result<u32> {
        self.hand_on()?;
        self.runtime.block_on(self.writer.finish())
    }

    /// The same, for a part that is written as a file.
    pub(super) fn finish(self) -> io::Result<u32> {
        self.end().map_err(io::Error::other)
    }

    fn hand_on(&mut self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.gathered));
        if bytes.is_empty() { Ok(()) } else { self.runtime.block_on(self.writer.write(bytes)) }
    }

    /// Begins a member of a tar archive.
    fn member(&mut self, name: &str, bytes: u64) -> Result<()> {
        self.add(&tar_writer::member(name, bytes))
    }

    fn end_member(&mut self, bytes: u64) -> Result<()> {
        self.add(&tar_writer::filling(bytes))
    }

    fn end_tar(mut self) -> Result<u32> {
        self.add(&tar_writer::end())?;
        self.end()
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was stored.
pub(super) struct Stored {
    pub(super) tables: Vec<TableContents>,
    pub(super) objects: Option<LargeObjectsContents>,
    pub(super) bytes: u64,
}

/// Writes rows and large objects into parts.
pub(super) struct Writer<'a> {
    target: &'a Target,
    tables: Vec<TableContents>,
    /// The pack that is open, and the index of its first table.
    pack: Option<Part>,
    packed: Vec<usize>,
    packs: u32,
    objects: Option<Part>,
    found: LargeObjectsContents,
}

impl<'a> Writer<'a> {
    pub(super) fn new(target: &'a Target) -> Self {
        let found = LargeObjectsContents { parts: Vec::new(), count: 0, bytes: 0 };
        Self { target, tables: Vec::new(), pack: None, packed: Vec::new(), packs: 0, objects: None, found }
    }

    /// Ends all parts.
    pub(super) fn finish(mut self, toc: &Toc) -> Result<Stored> {
        self.end_pack()?;
        if let Some(part) = self.objects.take() {
            self.found.parts.push(part.end_tar()?);
        }
        let bytes = self.found.bytes + self.tables.iter().map(|table| table.bytes).sum::<u64>();
        let has_objects = toc.with_data(BLOBS).next().is_some();
        Ok(Stored { tables: self.tables, objects: has_objects.then_some(self.found), bytes })
    }

    fn end_pack(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let part = pack.end_tar()?;
        for index in self.packed.drain(..) {
            self.tables[index].chunks.iter_mut().for_each(|chunk| chunk.part = part);
        }
        Ok(())
    }

    /// Puts the rows of a small table into the pack.
    fn pack(&mut self, entry: i32, rows: &[u8]) -> Result<()> {
        if self.pack.is_none() {
            self.packs += 1;
            self.pack = Some(self.target.open(PACK, &format!("pack {}", self.packs))?);
        }
        if let Some(pack) = &mut self.pack {
            pack.member(&format!("{entry}.dat"), rows.len() as u64)?;
            pack.add(rows)?;
            pack.end_member(rows.len() as u64)?;
        }
        self.packed.push(self.tables.len());
        Ok(())
    }
}

impl Sink for Writer<'_> {
    fn table(&mut self, _: &Toc, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        let mut rows = Rows::new(data);
        let (mut small, mut large) = (Vec::new(), None::<Part>);
        while let Some(piece) = rows.next()? {
            if let Some(part) = &mut large {
                part.add(piece)?;
                continue;
            }
            small.extend_from_slice(piece);
            if small.len() > SMALL {
                let mut part = self.target.open(COPY, &format!("{}.dat", entry.id))?;
                part.add(&std::mem::take(&mut small))?;
                large = Some(part);
            }
        }
        let (found, bytes) = rows.found();
        let part = if let Some(part) = large {
            part.end()?
        } else {
            self.pack(entry.id, &small)?;
            // Its number is known when it ends.
            0
        };
        self.tables.push(TableContents {
            entry: entry.id,
            schema: entry.schema_text(),
            name: entry.name_text(),
            rows: found.rows,
            bytes,
            fingerprint: found.hex(),
            chunks: vec![Chunk { part, bytes, rows: found.rows }],
        });
        if self.pack.as_ref().is_some_and(|pack| pack.bytes >= PACK_BYTES) {
            self.end_pack()?;
        }
        Ok(())
    }

    fn object(&mut self, _: &Toc, mut object: Object<'_>) -> Result<()> {
        if self.objects.is_none() {
            self.objects = Some(self.target.open(LARGE_OBJECTS, "large objects")?);
        }
        let Some(part) = &mut self.objects else { return Ok(()) };
        let name = format!("blob_{}.dat", object.oid);
        let bytes = sized(&mut object, |bytes, data| {
            part.member(&name, bytes)?;
            let copied = copy(data, |piece| part.add(piece))?;
            if copied != bytes {
                return Err(damaged("it has another length when it is read again"));
            }
            part.end_member(bytes)
        })?;
        self.found.count += 1;
        self.found.bytes += bytes;
        Ok(())
    }
}

/// Copies data, and counts them.
fn copy(data: &mut dyn Read, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let (mut piece, mut bytes) = (vec![0; PIECE], 0);
    loop {
        let read = data.read(&mut piece).map_err(broken)?;
        if read == 0 {
            return Ok(bytes);
        }
        to(&piece[..read])?;
        bytes += read as u64;
    }
}

/// Finds out how long a large object is, and gives it to `write`. One that is not small is read twice.
fn sized(object: &mut Object<'_>, write: impl FnOnce(u64, &mut dyn Read) -> Result<()>) -> Result<u64> {
    if let Some(bytes) = object.bytes {
        return write(bytes, object.data).map(|()| bytes);
    }
    let (mut small, mut bytes) = (Vec::new(), 0);
    copy(object.data, |piece| {
        bytes += piece.len() as u64;
        if bytes <= SMALL as u64 {
            small.extend_from_slice(piece);
        }
        Ok(())
    })?;
    if bytes <= SMALL as u64 {
        write(bytes, &mut &small[..])?;
    } else {
        drop(small);
        write(bytes, &mut *(object.again)()?)?;
    }
    Ok(bytes)
}

/// Writes everything into one archive.
pub(super) struct Whole<'a> {
    writer: CustomWriter<Part>,
    holders: HashMap<u32, i32>,
    only: Option<i32>,
    target: &'a Target,
}

impl<'a> Whole<'a> {
    pub(super) fn new(writer: CustomWriter<Part>, toc: &Toc, target: &'a Target) -> Self {
        Self { writer, holders: toc.holders(), only: toc.only_holder(), target }
    }

    pub(super) fn finish(self) -> Result<(Part, Toc)> {
        self.writer.finish()
    }
}

impl Sink for Whole<'_> {
    fn table(&mut self, _: &Toc, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        let cancel = self.target.cancel.clone();
        self.writer.rows(entry.id, |to| {
            if entry.copy.is_none() {
                return copy(data, |piece| to.write_all(piece).map_err(unwritten)).map(drop);
            }
            let mut rows = Rows::new(data);
            while let Some(piece) = rows.next()? {
                if cancel.is_cancelled() {
                    return Err(Error::cancelled());
                }
                to.write_all(piece).map_err(unwritten)?;
            }
            to.write_all(TERMINATOR).map_err(unwritten)
        })
    }

    fn object(&mut self, _: &Toc, object: Object<'_>) -> Result<()> {
        let entry = object.entry.or_else(|| self.holders.get(&object.oid).copied()).or(self.only);
        let entry = entry.ok_or_else(|| damaged("it belongs to no entry"))?;
        self.writer.object(entry, object.oid, |to| {
            copy(object.data, |piece| to.write_all(piece).map_err(unwritten)).map(drop)
        })
    }
}
