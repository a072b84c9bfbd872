use std::fmt::Write as _;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use pgark::config::{PruneAnswer, PruneHow};
use pgark::retention::{PrunePlan, Pruned};
use pgark::{CancellationToken, ErrorKind, Result};
use serde_json::json;

use crate::args::{Cli, PruneArgs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &PruneArgs, cancel: &CancellationToken) -> Result<ExitCode> {
    let settings = cli.settings()?;
    let cluster = cli.cluster(&settings)?;
    let mut retention = settings.retention(&cluster);
    args.apply(&mut retention)?;
    let mut how = PruneHow::default();
    how.apply = args.apply;
    how.allow_more = args.yes;
    how.observer = Some(progress::observer(cli.quiet, cli.json));
    let answer = settings.prune(&cluster, &retention, how, cancel).await?;
    let left = answer.applied.as_ref().is_some_and(|done| !done.left.is_empty());
    if cli.json {
        render::print_json(&json!(answer))?;
    } else if !cli.quiet || left {
        render::print(&text(&answer))?;
    }
    Ok(if left { ExitCode::from(ErrorKind::Partial.code()) } else { ExitCode::SUCCESS })
}

fn text(answer: &PruneAnswer) -> String {
    let mut text = plan(&answer.plan);
    match &answer.applied {
        Some(done) => text.push_str(&applied(done)),
        None if answer.plan.is_nothing() => text.push_str("nothing would be removed\n"),
        None => {
            let sums = answer.plan.remove;
            let _ = writeln!(
                text,
                "{} backups ({}) and {} segments of WAL ({}){} would be removed: add --apply to do it",
                sums.backups,
                render::bytes(sums.stored_bytes),
                sums.wal_segments,
                render::bytes(sums.wal_bytes),
                others(sums.wal_others),
            );
        }
    }
    text
}

/// Nothing, where there are none: mostly.
fn others(count: u64) -> String {
    if count > 0 { format!(", with {count} objects that belong to it,") } else { String::new() }
}

fn plan(plan: &PrunePlan) -> String {
    if plan.backups.is_empty() {
        return format!("there are no backups of {} yet\n", plan.cluster);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "ID", "DATABASE", "STORED", "WHY"]);
    for backup in &plan.backups {
        let again = if backup.marked && !backup.keep { " (marked by a prune that did not end)" } else { "" };
        table.add_row([
            if backup.keep { "keep" } else { "REMOVE" }.to_owned(),
            backup.id.to_string(),
            render::shown(backup.database.as_deref().unwrap_or("-")),
            render::bytes(backup.stored_bytes),
            render::shown(&backup.reasons.join("; ")) + again,
        ]);
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    for wal in &plan.wal {
        let from = wal.needed_from.map(|lsn| format!(" from {lsn} on")).unwrap_or_default();
        let _ = writeln!(text, "WAL of {}: {}{from}", wal.system_identifier, render::shown(&wal.why));
        for stretch in &wal.remove {
            let _ = writeln!(
                text,
                "  REMOVE {} to {}: {} segments, {}",
                stretch.first,
                stretch.last,
                stretch.segments,
                render::bytes(stretch.stored_bytes),
            );
        }
        if wal.others > 0 {
            let _ = writeln!(text, "  REMOVE {} restore points, histories and other objects", wal.others);
        }
    }
    if plan.wal_keys > 0 {
        let _ =
            writeln!(text, "REMOVE {} keys of WAL: nothing that stays is sealed with them", plan.wal_keys);
    }
    for id in &plan.interrupted {
        let _ = writeln!(text, "REMOVE what is left of {id}: a prune did not end");
    }
    text
}

fn applied(done: &Pruned) -> String {
    let mut text = format!(
        "removed {} backups: {} objects, and {} of WAL\n",
        done.removed.len(),
        done.objects,
        done.wal_objects
    );
    for id in &done.saved {
        let _ = writeln!(text, "saved: {id} (something needs it that came meanwhile)");
    }
    for left in &done.left {
        let _ = writeln!(text, "LEFT: {}: {}", render::shown(&left.object), render::shown(&left.why));
    }
    text
}
