//! Schemas that get another name.
//!
//! In a database that is new they are renamed at the end. Beside schemas that are there, PostgreSQL itself writes the
//! definitions anew: they are made in a scratch database without rows, the schemas are renamed there, and `pg_dump` reads
//! it. Names in the text of functions stay, as they do with ALTER SCHEMA.

use std::collections::{HashMap, HashSet};

use super::super::archive::{COPY_END, Entry, TABLE_DATA, Toc, quote};
use super::super::contents::DatabaseContents;
use super::super::dump::read_definitions;
use super::choice::Choice;
use super::definitions::Definitions;
use super::options::{LoadOptions, TableName, identifier};
use super::swap;
use super::target::Ground;
use crate::dumper::Ctx;
use crate::error::{Error, Result};
use crate::postgres::{Session, Tools, quote_identifier};

/// A table of contents with other names of schemas.
pub(super) struct Renamed {
    pub(super) toc: Toc,
    /// What was asked for, in the new names.
    pub(super) options: LoadOptions,
    /// The entries of the backup whose rows may be loaded, with the new names.
    pub(super) rows: HashMap<i32, Entry>,
}

/// Renames the schemas of a database that has just been made.
pub(super) async fn at_the_end(session: &Session, options: &LoadOptions) -> Result<()> {
    for (old, new) in &options.rename_schemas {
        let sql = format!("ALTER SCHEMA {} RENAME TO {}", quote_identifier(old), quote_identifier(new));
        session.rows(&sql).await.map_err(|e| e.doing(format!("renaming the schema {old}")))?;
    }
    Ok(())
}

/// What is asked for, in a database with other things in it: the schemas that are renamed where nothing else is named.
pub(super) fn selection(options: &LoadOptions) -> LoadOptions {
    let mut options = options.clone();
    if !options.is_selection() {
        options.schemas = options.rename_schemas.iter().map(|(old, _)| old.clone()).collect();
    }
    options
}

fn new_name(options: &LoadOptions, schema: &str) -> String {
    let renamed = options.rename_schemas.iter().find(|(old, _)| old == schema);
    renamed.map_or(schema, |(_, new)| new).to_owned()
}

/// Has PostgreSQL write the definitions with the new names.
pub(super) async fn in_scratch(
    ground: &Ground,
    database: &DatabaseContents,
    toc: &Toc,
    choice: &Choice,
    options: &LoadOptions,
    tools: &Tools,
    ctx: &Ctx,
) -> Result<Renamed> {
    let name = swap::scratch_name(&ground.name);
    database.facts.create(&ground.maintenance, &name, ground.major).await?;
    let info = ground.maintenance.info().with_database(&name);
    let made = async {
        let mut definitions_only = options.clone();
        definitions_only.keep_going = false;
        let definitions =
            Definitions::new(toc, choice, &info, ground.major, tools, &definitions_only, &HashSet::new())
                .await?;
        definitions.before(ctx).await?;
        definitions.beside(ctx).await?;
        definitions.after(&info, ctx).await?;
        definitions.remove().await?;
        let session = info.connect().await?;
        at_the_end(&session, options).await?;
        read_definitions(&session, ground.major, tools, ctx).await
    };
    let made = made.await.map_err(|e| e.doing("making the definitions with other names of schemas"));
    let drop = format!("DROP DATABASE {} WITH (FORCE)", quote_identifier(&name));
    let dropped = ground.maintenance.rows(&drop).await;
    let new = match (made, dropped) {
        (Ok(new), Ok(_)) => new,
        (Ok(_), Err(e)) => return Err(e.doing(format!("dropping the scratch database {name}"))),
        (Err(error), Ok(_)) => return Err(error),
        (Err(error), Err(_)) => return Err(error.doing(format!("the scratch database {name} is left"))),
    };
    let mut mapped = options.clone();
    mapped.rename_schemas.clear();
    mapped.schemas = options.schemas.iter().map(|schema| new_name(options, schema)).collect();
    let table = |t: &TableName| TableName { schema: new_name(options, &t.schema), name: t.name.clone() };
    mapped.tables = options.tables.iter().map(table).collect();
    let rows = toc.entries.iter().filter(|e| e.kind == TABLE_DATA && choice.has(e.id));
    let rows = rows.map(|entry| Ok((entry.id, with_new_name(entry, options)?))).collect::<Result<_>>()?;
    Ok(Renamed { toc: new, options: mapped, rows })
}

/// The rows' entry: the columns stay in the order that the rows have.
fn with_new_name(entry: &Entry, options: &LoadOptions) -> Result<Entry> {
    let no_copy = || Error::internal("an entry of rows without COPY");
    let mut new = entry.clone();
    new.schema = Some(new_name(options, &entry.schema_text()).into_bytes());
    let copy = String::from_utf8_lossy(entry.copy.as_deref().unwrap_or_default()).into_owned();
    // The table may be the root of partitions.
    let (schema, rest) = copy.strip_prefix("COPY ").and_then(identifier).ok_or_else(no_copy)?;
    let (table, _) = rest.strip_prefix('.').and_then(identifier).ok_or_else(no_copy)?;
    let mut sql = b"COPY ".to_vec();
    quote(new_name(options, &schema).as_bytes(), &mut sql);
    sql.push(b'.');
    quote(table.as_bytes(), &mut sql);
    sql.push(b' ');
    sql.extend(entry.columns());
    sql.extend(COPY_END);
    new.copy = Some(sql);
    Ok(new)
}

impl Renamed {
    /// The rows that go into tables which are made now: others are there already.
    pub(super) fn keep(&mut self, choice: &Choice) {
        let made: std::collections::HashSet<(&[u8], &[u8])> = self
            .toc
            .entries
            .iter()
            .filter(|e| choice.has(e.id) && e.kind == "TABLE")
            .filter_map(|e| Some((e.schema.as_deref()?, e.name.as_deref()?)))
            .collect();
        self.rows.retain(|_, entry| {
            made.contains(&(
                entry.schema.as_deref().unwrap_or_default(),
                entry.name.as_deref().unwrap_or_default(),
            ))
        });
    }
}

/// Checks that a database has no schema of a new name.
pub(super) async fn obstacles(target: &Session, options: &LoadOptions) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (_, new) in &options.rename_schemas {
        let literal = crate::postgres::quote_literal(new);
        let sql = format!("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = {literal}");
        if target.value(&sql).await?.is_some() {
            found.push(format!("the schema {new} is there already (choose another name)"));
        }
    }
    Ok(found)
}
