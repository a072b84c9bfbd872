use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgark::config::{Settings, WalListing, WalVerified};
use pgark::postgres::system_identifier;
use pgark::wal::{Asking, Fetcher, Pushed, Pusher, Receiver, WalName};
use pgark::{CancellationToken, Error, ErrorKind, Event, Observer, Result};
use serde_json::json;

use super::verify::of_wal_finding;
use crate::args::{Cli, WalCommand, apply_jobs};
use crate::render;

/// How long one of several copies of the archive may take for a request.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(cli: &Cli, command: &WalCommand, cancel: &CancellationToken) -> Result<ExitCode> {
    let mut settings = cli.settings()?;
    if matches!(command, WalCommand::Push { .. } | WalCommand::Fetch { .. }) {
        // The server waits: a copy that does not answer shall not keep it from its work.
        settings.patience = Some(PATIENCE);
    }
    match command {
        WalCommand::Push { path, ahead, background } => {
            push(cli, &settings, path, *ahead, *background, cancel).await?;
        }
        WalCommand::Fetch { name, to, ahead, background, keys } => {
            keys.apply(&mut settings)?;
            return fetch(cli, &settings, name, to, *ahead, *background, cancel).await;
        }
        WalCommand::Receive { db, slot, create_slot, every } => {
            let cluster = cli.cluster(&settings)?;
            let connection = settings.connection(&cluster, db.as_deref())?;
            let to = settings.wal_destination(settings.open_repository().await?, cluster)?;
            let receiver = Receiver::new(connection, to, reporter(cli))
                .slot(slot, *create_slot)
                .every(Duration::from_secs(*every));
            receiver.run(cancel).await?;
        }
        WalCommand::List => {
            let listing = settings.list_wal(&cli.cluster(&settings)?).await?;
            if cli.json {
                render::print_json(&json!(listing))?;
            } else {
                render::print(&listing_text(&listing))?;
            }
        }
        WalCommand::Verify { stored, keys, jobs } => {
            keys.apply(&mut settings)?;
            apply_jobs(*jobs, &mut settings)?;
            let verified = settings.verify_wal(&cli.cluster(&settings)?, *stored, cancel).await?;
            if cli.json {
                render::print_json(&json!(verified))?;
            } else if !cli.quiet || !verified.good {
                render::print(&verified_text(&verified))?;
            }
            if !verified.good {
                return Ok(ExitCode::from(ErrorKind::Integrity.code()));
            }
        }
        WalCommand::Resolve { segment, digest } => resolve(cli, &settings, segment, digest).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells on standard error what is received: as JSON lines, or when something has changed.
fn reporter(cli: &Cli) -> Arc<dyn Observer> {
    if cli.json {
        return Arc::new(|event: &Event| eprint_line(&json!(event).to_string()));
    }
    let (quiet, told) = (cli.quiet, Mutex::new((None::<bool>, 0_u64)));
    Arc::new(move |event: &Event| match event {
        Event::Warning { message } => eprint_line(&format!("pgark: {message}")),
        Event::Step { what } if !quiet => eprint_line(what),
        Event::Wal { stored, server, lag_bytes, synchronous, .. } if !quiet => {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            // Lag is told when it has doubled, and when it is gone.
            let lags = (*lag_bytes > 2 * told.1.max(16 << 20)) || (*lag_bytes == 0 && told.1 > 16 << 20);
            if lags || told.0 != Some(*synchronous) {
                *told = (Some(*synchronous), *lag_bytes);
                let how = if *synchronous { "commits wait for it" } else { "commits do not wait for it" };
                let lag = render::bytes(*lag_bytes);
                eprint_line(&format!(
                    "stored up to {stored}, the server is at {server}: {lag} behind; {how}"
                ));
            }
        }
        _ => {}
    })
}

fn eprint_line(line: &str) {
    // Nobody can be told when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{}", render::shown(line));
}

async fn push(
    cli: &Cli,
    settings: &Settings,
    path: &Path,
    ahead: usize,
    background: bool,
    cancel: &CancellationToken,
) -> Result<()> {
    let cluster = cli.cluster(settings)?;
    let pusher = Pusher::new(settings.wal_destination(settings.open_repository().await?, cluster)?);
    let pg_wal = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if background {
        return pusher.push_ahead(pg_wal, ahead, cancel).await.map(drop);
    }
    // Where the folder cannot be listed there is nothing to push ahead.
    let waiting = Pusher::ready(pg_wal).unwrap_or_default();
    let own = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if ahead > 0 && waiting.iter().filter(|name| name.to_string() != own).count() > 1 {
        in_background();
    }
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::cancelled()),
        result = pusher.push(path) => result?,
    };
    if cli.json {
        return render::print_json(&json!({"file": own, "new": result == Pushed::New}));
    }
    Ok(())
}

/// Starts this command once more, without anybody who waits for it, to work ahead. That it cannot be started is no
/// failure of what was asked for.
fn in_background() {
    let Ok(program) = std::env::current_exe() else { return };
    let started = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    if let Err(error) = started {
        tracing::debug!(%error, "nothing is done ahead");
    }
}

/// Whether the server that asks is a standby: it works in its data directory.
fn asking() -> Asking {
    if Path::new("standby.signal").exists() { Asking::Standby } else { Asking::Recovery }
}

async fn fetch(
    cli: &Cli,
    settings: &Settings,
    name: &str,
    to: &Path,
    ahead: u64,
    background: bool,
    cancel: &CancellationToken,
) -> Result<ExitCode> {
    let name: WalName = name.parse()?;
    let cluster = cli.cluster(settings)?;
    let repository = settings.open_repository().await?;
    // The server works in its data directory, which knows whose WAL it needs.
    let archive = match system_identifier(Path::new(".")) {
        Ok(system) => settings.archive_of(&repository, &cluster, system)?,
        Err(_) => settings.archive(&repository, &cluster).await?.ok_or_else(|| {
            Error::new(ErrorKind::BackupNotFound, format!("there is no WAL of {cluster}"))
                .with_hint("check --repo and --cluster")
        })?,
    };
    let fetcher = Fetcher::new(archive, asking());
    if background {
        if let WalName::Segment(segment) = name {
            fetcher.read_ahead(segment, to, ahead, cancel).await?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::cancelled()),
        found = fetcher.fetch(name, to) => found?,
    };
    match name {
        // When half of them are taken, more are read.
        WalName::Segment(_)
            if found && Fetcher::waiting(to) < ahead.div_ceil(2) && !Fetcher::is_reading_ahead(to) =>
        {
            in_background();
        }
        // Recovery ends, or looks at another timeline.
        WalName::Segment(_) | WalName::History(_) if !found => Fetcher::forget_ahead(to),
        _ => {}
    }
    if !found {
        if !cli.quiet {
            tracing::info!("{name} is not in the archive");
        }
        return Ok(ExitCode::from(ABSENT));
    }
    Ok(ExitCode::SUCCESS)
}

/// What PostgreSQL takes for "there is no such file": the end of recovery.
const ABSENT: u8 = 1;
/// What stops a recovery: every code from 1 to 125 would end it, and promote the server
/// (`RestoreArchivedFile` in `xlogarchive.c`).
const STOP: u8 = 126;

/// The exit code of a failure, where the command is `wal fetch` or `wal push`: PostgreSQL has its own meaning of them.
/// The arguments decide, since they may be what is wrong: options may stand anywhere among the words.
pub(crate) fn failure_code(arguments: impl Iterator<Item = std::ffi::OsString>) -> Option<u8> {
    let behind: Vec<_> = arguments.skip_while(|argument| argument != "wal").skip(1).collect();
    let has = |word: &str| behind.iter().any(|argument| argument == word);
    if !has("fetch") && !has("push") {
        return None;
    }
    // Nobody asked for what is done ahead. Where the server is the first process of a container it reaps it, and takes
    // another code than 0 and 1 for a crash of its own (`HandleChildCrash` in `postmaster.c`).
    if has("--background") {
        return Some(0);
    }
    // A standby asks again. The archiver is started anew by codes above 125 (`pgarch.c`).
    if !has("fetch") || asking() == Asking::Standby { Some(ABSENT) } else { Some(STOP) }
}

async fn resolve(cli: &Cli, settings: &Settings, segment: &str, digest: &str) -> Result<()> {
    let WalName::Segment(segment) = segment.parse()? else {
        return Err(Error::new(ErrorKind::Usage, format!("{segment} is not a segment")));
    };
    let cluster = cli.cluster(settings)?;
    let archive = settings
        .archive(&settings.open_repository().await?, &cluster)
        .await?
        .ok_or_else(|| Error::new(ErrorKind::BackupNotFound, format!("there is no WAL of {cluster}")))?;
    let chosen = archive.resolve(segment, digest).await?;
    if cli.json {
        return render::print_json(&json!({"segment": segment.to_string(), "counts": chosen.as_str()}));
    }
    if cli.quiet {
        return Ok(());
    }
    render::print(&format!("{segment}: {} counts from now on\n", chosen.as_str()))
}

fn listing_text(listing: &WalListing) -> String {
    let Some(system) = &listing.system_identifier else {
        return format!("nothing is known of {}\n", listing.cluster);
    };
    let mut text =
        format!("{} ({system}): {} of WAL\n", listing.cluster, render::bytes(listing.stored_bytes));
    for timeline in &listing.timelines {
        let _ = write!(text, "timeline {}:", timeline.timeline);
        if timeline.ambiguous {
            text.push_str(" several servers began it: its histories differ");
        }
        text.push('\n');
        for (n, run) in timeline.runs.iter().enumerate() {
            if n > 0 {
                text.push_str("  GAP\n");
            }
            let _ = writeln!(text, "  {} to {} ({} segments)", run.first, run.last, run.segments);
        }
    }
    for conflict in &listing.conflicts {
        let _ = writeln!(text, "CONFLICT: several files {conflict} differ");
    }
    if !listing.windows.is_empty() {
        text.push_str("what can be reached:\n");
    }
    for window in &listing.windows {
        let reach = &window.reach;
        let _ = write!(
            text,
            "  from {} on timeline {}: {} to {}",
            window.backup, reach.timeline, reach.from, reach.to
        );
        if let Some(last) = reach.last_commit {
            let _ = write!(text, ", last commit {last}");
        }
        if let Some(gap) = &reach.gap {
            let _ = write!(text, "; STOPS AT A GAP: {gap} is missing");
        }
        text.push('\n');
    }
    text
}

pub(super) fn verified_text(verified: &WalVerified) -> String {
    let report = &verified.report;
    let mut text = format!(
        "{}: {} objects, {}: compared {}\n",
        if verified.good { "good" } else { "NOT GOOD" },
        report.objects,
        render::bytes(report.stored_bytes),
        if report.opened { "stored and raw bytes" } else { "stored bytes" },
    );
    report.findings.iter().for_each(|finding| of_wal_finding(&mut text, finding));
    text + &listing_text(&verified.archive)
}

#[cfg(test)]
mod tests {
    use super::failure_code;

    #[test]
    fn options_may_stand_anywhere() {
        let code = |line: &str| failure_code(line.split(' ').map(Into::into));
        for line in [
            "wal fetch a b",
            "wal --repo r fetch a b",
            "--cluster wal --repo r wal fetch a b",
            "wal --json fetch",
        ] {
            assert_eq!(code(line), Some(126), "{line}");
        }
        assert_eq!(code("--json wal --config c push a"), Some(1));
        assert_eq!(code("wal fetch a b --background"), Some(0));
        for line in ["wal list", "backup --physical", "restore fetch wal"] {
            assert_eq!(code(line), None, "{line}");
        }
    }
}
