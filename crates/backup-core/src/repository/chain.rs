//! Backups that build on others.

use std::collections::BTreeMap;

use super::{BackupRecord, Repository, layout};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Entry, list_sorted};

/// The records of the backups that `record` builds on, oldest first: the first builds on nothing.
///
/// # Errors
/// [`BackupNotFound`](ErrorKind::BackupNotFound) where one of them is gone: it names both.
pub(crate) async fn ancestors(repository: &Repository, record: &BackupRecord) -> Result<Vec<BackupRecord>> {
    let mut chain: Vec<BackupRecord> = Vec::new();
    loop {
        let child = chain.last().unwrap_or(record);
        let Some(parent) = &child.parent else { break };
        if *parent == record.id || chain.iter().any(|known| known.id == *parent) {
            let message = format!("backup {} builds on itself, by its records", record.id);
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("restore another backup"));
        }
        let found = repository.record(&record.cluster, parent).await.map_err(|error| {
            let missing = error.kind() == ErrorKind::BackupNotFound;
            let error = error.doing(format!("backup {} builds on {parent}", child.id));
            if missing {
                error.with_hint("without it this backup cannot be restored: restore another one")
            } else {
                error
            }
        })?;
        chain.push(found);
    }
    chain.reverse();
    Ok(chain)
}

/// The objects of a backup that are not there with their lengths, found with a few requests: their keys, and why.
pub(crate) async fn lacking(repository: &Repository, record: &BackupRecord) -> Result<Vec<(String, Error)>> {
    let folder = layout::backup(&record.cluster, &record.id);
    let mut found = BTreeMap::new();
    for place in [folder.clone(), format!("{folder}/{}", layout::PARTS)] {
        for entry in list_sorted(&**repository.store(), &place, None).await? {
            if let Entry::Object(meta) = entry {
                found.insert(meta.key, meta.bytes);
            }
        }
    }
    let mut lacking = Vec::new();
    for object in record.objects() {
        let key = format!("{folder}/{}", object.key);
        let (kind, why) = match found.get(&key) {
            Some(bytes) if *bytes == object.bytes => continue,
            Some(bytes) => {
                (ErrorKind::Integrity, format!("it has {bytes} bytes instead of {}", object.bytes))
            }
            None => (ErrorKind::ObjectMissing, "it is not there".to_owned()),
        };
        let error = Error::new(kind, format!("{key} of backup {}: {why}", record.id)).with_hint(
            "restore a backup that does not build on this one, or put back a good copy of the object",
        );
        lacking.push((key, error));
    }
    Ok(lacking)
}

/// Looks whether the objects of a backup are there with their lengths.
///
/// # Errors
/// [`ObjectMissing`](ErrorKind::ObjectMissing) and [`Integrity`](ErrorKind::Integrity).
pub(crate) async fn check_objects(repository: &Repository, record: &BackupRecord) -> Result<()> {
    lacking(repository, record).await?.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}
