//! What of an archive is restored: tables or schemas with all that belongs to them, and what they need.

use std::collections::{HashMap, HashSet};

use super::super::archive::{Entry, TABLE_DATA, Toc};
use super::options::{LoadOptions, TableName, near};
use crate::error::{Error, ErrorKind, Result};

/// The entries that are restored.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// None where all are.
    entries: Option<HashSet<i32>>,
    /// What was asked for, without what it needs.
    asked: HashSet<i32>,
    /// What belongs to it and cannot be restored without something else.
    pub(super) left_out: Vec<String>,
}

/// Objects that exist for themselves, and have rows or look as if they had.
fn is_relation(entry: &Entry) -> bool {
    matches!(
        entry.kind.as_str(),
        "TABLE" | "FOREIGN TABLE" | "VIEW" | "MATERIALIZED VIEW" | "SEQUENCE" | TABLE_DATA
    )
}

/// What belongs to the one object that it depends on.
fn belongs_to_any(kind: &str) -> bool {
    matches!(
        kind,
        TABLE_DATA
            | "SEQUENCE SET"
            | "SEQUENCE OWNED BY"
            | "MATERIALIZED VIEW DATA"
            | "STATISTICS DATA"
            | "COMMENT"
            | "ACL"
            | "SECURITY LABEL"
            | "ROW SECURITY"
    )
}

/// What belongs to a table and may need other objects as well.
fn belongs_to_table(kind: &str) -> bool {
    matches!(kind, "INDEX" | "STATISTICS" | "CONSTRAINT" | "CHECK CONSTRAINT" | "DEFAULT")
        || may_need_tables(kind)
}

/// What belongs to a table, and may need other tables.
fn may_need_tables(kind: &str) -> bool {
    matches!(kind, "FK CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY")
}

impl Choice {
    /// Whether an entry is restored.
    pub(super) fn has(&self, id: i32) -> bool {
        self.entries.as_ref().is_none_or(|entries| entries.contains(&id))
    }

    /// Whether everything is restored.
    pub(super) fn is_everything(&self) -> bool {
        self.entries.is_none()
    }

    /// What was asked for: it must not be there already.
    pub(super) fn was_asked_for(&self, id: i32) -> bool {
        self.is_everything() || self.asked.contains(&id)
    }

    /// Finds the entries. `there` are those whose objects the target has: they are not needed again.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where the archive does not have what is asked for.
    pub(super) fn new(toc: &Toc, options: &LoadOptions, there: &HashSet<i32>) -> Result<Self> {
        if !options.is_selection() {
            return Ok(Self::default());
        }
        let mut closure = Closure::new(toc, there);
        closure.ask(options)?;
        let asked = closure.inside.clone();
        closure.grow();
        let left_out = closure.conditional();
        closure.grow();
        closure
            .inside
            .retain(|id| !(there.contains(id) && closure.by_id.get(id).is_some_and(|e| is_shared(e))));
        Ok(Self { entries: Some(closure.inside), asked, left_out })
    }
}

impl Choice {
    /// Leaves out schemas and extensions that are there, and what belongs to them.
    pub(super) fn without_shared(&mut self, toc: &Toc, there: &HashSet<i32>) {
        let by_id = toc.by_id();
        let shared = |id: &i32| there.contains(id) && by_id.get(id).is_some_and(|e| is_shared(e));
        let out: HashSet<i32> = toc
            .entries
            .iter()
            .filter(|e| shared(&e.id) || (belongs_to_any(&e.kind) && e.dependencies.iter().any(shared)))
            .map(|e| e.id)
            .collect();
        let entries = self.entries.get_or_insert_with(|| toc.entries.iter().map(|e| e.id).collect());
        entries.retain(|id| !out.contains(id));
    }
}

/// Objects that several restores may meet in a database.
fn is_shared(entry: &Entry) -> bool {
    matches!(entry.kind.as_str(), "SCHEMA" | "EXTENSION")
}

struct Closure<'a> {
    toc: &'a Toc,
    by_id: HashMap<i32, &'a Entry>,
    schemas: HashMap<&'a [u8], i32>,
    /// Of each partition the table that it is a partition of.
    roots: HashMap<i32, i32>,
    there: &'a HashSet<i32>,
    inside: HashSet<i32>,
    /// Entries that need tables which do not come along, or that wait until all tables are known.
    outside: HashSet<i32>,
}

impl<'a> Closure<'a> {
    fn new(toc: &'a Toc, there: &'a HashSet<i32>) -> Self {
        let by_id = toc.by_id();
        let of_kind = |kind: &'static str| toc.entries.iter().filter(move |e| e.kind == kind);
        let schemas = of_kind("SCHEMA").filter_map(|e| Some((e.name.as_deref()?, e.id))).collect();
        // An ATTACH has the name of the partition, and depends on both tables.
        let is_partition = |attach: &Entry, id: &i32| {
            by_id.get(id).is_some_and(|e| e.name == attach.name && e.schema == attach.schema)
        };
        let roots = of_kind("TABLE ATTACH").filter_map(|attach| {
            let partition = attach.dependencies.iter().find(|id| is_partition(attach, id))?;
            Some((*partition, *attach.dependencies.iter().find(|id| *id != partition)?))
        });
        let roots = roots.collect();
        let outside = toc.entries.iter().filter(|e| may_need_tables(&e.kind)).map(|e| e.id).collect();
        Self { toc, by_id, schemas, roots, there, inside: HashSet::new(), outside }
    }

    fn ask(&mut self, options: &LoadOptions) -> Result<()> {
        for table in &options.tables {
            let found =
                self.toc.entries.iter().filter(|e| {
                    is_relation(e) && e.schema_text() == table.schema && e.name_text() == table.name
                });
            let found: Vec<i32> = found.map(|e| e.id).collect();
            if found.is_empty() {
                return Err(missing(format!("the backup has no table {table}"), self.names(table)));
            }
            self.inside.extend(found);
        }
        for schema in &options.schemas {
            let is_it =
                |e: &&Entry| e.schema_text() == *schema || (e.kind == "SCHEMA" && e.name_text() == *schema);
            // What belongs to a table follows it, or cannot be restored without another.
            let found: Vec<i32> = self
                .toc
                .entries
                .iter()
                .filter(is_it)
                .filter(|e| !may_need_tables(&e.kind))
                .map(|e| e.id)
                .collect();
            if found.is_empty() {
                return Err(missing(format!("the backup has no schema {schema}"), self.schemas()));
            }
            self.inside.extend(found);
        }
        Ok(())
    }

    /// Tables that are called alike.
    fn names(&self, wanted: &TableName) -> String {
        let tables = self.toc.entries.iter().filter(|e| is_relation(e));
        let near = near(wanted, tables.map(|e| TableName { schema: e.schema_text(), name: e.name_text() }));
        if near.is_empty() {
            "names are as they are in the database".to_owned()
        } else {
            format!("it has {}", near.join(", "))
        }
    }

    fn schemas(&self) -> String {
        let mut names: Vec<String> =
            self.toc.entries.iter().map(Entry::schema_text).filter(|name| !name.is_empty()).collect();
        names.sort();
        names.dedup();
        format!("it has {}", names.join(", "))
    }

    /// Adds what belongs to what is inside, and what that needs, until nothing is missing.
    fn grow(&mut self) {
        loop {
            let before = self.inside.len();
            for entry in &self.toc.entries {
                if !self.inside.contains(&entry.id)
                    && !self.outside.contains(&entry.id)
                    && self.belongs(entry)
                {
                    self.inside.insert(entry.id);
                }
            }
            let needed: Vec<i32> = self.inside.iter().flat_map(|id| self.needs(*id)).collect();
            self.inside.extend(needed);
            if self.inside.len() == before {
                return;
            }
        }
    }

    /// Whether an entry belongs to something that is inside.
    fn belongs(&self, entry: &Entry) -> bool {
        let inside = |id: &i32| self.inside.contains(id);
        match entry.kind.as_str() {
            "TABLE ATTACH" | "INDEX ATTACH" => entry.dependencies.iter().all(inside),
            // Partitions of a table that comes.
            "TABLE" => self.roots.get(&entry.id).is_some_and(inside),
            // Owned, or of an identity column.
            "SEQUENCE" => entry.dependencies.iter().filter(|id| inside(id)).any(|id| self.is_table(*id)),
            kind if belongs_to_any(kind) => entry
                .dependencies
                .iter()
                .any(|id| inside(id) && self.by_id.get(id).is_some_and(|e| e.kind != TABLE_DATA)),
            kind if belongs_to_table(kind) => self.owner(entry).is_some_and(|table| inside(&table)),
            _ => false,
        }
    }

    fn is_table(&self, id: i32) -> bool {
        self.by_id.get(&id).is_some_and(|e| is_relation(e) && e.kind != "SEQUENCE")
    }

    /// The table that a constraint, index, trigger belongs to.
    fn owner(&self, entry: &Entry) -> Option<i32> {
        let tables = entry.dependencies.iter().filter_map(|id| self.by_id.get(id));
        let tables = tables.filter(|e| is_relation(e) && e.kind != "SEQUENCE" && e.schema == entry.schema);
        if matches!(entry.kind.as_str(), "INDEX" | "STATISTICS") {
            return tables.map(|e| e.id).next();
        }
        // Their names are those of the table and their own, with a space between.
        let name = entry.name.as_deref().unwrap_or_default();
        let is_its = |e: &&&Entry| {
            let table = e.name.as_deref().unwrap_or_default();
            name.strip_prefix(table).is_some_and(|rest| rest.starts_with(b" "))
        };
        tables.filter(is_its).max_by_key(|e| e.name.as_ref().map(Vec::len)).map(|e| e.id)
    }

    /// What an entry needs and the target does not have.
    fn needs(&self, id: i32) -> Vec<i32> {
        let Some(entry) = self.by_id.get(&id) else { return Vec::new() };
        // The rows of other tables come before its own, and are not needed.
        if entry.kind == TABLE_DATA {
            return Vec::new();
        }
        let schema = entry.schema.as_deref().and_then(|schema| self.schemas.get(schema));
        let root = self.roots.get(&entry.id);
        let known =
            |id: &i32| self.by_id.contains_key(id) && !self.there.contains(id) && !self.outside.contains(id);
        // What belongs to another table comes with it, or is there with it.
        let of_table =
            |id: &i32| self.by_id.get(id).is_some_and(|e| belongs_to_table(&e.kind) && e.kind != "DEFAULT");
        let needed = entry.dependencies.iter().filter(|id| !of_table(id)).chain(schema).copied();
        needed.filter(|id| known(id) && root != Some(id)).collect()
    }

    /// Decides on what needs other tables; what cannot be restored, in words.
    fn conditional(&mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        let candidates: Vec<&Entry> = self.toc.entries.iter().filter(|e| may_need_tables(&e.kind)).collect();
        for entry in candidates {
            let Some(owner) = self.owner(entry).filter(|id| self.inside.contains(id)) else { continue };
            let missing = entry.dependencies.iter().filter_map(|id| {
                let needed = self.by_id.get(id)?;
                let table = if belongs_to_table(&needed.kind) { self.owner(needed)? } else { *id };
                let absent = self.is_table(table)
                    && table != owner
                    && !self.inside.contains(&table)
                    && !self.there.contains(&table);
                absent.then_some(table)
            });
            match { missing }.find_map(|id| self.by_id.get(&id)) {
                None => {
                    self.outside.remove(&entry.id);
                    self.inside.insert(entry.id);
                }
                Some(table) => left_out.push(format!(
                    "left out: {} {} on {}: {}.{} is not there",
                    entry.kind.to_lowercase(),
                    entry.name_text(),
                    entry.schema_text(),
                    table.schema_text(),
                    table.name_text(),
                )),
            }
        }
        left_out
    }
}

fn missing(message: String, hint: String) -> Error {
    Error::new(ErrorKind::Usage, message).with_hint(hint)
}
