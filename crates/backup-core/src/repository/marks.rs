//! Marks of backups: what is to be known of one that its record, which never changes, cannot say. A mark's name says all
//! that counts, so that one list of one folder reads every mark of a cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use futures::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ulid::Ulid;

use super::record::to_json;
use super::run::host_name;
use super::{BackupId, ClusterName, FORMAT, Repository, Tool, layout};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Created, Entry};

/// What a mark says of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verb {
    /// It is kept whatever the rules say, until then or for ever.
    Pin(Option<Timestamp>),
    /// The rules decide again.
    Unpin,
    /// Its stored bytes were read and are what was written.
    VerifiedStored,
    /// Its raw bytes were, too.
    VerifiedRaw,
    /// A verification found damage.
    Damaged,
    /// It is about to be deleted.
    Remove,
    /// It is not, after all.
    Keep,
}

impl Verb {
    /// Which marks answer the same question: the newest of them counts.
    fn question(self) -> u8 {
        match self {
            Self::Pin(_) | Self::Unpin => 0,
            Self::VerifiedStored | Self::VerifiedRaw | Self::Damaged => 1,
            Self::Remove | Self::Keep => 2,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pin(None) => "pin",
            Self::Pin(Some(until)) => return write!(f, "pin-{}", BackupId::floor(*until)),
            Self::Unpin => "unpin",
            Self::VerifiedStored => "verified-stored",
            Self::VerifiedRaw => "verified-raw",
            Self::Damaged => "damaged",
            Self::Remove => "remove",
            Self::Keep => "keep",
        })
    }
}

impl FromStr for Verb {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "pin" => Self::Pin(None),
            "unpin" => Self::Unpin,
            "verified-stored" => Self::VerifiedStored,
            "verified-raw" => Self::VerifiedRaw,
            "damaged" => Self::Damaged,
            "remove" => Self::Remove,
            "keep" => Self::Keep,
            _ => {
                let until = text.strip_prefix("pin-").and_then(BackupId::time_of);
                return until.map(|until| Self::Pin(Some(until))).ok_or_else(|| {
                    Error::new(ErrorKind::Unsupported, format!("a mark {text:?} is not known"))
                });
            }
        })
    }
}

/// A mark.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mark {
    /// What it says.
    pub verb: Verb,
    /// Since when, by the store's clock.
    pub since: Timestamp,
    /// Its key in the store.
    pub key: String,
}

/// What stands in the object of a mark, for people: nothing reads it.
#[derive(Serialize, Deserialize)]
struct Body {
    format: u32,
    backup: BackupId,
    verb: String,
    at: Timestamp,
    host: String,
    tool: Tool,
    note: Option<String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// The marks of a cluster's backups, at one time.
#[derive(Debug, Clone, Default)]
pub struct Marks(BTreeMap<BackupId, Vec<Mark>>);

impl Marks {
    /// Reads them: one list.
    pub async fn load(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let mut marks = Self::default();
        let mut entries = repository.store().list(&layout::marks(cluster), None);
        while let Some(entry) = entries.try_next().await? {
            let Entry::Object(meta) = entry else { continue };
            // What has no name of ours is not ours to judge; a newer pgark may know other verbs.
            let Some((id, verb)) = parse(&meta.key) else { continue };
            marks.0.entry(id).or_default().push(Mark { verb, since: meta.modified, key: meta.key });
        }
        for of_one in marks.0.values_mut() {
            of_one.sort_by(|a, b| (a.since, &a.key).cmp(&(b.since, &b.key)));
        }
        Ok(marks)
    }

    /// Adds those of another copy; what both have counts once, with the earlier time.
    pub(crate) fn extend(&mut self, other: Self) {
        for (id, marks) in other.0 {
            let known = self.0.entry(id).or_default();
            for mark in marks {
                match known.iter_mut().find(|one| one.key == mark.key) {
                    Some(one) => one.since = one.since.min(mark.since),
                    None => known.push(mark),
                }
            }
            known.sort_by(|a, b| (a.since, &a.key).cmp(&(b.since, &b.key)));
        }
    }

    /// All marks of a backup, oldest first.
    pub fn of(&self, id: &BackupId) -> &[Mark] {
        self.0.get(id).map_or(&[], Vec::as_slice)
    }

    /// The backups that have marks.
    pub fn ids(&self) -> impl Iterator<Item = &BackupId> {
        self.0.keys()
    }

    fn newest(&self, id: &BackupId, like: Verb) -> Option<&Mark> {
        self.of(id).iter().rfind(|mark| mark.verb.question() == like.question())
    }

    /// The pin that keeps a backup at `now`.
    pub fn pin(&self, id: &BackupId, now: Timestamp) -> Option<&Mark> {
        self.newest(id, Verb::Unpin).filter(|mark| match mark.verb {
            Verb::Pin(until) => until.is_none_or(|until| now < until),
            _ => false,
        })
    }

    /// What the last verification found: [`Verb::VerifiedStored`], [`Verb::VerifiedRaw`] or [`Verb::Damaged`].
    pub fn verification(&self, id: &BackupId) -> Option<&Mark> {
        self.newest(id, Verb::Damaged)
    }

    /// The marks that count of what a person or a rule decided: what a verification found is of one copy only.
    pub(crate) fn decided(&self, id: &BackupId) -> Vec<&Mark> {
        [Verb::Unpin, Verb::Keep].into_iter().filter_map(|like| self.newest(id, like)).collect()
    }

    /// Whether the last verification found damage.
    pub fn is_damaged(&self, id: &BackupId) -> bool {
        self.verification(id).is_some_and(|mark| mark.verb == Verb::Damaged)
    }

    /// The mark of a backup that is about to be deleted.
    pub fn removal(&self, id: &BackupId) -> Option<&Mark> {
        self.newest(id, Verb::Keep).filter(|mark| mark.verb == Verb::Remove)
    }
}

/// `clusters/main/marks/<id>.<ulid>.<verb>.json`
fn parse(key: &str) -> Option<(BackupId, Verb)> {
    let name = key.rsplit('/').next()?.strip_suffix(".json")?;
    let mut pieces = name.splitn(3, '.');
    let id = pieces.next()?.parse().ok()?;
    pieces.next()?.parse::<Ulid>().ok()?;
    Some((id, pieces.next()?.parse().ok()?))
}

impl Repository {
    /// Marks a backup. `note` is for people who read the object.
    pub async fn mark(
        &self,
        cluster: &ClusterName,
        id: &BackupId,
        verb: Verb,
        note: Option<&str>,
    ) -> Result<()> {
        let body = Body {
            format: FORMAT,
            backup: id.clone(),
            verb: verb.to_string(),
            at: Timestamp::now(),
            host: host_name(),
            tool: Tool::this(),
            note: note.map(str::to_owned),
            other: Map::new(),
        };
        let key = format!("{}/{id}.{}.{verb}.json", layout::marks(cluster), Ulid::generate());
        if self.store().create(&key, to_json(&body)?).await? == Created::Other {
            return Err(Error::internal("a new name is taken already"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "20261121T020000Z-logical-k7qd";

    fn marks(verbs: &[(&str, i64)]) -> Marks {
        let of_one = verbs.iter().map(|(verb, second)| Mark {
            verb: verb.parse().unwrap(),
            since: Timestamp::from_second(*second).unwrap(),
            key: String::new(),
        });
        Marks([(ID.parse().unwrap(), of_one.collect())].into())
    }

    #[test]
    fn a_name_says_it_all() {
        for verb in [
            Verb::Pin(None),
            Verb::Pin(Some("2027-01-31T00:00:00Z".parse().unwrap())),
            Verb::Unpin,
            Verb::VerifiedStored,
            Verb::VerifiedRaw,
            Verb::Damaged,
            Verb::Remove,
            Verb::Keep,
        ] {
            let key = format!("clusters/main/marks/{ID}.{}.{verb}.json", Ulid::generate());
            assert_eq!(parse(&key), Some((ID.parse().unwrap(), verb)), "{key}");
        }
        for other in [
            "x",
            "a/b.json",
            &format!("m/{ID}.01.pin.json"),
            &format!("m/{ID}.{}.later.json", Ulid::generate()),
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_of_each_question_counts() {
        let id = ID.parse().unwrap();
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let all = marks(&[("pin", 1), ("damaged", 2), ("verified-raw", 3), ("remove", 4), ("keep", 5)]);
        assert!(all.pin(&id, now).is_some() && !all.is_damaged(&id) && all.removal(&id).is_none());
        let all = marks(&[("pin", 1), ("unpin", 2), ("verified-raw", 3), ("damaged", 4), ("remove", 5)]);
        assert!(all.pin(&id, now).is_none() && all.is_damaged(&id) && all.removal(&id).is_some());
        // Until then, and not at that moment any more.
        let until = marks(&[("pin-20010909T014640Z", 1)]);
        assert!(until.pin(&id, now - jiff::SignedDuration::from_secs(1)).is_some());
        assert!(until.pin(&id, now).is_none());
    }
}
