//! The blocks that an increment has of a file: what stands before them, and their pages.

use std::path::PathBuf;

use super::page::{Numbers, PageLook};
use super::{Blocks, FilesRead};
use crate::error::{Error, ErrorKind, Result};
use crate::physical::increment::Window;
use crate::physical::incremental::Parsed;

/// What stands before blocks.
pub(super) struct Head {
    /// Their numbers in the file.
    numbers: Vec<u32>,
    /// How long it is.
    length: usize,
    block_bytes: u32,
    /// Length of the file that they leave, where it says so.
    pub(super) file_bytes: Option<u64>,
}

/// Who made the increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// pgark: windows of blocks.
    Client,
    /// The server: files `INCREMENTAL.*`.
    Server,
}

/// Reads the blocks of a member.
pub(super) struct BlocksLook {
    maker: Maker,
    /// Length of the member.
    bytes: u64,
    /// The file.
    path: PathBuf,
    /// Which segment of its relation the file is; nothing where it is of none.
    segment: Option<u32>,
    /// What stands before the blocks, as long as it is not all there.
    head: Vec<u8>,
    begun: bool,
    pages: Option<PageLook>,
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Integrity, why)
}

impl BlocksLook {
    pub(super) fn new(maker: Maker, bytes: u64, path: PathBuf, segment: Option<u32>) -> Self {
        Self { maker, bytes, path, segment, head: Vec::new(), begun: false, pages: None }
    }

    /// Takes bytes. With those that complete it, what stands before the blocks.
    pub(super) fn take(&mut self, data: &[u8], read: &FilesRead) -> Result<Option<Head>> {
        if self.begun {
            if let Some(pages) = &mut self.pages {
                pages.take(data);
            }
            return Ok(None);
        }
        self.head.extend_from_slice(data);
        let Some(head) = self.parse(read.blocks)? else { return Ok(None) };
        let segment = self.segment.ok_or_else(|| damaged("it is no file of a relation"))?;
        check(&head, read.blocks)?;
        self.begun = true;
        if let Some(pages) = read.pages {
            let first = segment.wrapping_mul(pages.segment);
            let numbers: Vec<u32> = head.numbers.iter().map(|block| first.wrapping_add(*block)).collect();
            let mut look = PageLook::new(pages, Numbers::Listed(numbers.into_iter()));
            look.take(&self.head[head.length..]);
            self.pages = Some(look);
        }
        self.head = Vec::new();
        Ok(Some(head))
    }

    fn parse(&self, blocks: Option<Blocks>) -> Result<Option<Head>> {
        if self.maker == Maker::Client {
            let window = Window::parse(&self.head, self.bytes)?;
            return Ok(window.map(|window| Head {
                length: window.head().len(),
                block_bytes: window.block_bytes,
                file_bytes: Some(window.file_bytes),
                numbers: window.blocks,
            }));
        }
        let blocks = blocks.ok_or_else(|| damaged("the record does not say how long its blocks are"))?;
        let Some(parsed) = Parsed::of(&self.head, blocks.bytes, &self.path)? else { return Ok(None) };
        let bytes = parsed.length as u64 + parsed.blocks.len() as u64 * u64::from(blocks.bytes);
        if bytes != self.bytes {
            return Err(damaged("it has another length than its blocks"));
        }
        if u64::from(parsed.cut_to) > blocks.segment {
            return Err(damaged("its file would be longer than a segment of a relation"));
        }
        Ok(Some(Head {
            numbers: parsed.blocks,
            length: parsed.length,
            block_bytes: blocks.bytes,
            file_bytes: None,
        }))
    }

    /// The end of the member; what is wrong with its pages.
    pub(super) fn finish(self, shown: &str, found: &mut Vec<String>) {
        if !self.begun {
            found.push(format!("{shown}: what stands before its blocks is cut"));
        }
        if let Some(pages) = self.pages {
            pages.finish(shown, found);
        }
    }
}

/// The blocks are of a segment of a relation.
fn check(head: &Head, blocks: Option<Blocks>) -> Result<()> {
    let Some(blocks) = blocks else { return Ok(()) };
    if head.block_bytes != blocks.bytes {
        return Err(damaged("its blocks have another length than those of the cluster"));
    }
    let last = head.numbers.last().map_or(0, |last| u64::from(*last) + 1);
    let file = head.file_bytes.map_or(0, |bytes| bytes / u64::from(blocks.bytes));
    if last.max(file) > blocks.segment {
        return Err(damaged("it has blocks behind the end of a segment of a relation"));
    }
    Ok(())
}
