//! Statistics of the restored tables.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::dumper::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{CopySession, Session, quote_literal};

/// Tables that were not analyzed yet, but perhaps by autovacuum while they were loaded. Names as bytes in hexadecimal
/// digits: in the encoding of the database, which may be none.
const NAMES: &str = "SELECT pg_catalog.encode(pg_catalog.convert_to(pg_catalog.format('%I.%I', n.nspname, c.relname), \
     pg_catalog.getdatabaseencoding()), 'hex') \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
     AND pg_catalog.pg_stat_get_last_analyze_time(c.oid) IS NULL \
     ORDER BY c.relpages DESC";

/// Names of tables as SQL, in the encoding of the database.
type Names = Mutex<VecDeque<Vec<u8>>>;

/// Every table of the database that may have rows and was not analyzed yet, the largest first, as SQL in the encoding of
/// the database.
pub(super) async fn names(session: &Session) -> Result<Vec<Vec<u8>>> {
    Ok(session.rows(NAMES).await?.into_iter().filter_map(|row| unhex(&row.into_iter().next()??)).collect())
}

/// Gathers statistics, of several tables at once; names are SQL in an encoding. What could not be gathered is a warning: the rows are there, and a
/// partition that is a foreign table asks a server that may not answer.
pub(super) async fn analyze(
    session: &Session,
    encoding: &str,
    names: Vec<Vec<u8>>,
    ctx: &Ctx,
) -> Result<Vec<String>> {
    let count = names.len();
    let names = Arc::new(Names::new(names.into()));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..ctx.jobs.min(count) {
        let mut own = session.copy_session().await?;
        own.rows(format!("SET client_encoding = {}", quote_literal(encoding))).await?;
        tasks.spawn(of_tables(own, Arc::clone(&names)));
    }
    let analyzed =
        async {
            let mut words = Vec::new();
            while let Some(done) = tasks.join_next().await {
                words.extend(done.unwrap_or_else(|e| {
                    Err(Error::internal("a session of the restore failed").caused_by(e))
                })?);
            }
            Ok(words)
        };
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        analyzed = analyzed => analyzed,
    }
}

async fn of_tables(mut session: CopySession, names: Arc<Names>) -> Result<Vec<String>> {
    let mut words = Vec::new();
    loop {
        let name = names.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(name) = name else { break };
        match session.rows([b"ANALYZE ".as_slice(), &name].concat()).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Database => {
                words.push(format!("gathering statistics of {}: {error}", String::from_utf8_lossy(&name)));
            }
            Err(error) => return Err(error),
        }
    }
    session.close().await;
    Ok(words)
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|two| std::str::from_utf8(two).ok().and_then(|two| u8::from_str_radix(two, 16).ok()))
        .collect()
}
