use std::fmt::Write as _;

use pgark::copies::{CopyOptions, CopyReport};
use pgark::{CancellationToken, Result};
use serde_json::json;

use crate::args::{Cli, CopyArgs, refuse_secret};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &CopyArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    let mut target = settings.clone();
    target.set_places(&args.to);
    if let Some(writers) = args.writers() {
        args.new_passphrase_file.iter().try_for_each(|path| refuse_secret(path))?;
        writers.apply(&mut target);
    }
    args.keys.apply(&mut settings)?;
    let cluster = cli.cluster(&settings)?;
    let mut options = CopyOptions::default();
    options.jobs = Some(args.jobs);
    options.wal = args.wal;
    options.observer = Some(progress::observer(cli.quiet, cli.json));
    let wanted = if args.all { None } else { Some(&args.backups[..]) };
    let report = settings.copy(&target, &cluster, wanted, args.re_encrypt, options, cancel).await?;
    if cli.json {
        render::print_json(&json!({"copied": report}))
    } else if cli.quiet {
        Ok(())
    } else {
        render::print(&text(&report))
    }
}

fn text(report: &CopyReport) -> String {
    let mut text = String::new();
    let how = if report.sealed_anew { ", sealed with a new key" } else { "" };
    for backup in &report.backups {
        let _ = if backup.already {
            writeln!(text, "{}: is there already", backup.id)
        } else {
            writeln!(text, "{}: {} objects, {}{how}", backup.id, backup.objects, render::bytes(backup.bytes))
        };
    }
    if report.wal_objects > 0 {
        let _ =
            writeln!(text, "WAL: {} objects, {}{how}", report.wal_objects, render::bytes(report.wal_bytes));
    }
    let _ = writeln!(text, "copied to {}", render::shown(&report.to));
    text
}
