//! Cuts relation files into blocks as they come, writes their digests into a map, and leaves out what a parent has.

use std::io::{self, Write};

use bytes::Bytes;
use tar::{EntryType, Header};

use super::list::{Entry, Stored, listed_mode, listed_path};
use super::map::{BlockHash, BlockMap, HASH_BYTES, MapKey, MapWriter, MappedFile};
use super::window::{WINDOW_BLOCKS, Window};
use super::{BLOCKS, FILES};
use crate::error::{Error, Result};
use crate::physical::relation::is_relation;
use crate::repository::Digest;
use crate::tar_reader::Piece;

/// Goes over a base backup. It works in memory that does not depend on the size of files: one window, and in an
/// increment the list.
pub(in super::super) struct Comparer<W: Write> {
    key: MapKey,
    block_bytes: u32,
    map: Option<MapWriter<W>>,
    map_error: Option<io::Error>,
    parent: Option<BlockMap>,
    list: Vec<u8>,
    archive: String,
    /// The relation file whose bytes come; another one's are passed on as they are.
    file: Option<RelationFile>,
    /// The beginning of a block whose rest has not come yet.
    partial: Vec<u8>,
}

/// What a [`Comparer`] made.
pub(in super::super) struct Compared<W> {
    /// The map and its digest; none where it could not be written.
    pub(in super::super) map: Option<(W, Digest)>,
    /// Why there is no map.
    pub(in super::super) map_error: Option<io::Error>,
    /// The list of an increment.
    pub(in super::super) list: Vec<u8>,
}

struct RelationFile {
    path: Vec<u8>,
    bytes: u64,
    /// Number of the next block.
    next: u32,
    /// The same file in the parent; where there is none, the file is stored whole.
    parent: Option<MappedFile>,
    /// Digests of the parent's blocks from this number on.
    known: (u32, Vec<u8>),
    /// The blocks that differ.
    window: Vec<u32>,
    blocks: Vec<u8>,
    windows: u32,
}

impl<W: Write> Comparer<W> {
    /// Without a map (its file could not be made) it only compares; without a parent it only makes the map.
    pub(super) fn new(key: MapKey, block_bytes: u32, map: Option<W>, parent: Option<BlockMap>) -> Self {
        let (map, map_error) = match map.map(|out| MapWriter::new(out, block_bytes)).transpose() {
            Ok(map) => (map, None),
            Err(error) => (None, Some(error)),
        };
        Self {
            key,
            block_bytes,
            map,
            map_error,
            parent,
            list: Vec::new(),
            archive: String::new(),
            file: None,
            partial: Vec::new(),
        }
    }

    /// Whether it makes an increment.
    pub(in super::super) fn is_increment(&self) -> bool {
        self.parent.is_some()
    }

    /// Stores everything: there is no parent after all.
    pub(in super::super) fn forget_parent(&mut self) {
        self.parent = None;
    }

    /// Begins an archive: `base`, or the OID of a tablespace.
    pub(super) fn archive(&mut self, name: &str) {
        name.clone_into(&mut self.archive);
    }

    /// Goes over a piece of the archive; what is to be stored comes after what `out` has.
    ///
    /// It works where it is called, not on a thread of its own: the bytes have just come, and are in this core's cache.
    /// Handing them to another core and back cost more than the digests do.
    pub(super) fn piece(&mut self, piece: Piece, out: &mut Vec<Piece>) -> Result<()> {
        match piece {
            Piece::Member(header) => self.member(header, out),
            Piece::Data(data) => self.data(data, out),
        }
    }

    pub(in super::super) fn finish(self) -> Compared<W> {
        let (map, map_error) = match self.map.map(MapWriter::finish).transpose() {
            Ok(map) => (map, self.map_error),
            Err(error) => (None, Some(error)),
        };
        Compared { map, map_error, list: self.list }
    }

    fn member(&mut self, header: Box<Header>, out: &mut Vec<Piece>) -> Result<()> {
        self.file = None;
        let path = listed_path(&header);
        let bytes =
            header.entry_size().map_err(|e| Error::internal("a member without a size").caused_by(e))?;
        let regular = header.entry_type() == EntryType::Regular;
        let mut parent = None;
        if regular && is_relation(&self.archive, &path) && bytes.is_multiple_of(self.block_bytes.into()) {
            let name = [self.archive.as_bytes(), b"/", &path].concat();
            self.map_do(|map| map.file(&name, bytes));
            // Where the parent's map cannot be read the file is stored whole, which is always right.
            parent = self.parent.as_ref().and_then(|map| map.find(&name).ok().flatten());
            self.file = Some(RelationFile {
                path: path.clone(),
                bytes,
                next: 0,
                parent,
                known: (0, Vec::new()),
                window: Vec::new(),
                blocks: Vec::new(),
                windows: 0,
            });
        }
        if self.parent.is_none() {
            out.push(Piece::Member(header));
            return Ok(());
        }
        let stored = match header.entry_type() {
            EntryType::Directory => Stored::Folder,
            EntryType::Regular if parent.is_some() => Stored::Blocks,
            EntryType::Regular => Stored::Whole,
            // Links to tablespaces: the contents have their list.
            _ => return Ok(()),
        };
        if !path.is_empty() {
            let mode = listed_mode(&header);
            Entry { stored, mode, bytes, archive: &self.archive, path: &path }.write(&mut self.list);
        }
        if stored == Stored::Whole {
            out.push(Piece::Member(below_files(header)?));
        }
        Ok(())
    }

    fn data(&mut self, data: Bytes, out: &mut Vec<Piece>) -> Result<()> {
        let Some(file) = &self.file else {
            out.push(Piece::Data(data));
            return Ok(());
        };
        if file.parent.is_none() {
            out.push(Piece::Data(data.clone()));
        }
        let block_bytes = self.block_bytes as usize;
        let mut rest = &data[..];
        if !self.partial.is_empty() {
            let (begin, after) = rest.split_at(rest.len().min(block_bytes - self.partial.len()));
            self.partial.extend_from_slice(begin);
            rest = after;
            if self.partial.len() == block_bytes {
                let mut block = std::mem::take(&mut self.partial);
                self.block(&block, out)?;
                block.clear();
                self.partial = block;
            }
        }
        let mut blocks = rest.chunks_exact(block_bytes);
        for block in &mut blocks {
            self.block(block, out)?;
        }
        self.partial.extend_from_slice(blocks.remainder());
        Ok(())
    }

    fn block(&mut self, block: &[u8], out: &mut Vec<Piece>) -> Result<()> {
        let hash = self.key.hash(block);
        self.map_do(|map| map.block(hash));
        let (Some(file), Some(map)) = (&mut self.file, &self.parent) else { return Ok(()) };
        let number = file.next;
        file.next += 1;
        if file.parent.is_some() {
            if !file.is_known(map, number, hash) {
                file.window.push(number);
                file.blocks.extend_from_slice(block);
            }
            let last = u64::from(file.next) * u64::from(self.block_bytes) == file.bytes;
            if file.window.len() == WINDOW_BLOCKS || (last && !file.window.is_empty()) {
                let (header, head, blocks) = file.take_window(self.block_bytes)?;
                out.extend([Piece::Member(header), Piece::Data(head), Piece::Data(blocks)]);
            }
        }
        Ok(())
    }

    fn map_do(&mut self, work: impl FnOnce(&mut MapWriter<W>) -> io::Result<()>) {
        if let Some(map) = &mut self.map
            && let Err(error) = work(map)
        {
            self.map = None;
            self.map_error = Some(error);
        }
    }
}

impl RelationFile {
    /// Whether the parent has this block at this place. A block beyond the parent's length is not known.
    fn is_known(&mut self, map: &BlockMap, number: u32, hash: BlockHash) -> bool {
        let Some(parent) = self.parent else { return false };
        let window = u32::try_from(WINDOW_BLOCKS).unwrap_or(u32::MAX);
        if number.is_multiple_of(window) {
            // Blocks whose digests cannot be read are stored.
            self.known = (number, map.hashes(parent, number.into(), WINDOW_BLOCKS).unwrap_or_default());
        }
        let at = (number - self.known.0) as usize * HASH_BYTES;
        self.known.1.get(at..at + HASH_BYTES) == Some(&hash)
    }

    /// Ends a window.
    fn take_window(&mut self, block_bytes: u32) -> Result<(Box<Header>, Bytes, Bytes)> {
        let window = Window { block_bytes, file_bytes: self.bytes, blocks: std::mem::take(&mut self.window) };
        self.windows += 1;
        let path = format!("{BLOCKS}/{}/{}", String::from_utf8_lossy(&self.path), self.windows);
        let mut header = Header::new_ustar();
        header.set_path(path).map_err(|e| Error::internal("a relation's name is too long").caused_by(e))?;
        header.set_size(window.bytes());
        header.set_mode(0o600);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        Ok((Box::new(header), window.head().into(), std::mem::take(&mut self.blocks).into()))
    }
}

/// The header of a member, below the folder of whole files.
fn below_files(mut header: Box<Header>) -> Result<Box<Header>> {
    let no_room = || Error::internal("a file's name has no room for another folder");
    let ustar = header.as_ustar_mut().ok_or_else(no_room)?;
    let used = ustar.prefix.iter().position(|b| *b == 0).unwrap_or(ustar.prefix.len());
    let prefix = match used {
        0 => FILES.as_bytes().to_vec(),
        used => [FILES.as_bytes(), b"/", &ustar.prefix[..used]].concat(),
    };
    let room = ustar.prefix.get_mut(..prefix.len()).ok_or_else(no_room)?;
    room.copy_from_slice(&prefix);
    header.set_cksum();
    Ok(header)
}
