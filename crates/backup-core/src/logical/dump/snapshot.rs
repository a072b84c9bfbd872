//! The session that holds a dump together: it exports the snapshot, and keeps every table's lock to the end.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::super::SnapshotContents;
use super::super::archive::Toc;
use super::tables::Table;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{CopySession, Session, quote_literal};

/// Tables that are locked by one statement.
const LOCKED_AT_ONCE: usize = 500;
/// Tables whose columns are compared at once.
const COMPARED_AT_ONCE: usize = 2000;
/// How long a lock is waited for. The tables that are locked already are in the way of others meanwhile.
const LOCK_TIMEOUT: &str = "5s";

/// How often a moment is looked for in which no transactions end, and how long it is: a commit takes longer to come to the
/// disk, and those who wait for it take less to end.
const QUIET_ATTEMPTS: usize = 5;
const QUIET: Duration = Duration::from_millis(2);

/// Settings of every session that reads rows: those of `pg_dump` (`setup_connection` in `pg_dump.c`, PostgreSQL 18), so
/// that rows come as it writes them, and those that make ranges of ctid fast and rows comparable.
pub(in crate::logical) const SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; \
     SET bytea_output = hex; SET timezone = 'UTC'; SET synchronize_seqscans = off; SET statement_timeout = 0; \
     SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET row_security = off; SET jit = off; \
     SET max_parallel_workers_per_gather = 0; SET enable_tidscan = on; SET standard_conforming_strings = on;";

/// Begins the transaction of a session.
pub(super) async fn begin(session: &mut CopySession, major: u32, snapshot: Option<&str>) -> Result<()> {
    let mut sql = SETTINGS.to_owned();
    if major >= 17 {
        sql += " SET transaction_timeout = 0;";
    }
    sql += " BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;";
    if let Some(snapshot) = snapshot {
        let _ = write!(sql, " SET TRANSACTION SNAPSHOT {};", quote_literal(snapshot));
    }
    session.rows(&sql).await.map(drop)
}

/// The encoding of statements and rows from now on.
pub(super) async fn set_encoding(session: &mut CopySession, encoding: &str) -> Result<()> {
    session.rows(format!("SET client_encoding = {}", quote_literal(encoding))).await.map(drop)
}

/// The session and its snapshot.
pub(super) struct Snapshot {
    pub(super) session: CopySession,
    /// What other sessions import.
    pub(super) name: String,
    /// When it was taken.
    pub(super) moment: Option<SnapshotContents>,
}

/// What came of locking.
pub(super) enum Locked {
    Yes(Vec<Table>),
    /// A table changed since the snapshot, in a way that the snapshot does not protect from.
    Changed(String),
    /// The server has no room for so many locks, at least not now.
    TooMany(Error),
}

impl Snapshot {
    /// Takes one. Transactions that were committed together end one by one, in any order. Between two such moments the
    /// snapshot sees what the WAL has up to a position, and can be compared with a replay to there: so it is looked for
    /// a moment in which the server writes no commits to its disk. A good snapshot it is in any case.
    pub(super) async fn take(session: &Session, major: u32) -> Result<Self> {
        let mut taken = Self::take_once(session.copy_session().await?, session, major).await?;
        for _ in 0..QUIET_ATTEMPTS {
            if taken.moment.as_ref().is_none_or(SnapshotContents::sees_all) {
                break;
            }
            let before = SnapshotContents::flushed(session).await;
            tokio::time::sleep(QUIET).await;
            let mut own = taken.session;
            own.rows("ROLLBACK").await?;
            taken = Self::take_once(own, session, major).await?;
            if before == SnapshotContents::flushed(session).await {
                break;
            }
        }
        Ok(taken)
    }

    async fn take_once(mut own: CopySession, session: &Session, major: u32) -> Result<Self> {
        begin(&mut own, major, None).await?;
        let sql = "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.pg_current_snapshot()";
        let row = own.rows(sql).await?.into_iter().next().unwrap_or_default();
        // By another session: what fails in this one ends its transaction.
        let position = SnapshotContents::position(session).await;
        let [Some(name), Some(transactions)] = &row[..] else {
            return Err(Error::internal("the server exported no snapshot"));
        };
        let moment = position.map(|(lsn, timeline)| {
            let transactions = transactions.clone();
            SnapshotContents { lsn, timeline, transactions }
        });
        Ok(Self { session: own, name: name.clone(), moment })
    }

    /// Locks the tables whose rows are dumped, and looks whether they are still those that the snapshot sees. TRUNCATE,
    /// a rewriting ALTER TABLE, or dropping and making anew, are not hidden by a snapshot: the table would come out
    /// empty, and no error would say so.
    pub(super) async fn lock(&mut self, toc: &Toc, encoding: &str, other: &Session) -> Result<Locked> {
        // Names without an encoding cannot be had as UTF-8.
        let readable = if encoding == "SQL_ASCII" { encoding } else { "UTF8" };
        set_encoding(&mut self.session, readable).await?;
        let mut tables = self.tables(toc).await?;
        if encoding != "UTF8"
            && let Some(table) = tables.iter().find(|t| t.condition.as_ref().is_some_and(|c| !c.is_ascii()))
        {
            let message = format!(
                "the extension of table {}.{} chooses its rows by a condition that is not ASCII",
                table.schema, table.name
            );
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("leave its rows out with --exclude-table-data"));
        }
        set_encoding(&mut self.session, encoding).await?;
        self.session.rows(format!("SET lock_timeout = '{LOCK_TIMEOUT}'")).await?;
        let lockable: Vec<&Table> = tables.iter().filter(|table| table.is_lockable()).collect();
        for some in lockable.chunks(LOCKED_AT_ONCE) {
            let names: Vec<Vec<u8>> =
                some.iter().map(|t| [b"ONLY ".as_slice(), &t.qualified].concat()).collect();
            let sql = [b"LOCK TABLE ".as_slice(), &names.join(&b", "[..]), b" IN ACCESS SHARE MODE"].concat();
            if let Err(error) = self.session.rows(&sql).await {
                if error.kind() != ErrorKind::Database {
                    return Err(error);
                }
                // out_of_memory: the lock table is full
                if error.sqlstate() == Some("53200") {
                    return Ok(Locked::TooMany(error));
                }
                let who = waiting(other).await;
                return Ok(Locked::Changed(format!("tables cannot be locked: {error}{who}")));
            }
        }
        set_encoding(&mut self.session, readable).await?;
        // From now on locks are waited for: who has one on an index does not wait for ours.
        self.session.rows("SET lock_timeout = 0").await?;
        let changed = match self.first_changed(&tables).await? {
            None => self.first_with_other_columns(&tables, other).await?,
            changed => changed,
        };
        if let Some(name) = changed {
            return Ok(Locked::Changed(format!(
                "table {name} was truncated, rewritten, altered, dropped or renamed while the backup began"
            )));
        }
        self.measure(&mut tables).await?;
        Ok(Locked::Yes(tables))
    }

    /// What the catalogs of the snapshot say of the tables.
    async fn tables(&mut self, toc: &Toc) -> Result<Vec<Table>> {
        let entries: Vec<_> = toc.entries.iter().filter(|e| Table::has_rows(e)).collect();
        let oids: Vec<u32> = entries.iter().filter_map(|e| e.oid_number()).collect();
        let sql = format!(
            "SELECT c.oid, n.nspname, c.relname, c.relkind, a.amname, e.condition FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam \
             LEFT JOIN (SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition \
             FROM pg_catalog.pg_extension) e ON e.oid = c.oid WHERE c.oid = ANY({})",
            oid_array(&oids)
        );
        let mut known = HashMap::new();
        for row in self.session.rows(&sql).await? {
            if let [Some(oid), Some(schema), Some(name), Some(kind), method, condition] = &row[..] {
                let facts = (schema.clone(), name.clone(), kind.clone(), method.clone(), condition.clone());
                known.insert(oid.parse::<u32>().unwrap_or_default(), facts);
            }
        }
        entries
            .into_iter()
            .map(|entry| {
                let oid = entry.oid_number().unwrap_or_default();
                let Some((schema, name, kind, method, condition)) = known.get(&oid).cloned() else {
                    let name = format!("{}.{}", entry.schema_text(), entry.name_text());
                    return Err(Error::internal(format!("the snapshot does not know the table {name}")));
                };
                let heap = kind == "r" && method.as_deref() == Some("heap");
                let mut table = Table::new(entry, schema, name);
                table.foreign = kind == "f";
                table.heap = heap;
                table.condition = condition.filter(|condition| !condition.is_empty());
                Ok(table)
            })
            .collect()
    }

    /// A table that is not the one that the snapshot sees.
    async fn first_changed(&mut self, tables: &[Table]) -> Result<Option<String>> {
        let oids: Vec<u32> = tables.iter().filter(|t| t.is_lockable()).map(|t| t.oid).collect();
        let sql = format!(
            "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY({}) AND c.relfilenode <> 0 \
             AND (c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid) OR c.oid IS DISTINCT FROM \
             pg_catalog.to_regclass(pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname))::oid) \
             LIMIT 1",
            oid_array(&oids)
        );
        self.session.value(&sql).await
    }

    /// A table whose columns are not those that the snapshot sees. COPY asks the catalogs as they are: of a column
    /// that was dropped and added again, or of two that swapped their names, it would give other values.
    async fn first_with_other_columns(
        &mut self,
        tables: &[Table],
        other: &Session,
    ) -> Result<Option<String>> {
        let lockable: Vec<&Table> = tables.iter().filter(|table| table.is_lockable()).collect();
        for some in lockable.chunks(COMPARED_AT_ONCE) {
            let sql = format!(
                "SELECT attrelid, pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', attnum, attname, atttypid, \
                 attisdropped, attgenerated), ',' ORDER BY attnum)) FROM pg_catalog.pg_attribute \
                 WHERE attnum > 0 AND attrelid = ANY({}) GROUP BY 1 ORDER BY 1",
                oid_array(&some.iter().map(|table| table.oid).collect::<Vec<_>>())
            );
            let (seen, current) = (self.session.rows(&sql).await?, other.rows(&sql).await?);
            if seen == current {
                continue;
            }
            let differs = seen.iter().find(|row| !current.contains(row)).or(current.first());
            let oid = differs.and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
            let table = some.iter().find(|table| table.oid.to_string() == oid);
            return Ok(Some(table.map_or(oid, |table| format!("{}.{}", table.schema, table.name))));
        }
        Ok(None)
    }

    /// Sizes of the tables; of the main fork, and with TOAST.
    async fn measure(&mut self, tables: &mut [Table]) -> Result<()> {
        let oids: Vec<u32> = tables.iter().filter(|t| t.is_lockable()).map(|t| t.oid).collect();
        let sql = format!(
            "SELECT oid, pg_catalog.pg_relation_size(oid) / pg_catalog.current_setting('block_size')::bigint, \
             pg_catalog.pg_table_size(oid) FROM pg_catalog.pg_class WHERE oid = ANY({})",
            oid_array(&oids)
        );
        let rows = self.session.rows(&sql).await?;
        let number = |row: &[Option<String>], column: usize| {
            row.get(column).and_then(Option::as_ref).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
        };
        let sizes: HashMap<u64, (u64, u64)> =
            rows.iter().map(|row| (number(row, 0), (number(row, 1), number(row, 2)))).collect();
        for table in tables {
            (table.blocks, table.bytes) = sizes.get(&u64::from(table.oid)).copied().unwrap_or((0, 0));
        }
        Ok(())
    }
}

fn oid_array(oids: &[u32]) -> String {
    let list: Vec<String> = oids.iter().map(ToString::to_string).collect();
    format!("'{{{}}}'::oid[]", list.join(","))
}

/// Who holds, or waits for, a lock that is in the way.
pub(super) async fn waiting(session: &Session) -> String {
    let sql = "SELECT DISTINCT l.pid, pg_catalog.left(a.query, 80) FROM pg_catalog.pg_locks l \
               JOIN pg_catalog.pg_stat_activity a USING (pid) \
               WHERE l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation' LIMIT 3";
    let rows = session.rows(sql).await.unwrap_or_default();
    let mut words = String::new();
    for row in rows {
        if let [Some(pid), query] = &row[..] {
            let _ =
                write!(words, "; process {pid} has or wants it alone: {}", query.as_deref().unwrap_or("?"));
        }
    }
    words
}
