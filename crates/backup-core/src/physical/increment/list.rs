//! The list of an increment: what there is in the cluster, and what of it is in the increment. `docs/format.md`
//! describes it.

use std::io::Write as _;

use tar::Header;

use crate::error::{Error, ErrorKind, Result};

/// An entry that is longer is damaged.
const ENTRY_LIMIT: usize = 8192;

/// What stands in an increment of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Stored {
    /// A folder.
    Folder,
    /// All of a file.
    Whole,
    /// The blocks of a file that changed; the others are those of the parent.
    Blocks,
    /// The same, as the server found them: what stands before them says how long the file is.
    Summarized,
}

/// A file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Entry<'a> {
    pub(in super::super) stored: Stored,
    pub(in super::super) mode: u32,
    /// Length of the file.
    pub(in super::super) bytes: u64,
    /// `base`, or the OID of a tablespace.
    pub(in super::super) archive: &'a str,
    pub(in super::super) path: &'a [u8],
}

impl Entry<'_> {
    /// Adds it to a list.
    pub(in super::super) fn write(&self, list: &mut Vec<u8>) {
        let stored = match self.stored {
            Stored::Folder => 'd',
            Stored::Whole => 'w',
            Stored::Blocks => 'b',
            Stored::Summarized => 'i',
        };
        // A vector takes everything.
        let _ = write!(list, "{stored} {:o} {} {}/", self.mode, self.bytes, self.archive);
        list.extend_from_slice(self.path);
        list.push(0);
    }
}

/// What a member of an archive is called in a list: without `./` before it and a slash behind. Empty for the folder
/// that the archive is of.
pub(in super::super) fn listed_path(header: &Header) -> Vec<u8> {
    let name = header.path_bytes();
    let path = name.strip_prefix(b"./").unwrap_or(&name);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path == b"." { Vec::new() } else { path.to_vec() }
}

/// The mode of a member in a list.
pub(super) fn listed_mode(header: &Header) -> u32 {
    header.mode().unwrap_or(0o600) & 0o777
}

/// Reads a list that comes in pieces.
#[derive(Default)]
pub(in super::super) struct ListReader(Vec<u8>);

impl ListReader {
    /// Takes a piece, and gives the entries that it completes to `each`.
    pub(in super::super) fn take(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == 0) {
            self.0.extend_from_slice(&rest[..end]);
            let entry = parse(&self.0).ok_or_else(damaged)?;
            each(entry)?;
            self.0.clear();
            rest = &rest[end + 1..];
        }
        self.0.extend_from_slice(rest);
        if self.0.len() > ENTRY_LIMIT { Err(damaged()) } else { Ok(()) }
    }

    /// Checks that it ended behind a whole entry.
    pub(in super::super) fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(damaged()) }
    }
}

fn parse(entry: &[u8]) -> Option<Entry<'_>> {
    let mut words = entry.splitn(4, |b| *b == b' ');
    let mut word = || words.next();
    let stored = match word()? {
        b"d" => Stored::Folder,
        b"w" => Stored::Whole,
        b"b" => Stored::Blocks,
        b"i" => Stored::Summarized,
        _ => return None,
    };
    let mode = u32::from_str_radix(std::str::from_utf8(word()?).ok()?, 8).ok()?;
    let bytes = std::str::from_utf8(word()?).ok()?.parse().ok()?;
    let name = word()?;
    let slash = name.iter().position(|b| *b == b'/')?;
    let archive = std::str::from_utf8(&name[..slash]).ok()?;
    Some(Entry { stored, mode: mode & 0o777, bytes, archive, path: &name[slash + 1..] })
}

fn damaged() -> Error {
    Error::new(ErrorKind::Integrity, "the list of an increment's files is damaged")
        .with_hint("restore another backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let entries = [
            Entry { stored: Stored::Folder, mode: 0o700, bytes: 0, archive: "base", path: b"base/5" },
            Entry { stored: Stored::Blocks, mode: 0o600, bytes: 8192, archive: "base", path: b"base/5/1" },
            Entry { stored: Stored::Whole, mode: 0o640, bytes: 7, archive: "16385", path: b"a b\n\xff/c" },
            Entry { stored: Stored::Summarized, mode: 0o600, bytes: 0, archive: "base", path: b"base/5/2" },
        ];
        let mut list = Vec::new();
        for entry in &entries {
            entry.write(&mut list);
        }
        for step in 1..list.len() {
            let (mut reader, mut at) = (ListReader::default(), 0);
            for piece in list.chunks(step) {
                reader
                    .take(piece, |entry| {
                        assert_eq!(entry, entries[at]);
                        at += 1;
                        Ok(())
                    })
                    .unwrap();
            }
            reader.finish().unwrap();
            assert_eq!(at, entries.len());
        }
        let mut cut = ListReader::default();
        cut.take(&list[..list.len() - 1], |_| Ok(())).unwrap();
        assert!(cut.finish().is_err());
        assert!(ListReader::default().take(b"x 600 1 base/a\0", |_| Ok(())).is_err());
    }
}
