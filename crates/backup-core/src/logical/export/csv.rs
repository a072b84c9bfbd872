//! COPY text as CSV (`CopyReadAttributesText` in `copyfromparse.c`, `CopyAttributeOutCSV` in `copyto.c`, PostgreSQL 18).

use std::io::{self, Write};

/// Turns rows of COPY text into CSV as they come, wherever they are cut. It holds one field at a time.
pub(super) struct CsvWriter {
    columns: Vec<Vec<u8>>,
    field: Vec<u8>,
    /// The text of the field was `\N`.
    null: bool,
    /// Within the field: what stands behind a backslash is still to come.
    escape: bool,
    /// How many fields of the row are written.
    fields: usize,
}

impl CsvWriter {
    /// `columns` is the list of a COPY statement: `(a, "b c")`.
    pub(super) fn new(columns: &[u8]) -> Self {
        Self { columns: names(columns), field: Vec::new(), null: false, escape: false, fields: 0 }
    }

    /// Writes the names of the columns.
    pub(super) fn header(&self, to: &mut impl Write) -> io::Result<()> {
        for (i, name) in self.columns.iter().enumerate() {
            if i > 0 {
                to.write_all(b",")?;
            }
            value(name, self.columns.len() == 1, to)?;
        }
        to.write_all(b"\n")
    }

    /// Adds COPY text.
    pub(super) fn text(&mut self, text: &[u8], to: &mut impl Write) -> io::Result<()> {
        for byte in text {
            match *byte {
                byte if self.escape => self.escaped(byte),
                b'\\' => self.escape = true,
                b'\t' => self.field_ends(to)?,
                b'\n' => {
                    self.field_ends(to)?;
                    to.write_all(b"\n")?;
                    self.fields = 0;
                }
                byte => self.field.push(byte),
            }
        }
        Ok(())
    }

    fn escaped(&mut self, byte: u8) {
        self.escape = false;
        self.field.push(match byte {
            b'N' => {
                // A field that is `\N` and nothing else: a text of this kind has its backslash doubled.
                self.null = true;
                return;
            }
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            byte => byte,
        });
    }

    fn field_ends(&mut self, to: &mut impl Write) -> io::Result<()> {
        if self.fields > 0 {
            to.write_all(b",")?;
        }
        self.fields += 1;
        let null = std::mem::take(&mut self.null) || self.columns.is_empty();
        if !null {
            value(&self.field, self.columns.len() == 1, to)?;
        }
        self.field.clear();
        Ok(())
    }
}

/// Writes a value: in quotes where it could be taken for something else.
fn value(value: &[u8], alone: bool, to: &mut impl Write) -> io::Result<()> {
    let special = value.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'));
    // Empty and without quotes is NULL; `\.` alone would end the data.
    let quoted = special || value.is_empty() || (alone && value == b"\\.");
    if !quoted {
        return to.write_all(value);
    }
    to.write_all(b"\"")?;
    for piece in value.split_inclusive(|byte| *byte == b'"') {
        to.write_all(piece)?;
        if piece.ends_with(b"\"") {
            to.write_all(b"\"")?;
        }
    }
    to.write_all(b"\"")
}

/// The names of a list of columns.
fn names(columns: &[u8]) -> Vec<Vec<u8>> {
    let inner = columns.strip_prefix(b"(").and_then(|rest| rest.strip_suffix(b")"));
    let Some(inner) = inner else { return Vec::new() };
    let (mut names, mut name, mut quoted) = (Vec::new(), Vec::new(), false);
    let mut bytes = inner.iter().peekable();
    while let Some(byte) = bytes.next() {
        match *byte {
            b'"' if quoted && bytes.peek() == Some(&&b'"') => {
                bytes.next();
                name.push(b'"');
            }
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                names.push(std::mem::take(&mut name));
                bytes.next_if_eq(&&b' ');
            }
            byte => name.push(byte),
        }
    }
    names.push(name);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(columns: &str, text: &[u8], step: usize) -> String {
        let (mut writer, mut out) = (CsvWriter::new(columns.as_bytes()), Vec::new());
        writer.header(&mut out).unwrap();
        text.chunks(step).for_each(|piece| writer.text(piece, &mut out).unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn it_is_what_copy_writes() {
        for step in [1, 2, 100] {
            assert_eq!(
                csv(
                    "(a, \"b, \"\"c\"\"\", d)",
                    b"1\t\\N\t\nx,y\tq\"q\tl\\nm\\\\N\\tz\n\\\\N\t\\\\.\t\\r\n",
                    step
                ),
                "a,\"b, \"\"c\"\"\",d\n1,,\"\"\n\"x,y\",\"q\"\"q\",\"l\nm\\N\tz\"\n\\N,\\.,\"\r\"\n"
            );
            assert_eq!(csv("(a)", b"\\N\n\n\\\\.\n", step), "a\n\n\"\"\n\"\\.\"\n");
            assert_eq!(csv("", b"\n\n", step), "\n\n\n");
        }
    }

    /// Reads CSV back: `None` is NULL.
    fn parse(text: &str) -> Vec<Vec<Option<String>>> {
        let (mut rows, mut row, mut field, mut quoted, mut in_quotes) =
            (Vec::new(), Vec::new(), String::new(), false, false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if in_quotes && chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                '"' => (in_quotes, quoted) = (!in_quotes, true),
                ',' | '\n' if !in_quotes => {
                    let value = std::mem::take(&mut field);
                    row.push((quoted || !value.is_empty()).then_some(value));
                    quoted = false;
                    if c == '\n' {
                        rows.push(std::mem::take(&mut row));
                    }
                }
                c => field.push(c),
            }
        }
        assert!(field.is_empty() && row.is_empty());
        rows
    }

    fn copy_text(value: Option<&str>) -> String {
        let Some(value) = value else { return "\\N".to_owned() };
        let escapes = [
            ('\\', "\\\\"),
            ('\n', "\\n"),
            ('\r', "\\r"),
            ('\t', "\\t"),
            ('\u{8}', "\\b"),
            ('\u{b}', "\\v"),
            ('\u{c}', "\\f"),
        ];
        escapes.iter().fold(value.to_owned(), |text, (c, escape)| text.replace(*c, escape))
    }

    proptest::proptest! {
        #[test]
        fn every_value_comes_back(rows in proptest::collection::vec(proptest::collection::vec(proptest::option::of("[a\\\\N.,\"\n\r\t\u{b}é]{0,5}"), 2), 0..8), step in 1_usize..9) {
            let mut text = String::new();
            for row in &rows {
                let fields: Vec<String> = row.iter().map(|value| copy_text(value.as_deref())).collect();
                text += &fields.join("\t");
                text += "\n";
            }
            let found = parse(&csv("(a, b)", text.as_bytes(), step));
            proptest::prop_assert_eq!(&found[1..], &rows[..]);
        }
    }
}
