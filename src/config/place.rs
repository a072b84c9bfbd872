//! Places: in a file, for errors; and of repositories.

use std::ops::Range;
use std::path::Path;

use backup_core::{Error, ErrorKind};

/// An error about a piece of a file: `pgark.toml:3:9: …`. The line itself is not shown: a password may stand
/// in it.
pub(super) fn wrong(
    text: &str,
    name: &str,
    span: Option<Range<usize>>,
    why: &str,
    hint: Option<&str>,
) -> Error {
    let why = why.replace('\n', " ");
    let error = match span {
        Some(span) => {
            let before = &text[..span.start.min(text.len())];
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            let number = before.matches('\n').count() + 1;
            let column = before[line_start..].chars().count() + 1;
            Error::new(ErrorKind::Config, format!("{name}:{number}:{column}: {why}"))
        }
        None => Error::new(ErrorKind::Config, format!("{name}: {why}")),
    };
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error.with_hint("docs/configuration.md describes the file"),
    }
}

/// A relative folder is beside the file that names it.
pub(super) fn repository_below(folder: &Path, url: String) -> String {
    if url.contains("://") || url.starts_with("memory:") || Path::new(&url).is_absolute() {
        return url;
    }
    folder.join(url).display().to_string()
}
