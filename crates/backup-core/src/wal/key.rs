//! Keys of WAL. One WAL file is small and comes often: so a host makes a key for a day, stores it sealed to the
//! readers, and keeps its secret in its state folder meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use ulid::Ulid;

use crate::encryptor::{Cipher, Encryptor};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{ClusterName, Digest, Repository, layout};
use crate::state::HostState;
use crate::store::Created;

/// How long a key is used.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// Where the state has it.
const FILE: &str = "wal-key.json";
/// Held by the process that looks at it.
const LOCK: &str = "wal-key.lock";

/// A key in use.
#[derive(Clone)]
pub(super) struct WalKey {
    pub(super) id: String,
    pub(super) method: String,
    pub(super) cipher: Arc<dyn Cipher>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    id: String,
    made: Timestamp,
    method: String,
    readers: Digest,
    secret: String,
}

pub(super) fn object(cluster: &ClusterName, id: &str, method: &str) -> String {
    format!("{}/{id}.{method}", layout::wal_keys(cluster))
}

/// The key to seal with now: that of the state, or a new one.
pub(super) async fn current(
    repository: &Repository,
    cluster: &ClusterName,
    state: &HostState,
    encryptor: &Arc<dyn Encryptor>,
) -> Result<WalKey> {
    // Two processes at once shall not make two keys.
    let _lock = state.lock(LOCK).await?;
    let now = Timestamp::now();
    // What cannot be read is made anew.
    let kept = state.read(FILE)?.and_then(|json| serde_json::from_slice::<Kept>(&json).ok());
    if let Some(kept) = kept {
        let young = (SignedDuration::ZERO..LIFETIME).contains(&now.duration_since(kept.made));
        if young && kept.method == encryptor.name() && kept.readers == encryptor.readers() {
            let cipher = encryptor.cipher(&SecretString::from(kept.secret))?;
            return Ok(WalKey { id: kept.id, method: kept.method, cipher });
        }
    }
    let WalKey { id, method, cipher } = make(repository, cluster, encryptor).await?;
    let kept = Kept {
        id: id.clone(),
        made: now,
        method: method.clone(),
        readers: encryptor.readers(),
        secret: cipher.secret().expose_secret().to_owned(),
    };
    let json = serde_json::to_vec(&kept).map_err(|e| Error::internal("keeping a key").caused_by(e))?;
    // Only now: a key that nobody can open must never seal anything.
    state.write(FILE, &json)?;
    Ok(WalKey { id, method, cipher })
}

/// Makes a key, stored sealed to the readers.
pub(super) async fn make(
    repository: &Repository,
    cluster: &ClusterName,
    encryptor: &Arc<dyn Encryptor>,
) -> Result<WalKey> {
    let making = Arc::clone(encryptor);
    // A passphrase takes its time.
    let made = tokio::task::spawn_blocking(move || making.new_key()).await;
    let (cipher, wrapped) =
        made.unwrap_or_else(|e| Err(Error::internal("making a key failed").caused_by(e)))?;
    let (id, method) = (Ulid::generate().to_string(), encryptor.name().to_owned());
    if repository.store().create(&object(cluster, &id, &method), wrapped).await? == Created::Other {
        return Err(Error::internal("a new name is taken already"));
    }
    Ok(WalKey { id, method, cipher })
}

/// Opens keys, each once.
#[derive(Default)]
pub(super) struct KeyRing {
    encryptor: Option<Arc<dyn Encryptor>>,
    opened: Mutex<BTreeMap<String, Arc<dyn Cipher>>>,
}

impl KeyRing {
    pub(super) fn new(encryptor: Option<Arc<dyn Encryptor>>) -> Self {
        Self { encryptor, opened: Mutex::default() }
    }

    /// The cipher of a key.
    pub(super) async fn open(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        id: &str,
        method: &str,
    ) -> Result<Arc<dyn Cipher>> {
        let mut opened = self.opened.lock().await;
        if let Some(cipher) = opened.get(id) {
            return Ok(Arc::clone(cipher));
        }
        let Some(encryptor) = self.encryptor.clone().filter(|e| e.name() == method) else {
            return Err(Error::new(ErrorKind::KeyMissing, "the WAL is encrypted, and no key was given")
                .with_hint("give --identity FILE, or --passphrase-file FILE"));
        };
        let key = object(cluster, id, method);
        let cipher = crate::repository::open_key(repository.store(), &key, &encryptor).await?;
        opened.insert(id.to_owned(), Arc::clone(&cipher));
        Ok(cipher)
    }
}
