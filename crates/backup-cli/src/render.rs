//! Results as text and as JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use pgark::repository::BackupSummary;
use pgark::{Error, ErrorKind, Result};
use serde_json::{Value, json};

/// Prints to standard output. A reader that went away (`| head`) ends the command quietly.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("writing to standard output", e))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

/// An error for people: one line, its causes, what to do.
pub(crate) fn error_text(error: &Error) -> String {
    let mut text = format!("pgark: {error}\n");
    for cause in error.causes() {
        let _ = writeln!(text, "  because: {cause}");
    }
    if let Some(advice) = advice(error) {
        let _ = writeln!(text, "  what to do: {advice}");
    }
    text
}

/// An error as JSON.
pub(crate) fn error_json(error: &Error) -> Value {
    json!({"error": {
        "kind": error.kind().name(),
        "code": error.kind().code(),
        "message": error.to_string(),
        "causes": error.causes(),
        "hint": advice(error),
    }})
}

/// What to do: as the error says, else what helps with any failure of its kind.
fn advice(error: &Error) -> Option<&str> {
    let by_kind = match error.kind() {
        ErrorKind::Usage => "pgark help VERB shows what it takes",
        ErrorKind::Config => {
            "check the name of the file and what is in it; docs/configuration.md describes it"
        }
        ErrorKind::Connect | ErrorKind::ConnectionLost => "see the server's log",
        ErrorKind::Auth | ErrorKind::NoDatabase => "check the connection settings",
        ErrorKind::Database | ErrorKind::ToolFailed => "see what PostgreSQL says above, and the server's log",
        ErrorKind::StoreUnavailable => "check the store's URL and the network, and try again",
        ErrorKind::StoreDenied | ErrorKind::BucketMissing | ErrorKind::WrongRegion => {
            "check the repository's URL and what its credentials may do"
        }
        ErrorKind::Attention => "do what stands above",
        ErrorKind::Partial => "put right what stands above, and do the rest again",
        ErrorKind::DiskFull => "free some space, or use another place",
        ErrorKind::Io => "check that the path is right, and the disk in order",
        ErrorKind::Integrity | ErrorKind::ObjectMissing => {
            "use another backup, or another copy of the repository; pgark verify shows what is damaged"
        }
        ErrorKind::KeyMissing | ErrorKind::WrongKey => "name the file with --identity or --passphrase-file",
        ErrorKind::Unsupported => "docs/ says what pgark works with",
        ErrorKind::Internal => "this is a mistake in pgark: please report it, with PGARK_LOG=debug",
        // Whoever cancelled it knows.
        ErrorKind::Cancelled => return None,
        _ => "try again; PGARK_LOG=debug tells more",
    };
    Some(error.hint().unwrap_or(by_kind))
}

/// A number of bytes for people: `1.5 GiB`.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bytes(n: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} bytes") } else { format!("{value:.1} {}", units[unit]) }
}

/// A duration for people.
pub(crate) fn seconds(from: jiff::Timestamp, to: jiff::Timestamp) -> String {
    format!("{:.1} s", to.duration_since(from).as_secs_f64())
}

fn source<'a>(backup: &'a BackupSummary, name: &str) -> &'a str {
    backup.source.get(name).and_then(Value::as_str).unwrap_or("-")
}

/// Names that stand in a record, fit for a terminal.
pub(crate) fn names(backup: &BackupSummary, fact: &str) -> String {
    let names = backup.source.get(fact).and_then(Value::as_array);
    let names: Vec<String> = names.into_iter().flatten().filter_map(Value::as_str).map(shown).collect();
    names.join(", ")
}

/// What the column DATABASE says: a name, or how many.
fn databases(backup: &BackupSummary) -> String {
    let count = |fact| backup.source.get(fact).and_then(Value::as_array).map(Vec::len);
    match (count("databases"), count("databases_failed")) {
        (None, _) => shown(source(backup, "database")),
        (Some(all), None) => format!("all {all}"),
        (Some(done), Some(failed)) => format!("{done} of {}: partial", done + failed),
    }
}

/// Whether pages failed their checksums when the backup was made. It has them as they were.
pub(crate) fn has_damaged_pages(backup: &BackupSummary) -> bool {
    backup.source.get("checksum_failures").and_then(Value::as_bool).unwrap_or(false)
}

/// A text of the repository, fit for a terminal.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The table of `list`.
pub(crate) fn table<'a>(backups: impl Iterator<Item = &'a BackupSummary>) -> String {
    let backups: Vec<&BackupSummary> = backups.collect();
    let mut table = Table::new();
    let mut header = vec!["ID", "DATABASE", "SERVER", "STARTED", "TOOK", "STORED", "ENCRYPTED", "LABEL"];
    let increments = backups.iter().any(|b| b.parent.is_some());
    if increments {
        header.push("INCREMENT OF");
    }
    table.load_style(presets::NOTHING).set_header(header);
    for backup in backups {
        let mut row = vec![
            backup.id.to_string(),
            databases(backup) + if backup.is_selection() { " (part)" } else { "" },
            shown(source(backup, "server_version")),
            format!("{:.0}", backup.started),
            seconds(backup.started, backup.finished),
            bytes(backup.stored_bytes),
            backup.encryption.as_ref().map_or("no", |e| e.method.as_str()).to_owned(),
            shown(backup.label.as_deref().unwrap_or_default()),
        ];
        if increments {
            row.push(backup.parent.as_ref().map(ToString::to_string).unwrap_or_default());
        }
        table.add_row(row);
    }
    if let Some(column) = table.column_mut(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The lines of `show`.
pub(crate) fn summary(backup: &BackupSummary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {}", shown(value));
    };
    line("backup", backup.id.as_str());
    line("cluster", backup.cluster.as_str());
    line("kind", &backup.kind);
    if let Some(parent) = &backup.parent {
        line("increment of", parent.as_str());
    }
    if backup.kind == pgark::physical::KIND {
        let brings_wal = pgark::physical::span(backup).is_none_or(|span| span.wal.brings_wal);
        let place = if brings_wal { "" } else { ", in the archive: it does not restore alone" };
        line("WAL", &format!("{} to {}{place}", source(backup, "start_lsn"), source(backup, "end_lsn")));
    } else if backup.source.contains_key("databases") {
        line("databases", &names(backup, "databases"));
        if !backup.is_complete() {
            line("PARTIAL", &format!("it lacks {}", names(backup, "databases_failed")));
        }
        line("globals", source(backup, "globals"));
    } else {
        line("database", source(backup, "database"));
        if backup.is_selection() {
            line("selection", "only a part of the database is in it");
        }
    }
    line("server", source(backup, "server_version"));
    line("system id", source(backup, "system_identifier"));
    line("started", &format!("{:.0}", backup.started));
    line("took", &seconds(backup.started, backup.finished));
    line("stored", &bytes(backup.stored_bytes));
    line("compression", &backup.compression);
    line("encryption", backup.encryption.as_ref().map_or("none", |e| e.method.as_str()));
    line("host", &backup.host);
    line("written by", &format!("{} {}", backup.tool.name, backup.tool.version));
    if let Some(label) = &backup.label {
        line("label", label);
    }
    if has_damaged_pages(backup) {
        line("damaged", "pages that failed their checksums are in it; the server's log names them");
    }
    if backup.warnings > 0 {
        line("warnings", &backup.warnings.to_string());
    }
    text
}
