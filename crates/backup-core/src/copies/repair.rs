//! Replaces what is damaged or missing in a copy by what another one has.

use std::sync::Arc;

use futures::StreamExt;
use serde::Serialize;

use super::transfer::{Check, compare, transfer};
use super::{Problem, marker};
use crate::encryptor::Encryptor;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{BackupId, Catalog, ClusterName, Marks, Repository, layout, open_key};
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

/// Replaces objects that were found damaged or missing in a copy, of backups, of WAL and beside them: `damaged` names the
/// copy's place and the object's key. Nothing is overwritten: where another copy has the object whole, the damaged one is
/// deleted and created anew. An index is a cache of its copy, and is written anew. So is the marker that makes a place a
/// repository, where other objects show that the place is a copy of this one. A store that lets nothing be deleted is a
/// problem in the answer.
///
/// Nothing says which bytes a sealed key has, but that it opens: with `opener` one that does not is replaced by one that
/// does.
///
/// # Errors
/// [`Usage`](ErrorKind::Usage) where the repository is in one place only.
pub async fn repair(
    repository: &Repository,
    cluster: &ClusterName,
    damaged: &[(String, String)],
    opener: Option<&Arc<dyn Encryptor>>,
) -> Result<Repairs> {
    let copies = repository.store().copies();
    if copies.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            "the repository is in one place only: nothing can be repaired from another copy",
        )
        .with_hint("name its places with several --repo, or with [copy.NAME] in pgark.toml"));
    }
    let repairing = Repairing { repository, cluster, copies, opener };
    let mut repairs = Repairs::default();
    let mut results = futures::stream::iter(damaged.to_vec())
        .map(|(copy, key)| {
            let repairing = &repairing;
            async move {
                let result = repairing.one(&copy, &key).await;
                (copy, key, result)
            }
        })
        .buffered(AT_ONCE);
    while let Some((copy, object, result)) = results.next().await {
        match result {
            Ok(bytes) => repairs.repaired.push(Repaired { copy, object, bytes }),
            Err(error) => repairs.problems.push(Problem { copy, what: object, why: error.to_string() }),
        }
    }
    Ok(repairs)
}

struct Repairing<'a> {
    repository: &'a Repository,
    cluster: &'a ClusterName,
    copies: Vec<Arc<dyn Store>>,
    opener: Option<&'a Arc<dyn Encryptor>>,
}

impl Repairing<'_> {
    /// Repairs one object; its length.
    async fn one(&self, copy: &str, key: &str) -> Result<u64> {
        let Some(to) = self.copies.iter().find(|store| store.location() == copy) else {
            return Err(Error::new(ErrorKind::Usage, format!("{copy} is no copy of the repository")));
        };
        if key == layout::REPOSITORY {
            return marker::write_again(self.repository, to).await;
        }
        if key.starts_with(&format!("{}/", layout::index(self.cluster))) {
            return self.write_index(copy).await;
        }
        if key.starts_with(&format!("{}/", layout::marks(self.cluster))) {
            self.look_at_mark(copy, key).await?;
        }
        let check = self.check_of(key).await?;
        // It may be whole by now.
        let damaged = match self.compare(to, key, &check).await {
            Ok(()) => {
                let message = "its bytes are those that were written: there is nothing to put back";
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            Err(error) if error.kind() == ErrorKind::ObjectMissing => false,
            Err(error) if matches!(error.kind(), ErrorKind::Integrity | ErrorKind::WrongKey) => true,
            Err(error) => return Err(error),
        };
        let mut good = Vec::new();
        for other in self.copies.iter().filter(|other| other.location() != copy) {
            if self.compare(other, key, &check).await.is_ok() {
                good.push(Arc::clone(other));
                break;
            }
        }
        if good.is_empty() {
            return Err(Error::new(ErrorKind::ObjectMissing, format!("no other copy has {key} whole")));
        }
        if damaged {
            let deleted = to.delete(&[key.to_owned()]).await.into_iter().collect::<Result<()>>();
            deleted.map_err(|e| e.doing(format!("deleting the damaged {key}")))?;
        }
        transfer(&good, &**to, key, &check).await
    }

    /// Looks whether an object is as it should be.
    async fn compare(&self, store: &Arc<dyn Store>, key: &str, check: &Check) -> Result<()> {
        if !matches!(check, Check::Nothing) {
            return compare(&**store, key, check).await;
        }
        store.head(key).await?;
        match self.opener {
            Some(opener) => open_key(store, key, opener).await.map(drop),
            // Of two that are there nobody could say which one is right.
            None => Ok(()),
        }
    }

    async fn write_index(&self, copy: &str) -> Result<u64> {
        let copies = self.repository.copies().await?;
        let Some(copy) = copies.iter().find(|one| one.store().location() == copy) else {
            return Err(Error::new(ErrorKind::StoreUnavailable, format!("{copy} does not answer")));
        };
        Catalog::load_copy(copy, self.cluster).await?.write_index(copy).await.map(|_| 0)
    }

    /// A mark that is put back is the newest one: so it must be the one that counts already.
    async fn look_at_mark(&self, copy: &str, key: &str) -> Result<()> {
        let copies = self.repository.copies().await?;
        let Some(copy) = copies.iter().find(|one| one.store().location() == copy) else { return Ok(()) };
        let marks = Marks::load(copy, self.cluster).await?;
        let counts = marks.ids().flat_map(|id| marks.decided(id)).any(|mark| mark.key == key);
        if counts {
            return Ok(());
        }
        let message =
            "its name says all that counts, and put back it would be newer than the marks that came after it";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// What is known of an object's bytes: from the record of its backup, or from its name.
    async fn check_of(&self, key: &str) -> Result<Check> {
        let below = key.strip_prefix(&format!("{}/", layout::backups(self.cluster)));
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
        let record = self.repository.record(self.cluster, &id).await?;
        let object = record.objects().find(|object| object.key == name).cloned();
        object.map(Check::Whole).ok_or_else(|| {
            Error::new(ErrorKind::ObjectMissing, format!("the record of {id} does not name {name}"))
        })
    }
}
