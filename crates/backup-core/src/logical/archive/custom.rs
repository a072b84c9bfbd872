//! The data of a custom archive (`pg_backup_custom.c`, PostgreSQL 15 to 18): blocks behind the table of contents.
//!
//! A block is a byte that says what it is, the number of its entry, and chunks: a length, and so many bytes. A chunk of
//! length 0 ends the data. Of large objects each has its OID before its chunks, and OID 0 ends the block.

use std::borrow::BorrowMut;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;

use super::codec::{Encoder, Method, Within, decoder};
use super::{CUSTOM, Place, Toc, TocReader};
use crate::error::{Error, ErrorKind, Result};

/// `BLK_DATA`
const ROWS: u8 = 1;
/// `BLK_BLOBS`
const OBJECTS: u8 = 3;
/// Bytes of a chunk that is written.
const CHUNK: usize = 64 * 1024;
/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// Rows of a table.
    Rows(i32),
    /// Large objects.
    Objects(i32),
}

/// Reads the blocks of a custom archive, one after the other.
pub(crate) struct Blocks<R> {
    from: R,
    position: u64,
    int_size: u8,
    method: Method,
}

/// The table of contents, and a reader that stands behind it.
pub(crate) fn open<'a>(mut from: impl Read + 'a) -> Result<(Toc, Blocks<Box<dyn BufRead + 'a>>)> {
    let mut reader = TocReader::default();
    let (mut piece, mut position) = (vec![0; READ_BYTES], 0);
    loop {
        let read = from.read(&mut piece).map_err(broken)?;
        position += read as u64;
        if reader.push(&piece[..read])? || read == 0 {
            break;
        }
    }
    let (toc, beyond) = reader.finish()?;
    if toc.header.format != CUSTOM {
        return Err(damaged("it is not in custom format"));
    }
    let position = position - beyond.len() as u64;
    let from = BufReader::with_capacity(READ_BYTES, io::Cursor::new(beyond).chain(from));
    let blocks = Blocks::new(&toc, Box::new(from) as Box<dyn BufRead>, position)?;
    Ok((toc, blocks))
}

impl<R: BufRead> Blocks<R> {
    /// Reads blocks, or data of one, of an archive from `position` on.
    pub(crate) fn new(toc: &Toc, from: R, position: u64) -> Result<Self> {
        Ok(Self { from, position, int_size: toc.header.int_size, method: Method::of(&toc.header)? })
    }

    /// Bytes of the archive before what is read next.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next block, with its offset. That before must have been read to its end.
    pub(crate) fn next_block(&mut self) -> Result<Option<(Block, u64)>> {
        let offset = self.position;
        if self.from.fill_buf().map_err(broken)?.is_empty() {
            return Ok(None);
        }
        let kind = self.byte().map_err(broken)?;
        let entry = self.int().map_err(broken)?;
        match kind {
            ROWS => Ok(Some((Block::Rows(entry), offset))),
            OBJECTS => Ok(Some((Block::Objects(entry), offset))),
            _ => Err(damaged(&format!("at byte {offset} there is no block of data"))),
        }
    }

    /// The OID of the next large object of a block.
    pub(crate) fn next_object(&mut self) -> Result<Option<u32>> {
        let oid = self.int().map_err(broken)?.cast_unsigned();
        Ok((oid != 0).then_some(oid))
    }

    /// The data of a table or of a large object.
    pub(crate) fn data(&mut self) -> Result<Box<dyn Read + '_>> {
        data(self)
    }

    /// The same, where the reader serves for nothing else.
    pub(crate) fn into_data<'a>(self) -> Result<Box<dyn Read + 'a>>
    where
        R: 'a,
    {
        data(self)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        self.position += 1;
        Ok(byte[0])
    }

    /// `ReadInt`
    fn int(&mut self) -> io::Result<i32> {
        let negative = self.byte()? != 0;
        let mut value = 0_u64;
        for i in 0..self.int_size {
            value |= u64::from(self.byte()?) << (8 * u32::from(i.min(7)));
        }
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        i32::try_from(if negative { -value } else { value })
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a number is too large"))
    }
}

fn data<'a, R: BufRead + 'a>(blocks: impl BorrowMut<Blocks<R>> + 'a) -> Result<Box<dyn Read + 'a>> {
    let method = blocks.borrow().method;
    let chunks = Chunks { blocks, left: 0, ended: false, from: PhantomData };
    let buffer = if method == Method::None { 4096 } else { READ_BYTES };
    decoder(method, Within::Blocks, BufReader::with_capacity(buffer, chunks)).map_err(broken)
}

/// The chunks of one data, joined.
struct Chunks<R, B> {
    blocks: B,
    left: usize,
    ended: bool,
    from: PhantomData<R>,
}

impl<R: BufRead, B: BorrowMut<Blocks<R>>> Read for Chunks<R, B> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        let blocks = self.blocks.borrow_mut();
        if self.left == 0 {
            let length = blocks.int()?;
            let negative = |_| io::Error::new(io::ErrorKind::InvalidData, "a length is negative");
            self.left = usize::try_from(length).map_err(negative)?;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let most = out.len().min(self.left);
        let read = blocks.from.read(&mut out[..most])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a chunk"));
        }
        self.left -= read;
        blocks.position += read as u64;
        Ok(read)
    }
}

/// An error of reading an archive, as it is meant: damaged, unless the system or the caller's own reader failed.
pub(crate) fn broken(error: io::Error) -> Error {
    if is_own(&error) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
        return inner.map_or_else(|| Error::internal("an error without its cause"), |inner| *inner);
    }
    if error.raw_os_error().is_some() {
        return Error::io("reading an archive of pg_dump", error);
    }
    let why = if error.kind() == io::ErrorKind::UnexpectedEof {
        "it is cut"
    } else {
        "its data cannot be decompressed"
    };
    damaged(why).caused_by(error)
}

/// Whether it carries an error of this crate.
fn is_own(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<Error>())
}

/// The error of an archive that makes no sense.
pub(crate) fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("the archive of pg_dump is damaged: {why}"))
        .with_hint("take another copy of the file, or dump the database again")
}

/// Writes a custom archive. It is whole only after [`CustomWriter::finish`].
pub(crate) struct CustomWriter<W> {
    to: W,
    toc: Toc,
    method: Method,
    threads: u32,
    position: u64,
    /// The block of large objects that is open.
    objects: Option<i32>,
}

impl<W: Write> CustomWriter<W> {
    /// Writes the table of contents, without offsets. `toc` may be that of a directory.
    pub(crate) fn new(mut to: W, toc: &Toc, method: Method, threads: u32) -> Result<Self> {
        method.check(toc.header.minor())?;
        let toc = toc.as_custom(method);
        let head = toc.to_bytes();
        to.write_all(&head).map_err(unwritten)?;
        Ok(Self { to, toc, method, threads, position: head.len() as u64, objects: None })
    }

    /// Writes what `fill` gives as the data of a table's entry.
    pub(crate) fn rows(&mut self, entry: i32, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        self.begin(entry, ROWS)?;
        self.data(fill)
    }

    /// The same for a large object. Those of an entry stand together.
    pub(crate) fn object(
        &mut self,
        entry: i32,
        oid: u32,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        if self.objects != Some(entry) {
            self.begin(entry, OBJECTS)?;
            self.objects = Some(entry);
        }
        self.int(oid.cast_signed())?;
        self.data(fill)
    }

    /// Ends the data, and gives back where they went and the table of contents with the offsets.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where an entry has no data.
    pub(crate) fn finish(mut self) -> Result<(W, Toc)> {
        self.end_objects()?;
        if let Some(entry) = self.toc.entries.iter().find(|entry| entry.place == Place::Custom(None)) {
            return Err(damaged(&format!("there are no data of {} {}", entry.kind, entry.name_text())));
        }
        self.to.flush().map_err(unwritten)?;
        Ok((self.to, self.toc))
    }

    fn begin(&mut self, id: i32, kind: u8) -> Result<()> {
        self.end_objects()?;
        let place = Place::Custom(Some(self.position));
        let entry = self.toc.entries.iter_mut().find(|entry| entry.id == id);
        match entry {
            Some(entry) if entry.place == Place::Custom(None) => entry.place = place,
            _ => return Err(damaged(&format!("the data of entry {id} come twice, or belong to none"))),
        }
        self.write(&[kind])?;
        self.int(id)
    }

    fn end_objects(&mut self) -> Result<()> {
        if self.objects.take().is_some() { self.int(0) } else { Ok(()) }
    }

    fn data(&mut self, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let (method, threads) = (self.method, self.threads);
        let chunks = ChunkWriter { to: self, buffer: Vec::with_capacity(CHUNK) };
        let mut encoder = Encoder::new(method, Within::Blocks, threads, chunks).map_err(unwritten)?;
        fill(&mut encoder)?;
        let mut chunks = encoder.finish().map_err(unwritten)?;
        chunks.end().map_err(unwritten)?;
        self.int(0)
    }

    fn int(&mut self, value: i32) -> Result<()> {
        let bytes = super::write::int(value, self.toc.header.int_size);
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.position += bytes.len() as u64;
        self.to.write_all(bytes).map_err(unwritten)
    }
}

/// Writes the offsets into an archive that was written to the beginning of a file.
pub(crate) fn set_offsets(file: &mut (impl Write + Seek), toc: &Toc) -> Result<()> {
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&toc.to_bytes())).map_err(unwritten)
}

struct ChunkWriter<'a, W> {
    to: &'a mut CustomWriter<W>,
    buffer: Vec<u8>,
}

impl<W: Write> ChunkWriter<'_, W> {
    fn end(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = i32::try_from(self.buffer.len()).map_err(io::Error::other)?;
        let written = self.to.int(length).and_then(|()| self.to.write(&self.buffer));
        self.buffer.clear();
        written.map_err(io::Error::other)
    }
}

impl<W: Write> Write for ChunkWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.end()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error of writing: that of the writer's own, or the system's.
pub(crate) fn unwritten(error: io::Error) -> Error {
    if is_own(&error) {
        return broken(error);
    }
    Error::io("writing the dump", error)
}
