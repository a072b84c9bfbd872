use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use pgark::physical::span;
use pgark::repository::BackupId;
use pgark::verify::{Depth, Report, VerifyOptions, verify};
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
        catalog.staying().map(|b| b.id.clone()).collect()
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
        reports.push(verify(&repository, &record, options.clone(), cancel).await?);
    }
    // The bar must be gone before the report is printed.
    drop(options);
    let good = reports.iter().all(Report::is_good);
    if cli.json {
        render::print_json(&json!({"good": good, "backups": reports}))?;
    } else if !cli.quiet || !good {
        render::print(&reports.iter().map(|report| text(report, &without_wal)).collect::<String>())?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Integrity.code()) })
}

fn text(report: &Report, without_wal: &[BackupId]) -> String {
    let compared = match report.depth {
        Depth::Stored => "the stored bytes".to_owned(),
        Depth::Raw => format!("the stored bytes and {} of contents", render::bytes(report.raw_bytes)),
    };
    let stored = render::bytes(report.stored_bytes);
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
            "{}: good: {objects} objects, {stored}: compared {compared}{parent}{wal}\n",
            report.id
        );
    }
    let mut text = format!(
        "{}: DAMAGED: {} of {} objects and parts\n",
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
