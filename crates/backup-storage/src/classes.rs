use std::collections::BTreeMap;

use backup_core::{Error, ErrorKind, Result};

/// Kinds that may have a class of their own. The first one that fits counts.
const KINDS: &[&str] = &["wal", "logical", "physical", "parts"];

/// Storage classes by the kind of what is stored: `wal`, the parts of `logical` and of `physical` backups, and `parts`
/// of any backup. Records, keys, contents, marks and indexes stay in the standard class: they are small and read often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageClasses(BTreeMap<&'static str, String>);

impl StorageClasses {
    /// Sets the class of a kind.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) for an unknown kind.
    pub fn set(&mut self, kind: &str, class: &str) -> Result<()> {
        let Some(kind) = KINDS.iter().find(|known| **known == kind) else {
            return Err(Error::new(ErrorKind::Usage, format!("storage_class has no kind {kind:?}"))
                .with_hint(
                    "kinds are parts (of every backup), logical and physical (parts of these), and wal",
                ));
        };
        self.0.insert(kind, class.to_owned());
        Ok(())
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The class of an object, by its key; nothing for the standard one.
    pub(crate) fn of(&self, key: &str) -> Option<&str> {
        // clusters/<cluster>/backups/<id>/parts/<part>, clusters/<cluster>/wal/<system>/…
        let pieces: Vec<&str> = key.split('/').collect();
        let get = |kind: &str| self.0.get(kind).map(String::as_str);
        match pieces[..] {
            ["clusters", _, "wal", "keys", ..] | ["clusters", _, "wal", _, "history", ..] => None,
            ["clusters", _, "wal", ..] => get("wal"),
            ["clusters", _, "backups", id, "parts", ..] => {
                let kind = id.split('-').nth(1).unwrap_or_default();
                get(kind).filter(|_| kind != "wal").or_else(|| get("parts"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_keys() {
        let mut classes = StorageClasses::default();
        for (kind, class) in [("parts", "GLACIER_IR"), ("logical", "STANDARD_IA"), ("wal", "ONEZONE_IA")] {
            classes.set(kind, class).unwrap();
        }
        assert!(classes.set("records", "X").is_err());
        let backup =
            |kind: &str, name: &str| format!("clusters/a/backups/20261121T020000Z-{kind}-k7qd/{name}");
        for (key, class) in [
            (backup("physical", "parts/0001.tar.zst"), Some("GLACIER_IR")),
            (backup("logical", "parts/0001.copy.zst"), Some("STANDARD_IA")),
            (backup("physical", "backup.json"), None),
            (backup("physical", "key.age"), None),
            (backup("physical", "contents.json.zst"), None),
            (
                "clusters/a/wal/7/00000001/0000000100000000/000000010000000000000001/x.zst".into(),
                Some("ONEZONE_IA"),
            ),
            ("clusters/a/wal/keys/x.age".into(), None),
            ("clusters/a/wal/7/history/00000002-x.history".into(), None),
            ("clusters/a/marks/x.json".into(), None),
            ("pgark.json".into(), None),
        ] {
            assert_eq!(classes.of(&key), class, "{key}");
        }
    }
}
