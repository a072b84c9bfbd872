use std::fmt::Write as _;
use std::process::ExitCode;

use pgark::audit::{Entry, Head};
use pgark::{ErrorKind, Result};
use serde_json::json;

use crate::args::{AuditCommand, Cli};
use crate::render;

pub(super) async fn run(cli: &Cli, command: &AuditCommand) -> Result<ExitCode> {
    match command {
        AuditCommand::List { last } => list(cli, *last).await.map(|()| ExitCode::SUCCESS),
        AuditCommand::Verify { seen } => verify(cli, *seen).await,
    }
}

async fn list(cli: &Cli, last: Option<u64>) -> Result<()> {
    let settings = cli.settings()?;
    let listing = settings.list_audit(&cli.cluster(&settings)?, last).await?;
    if cli.json {
        return render::print_json(&json!(listing));
    }
    if listing.entries.is_empty() {
        return render::print(&format!("nothing was done yet with backups of {}\n", listing.cluster));
    }
    render::print(&listing.entries.iter().map(line).collect::<String>())
}

fn line(entry: &Entry) -> String {
    let mut line =
        format!("{:>6}  {:.0}  {}@{}  {}", entry.number, entry.at, entry.user, entry.host, entry.action);
    for id in &entry.backups {
        let _ = write!(line, " {id}");
    }
    for (name, value) in &entry.details {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = write!(line, " {name}={}", render::shown(&shown));
    }
    let _ = writeln!(line, ": {}", entry.outcome);
    line
}

async fn verify(cli: &Cli, seen: Option<Head>) -> Result<ExitCode> {
    let settings = cli.settings()?;
    let verified = settings.verify_audit(&cli.cluster(&settings)?, seen).await?;
    if cli.json {
        render::print_json(&json!(verified))?;
    } else if !verified.good {
        let mut text = String::from("the audit log was CHANGED:\n");
        for finding in &verified.report.findings {
            let _ = writeln!(text, "  {}", render::shown(finding));
        }
        render::print(&text)?;
    } else if !cli.quiet {
        let mut text = format!("the audit log is good: {} entries", verified.report.entries);
        if let Some(head) = verified.report.head {
            let _ = write!(text, ", the last one is {head}");
        }
        if let Some(seen) = verified.seen {
            let _ = write!(text, "; {seen} is the one that was the last before");
        }
        render::print(&(text + "\n"))?;
    }
    Ok(if verified.good { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Integrity.code()) })
}
