//! Backups that the rules leave alone.

use jiff::Timestamp;
use serde::Serialize;

use crate::audit::{self, Act, Outcome};
use crate::error::Result;
use crate::repository::{BackupId, Catalog, ClusterName, Repository, Verb};

/// What pinning a backup, or taking its pin away, came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PinAnswer {
    /// The backup.
    pub id: BackupId,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// Until when; nothing where for ever.
    pub until: Option<Timestamp>,
    /// Whether a prune is about to remove it all the same, or did not end: the pin may have come too late for one that
    /// is at work. The next prune keeps what is still there.
    pub being_removed: bool,
}

/// Pins a backup: until then, or for ever. `wanted` is `latest`, an id, or the beginning of one.
///
/// # Errors
/// [`BackupNotFound`](crate::ErrorKind::BackupNotFound)
pub async fn pin(
    repository: &Repository,
    cluster: &ClusterName,
    wanted: &str,
    until: Option<Timestamp>,
) -> Result<PinAnswer> {
    mark(repository, cluster, wanted, Verb::Pin(until)).await
}

/// Takes the pin of a backup away.
///
/// # Errors
/// [`BackupNotFound`](crate::ErrorKind::BackupNotFound)
pub async fn unpin(repository: &Repository, cluster: &ClusterName, wanted: &str) -> Result<PinAnswer> {
    mark(repository, cluster, wanted, Verb::Unpin).await
}

async fn mark(repository: &Repository, cluster: &ClusterName, wanted: &str, verb: Verb) -> Result<PinAnswer> {
    let id = Catalog::load(repository, cluster).await?.find(wanted)?.id.clone();
    let (action, pinned, until) = match verb {
        Verb::Pin(until) => ("pin", true, until),
        _ => ("unpin", false, None),
    };
    let marked = async {
        repository.mark(cluster, &id, verb, None).await?;
        // Not the index alone: it may know a backup that was removed.
        repository.record(cluster, &id).await?;
        Catalog::load(repository, cluster).await
    };
    let marked = marked.await;
    let mut act = Act::new(action).backups([&id]);
    if let Some(until) = until {
        act = act.detail("until", until.to_string());
    }
    audit::note_if_possible(repository, cluster, act, Outcome::of(&marked)).await;
    let being_removed = marked?.is_being_removed(&id);
    Ok(PinAnswer { id, pinned, until, being_removed })
}
