use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::Outside;

/// Files that include each other go no deeper (`CONF_FILE_MAX_DEPTH` in `conffiles.h`).
const DEEPEST: usize = 10;
/// Settings that say where the source's files are. A copy has its own.
const PLACES: [&str; 5] = ["data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"];
/// Where nothing was saved: a server starts, and lets in whom the system says it is.
const NO_SETTINGS: &str = "\
# Written by pgark. The server's configuration was outside its data directory, and is not in the backup.
# Without it the server's limits are not known; so it answers only once it has recovered.
hot_standby = off
";
const NO_HBA: &str = "\
# Written by pgark. The server's pg_hba.conf was outside its data directory, and is not in the backup.
local all all peer
";
const NO_IDENT: &str = "\
# Written by pgark. The server's pg_ident.conf was outside its data directory, and is not in the backup.
";

/// The saved files, by the names that they had.
type Files = BTreeMap<PathBuf, String>;

/// A file that a server started with `-D` reads.
struct Target {
    name: &'static str,
    /// Where the source had it, if that was outside.
    saved: Option<PathBuf>,
    otherwise: &'static str,
    /// Its lines are settings.
    settings: bool,
}

/// Makes configuration files in a restored data directory, so that a server starts on it: from those that were
/// saved, with what they include, and without the settings that name the source's folders. Returns what it wrote.
///
/// `folder` has the saved files as they were. It can be done again.
pub(in crate::physical) fn place(base: &Path, folder: &Path, outside: &Outside) -> io::Result<Vec<PathBuf>> {
    let mut files = Files::new();
    collect(folder, Path::new("/"), &mut files)?;
    let saved = |path: &Option<String>| path.as_ref().map(PathBuf::from).filter(|p| files.contains_key(p));
    let [config, hba_file, ident] = [
        ("postgresql.conf", NO_SETTINGS, &outside.config),
        ("pg_hba.conf", NO_HBA, &outside.hba),
        ("pg_ident.conf", NO_IDENT, &outside.ident),
    ]
    .map(|(name, otherwise, path)| Target {
        name,
        saved: saved(path),
        otherwise,
        settings: name.starts_with("postgresql"),
    });
    let moved = hba_file.saved.is_some() || ident.saved.is_some();
    let mut written = Vec::new();
    for target in [config, hba_file, ident] {
        let path = base.join(target.name);
        let text = match &target.saved {
            Some(source) => Some(joined(&files, source, target.settings)),
            None if !path.exists() => Some(target.otherwise.to_owned()),
            // It is the source's own, and names files that lie here now.
            None if target.settings && moved => {
                let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
                Some(without_places(&text))
            }
            None => None,
        };
        if let Some(text) = text {
            // The file is there as it was or as it will be, also where this is interrupted.
            let new = base.join(format!("{}.pgark", target.name));
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(true).mode(0o600);
            options.open(&new)?.write_all(text.as_bytes())?;
            std::fs::rename(new, &path)?;
            written.push(path);
        }
    }
    Ok(written)
}

/// The files below a folder, as they were named.
fn collect(folder: &Path, name: &Path, files: &mut Files) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = name.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &name, files)?;
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(entry.path())?).into_owned();
            files.insert(name, text);
        }
    }
    Ok(())
}

/// A saved file as one, with those that it includes where it includes them.
fn joined(files: &Files, path: &Path, settings: bool) -> String {
    let mut out = format!("# Written by pgark from {}, which the backup has as it was.\n", path.display());
    join(files, path, settings, 0, &mut out);
    out
}

fn join(files: &Files, path: &Path, settings: bool, depth: usize, out: &mut String) {
    for line in files.get(path).map(|text| text.lines()).into_iter().flatten() {
        let (name, value) = parse(line);
        let include = matches!(name.as_str(), "include" | "include_if_exists" | "include_dir");
        if !include {
            let left_out = settings && PLACES.contains(&name.as_str());
            push(out, if left_out { "# pgark: " } else { "" }, line);
            continue;
        }
        let beside = normal(&path.parent().unwrap_or(Path::new("/")).join(value));
        let found: Vec<&PathBuf> = if name == "include_dir" {
            files.keys().filter(|file| file.parent() == Some(&beside) && is_conf(file)).collect()
        } else {
            files.keys().filter(|file| **file == beside).collect()
        };
        push(out, "# pgark: ", line);
        for file in found.into_iter().filter(|_| depth < DEEPEST) {
            join(files, file, settings, depth + 1, out);
        }
    }
}

/// What `include_dir` takes (`GetConfFilesInDir` in `conffiles.c`).
fn is_conf(file: &Path) -> bool {
    let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && file.extension().is_some_and(|extension| extension == "conf")
}

/// The same settings without those that name files of the source.
fn without_places(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let left_out = PLACES.contains(&parse(line).0.as_str());
        push(&mut out, if left_out { "# pgark: " } else { "" }, line);
    }
    out
}

fn push(out: &mut String, before: &str, line: &str) {
    out.extend([before, line, "\n"]);
}

/// Name, in lower case, and value of a line: `name = 'value' # comment` (`guc-file.l`), or `name "value"`
/// (`hba.c`).
fn parse(line: &str) -> (String, String) {
    let line = line.trim_start();
    let end =
        line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.chars().next() {
        Some(quote @ ('\'' | '"')) => unquoted(&rest[1..], quote),
        _ => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned(),
    };
    (name.to_ascii_lowercase(), value)
}

/// Up to the closing quote; a doubled one, or one behind a backslash, is part of the text.
fn unquoted(text: &str, quote: char) -> String {
    let (mut value, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        if c == quote && chars.next_if_eq(&quote).is_none() {
            break;
        }
        let escaped = if c == '\\' { chars.next() } else { None };
        value.push(escaped.unwrap_or(c));
    }
    value
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        for (line, name, value) in [
            ("data_directory = '/var/lib/it''s'\t# comment", "data_directory", "/var/lib/it's"),
            ("  Port=5432#x", "port", "5432"),
            ("include_dir 'conf.d'", "include_dir", "conf.d"),
            ("include \"a b\"", "include", "a b"),
            ("# hba_file = 'x'", "", "hba_file"),
            ("", "", ""),
        ] {
            let (found, said) = parse(line);
            assert_eq!(found, name, "{line}");
            if !name.is_empty() {
                assert_eq!(said, value, "{line}");
            }
        }
    }

    #[test]
    fn what_is_included_stands_where_it_was_included() {
        let files: Files = [
            ("/etc/pg/main.conf", "a = 1\ninclude_dir 'conf.d'\ninclude '../other.conf'\nhba_file = '/x'\ninclude 'main.conf'\nb = 2\n"),
            ("/etc/pg/conf.d/2.conf", "d = 1\n"),
            ("/etc/pg/conf.d/1.conf", "c = 1\n"),
            ("/etc/pg/conf.d/.hidden.conf", "e = 1\n"),
            ("/etc/other.conf", "data_directory '/y'\nf = 1"),
        ]
        .map(|(name, text)| (PathBuf::from(name), text.to_owned()))
        .into();
        let text = joined(&files, Path::new("/etc/pg/main.conf"), true);
        let settings: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(settings[..4], ["a = 1", "c = 1", "d = 1", "f = 1"]);
        // It includes itself, and that ends.
        assert_eq!(settings.iter().filter(|line| **line == "b = 2").count(), DEEPEST + 1);
    }
}
