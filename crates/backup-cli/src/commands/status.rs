use std::fmt::Write as _;
use std::process::ExitCode;

use jiff::Timestamp;
use pgark::check::Level;
use pgark::repository::ClusterName;
use pgark::status::{Status, length};
use pgark::{ErrorKind, Result};
use serde_json::json;

use super::check;
use crate::args::{Cli, StatusArgs};
use crate::render;

pub(super) async fn run(cli: &Cli, args: &StatusArgs) -> Result<ExitCode> {
    let settings = cli.settings()?;
    let clusters: Vec<ClusterName> = if args.all {
        settings.open_repository().await?.clusters().await?
    } else {
        vec![cli.cluster(&settings)?]
    };
    let mut all = Vec::with_capacity(clusters.len());
    for cluster in &clusters {
        all.push(settings.status(cluster).await?);
    }
    let worst = all.iter().map(|status| status.level).max().unwrap_or(Level::Good);
    if cli.json {
        render::print_json(&json!({"level": worst, "clusters": all}))?;
    } else if !cli.quiet || worst == Level::Bad {
        render::print(&all.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(if worst == Level::Bad { ExitCode::from(ErrorKind::Attention.code()) } else { ExitCode::SUCCESS })
}

fn ago(status: &Status, time: Timestamp) -> String {
    length(status.at.duration_since(time).as_secs())
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let level = match status.level {
        Level::Good => "good",
        Level::Warning => "warning",
        Level::Bad => "BAD",
    };
    let _ = writeln!(text, "{}: {level}", status.cluster);
    for series in &status.series {
        let of =
            series.database.as_ref().map(|name| format!(" of {}", render::shown(name))).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {:<18}{}, {} ago, {}; {} in all",
            format!("{}{of}", series.kind),
            series.newest,
            ago(status, series.holds),
            render::bytes(series.stored_bytes),
            series.backups
        );
    }
    if let Some(rpo) = &status.rpo {
        let _ = writeln!(text, "  {:<18}{} of changes (by {})", "would be lost", length(rpo.seconds), rpo.by);
    }
    if let Some(window) = &status.window {
        let to = window.to.map(|to| format!(" to {to:.0}")).unwrap_or_default();
        let _ = writeln!(text, "  {:<18}{:.0}{to}", "recovery", window.from);
    }
    if let Some(wal) = &status.wal {
        let _ =
            writeln!(text, "  {:<18}{} segments, {}", "WAL", wal.segments, render::bytes(wal.stored_bytes));
    }
    let verified = match status.verify.last {
        Some(last) => format!("{} ago; {} backups never were", ago(status, last), status.verify.never),
        None => "never".to_owned(),
    };
    let _ = writeln!(text, "  {:<18}{verified}", "verified");
    let drill = match &status.drill {
        Some(drill) => {
            let good = if drill.good { "good" } else { "FAILED" };
            format!(
                "{good}, {} ago: {:.1} s to restore {}",
                ago(status, drill.at),
                drill.rto_seconds,
                drill.backup
            )
        }
        None => "never".to_owned(),
    };
    let _ = writeln!(text, "  {:<18}{drill}", "drill");
    let _ = writeln!(text, "  {:<18}{} of backups", "stored", render::bytes(status.backup_bytes));
    for copy in &status.copies {
        let has =
            copy.backups.map_or_else(|| "does not answer".to_owned(), |count| format!("{count} backups"));
        let _ = writeln!(text, "  {:<18}{}: {has}", "copy", render::shown(&copy.place));
    }
    for id in &status.unfinished {
        let _ = writeln!(text, "  {:<18}{id}", "unfinished");
    }
    for line in check::lines(&status.findings, false).lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}
