//! Replaces what is damaged or missing in a copy by what another one has.

use std::sync::Arc;

use futures::StreamExt;
use serde::Serialize;

use super::Problem;
use super::transfer::{Check, compare, transfer};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{BackupId, ClusterName, Repository, layout};
use crate::store::Store;

/// How many objects are repaired at once.
const AT_ONCE: usize = 4;

/// An object that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Repaired {
    /// In which copy.
    pub copy: String,
    /// Its key.
    pub object: String,
    /// Its length.
    pub bytes: u64,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Repairs {
    /// What was replaced.
    pub repaired: Vec<Repaired>,
    /// What was not, and why.
    pub problems: Vec<Problem>,
}

/// Replaces objects of a backup or of WAL that were found damaged or missing in a copy: `damaged` names the copy's place and
/// the object's key. Nothing is overwritten: where another copy has the object whole, the damaged one is deleted and
/// created anew. A store that lets nothing be deleted is a problem in the answer.
///
/// # Errors
/// [`Usage`](ErrorKind::Usage) where the repository is in one place only.
pub async fn repair(
    repository: &Repository,
    cluster: &ClusterName,
    damaged: &[(String, String)],
) -> Result<Repairs> {
    let copies = repository.store().copies();
    if copies.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            "the repository is in one place only: nothing can be repaired from another copy",
        )
        .with_hint("name its places with several --repo, or with [copy.NAME] in pgark.toml"));
    }
    let mut repairs = Repairs::default();
    let mut results = futures::stream::iter(damaged.to_vec())
        .map(|(copy, key)| {
            let copies = &copies;
            async move {
                let result = one(repository, cluster, copies, &copy, &key).await;
                (copy, key, result)
            }
        })
        .buffered(AT_ONCE);
    while let Some((copy, object, result)) = results.next().await {
        match result {
            Ok(Some(bytes)) => repairs.repaired.push(Repaired { copy, object, bytes }),
            Ok(None) => {}
            Err(error) => repairs.problems.push(Problem { copy, what: object, why: error.to_string() }),
        }
    }
    Ok(repairs)
}

/// Repairs one object. Nothing where it is whole.
async fn one(
    repository: &Repository,
    cluster: &ClusterName,
    copies: &[Arc<dyn Store>],
    copy: &str,
    key: &str,
) -> Result<Option<u64>> {
    let Some(to) = copies.iter().find(|store| store.location() == copy) else {
        return Err(Error::new(ErrorKind::Usage, format!("{copy} is no copy of the repository")));
    };
    let check = check_of(repository, cluster, key).await?;
    // It may be whole by now; and a sealed key says nothing of its bytes: it is only replaced where it is gone.
    let state = compare(&**to, key, &check).await;
    match &state {
        Ok(()) => return Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::Integrity | ErrorKind::ObjectMissing) => {}
        Err(_) => return state.map(|()| None),
    }
    let mut good = Vec::new();
    for other in copies.iter().filter(|other| other.location() != copy) {
        if compare(&**other, key, &check).await.is_ok() {
            good.push(Arc::clone(other));
            break;
        }
    }
    if good.is_empty() {
        return Err(Error::new(ErrorKind::ObjectMissing, format!("no other copy has {key} whole")));
    }
    if state.is_err_and(|error| error.kind() == ErrorKind::Integrity) {
        let deleted = to.delete(&[key.to_owned()]).await.into_iter().collect::<Result<()>>();
        deleted.map_err(|e| e.doing(format!("deleting the damaged {key}")))?;
    }
    transfer(&good, &**to, key, &check).await.map(Some)
}

/// What is known of an object's bytes: from the record of its backup, or from its name.
async fn check_of(repository: &Repository, cluster: &ClusterName, key: &str) -> Result<Check> {
    let below = key.strip_prefix(&format!("{}/", layout::backups(cluster)));
    let Some((id, name)) = below.and_then(|below| below.split_once('/')) else {
        return Ok(Check::by_name(key));
    };
    if layout::is_key(name) {
        return Ok(Check::Nothing);
    }
    if name == layout::RECORD || name == layout::STARTED {
        return Ok(Check::Json);
    }
    let id: BackupId = id.parse()?;
    let record = repository.record(cluster, &id).await?;
    let object = record.objects().find(|object| object.key == name).cloned();
    object.map(Check::Whole).ok_or_else(|| {
        Error::new(ErrorKind::ObjectMissing, format!("the record of {id} does not name {name}"))
    })
}
