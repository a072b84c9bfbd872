//! The records of a backup, as they stand in JSON. Unknown fields are kept, so that an older pgark does not
//! lose what a newer one wrote.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{BackupId, ClusterName, FORMAT, RawDigest};
use crate::dumper::SourceContents;
use crate::error::{Error, ErrorKind, Result};

/// A BLAKE3 digest of 32 bytes, 64 hexadecimal digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(blake3::Hash);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |_| Error::new(ErrorKind::Usage, "a BLAKE3 digest has 64 hexadecimal digits");
        blake3::Hash::from_hex(text).map(Self).map_err(wrong)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text).map(Self).map_err(|_| serde::de::Error::custom("not a BLAKE3 digest"))
    }
}

/// Name and version of the program that wrote a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// `pgark`
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Tool {
    /// This pgark.
    pub fn this() -> Self {
        Self { name: "pgark".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// `started.json`: a run announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Started {
    /// Version of the format: 1.
    pub format: u32,
    /// The backup that it will be.
    pub id: BackupId,
    /// When, by the host's clock.
    pub started: Timestamp,
    /// Name of the host.
    pub host: String,
    /// Process id on the host.
    pub process: u32,
    /// The program.
    pub tool: Tool,
    /// The backup that this one will need, for an increment.
    pub parent: Option<BackupId>,
    /// What else stands there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Whether a record makes a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The backup is whole.
    Committed,
    /// The run was given up: nothing of it is a backup.
    Abandoned,
}

/// An object of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Its name in the backup's folder, `parts/0001.pgdump.zst.age`.
    pub key: String,
    /// Its length as stored.
    pub bytes: u64,
    /// BLAKE3 of the stored bytes.
    pub blake3: Digest,
}

/// A part, as the record shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Its number, from 1.
    pub part: u32,
    /// Its kind, `pgdump`.
    pub kind: String,
    /// Its objects, in order: usually one. Their contents concatenated are the part.
    pub objects: Vec<ObjectRecord>,
}

/// How a backup is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// `age`
    pub method: String,
}

/// What a list, a retention rule or a status needs to know of a backup: the record without its parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BackupSummary {
    /// Version of the format: 1.
    pub format: u32,
    /// Its id.
    pub id: BackupId,
    /// Whether it is one.
    pub state: State,
    /// The cluster.
    pub cluster: ClusterName,
    /// What made its parts: `logical` or `physical`. An increment is of its parent's kind.
    pub kind: String,
    /// When the run began, by the host's clock.
    pub started: Timestamp,
    /// When the run ended, by the host's clock.
    pub finished: Timestamp,
    /// Name of the host that wrote it.
    pub host: String,
    /// The program that wrote it.
    pub tool: Tool,
    /// Compression method, `zstd`.
    pub compression: String,
    /// Encryption; none where it is in the clear.
    pub encryption: Option<Encryption>,
    /// The backup that it needs, for an increment.
    pub parent: Option<BackupId>,
    /// Words of the user.
    pub label: Option<String>,
    /// Bytes as stored, keys and contents included.
    pub stored_bytes: u64,
    /// How many warnings stand in the contents.
    pub warnings: u64,
    /// What may be known of the source: `server_version`, `database`, `system_identifier`.
    pub source: Map<String, Value>,
    /// What else stands there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Fact of a backup that lacks some of what it was to hold.
pub(crate) const PARTIAL: &str = "partial";

impl BackupSummary {
    /// Whether it holds all that it was to hold. A backup of a server that lacks a database is kept and can be
    /// restored, but nothing chooses it that was not told its id, and it does not count where whole backups are kept.
    pub fn is_complete(&self) -> bool {
        self.source.get(PARTIAL).and_then(Value::as_bool) != Some(true)
    }
}

/// `backup.json`: the record that makes a backup. Not one name of a table or file stands in it, so that
/// listing, status, retention and verification of stored bytes need no key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// The sealed contents.
    pub contents: Option<ObjectRecord>,
    /// The parts.
    pub parts: Vec<PartRecord>,
    /// All the rest.
    #[serde(flatten)]
    pub summary: BackupSummary,
}

impl BackupSummary {
    /// Whether only a part of a database was selected for it.
    pub fn is_selection(&self) -> bool {
        self.source.get("selection").and_then(Value::as_bool).unwrap_or(false)
    }
}

impl std::ops::Deref for BackupRecord {
    type Target = BackupSummary;

    fn deref(&self) -> &BackupSummary {
        &self.summary
    }
}

impl BackupRecord {
    /// Every stored object of the backup but its keys: the parts, then the contents.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRecord> {
        self.parts.iter().flat_map(|p| &p.objects).chain(&self.contents)
    }
}

/// Lengths of a frame: `[raw, stored]` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u32; 2]", into = "[u32; 2]")]
pub struct Frame {
    /// Bytes before compression.
    pub raw: u32,
    /// Bytes after compression, before encryption.
    pub stored: u32,
}

impl From<[u32; 2]> for Frame {
    fn from([raw, stored]: [u32; 2]) -> Self {
        Self { raw, stored }
    }
}

impl From<Frame> for [u32; 2] {
    fn from(frame: Frame) -> Self {
        [frame.raw, frame.stored]
    }
}

/// What is secret of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartContents {
    /// Its number.
    pub part: u32,
    /// Its name, `shop.pgdump`.
    pub name: String,
    /// Length before compression.
    pub raw_bytes: u64,
    /// Digest of the raw bytes.
    #[serde(flatten)]
    pub raw: RawDigest,
    /// For each object its frames, in order.
    #[serde(rename = "frames")]
    pub objects: Vec<Vec<Frame>>,
}

/// `contents.json.zst[.age]`: what is secret of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupContents {
    /// Version of the format: 1.
    pub format: u32,
    /// The parts.
    pub parts: Vec<PartContents>,
    /// What the dumper keeps of its source.
    pub source: SourceContents,
    /// Warnings of the run, a line each.
    pub warnings: Vec<String>,
    /// What else stands there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// As JSON that people can read, with a digest of itself in the field `blake3`.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<bytes::Bytes> {
    let failed = |e| Error::internal("a record cannot be written as JSON").caused_by(e);
    let mut value = serde_json::to_value(value).map_err(failed)?;
    let digest = own_digest(&value);
    if let Value::Object(fields) = &mut value {
        fields.insert(OWN_DIGEST.to_owned(), Value::String(digest.to_string()));
    }
    let mut json = serde_json::to_vec_pretty(&value).map_err(failed)?;
    json.push(b'\n');
    Ok(json.into())
}

/// Parses what [`to_json`] wrote. Refuses a newer format before anything else of it is looked at, and a
/// record that does not have its own digest.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(body: &[u8], key: &str) -> Result<T> {
    let damaged = |why: &dyn fmt::Display| {
        Error::new(ErrorKind::Integrity, format!("{key} is damaged: {why}"))
            .with_hint("put back a good copy of this object; the other backups are not touched by this")
    };
    let mut value: Value = serde_json::from_slice(body).map_err(|e| damaged(&e))?;
    match value.get("format").and_then(Value::as_u64) {
        Some(format) if format > u64::from(FORMAT) => {
            let message = format!("{key} has format {format}, this pgark knows {FORMAT}");
            return Err(Error::new(ErrorKind::NewerFormat, message).with_hint("use a newer pgark"));
        }
        Some(_) => {}
        None => return Err(damaged(&"it names no format")),
    }
    let said = value.as_object_mut().and_then(|fields| fields.remove(OWN_DIGEST));
    if said.as_ref().and_then(Value::as_str) != Some(&own_digest(&value).to_string()) {
        return Err(damaged(&"it does not have its own digest"));
    }
    serde_json::from_value(value).map_err(|e| damaged(&e))
}

const OWN_DIGEST: &str = "blake3";

/// BLAKE3 of a record without its field `blake3`, as JSON without spaces and with its fields in order
/// of their names at every level (`jq -cjS 'del(.blake3)'`).
fn own_digest(value: &Value) -> Digest {
    fn write(value: &Value, top: bool, out: &mut String) {
        match value {
            Value::Object(fields) => {
                let mut names: Vec<&String> = fields.keys().filter(|n| !top || *n != OWN_DIGEST).collect();
                names.sort();
                out.push('{');
                for (i, name) in names.into_iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    out.push_str(&Value::String(name.clone()).to_string());
                    out.push(':');
                    write(&fields[name], false, out);
                }
                out.push('}');
            }
            Value::Array(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    write(item, false, out);
                }
                out.push(']');
            }
            plain => out.push_str(&plain.to_string()),
        }
    }
    let mut text = String::new();
    write(value, true, &mut text);
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_byte_of_a_record_is_found_or_changes_nothing() {
        let started = Started {
            format: 1,
            id: "20261121T020000Z-logical-k7qd".parse().unwrap(),
            started: Timestamp::UNIX_EPOCH,
            host: "db \"1\"".to_owned(),
            process: 7,
            tool: Tool::this(),
            parent: None,
            other: Map::from_iter([("later".to_owned(), serde_json::json!({"b": [1, null], "a": true}))]),
        };
        let json = to_json(&started).unwrap();
        assert_eq!(from_json::<Started>(&json, "x").unwrap(), started, "unknown fields are kept");
        for at in 0..json.len() {
            for bit in 0..8 {
                let mut bad = json.to_vec();
                bad[at] ^= 1 << bit;
                // White space may become other white space.
                match from_json::<Started>(&bad, "x") {
                    Ok(same) => assert_eq!(same, started, "byte {at}"),
                    Err(e) => assert!(matches!(e.kind(), ErrorKind::Integrity | ErrorKind::NewerFormat)),
                }
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused_before_its_fields_are_looked_at() {
        let error = from_json::<Started>(br#"{"format": 2, "nothing": "known"}"#, "x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NewerFormat);
    }
}
