//! What a logical backup keeps with its contents: which part holds what.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DatabaseFacts, SnapshotContents};
use crate::dumper::SourceContents;
use crate::error::{Error, ErrorKind, Result};

/// Where it stands in a backup's contents.
const KEY: &str = "logical";

/// The databases of a logical backup.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogicalContents {
    /// One for each database.
    pub databases: Vec<DatabaseContents>,
    /// The part with the globals as SQL, of a backup of a whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub globals: Option<u32>,
    /// The databases of a whole server whose dump failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<DatabaseFailure>,
}

/// A database that is not in the backup of its server, since its dump failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFailure {
    /// Its name.
    pub name: String,
    /// Why: the error and its causes, one line.
    pub error: String,
    /// Parts that were written before it failed. Nothing can be restored from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<u32>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseContents {
    /// What `CREATE DATABASE` needs.
    pub facts: DatabaseFacts,
    /// Version of the server.
    pub server_version: String,
    /// Version of the `pg_dump` that wrote the table of contents.
    pub pg_dump_version: String,
    /// The part that holds the table of contents, a `toc.dat` of the directory format.
    pub toc: u32,
    /// The moment that the rows are of; nothing where no server said it, as of a dump that was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotContents>,
    /// Bytes of the database as the server counts them.
    pub database_bytes: u64,
    /// The tables whose rows are in the backup.
    pub tables: Vec<TableContents>,
    /// The large objects; none where they were not selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<LargeObjectsContents>,
    /// The extensions.
    #[serde(default)]
    pub extensions: Vec<ExtensionContents>,
    /// What could not be read or is not part of a dump.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContents {
    /// Number of its data's entry in the table of contents.
    pub entry: i32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of its rows as COPY text.
    pub bytes: u64,
    /// See [`Fingerprint`](super::Fingerprint); 32 hexadecimal digits.
    pub fingerprint: String,
    /// Where the rows are; in this order they are what COPY wrote.
    pub chunks: Vec<Chunk>,
}

/// Some rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The part. In a pack the rows are its member `<entry>.dat`.
    pub part: u32,
    /// Bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// The large objects of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjectsContents {
    /// The parts: tar archives with a member `blob_<oid>.dat` for each.
    pub parts: Vec<u32>,
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// An extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtensionContents {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What a backup does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What it is, in words.
    pub what: String,
    /// How many.
    pub count: u64,
    /// Why.
    pub why: String,
}

impl LogicalContents {
    /// As it is kept.
    pub fn to_contents(&self) -> Result<SourceContents> {
        SourceContents::of(KEY, self)
    }

    /// Reads them. Nothing for a backup that is one archive of `pg_dump`.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where they make no sense.
    pub fn from_contents(contents: &SourceContents) -> Result<Option<Self>> {
        contents.get(KEY)
    }

    /// The same of what [`Describe`](super::Describe) tells.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it makes no sense.
    pub fn described(told: &Map<String, Value>) -> Result<Option<Self>> {
        told.get(KEY).map(Self::deserialize).transpose().map_err(|e| {
            Error::new(ErrorKind::Integrity, format!("the contents do not describe the databases: {e}"))
        })
    }

    /// The database of a name.
    pub fn database(&self, name: &str) -> Option<&DatabaseContents> {
        self.databases.iter().find(|database| database.facts.name == name)
    }
}
