//! What a table of contents tells of its database.

use crate::logical::DatabaseFacts;
use crate::logical::archive::Toc;

/// The facts of a database whose locale is not known.
pub(super) fn with_locale_c(name: String, encoding: String) -> DatabaseFacts {
    DatabaseFacts {
        name,
        encoding,
        locale_provider: "c".to_owned(),
        collate: "C".to_owned(),
        ctype: "C".to_owned(),
        locale: None,
        icu_rules: None,
        tablespace: None,
    }
}

/// The facts, and whether the archive has those of the locale: a dump of some schemas or tables has not.
pub(super) fn database(toc: &Toc) -> (DatabaseFacts, bool) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut facts = with_locale_c(
        text(toc.header.database.as_deref().unwrap_or_default()),
        toc.encoding().unwrap_or_else(|| "UTF8".to_owned()),
    );
    let Some(create) = toc.entries.iter().find(|entry| entry.kind == "DATABASE") else {
        return (facts, false);
    };
    facts.name = create.name_text();
    // CREATE DATABASE x WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE_PROVIDER = libc LOCALE = 'C.UTF-8';
    // (`dumpDatabase` in pg_dump.c, PostgreSQL 18)
    let sql = text(create.definition.as_deref().unwrap_or_default());
    for (name, value) in settings(&sql) {
        match name.as_str() {
            "ENCODING" => facts.encoding = value,
            "LOCALE_PROVIDER" => {
                let provider = match value.as_str() {
                    "icu" => "i",
                    "builtin" => "b",
                    _ => "c",
                };
                provider.clone_into(&mut facts.locale_provider);
            }
            "LOCALE" => (facts.collate, facts.ctype) = (value.clone(), value),
            "LC_COLLATE" => facts.collate = value,
            "LC_CTYPE" => facts.ctype = value,
            "ICU_LOCALE" | "BUILTIN_LOCALE" => facts.locale = Some(value),
            "ICU_RULES" => facts.icu_rules = Some(value),
            _ => {}
        }
    }
    (facts, true)
}

/// Words before a `=`, and what stands behind it: a word, or a text in quotes.
fn settings(sql: &str) -> Vec<(String, String)> {
    let words = words(sql);
    let pairs = words.windows(3).filter(|three| three[1] == Word::Equals);
    let both = |three: &[Word]| match (&three[0], &three[2]) {
        (Word::Plain(name), Word::Plain(value) | Word::Text(value)) => Some((name.clone(), value.clone())),
        _ => None,
    };
    pairs.filter_map(both).collect()
}

#[derive(PartialEq, Eq)]
enum Word {
    Plain(String),
    Text(String),
    Equals,
}

/// Cuts a statement into words; names in double quotes are left out.
fn words(sql: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '=' => words.push(Word::Equals),
            '\'' | '"' => {
                // `E'…'` has its backslashes doubled.
                let escapes =
                    matches!(words.last(), Some(Word::Plain(e)) if e == "E") && words.pop().is_some();
                let mut text = String::new();
                while let Some(next) = chars.next() {
                    if next == c && chars.peek() != Some(&c) {
                        break;
                    }
                    if next == c || (escapes && next == '\\') {
                        chars.next();
                    }
                    text.push(next);
                }
                if c == '\'' {
                    words.push(Word::Text(text));
                }
            }
            c if c.is_alphanumeric() || c == '_' => {
                let mut word = c.to_string();
                while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    word.push(next);
                }
                words.push(Word::Plain(word));
            }
            _ => {}
        }
    }
    words
}

/// `18.6 (Debian 18.6-1)` without what stands in brackets.
pub(super) fn version(text: Option<&[u8]>) -> String {
    let text = String::from_utf8_lossy(text.unwrap_or_default());
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logical::archive::{Entry, Header};

    fn of(sql: &str) -> (DatabaseFacts, bool) {
        let header = Header {
            version: (1, 16, 0),
            int_size: 4,
            offset_size: 8,
            format: 1,
            compression: 0,
            created: [0; 7],
            database: Some(b"shop".to_vec()),
            server_version: None,
            dump_version: None,
        };
        let entry = Entry {
            kind: "DATABASE".to_owned(),
            name: Some(b"ENCODING = 'x'".to_vec()),
            definition: Some(sql.as_bytes().to_vec()),
            ..Entry::default()
        };
        database(&Toc { header, entries: if sql.is_empty() { Vec::new() } else { vec![entry] } })
    }

    #[test]
    fn the_statement_of_each_version_is_understood() {
        let (facts, told) = of(
            "CREATE DATABASE \"ENCODING = 'x'\" WITH TEMPLATE = template0 ENCODING = 'LATIN1' LC_COLLATE = 'C' LC_CTYPE = 'de_DE';\n",
        );
        assert!(told);
        assert_eq!((&*facts.encoding, &*facts.collate, &*facts.ctype), ("LATIN1", "C", "de_DE"));
        let (facts, _) = of(
            "CREATE DATABASE x WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE_PROVIDER = icu LOCALE = 'C' ICU_LOCALE = 'en-US' ICU_RULES = E'&V << w''s\\\\';\n",
        );
        assert_eq!((&*facts.locale_provider, facts.locale.as_deref()), ("i", Some("en-US")));
        assert_eq!((facts.icu_rules.as_deref(), &*facts.collate), (Some("&V << w's\\"), "C"));
        let (facts, _) = of(
            "CREATE DATABASE x WITH TEMPLATE = template0 LOCALE_PROVIDER = builtin LOCALE = 'C' BUILTIN_LOCALE = 'C.UTF-8';",
        );
        assert_eq!((&*facts.locale_provider, facts.locale.as_deref()), ("b", Some("C.UTF-8")));
        let (facts, told) = of("");
        assert_eq!((&*facts.name, told), ("shop", false));
    }
}
