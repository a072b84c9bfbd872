//! Digests of bytes before compression. They are sealed, and stand beside the stored bytes' BLAKE3, lengths, and the
//! checksums of frames and ciphers: they find errors of programs, and need not resist an attacker.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use super::Digest;

/// The digest of a part's raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawDigest {
    /// XXH3-128, as `xxh128sum` prints it. What is written.
    #[serde(rename = "raw_xxh3")]
    Xxh3(Hash128),
    /// BLAKE3, in older backups.
    #[serde(rename = "raw_blake3")]
    Blake3(Digest),
}

/// A number of 128 bits; as text 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash128(u128);

/// Takes the digest of raw bytes that come in pieces.
pub(crate) enum RawHasher {
    Xxh3(Box<Xxh3>),
    Blake3(Box<blake3::Hasher>),
}

impl RawHasher {
    /// Of the kind that an expected digest is of.
    pub(crate) fn like(expected: &RawDigest) -> Self {
        match expected {
            RawDigest::Xxh3(_) => Self::default(),
            RawDigest::Blake3(_) => Self::Blake3(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Xxh3(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    pub(crate) fn finish(&self) -> RawDigest {
        match self {
            Self::Xxh3(hasher) => RawDigest::Xxh3(Hash128(hasher.digest128())),
            Self::Blake3(hasher) => RawDigest::Blake3(hasher.finalize().into()),
        }
    }
}

impl Default for RawHasher {
    fn default() -> Self {
        Self::Xxh3(Box::default())
    }
}

impl fmt::Display for RawDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xxh3(hash) => hash.fmt(f),
            Self::Blake3(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Hash128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Hash128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash128 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash128 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| serde::de::Error::custom("a digest has 32 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_stock_tools() {
        // printf hello | xxh128sum; printf hello | b3sum
        for (hasher, field, digest) in [
            (RawHasher::default(), "raw_xxh3", "b5e9c1ad071b3e7fc779cfaa5e523818"),
            (
                RawHasher::Blake3(Box::default()),
                "raw_blake3",
                "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f",
            ),
        ] {
            let mut hasher = hasher;
            for piece in [&b"he"[..], b"", b"llo"] {
                hasher.update(piece);
            }
            let found = hasher.finish();
            assert_eq!(found.to_string(), digest);
            let json = serde_json::json!({ field: digest });
            assert_eq!(serde_json::to_value(found).unwrap(), json);
            assert_eq!(serde_json::from_value::<RawDigest>(json).unwrap(), found);
            assert_eq!(RawHasher::like(&found).finish(), RawHasher::like(&found).finish());
        }
        for wrong in ["", "b5e9", "+5e9c1ad071b3e7fc779cfaa5e523818", "x5e9c1ad071b3e7fc779cfaa5e523818"] {
            assert!(serde_json::from_value::<RawDigest>(serde_json::json!({ "raw_xxh3": wrong })).is_err());
        }
    }
}
