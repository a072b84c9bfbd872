use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use pgark::copies::{Repairs, repair};
use pgark::physical::span;
use pgark::repository::BackupId;
use pgark::verify::{Depth, Report, VerifyOptions, damaged_objects, verify_copies};
use pgark::{CancellationToken, Encryptor, ErrorKind, Result};
use serde_json::json;

use super::catalog;
use crate::args::{Cli, VerifyArgs, apply_jobs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &VerifyArgs, cancel: &CancellationToken) -> Result<ExitCode> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    apply_jobs(args.jobs, &mut settings)?;
    let (repository, catalog) = catalog(cli, &settings).await?;
    let ids = if args.all {
        catalog.backups().map(|b| b.id.clone()).collect()
    } else {
        vec![catalog.find(&args.backup)?.id.clone()]
    };
    let mut options = VerifyOptions::default();
    options.stored_only = args.stored;
    options.jobs = settings.jobs;
    options.encryptor =
        if args.stored { None } else { settings.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>) };
    options.observer = Some(progress::observer(cli.quiet, cli.json));
    let (mut reports, mut without_wal) = (Vec::<Report>::new(), Vec::new());
    for id in ids {
        let record = repository.record(catalog.cluster(), &id).await?;
        if span(&record.summary).is_some_and(|span| !span.wal.brings_wal) {
            without_wal.push(id);
        }
        reports.extend(verify_copies(&repository, catalog.cluster(), &record.id, &options, cancel).await?);
    }
    // The bar must be gone before the report is printed.
    drop(options);
    let mut repairs = None;
    if args.repair {
        let damaged = damaged_objects(&repository, catalog.cluster(), &reports, cancel).await?;
        repairs = Some(repair(&repository, catalog.cluster(), &damaged).await?);
    }
    let good = reports.iter().all(|report| report.is_good() || is_repaired(report, repairs.as_ref()));
    if cli.json {
        let mut answer = json!({"good": good, "backups": reports});
        if let Some(repairs) = &repairs {
            answer["repairs"] = json!(repairs);
        }
        render::print_json(&answer)?;
    } else if !cli.quiet || !good {
        let mut told: String = reports.iter().map(|report| text(report, &without_wal)).collect();
        told.extend(repairs.iter().map(repairs_text));
        render::print(&told)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Integrity.code()) })
}

/// Whether all that was found in a copy was replaced.
fn is_repaired(report: &Report, repairs: Option<&Repairs>) -> bool {
    let here = |copy: &String| report.copy.as_ref() == Some(copy);
    repairs.is_some_and(|repairs| {
        repairs.repaired.iter().any(|one| here(&one.copy))
            && !repairs.problems.iter().any(|problem| here(&problem.copy))
            && report.findings.iter().all(|finding| !finding.what.starts_with("parents"))
    })
}

fn repairs_text(repairs: &Repairs) -> String {
    let mut text = String::new();
    for one in &repairs.repaired {
        let (object, copy) = (render::shown(&one.object), render::shown(&one.copy));
        let _ = writeln!(text, "repaired: {object} in {copy}, {}", render::bytes(one.bytes));
    }
    for problem in &repairs.problems {
        let [copy, what, why] = [&problem.copy, &problem.what, &problem.why].map(|text| render::shown(text));
        let _ = writeln!(text, "NOT REPAIRED: {what} in {copy}: {why}");
    }
    text
}

fn text(report: &Report, without_wal: &[BackupId]) -> String {
    let compared = match report.depth {
        Depth::Stored => "the stored bytes".to_owned(),
        Depth::Raw => format!("the stored bytes and {} of contents", render::bytes(report.raw_bytes)),
    };
    let stored = render::bytes(report.stored_bytes);
    let place = report.copy.as_ref().map(|copy| format!(" in {}", render::shown(copy))).unwrap_or_default();
    if report.is_good() {
        let parent = report.parent.as_ref();
        let parent = parent.map(|parent| format!("; it builds on {parent}")).unwrap_or_default();
        let wal = if without_wal.contains(&report.id) {
            "; its WAL is in the archive, which pgark wal verify reads"
        } else {
            ""
        };
        let objects = report.objects;
        return format!(
            "{}{place}: good: {objects} objects, {stored}: compared {compared}{parent}{wal}\n",
            report.id
        );
    }
    let mut text = format!(
        "{}{place}: DAMAGED: {} of {} objects and parts\n",
        report.id,
        report.findings.len(),
        report.objects
    );
    for finding in &report.findings {
        let state = if finding.missing { "missing" } else { "damaged" };
        let _ =
            writeln!(text, "  {state}: {}: {}", render::shown(&finding.what), render::shown(&finding.why));
    }
    text
}
