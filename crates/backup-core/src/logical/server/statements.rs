//! SQL as `pg_dumpall` and `pg_dump` write it, cut into statements. It stays bytes: every encoding of a server keeps
//! ASCII as it is.

/// Collects bytes and gives whole statements.
#[derive(Default)]
pub(super) struct Statements {
    text: Vec<u8>,
}

impl Statements {
    /// Adds bytes, cut anywhere; the statements that are whole now, without their semicolons.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Statement> {
        self.text.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut begin = 0;
        while let Some(length) = whole(&self.text[begin..]) {
            found.extend(Statement::new(&self.text[begin..begin + length]));
            begin += length;
        }
        self.text.drain(..begin);
        found
    }

    /// Whether what is left is no piece of a statement.
    pub(super) fn is_done(&self) -> bool {
        tokens(&self.text).is_empty()
    }

    /// The statements of a whole text.
    pub(super) fn of(text: &[u8]) -> Vec<Statement> {
        let mut all = Self::default();
        let mut found = all.push(text);
        found.extend(Statement::new(&all.text));
        found
    }
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) sql: Vec<u8>,
    /// Where its words, quoted names and texts stand.
    tokens: Vec<(usize, usize)>,
}

impl Statement {
    /// Nothing for white space, comments and lines for `psql`.
    fn new(text: &[u8]) -> Option<Self> {
        let first = tokens(text).first()?.0;
        let sql = text[first..].trim_ascii_end();
        let sql = sql.strip_suffix(b";").unwrap_or(sql).to_vec();
        Some(Self { tokens: tokens(&sql), sql })
    }

    /// Whether its first words are these, in capitals as the tools write them.
    pub(super) fn begins(&self, words: &str) -> bool {
        words.split(' ').enumerate().all(|(at, word)| self.token(at) == Some(word.as_bytes()))
    }

    fn token(&self, at: usize) -> Option<&[u8]> {
        self.tokens.get(at).map(|(from, to)| &self.sql[*from..*to])
    }

    /// A name, without its quotes.
    pub(super) fn name(&self, at: usize) -> Option<String> {
        let token = String::from_utf8_lossy(self.token(at)?).into_owned();
        Some(match token.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            Some(name) => name.replace("\"\"", "\""),
            None => token,
        })
    }

    /// What it is, without what may be secret in it: passwords, settings, words of a comment.
    pub(super) fn describe(&self) -> String {
        let open = self.begins("GRANT") || self.begins("REVOKE");
        let shown = if open { self.tokens.len() } else { 3 };
        let words = (0..shown).filter_map(|at| self.token(at)).map(String::from_utf8_lossy);
        words.collect::<Vec<_>>().join(" ")
    }

    /// A membership as if whoever restores had granted it; nothing where it does not say who did.
    pub(super) fn without_grantor(&self) -> Option<Self> {
        let at = self.tokens.len().checked_sub(3)?;
        if !self.begins("GRANT") || self.token(at) != Some(b"GRANTED") || self.token(at + 1) != Some(b"BY") {
            return None;
        }
        let sql = self.sql[..self.tokens[at].0].trim_ascii_end().to_vec();
        Some(Self { tokens: tokens(&sql), sql })
    }
}

/// What the scanner is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Nothing,
    Word,
    /// `'…'`, `"…"`; with backslashes after an E.
    Quotes(u8, bool),
    /// A comment, or a line for `psql`.
    Line,
}

/// Length of the first statement with its semicolon.
fn whole(text: &[u8]) -> Option<usize> {
    scan(text, |_, _| ())
}

fn tokens(text: &[u8]) -> Vec<(usize, usize)> {
    let (mut found, mut rest) = (Vec::new(), 0);
    while let Some(length) = scan(&text[rest..], |from, to| found.push((rest + from, rest + to))) {
        rest += length;
    }
    found
}

/// Goes through a text up to the end of its first statement, and tells of each token.
fn scan(text: &[u8], mut token: impl FnMut(usize, usize)) -> Option<usize> {
    let (mut state, mut begin, mut at) = (In::Nothing, 0, 0);
    let mut line_begins = true;
    while at < text.len() {
        let byte = text[at];
        match state {
            In::Nothing | In::Word => {
                let quote = matches!(byte, b'\'' | b'"');
                let comment = byte == b'-' && text.get(at + 1) == Some(&b'-');
                let escapes = byte == b'\'' && state == In::Word && matches!(&text[begin..at], b"E");
                let ends = quote || comment || byte == b';' || byte.is_ascii_whitespace();
                if state == In::Word && ends && !escapes {
                    token(begin, at);
                    state = In::Nothing;
                }
                match byte {
                    b';' => return Some(at + 1),
                    _ if quote => {
                        begin = if escapes { begin } else { at };
                        state = In::Quotes(byte, escapes);
                    }
                    _ if comment || (line_begins && byte == b'\\') => state = In::Line,
                    _ if ends => {}
                    _ if state == In::Nothing => {
                        begin = at;
                        state = In::Word;
                    }
                    _ => {}
                }
            }
            In::Quotes(_, true) if byte == b'\\' => at += 1,
            In::Quotes(quote, _) if byte == quote => {
                if text.get(at + 1) == Some(&quote) {
                    at += 1;
                } else {
                    token(begin, at + 1);
                    state = In::Nothing;
                }
            }
            In::Line if byte == b'\n' => state = In::Nothing,
            In::Quotes(..) | In::Line => {}
        }
        line_begins = byte == b'\n';
        at += 1;
    }
    if state == In::Word {
        token(begin, at);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "--\n-- Roles; of 'it\n--\n\n\\restrict a;b'c\nSET x = off;\nCREATE ROLE \"a;\"\"b\";\n\
        ALTER ROLE \"a;\"\"b\" WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:x;y';\nCOMMENT ON ROLE b IS E'a\\';b''--';\n\
        ALTER ROLE b SET search_path TO 'a', 'b';\nGRANT g TO \"a;\"\"b\" WITH ADMIN OPTION GRANTED BY postgres;\n\\unrestrict a\n-- end\n";

    #[test]
    fn statements_are_cut_at_their_ends_alone() {
        let all = Statements::of(TEXT.as_bytes());
        let sql: Vec<_> = all.iter().map(|s| String::from_utf8_lossy(&s.sql).into_owned()).collect();
        assert_eq!(sql.len(), 6, "{sql:?}");
        assert_eq!(sql[1], "CREATE ROLE \"a;\"\"b\"");
        assert_eq!(sql[3], "COMMENT ON ROLE b IS E'a\\';b''--'");
        assert!(all[1].begins("CREATE ROLE") && !all[1].begins("CREATE TABLESPACE"));
        assert_eq!(all[1].name(2).as_deref(), Some("a;\"b"));
        assert_eq!(all[2].describe(), "ALTER ROLE \"a;\"\"b\"", "no password");
        assert_eq!(all[4].describe(), "ALTER ROLE b");
        let granted = all[5].without_grantor().unwrap();
        assert_eq!(granted.describe(), "GRANT g TO \"a;\"\"b\" WITH ADMIN OPTION");
        assert_eq!(granted.without_grantor(), None);
        assert_eq!(all[4].without_grantor(), None);
    }

    proptest::proptest! {
        /// However the text is cut, the statements are the same; and no text makes it panic.
        #[test]
        fn pieces_make_the_same_statements(cut in 0..TEXT.len(), other: Vec<u8>) {
            let mut pieces = Statements::default();
            let mut found = pieces.push(&TEXT.as_bytes()[..cut]);
            found.extend(pieces.push(&TEXT.as_bytes()[cut..]));
            proptest::prop_assert!(pieces.is_done());
            proptest::prop_assert_eq!(found, Statements::of(TEXT.as_bytes()));
            for statement in Statements::of(&other) {
                drop((statement.describe(), statement.without_grantor(), statement.name(1)));
            }
        }
    }
}
