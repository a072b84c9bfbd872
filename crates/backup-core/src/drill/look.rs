//! What is looked at in the throwaway server.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::record::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::physical::{Pages, read_cluster};
use crate::postgres::{Cluster, ConnInfo, Lsn};

/// More findings are counted, and not kept.
const KEPT: usize = 100;

/// What came of a look.
pub(super) struct Looked {
    pub(super) outcome: Outcome,
    pub(super) note: String,
    pub(super) found: Vec<String>,
}

impl Looked {
    pub(super) fn not_done(why: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotDone, note: why.into(), found: Vec::new() }
    }

    /// Passed where nothing was found.
    pub(super) fn of(note: impl Into<String>, mut found: Vec<String>) -> Self {
        let outcome = if found.is_empty() { Outcome::Passed } else { Outcome::Failed };
        if found.len() > KEPT {
            let more = found.len() - KEPT;
            found.truncate(KEPT);
            found.push(format!("and {more} more"));
        }
        Self { outcome, note: note.into(), found }
    }
}

/// The last lines of what a program said.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

/// Has `pg_amcheck` read every table and B-tree index of every database. It blocks.
pub(super) fn amcheck(cluster: &Cluster, socket: &Path, user: &str, jobs: usize) -> Result<Looked> {
    if !cluster.programs.has("pg_amcheck") {
        return Ok(Looked::not_done("pg_amcheck is not installed beside the server"));
    }
    let (host, jobs) = (socket.display().to_string(), jobs.to_string());
    let args = [
        "--host",
        &host,
        "--port",
        "5432",
        "--username",
        user,
        "--no-password",
        "--all",
        "--install-missing",
        "--jobs",
        &jobs,
    ];
    let ended = cluster.programs.ended("pg_amcheck", &args)?;
    let note = "tables and B-tree indexes of all databases";
    match ended.code {
        Some(0) => Ok(Looked::of(note, Vec::new())),
        // It says so of whatever it found, and of what the server could not read (pg_amcheck.c).
        Some(2) => {
            let lines = ended.said.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(Looked::of(note, lines.map(str::to_owned).collect()))
        }
        _ if ended.said.contains("extension \"amcheck\" is not available") => {
            Ok(Looked::not_done("the extension amcheck is not installed beside the server"))
        }
        _ => Err(Error::new(ErrorKind::ToolFailed, "pg_amcheck failed").caused_by(last_words(&ended.said))),
    }
}

/// Stops the server, and compares every page with its checksum. It blocks.
pub(super) fn checksums(cluster: &Cluster, threads: usize, cancel: &CancellationToken) -> Result<Looked> {
    let control = cluster.control()?;
    let number = |name: &str| {
        let number = control.get(name).and_then(|value| value.parse().ok());
        number.ok_or_else(|| Error::new(ErrorKind::ToolFailed, format!("pg_controldata tells no {name}")))
    };
    if number("Data page checksum version")? == 0 {
        return Ok(Looked::not_done("the cluster has no data checksums"));
    }
    let pages = Pages {
        bytes: number("Database block size")?,
        segment: number("Blocks per segment of large relation")?,
        // All of them, whenever they were written.
        start: Lsn(u64::MAX),
    };
    cluster.stop("fast").map_err(|e| e.doing("stopping the throwaway server"))?;
    let read = read_cluster(&cluster.data, pages, threads, cancel)?;
    Ok(Looked::of(format!("{} pages", read.pages), read.found))
}

/// A statement of the user's that says whether the data are as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What it is called in reports: the statement, or the name of its file.
    pub name: String,
    /// The SQL.
    pub sql: String,
    /// Whether it is several statements, of which some return nothing. Otherwise it must return one row.
    pub script: bool,
}

impl Check {
    /// One statement, which must return one row whose one column is true.
    pub fn statement(sql: impl Into<String>) -> Self {
        let sql = sql.into();
        Self { name: sql.clone(), sql, script: false }
    }

    /// A file of statements: none may fail, and what they return must be true, row by row.
    pub fn script(name: impl Into<String>, sql: impl Into<String>) -> Self {
        Self { name: name.into(), sql: sql.into(), script: true }
    }
}

/// Runs the user's own statements in each database.
pub(super) async fn checks(
    server: &ConnInfo,
    databases: &[String],
    checks: &Arc<Vec<Check>>,
) -> Result<Looked> {
    if checks.is_empty() {
        return Ok(Looked::not_done("no checks were given"));
    }
    let mut found = Vec::new();
    for database in databases {
        let connection = server.with_database(database);
        for check in checks.iter() {
            let wrong = |why: &str| format!("database {database}: {}: {why}", check.name);
            // Each has a session of its own: what one sets is not seen by the next.
            let session = match connection.connect().await {
                Ok(session) => session,
                Err(e) if e.kind() == ErrorKind::NoDatabase => {
                    found.push(wrong("there is no such database"));
                    continue;
                }
                Err(e) => return Err(e),
            };
            let rows = match session.rows(&check.sql).await {
                Ok(rows) => rows,
                Err(e) if e.kind() == ErrorKind::ConnectionLost => return Err(e),
                Err(e) => {
                    found.push(wrong(&e.to_string()));
                    continue;
                }
            };
            if !check.script && rows.len() != 1 {
                found.push(wrong(&format!("it returned {} rows, and not one", rows.len())));
                continue;
            }
            let not_true =
                rows.iter().find(|row| !matches!(&row[..], [Some(value)] if value == "t" || value == "true"));
            if let Some(row) = not_true {
                let shown: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap_or("null")).collect();
                found.push(wrong(&format!("it returned {}, and not true", shown.join(", "))));
            }
        }
    }
    Ok(Looked::of(format!("{} in {}", checks.len(), databases.join(", ")), found))
}
