//! The table of contents of a `pg_dump` archive (`pg_backup_archiver.c`, PostgreSQL 15 to 18, archive versions
//! 1.14 to 1.16).
//!
//! Names and definitions are in the encoding of the dump, which an entry `ENCODING` names: they stay bytes.

mod codec;
mod custom;
mod objects;
mod read;
mod rows;
mod write;

pub use codec::Method;
pub(crate) use codec::{Encoder, Within, decoder};
pub(crate) use custom::{Block, Blocks, CustomWriter, broken, damaged, open, set_offsets, unwritten};
pub use read::TocReader;
pub(crate) use rows::{Rows, TERMINATOR};

use std::collections::HashMap;

use crate::postgres::major_of;

/// Magic number at the head of an archive.
pub(crate) const MAGIC: &[u8; 5] = b"PGDMP";
/// `archCustom`
pub(crate) const CUSTOM: u8 = 1;
/// `archTar`; the `toc.dat` of a directory says so as well.
pub(crate) const TAR: u8 = 3;

/// `SECTION_PRE_DATA`
pub const PRE_DATA: i32 = 2;
/// `SECTION_DATA`
pub const DATA: i32 = 3;
/// `SECTION_POST_DATA`
pub const POST_DATA: i32 = 4;

/// [`Entry::kind`] of the rows of a table.
pub const TABLE_DATA: &str = "TABLE DATA";
/// [`Entry::kind`] of what the planner knows of a table or index; from PostgreSQL 18 on.
pub const STATISTICS_DATA: &str = "STATISTICS DATA";
/// The first version whose server takes statistics, and whose `pg_dump` and `pg_restore` know them.
pub(crate) const STATISTICS_MAJOR: u32 = 18;
/// [`Entry::kind`] of the bytes of large objects.
pub const BLOBS: &str = "BLOBS";

/// A table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    /// What stands before it.
    pub header: Header,
    /// What is restored, in this order.
    pub entries: Vec<Entry>,
}

/// The head of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Version of the format: `(1, 16, 0)`.
    pub version: (u8, u8, u8),
    /// Bytes of an integer.
    pub int_size: u8,
    /// Bytes of a file offset.
    pub offset_size: u8,
    /// 1 custom, 3 tar and directory.
    pub format: u8,
    /// From 1.15 on the method (0 none, 1 gzip, 2 lz4, 3 zstd), before it zlib's level.
    pub compression: i32,
    /// Seconds, minutes, hours, day, month from 0, year since 1900, daylight saving: local time.
    pub created: [i32; 7],
    /// Name of the database.
    pub database: Option<Vec<u8>>,
    /// Version of the server.
    pub server_version: Option<Vec<u8>>,
    /// Version of `pg_dump`.
    pub dump_version: Option<Vec<u8>>,
}

/// An entry: an object, or the data of one. `None` is NULL, which is not the empty text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its number, which others depend on.
    pub id: i32,
    /// Whether data belong to it.
    pub has_data: bool,
    /// OID of the catalog that the object is in, as text.
    pub catalog_oid: Option<Vec<u8>>,
    /// OID of the object, as text; of a table's data that of the table.
    pub oid: Option<Vec<u8>>,
    /// Its name.
    pub name: Option<Vec<u8>>,
    /// What it is: `TABLE`, `TABLE DATA`, `INDEX`.
    pub kind: String,
    /// 1 none, 2 pre-data, 3 data, 4 post-data.
    pub section: i32,
    /// The statement that makes it.
    pub definition: Option<Vec<u8>>,
    /// The statement that drops it.
    pub drop: Option<Vec<u8>>,
    /// `COPY … FROM stdin;`
    pub copy: Option<Vec<u8>>,
    /// Its schema.
    pub schema: Option<Vec<u8>>,
    /// Its tablespace.
    pub tablespace: Option<Vec<u8>>,
    /// Its table access method.
    pub access_method: Option<Vec<u8>>,
    /// `relkind` as a number; from 1.16 on.
    pub relkind: i32,
    /// Its owner.
    pub owner: Option<Vec<u8>>,
    /// Numbers of the entries that come before it.
    pub dependencies: Vec<i32>,
    /// Where the data are.
    pub place: Place,
}

/// Where the data of an entry are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// Nothing belongs to the entry.
    #[default]
    Nowhere,
    /// A file of a directory or a member of a tar, without the suffix of its compression.
    File(Vec<u8>),
    /// In a custom archive; the offset where it is known.
    Custom(Option<u64>),
}

impl Header {
    /// `1.16` as 16.
    pub(crate) fn minor(&self) -> u8 {
        self.version.1
    }

    /// Major version of the `pg_dump` that wrote it; 0 where it does not say.
    pub fn dump_major(&self) -> u32 {
        let version = String::from_utf8_lossy(self.dump_version.as_deref().unwrap_or_default());
        major_of(&version).unwrap_or(0)
    }
}

impl Toc {
    /// The encoding that names, definitions and rows are in: `UTF8`.
    pub fn encoding(&self) -> Option<String> {
        let entry = self.entries.iter().find(|entry| entry.kind == "ENCODING")?;
        // SET client_encoding = 'UTF8';
        let text = String::from_utf8_lossy(entry.definition.as_deref()?).into_owned();
        text.split('\'').nth(1).map(str::to_owned)
    }

    /// As the `toc.dat` of a directory whose data are not compressed.
    #[must_use]
    pub fn as_directory(&self) -> Self {
        let mut toc = self.clone();
        (toc.header.format, toc.header.compression) = (TAR, 0);
        for entry in &mut toc.entries {
            entry.place = match entry.kind.as_str() {
                _ if !entry.has_data => Place::Nowhere,
                BLOBS if self.header.minor() < 16 => Place::File(b"blobs.toc".to_vec()),
                BLOBS => Place::File(format!("blobs_{}.toc", entry.id).into_bytes()),
                _ => Place::File(format!("{}.dat", entry.id).into_bytes()),
            };
        }
        toc
    }

    /// As that of a custom archive, without offsets.
    pub(crate) fn as_custom(&self, method: Method) -> Self {
        let mut toc = self.clone();
        (toc.header.format, toc.header.compression) = (CUSTOM, method.in_header(self.header.minor()));
        for entry in &mut toc.entries {
            entry.place = if entry.has_data { Place::Custom(None) } else { Place::Nowhere };
        }
        toc
    }

    /// The entries that have data of a kind.
    pub(crate) fn with_data<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.has_data && entry.kind == kind)
    }

    /// The entries by number, for who asks for many.
    pub(crate) fn by_id(&self) -> HashMap<i32, &Entry> {
        self.entries.iter().map(|entry| (entry.id, entry)).collect()
    }

    /// The entry of a number.
    pub fn entry(&self, id: i32) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }
}

impl Entry {
    /// Its name, as far as it is UTF-8.
    pub fn name_text(&self) -> String {
        String::from_utf8_lossy(self.name.as_deref().unwrap_or_default()).into_owned()
    }

    /// Its schema, as far as it is UTF-8.
    pub fn schema_text(&self) -> String {
        String::from_utf8_lossy(self.schema.as_deref().unwrap_or_default()).into_owned()
    }

    /// The OID of the object.
    pub fn oid_number(&self) -> Option<u32> {
        std::str::from_utf8(self.oid.as_deref()?).ok()?.parse().ok()
    }

    /// `schema.name` as SQL, in the encoding of the dump.
    pub fn qualified(&self) -> Vec<u8> {
        let mut sql = Vec::new();
        for name in [&self.schema, &self.name] {
            let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
            if !sql.is_empty() {
                sql.push(b'.');
            }
            quote(name, &mut sql);
        }
        sql
    }

    /// The columns of [`Entry::copy`], `(a, "b")`; empty for a table without columns.
    pub fn columns(&self) -> &[u8] {
        let Some(copy) = &self.copy else { return &[] };
        let mut quoted = false;
        let begin = copy.iter().position(|byte| {
            quoted ^= *byte == b'"';
            *byte == b'(' && !quoted
        });
        let end = copy.len().saturating_sub(COPY_END.len());
        begin.and_then(|begin| copy.get(begin..end)).unwrap_or_default()
    }

    /// Whether the rows go in through the root of the partitions.
    pub fn through_root(&self) -> bool {
        self.definition.as_deref().is_some_and(|d| d.starts_with(b"-- load via partition root"))
    }
}

/// The end of [`Entry::copy`].
pub(crate) const COPY_END: &[u8] = b" FROM stdin;\n";

/// Adds a name in double quotes.
pub(crate) fn quote(name: &[u8], sql: &mut Vec<u8>) {
    sql.push(b'"');
    for byte in name {
        if *byte == b'"' {
            sql.push(b'"');
        }
        sql.push(*byte);
    }
    sql.push(b'"');
}

#[cfg(test)]
mod tests;
