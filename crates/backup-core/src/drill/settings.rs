//! Settings of the throwaway server.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use super::workplace::Workplace;
use crate::error::{Error, Result};

/// Settings that keep the server to itself, behind those that were given.
pub(super) fn configuration(given: &[(String, String)], at: &Workplace) -> String {
    let mut text = String::from("\n# Written by pgark for a drill.\n");
    let folder = at.path().display().to_string();
    let hba = at.path().join("pg_hba.conf").display().to_string();
    let own = [
        ("port", "5432"),
        ("listen_addresses", ""),
        ("unix_socket_directories", &folder),
        ("hba_file", &hba),
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("external_pid_file", ""),
        // A subscription must not follow its publisher from here.
        ("max_logical_replication_workers", "0"),
        // Transactions are looked at: nothing commits by itself.
        ("autovacuum", "off"),
    ];
    let given = given.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    // Those of the drill come last: it is to itself whatever is given.
    for (name, value) in given.chain(own) {
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        let _ = writeln!(text, "{name} = '{value}'");
    }
    text
}

/// Adds to `postgresql.auto.conf`, which goes before every other file.
pub(super) fn append(data: &Path, text: &str) -> Result<()> {
    let path = data.join("postgresql.auto.conf");
    let written =
        OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| Error::io(format!("writing {}", path.display()), e))
}
