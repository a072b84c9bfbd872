//! The objects of a cluster that are not of one backup: identities, marks, the index, what runs and drills left.

use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use super::{Finding, is_damage};
use crate::error::Result;
use crate::repository::{ClusterName, RECORD_LIMIT, Repository, from_json, layout};
use crate::store::{Entry, Store, list_sorted, read_whole};

/// How many are read at once.
const READS: usize = 16;

/// Reads every small object of a cluster and compares it with its own digest: identities, marks, drills, the index, and
/// what runs announced. How many there were, and what is wrong.
///
/// # Errors
/// Those of the store.
pub async fn verify_cluster(repository: &Repository, cluster: &ClusterName) -> Result<(u64, Vec<Finding>)> {
    let store = &**repository.store();
    let mut keys = vec![layout::REPOSITORY.to_owned()];
    for folder in
        [layout::identity(cluster), layout::marks(cluster), layout::drills(cluster), layout::index(cluster)]
    {
        keys.extend(objects(store, &folder).await?);
    }
    for entry in list_sorted(store, &layout::backups(cluster), None).await? {
        let Entry::Folder(folder) = entry else { continue };
        let names = objects(store, &folder).await?;
        keys.extend(names.into_iter().filter(|key| key.ends_with(&format!("/{}", layout::STARTED))));
    }
    let count = keys.len() as u64;
    let found: Vec<Option<Finding>> = futures::stream::iter(keys)
        .map(|key| async move { verify_object(store, key).await })
        .buffered(READS)
        .try_collect()
        .await?;
    Ok((count, found.into_iter().flatten().collect()))
}

async fn objects(store: &dyn Store, folder: &str) -> Result<Vec<String>> {
    let entries = list_sorted(store, folder, None).await?;
    let key = |entry| match entry {
        Entry::Object(meta) => Some(meta.key),
        Entry::Folder(_) => None,
    };
    Ok(entries.into_iter().filter_map(key).collect())
}

async fn verify_object(store: &dyn Store, key: String) -> Result<Option<Finding>> {
    let read = async {
        let body = read_whole(store, &key, RECORD_LIMIT).await?;
        let is_compressed = key.strip_suffix(".zst").is_some();
        let body = if is_compressed {
            zstd::bulk::decompress(&body, RECORD_LIMIT)
                .map_err(|e| {
                    crate::Error::new(crate::ErrorKind::Integrity, format!("{key} is damaged: {e}"))
                })?
                .into()
        } else {
            body
        };
        from_json::<Value>(&body, &key).map(drop)
    };
    match read.await {
        Ok(()) => Ok(None),
        Err(e) if is_damage(&e) => {
            let missing = e.kind() == crate::ErrorKind::ObjectMissing;
            // A mark or an index may have been replaced meanwhile.
            if missing {
                return Ok(None);
            }
            Ok(Some(Finding { what: key.clone(), key: Some(key), missing, why: e.to_string() }))
        }
        Err(e) => Err(e.doing(format!("verifying {key}"))),
    }
}
