use std::fmt::Write as _;
use std::process::ExitCode;

use pgark::config::Verified;
use pgark::copies::Repairs;
use pgark::repository::BackupId;
use pgark::verify::{Depth, Finding, Report};
use pgark::wal::{WalFinding, WalReport};
use pgark::{CancellationToken, ErrorKind, Result};
use serde_json::json;

use super::wal::verified_text;
use crate::args::{Cli, VerifyArgs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &VerifyArgs, cancel: &CancellationToken) -> Result<ExitCode> {
    let mut settings = cli.settings()?;
    let wanted = args.apply(&mut settings)?;
    let cluster = cli.cluster(&settings)?;
    // The bar must be gone before the report is printed.
    let observer = progress::observer(cli.quiet, cli.json);
    let verified = Box::pin(settings.run_verify(&cluster, &wanted, Some(observer), cancel)).await?;
    if cli.json {
        render::print_json(&json!(verified))?;
    } else if !cli.quiet || !verified.good {
        render::print(&text(&verified))?;
    }
    Ok(if verified.good { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Integrity.code()) })
}

fn text(verified: &Verified) -> String {
    let mut text: String =
        verified.backups.iter().map(|report| of_backup(report, &verified.without_wal)).collect();
    if let Some(wal) = &verified.needed_wal {
        text += &of_needed_wal(wal);
    }
    if let Some(wal) = &verified.wal {
        text.push_str("WAL: ");
        text += &verified_text(wal);
    }
    if let Some(others) = &verified.others {
        let state = if others.findings.is_empty() { "good" } else { "DAMAGED" };
        let _ = writeln!(text, "other objects of the cluster: {state}: {} read", others.objects);
        others.findings.iter().for_each(|finding| of_finding(&mut text, finding));
    }
    if let Some(repairs) = &verified.repairs {
        text += &of_repairs(repairs);
    }
    let several = verified.backups.len() != 1 || verified.resumed > 0;
    if several || verified.sample.is_some() || !verified.good {
        let _ = writeln!(
            text,
            "checked {} backups: {} good, {} not; {} damaged, {} missing; {} read in {:.1} s",
            verified.checked,
            verified.valid,
            verified.invalid,
            verified.damaged,
            verified.missing,
            render::bytes(verified.stored_bytes),
            verified.seconds
        );
    }
    if verified.resumed > 0 {
        let _ = writeln!(text, "passed over: {}, found good before", verified.resumed);
    }
    if let Some(sample) = &verified.sample {
        let _ =
            writeln!(text, "a sample of {}% of the parts, chosen by --seed {}", sample.percent, sample.seed);
    }
    text
}

fn of_repairs(repairs: &Repairs) -> String {
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

fn of_finding(text: &mut String, finding: &Finding) {
    line(text, finding.missing, &finding.what, finding.copy.as_ref(), &finding.why);
}

pub(super) fn of_wal_finding(text: &mut String, finding: &WalFinding) {
    line(text, finding.missing, &finding.object, finding.copy.as_ref(), &finding.why);
}

fn line(text: &mut String, missing: bool, what: &str, copy: Option<&String>, why: &str) {
    let state = if missing { "missing" } else { "damaged" };
    let copy = copy.map(|copy| format!(" in {}", render::shown(copy))).unwrap_or_default();
    let _ = writeln!(text, "  {state}: {}{copy}: {}", render::shown(what), render::shown(why));
}

fn of_needed_wal(wal: &WalReport) -> String {
    let state = if wal.findings.is_empty() { "good" } else { "DAMAGED" };
    let stored = render::bytes(wal.stored_bytes);
    let mut text = format!("WAL that the backups need: {state}: {} objects, {stored}\n", wal.objects);
    wal.findings.iter().for_each(|finding| of_wal_finding(&mut text, finding));
    text
}

fn of_backup(report: &Report, without_wal: &[BackupId]) -> String {
    let compared = match report.depth {
        Depth::Stored => "the stored bytes".to_owned(),
        Depth::Raw => format!("the stored bytes and {} of contents", render::bytes(report.raw_bytes)),
    };
    let compared = if report.sampled { format!("{compared}, of a sample") } else { compared };
    let stored = render::bytes(report.stored_bytes);
    let place = report.copy.as_ref().map(|copy| format!(" in {}", render::shown(copy))).unwrap_or_default();
    if report.is_good() {
        let parent = report.parent.as_ref();
        let parent = parent.map(|parent| format!("; it builds on {parent}")).unwrap_or_default();
        let wal = if without_wal.contains(&report.id) {
            "; its WAL is in the archive, which --wal and pgark wal verify read"
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
    report.findings.iter().for_each(|finding| of_finding(&mut text, finding));
    text
}
