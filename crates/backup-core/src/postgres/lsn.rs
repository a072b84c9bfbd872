use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// A position in the WAL, in bytes since the cluster began. Written as PostgreSQL does: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position so many bytes further; nothing beyond the end of what can be counted.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let half = |hex: &str| {
            let digits = (1..=8).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(hex, 16).ok()).flatten()
        };
        text.split_once('/').and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?))).ok_or_else(
            || {
                Error::new(ErrorKind::Usage, format!("{text:?} is not a position in the WAL"))
                    .with_hint("write it as PostgreSQL does: 16/B374D848")
            },
        )
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::Lsn;

    #[test]
    fn positions_are_written_as_postgresql_writes_them() {
        for (text, number) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(number));
            assert_eq!(Lsn(number).to_string(), text);
        }
        for wrong in ["", "/", "0", "0/", "/0", "123456789/0", "0/+1", "g/0", "0/0/0", " 0/0"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong:?}");
        }
    }
}
