use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pgark::config::Settings;
use pgark::logical::{Existing, drop_old_database, old_databases};
use pgark::physical::{DataDirectory, KIND, Recovery, Target, span};
use pgark::postgres::{ConnInfo, Recovered, start_and_recover};
use pgark::repository::{BackupRecord, BackupSummary, Catalog};
use pgark::{CancellationToken, Error, ErrorKind, Event, Repository, Restore, Restored, Restorer, Result};
use serde_json::{Value, json};

use super::confirm::{ask, confirm};
use super::safety::Safety;
use super::{catalog, find, with_settings};
use crate::args::{Cli, ReadKeys, RestoreArgs, apply_jobs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &RestoreArgs, cancel: &CancellationToken) -> Result<()> {
    if args.load.only_drops_old() {
        return drop_old(cli, args, cancel).await;
    }
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    apply_jobs(args.jobs, &mut settings)?;
    settings.pg_bin = args.pg_bin.clone().or(settings.pg_bin);
    let (repository, catalog) = catalog(cli, &settings).await?;
    settings.hooks.before = args.load.before.clone().or(settings.hooks.before);
    settings.hooks.after = args.load.after.clone().or(settings.hooks.after);
    let mut variables = Vec::new();
    let mut to_back_up = None;
    let builder = Restore::builder();
    let (builder, record) = if let Some(into) = &args.into {
        let target = connection(args, into)?;
        let record = wanted(cli, args, &repository, &catalog).await?;
        let builder = builder.backup(repository, record.clone());
        let (existing, options) = (args.load.existing()?, args.load.options());
        if args.server.is_server() {
            if existing != Existing::Refuse {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "databases of a whole server only go where there are none",
                )
                .with_hint("restore one of them with --database to replace one that exists"));
            }
            (builder.restorer(args.server.restorer(&settings, target).options(options)), record)
        } else {
            variables.push(("PGARK_DATABASE", target.database().to_owned()));
            let load = settings.restorer(target.clone()).options(options.clone()).existing(existing);
            let mut load = load.end_sessions(args.load.end_sessions());
            if let Some(database) = args.server.database() {
                load = load.database(database);
            }
            if load.accepts(&record.kind) {
                let prospect = load.prospect().await?;
                confirm(&prospect, &record, existing, &options, args.load.yes, cancel).await?;
                to_back_up = Some(((into.as_str(), target), load.clone()))
                    .filter(|_| args.load.safety_backup() && !prospect.empty);
            }
            (builder.restorer(load), record)
        }
    } else {
        let folder = args.target_dir.as_deref().unwrap_or(Path::new("."));
        let (record, recovery) = plan(cli, args, &settings, &repository, &catalog).await?;
        variables.push(("PGARK_TARGET_DIR", folder.display().to_string()));
        let to = DataDirectory::at(folder).recovery(recovery).delta(args.delta);
        let to = args.tablespace_map.iter().fold(to, |to, (oid, path)| to.tablespace(*oid, path));
        (builder.backup(repository, record.clone()).restorer(to), record)
    };
    variables.push(("PGARK_BACKUP", record.id.to_string()));
    let begun = Instant::now();
    let restore = with_settings(builder, cli, &settings)?.build()?;
    let work = async {
        let Some((into, load)) = to_back_up else { return Ok((restore.run(cancel).await?, None)) };
        let (cluster, observer) = (cli.cluster(&settings)?, progress::observer(cli.quiet, cli.json));
        let safety = Safety::make(&settings, &cluster, into, &record, observer, cancel).await?;
        match restore.run(cancel).await {
            Ok(mut restored) => {
                restored.target.insert("safety_backup".to_owned(), json!(safety.record.id));
                Ok((restored, Some(safety.record.id.clone())))
            }
            Err(error) if !load.has_cleared() => Err(error),
            Err(error) => Err(safety.back(error, args.load.end_sessions()).await),
        }
    };
    let (restored, safety) = Box::pin(settings.hooks.around(&variables, work, cancel)).await?;
    if !cli.json && !cli.quiet {
        render::print(&text(args, &restored, begun))?;
        if let Some(id) = safety {
            render::print(&format!("as it was before, the database is in backup {id}\n"))?;
        }
    }
    let recovered = match &args.target_dir {
        Some(folder) if args.recovery.start => {
            Some(start_and_recover(folder, &settings.tools(), cancel).await?)
        }
        _ => None,
    };
    if cli.json {
        return render::print_json(&json!({"restored": restored, "recovered": recovered}));
    }
    match recovered {
        Some(recovered) if !cli.quiet => render::print(&recovered_text(&recovered)),
        _ => Ok(()),
    }
}

fn connection(args: &RestoreArgs, into: &str) -> Result<ConnInfo> {
    let target = ConnInfo::parse(into)?;
    Ok(match &args.via {
        Some(via) => target.with_via(via.clone()),
        None => target,
    })
}

/// Drops the databases that swaps kept.
async fn drop_old(cli: &Cli, args: &RestoreArgs, cancel: &CancellationToken) -> Result<()> {
    if let Some(backup) = &args.backup {
        let message = format!("--drop-old without --swap restores nothing, and {backup} is given");
        return Err(Error::new(ErrorKind::Usage, message)
            .with_hint("add --swap to restore it, or leave it out to drop what earlier swaps kept"));
    }
    let target = connection(args, args.into.as_deref().unwrap_or_default())?;
    let old = old_databases(&target).await?;
    for database in old.iter().filter(|_| !args.load.yes) {
        let place = format!("database {} ({})", render::shown(&database.name), render::bytes(database.bytes));
        ask(&place, "will be dropped", cancel).await?;
    }
    for database in &old {
        drop_old_database(&target, database, args.load.end_sessions()).await?;
        if !cli.json && !cli.quiet {
            render::print(&format!("dropped {}\n", render::shown(&database.name)))?;
        }
    }
    if cli.json {
        return render::print_json(&json!({"dropped": old}));
    }
    if old.is_empty() && !cli.quiet {
        render::print(&format!("no swap has kept a database of {}\n", render::shown(target.database())))?;
    }
    Ok(())
}

/// The backup for a database: `latest` is the newest that has all of it.
async fn wanted(
    cli: &Cli,
    args: &RestoreArgs,
    repository: &Repository,
    catalog: &Catalog,
) -> Result<BackupRecord> {
    let wanted = args.backup.as_deref().unwrap_or("latest");
    let latest = catalog.latest_whole(pgark::logical::KIND).filter(|_| wanted == "latest");
    let Some(latest) = latest else { return find(repository, catalog, wanted).await };
    if latest.is_selection() {
        let message = format!("every backup here has only a part of its database, {} too", latest.id);
        progress::observer(cli.quiet, cli.json).event(&Event::Warning { message });
    }
    repository.record(catalog.cluster(), &latest.id).await
}

fn recovered_text(recovered: &Recovered) -> String {
    let of = |value: &Option<String>| value.as_deref().unwrap_or("unknown").to_owned();
    format!(
        "started: {} after {:.1} s, on timeline {}; recovered up to {}, last commit {}\n",
        recovered.state,
        recovered.seconds,
        recovered.timeline,
        of(&recovered.stopped_at),
        of(&recovered.last_commit),
    )
}

fn text(args: &RestoreArgs, restored: &Restored, begun: Instant) -> String {
    let text = |name: &str| restored.target.get(name).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
    let place = match &args.target_dir {
        Some(folder) => format!("data directory {}", folder.display()),
        None => match restored.target.get("databases").and_then(Value::as_array) {
            Some(databases) => {
                let globals = if restored.target.contains_key("globals") { "globals and " } else { "" };
                format!("{globals}{} databases", databases.len())
            }
            None => format!("database {}", text("database")),
        },
    };
    let mut said = format!(
        "restored {} into {place} of PostgreSQL {}: {} in {:.1} s\n",
        restored.backup.id,
        text("server_version"),
        render::bytes(restored.raw_bytes),
        begun.elapsed().as_secs_f64(),
    );
    if restored.target.contains_key("swapped") {
        let _ = match restored.target.get("old_database").and_then(Value::as_str) {
            Some(old) => writeln!(said, "the old database is kept as {old}, until somebody drops it"),
            None => writeln!(said, "the old database is dropped"),
        };
    }
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or_default();
    if let Some(resumed) = restored.target.get("resumed").filter(|resumed| resumed.is_object()) {
        let (parts, done) = (number(resumed.get("parts")), number(resumed.get("done")));
        let _ = writeln!(said, "went on with an interrupted restore: {done} of {parts} parts were there");
    }
    if args.delta {
        let bytes = |name: &str| render::bytes(number(restored.target.get(name)));
        let (written, same) = (bytes("written_bytes"), bytes("same_bytes"));
        let _ = writeln!(said, "written: {written}; there already: {same}");
    }
    said
}

/// The backup, and how it recovers, when the WAL leads to the target.
async fn plan(
    cli: &Cli,
    args: &RestoreArgs,
    settings: &Settings,
    repository: &Repository,
    catalog: &Catalog,
) -> Result<(BackupRecord, Recovery)> {
    let mut recovery = args.recovery.recovery()?;
    let backups: Vec<BackupSummary> = match args.backup.as_deref() {
        Some("latest") | None => catalog.staying().filter(|backup| backup.kind == KIND).cloned().collect(),
        Some(wanted) => vec![catalog.find(wanted)?.clone()],
    };
    // A backup of another kind says itself that it does not go into a folder.
    if let [other] = &backups[..]
        && other.kind != KIND
    {
        return Ok((repository.record(catalog.cluster(), &other.id).await?, recovery));
    }
    let (plan, archived) = settings.plan_recovery(repository, catalog.cluster(), &backups, &recovery).await?;
    recovery.timeline = Some(plan.timeline);
    let brings_wal = span(&plan.backup).is_none_or(|span| span.wal.brings_wal);
    if recovery.restore_command.is_none() && archived && !(brings_wal && recovery.target == Target::Immediate)
    {
        recovery.restore_command = Some(restore_command(cli, &args.keys, settings)?);
    }
    Ok((repository.record(catalog.cluster(), &plan.backup.id).await?, recovery))
}

/// What fetches WAL with the repository, keys and settings of this call, from any folder.
pub(super) fn restore_command(cli: &Cli, keys: &ReadKeys, settings: &Settings) -> Result<String> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%"));
    let file = |path: &Path| quoted(&absolute(path).display().to_string());
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("pgark"));
    let mut words = vec![file(&program)];
    if let Some(config) = cli.config_file() {
        words.extend(["--config".to_owned(), file(&config)]);
    }
    for (url, _) in settings.places() {
        let is_folder = !url.contains(':');
        let url = if is_folder { file(Path::new(&url)) } else { quoted(&url) };
        words.extend(["--repo".to_owned(), url]);
    }
    words.extend(["--cluster".to_owned(), quoted(cli.cluster(settings)?.as_str())]);
    words.extend(["wal", "fetch"].map(str::to_owned));
    for identity in &keys.identity {
        words.extend(["--identity".to_owned(), file(identity)]);
    }
    if let Some(passphrase) = &keys.passphrase_file {
        words.extend(["--passphrase-file".to_owned(), file(passphrase)]);
    }
    words.extend(["\"%f\"", "\"%p\""].map(str::to_owned));
    Ok(words.join(" "))
}
