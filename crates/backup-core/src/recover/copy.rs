//! A new table of what was.

use tokio_util::sync::CancellationToken;

use super::rows;
use super::source::Source;
use super::table::{Table, sql_columns, sql_name};
use crate::dumper::Ctx;
use crate::error::{Error, Result};
use crate::event::Silent;
use crate::logical::{Selection, TableName, archive, definitions_of};
use crate::postgres::{ConnInfo, Session, Tools, quote_identifier, quote_literal};

/// Bytes of a name (`NAMEDATALEN`).
const NAME_BYTES: usize = 63;
/// Schemas where the table was: for what is put aside, and for what is being made.
const OLD: &str = "pgark_old";
const NEW: &str = "pgark_new";
/// The entries of `pg_dump` that make a table, and not who may do what with it.
const WANTED: [&str; 9] = [
    "TABLE",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "DEFAULT",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "INDEX",
    "STATISTICS",
    "COMMENT",
];

/// Makes a new table of an old one; how many rows it has.
pub(super) async fn copy(
    source: &Source,
    table: &Table,
    into: &ConnInfo,
    name: &TableName,
    tools: &Tools,
    cancel: &CancellationToken,
    notes: &mut Vec<String>,
) -> Result<u64> {
    let session = source.session();
    let new = sql_name(name);
    let mut moved = None;
    if make_room(session, name).await? {
        let now = if *name == table.name {
            &TableName { schema: OLD.to_owned(), ..name.clone() }
        } else {
            &table.name
        };
        moved = Some(Table::find(session, now).await?);
    }
    let original = &table.name;
    let table = moved.as_ref().unwrap_or(table);
    // PostgreSQL makes one that is alike beside it, without rows, and pg_dump writes it down: nothing is renamed in text.
    let mut sql = format!(
        "CREATE SCHEMA IF NOT EXISTS {}; CREATE TABLE {new} (LIKE {} INCLUDING ALL)",
        quote_identifier(&name.schema),
        sql_name(&table.name)
    );
    for sequence in table.sequences.iter().filter(|sequence| !sequence.identity) {
        sql += &own_sequence(source, table, &sequence.column, &sequence.name, name).await?;
    }
    session.rows(&sql).await.map_err(|e| e.doing("making a table like the one in the backup"))?;
    let mut values = Vec::new();
    for sequence in &table.sequences {
        let sql = format!("SELECT last_value, is_called FROM {}", sequence.name);
        if let Some([Some(last), Some(called)]) = session.rows(&sql).await?.first().map(Vec::as_slice) {
            values.push((sequence.column.clone(), last.clone(), called == "t"));
        }
    }
    if table.partitioned {
        notes.push(format!("{original} was partitioned, and {name} is not"));
    }
    if !table.extras.is_empty() {
        notes.push(format!("not copied: {}", table.extras.join("; ")));
    }
    let columns: Vec<&str> = table.stored().map(|column| column.name.as_str()).collect();
    move_table(source, &table.leaves, &columns, into, name, &values, tools, cancel).await
}

/// Puts aside what has a name where the table was, with its indexes and sequences: a table that was dropped comes back
/// under its own name. True where there was something.
async fn make_room(session: &Session, name: &TableName) -> Result<bool> {
    let kind = format!(
        "SELECT c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {} AND c.relname = {}",
        quote_literal(&name.schema),
        quote_literal(&name.name)
    );
    let Some(kind) = session.value(&kind).await? else { return Ok(false) };
    let name = sql_name(name);
    let sql = match kind.as_str() {
        "i" | "I" => format!("ALTER INDEX {name} RENAME TO {OLD}"),
        _ => format!("CREATE SCHEMA IF NOT EXISTS {OLD}; ALTER TABLE {name} SET SCHEMA {OLD}"),
    };
    session.rows(&sql).await.map_err(|e| {
        e.doing(format!("putting {name} aside where it was as it is in the backup"))
            .with_hint("choose another name for the new table with --as")
    })?;
    Ok(true)
}

/// Statements that give a column of the new table a sequence like that of the old one.
async fn own_sequence(
    source: &Source,
    table: &Table,
    column: &str,
    sequence: &str,
    name: &TableName,
) -> Result<String> {
    let sql = format!(
        "SELECT pg_catalog.format('CREATE SEQUENCE %s AS %s INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s %s', '%s', \
         pg_catalog.format_type(q.seqtypid, NULL), q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache, \
         CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) FROM pg_catalog.pg_sequence q \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = {} AND a.attname = {} AND NOT a.attisdropped \
         JOIN pg_catalog.pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum \
         WHERE q.seqrelid = {}::pg_catalog.regclass AND pg_catalog.pg_get_expr(f.adbin, f.adrelid) ~ '^nextval\\('",
        table.oid,
        quote_literal(column),
        quote_literal(sequence),
    );
    // A default of another kind stays as it is.
    let Some(create) = source.session().value(&sql).await? else { return Ok(String::new()) };
    let own = TableName { schema: name.schema.clone(), name: joined(&name.name, column, "seq") };
    let (own, new, column) = (sql_name(&own), sql_name(name), quote_identifier(column));
    Ok(format!(
        "; {}; ALTER SEQUENCE {own} OWNED BY {new}.{column}; ALTER TABLE {new} ALTER COLUMN {column} SET DEFAULT \
         pg_catalog.nextval({})",
        create.replacen("%s", &own, 1),
        quote_literal(&own),
    ))
}

/// A name of an object that belongs to a column, as PostgreSQL makes them.
fn joined(table: &str, column: &str, end: &str) -> String {
    let cut = |text: &str, bytes: usize| {
        let mut end = text.len().min(bytes);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    let room = NAME_BYTES - end.len() - 2;
    let column = cut(column, room / 2);
    format!("{}_{column}_{end}", cut(table, room - column.len()))
}

/// Makes a new table of a query's result.
pub(super) async fn query(
    source: &Source,
    sql: &str,
    into: &ConnInfo,
    name: &TableName,
    tools: &Tools,
    cancel: &CancellationToken,
    _: &mut Vec<String>,
) -> Result<u64> {
    let query = sql.trim().trim_end_matches(';');
    let session = source.session();
    // The query may read a table of the new one's name.
    let made = TableName { schema: NEW.to_owned(), ..name.clone() };
    let sql = format!("CREATE SCHEMA {NEW}; CREATE TABLE {} AS {query}", sql_name(&made));
    session.rows(&sql).await.map_err(|e| e.doing("running the query"))?;
    make_room(session, name).await?;
    let schema = quote_identifier(&name.schema);
    let sql =
        format!("CREATE SCHEMA IF NOT EXISTS {schema}; ALTER TABLE {} SET SCHEMA {schema}", sql_name(&made));
    session.rows(&sql).await?;
    let table = Table::find(source.session(), name).await?;
    let columns: Vec<&str> = table.stored().map(|column| column.name.as_str()).collect();
    move_table(source, &table.leaves, &columns, into, name, &[], tools, cancel).await
}

/// Makes the new table in the live database, in one transaction.
#[allow(clippy::too_many_arguments, reason = "each is another thing, and there are two callers")]
async fn move_table(
    source: &Source,
    leaves: &[String],
    columns: &[&str],
    into: &ConnInfo,
    name: &TableName,
    sequences: &[(String, String, bool)],
    tools: &Tools,
    cancel: &CancellationToken,
) -> Result<u64> {
    let ctx = Ctx::new(cancel.clone(), 1, std::sync::Arc::new(Silent));
    let mut selection = Selection::default();
    selection.tables.push(sql_name(name));
    selection.schema_only = true;
    let toc = definitions_of(source.session(), source.major, tools, &selection, &ctx).await?;
    let target = into.connect().await?;
    let (major, _) = target.server_version().await?;
    let encoding = rows::encoding(source.session()).await?;
    let mut from = rows::session(source.session(), &encoding, source.major).await?;
    let mut to = rows::session(&target, &encoding, major).await?;
    to.rows("BEGIN").await?;
    let wanted = |entry: &&archive::Entry| WANTED.contains(&entry.kind.as_str());
    let before = |entry: &&archive::Entry| entry.section == 2;
    for entry in toc.entries.iter().filter(wanted).filter(before) {
        define(&mut to, entry).await?;
    }
    let list = if columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", sql_columns(columns.iter().copied()))
    };
    let copy_in = format!("COPY {}{list} FROM STDIN", sql_name(name));
    let mut copied = 0;
    for leaf in leaves {
        let out = format!("COPY {leaf}{list} TO STDOUT");
        copied += rows::copy(&mut from, &out, &mut to, &copy_in)
            .await
            .map_err(|e| e.doing(format!("copying {leaf}")))?;
    }
    for entry in toc.entries.iter().filter(wanted).filter(|entry| !before(entry)) {
        define(&mut to, entry).await?;
    }
    for (column, last, called) in sequences {
        let sql = format!(
            "SELECT pg_catalog.setval(s::pg_catalog.regclass, {last}, {called}) \
             FROM pg_catalog.pg_get_serial_sequence({}, {}) s WHERE s IS NOT NULL",
            quote_literal(&sql_name(name)),
            quote_literal(column)
        );
        to.rows(&sql).await?;
    }
    to.rows(format!("ANALYZE {}", sql_name(name))).await?;
    to.rows("COMMIT").await?;
    to.close().await;
    Ok(copied)
}

/// Runs the statements of an entry.
async fn define(to: &mut crate::postgres::CopySession, entry: &archive::Entry) -> Result<()> {
    let Some(definition) = entry.definition.as_deref().filter(|sql| !sql.is_empty()) else { return Ok(()) };
    let made = to.rows(definition).await.map(drop);
    made.map_err(|e: Error| e.doing(format!("making {} {}", entry.kind.to_lowercase(), entry.name_text())))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_fit() {
        assert_eq!(super::joined("t_recovered", "id", "seq"), "t_recovered_id_seq");
        let long = "é".repeat(60);
        assert!(super::joined(&long, &long, "seq").len() <= super::NAME_BYTES);
    }
}
