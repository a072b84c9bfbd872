//! What tells whether two tables have the same rows.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Rows of a table, in any order: their number, and the sum modulo 2^128 of the XXH3-128 of each line that COPY
/// writes, without its newline. A sum, so that equal rows count as often as they are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fingerprint {
    /// Rows.
    pub rows: u64,
    /// The sum.
    pub sum: u128,
}

impl Fingerprint {
    /// Adds a line without its newline.
    pub fn add_line(&mut self, line: &[u8]) {
        self.add(xxh3_128(line));
    }

    /// Adds all rows of another.
    pub fn add_all(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The sum in hexadecimal.
    pub fn hex(&self) -> String {
        format!("{:032x}", self.sum)
    }

    fn add(&mut self, hash: u128) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash);
    }
}

/// Fingerprints rows as their bytes come, wherever these are cut.
#[derive(Default)]
pub struct RowHasher {
    /// Of the lines that have ended.
    pub done: Fingerprint,
    /// Of a line that has begun.
    open: Option<Box<Xxh3>>,
}

impl RowHasher {
    /// Adds text of COPY. A newline ends a row: within one it is written `\n`.
    pub fn text(&mut self, mut text: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', text) {
            self.row_end(&text[..end]);
            text = &text[end + 1..];
        }
        if !text.is_empty() {
            self.open.get_or_insert_default().update(text);
        }
    }

    /// Adds a piece of a row with its newline, where it is known whether the row ends with it.
    pub fn piece(&mut self, piece: &[u8], ends: bool) {
        if ends {
            self.row_end(piece.strip_suffix(b"\n").unwrap_or(piece));
        } else {
            self.open.get_or_insert_default().update(piece);
        }
    }

    /// Adds the last, or only, piece of a row.
    fn row_end(&mut self, piece: &[u8]) {
        match self.open.take() {
            None => self.done.add_line(piece),
            Some(mut open) => {
                open.update(piece);
                self.done.add(open.digest128());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn order_and_cuts_do_not_matter(mut rows: Vec<String>, cut in 0_usize..500) {
            for row in &mut rows {
                row.retain(|c| c != '\n');
            }
            let mut whole = Fingerprint::default();
            for row in &rows {
                whole.add_line(row.as_bytes());
            }
            rows.reverse();
            let text = rows.iter().fold(String::new(), |text, row| text + row + "\n");
            let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
            let mut hasher = RowHasher::default();
            hasher.text(head);
            hasher.text(tail);
            proptest::prop_assert_eq!(hasher.done, whole);
        }
    }

    #[test]
    fn equal_rows_count_as_often_as_they_are_there() {
        let of = |text: &[u8]| {
            let mut hasher = RowHasher::default();
            hasher.text(text);
            hasher.done
        };
        assert_ne!(of(b"a\na\nb\n"), of(b"b\nb\nb\n"));
        assert_eq!(of(b"a\nb\n"), of(b"b\na\n"));
        assert_eq!(of(b"\n\n").rows, 2);
    }
}
