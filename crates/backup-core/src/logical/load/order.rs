//! In which order rows go into tables with foreign keys.

use std::collections::{HashMap, HashSet};

use super::super::contents::TableContents;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Session;

/// Foreign keys that are checked at once: the referencing table, the referenced one.
const FOREIGN_KEYS: &str = "SELECT n.nspname, c.relname, rn.nspname, r.relname FROM pg_catalog.pg_constraint k \
     JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_class r ON r.oid = k.confrelid JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace \
     WHERE k.contype = 'f' AND NOT k.condeferrable AND k.conrelid <> k.confrelid";
/// Partitions: the table that holds the rows, each table that it is a partition of.
const PARTITIONS: &str = "SELECT n.nspname, c.relname, rn.nspname, r.relname FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
     pg_catalog.pg_partition_ancestors(c.oid) a (relid) JOIN pg_catalog.pg_class r ON r.oid = a.relid \
     JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace WHERE c.relispartition AND c.oid <> r.oid";

type Name = (String, String);

/// The tables in groups, each of which refers only to those before it. Deferrable foreign keys do not count: they are
/// checked at the end of the transaction.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) where tables refer to each other in a circle.
pub(super) async fn levels(session: &Session, tables: &[&TableContents]) -> Result<Vec<HashSet<i32>>> {
    let mut holders: HashMap<Name, Vec<Name>> = HashMap::new();
    for (partition, root) in pairs(session, PARTITIONS).await? {
        holders.entry(root).or_default().push(partition);
    }
    let mut refers: HashMap<Name, HashSet<Name>> = HashMap::new();
    for (from, to) in pairs(session, FOREIGN_KEYS).await? {
        let to = holders.get(&to).cloned().unwrap_or_else(|| vec![to]);
        refers.entry(from).or_default().extend(to);
    }
    let mut left: HashMap<Name, i32> =
        tables.iter().map(|t| ((t.schema.clone(), t.name.clone()), t.entry)).collect();
    let mut levels = Vec::new();
    while !left.is_empty() {
        let waits = |name: &Name| {
            refers.get(name).is_some_and(|to| to.iter().any(|to| to != name && left.contains_key(to)))
        };
        let ready: Vec<Name> = left.keys().filter(|name| !waits(name)).cloned().collect();
        if ready.is_empty() {
            let mut names: Vec<String> =
                left.keys().map(|(schema, name)| format!("{schema}.{name}")).collect();
            names.sort();
            let message = format!("foreign keys of these tables lead in a circle: {}", names.join(", "));
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("with --disable-triggers they are not checked; that needs a superuser"));
        }
        levels.push(ready.iter().filter_map(|name| left.remove(name)).collect());
    }
    Ok(levels)
}

async fn pairs(session: &Session, sql: &str) -> Result<Vec<(Name, Name)>> {
    let rows = session.rows(sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 4]>::try_from(row) {
            Ok([Some(a), Some(b), Some(c), Some(d)]) => Some(((a, b), (c, d))),
            _ => None,
        })
        .collect())
}
