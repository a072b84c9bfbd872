//! Finds PostgreSQL's client tools and server programs of a fitting version.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::conninfo::ConnInfo;
use super::major_of;
use super::via::{Script, Via};
use crate::error::{Error, ErrorKind, Result};

/// Prints path and version of a program, a line for each folder that has it.
const VERSIONS: &str = include_str!("via/versions.sh");
/// Where packages put several versions side by side: Debian, RHEL (PGDG), Homebrew on both kinds of Mac, and
/// PostgreSQL's own default.
const FOLDERS: &str = "/usr/lib/postgresql/*/bin:/usr/pgsql-*/bin:/opt/homebrew/opt/postgresql@*/bin:\
    /usr/local/opt/postgresql@*/bin:/usr/local/pgsql/bin";

/// Where to look for programs.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    folder: Option<PathBuf>,
}

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Where it is.
    pub path: PathBuf,
    /// Its major version.
    pub major: u32,
    /// Its version, `18.6`.
    pub version: String,
    /// Where it runs; on this host by default.
    pub via: Option<Via>,
}

impl Tools {
    /// Looks in the folders of `PATH` and where packages put several versions side by side.
    pub fn installed() -> Self {
        Self::default()
    }

    /// Looks in one folder only.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// The program of the lowest major version that is at least `major`: the server's own where it is there.
    /// An older one cannot read all of a newer server.
    ///
    /// # Errors
    /// [`ToolMissing`](ErrorKind::ToolMissing), naming the package to install.
    pub fn find(&self, program: &str, major: u32) -> Result<Tool> {
        let mut found = Vec::new();
        for folder in self.folders() {
            found.extend(probe(&folder.join(program)));
            // None is better, and Debian's wrapper takes its time to answer.
            if found.last().is_some_and(|tool| tool.major == major) {
                break;
            }
        }
        choose(found, program, major, None)
    }

    /// The same for a connection: where that goes through a container or another host, the program is one of
    /// there.
    ///
    /// # Errors
    /// Those of [`find`](Self::find), and [`Connect`](ErrorKind::Connect) where nothing can be run there.
    pub async fn find_for(&self, program: &str, major: u32, connection: &ConnInfo) -> Result<Tool> {
        let Some(via) = connection.via() else { return self.find(program, major) };
        let folder = self.folder.as_deref().unwrap_or(Path::new("")).to_string_lossy();
        let script = Script::new().set("program", program).set("folder", &folder).set("folders", FOLDERS);
        let told = via.run(script, VERSIONS, b"").await?;
        let found = told.lines().filter_map(|line| {
            let (path, words) = line.split_once('\t')?;
            Tool::of_words(path.into(), words, Some(via))
        });
        choose(found.collect(), program, major, Some(via))
    }

    fn folders(&self) -> Vec<PathBuf> {
        if let Some(folder) = &self.folder {
            return vec![folder.clone()];
        }
        let mut folders = Vec::new();
        // Debian, RHEL (PGDG), Homebrew on both kinds of Mac, and PostgreSQL's own default.
        for (root, bin) in [
            ("/usr/lib/postgresql", "bin"),
            ("/usr", "bin"),
            ("/opt/homebrew/opt", "bin"),
            ("/usr/local/opt", "bin"),
        ] {
            let Ok(entries) = std::fs::read_dir(root) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let versioned = name.starts_with("pgsql-")
                    || name.starts_with("postgresql@")
                    || name.parse::<u32>().is_ok();
                if versioned {
                    folders.push(entry.path().join(bin));
                }
            }
        }
        folders.push(PathBuf::from("/usr/local/pgsql/bin"));
        // Last, since Debian's /usr/bin/pg_dump is a wrapper that chooses a version by itself.
        folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        folders
    }
}

/// The one of the lowest major version that will do.
fn choose(found: Vec<Tool>, program: &str, major: u32, via: Option<&Via>) -> Result<Tool> {
    let newest = found.iter().map(|t| t.major).max();
    if let Some(tool) = found.into_iter().filter(|t| t.major >= major).min_by_key(|t| t.major) {
        return Ok(tool);
    }
    let place = via.map(|via| format!(" in {via}")).unwrap_or_default();
    let message = match newest {
        Some(newest) => format!("{program} {newest}{place} is too old for PostgreSQL {major}"),
        None => format!("{program} is not installed{place}"),
    };
    let server_program = matches!(program, "initdb" | "pg_ctl" | "postgres");
    let there = if via.is_some() { " there" } else { "" };
    let package = if server_program { "postgresql" } else { "postgresql-client" };
    Err(Error::new(ErrorKind::ToolMissing, message).with_hint(format!(
            "install version {major} or later{there}: apt-get install {package}-{major} (Debian, Ubuntu; from apt.postgresql.org \
             where the release has an older one), dnf install postgresql{major} (Fedora, RHEL), brew install postgresql@{major}; \
             or name the folder it is in with --pg-bin"
        )))
}

/// Asks a program for its version: `pg_dump (PostgreSQL) 18.6 (Debian 18.6-1)`.
fn probe(path: &Path) -> Option<Tool> {
    if !path.is_file() {
        return None;
    }
    let output = Command::new(path).arg("--version").output().ok().filter(|o| o.status.success())?;
    Tool::of_words(path.to_owned(), &String::from_utf8_lossy(&output.stdout), None)
}

impl Tool {
    /// A program that said this of its version.
    fn of_words(path: PathBuf, words: &str, via: Option<&Via>) -> Option<Self> {
        let version = words.split_once("(PostgreSQL)")?.1.split_whitespace().next()?.to_owned();
        Some(Self { path, major: major_of(&version)?, version, via: via.cloned() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fake(folder: &Path, version: &str) {
        let path = folder.join("pg_dump");
        std::fs::write(&path, format!("#!/bin/sh\necho 'pg_dump (PostgreSQL) {version} (Fake)'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn an_old_or_missing_tool_says_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let tools = Tools::in_folder(folder.path());
        let missing = tools.find("pg_dump", 17).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::ToolMissing);
        fake(folder.path(), "15.18");
        let old = tools.find("pg_dump", 17).unwrap_err();
        assert_eq!(old.to_string(), "pg_dump 15 is too old for PostgreSQL 17");
        assert!(old.hint().unwrap().contains("postgresql-client-17"));
        assert_eq!(tools.find("pg_dump", 15).unwrap().version, "15.18");
        fake(folder.path(), "19beta1");
        assert_eq!(tools.find("pg_dump", 17).unwrap().major, 19);
    }
}
