use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::layout::is_word;
use crate::error::{Error, ErrorKind, Result};

/// Id of a backup: `20261121T020000Z-logical-k7qd`. It sorts by the time at which the run began (UTC), names
/// the kind, and ends in four random characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// A new id. `random` makes it unique among those of the same second.
    pub fn new(started: Timestamp, kind: &str, random: u128) -> Result<Self> {
        // Crockford's alphabet without what looks alike, in lower case.
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let letter = |i: u32| ALPHABET[usize::try_from((random >> (5 * i)) & 31).unwrap_or(0)] as char;
        let tail: String = (0..4).map(letter).collect();
        let time = started.to_zoned(TimeZone::UTC).strftime(TIME_FORMAT);
        format!("{time}-{kind}-{tail}").parse()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When the run began, to the second.
    pub fn started(&self) -> Timestamp {
        Self::time_of(&self.0).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The smallest text that any id of a run begun at `time` or later is not less than.
    pub(crate) fn floor(time: Timestamp) -> String {
        time.to_zoned(TimeZone::UTC).strftime(TIME_FORMAT).to_string()
    }

    pub(super) fn time_of(text: &str) -> Option<Timestamp> {
        let time = text.get(..16)?;
        jiff::civil::DateTime::strptime(TIME_FORMAT, time)
            .ok()?
            .to_zoned(TimeZone::UTC)
            .ok()
            .map(|z| z.timestamp())
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut pieces = text.splitn(3, '-');
        let well_formed = pieces.next().is_some_and(|time| time.len() == 16 && Self::time_of(text).is_some())
            && pieces.next().is_some_and(is_word)
            && pieces.next().is_some_and(|tail| {
                (4..=16).contains(&tail.len())
                    && tail.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            });
        if well_formed {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::new(ErrorKind::Usage, format!("{text:?} is not the id of a backup"))
            .with_hint("ids look like 20261121T020000Z-logical-k7qd; pgark list shows them"))
    }
}

impl TryFrom<String> for BackupId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Name of a cluster in the repository: letters, digits, `_` and `-`, at most 64, not beginning with `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClusterName {
    /// `main`
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for ClusterName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::new(ErrorKind::Usage, format!("{text:?} is not a name for a cluster"))
            .with_hint("use letters, digits, _ and -, at most 64"))
    }
}

impl TryFrom<String> for ClusterName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_come_back() {
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        let id = BackupId::new(at("2026-11-21T02:00:00Z"), "logical", 0x1234_5678).unwrap();
        assert!(id.as_str().starts_with("20261121T020000Z-logical-"), "{id}");
        assert_eq!(id.started(), at("2026-11-21T02:00:00Z"));
        assert_eq!(id, id.as_str().parse().unwrap());
        let later = BackupId::new(at("2026-11-21T02:00:01Z"), "full", 0).unwrap();
        assert!(id < later);
        assert!(BackupId::floor(at("2026-11-21T02:00:01Z")).as_str() <= later.as_str());
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "latest",
            "../x",
            "20261121T020000Z-Full-k7qd",
            "20261121T020000Z-full-",
            "20261321T020000Z-full-k7qd",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
        for text in ["", "a/b", "..", "-x", "é"] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }
}
