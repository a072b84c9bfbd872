//! The moment of a dump's snapshot: its place in the WAL, and the transactions that it sees.

use serde::{Deserialize, Serialize};

use crate::postgres::{Lsn, Session};

/// The snapshot that the rows of a database are of, as its server described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotContents {
    /// Where the WAL ended, just after the snapshot was taken; on a standby, how far it had been replayed.
    pub lsn: Lsn,
    /// The timeline of that position, where the server says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// What it sees, as `pg_current_snapshot()` writes it: `xmin:xmax:` and the transactions between that were running.
    pub transactions: String,
}

impl SnapshotContents {
    /// Asks where the WAL of the server ends. Nothing where it does not say so: the backup is good without.
    pub(super) async fn position(session: &Session) -> Option<(Lsn, Option<u32>)> {
        let value = async |sql| session.value(sql).await.ok().flatten();
        let is_standby = value("SELECT pg_catalog.pg_is_in_recovery()").await? == "t";
        let (lsn, timeline) = if is_standby {
            // A connection's, since that of the last restart point may be an older one.
            let timeline = "SELECT coalesce((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), \
                            (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))";
            ("SELECT pg_catalog.pg_last_wal_replay_lsn()", timeline)
        } else {
            // The name of a segment begins with the timeline.
            let timeline = "SELECT ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int";
            ("SELECT pg_catalog.pg_current_wal_insert_lsn()", timeline)
        };
        let lsn = value(lsn).await?.parse().ok()?;
        let timeline = value(timeline).await.and_then(|number| number.parse().ok());
        Some((lsn, timeline))
    }

    /// How far a server has written its WAL to the disk; nothing on a standby, where transactions end in the order of the
    /// WAL.
    pub(super) async fn flushed(session: &Session) -> Option<Lsn> {
        let sql = "SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_flush_lsn() END";
        session.value(sql).await.ok().flatten()?.parse().ok()
    }

    /// Whether no transaction was running that had changed anything.
    pub(super) fn sees_all(&self) -> bool {
        self.transactions.ends_with(':')
    }

    /// What it sees; nothing where it makes no sense.
    pub(crate) fn sees(&self) -> Option<Sees> {
        let mut pieces = self.transactions.split(':');
        let _oldest: u64 = pieces.next()?.parse().ok()?;
        let next = pieces.next()?.parse().ok()?;
        let running = pieces.next()?.split(',').filter(|xid| !xid.is_empty());
        Some(Sees { next, running: running.map(|xid| xid.parse().ok()).collect::<Option<_>>()? })
    }
}

/// The transactions that a snapshot sees, with the epoch in the upper half of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sees {
    /// Neither this one nor any after it.
    pub(crate) next: u64,
    /// Nor these before it.
    pub(crate) running: Vec<u64>,
}

impl Sees {
    /// Whether it sees a transaction by the number that WAL has of it, which is of around the same time.
    pub(crate) fn has(&self, xid: u32) -> bool {
        let low = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap_or(0);
        // As `TransactionIdPrecedes` in transam.c: on a circle the nearer half is before.
        let before = xid.wrapping_sub(low(self.next)).cast_signed() < 0;
        before && !self.running.iter().any(|running| low(*running) == xid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_was_committed() {
        let of = |transactions: &str| {
            let transactions = transactions.to_owned();
            SnapshotContents { lsn: Lsn(1), timeline: None, transactions }.sees()
        };
        let sees = of("100:105:100,103").unwrap();
        let those: Vec<u32> = (98..108).filter(|xid| sees.has(*xid)).collect();
        assert_eq!(those, [98, 99, 101, 102, 104]);
        assert_eq!(of("7:7:").unwrap(), Sees { next: 7, running: Vec::new() });
        // Behind the turn of the counter.
        let turned = of("8589934590:8589934597:8589934591").unwrap();
        assert!(turned.has(u32::MAX - 1) && turned.has(4) && !turned.has(5) && !turned.has(u32::MAX));
        for wrong in ["", "1", "1:2", "a:b:c", "1:2:x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
