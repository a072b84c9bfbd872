//! Which databases a server has.

use super::super::contents::LeftOut;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Session;

/// As `dumpDatabases` in `pg_dumpall.c` (PostgreSQL 18) chooses them, without `template1`: a database that is made
/// anew is made from `template0`. A limit of -2 marks what a `DROP DATABASE` left that was interrupted.
const SQL: &str = "SELECT d.datname, d.datallowconn, d.datconnlimit = -2, \
     CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') \
     THEN pg_catalog.pg_database_size(d.oid) ELSE 0 END \
     FROM pg_catalog.pg_database d WHERE d.datname NOT IN ('template0', 'template1') ORDER BY 1";

/// Settings of `ALTER ROLE ALL SET`, which neither `pg_dumpall` nor `pg_dump` writes.
const FOR_ALL: &str = "SELECT coalesce(sum(pg_catalog.cardinality(setconfig)), 0) FROM pg_catalog.pg_db_role_setting \
     WHERE setdatabase = 0 AND setrole = 0";

pub(super) struct Databases {
    /// Names of those that can be dumped.
    pub(super) dumped: Vec<String>,
    /// Bytes, as the server counts them.
    pub(super) bytes: u64,
    /// What is of the server and is not in a backup.
    pub(super) left_out: Vec<LeftOut>,
}

impl Databases {
    pub(super) async fn read(session: &Session) -> Result<Self> {
        let mut databases = Self { dumped: Vec::new(), bytes: 0, left_out: Vec::new() };
        let (mut closed, mut invalid) = (Vec::new(), Vec::new());
        for row in session.rows(SQL).await? {
            let [Some(name), Some(open), Some(broken), bytes] = &row[..] else { continue };
            if broken == "t" {
                invalid.push(name.clone());
            } else if open == "f" {
                closed.push(name.clone());
            } else {
                databases.dumped.push(name.clone());
                databases.bytes += bytes.as_ref().and_then(|b| b.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        let for_all = session.value(FOR_ALL).await?.and_then(|n| n.parse().ok()).unwrap_or(0);
        let named = |what: &str, names: &[String]| format!("{what} ({})", names.join(", "));
        for (what, count, why) in [
            (named("databases", &closed), closed.len() as u64, "they let nobody connect (datallowconn)"),
            (
                named("databases", &invalid),
                invalid.len() as u64,
                "dropping them was interrupted: drop them again",
            ),
            ("settings of ALTER ROLE ALL".to_owned(), for_all, "pg_dumpall does not write them"),
        ] {
            if count > 0 {
                databases.left_out.push(LeftOut { what, count, why: why.to_owned() });
            }
        }
        if databases.dumped.is_empty() {
            return Err(Error::new(ErrorKind::NoDatabase, "the server has no database that can be dumped")
                .with_hint("template0 and template1 are left out, and databases that let nobody connect"));
        }
        Ok(databases)
    }
}
