//! Writes the marker of a copy again, that is damaged or gone.

use std::sync::Arc;

use futures::TryStreamExt;

use crate::error::{Error, ErrorKind, Result};
use crate::repository::{ClusterName, RECORD_LIMIT, Repository, check_small, layout};
use crate::store::{Entry, Store, list_sorted, read_if_there};

/// Writes `pgark.json` again in a place where it is damaged or missing. Only where the place has something that only a
/// copy of this repository can have. The marker's length.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) where nothing shows that the place is a copy, or nothing is wrong.
pub(super) async fn write_again(repository: &Repository, place: &Arc<dyn Store>) -> Result<u64> {
    // The place by itself is asked: as one of several it is not used as long as its marker is wrong.
    let place = place.alone().unwrap_or_else(|| Arc::clone(place));
    let damaged = match Repository::open(Arc::clone(&place)).await {
        Ok(other) if other.id() == repository.id() => {
            let message = "its bytes are those that were written: there is nothing to put back";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(other) => {
            let message = format!("it says that the place is another repository, {}", other.id());
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Err(error) if error.kind() == ErrorKind::NotARepository => false,
        Err(error) if error.kind() == ErrorKind::Integrity => true,
        Err(error) => return Err(error),
    };
    // They are copies of one repository, or this would fail.
    for other in repository.copies().await? {
        let other = other.store();
        if other.location() != place.location() && shares(&*place, &**other).await? {
            return repository.write_marker(&place, damaged).await;
        }
    }
    let message = "nothing in the place shows that it is a copy of this repository";
    Err(Error::new(ErrorKind::Unsupported, message).with_hint(
        "where it is one, put pgark.json of another copy there; pgark init makes an empty place a copy",
    ))
}

/// Whether two places have an object in common that is in no other repository. Backups and WAL do not say so: a copy
/// brings them to other repositories as they are.
async fn shares(place: &dyn Store, other: &dyn Store) -> Result<bool> {
    for cluster in list_sorted(place, layout::CLUSTERS, None).await? {
        let Ok(cluster) = cluster.name().parse::<ClusterName>() else { continue };
        for folder in [layout::identity(&cluster), layout::marks(&cluster), layout::audit(&cluster)] {
            let mut objects = place.walk(&folder);
            while let Some(meta) = objects.try_next().await? {
                if has_both(place, other, &meta.key).await? {
                    return Ok(true);
                }
            }
        }
        for backup in list_sorted(place, &layout::backups(&cluster), None).await? {
            let Entry::Folder(folder) = backup else { continue };
            // A copy to another repository announces itself anew.
            if has_both(place, other, &format!("{folder}/{}", layout::STARTED)).await? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether both have an object with the same bytes, undamaged.
async fn has_both(place: &dyn Store, other: &dyn Store, key: &str) -> Result<bool> {
    let Some(body) = read_if_there(place, key, RECORD_LIMIT).await? else { return Ok(false) };
    if check_small(key, &body).is_err() {
        return Ok(false);
    }
    Ok(read_if_there(other, key, RECORD_LIMIT).await?.is_some_and(|same| same == body))
}
