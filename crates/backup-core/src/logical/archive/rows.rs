//! The rows of a table within an archive: text of COPY, and a terminator.

use std::io::Read;

use super::custom::{broken, damaged};
use crate::error::{Error, Result};
use crate::logical::{Fingerprint, RowHasher};

/// What stands behind the rows of a table in an archive (`dumpTableData_copy` in `pg_dump.c`).
pub(crate) const TERMINATOR: &[u8] = b"\\.\n\n\n";
/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// Takes the terminator off, and looks at the rows on their way.
pub(crate) struct Rows<R> {
    from: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were given out.
    given: usize,
    hasher: RowHasher,
    bytes: u64,
    /// The last bytes that were given out.
    last: [u8; 3],
}

impl<R: Read> Rows<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, buffer: Vec::new(), given: 0, hasher: RowHasher::default(), bytes: 0, last: [b'\n'; 3] }
    }

    /// The next rows, cut anywhere; nothing at their end, when the terminator was there.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>> {
        self.buffer.drain(..self.given);
        self.given = 0;
        // Archives have a chunk for each row: many make a piece.
        let mut have = self.buffer.len();
        self.buffer.resize(PIECE, 0);
        while have < PIECE {
            let read = self.from.read(&mut self.buffer[have..]).map_err(broken)?;
            if read == 0 {
                break;
            }
            have += read;
        }
        self.buffer.truncate(have);
        if have <= TERMINATOR.len() {
            return self.end().map(|()| None);
        }
        self.given = self.buffer.len() - TERMINATOR.len();
        let rows = &self.buffer[..self.given];
        if has_end(self.last, rows) {
            return Err(damaged_rows("there is a terminator among them"));
        }
        for byte in &rows[rows.len().saturating_sub(3)..] {
            self.last = [self.last[1], self.last[2], *byte];
        }
        self.hasher.text(rows);
        self.bytes += rows.len() as u64;
        Ok(Some(rows))
    }

    /// What they were: rows and their sum, and bytes.
    pub(crate) fn found(&self) -> (Fingerprint, u64) {
        (self.hasher.done, self.bytes)
    }

    fn end(&self) -> Result<()> {
        if self.buffer != TERMINATOR {
            return Err(damaged_rows("their end is missing"));
        }
        if self.last[2] != b'\n' {
            return Err(damaged_rows("the last one has no end"));
        }
        Ok(())
    }
}

/// Whether a line is `\.`; `last` stands before the text.
fn has_end(last: [u8; 3], text: &[u8]) -> bool {
    const END: &[u8] = b"\n\\.\n";
    let head: Vec<u8> = last.iter().chain(text.iter().take(3)).copied().collect();
    if head.windows(END.len()).any(|w| w == END) {
        return true;
    }
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        if at > 0 && rest[at - 1..].starts_with(END) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn damaged_rows(why: &str) -> Error {
    damaged(&format!("of the rows of a table {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let most = out.len().min(self.1);
            self.0.read(&mut out[..most])
        }
    }

    fn read(text: &[u8], step: usize) -> Result<(Vec<u8>, Fingerprint)> {
        let mut rows = Rows::new(Slowly(text, step));
        let mut all = Vec::new();
        while let Some(piece) = rows.next()? {
            all.extend_from_slice(piece);
        }
        assert_eq!(rows.found().1, all.len() as u64);
        Ok((all, rows.found().0))
    }

    proptest::proptest! {
        #[test]
        fn the_terminator_is_taken_off(lines in proptest::collection::vec("[a-z.\\\\]{0,6}x", 0..30), step in 1_usize..50, cut in 1_usize..40) {
            let mut text = lines.join("\n");
            if !lines.is_empty() {
                text.push('\n');
            }
            let whole = [text.as_bytes(), TERMINATOR].concat();
            let (found, sum) = read(&whole, step).unwrap();
            proptest::prop_assert_eq!(&found, text.as_bytes());
            proptest::prop_assert_eq!(sum.rows, lines.len() as u64);
            let cut = cut.min(whole.len());
            proptest::prop_assert!(read(&whole[..whole.len() - cut], step).is_err());
        }

        #[test]
        fn a_terminator_in_the_middle_is_seen(before in 0_usize..9, after in 0_usize..9, step in 1_usize..20) {
            let text = ["a\n".repeat(before), "\\.\n".to_owned(), "b\n".repeat(after), "\\.\n\n\n".to_owned()].concat();
            proptest::prop_assert!(read(text.as_bytes(), step).is_err());
        }
    }

    #[test]
    fn a_row_without_end_is_refused() {
        assert!(read(b"a\nb\\.\n\n\n", 9).is_err());
        assert!(read(b"\\.\n\n\n", 9).unwrap().0.is_empty());
        assert!(read(b"\\.\n\n\njunk\n", 9).is_err());
    }
}
