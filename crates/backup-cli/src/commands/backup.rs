use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use pgark::config::{BackedUp, Settings, What, until};
use pgark::repository::ClusterName;
use pgark::{BackupBuilder, CancellationToken, ErrorKind, Result};
use serde_json::json;

use crate::args::{BackupArgs, Cli};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &BackupArgs, cancel: &CancellationToken) -> Result<ExitCode> {
    let mut settings = cli.settings()?;
    args.apply(&mut settings)?;
    let cluster = cli.cluster(&settings)?;
    if args.dry_run {
        return dry_run(cli, args, &settings, cluster).await.map(|()| ExitCode::SUCCESS);
    }
    let pin = args.pin_until.as_deref().map(|text| {
        let zone = settings.retention(&cluster).rules.zone;
        until(text, &zone, Timestamp::now())
    });
    let pin = pin.transpose()?;
    let observer = progress::observer(cli.quiet, cli.json);
    let more = |builder: BackupBuilder| {
        let mut builder = builder.observer(observer).grace(Duration::from_secs(u64::from(args.grace) * 3600));
        if let Some(label) = &args.label {
            builder = builder.label(label);
        }
        if let Some(until) = pin {
            builder = builder.pin(until);
        }
        if args.no_sweep { builder.keep_leftovers() } else { builder }
    };
    let done = settings.run_backup(&cluster, args.db.as_deref(), args.what(), more, cancel).await?;
    tell(cli, "backup", &done)
}

/// Says what was made. A backup that lacks something is bad news.
pub(super) fn tell(cli: &Cli, what: &str, done: &BackedUp) -> Result<ExitCode> {
    let whole = done.backup.backup.is_complete();
    if cli.json {
        render::print_json(&json!(done))?;
    } else if !cli.quiet || !whole {
        render::print(&text(what, done))?;
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Partial.code()) })
}

fn text(what: &str, done: &BackedUp) -> String {
    let summary = &done.backup;
    let backup = &summary.backup;
    let how = backup
        .encryption
        .as_ref()
        .map_or("not encrypted".to_owned(), |e| format!("encrypted with {}", e.method));
    let mut text = format!(
        "{what} {}{} is in {}{}: {} became {} ({}, {how}) in {}{}\n",
        backup.id,
        backup.parent.as_ref().map(|parent| format!(", an increment of {parent},")).unwrap_or_default(),
        done.repository,
        if done.new_repository { " (a new repository)" } else { "" },
        render::bytes(summary.raw_bytes),
        render::bytes(backup.stored_bytes),
        backup.compression,
        render::seconds(backup.started, backup.finished),
        if backup.warnings > 0 { format!(", with {} warnings", backup.warnings) } else { String::new() },
    );
    if !backup.is_complete() {
        let _ = writeln!(text, "PARTIAL: it lacks databases: {}", render::names(backup, "databases_failed"));
        for message in &summary.warnings {
            let _ = writeln!(text, "  {}", render::shown(message));
        }
    }
    text
}

async fn dry_run(cli: &Cli, args: &BackupArgs, settings: &Settings, cluster: ClusterName) -> Result<()> {
    let connection = settings.connection(&cluster, args.db.as_deref())?;
    let what = args.what();
    let memory = settings.backup(cluster.clone(), connection.clone(), &what)?.memory(&*settings.store()?)?;
    let (preview, words) = match &what {
        What::Database(_) => {
            let preview = settings.dumper(connection).preview().await?;
            let words = format!(
                "database {} of PostgreSQL {} with pg_dump {}, about {}",
                preview.database,
                preview.server_version,
                preview.pg_dump_version,
                render::bytes(preview.raw_bytes),
            );
            (json!(preview), words)
        }
        What::Server(options) => {
            let preview = settings.server_dumper(connection, options).preview().await?;
            let words = format!(
                "{} databases of PostgreSQL {} with pg_dump {}, about {}",
                preview.databases.len(),
                preview.server_version,
                preview.pg_dump_version,
                render::bytes(preview.raw_bytes),
            );
            (json!(preview), words)
        }
        What::Cluster(options) => {
            let preview = settings.preview_cluster(&cluster, options, &connection).await?;
            let words = format!(
                "{}cluster {} of PostgreSQL {}, about {}",
                if options.increment.is_some() { "what changed in " } else { "" },
                preview.system_identifier,
                preview.server_version,
                render::bytes(preview.raw_bytes),
            );
            (json!(preview), words)
        }
    };
    if cli.json {
        let total = memory.total();
        return render::print_json(&json!({"preview": preview, "memory": memory, "memory_total": total}));
    }
    let b = |n: usize| render::bytes(n as u64);
    render::print(&format!(
        "would back up {words} before compression\n\
         memory: at most {} (program {}, frames {}, uploads {}, compression {}, encryption {}, blocks {}){}\n",
        b(memory.total()),
        b(memory.base),
        b(memory.frames),
        b(memory.chunks),
        b(memory.compression),
        b(memory.encryption),
        b(memory.dumper),
        if matches!(what, What::Cluster(_)) { "" } else { "; pg_dump takes its own" },
    ))
}
