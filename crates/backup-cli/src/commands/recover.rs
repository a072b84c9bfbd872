use std::fmt::Write as _;
use std::time::Instant;

use pgark::config::RecoverPlan;
use pgark::postgres::ConnInfo;
use pgark::recover::{RecoveredTable, TargetFacts};
use pgark::{CancellationToken, Result};
use serde_json::json;

use super::catalog;
use super::confirm::ask;
use super::restore::restore_command;
use crate::args::{Cli, RecoverArgs, apply_jobs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &RecoverArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    apply_jobs(args.jobs, &mut settings)?;
    settings.pg_bin = args.pg_bin.clone().or(settings.pg_bin);
    let options = args.options()?;
    let into = ConnInfo::parse(&args.into)?;
    let into = match &args.via {
        Some(via) => into.with_via(via.clone()),
        None => into,
    };
    let (repository, catalog) = catalog(cli, &settings).await?;
    let mut plan = settings.plan_recover(&repository, &catalog, &options).await?;
    if plan.needs_archive {
        plan.recovery.restore_command = Some(restore_command(cli, &args.keys, &settings)?);
    }
    let recover = settings.recover(repository, &plan, &options, into)?;
    let recover = recover.observer(progress::observer(cli.quiet, cli.json));
    let facts = recover.look().await?;
    if args.dry_run {
        if cli.json {
            return render::print_json(&json!({"plan": plan, "live": facts}));
        }
        return render::print(&planned(&plan, &facts));
    }
    if !args.yes {
        let place = format!(
            "database {} of PostgreSQL {} at {}",
            render::shown(&facts.database),
            facts.server_version,
            facts.server
        );
        let what = if args.merges() { "will get rows back in" } else { "will get a new table," };
        if !cli.quiet && !cli.json {
            render::print(&planned(&plan, &facts))?;
        }
        let what = format!("{what} {}, from backup {}, {}", facts.table, plan.backup.id, plan.target);
        ask(&place, &what, cancel).await?;
    }
    let begun = Instant::now();
    let recovered = Box::pin(recover.run(cancel)).await?;
    if cli.json {
        return render::print_json(&json!({"recovered": recovered}));
    }
    if cli.quiet {
        return Ok(());
    }
    render::print(&text(&recovered, &facts, begun))
}

fn planned(plan: &RecoverPlan, facts: &TargetFacts) -> String {
    let mut said = format!(
        "backup {}, {}, {} stored\ntarget: {}\ninto: {} in database {} at {}\n",
        plan.backup.id,
        plan.backup.kind,
        render::bytes(plan.backup.stored_bytes),
        plan.target,
        facts.table,
        facts.database,
        facts.server
    );
    if let Some(rows) = facts.rows {
        let _ = writeln!(said, "rows there now: about {rows}");
    }
    if !facts.triggers.is_empty() {
        let _ = writeln!(said, "triggers that fire for each row: {}", facts.triggers.join(", "));
    }
    said
}

fn text(recovered: &RecoveredTable, facts: &TargetFacts, begun: Instant) -> String {
    let seconds = begun.elapsed().as_secs_f64();
    let mut said = match &recovered.merged {
        Some(merged) => format!(
            "put {} rows back into {} of {}: {} in the backup, {} were there, {} of them with other values\n",
            merged.put_back,
            recovered.into,
            facts.database,
            merged.in_backup,
            merged.already_there,
            merged.differing
        ),
        None => format!("recovered {} with {} rows in {}\n", recovered.into, recovered.rows, facts.database),
    };
    let _ = writeln!(
        said,
        "from {}: {} read, {} left out, in {seconds:.1} s",
        recovered.backup.id,
        render::bytes(recovered.raw_bytes),
        render::bytes(recovered.spared_bytes)
    );
    for note in &recovered.notes {
        let _ = writeln!(said, "note: {note}");
    }
    said
}
