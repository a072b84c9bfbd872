//! Which object failed: `pg_restore`'s words, read with the table of contents.

use std::error::Error as _;

use super::super::archive::{Entry, Toc};
use crate::error::{Error, ErrorKind};

/// What one object failed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// `TABLE public.people (of anna)`, where the tool said it.
    pub(super) object: Option<String>,
    /// The server's message.
    pub(super) message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.object {
            Some(object) => write!(f, "{object}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// `TABLE public.people (of anna)`
pub(super) fn describe(entry: &Entry) -> String {
    let name = entry.name_text();
    // What they are of stands in the name.
    let named = matches!(entry.kind.as_str(), "COMMENT" | "ACL" | "SECURITY LABEL");
    let schema = if named { String::new() } else { entry.schema_text() };
    let dot = if schema.is_empty() { "" } else { "." };
    let owner = String::from_utf8_lossy(entry.owner.as_deref().unwrap_or_default()).into_owned();
    let of = if owner.is_empty() { String::new() } else { format!(" (of {owner})") };
    format!("{} {schema}{dot}{name}{of}", entry.kind)
}

/// Reads the words of `pg_restore` (`warn_or_exit_horribly` in `pg_backup_archiver.c`, PostgreSQL 15 to 18): a line
/// "from TOC entry 215; 1259 16388 TABLE people anna" goes before the error of the object. With several jobs it is
/// missing, and the statement tells which object it is.
pub(super) fn failures(words: &str, toc: &Toc) -> Vec<Failure> {
    let mut found: Vec<Failure> = Vec::new();
    let mut object = None;
    let mut command = String::new();
    for line in words.lines() {
        if let Some((_, said)) = line.split_once("error: ").filter(|(tool, _)| is_tool(tool)) {
            name(&mut found, &mut command, toc);
            let said = said.split_once("ERROR:").map_or(said, |(_, message)| message).trim();
            // What follows from an error that is known.
            if !said.starts_with("a worker process died") {
                found.push(Failure { object: object.take(), message: said.to_owned() });
            }
        } else if is_tool(line.split_inclusive(':').next().unwrap_or_default()) {
            name(&mut found, &mut command, toc);
            let id = line.split_once("from TOC entry ").and_then(|(_, rest)| rest.split(';').next());
            object = id
                .and_then(|id| id.trim().parse().ok())
                .and_then(|id| toc.entry(id))
                .map(describe)
                .or(object);
        } else if let Some((_, said)) = line.split_once("ERROR:").filter(|_| line.starts_with("psql:")) {
            found.push(Failure { object: None, message: said.trim().to_owned() });
        } else if let Some(first) = line.strip_prefix("Command was: ") {
            first.clone_into(&mut command);
        } else if !command.is_empty() {
            command.push('\n');
            command.push_str(line);
        } else if let (Some(detail), Some(last)) = (line.strip_prefix("DETAIL:"), found.last_mut()) {
            last.message = format!("{} ({})", last.message, detail.trim());
        }
    }
    name(&mut found, &mut command, toc);
    found
}

/// Names the object of the last failure by the statement that failed, where nothing else did.
fn name(found: &mut [Failure], command: &mut String, toc: &Toc) {
    let command = one_line(&std::mem::take(command));
    let Some(last) = found.last_mut().filter(|last| last.object.is_none() && !command.is_empty()) else {
        return;
    };
    let is_it = |entry: &&Entry| {
        let definition = entry.definition.as_deref().unwrap_or_default();
        one_line(&String::from_utf8_lossy(definition)).starts_with(&command)
    };
    last.object = toc.entries.iter().find(is_it).map(describe);
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `pg_restore: `, and not words of a server.
fn is_tool(before: &str) -> bool {
    before.trim_end().ends_with("pg_restore:") || before.trim_end().ends_with("psql:")
}

/// The error of a tool, told by the object that failed. Others stay as they are.
pub(super) fn explain(error: Error, toc: &Toc) -> Error {
    if !matches!(error.kind(), ErrorKind::ToolFailed | ErrorKind::Database) {
        return error;
    }
    let words = error.source().map(ToString::to_string).unwrap_or_default();
    let Some(first) = failures(&words, toc).into_iter().find(|f| f.object.is_some()) else { return error };
    Error::new(ErrorKind::Database, format!("restoring {first}"))
        .with_hint(
            "put it right on the server, leave the object out, or go on after errors with --keep-going",
        )
        .caused_by(words)
}

/// One error of several.
pub(super) fn all(failures: &[Failure]) -> Option<Error> {
    let words: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let count = failures.len();
    let objects = if count == 1 { "one object" } else { "objects" };
    let first = words.first()?;
    let message = if count == 1 {
        format!("{objects} failed, the rest is restored: {first}")
    } else {
        format!("{count} {objects} failed, the rest is restored: {}", words.join("; "))
    };
    Some(
        Error::new(ErrorKind::Database, message)
            .with_hint("put right what the server says, and restore these objects with --table"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::archive::{Header, TAR};
    use super::*;

    #[test]
    fn an_object_that_failed_has_a_name() {
        let entry = Entry {
            id: 215,
            kind: "TABLE".to_owned(),
            schema: Some(b"odd name".to_vec()),
            name: Some(b"t 1".to_vec()),
            owner: Some(b"anna".to_vec()),
            definition: Some(b"CREATE TABLE a\n    (b int);\n".to_vec()),
            ..Entry::default()
        };
        let header = Header {
            version: (1, 14, 0),
            int_size: 4,
            offset_size: 8,
            format: TAR,
            compression: 0,
            created: [0; 7],
            database: None,
            server_version: None,
            dump_version: None,
        };
        let toc = Toc { header, entries: vec![entry] };
        let words = "pg_restore: while PROCESSING TOC:\n\
                     pg_restore: from TOC entry 215; 1259 16388 TABLE t 1 anna\n\
                     pg_restore: error: could not execute query: ERROR:  relation \"t 1\" already exists\n\
                     Command was: CREATE TABLE x; -- error: no\n\
                     pg_restore: error: could not execute query: ERROR:  second\n\
                     pg_restore: warning: errors ignored on restore: 2";
        let found = failures(words, &toc);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].to_string(), "TABLE odd name.t 1 (of anna): relation \"t 1\" already exists");
        assert_eq!(found[1].to_string(), "second");
        assert!(all(&found).unwrap().to_string().starts_with("2 objects failed"));
        let parallel = "pg_restore: error: could not execute query: ERROR:  no\nDETAIL:  Key.\nCommand was: CREATE TABLE a\n   (b int);\n\n\n\
                        pg_restore: error: a worker process died unexpectedly";
        assert_eq!(failures(parallel, &toc)[0].to_string(), "TABLE odd name.t 1 (of anna): no (Key.)");
        let error = Error::new(ErrorKind::ToolFailed, "pg_restore failed").caused_by(words);
        assert!(
            explain(error, &toc).to_string().starts_with("restoring TABLE odd name.t 1 (of anna): relation")
        );
    }
}
