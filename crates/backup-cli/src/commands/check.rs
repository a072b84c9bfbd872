use std::fmt::Write as _;
use std::process::ExitCode;

use pgark::check::{Level, Report};
use pgark::config::CheckOptions;
use pgark::{ErrorKind, Result};
use serde_json::json;

use crate::args::{CheckArgs, Cli};
use crate::render;

pub(super) async fn run(cli: &Cli, args: &CheckArgs) -> Result<ExitCode> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    settings.via.clone_from(&args.via);
    let cluster = cli.cluster(&settings)?;
    let options = CheckOptions { logical: args.logical, physical: args.physical };
    let report = settings.check(&cluster, args.db.as_deref(), options).await;
    let worst = report.worst();
    if cli.json {
        render::print_json(&json!({"level": worst, "checks": report.checks}))?;
    } else if !cli.quiet || worst == Level::Bad {
        render::print(&text(&report, cli.quiet))?;
    }
    Ok(if worst == Level::Bad { ExitCode::from(ErrorKind::Attention.code()) } else { ExitCode::SUCCESS })
}

fn text(report: &Report, only_bad: bool) -> String {
    let mut text = String::new();
    for check in report.checks.iter().filter(|check| !only_bad || check.level == Level::Bad) {
        let level = match check.level {
            Level::Good => "good",
            Level::Warning => "warning",
            Level::Bad => "BAD",
        };
        let _ = writeln!(text, "{level:<8}{:<11} {}", check.area, render::shown(&check.found));
        if let Some(mend) = &check.mend {
            let _ = writeln!(text, "{:20}what to do: {}", "", render::shown(mend));
        }
    }
    text
}
