//! Windows: some blocks of a file, with their numbers. `docs/format.md` describes them.

use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"pgarkbk1";
/// Blocks of a window at most.
pub(in super::super) const WINDOW_BLOCKS: usize = 512;
/// Length of what stands before the numbers.
const HEAD_BYTES: usize = 24;

/// What a window is of, and which blocks it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Window {
    pub(in super::super) block_bytes: u32,
    /// Length of the whole file, with which the window leaves it.
    pub(in super::super) file_bytes: u64,
    /// Numbers of the blocks in the file, ascending.
    pub(in super::super) blocks: Vec<u32>,
}

impl Window {
    /// What stands before the blocks.
    pub(in super::super) fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD_BYTES + 4 * self.blocks.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&self.block_bytes.to_le_bytes());
        head.extend_from_slice(&u32::try_from(self.blocks.len()).unwrap_or(u32::MAX).to_le_bytes());
        head.extend_from_slice(&self.file_bytes.to_le_bytes());
        for number in &self.blocks {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head
    }

    /// Length of the member.
    pub(in super::super) fn bytes(&self) -> u64 {
        let count = self.blocks.len() as u64;
        HEAD_BYTES as u64 + count * (4 + u64::from(self.block_bytes))
    }

    /// Parses what stands before the blocks, of a member of `bytes`; nothing while `head` is not all of it. Bytes
    /// that follow are the caller's: [`Window::head`] has as many as were used.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity)
    pub(in super::super) fn parse(head: &[u8], bytes: u64) -> Result<Option<Self>> {
        let damaged = |why: &str| {
            Error::new(ErrorKind::Integrity, format!("blocks of an increment are damaged: {why}"))
                .with_hint("restore another backup")
        };
        if bytes < HEAD_BYTES as u64 {
            return Err(damaged("they are too short"));
        }
        let Some((fixed, rest)) = head.split_at_checked(HEAD_BYTES) else { return Ok(None) };
        let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        if &fixed[..8] != MAGIC {
            return Err(damaged("they do not begin as blocks do"));
        }
        let (block_bytes, count) = (number(8), number(12) as usize);
        let file_bytes = u64::from(number(16)) | u64::from(number(20)) << 32;
        if count > WINDOW_BLOCKS || !block_bytes.is_power_of_two() {
            return Err(damaged("there are too many"));
        }
        let Some((numbers, _)) = rest.split_at_checked(4 * count) else { return Ok(None) };
        let blocks: Vec<u32> =
            numbers.chunks_exact(4).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]])).collect();
        let window = Self { block_bytes, file_bytes, blocks };
        let ends = window.blocks.last().map_or(0, |last| (u64::from(*last) + 1) * u64::from(block_bytes));
        if window.bytes() != bytes || ends > file_bytes || !window.blocks.is_sorted_by(|a, b| a < b) {
            return Err(damaged("their numbers do not fit the file"));
        }
        Ok(Some(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_written_is_parsed(numbers in proptest::collection::btree_set(0_u32..9000, 0..600), more in 0_u64..5) {
            let blocks: Vec<u32> = numbers.into_iter().take(WINDOW_BLOCKS).collect();
            let file_bytes = (blocks.last().map_or(0, |n| u64::from(*n) + 1) + more) * 8192;
            let window = Window { block_bytes: 8192, file_bytes, blocks };
            let head = window.head();
            proptest::prop_assert_eq!(Window::parse(&head, window.bytes()).unwrap(), Some(window.clone()));
            for cut in 0..head.len() {
                proptest::prop_assert_eq!(Window::parse(&head[..cut], window.bytes()).unwrap(), None);
            }
            proptest::prop_assert!(Window::parse(&head, window.bytes() + 1).is_err());
        }

        #[test]
        fn bytes_of_any_kind_are_parsed(bytes: Vec<u8>, length: u64) {
            let _ = Window::parse(&bytes, length);
            let _ = Window::parse(&[&MAGIC[..], &bytes].concat(), length);
        }
    }
}
