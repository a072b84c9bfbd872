//! A table of a dump, and the SQL that reads it.

use super::super::archive::{COPY_END, Entry, TABLE_DATA};

/// A table whose rows are dumped.
#[derive(Debug, Clone)]
pub(in crate::logical) struct Table {
    /// Number of its data's entry.
    pub(super) entry: i32,
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    /// `schema.name` as SQL, in the encoding of the dump.
    pub(super) qualified: Vec<u8>,
    /// `a, "b"`, in the encoding of the dump.
    columns: Vec<u8>,
    pub(super) foreign: bool,
    /// Whether its rows have a ctid that can be sought.
    pub(super) heap: bool,
    /// `WHERE …` of a table that an extension configures.
    pub(super) condition: Option<String>,
    /// Blocks of its main fork.
    pub(super) blocks: u64,
    /// Bytes with TOAST.
    pub(super) bytes: u64,
}

/// Some blocks of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::logical) struct Blocks {
    pub(super) from: u64,
    /// The last range is open: blocks may have been added since the size was read.
    pub(super) to: Option<u64>,
}

impl Table {
    pub(in crate::logical) fn has_rows(entry: &Entry) -> bool {
        entry.kind == TABLE_DATA
            && entry.has_data
            && entry.copy.as_ref().is_some_and(|c| c.ends_with(COPY_END))
    }

    pub(in crate::logical) fn new(entry: &Entry, schema: String, name: String) -> Self {
        let columns = entry.columns();
        let columns = columns.strip_prefix(b"(").and_then(|c| c.strip_suffix(b")")).unwrap_or_default();
        Self {
            entry: entry.id,
            oid: entry.oid_number().unwrap_or_default(),
            schema,
            name,
            qualified: entry.qualified(),
            columns: columns.to_vec(),
            foreign: false,
            heap: false,
            condition: None,
            blocks: 0,
            bytes: 0,
        }
    }

    /// `LOCK TABLE` does not take foreign tables.
    pub(super) fn is_lockable(&self) -> bool {
        !self.foreign
    }

    /// Whether it can be read in ranges of blocks.
    pub(super) fn is_divisible(&self) -> bool {
        self.heap && self.condition.is_none() && !self.columns.is_empty()
    }

    pub(super) fn lock_sql(&self) -> Vec<u8> {
        [b"LOCK TABLE ONLY ".as_slice(), &self.qualified, b" IN ACCESS SHARE MODE"].concat()
    }

    /// The COPY that writes its rows, or those of some blocks. With ONLY: rows of inheriting tables are theirs.
    pub(in crate::logical) fn copy_sql(&self, blocks: Option<Blocks>) -> Vec<u8> {
        let condition = match (blocks, &self.condition) {
            // Most of a table is read as all of it is, through a ring of buffers, and what comes behind passed over: no
            // plan seeks such a condition.
            (Some(Blocks { from: 0, to: Some(to) }), _) if to > self.blocks / 2 => {
                format!("WHERE (ctid < '({to},0)') IS TRUE")
            }
            (Some(Blocks { from, to: Some(to) }), _) => {
                format!("WHERE ctid >= '({from},0)' AND ctid < '({to},0)'")
            }
            (Some(Blocks { from, to: None }), _) => format!("WHERE ctid >= '({from},0)'"),
            (None, Some(condition)) => condition.clone(),
            (None, None) if self.foreign => String::new(),
            (None, None) => {
                let columns: &[u8] =
                    if self.columns.is_empty() { b"" } else { &[b" (", &self.columns[..], b")"].concat() };
                return [b"COPY ".as_slice(), &self.qualified, columns, b" TO STDOUT"].concat();
            }
        };
        let only: &[u8] = if self.foreign { b" FROM " } else { b" FROM ONLY " };
        let select = [b"SELECT ".as_slice(), &self.columns, only, &self.qualified].concat();
        [b"COPY (".as_slice(), &select, b" ", condition.as_bytes(), b") TO STDOUT"].concat()
    }
}
