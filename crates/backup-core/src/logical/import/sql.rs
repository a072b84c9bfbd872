//! Dumps in plain format: SQL that `psql` takes. They are kept as they are.

use std::io::BufRead;
use std::path::Path;

use super::facts::with_locale_c;
use super::plain_facts;
use super::source::plain_reader;
use super::store::Target;
use crate::dumper::Dumped;
use crate::error::{Error, ErrorKind, Result};
use crate::logical::SQL;
use crate::logical::archive::{Method, broken};

/// The first line that says what it is, and the last (`RestoreArchive` in `pg_backup_archiver.c`).
const BEGIN: &str = "-- PostgreSQL database dump";
const END: &str = "-- PostgreSQL database dump complete";
/// The first line of `pg_dumpall`.
const ALL: &str = "-- PostgreSQL database cluster dump";
/// The facts stand in the first lines.
const HEAD_LINES: usize = 200;
/// More of a line is not looked at.
const LINE_LIMIT: usize = 4096;

/// What the head of a dump says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    lines: usize,
    begun: bool,
    server: String,
    dump: String,
    encoding: Option<String>,
    /// What stands behind `\restrict`; the same stands behind `\unrestrict` at the end.
    restricted: Option<String>,
}

/// The last lines that are not empty.
#[derive(Debug, Default)]
struct Tail {
    lines: [String; 3],
    /// Whether the last line has its end.
    ended: bool,
}

impl Head {
    fn line(&mut self, line: &str) -> Result<()> {
        if self.lines >= HEAD_LINES {
            return Ok(());
        }
        self.lines += 1;
        let (_, rest) = (line, |prefix: &str| line.strip_prefix(prefix).map(|rest| rest.trim().to_owned()));
        if line == ALL {
            let message = "this is a dump of a whole server, of pg_dumpall, and not of one database";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("dump each database with pg_dump, and import those"));
        }
        self.begun |= line == BEGIN;
        if let Some(version) = rest("-- Dumped from database version ") {
            version.split(' ').next().unwrap_or_default().clone_into(&mut self.server);
        } else if let Some(version) = rest("-- Dumped by pg_dump version ") {
            version.split(' ').next().unwrap_or_default().clone_into(&mut self.dump);
        } else if let Some(token) = rest("\\restrict ") {
            self.restricted.get_or_insert(token);
        } else if let Some(setting) = rest("SET client_encoding = '") {
            self.encoding.get_or_insert(setting.trim_end_matches("';").to_owned());
        }
        Ok(())
    }
}

impl Tail {
    fn line(&mut self, line: &[u8], ended: bool) {
        self.ended = ended;
        if line.is_empty() {
            return;
        }
        self.lines.rotate_left(1);
        self.lines[2] = String::from_utf8_lossy(line).into_owned();
    }

    /// Whether the dump ends as `pg_dump` ends it.
    fn is_whole(&self, restricted: Option<&str>) -> bool {
        let [first, second, last] = &self.lines;
        let end = match restricted {
            Some(token) => {
                return first == END
                    && second == "--"
                    && *last == format!("\\unrestrict {token}")
                    && self.ended;
            }
            None => (second, last),
        };
        end.0 == END && end.1 == "--" && self.ended
    }
}

fn not_a_dump() -> Error {
    Error::new(ErrorKind::Integrity, "this is no dump of pg_dump: it does not begin like one")
        .with_hint("pgark import takes what pg_dump writes in custom, directory, tar or plain format, as it wrote it; a file that was compressed afterwards has to be decompressed unless it is SQL")
}

/// Looks whether it begins like a dump.
pub(super) fn check_head(path: &Path, method: Method) -> Result<()> {
    let mut head = Head::default();
    let mut reader = plain_reader(path, method)?;
    let mut lines = Lines::default();
    while head.lines < HEAD_LINES && !head.begun {
        let piece = reader.fill_buf().map_err(broken)?;
        if piece.is_empty() {
            break;
        }
        let length = piece.len();
        lines.push(piece, |line, _| head.line(&String::from_utf8_lossy(line)))?;
        reader.consume(length);
    }
    if head.begun { Ok(()) } else { Err(not_a_dump()) }
}

/// Keeps a dump as one part.
pub(super) fn import(path: &Path, method: Method, target: &Target) -> Result<Dumped> {
    check_head(path, method)?;
    let (mut head, mut tail, mut lines) = (Head::default(), Tail::default(), Lines::default());
    let mut reader = plain_reader(path, method)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut part = target.open(SQL, &name)?;
    loop {
        let piece = reader.fill_buf().map_err(broken)?;
        if piece.is_empty() {
            break;
        }
        let length = piece.len();
        lines.push(piece, |line, ended| {
            tail.line(line, ended);
            head.line(&String::from_utf8_lossy(line))
        })?;
        part.add(piece)?;
        reader.consume(length);
    }
    lines.finish(|line, ended| {
        tail.line(line, ended);
        Ok(())
    })?;
    if !tail.is_whole(head.restricted.as_deref()) {
        let message = format!("the dump is cut: it does not end with \"{END}\"");
        return Err(Error::new(ErrorKind::Integrity, message)
            .with_hint("take another copy of the file, or dump the database again"));
    }
    part.end()?;
    // SQL has the database's name, and its locale, only with --create.
    let database = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let facts = with_locale_c(
        database.trim_end_matches(".sql").to_owned(),
        head.encoding.unwrap_or_else(|| "UTF8".to_owned()),
    );
    Ok(Dumped {
        facts: plain_facts(&facts.name, &head.server, &head.dump),
        contents: facts.to_contents()?,
        warnings: vec![
            "a dump in SQL does not say the database's locale: a restore makes it with C".to_owned(),
        ],
        ..Dumped::default()
    })
}

/// Cuts text into lines, wherever its pieces are cut. Of a long one the beginning is given.
#[derive(Default)]
struct Lines {
    open: Vec<u8>,
    begun: bool,
}

impl Lines {
    fn push(&mut self, mut piece: &[u8], mut line: impl FnMut(&[u8], bool) -> Result<()>) -> Result<()> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.add(&piece[..end]);
            line(&self.open, true)?;
            self.open.clear();
            self.begun = false;
            piece = &piece[end + 1..];
        }
        if !piece.is_empty() {
            self.add(piece);
            self.begun = true;
        }
        Ok(())
    }

    /// A last line without end.
    fn finish(self, mut line: impl FnMut(&[u8], bool) -> Result<()>) -> Result<()> {
        if self.begun { line(&self.open, false) } else { Ok(()) }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = LINE_LIMIT.saturating_sub(self.open.len());
        self.open.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
