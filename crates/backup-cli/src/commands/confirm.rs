//! Asking before a database is changed that exists.

use std::io::{IsTerminal, Write};

use pgark::logical::{Existing, LoadOptions, Prospect};
use pgark::repository::BackupSummary;
use pgark::{CancellationToken, Error, ErrorKind, Result};

use crate::render;

/// Asks where the restore changes what is there. A database that is empty or new needs no question, and where nothing
/// allows the restore it refuses by itself.
pub(super) async fn confirm(
    prospect: &Prospect,
    backup: &BackupSummary,
    existing: Existing,
    options: &LoadOptions,
    yes: bool,
    cancel: &CancellationToken,
) -> Result<()> {
    let Some(what) = what(prospect, backup, existing, options).filter(|_| !yes) else { return Ok(()) };
    let others =
        if prospect.sessions > 0 { format!(", {} sessions", prospect.sessions) } else { String::new() };
    let place = format!(
        "database {} of PostgreSQL {} at {} ({}{others})",
        render::shown(&prospect.database),
        prospect.server_version,
        prospect.server,
        render::bytes(prospect.bytes)
    );
    ask(&place, &what, cancel).await
}

/// Asks whether to do what happens to a place.
pub(super) async fn ask(place: &str, what: &str, cancel: &CancellationToken) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::Usage, format!("{place} {what}, and nobody is there to be asked"))
            .with_hint("add --yes when that is what you want"));
    }
    let question = format!("{place} {what}.\nGo on? [y/N] ");
    let answer = tokio::task::spawn_blocking(move || {
        let mut stderr = std::io::stderr();
        // Without a question there is no yes.
        stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush())?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::cancelled()),
        answer = answer => answer,
    };
    let answer = answer.map_err(|e| Error::internal("asking").caused_by(e))?;
    let answer = answer.map_err(|e| Error::io("asking", e))?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Cancelled, "not confirmed: nothing was changed"))
}

/// What happens to the database; nothing where nothing of it changes.
fn what(
    prospect: &Prospect,
    backup: &BackupSummary,
    existing: Existing,
    options: &LoadOptions,
) -> Option<String> {
    let id = &backup.id;
    match existing {
        _ if !prospect.exists => None,
        Existing::Swap { drop_old: true } => Some(format!("will be replaced by backup {id} and dropped")),
        Existing::Swap { drop_old: false } => {
            Some(format!("will be replaced by backup {id} and kept under another name"))
        }
        _ if prospect.empty => None,
        Existing::Clean => {
            Some(format!("will lose the objects of backup {id} that it has, and get them anew"))
        }
        _ if options.data_only => Some(format!("will get the rows of backup {id}")),
        _ if options.adds() => Some(format!("will get objects of backup {id}")),
        _ => None,
    }
}
