//! The catalogs of a cluster, read from their files without a server: which files a table has.
//!
//! The files are those of a backup, before its WAL: pages may be older or newer than each other, and torn. So every
//! version of a row counts, whoever made it and whether it was deleted, and nothing follows from what is not found.
//! Layouts: `bufpage.h`, `itemid.h`, `htup_details.h`, `relmapper.c`, `pg_class.h`, `pg_namespace.h`, `pg_inherits.h`,
//! `pg_index.h`, `pg_depend.h`, `pg_database.h`, `pg_authid.h`, PostgreSQL 15 to 18, little-endian.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Objects that users make have no lower OID (`FirstNormalObjectId` in `transam.h`).
pub(super) const FIRST_NORMAL: u32 = 16384;
const PG_CLASS: u32 = 1259;
const PG_NAMESPACE: u32 = 2615;
const PG_INHERITS: u32 = 2611;
const PG_INDEX: u32 = 2610;
const PG_DEPEND: u32 = 2608;
const PG_DATABASE: u32 = 1262;
const PG_AUTHID: u32 = 1260;
const MAP_MAGIC: u32 = 0x0059_2717;
/// A page's header, the numbers of line pointers, of `LP_NORMAL`, of a row's header.
const PAGE_HEADER: usize = 24;
const LP_NORMAL: u32 = 1;
const TUPLE_HEADER: usize = 23;
const NAME_BYTES: usize = 64;

/// A folder of catalogs: `global`, or that of a database.
pub(super) struct Catalogs {
    folder: PathBuf,
    block_bytes: usize,
    /// Catalogs whose files do not stand in `pg_class`.
    mapped: HashMap<u32, u32>,
}

/// A row of `pg_class`.
struct Class {
    oid: u32,
    file: u32,
    toast: u32,
    kind: u8,
}

/// What is looked for.
pub(super) struct Sought<'a> {
    /// Schema and name of tables.
    pub(super) tables: &'a [(String, String)],
    /// Their indexes as well.
    pub(super) indexes: bool,
}

impl Catalogs {
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) where there is no map of its files.
    pub(super) fn in_folder(folder: &Path, block_bytes: u32) -> Result<Self> {
        let path = folder.join("pg_filenode.map");
        let map = std::fs::read(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        let count = number(&map, 4).filter(|_| number(&map, 0) == Some(MAP_MAGIC)).unwrap_or(0) as usize;
        let pair = |n: usize| Some((number(&map, 8 + 8 * n)?, number(&map, 12 + 8 * n)?));
        let mapped = (0..count.min(64)).filter_map(pair).collect();
        Ok(Self { folder: folder.to_owned(), block_bytes: block_bytes as usize, mapped })
    }

    /// OIDs of databases of a name.
    pub(super) fn databases(&self, name: &str) -> Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        self.mapped_rows(PG_DATABASE, |row| {
            if name_at(row, 4) == Some(name.as_bytes()) {
                found.extend(number(row, 0));
            }
        })?;
        Ok(found)
    }

    /// Names of all databases that may be connected to.
    pub(super) fn database_names(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        self.mapped_rows(PG_DATABASE, |row| {
            found.extend(name_at(row, 4).map(|name| String::from_utf8_lossy(name).into_owned()));
        })?;
        found.retain(|name| name != "template0");
        Ok(found)
    }

    /// Names of roles that may log in and do everything.
    pub(super) fn superusers(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        self.mapped_rows(PG_AUTHID, |row| {
            if row.get(68) == Some(&1) && row.get(72) == Some(&1) {
                found.extend(name_at(row, 4).map(|name| String::from_utf8_lossy(name).into_owned()));
            }
        })?;
        Ok(found)
    }

    /// Files of the catalogs themselves that have other numbers than their OIDs, and of what is looked for.
    pub(super) fn files(&self, major: u32, sought: &Sought<'_>) -> Result<HashSet<u32>> {
        let mut files: HashSet<u32> = self.mapped.values().copied().collect();
        let mut classes = Vec::new();
        let mut named: HashMap<u32, (Vec<u8>, u32)> = HashMap::new();
        self.mapped_rows(PG_CLASS, |row| {
            let toast = if major >= 18 { 112 } else { 108 };
            let (Some(oid), Some(name), Some(schema), Some(file), Some(toast)) =
                (number(row, 0), name_at(row, 4), number(row, 68), number(row, 88), number(row, toast))
            else {
                return;
            };
            // Booleans and letters behind it; 18 has one number more.
            let kind = row.get(if major >= 18 { 119 } else { 115 }).copied().unwrap_or_default();
            if sought.tables.iter().any(|(_, table)| table.as_bytes() == name) {
                named.insert(oid, (name.to_vec(), schema));
            }
            classes.push(Class { oid, file, toast, kind });
        })?;
        let own = classes.iter().filter(|class| class.oid < FIRST_NORMAL && class.file != 0);
        files.extend(own.map(|class| class.file));
        let rows = |catalog: u32, each: &mut dyn FnMut(&[u8])| -> Result<()> {
            let numbers: HashSet<u32> =
                classes.iter().filter(|c| c.oid == catalog && c.file != 0).map(|c| c.file).collect();
            numbers.into_iter().try_for_each(|file| self.rows(file, &mut *each))
        };
        let mut schemas: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
        rows(PG_NAMESPACE, &mut |row| {
            if let (Some(oid), Some(name)) = (number(row, 0), name_at(row, 4)) {
                schemas.entry(oid).or_default().push(name.to_vec());
            }
        })?;
        let is_sought = |name: &[u8], schema: u32| {
            sought.tables.iter().any(|(wanted, table)| {
                table.as_bytes() == name
                    && schemas.get(&schema).is_some_and(|names| names.iter().any(|n| n == wanted.as_bytes()))
            })
        };
        let mut wanted: HashSet<u32> = named
            .iter()
            .filter(|(_, (name, schema))| is_sought(name, *schema))
            .map(|(oid, _)| *oid)
            .collect();
        let pairs = |catalog: u32, child: usize, parent: usize| -> Result<Vec<(u32, u32)>> {
            let mut found = Vec::new();
            rows(catalog, &mut |row| {
                found.extend(number(row, child).zip(number(row, parent)));
            })?;
            Ok(found)
        };
        let children = pairs(PG_INHERITS, 0, 4)?;
        loop {
            let more: Vec<u32> = children
                .iter()
                .filter(|(child, parent)| wanted.contains(parent) && !wanted.contains(child))
                .map(|(child, _)| *child)
                .collect();
            if more.is_empty() {
                break;
            }
            wanted.extend(more);
        }
        let toast: HashSet<u32> = classes
            .iter()
            .filter(|class| class.toast != 0 && wanted.contains(&class.oid))
            .map(|class| class.toast)
            .collect();
        let sequences: HashSet<u32> =
            classes.iter().filter(|class| class.kind == b'S').map(|class| class.oid).collect();
        let mut more = Vec::new();
        for (index, table) in pairs(PG_INDEX, 0, 4)? {
            if toast.contains(&table) || (sought.indexes && wanted.contains(&table)) {
                more.push(index);
            }
        }
        for (object, on) in pairs(PG_DEPEND, 4, 16)? {
            if sequences.contains(&object) && wanted.contains(&on) {
                more.push(object);
            }
        }
        wanted.extend(toast);
        wanted.extend(more);
        let theirs = classes.iter().filter(|class| class.file != 0 && wanted.contains(&class.oid));
        files.extend(theirs.map(|class| class.file));
        Ok(files)
    }

    fn mapped_rows(&self, catalog: u32, each: impl FnMut(&[u8])) -> Result<()> {
        let file = self.mapped.get(&catalog).copied().unwrap_or(catalog);
        self.rows(file, each)
    }

    /// Gives the data of every row that a file has to `each`.
    fn rows(&self, file: u32, mut each: impl FnMut(&[u8])) -> Result<()> {
        for segment in 0_u32.. {
            let name = if segment == 0 { file.to_string() } else { format!("{file}.{segment}") };
            let path = self.folder.join(name);
            let failed = |e| Error::io(format!("reading {}", path.display()), e);
            let mut input = match File::open(&path) {
                Ok(input) => input,
                // It may have gone while the backup was made.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(failed(e)),
            };
            let mut page = vec![0; self.block_bytes];
            loop {
                match input.read_exact(&mut page) {
                    Ok(()) => rows_of(&page, &mut each),
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        Ok(())
    }
}

/// Gives the data of every row on a page to `each`, as far as the page makes sense.
fn rows_of(page: &[u8], each: &mut impl FnMut(&[u8])) {
    let half = |at: usize| page.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let lower = half(12).unwrap_or(0).min(page.len());
    for at in (PAGE_HEADER..lower.saturating_sub(3)).step_by(4) {
        let Some(pointer) = number(page, at) else { return };
        let (offset, flags, length) = (pointer & 0x7fff, (pointer >> 15) & 3, pointer >> 17);
        let (offset, length) = (offset as usize, length as usize);
        if flags != LP_NORMAL || length < TUPLE_HEADER {
            continue;
        }
        let Some(row) = page.get(offset..offset + length) else { continue };
        if let Some(data) = row.get(usize::from(row[22])..) {
            each(data);
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// A column of type `name`.
fn name_at(row: &[u8], at: usize) -> Option<&[u8]> {
    let name = row.get(at..at + NAME_BYTES)?;
    Some(&name[..name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES)])
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn pages_of_any_kind_are_read(mut page in proptest::collection::vec(proptest::num::u8::ANY, 0..600), lower: u16) {
            if page.len() > 14 {
                page[12..14].copy_from_slice(&lower.to_le_bytes());
            }
            rows_of(&page, &mut |row| {
                let _ = (number(row, 88), name_at(row, 4));
            });
        }
    }

    #[test]
    fn rows_are_found_on_a_page() {
        let mut page = vec![0; 8192];
        page[12..14].copy_from_slice(&32_u16.to_le_bytes());
        // One row of 30 bytes whose data begin at 24, and one that is no more.
        page[24..28].copy_from_slice(&(0x1f40_u32 | (1 << 15) | (30 << 17)).to_le_bytes());
        page[28..32].copy_from_slice(&(0x1fa4_u32 | (3 << 15) | (30 << 17)).to_le_bytes());
        page[8022] = 24;
        page[8024..8028].copy_from_slice(&77_u32.to_le_bytes());
        let mut found = Vec::new();
        rows_of(&page, &mut |row| found.push((number(row, 0), row.len())));
        assert_eq!(found, [(Some(77), 6)]);
    }
}
