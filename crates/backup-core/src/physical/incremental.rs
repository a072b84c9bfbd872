//! Lays an increment of the server's own over the data directory that its predecessor left.
//!
//! A file `INCREMENTAL.<name>` (`sendFile` in `basebackup.c`, `reconstruct.c` of `pg_combinebackup`, PostgreSQL 17 and
//! 18) begins with four-byte numbers in the server's byte order: a magic number, how many blocks there are, the length
//! in blocks to which the predecessor is cut, and the blocks' numbers; zeros fill it up to a whole block where there are
//! any. The blocks follow.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::{EntryType, Header};

use super::blocks::{BlocksWriter, damaged};
use super::increment::made_path;
use super::unpack::{Unpacker, below};
use crate::error::Result;
use crate::tar_reader::{Piece, Reader};

const MAGIC: u32 = 0xd3ae_1f0d;
/// Length of what stands before the numbers.
const FIXED: usize = 12;
/// Blocks of a file at most: no segment of a relation has more (`RELSEG_SIZE` of the smallest blocks, 1 GiB of 1 KiB).
const MOST_BLOCKS: usize = 1 << 20;

/// Unpacks an archive of a server's increment.
pub(super) struct IncrementalUnpacker {
    files: Unpacker,
    reader: Reader,
    block_bytes: u32,
    /// The incremental file whose bytes come; those of others are of a whole one.
    blocks: Option<Overlay>,
}

/// An incremental file.
struct Overlay {
    /// The file that is changed.
    path: PathBuf,
    block_bytes: u32,
    /// What stands before the blocks, while it is not all there.
    head: Vec<u8>,
    writer: Option<BlocksWriter>,
}

impl IncrementalUnpacker {
    /// `files` takes the whole ones. The server's blocks have `block_bytes`.
    pub(super) fn new(files: Unpacker, block_bytes: u32) -> Self {
        Self { files, reader: Reader::default(), block_bytes, blocks: None }
    }

    pub(super) fn take(&mut self, bytes: Bytes) -> Result<()> {
        self.reader.push(bytes);
        while let Some(piece) = self.reader.next()? {
            match (piece, &mut self.blocks) {
                (Piece::Member(header), _) => self.member(&header)?,
                (Piece::Data(data), Some(blocks)) => blocks.take(&data)?,
                (Piece::Data(data), None) => self.files.write(&data)?,
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.end()?;
        self.reader.finish()
    }

    fn end(&mut self) -> Result<()> {
        if let Some(blocks) = self.blocks.take() {
            self.files.counts().add_written(blocks.finish()?);
        }
        self.files.end()
    }

    fn member(&mut self, header: &Header) -> Result<()> {
        self.end()?;
        match made_path(&header.path_bytes()).filter(|_| header.entry_type() == EntryType::Regular) {
            Some(path) => {
                let path = self.files.folder().join(below(&path)?);
                self.blocks =
                    Some(Overlay { path, block_bytes: self.block_bytes, head: Vec::new(), writer: None });
                Ok(())
            }
            None => self.files.member(header),
        }
    }
}

impl Overlay {
    fn take(&mut self, data: &[u8]) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            return writer.write(data);
        }
        self.head.extend_from_slice(data);
        let Some(parsed) = Parsed::of(&self.head, self.block_bytes, &self.path)? else { return Ok(()) };
        let mut writer = BlocksWriter::open(&self.path, self.block_bytes, parsed.blocks.clone())?;
        parsed.set_length(&writer)?;
        writer.write(&std::mem::take(&mut self.head)[parsed.length..])?;
        self.writer = Some(writer);
        Ok(())
    }

    /// How many bytes were written.
    fn finish(self) -> Result<u64> {
        self.writer.ok_or_else(|| damaged(&self.path, "they are cut"))?.finish()
    }
}

/// What stands before the blocks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    /// Its length, with what fills it up.
    pub(super) length: usize,
    block_bytes: u32,
    /// The predecessor's length, in blocks.
    pub(super) cut_to: u32,
    /// Their numbers.
    pub(super) blocks: Vec<u32>,
}

impl Parsed {
    /// Nothing while it is not all there.
    pub(super) fn of(head: &[u8], block_bytes: u32, path: &Path) -> Result<Option<Self>> {
        let number = |at: usize| {
            head.get(at..at + 4).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]])).unwrap_or_default()
        };
        if head.len() < FIXED {
            return Ok(None);
        }
        let count = number(4) as usize;
        if number(0) != MAGIC {
            return Err(damaged(path, "they do not begin as a server's increment does"));
        }
        if count > MOST_BLOCKS {
            return Err(damaged(path, "there are too many"));
        }
        let length = match count {
            0 => FIXED,
            _ => (FIXED + 4 * count).next_multiple_of(block_bytes as usize),
        };
        if head.len() < length {
            return Ok(None);
        }
        let blocks: Vec<u32> = (0..count).map(|n| number(FIXED + 4 * n)).collect();
        if !blocks.is_sorted_by(|a, b| a < b) {
            return Err(damaged(path, "they are not in order"));
        }
        Ok(Some(Self { length, block_bytes, cut_to: number(8), blocks }))
    }

    /// Cuts what was there before, so that nothing behind comes back, and gives the file its length.
    fn set_length(&self, file: &BlocksWriter) -> Result<()> {
        let bytes = |blocks: u32| u64::from(blocks) * u64::from(self.block_bytes);
        let ends = self.blocks.last().map_or(0, |last| last.saturating_add(1));
        if file.length()? > bytes(self.cut_to) {
            file.set_length(bytes(self.cut_to))?;
        }
        file.set_length(bytes(self.cut_to.max(ends)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const BLOCK: u32 = 16;

    fn file(cut_to: u32, blocks: &[(u32, u8)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let count = u32::try_from(blocks.len()).unwrap();
        for number in [MAGIC, count, cut_to].into_iter().chain(blocks.iter().map(|(number, _)| *number)) {
            bytes.extend(number.to_le_bytes());
        }
        if count > 0 {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        for (_, with) in blocks {
            bytes.extend([*with; BLOCK as usize]);
        }
        bytes
    }

    /// Lays it over a file of `before` blocks of ones, in pieces.
    fn laid(before: usize, increment: &[u8], step: usize) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; before * BLOCK as usize]).unwrap();
        let mut overlay = Overlay { path: path.clone(), block_bytes: BLOCK, head: Vec::new(), writer: None };
        for piece in increment.chunks(step) {
            overlay.take(piece)?;
        }
        overlay.finish()?;
        Ok(std::fs::read(path).unwrap().chunks(BLOCK as usize).map(|block| block[0]).collect())
    }

    #[test]
    fn blocks_come_to_their_places() {
        for step in [1, 7, 100, 1000] {
            assert_eq!(laid(3, &file(3, &[(1, 7)]), step).unwrap(), [1, 7, 1]);
            assert_eq!(laid(3, &file(1, &[(3, 7)]), step).unwrap(), [1, 0, 0, 7], "nothing comes back");
            assert_eq!(laid(3, &file(5, &[]), step).unwrap(), [1, 1, 1, 0, 0]);
            assert_eq!(laid(3, &file(2, &[]), step).unwrap(), [1, 1]);
        }
    }

    proptest::proptest! {
        #[test]
        fn it_is_the_file_that_was_meant(
            before in 0_usize..40, cut_to in 0_u32..50,
            blocks in proptest::collection::btree_map(0_u32..50, 2_u8..200, 0..30), step in 1_usize..300,
        ) {
            let mut wanted = vec![1; before];
            wanted.truncate(cut_to as usize);
            let ends = blocks.keys().next_back().map_or(0, |last| last + 1);
            wanted.resize(cut_to.max(ends) as usize, 0);
            for (number, with) in &blocks {
                wanted[*number as usize] = *with;
            }
            let blocks: Vec<_> = blocks.into_iter().collect();
            let increment = file(cut_to, &blocks);
            proptest::prop_assert_eq!(laid(before, &increment, step).unwrap(), wanted);
            // Cut anywhere, it is no increment.
            let cut = step % increment.len();
            proptest::prop_assert_eq!(laid(before, &increment[..cut], step).unwrap_err().kind(), ErrorKind::Integrity);
        }

        #[test]
        fn bytes_of_any_kind_are_read(bytes: Vec<u8>) {
            let _ = laid(1, &bytes, 5);
            let _ = laid(1, &[&MAGIC.to_le_bytes()[..], &bytes].concat(), 5);
        }
    }
}
