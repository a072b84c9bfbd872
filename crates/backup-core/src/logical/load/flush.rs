//! WAL on disk.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use crate::error::Result;
use crate::postgres::Session;

/// COPY fills 16 MB of buffers again and again (`BAS_BULKWRITE` in `freelist.c`). It writes out what was in them, and
/// waits until the WAL of that is on disk: so this is asked for before a session has filled them once.
const EVERY: Duration = Duration::from_millis(40);

/// Has the server write WAL to disk while others load rows, as long as this is polled.
pub(super) async fn keep_flushing(session: &Session) -> Infallible {
    // `local`: no standby is waited for.
    let sql =
        "SET synchronous_commit = local; SELECT pg_catalog.pg_logical_emit_message(true, 'pgark', 'loading')";
    while session.rows(sql).await.is_ok() {
        tokio::time::sleep(EVERY).await;
    }
    // What loads rows says what is wrong.
    pending().await
}

/// Makes what sessions committed without waiting durable.
pub(super) async fn flush(session: &Session) -> Result<()> {
    // A commit that wrote something waits for all WAL before it.
    let sql =
        "SET synchronous_commit = on; SELECT pg_catalog.pg_logical_emit_message(true, 'pgark', 'restored')";
    session.rows(sql).await.map(drop)
}
