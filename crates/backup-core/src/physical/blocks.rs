//! Writes blocks that come one behind the other to their places in a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// A file of which some blocks come.
pub(super) struct BlocksWriter {
    path: PathBuf,
    file: File,
    block_bytes: u32,
    /// Their numbers.
    blocks: Vec<u32>,
    /// Bytes of blocks that were written.
    at: u64,
}

impl BlocksWriter {
    /// Opens the file, which an earlier backup must have left.
    pub(super) fn open(path: &Path, block_bytes: u32, blocks: Vec<u32>) -> Result<Self> {
        let file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(no_predecessor(path)),
            Err(e) => return Err(Error::io(format!("opening {}", path.display()), e)),
        };
        Ok(Self { path: path.to_owned(), file, block_bytes, blocks, at: 0 })
    }

    /// Length of the file, in bytes.
    pub(super) fn length(&self) -> Result<u64> {
        let found = self.file.metadata();
        found.map(|m| m.len()).map_err(|e| Error::io(format!("looking at {}", self.path.display()), e))
    }

    /// Cuts the file, or extends it with zeros.
    pub(super) fn set_length(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).map_err(|e| Error::io(format!("cutting {}", self.path.display()), e))
    }

    /// Adds bytes of blocks.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let block_bytes = u64::from(self.block_bytes);
        while !bytes.is_empty() {
            let (index, within) = (self.at / block_bytes, self.at % block_bytes);
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let Some(following) = self.blocks.get(index..).filter(|following| !following.is_empty()) else {
                return Err(damaged(&self.path, "there are more of them than are named"));
            };
            // Blocks that stand beside each other are written together.
            let together = following.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count() as u64 + 1;
            let room = usize::try_from(together * block_bytes - within).unwrap_or(usize::MAX);
            let (piece, after) = bytes.split_at(bytes.len().min(room));
            self.file
                .write_all_at(piece, u64::from(following[0]) * block_bytes + within)
                .map_err(|e| Error::io(format!("writing {}", self.path.display()), e))?;
            self.at += piece.len() as u64;
            bytes = after;
        }
        Ok(())
    }

    /// Checks that all of them came; how many bytes they have.
    pub(super) fn finish(self) -> Result<u64> {
        if self.at == self.blocks.len() as u64 * u64::from(self.block_bytes) {
            return Ok(self.at);
        }
        Err(damaged(&self.path, "they are cut"))
    }
}

pub(super) fn no_predecessor(path: &Path) -> Error {
    let message =
        format!("the increment changes blocks of {}, which its predecessor has not", path.display());
    Error::new(ErrorKind::Integrity, message).with_hint("restore another backup, and report this one")
}

pub(super) fn damaged(path: &Path, why: &str) -> Error {
    let message = format!("the increment's blocks of {} are damaged: {why}", path.display());
    Error::new(ErrorKind::Integrity, message).with_hint("restore another backup")
}
