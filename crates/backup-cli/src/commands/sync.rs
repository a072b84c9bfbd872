use std::fmt::Write as _;
use std::process::ExitCode;

use pgark::copies::{SyncOptions, SyncReport};
use pgark::{CancellationToken, ErrorKind, Result};
use serde_json::json;

use crate::args::{Cli, SyncArgs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &SyncArgs, cancel: &CancellationToken) -> Result<ExitCode> {
    let settings = cli.settings()?;
    let mut options = SyncOptions::default();
    options.jobs = Some(args.jobs);
    options.observer = Some(progress::observer(cli.quiet, cli.json));
    let report = settings.sync(&options, cancel).await?;
    // The bar must be gone before the report is printed.
    drop(options);
    let good = report.is_good();
    if cli.json {
        render::print_json(&json!({"good": good, "sync": report}))?;
    } else if !cli.quiet || !good {
        render::print(&text(&report))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Partial.code()) })
}

fn text(report: &SyncReport) -> String {
    let mut text = String::new();
    for copy in &report.copies {
        let place = render::shown(&copy.copy);
        if !copy.answered {
            let _ = writeln!(text, "{place}: DID NOT ANSWER, and is as it was");
            continue;
        }
        let _ = match (copy.objects, copy.removed.len()) {
            (0, 0) => writeln!(text, "{place}: lacked nothing"),
            (objects, removed) => writeln!(
                text,
                "{place}: {objects} objects ({}) came, {} backups with them; {removed} backups were removed",
                render::bytes(copy.bytes),
                copy.backups.len(),
            ),
        };
    }
    for problem in &report.problems {
        let [copy, what, why] = [&problem.copy, &problem.what, &problem.why].map(|text| render::shown(text));
        let _ = writeln!(text, "NOT DONE: {what} in {copy}: {why}");
    }
    text
}
