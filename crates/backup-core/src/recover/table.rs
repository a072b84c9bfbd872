//! A table, as a server's catalogs describe it.

use crate::error::{Error, ErrorKind, Result};
use crate::logical::{TableName, near};
use crate::postgres::{Session, quote_identifier, quote_literal};

/// A table.
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) oid: u32,
    pub(super) partitioned: bool,
    pub(super) columns: Vec<Column>,
    /// The tables that have its rows, as SQL: itself, or its partitions.
    pub(super) leaves: Vec<String>,
    /// What of it a copy does not get, in words.
    pub(super) extras: Vec<String>,
    /// Its sequences: of an identity column, or one that belongs to a column.
    pub(super) sequences: Vec<Sequence>,
}

/// A column.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) data_type: String,
    pub(super) not_null: bool,
    /// It or its domain has a default, or it is an identity.
    pub(super) has_default: bool,
    pub(super) generated: bool,
}

/// A sequence of a column.
pub(super) struct Sequence {
    pub(super) column: String,
    /// As SQL.
    pub(super) name: String,
    pub(super) identity: bool,
}

/// `('schema', 'table')`
pub(super) fn literal_of(table: &TableName) -> String {
    format!("({}, {})", quote_literal(&table.schema), quote_literal(&table.name))
}

/// A table's name as SQL.
pub(super) fn sql_name(table: &TableName) -> String {
    format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.name))
}

/// A list of columns as SQL.
pub(super) fn sql_columns<'a>(columns: impl IntoIterator<Item = &'a str>) -> String {
    columns.into_iter().map(quote_identifier).collect::<Vec<_>>().join(", ")
}

impl Table {
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where there is none, with names that are like it, or where it is something else.
    pub(super) async fn find(session: &Session, name: &TableName) -> Result<Self> {
        let sql = format!(
            "SELECT c.oid, c.relkind, c.relpersistence FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE (n.nspname::text, c.relname::text) = {}",
            literal_of(name)
        );
        let rows = session.rows(&sql).await?;
        let Some([Some(oid), Some(kind), Some(persistence)]) = rows.first().map(Vec::as_slice) else {
            return Err(absent(session, name).await?);
        };
        let refuse = |what: &str, hint: &str| {
            Err(Error::new(ErrorKind::Unsupported, format!("{name} is {what}")).with_hint(hint.to_owned()))
        };
        match kind.as_str() {
            "r" | "p" => {}
            "v" => return refuse("a view", "--query \"SELECT …\" recovers what it showed"),
            "m" => return refuse("a materialized view", "--query \"SELECT …\" recovers what it had"),
            "f" => return refuse("a foreign table", "its rows are on another server"),
            _ => return refuse("no table", "name a table"),
        }
        let oid = oid.parse().map_err(|e| Error::internal("an OID is a number").caused_by(e))?;
        let mut table = Self {
            name: name.clone(),
            oid,
            partitioned: kind == "p",
            columns: columns(session, oid).await?,
            leaves: vec![sql_name(name)],
            extras: extras(session, oid).await?,
            sequences: sequences(session, oid).await?,
        };
        if persistence == "u" {
            table.extras.push("it is unlogged: a physical backup has none of its rows".to_owned());
        }
        if table.partitioned {
            let sql = format!(
                "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind FROM pg_catalog.pg_partition_tree({oid}) t \
                 JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE t.isleaf AND c.relkind IN ('r', 'f') ORDER BY 1"
            );
            table.leaves.clear();
            for row in session.rows(&sql).await? {
                if let [Some(leaf), Some(kind)] = &row[..] {
                    if kind == "f" {
                        table
                            .extras
                            .push(format!("the partition {leaf} is a foreign table: its rows are elsewhere"));
                    } else {
                        table.leaves.push(leaf.clone());
                    }
                }
            }
        }
        Ok(table)
    }

    /// The columns that have values of their own.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.generated)
    }
}

async fn columns(session: &Session, oid: u32) -> Result<Vec<Column>> {
    let sql = format!(
        "SELECT attname, pg_catalog.format_type(atttypid, atttypmod), attnotnull OR typnotnull, \
         atthasdef OR attidentity <> '' OR typdefault IS NOT NULL, attgenerated <> '' \
         FROM pg_catalog.pg_attribute JOIN pg_catalog.pg_type t ON t.oid = atttypid \
         WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    );
    let is = |value: &Option<String>| value.as_deref() == Some("t");
    let rows = session.rows(&sql).await?;
    Ok(rows
        .iter()
        .filter_map(|row| match &row[..] {
            [Some(name), Some(data_type), not_null, has_default, generated] => Some(Column {
                name: name.clone(),
                data_type: data_type.clone(),
                not_null: is(not_null),
                has_default: is(has_default),
                generated: is(generated),
            }),
            _ => None,
        })
        .collect())
}

/// What of a table a copy does not get.
async fn extras(session: &Session, oid: u32) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT 'foreign keys', pg_catalog.string_agg(conname, ', ' ORDER BY conname) FROM pg_catalog.pg_constraint \
           WHERE conrelid = {oid} AND contype = 'f' AND conparentid = 0 \
         UNION ALL SELECT 'triggers', pg_catalog.string_agg(tgname, ', ' ORDER BY tgname) FROM pg_catalog.pg_trigger \
           WHERE tgrelid = {oid} AND NOT tgisinternal \
         UNION ALL SELECT 'policies', pg_catalog.string_agg(polname, ', ' ORDER BY polname) FROM pg_catalog.pg_policy \
           WHERE polrelid = {oid} \
         UNION ALL SELECT 'rules', pg_catalog.string_agg(rulename, ', ' ORDER BY rulename) FROM pg_catalog.pg_rewrite \
           WHERE ev_class = {oid} \
         UNION ALL SELECT 'rows of tables that inherit from it', pg_catalog.string_agg(i.inhrelid::pg_catalog.regclass::text, ', ') \
           FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'r' \
           WHERE i.inhparent = {oid}"
    );
    let rows = session.rows(&sql).await?;
    Ok(rows
        .iter()
        .filter_map(|row| match &row[..] {
            [Some(what), Some(names)] => Some(format!("{what}: {names}")),
            _ => None,
        })
        .collect())
}

async fn sequences(session: &Session, oid: u32) -> Result<Vec<Sequence>> {
    let sql = format!(
        "SELECT a.attname, pg_catalog.format('%I.%I', n.nspname, s.relname), d.deptype = 'i' \
         FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = d.classid \
         AND d.refobjid = {oid} AND d.deptype IN ('a', 'i') ORDER BY a.attnum"
    );
    let rows = session.rows(&sql).await?;
    Ok(rows
        .iter()
        .filter_map(|row| match &row[..] {
            [Some(column), Some(name), identity] => Some(Sequence {
                column: column.clone(),
                name: name.clone(),
                identity: identity.as_deref() == Some("t"),
            }),
            _ => None,
        })
        .collect())
}

/// That there is no such table, with those that are called alike.
pub(super) async fn absent(session: &Session, name: &TableName) -> Result<Error> {
    let sql = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let rows = session.rows(sql).await?;
    let tables = rows.into_iter().filter_map(|row| {
        let [schema, name] = <[Option<String>; 2]>::try_from(row).ok()?;
        Some(TableName { schema: schema?, name: name? })
    });
    let near = near(name, tables);
    let error = Error::new(ErrorKind::Usage, format!("there was no table {name} at this time"));
    Ok(if near.is_empty() {
        error.with_hint("check schema and name, database and time")
    } else {
        error.with_hint(format!("there were: {}", near.join(", ")))
    })
}
