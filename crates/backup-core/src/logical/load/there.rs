//! Which objects of an archive a database has already.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::super::archive::{Entry, Toc};
use crate::error::Result;
use crate::postgres::{Session, quote_identifier, quote_literal};

/// Objects that are asked for by one statement.
const AT_ONCE: usize = 1000;

/// The entries whose objects the session's database has. Only objects with names that a server looks up are known:
/// relations, schemas, types, functions, extensions, languages.
pub(super) async fn there(session: &Session, toc: &Toc) -> Result<HashSet<i32>> {
    let questions: Vec<String> = toc.entries.iter().filter_map(question).collect();
    let mut found = HashSet::new();
    for some in questions.chunks(AT_ONCE) {
        let sql = format!("SELECT id FROM (VALUES {}) objects (id, there) WHERE there", some.join(", "));
        let rows = session.rows(&sql).await?;
        found.extend(rows.into_iter().filter_map(|row| row.into_iter().next()??.parse::<i32>().ok()));
    }
    Ok(found)
}

/// `(7, to_regclass('"public"."people"') IS NOT NULL)`
fn question(entry: &Entry) -> Option<String> {
    let (schema, name) = (entry.schema_text(), entry.name_text());
    let qualified = || quote_literal(&format!("{}.{}", quote_identifier(&schema), quote_identifier(&name)));
    let condition = match entry.kind.as_str() {
        "TABLE" | "FOREIGN TABLE" | "VIEW" | "MATERIALIZED VIEW" | "SEQUENCE" => {
            format!("pg_catalog.to_regclass({}) IS NOT NULL", qualified())
        }
        "TYPE" | "DOMAIN" | "SHELL TYPE" => format!("pg_catalog.to_regtype({}) IS NOT NULL", qualified()),
        "COLLATION" => format!("pg_catalog.to_regcollation({}) IS NOT NULL", qualified()),
        "SCHEMA" => by_name("pg_namespace", "nspname", &name),
        "EXTENSION" => by_name("pg_extension", "extname", &name),
        "PROCEDURAL LANGUAGE" => by_name("pg_language", "lanname", &name),
        "FOREIGN DATA WRAPPER" => by_name("pg_foreign_data_wrapper", "fdwname", &name),
        "SERVER" => by_name("pg_foreign_server", "srvname", &name),
        // The name is `twice(integer)`.
        "FUNCTION" | "PROCEDURE" | "AGGREGATE" => {
            let mut sql = String::from(
                "EXISTS (SELECT 1 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE p.proname || '(' || (SELECT coalesce(string_agg(pg_catalog.format_type(t, NULL), ', ' ORDER BY o), '') \
                 FROM unnest(p.proargtypes) WITH ORDINALITY a (t, o)) || ')' = ",
            );
            let _ = write!(sql, "{} AND n.nspname = {})", quote_literal(&name), quote_literal(&schema));
            sql
        }
        _ => return None,
    };
    Some(format!("({}, {condition})", entry.id))
}

fn by_name(catalog: &str, column: &str, name: &str) -> String {
    format!("EXISTS (SELECT 1 FROM pg_catalog.{catalog} WHERE {column} = {})", quote_literal(name))
}

/// Whether a server can be asked for the object.
pub(super) fn is_known(entry: &Entry) -> bool {
    question(entry).is_some()
}
