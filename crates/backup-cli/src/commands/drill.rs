use std::fmt::Write as _;
use std::process::ExitCode;

use pgark::drill::{DrillRecord, Outcome, Step};
use pgark::{CancellationToken, Result};
use serde_json::json;

use crate::args::{Cli, DrillArgs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &DrillArgs, cancel: &CancellationToken) -> Result<ExitCode> {
    let mut settings = cli.settings()?;
    let wanted = args.apply(&mut settings)?;
    let cluster = cli.cluster(&settings)?;
    let observer = progress::observer(cli.quiet, cli.json);
    let record = Box::pin(settings.run_drill(&cluster, wanted, Some(observer), cancel)).await?;
    if cli.json {
        render::print_json(&json!(record))?;
    } else if !cli.quiet || !record.good {
        render::print(&text(&record))?;
    }
    Ok(ExitCode::from(record.code()))
}

fn text(record: &DrillRecord) -> String {
    let mut text = format!(
        "drill {}: {}: backup {} on {}, {}\n",
        record.id,
        if record.good { "good" } else { "FAILED" },
        record.backup,
        record.place,
        record
            .server_version
            .as_deref()
            .map_or_else(|| "no server".to_owned(), |v| format!("PostgreSQL {v}")),
    );
    for phase in &record.phases {
        let step = match phase.step {
            Step::Restore => "restore",
            Step::Recover if record.kind == pgark::physical::KIND => "start and replay",
            Step::Recover => "start",
            Step::Amcheck => "pg_amcheck",
            Step::Compare => "comparison",
            Step::Checks => "checks",
            Step::Checksums => "checksums",
            _ => "step",
        };
        let outcome = match phase.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            _ => "not done",
        };
        let _ = writeln!(
            text,
            "  {step:<17} {outcome:<9} {:>8.1} s  {}",
            phase.seconds,
            render::shown(&phase.note)
        );
        for found in &phase.found {
            let _ = writeln!(text, "    {}", render::shown(found));
        }
    }
    for warning in &record.warnings {
        let _ = writeln!(text, "  note: {}", render::shown(warning));
    }
    if let Some(recovered) = &record.recovered {
        let of = |value: &Option<String>| value.as_deref().unwrap_or("unknown").to_owned();
        let _ = writeln!(
            text,
            "  recovered ({}) up to {}, last commit {}",
            render::shown(&record.target),
            of(&recovered.stopped_at),
            of(&recovered.last_commit)
        );
    }
    if record.good {
        let bytes = render::bytes(record.raw_bytes);
        let _ = writeln!(text, "  recovery time {:.1} s for {bytes}", record.rto_seconds);
    }
    text
}
