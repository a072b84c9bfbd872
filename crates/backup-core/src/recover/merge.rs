//! Rows that go back into a live table.

use serde::Serialize;

use super::TargetFacts;
use super::rows;
use super::source::Source;
use super::table::{Column, Table, sql_columns, sql_name};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{ConnInfo, CopySession, Session, quote_identifier, quote_literal};

/// The rows of the backup, until they are put back.
const TEMPORARY: &str = "pg_temp.pgark_recovered";

/// What became of the rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Merged {
    /// Rows in the backup.
    pub in_backup: u64,
    /// Rows that were missing, and were put back.
    pub put_back: u64,
    /// Rows whose primary key is there.
    pub already_there: u64,
    /// Those of them that have other values now. They stay as they are.
    pub differing: u64,
    /// Triggers that fired for each row.
    pub triggers: Vec<String>,
}

/// A column in the backup, and in the live table.
struct Pair<'a> {
    old: &'a Column,
    new: &'a Column,
}

pub(super) async fn merge(
    source: &Source,
    table: &Table,
    into: &ConnInfo,
    renamed: &[(String, Option<String>)],
    facts: &TargetFacts,
    notes: &mut Vec<String>,
) -> Result<Merged> {
    let target = into.connect().await?;
    let live = Table::find(&target, &table.name).await?;
    let pairs = pair(table, &live, renamed, notes)?;
    let key = key(&target, &live, &pairs).await?;
    let encoding = rows::encoding(source.session()).await?;
    let mut from = rows::session(source.session(), &encoding, source.major).await?;
    let mut to = rows::session(&target, &encoding, facts.major).await?;
    let names = || pairs.iter().map(|pair| pair.new.name.as_str());
    let (columns, name) = (sql_columns(names()), sql_name(&table.name));
    // Rows of tables that inherit from it are no business of this one.
    let only = if live.partitioned { "" } else { "ONLY " };
    to.rows(format!(
        "BEGIN; CREATE TEMPORARY TABLE pgark_recovered ON COMMIT DROP AS SELECT {columns} FROM {only}{name} WITH NO DATA"
    ))
    .await?;
    let old = sql_columns(pairs.iter().map(|pair| pair.old.name.as_str()));
    let mut in_backup = 0;
    let copy_in = format!("COPY {TEMPORARY} ({columns}) FROM STDIN");
    for leaf in &table.leaves {
        let out = format!("COPY {leaf} ({old}) TO STDOUT");
        let copied = rows::copy(&mut from, &out, &mut to, &copy_in);
        in_backup += copied.await.map_err(|e| {
            e.doing(format!("reading rows of {leaf} as the live table's columns")).with_hint(
                "a column has another type now; --column NAME= leaves it out, or recover under a new name",
            )
        })?;
    }
    to.rows(format!("ANALYZE {TEMPORARY}")).await?;
    let same = key
        .iter()
        .map(|k| quote_identifier(k))
        .map(|k| format!("l.{k} = r.{k}"))
        .collect::<Vec<_>>()
        .join(" AND ");
    let differ = names().map(quote_identifier).map(|c| format!("l.{c}::text IS DISTINCT FROM r.{c}::text"));
    let differ = differ.collect::<Vec<_>>().join(" OR ");
    let sql = format!(
        "SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE {differ}) FROM {TEMPORARY} r JOIN {only}{name} l ON {same}"
    );
    let counted = to.rows(&sql).await?;
    let count = |at: usize| {
        counted.first().and_then(|row| row.get(at)?.as_deref()?.parse::<u64>().ok()).unwrap_or_default()
    };
    let sql = format!(
        "WITH put_back AS (INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {TEMPORARY} r \
         WHERE NOT EXISTS (SELECT FROM {only}{name} l WHERE {same}) ON CONFLICT ({}) DO NOTHING RETURNING 1) \
         SELECT pg_catalog.count(*) FROM put_back",
        sql_columns(key.iter().map(String::as_str))
    );
    let doing = |e: Error| refused(e, &table.name.to_string());
    let put_back = to.value(&sql).await.map_err(doing)?;
    let put_back = put_back.and_then(|count| count.parse().ok()).unwrap_or_default();
    note_sequences(&mut to, &live, only, notes).await?;
    // Keys that wait for the end are checked now, so that an error is one of this step.
    to.rows("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(doing)?;
    to.rows("COMMIT").await.map_err(doing)?;
    let (already_there, differing) = (count(0), count(1));
    if put_back + already_there < in_backup {
        let kept = in_backup - put_back - already_there;
        notes.push(format!(
            "{kept} rows were not put back: their keys came meanwhile, or a trigger kept them out"
        ));
    }
    to.close().await;
    Ok(Merged { in_backup, put_back, already_there, differing, triggers: facts.triggers.clone() })
}

/// Says which sequences are behind the values of their columns: the next row would meet one of them.
async fn note_sequences(
    to: &mut CopySession,
    live: &Table,
    only: &str,
    notes: &mut Vec<String>,
) -> Result<()> {
    let name = sql_name(&live.name);
    for sequence in &live.sequences {
        let (column, literal) = (quote_identifier(&sequence.column), quote_literal(&sequence.name));
        let sql = format!(
            "SELECT pg_catalog.max({column})::bigint > CASE WHEN pg_catalog.has_sequence_privilege({literal}, 'SELECT, USAGE') \
             THEN coalesce(pg_catalog.pg_sequence_last_value({literal}), 0) END FROM {only}{name}"
        );
        if to.value(&sql).await?.as_deref() == Some("t") {
            notes.push(format!(
                "the sequence {} is behind values of {}: SELECT setval({literal}, max({column})) FROM {name} sets it",
                sequence.name, sequence.column
            ));
        }
    }
    Ok(())
}

/// Says what a constraint means.
fn refused(error: Error, table: &str) -> Error {
    let hint = match error.sqlstate() {
        Some("23503") => {
            Some("put the rows back first that they refer to: recover that table with --merge-missing")
        }
        Some("23505") => {
            Some("another row has their unique values now; recover under a new name, and choose among them")
        }
        Some("23502") => {
            Some("the live table wants a value that the backup does not have; recover under a new name")
        }
        Some("23514") => {
            Some("the live table has a check that the rows do not pass; recover under a new name")
        }
        _ => None,
    };
    let error = error.doing(format!("putting back rows of {table}; nothing was changed"));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Finds for each column of the backup the live one.
fn pair<'a>(
    table: &'a Table,
    live: &'a Table,
    renamed: &[(String, Option<String>)],
    notes: &mut Vec<String>,
) -> Result<Vec<Pair<'a>>> {
    let usage =
        |message: String, hint: &str| Error::new(ErrorKind::Usage, message).with_hint(hint.to_owned());
    for (old, _) in renamed {
        if !table.columns.iter().any(|column| column.name == *old) {
            let has: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
            return Err(usage(
                format!("{} had no column {old}", table.name),
                &format!("it had {}", has.join(", ")),
            ));
        }
    }
    let (mut pairs, mut gone) = (Vec::<Pair<'a>>::new(), Vec::new());
    for old in table.stored() {
        let name = match renamed.iter().find(|(name, _)| *name == old.name) {
            Some((_, None)) => {
                notes.push(format!("column {} was left out", old.name));
                continue;
            }
            Some((_, Some(new))) => new,
            None => &old.name,
        };
        match live.columns.iter().find(|column| column.name == *name) {
            Some(new) if new.generated => notes.push(format!("column {name} is generated now")),
            Some(new) if pairs.iter().any(|pair| pair.new.name == new.name) => {
                return Err(usage(
                    format!("two columns would become {name}"),
                    "name another one with --column",
                ));
            }
            Some(new) => {
                if new.data_type != old.data_type {
                    notes.push(format!("column {name} was {}, and is {} now", old.data_type, new.data_type));
                }
                pairs.push(Pair { old, new });
            }
            None => gone.push(old.name.as_str()),
        }
    }
    let added: Vec<&Column> =
        live.stored().filter(|new| !pairs.iter().any(|pair| pair.new.name == new.name)).collect();
    let names = |columns: &[&Column]| columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    if !gone.is_empty() {
        let mut message = format!("the live table has no column {}", gone.join(", "));
        if !added.is_empty() {
            message = format!("{message}, and has new ones: {}", names(&added));
        }
        return Err(usage(
            message,
            "say --column OLD=NEW where it has another name now, --column OLD= to leave its values out",
        ));
    }
    let wanting: Vec<&Column> =
        added.iter().copied().filter(|column| column.not_null && !column.has_default).collect();
    if !wanting.is_empty() {
        return Err(usage(
            format!("the live table wants values that the backup does not have: {}", names(&wanting)),
            "give these columns a default, or recover under a new name",
        ));
    }
    if !added.is_empty() {
        notes.push(format!("new columns get their defaults: {}", names(&added)));
    }
    Ok(pairs)
}

/// The columns of the live table's primary key.
async fn key(session: &Session, live: &Table, pairs: &[Pair<'_>]) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT a.attname FROM pg_catalog.pg_constraint c \
         CROSS JOIN LATERAL pg_catalog.unnest(c.conkey) WITH ORDINALITY AS k(number, place) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number \
         WHERE c.conrelid = {} AND c.contype = 'p' ORDER BY k.place",
        live.oid
    );
    let key: Vec<String> =
        session.rows(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    if key.is_empty() {
        let message = format!("{} has no primary key, so nothing tells which rows are missing", live.name);
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("leave --merge-missing out: a new table has the rows as they were"));
    }
    if let Some(column) = key.iter().find(|column| !pairs.iter().any(|pair| pair.new.name == **column)) {
        let message =
            format!("the backup has no values of {column}, which is in the primary key of {}", live.name);
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("say which column it was with --column, or leave --merge-missing out"));
    }
    Ok(key)
}
