//! What copies missed, by the folder of a backup.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup_core::Error;

/// Copies that lack something below a folder, and why.
#[derive(Debug, Default)]
pub(super) struct Misses(Mutex<BTreeMap<String, BTreeMap<usize, Miss>>>);

#[derive(Debug, Clone)]
struct Miss {
    why: String,
    /// It has another truth, or may have: nothing more is deleted there either.
    differs: bool,
}

/// The folder that stands or falls together: that of a backup, `clusters/<cluster>/backups/<id>`. WAL, marks and the
/// rest are objects that count one by one.
fn whole_of(key: &str) -> Option<&str> {
    let mut slashes = key.match_indices('/').map(|(at, _)| at);
    let backups = key.split('/').nth(2)? == "backups" && key.starts_with("clusters/");
    let end = slashes.nth(3)?;
    backups.then(|| &key[..end])
}

impl Misses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<usize, Miss>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, copy: usize, key: &str, error: &Error, differs: bool) {
        let mut why = error.to_string();
        for cause in error.causes() {
            why.push_str(": ");
            why.push_str(&cause);
        }
        tracing::warn!(
            copy = copy + 1,
            key,
            why,
            "a copy of the repository lacks an object; pgark sync fills it in"
        );
        let Some(folder) = whole_of(key) else { return };
        let mut all = self.lock();
        let miss = all.entry(folder.to_owned()).or_default();
        let miss = miss.entry(copy).or_insert_with(|| Miss { why, differs });
        miss.differs |= differs;
    }

    /// A copy did not take a write.
    pub(super) fn note(&self, copy: usize, key: &str, error: &Error) {
        // Without the record of a run that was given up, or that ended, nothing of it may be deleted.
        self.add(copy, key, error, key.ends_with("/backup.json"));
    }

    /// A copy has something else, or kept what was to be deleted.
    pub(super) fn differs(&self, copy: usize, key: &str, error: &Error) {
        self.add(copy, key, error, true);
    }

    /// Whether a copy lacks something of what `key` is of.
    pub(super) fn has_missed(&self, copy: usize, key: &str) -> bool {
        whole_of(key).is_some_and(|folder| self.lock().get(folder).is_some_and(|m| m.contains_key(&copy)))
    }

    /// Why nothing may be deleted in a copy.
    pub(super) fn keeps(&self, copy: usize, key: &str) -> Option<String> {
        let all = self.lock();
        all.get(whole_of(key)?)?.get(&copy).filter(|miss| miss.differs).map(|miss| miss.why.clone())
    }

    /// The copies that lack something of what `key` is of.
    pub(super) fn of(&self, key: &str) -> Vec<(usize, String)> {
        whole_of(key).map(|folder| self.below(folder)).unwrap_or_default()
    }

    /// The copies that lack something below a folder.
    pub(super) fn below(&self, folder: &str) -> Vec<(usize, String)> {
        let all = self.lock();
        let found = all.get(folder).into_iter().flatten();
        found.map(|(copy, miss)| (*copy, miss.why.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::whole_of;

    #[test]
    fn what_stands_or_falls_together_is_a_backup() {
        let folder = "clusters/main/backups/20261121T020000Z-full-k7qd";
        for name in ["backup.json", "parts/0001.tar.zst"] {
            assert_eq!(whole_of(&format!("{folder}/{name}")), Some(folder));
        }
        for other in ["pgark.json", "clusters/main/wal/1/2/3/4/5", "clusters/main/identity/x.json", folder] {
            assert_eq!(whole_of(other), None, "{other}");
        }
    }
}
