//! Statistics of the restored tables: those that the backup has, or gathered anew.

use std::collections::{HashMap, HashSet};

use super::super::archive::{Entry, STATISTICS_DATA, STATISTICS_MAJOR, Toc};
use super::choice::Choice;
use super::rows;
use crate::dumper::Ctx;
use crate::error::Result;
use crate::postgres::{Session, quote_literal};

/// Tables that were not analyzed yet, but perhaps by autovacuum while they were loaded. Names as bytes in hexadecimal
/// digits: in the encoding of the database, which may be none.
const NAMES: &str = "SELECT pg_catalog.encode(pg_catalog.convert_to(pg_catalog.format('\"%s\".\"%s\"', \
     pg_catalog.replace(n.nspname, '\"', '\"\"'), pg_catalog.replace(c.relname, '\"', '\"\"')), \
     pg_catalog.getdatabaseencoding()), 'hex') \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
     AND pg_catalog.pg_stat_get_last_analyze_time(c.oid) IS NULL \
     ORDER BY c.relpages DESC";

/// Every table of the database that may have rows and was not analyzed yet, the largest first, as SQL in the encoding of
/// the database: as [`Entry::qualified`] has it.
pub(super) async fn names(session: &Session) -> Result<Vec<Vec<u8>>> {
    Ok(session.rows(NAMES).await?.into_iter().filter_map(|row| unhex(&row.into_iter().next()??)).collect())
}

/// Gathers statistics, of several tables at once; names are SQL in an encoding. What could not be gathered is a warning:
/// the rows are there, and a partition that is a foreign table asks a server that may not answer.
pub(super) async fn analyze(
    session: &Session,
    encoding: &str,
    names: Vec<Vec<u8>>,
    ctx: &Ctx,
) -> Result<Vec<String>> {
    let statements = names.into_iter().map(|name| ([b"ANALYZE ".as_slice(), &name].concat(), name)).collect();
    let setup = format!("SET client_encoding = {}", quote_literal(encoding));
    let done = rows::each(session, setup, statements, ctx).await?;
    let failed = done.into_iter().filter_map(|(name, done)| Some((name, done.err()?)));
    Ok(failed
        .map(|(name, error)| format!("gathering statistics of {}: {error}", String::from_utf8_lossy(&name)))
        .collect())
}

/// Statistics that the backup has (`dumpRelationStats` in `pg_dump.c`), by the name of the table or index as SQL.
#[derive(Debug, Default)]
pub(super) struct Carried<'a> {
    /// How the statements are to be read.
    setting: &'a [u8],
    statements: HashMap<Vec<u8>, &'a [u8]>,
}

impl<'a> Carried<'a> {
    /// Those that a server takes. Only what tells of columns: the numbers of rows and pages alone, of a table that was
    /// never analyzed, help no planner. Extended statistics are not in a dump, so their tables are analyzed.
    pub(super) fn new(toc: &'a Toc, choice: &Choice, major: u32) -> Self {
        if major < STATISTICS_MAJOR {
            return Self::default();
        }
        let chosen =
            |kind: &'static str| toc.entries.iter().filter(move |e| e.kind == kind && choice.has(e.id));
        let extended: HashSet<i32> = chosen("STATISTICS").flat_map(|e| e.dependencies.clone()).collect();
        let statements = chosen(STATISTICS_DATA)
            .filter(|entry| !entry.dependencies.iter().any(|id| extended.contains(id)))
            .filter_map(|entry| Some((entry, entry.definition.as_deref()?)))
            .filter(|(_, sql)| sql.windows(OF_COLUMNS.len()).any(|words| words == OF_COLUMNS))
            .map(|(entry, sql)| (entry.qualified(), sql));
        let setting = toc.entries.iter().find(|entry| entry.kind == "STDSTRINGS");
        let setting = setting.and_then(|entry| entry.definition.as_deref()).unwrap_or_default();
        Self { setting, statements: statements.collect() }
    }

    /// Whether the statistics of a table are there.
    pub(super) fn has(&self, table: &Entry) -> bool {
        self.statements.contains_key(&table.qualified())
    }

    /// Has the server take them. The names of those that it took: it leaves out, with a warning, what it cannot use.
    pub(super) async fn load(
        &self,
        session: &Session,
        encoding: &str,
        ctx: &Ctx,
    ) -> Result<HashSet<Vec<u8>>> {
        let mut setup = rows::settings(encoding).into_bytes();
        setup.extend([b"; ", self.setting].concat());
        let statements = self.statements.iter().map(|(name, sql)| (*sql, name)).collect();
        let done = rows::each(session, setup, statements, ctx).await?;
        let is_true = |value: &Option<String>| value.as_deref() == Some("t");
        let taken = done.into_iter().filter(|(_, rows)| match rows {
            Ok(rows) => rows.iter().flatten().all(is_true),
            Err(_) => false,
        });
        Ok(taken.map(|(name, _)| name.clone()).collect())
    }
}

/// What a statement with statistics of columns calls.
const OF_COLUMNS: &[u8] = b"pg_restore_attribute_stats(";

fn unhex(digits: &str) -> Option<Vec<u8>> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|two| std::str::from_utf8(two).ok().and_then(|two| u8::from_str_radix(two, 16).ok()))
        .collect()
}
