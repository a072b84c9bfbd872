//! The objects of a cluster that are not of one backup: identities, marks, the index, the audit log, what runs and drills
//! left; and what makes the place a repository.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::{Finding, is_damage};
use crate::audit;
use crate::error::{ErrorKind, Result};
use crate::repository::{
    ClusterIdentity, ClusterName, RECORD_LIMIT, Repository, check_small, from_json, layout,
};
use crate::store::{Entry, Store, list_sorted, read_whole};

/// How many are read at once.
const READS: usize = 16;

/// Reads every small object of a cluster, compares it with its own digest and with its name: identities, marks, drills,
/// the index, the audit log, and what runs announced. How many there were, and what is wrong.
///
/// # Errors
/// Those of the store.
pub async fn verify_cluster(repository: &Repository, cluster: &ClusterName) -> Result<(u64, Vec<Finding>)> {
    let store = &**repository.store();
    let mut keys = vec![layout::REPOSITORY.to_owned()];
    let mut folders = vec![
        layout::identity(cluster),
        layout::marks(cluster),
        layout::drills(cluster),
        layout::index(cluster),
    ];
    for entry in list_sorted(store, &layout::audit(cluster), None).await? {
        folders.push(format!("{}/{}", layout::audit(cluster), entry.name()));
    }
    for folder in folders {
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
    let mut found: Vec<Finding> = found.into_iter().flatten().collect();
    found.extend(lost_identity(repository, cluster).await?);
    Ok((count, found))
}

/// Whether there is WAL of a PostgreSQL cluster of which no identity is there. WAL is looked for by the identity.
async fn lost_identity(repository: &Repository, cluster: &ClusterName) -> Result<Option<Finding>> {
    let store = &**repository.store();
    let folder = layout::identity(cluster);
    let mut known = Vec::new();
    for key in objects(store, &folder).await? {
        let read = async {
            let body = read_whole(store, &key, RECORD_LIMIT).await?;
            from_json::<ClusterIdentity>(&body, &key)
        };
        match read.await {
            Ok(identity) => known.push(identity.system_identifier),
            // That one may be it, and is told of.
            Err(error) if is_damage(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let systems = list_sorted(store, &layout::wal_root(cluster), None).await?;
    let is_system = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    let lost =
        systems.iter().map(Entry::name).find(|name| is_system(name) && !known.iter().any(|k| k == name));
    Ok(lost.map(|system| {
        let why = format!("there is WAL of the PostgreSQL cluster {system}, and its identity is missing");
        Finding::of(folder, None, true, why)
    }))
}

/// Reads the audit log of a cluster as a whole: what is missing in it, and what does not follow. Entries of which that is
/// said already in `known` are left out.
///
/// # Errors
/// Those of the store.
pub async fn verify_audit_log(
    repository: &Repository,
    cluster: &ClusterName,
    known: &[Finding],
) -> Result<Vec<Finding>> {
    let (_, wrong) = audit::look(repository, cluster, None).await?;
    let is_new = |wrong: &audit::Wrong| known.iter().all(|finding| finding.what != wrong.key);
    let finding = |wrong: audit::Wrong| Finding::of_object(&wrong.key, wrong.missing, wrong.why);
    Ok(wrong.into_iter().filter(is_new).map(finding).collect())
}

/// The copies of a repository that cannot be used: those whose marker is damaged or gone, and words on those that do not
/// answer.
///
/// # Errors
/// Those of the store.
pub async fn unusable_copies(repository: &Repository) -> Result<(Vec<Finding>, Vec<String>)> {
    let (mut damaged, mut away) = (Vec::new(), Vec::new());
    for copy in repository.store().copies() {
        let location = copy.location().to_owned();
        // The place alone is asked, since it is not used as long as its marker is wrong.
        let copy = copy.alone().unwrap_or(copy);
        let Err(error) = Repository::open(Arc::clone(&copy)).await else { continue };
        let missing = error.kind() == ErrorKind::NotARepository;
        let is_used = async {
            let root = list_sorted(&*copy, "", None).await;
            root.is_ok_and(|root| root.iter().any(|entry| entry.name() == layout::CLUSTERS))
        };
        if error.kind() == ErrorKind::Integrity || (missing && is_used.await) {
            let why = format!("{error}: nothing is read from this copy, or written to it");
            let finding = Finding::of_object(layout::REPOSITORY, missing, why);
            damaged.push(Finding { copy: Some(location), ..finding });
        } else {
            away.push(format!("{location}: {error}"));
        }
    }
    Ok((damaged, away))
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
    let read = async { check_small(&key, &read_whole(store, &key, RECORD_LIMIT).await?) };
    match read.await {
        Ok(()) => Ok(None),
        // A mark or an index may have been replaced meanwhile.
        Err(e) if e.kind() == ErrorKind::ObjectMissing => Ok(None),
        Err(e) if is_damage(&e) => Ok(Some(Finding::of_object(&key, false, e.to_string()))),
        Err(e) => Err(e.doing(format!("verifying {key}"))),
    }
}
