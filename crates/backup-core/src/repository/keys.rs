//! The wrapped key of a backup, and wrapping it anew.

use std::sync::Arc;

use ulid::Ulid;

use super::{BackupRecord, Repository, layout};
use crate::encryptor::{Cipher, Encryptor};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Created, Store, list_sorted, read_whole, sources, worse};

/// More than a key wrapped for thousands of readers.
const KEY_LIMIT: usize = 16 * 1024 * 1024;

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rotated {
    /// Name of the new object in the backup's folder.
    pub created: String,
    /// Older keys that the store did not let go. Their readers can still read the backup.
    pub remaining: Vec<String>,
}

/// Names of the wrapped keys of a backup; the one that counts comes last.
async fn key_names(repository: &Repository, folder: &str) -> Result<Vec<String>> {
    keys_in(&**repository.store(), folder).await
}

/// The same of a folder in a store.
pub(crate) async fn keys_in(store: &dyn Store, folder: &str) -> Result<Vec<String>> {
    let entries = list_sorted(store, folder, None).await?;
    let mut names: Vec<String> =
        entries.iter().map(|e| e.name().to_owned()).filter(|n| layout::is_key(n)).collect();
    names.sort_by_key(|name| age_of_key(name));
    Ok(names)
}

/// Sorts names of keys by age: the first one of a backup, `key.age`, is older than any with a ULID.
pub(crate) fn age_of_key(name: &str) -> (bool, String) {
    (name.starts_with("key-"), name.to_owned())
}

/// Whether the key of an encrypted backup is there.
pub(crate) async fn has_key(repository: &Repository, record: &BackupRecord) -> Result<bool> {
    Ok(!key_names(repository, &layout::backup(&record.cluster, &record.id)).await?.is_empty())
}

/// A name that sorts after those that are there, even where this host's clock runs behind.
fn next_name(names: &[String], method: &str) -> String {
    let made = layout::rotated_key(&Ulid::generate().to_string(), method);
    let newest = names.last().and_then(|n| n.strip_prefix("key-")).and_then(|n| n.split('.').next());
    match newest.and_then(|ulid| Ulid::from_string(ulid).ok()) {
        Some(newest) if names.last().is_some_and(|last| *last >= made) => {
            layout::rotated_key(&newest.increment().unwrap_or(newest).to_string(), method)
        }
        _ => made,
    }
}

/// Opens the key of a backup; nothing where the backup is not encrypted.
pub(crate) async fn open_cipher(
    repository: &Repository,
    record: &BackupRecord,
    encryptor: Option<&Arc<dyn Encryptor>>,
) -> Result<Option<Arc<dyn Cipher>>> {
    let Some(encryption) = &record.encryption else { return Ok(None) };
    let Some(encryptor) = encryptor else {
        return Err(Error::new(
            ErrorKind::KeyMissing,
            format!("backup {} is encrypted, and no key was given", record.id),
        )
        .with_hint("give --identity FILE, or --passphrase-file FILE"));
    };
    if encryptor.name() != encryption.method {
        let message =
            format!("backup {} is encrypted with {}, not {}", record.id, encryption.method, encryptor.name());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let folder = layout::backup(&record.cluster, &record.id);
    let Some(name) = key_names(repository, &folder).await?.pop() else {
        return Err(Error::new(
            ErrorKind::ObjectMissing,
            format!("the key of backup {} is missing", record.id),
        ));
    };
    let key = format!("{folder}/{name}");
    open_key(repository.store(), &key, encryptor).await.map(Some)
}

/// Reads a wrapped key from the first copy where it opens.
pub(crate) async fn open_key(
    store: &Arc<dyn Store>,
    key: &str,
    encryptor: &Arc<dyn Encryptor>,
) -> Result<Arc<dyn Cipher>> {
    let mut failed = None;
    for source in sources(store) {
        match open_wrapped(&source, key, encryptor).await {
            Ok(cipher) => return Ok(cipher),
            Err(error) => failed = Some(worse(failed, error)),
        }
    }
    Err(failed.unwrap_or_else(|| Error::internal("a store without copies")))
}

/// Reads a wrapped key from one place and opens it.
async fn open_wrapped(
    source: &Arc<dyn Store>,
    key: &str,
    encryptor: &Arc<dyn Encryptor>,
) -> Result<Arc<dyn Cipher>> {
    let wrapped = read_whole(&**source, key, KEY_LIMIT).await?;
    let encryptor = Arc::clone(encryptor);
    // A passphrase takes its time.
    let opened = tokio::task::spawn_blocking(move || encryptor.open_key(&wrapped)).await;
    let opened = opened.unwrap_or_else(|e| Err(Error::internal("opening the key failed").caused_by(e)));
    opened.map_err(|e| e.doing(format!("opening {key}")))
}

/// Wraps the key of a backup for the readers of `new`: a new object, then the older ones are deleted. The
/// parts stay as they are. Whoever kept a copy of an old wrapped key, and its secret, can still read them.
pub async fn rotate_key(
    repository: &Repository,
    record: &BackupRecord,
    old: &Arc<dyn Encryptor>,
    new: &Arc<dyn Encryptor>,
) -> Result<Rotated> {
    let Some(cipher) = open_cipher(repository, record, Some(old)).await? else {
        return Err(Error::new(ErrorKind::Unsupported, format!("backup {} is not encrypted", record.id)));
    };
    let folder = layout::backup(&record.cluster, &record.id);
    let outdated = key_names(repository, &folder).await?;
    let created = next_name(&outdated, new.name());
    let store = repository.store();
    if store.create(&format!("{folder}/{created}"), new.rewrap(&*cipher)?).await? == Created::Other {
        return Err(Error::internal("a new name is taken already"));
    }
    let keys: Vec<String> = outdated.iter().map(|name| format!("{folder}/{name}")).collect();
    let deleted = store.delete(&keys).await;
    let remaining =
        outdated.into_iter().zip(deleted).filter(|(_, r)| r.is_err()).map(|(name, _)| name).collect();
    Ok(Rotated { created, remaining })
}
