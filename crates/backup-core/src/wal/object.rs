//! Names of stored WAL: all that must be known of a piece without reading it stands in its name.

use jiff::Timestamp;

use super::name::WalName;
use super::page::Times;
use crate::repository::Digest;
use crate::store::Meta;

/// A stored piece of a WAL file, often the whole. `docs/format.md` describes its name:
/// `<offset>-<length>-<segment size>-<stored length>-<raw digest>-<stored digest>-<first time>-<last time>[-<key>].zst[.age]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length, before compression.
    pub length: u64,
    /// Size of segments; 0 where the file is no segment.
    pub segment_bytes: u64,
    /// Length of the stored bytes; nothing where it was stored before names said so.
    pub stored_bytes: Option<u64>,
    /// Digest of the raw bytes.
    pub raw: ShortDigest,
    /// Digest of the stored bytes.
    pub stored: ShortDigest,
    /// The earliest commit or abort in it.
    pub first: Option<Timestamp>,
    /// The latest.
    pub last: Option<Timestamp>,
    /// The key that it is sealed with, and the method.
    pub key: Option<(String, String)>,
}

/// The first 128 bits of a BLAKE3 digest, as 32 hexadecimal digits: enough to tell bytes apart, short enough for
/// names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortDigest(String);

impl ShortDigest {
    /// Whether a text is one.
    fn is_one(text: &str) -> bool {
        text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::is_one(text).then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Digest> for ShortDigest {
    fn from(digest: Digest) -> Self {
        let mut text = digest.to_string();
        text.truncate(32);
        Self(text)
    }
}

impl From<blake3::Hash> for ShortDigest {
    fn from(hash: blake3::Hash) -> Self {
        Digest::from(hash).into()
    }
}

impl Piece {
    /// Whether it is the whole segment.
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.length == self.segment_bytes
    }

    /// Where it ends in the file.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Sets the times.
    #[must_use]
    pub(super) fn with_times(mut self, times: &Times) -> Self {
        (self.first, self.last) = (times.first, times.last);
        self
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        let time = |time: Option<Timestamp>| time.map_or(0, Timestamp::as_microsecond);
        let stored_bytes = self.stored_bytes.map(|bytes| format!("{bytes:08x}-")).unwrap_or_default();
        let mut name = format!(
            "{:08x}-{:08x}-{:08x}-{stored_bytes}{}-{}-{}-{}",
            self.offset,
            self.length,
            self.segment_bytes,
            self.raw.as_str(),
            self.stored.as_str(),
            time(self.first),
            time(self.last)
        );
        let suffix = match &self.key {
            Some((key, method)) => format!("-{key}.zst.{method}"),
            None => ".zst".to_owned(),
        };
        name.push_str(&suffix);
        name
    }

    /// Reads a name; nothing where it is none of ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let fields = Fields::of(name)?;
        let time = |field: &str| -> Option<Option<Timestamp>> {
            let micros: i64 = field.parse().ok()?;
            if micros == 0 { Some(None) } else { Timestamp::from_microsecond(micros).ok().map(Some) }
        };
        let key = match (fields.key, fields.suffix) {
            (None, "") => None,
            (Some(key), suffix) => Some((key.to_owned(), suffix.strip_prefix('.')?.to_owned())),
            _ => return None,
        };
        Some(Self {
            offset: hex(fields.offset)?,
            length: hex(fields.length)?,
            segment_bytes: hex(fields.segment_bytes)?,
            stored_bytes: match fields.stored_bytes {
                Some(field) => Some(hex(field)?),
                None => None,
            },
            raw: ShortDigest::parse(fields.raw)?,
            stored: ShortDigest::parse(fields.stored)?,
            first: time(fields.first)?,
            last: time(fields.last)?,
            key,
        })
    }
}

/// The fields of a piece's name, as they are in it: an archive has a million names, of which few are needed whole.
pub(super) struct Fields<'a> {
    pub(super) offset: &'a str,
    pub(super) length: &'a str,
    pub(super) segment_bytes: &'a str,
    stored_bytes: Option<&'a str>,
    pub(super) raw: &'a str,
    stored: &'a str,
    first: &'a str,
    pub(super) last: &'a str,
    key: Option<&'a str>,
    /// Behind `.zst`.
    suffix: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn of(name: &'a str) -> Option<Self> {
        let (stem, suffix) = name.split_once('.')?;
        let suffix = suffix.strip_prefix("zst")?;
        let mut fields = stem.split('-');
        let (offset, length, segment_bytes) = (fields.next()?, fields.next()?, fields.next()?);
        // In names without the stored length the raw digest is in its place.
        let field = fields.next()?;
        let (stored_bytes, raw) =
            if ShortDigest::is_one(field) { (None, field) } else { (Some(field), fields.next()?) };
        let (stored, first, last) = (fields.next()?, fields.next()?, fields.next()?);
        let key = fields.next();
        let is_one = fields.next().is_none() && ShortDigest::is_one(raw) && ShortDigest::is_one(stored);
        is_one.then_some(Self {
            offset,
            length,
            segment_bytes,
            stored_bytes,
            raw,
            stored,
            first,
            last,
            key,
            suffix,
        })
    }
}

/// A number of a name.
pub(super) fn hex(field: &str) -> Option<u64> {
    u64::from_str_radix(field, 16).ok()
}

/// How long the name of a segment is.
const SEGMENT_NAME: usize = 24;

/// Of the key of an object: the file that it is of, where the key says so, and its name as an object.
///
/// A whole segment lies beside others, as `<group>/<file>-<object>`; everything else in the folder of its file, as
/// `<group>/<file>/<object>`.
pub(super) fn split(key: &str) -> (Option<WalName>, &str) {
    let (folder, last) = key.rsplit_once('/').unwrap_or(("", key));
    if let Some((file, object)) = last.split_once('-')
        && file.len() == SEGMENT_NAME
        && let Ok(name @ WalName::Segment(_)) = file.parse()
    {
        return (Some(name), object);
    }
    (folder.rsplit('/').next().and_then(|file| file.parse().ok()), last)
}

/// The stored length that the key of an object tells.
pub(super) fn stored_bytes(key: &str) -> Option<u64> {
    Fields::of(split(key).1)?.stored_bytes.and_then(hex)
}

/// What is stored of one file.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Stored {
    /// The pieces, by offset; longer ones first.
    pub pieces: Vec<(Piece, Meta)>,
    /// Which one counts where several differ: the newest decision.
    pub resolved: Option<ShortDigest>,
}

impl Stored {
    /// Sorts what there is of a file.
    pub(super) fn of(objects: impl IntoIterator<Item = Meta>) -> Self {
        let mut stored = Self::default();
        let mut decisions: Vec<String> = Vec::new();
        for meta in objects {
            let (_, name) = split(&meta.key);
            if name.starts_with(RESOLVED) {
                decisions.push(name.to_owned());
            } else if let Some(piece) = Piece::parse(name) {
                stored.pieces.push((piece, meta));
            }
        }
        stored.pieces.sort_by(|(a, x), (b, y)| {
            (a.offset, b.length, &a.raw, &x.key).cmp(&(b.offset, a.length, &b.raw, &y.key))
        });
        let newest = decisions.into_iter().max();
        stored.resolved = newest.and_then(|name| name.rsplit('-').next().and_then(ShortDigest::parse));
        stored
    }

    /// Digests of the whole files that differ. More than one is a conflict, unless it was resolved.
    pub fn wholes(&self) -> Vec<&ShortDigest> {
        let mut digests: Vec<&ShortDigest> = self
            .pieces
            .iter()
            .map(|(piece, _)| piece)
            .filter(|piece| piece.is_whole() || piece.segment_bytes == 0)
            .map(|piece| &piece.raw)
            .collect();
        digests.sort();
        digests.dedup();
        digests
    }

    /// Whether whole files differ, and nobody has said which one counts.
    pub fn in_conflict(&self) -> bool {
        let wholes = self.wholes();
        wholes.len() > 1 && !self.resolved.as_ref().is_some_and(|r| wholes.contains(&r))
    }

    /// Up to where the file is there without a gap.
    pub fn contiguous(&self) -> u64 {
        self.pieces
            .iter()
            .fold(0, |end, (piece, _)| if piece.offset <= end { end.max(piece.end()) } else { end })
    }

    /// Whether the whole segment is there.
    pub fn is_complete(&self) -> bool {
        self.pieces.first().is_some_and(|(piece, _)| self.contiguous() >= piece.segment_bytes)
    }
}

/// Begins the name of a decision between files that differ: `resolved-<ulid>-<raw digest>`.
pub(super) const RESOLVED: &str = "resolved-";

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, length: u64, seed: u8) -> Piece {
        let digest = ShortDigest::from(Digest::of(&[seed]));
        Piece {
            offset,
            length,
            segment_bytes: 16 << 20,
            stored_bytes: Some(4711),
            raw: digest.clone(),
            stored: digest,
            first: None,
            last: Timestamp::from_microsecond(1_795_000_000_123_456).ok(),
            key: Some(("01JD".to_owned(), "age".to_owned())),
        }
    }

    fn meta(name: &str) -> Meta {
        Meta { key: format!("a/b/{name}"), bytes: 1, modified: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn names_come_back() {
        let sealed = piece(8192, 4096, 1);
        assert_eq!(Piece::parse(&sealed.name()), Some(sealed.clone()));
        assert!(sealed.name().len() + 25 < 255, "no file system has longer names");
        let plain = Piece { key: None, last: None, ..sealed.clone() };
        assert_eq!(Piece::parse(&plain.name()), Some(plain.clone()));
        for without in [&sealed, &plain].map(|piece| Piece { stored_bytes: None, ..piece.clone() }) {
            assert_eq!(Piece::parse(&without.name()), Some(without.clone()));
            assert_eq!(stored_bytes(&without.name()), None);
        }
        let segment = "0000000100000A0B000000FE";
        for (key, file) in [
            (format!("a/00000001/0000000100000A0B/{segment}-{}", sealed.name()), Some(segment)),
            (format!("a/00000001/0000000100000A0B/{segment}/{}", sealed.name()), Some(segment)),
            (format!("a/points/00000001-0000000000000028/{}", sealed.name()), None),
        ] {
            assert_eq!(split(&key), (file.map(|file| file.parse().unwrap()), &*sealed.name()));
            assert_eq!(stored_bytes(&key), Some(4711));
        }
        for wrong in ["", "x", ".zst", &plain.name()[..20], "started.json"] {
            assert_eq!(Piece::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pieces_make_a_segment() {
        let whole = piece(0, 16 << 20, 1);
        let (a, b) = (piece(0, 8 << 20, 2), piece(8 << 20, 8 << 20, 3));
        let of = |pieces: &[&Piece]| Stored::of(pieces.iter().map(|p| meta(&p.name())));
        assert!(of(&[&whole]).is_complete() && of(&[&b, &a]).is_complete());
        assert!(!of(&[&a]).is_complete() && !of(&[&b]).is_complete() && !of(&[]).is_complete());
        let other = piece(0, 16 << 20, 4);
        assert!(!of(&[&whole, &a]).in_conflict() && of(&[&whole, &other]).in_conflict());
        let decided = format!("{RESOLVED}01JD-{}", other.raw.as_str());
        let all = [whole.name(), other.name(), decided].map(|name| meta(&name));
        assert!(!Stored::of(all).in_conflict());
    }
}
