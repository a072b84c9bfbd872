use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use pgark::logical::{DatabaseContents, Describe, KIND, LogicalContents};
use pgark::repository::{BackupPlace, BackupRecord};
use pgark::{CancellationToken, Error, ErrorKind, Repository, Restore, Result};
use serde_json::{Map, Value, json};

use super::{catalog, find, with_settings};
use crate::args::{Cli, ShowArgs};
use crate::render;

pub(super) async fn run(cli: &Cli, args: &ShowArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    let (repository, catalog) = catalog(cli, &settings).await?;
    let record = find(&repository, &catalog, &args.backup).await?;
    let contents = if args.contents {
        let builder = |repository: Repository, record: BackupRecord| {
            with_settings(Restore::builder().backup(repository, record).restorer(Describe), cli, &settings)
        };
        if record.kind != KIND {
            let message =
                format!("{} is a {} backup, which has no tables to be listed", record.id, record.kind);
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("leave --contents out"));
        }
        Some(builder(repository.clone(), record.clone())?.build()?.run(cancel).await?.target)
    } else {
        None
    };
    let places = catalog.places_of(&repository, &record.id);
    if cli.json {
        let mut shown = json!({"backup": record});
        if let Some(contents) = contents {
            shown["contents"] = as_json(&contents)?;
        }
        if let Some(places) = places {
            shown["copies"] = json!(places);
        }
        return render::print_json(&shown);
    }
    let mut text = render::summary(&record);
    places.iter().flatten().for_each(|place| of_place(place, &mut text));
    match contents {
        Some(contents) => text.push_str(&as_text(&contents)?),
        None => {
            for object in record.objects() {
                let (key, bytes) = (render::shown(&object.key), render::bytes(object.bytes));
                let _ = writeln!(text, "{:<12} {key} ({bytes})", "object");
            }
        }
    }
    render::print(&text)
}

fn of_place(place: &BackupPlace, text: &mut String) {
    let state = match place.has {
        Some(true) => "has it",
        Some(false) => "LACKS IT (pgark sync brings it)",
        None => "does not answer",
    };
    let _ = writeln!(text, "{:<12} {}: {state}", "copy", render::shown(&place.place));
}

/// The databases, or the one archive.
fn as_json(contents: &Map<String, Value>) -> Result<Value> {
    Ok(match LogicalContents::described(contents)? {
        Some(contents) => json!(contents),
        None => json!({"database": contents.get("database"), "parts": contents.get("parts")}),
    })
}

fn as_text(contents: &Map<String, Value>) -> Result<String> {
    let Some(contents) = LogicalContents::described(contents)? else {
        return Ok("contents     one archive of pg_dump, or SQL: its tables are not listed\n".to_owned());
    };
    let mut text = String::new();
    contents.databases.iter().for_each(|one| database(one, &mut text));
    if contents.globals.is_some() {
        text.push_str("globals      roles, tablespaces and settings of the server\n");
    }
    Ok(text)
}

fn database(database: &DatabaseContents, text: &mut String) {
    let line = |text: &mut String, name: &str, what: String| {
        let _ = writeln!(text, "{name:<12} {what}");
    };
    let facts = &database.facts;
    text.push('\n');
    line(text, "database", format!("{} ({}, {})", render::shown(&facts.name), facts.encoding, facts.collate));
    line(
        text,
        "versions",
        format!("PostgreSQL {}, pg_dump {}", database.server_version, database.pg_dump_version),
    );
    if let Some(objects) = &database.large_objects {
        line(text, "large objs", format!("{}, {}", objects.count, render::bytes(objects.bytes)));
    }
    for extension in &database.extensions {
        line(text, "extension", format!("{} {}", render::shown(&extension.name), extension.version));
    }
    for left_out in &database.left_out {
        line(text, "left out", format!("{} {}: {}", left_out.count, left_out.what, left_out.why));
    }
    let (rows, bytes) = database.tables.iter().fold((0, 0), |(r, b), t| (r + t.rows, b + t.bytes));
    let sum = format!("{}, {rows} rows, {}", database.tables.len(), render::bytes(bytes));
    line(text, "tables", sum);
    if database.tables.is_empty() {
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["TABLE", "ROWS", "BYTES"]);
    for one in &database.tables {
        let name = render::shown(&format!("{}.{}", one.schema, one.name));
        table.add_row([name, one.rows.to_string(), render::bytes(one.bytes)]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "{}", table.trim_fmt());
}
