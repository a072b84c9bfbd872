//! Whether a cluster that was restored from a physical backup has the rows that a logical backup has counted.

use tokio_util::sync::CancellationToken;

use super::look::Looked;
use super::record::{ComparedWith, Outcome, Step};
use super::run::Run;
use crate::error::{Error, Result};
use crate::logical::{Compared, Known, Reference, SnapshotContents, compare};
use crate::physical::{Recovery, Target};
use crate::postgres::{ConnInfo, Lsn, Session};

/// Transactions that are counted; that there are more is enough.
const COUNTED: u64 = 1_000_000;
/// What may lie between the end of a record and the beginning of the next one: the header of a page, which has this size
/// unless the server was built otherwise.
const LONGEST_HEADER: u64 = 40;
const PAGE: u64 = 8192;

/// What a physical backup is compared with, and when.
#[derive(Debug, Clone)]
pub struct Compare {
    reference: Reference,
    stops_at_snapshot: bool,
}

impl Compare {
    /// Compares with a logical backup where a recovery ends that has a target of its own.
    pub fn with(reference: Reference) -> Self {
        Self { reference, stops_at_snapshot: false }
    }

    /// Recovers up to the logical backup's snapshot. `recovery` gets it for its target, and the timeline where it has none.
    ///
    /// # Errors
    /// Those of [`Reference::snapshot`].
    pub fn at_snapshot(reference: Reference, recovery: &mut Recovery) -> Result<Self> {
        let snapshot = reference.snapshot()?;
        recovery.target = Target::Lsn(snapshot.lsn);
        // What begins there was written later.
        recovery.exclusive = true;
        recovery.timeline = recovery.timeline.or(snapshot.timeline);
        Ok(Self { reference, stops_at_snapshot: true })
    }

    /// The logical backup.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    pub(super) fn stops_at_snapshot(&self) -> bool {
        self.stops_at_snapshot
    }
}

/// How a recovered cluster lies to a snapshot.
enum Moment {
    Same,
    /// Why it is another one.
    Other(String),
}

/// The end of the replay.
struct End {
    replayed: Option<Lsn>,
    /// The first transaction that the recovered cluster has not seen.
    next: u64,
}

impl End {
    async fn of(session: &Session) -> Result<Self> {
        let replayed = session.value("SELECT pg_catalog.pg_last_wal_replay_lsn()").await?;
        let next = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
        let next = session.value(next).await?.and_then(|next| next.parse().ok());
        Ok(Self {
            replayed: replayed.and_then(|lsn| lsn.parse().ok()),
            next: next.ok_or_else(|| Error::internal("a server named no next transaction"))?,
        })
    }

    /// Whether everything before a position was replayed.
    fn has(&self, lsn: Lsn) -> bool {
        let begins_page = |at: Lsn| at.0.is_multiple_of(PAGE) && at.0 + LONGEST_HEADER >= lsn.0;
        self.replayed.is_some_and(|replayed| replayed >= lsn || begins_page(replayed))
    }
}

/// How many transactions were committed that a snapshot does not see. `None` where it does not say what it sees.
async fn unseen(session: &Session, snapshot: &SnapshotContents, end: &End) -> Result<Option<u64>> {
    let Some(sees) = snapshot.sees() else { return Ok(None) };
    let running: Vec<String> = sees.running.iter().map(ToString::to_string).collect();
    let last = end.next.saturating_sub(1).min(sees.next.saturating_add(COUNTED));
    let sql = format!(
        "SELECT count(*) FROM (SELECT unnest('{{{}}}'::xid8[]) UNION ALL \
         SELECT n::text::xid8 FROM pg_catalog.generate_series({}::bigint, {last}::bigint) n) t(xid) \
         WHERE pg_catalog.pg_xact_status(xid) = 'committed'",
        running.join(","),
        sees.next
    );
    Ok(session.value(&sql).await?.and_then(|count| count.parse().ok()))
}

async fn moment(session: &Session, known: &Known, end: &End, stopped_there: bool) -> Result<Moment> {
    let Some(snapshot) = &known.contents.snapshot else {
        return Ok(Moment::Other("the backup does not say of which moment it is".to_owned()));
    };
    if !stopped_there && !end.has(snapshot.lsn) {
        let to = end.replayed.map_or_else(|| "an unknown position".to_owned(), |lsn| lsn.to_string());
        return Ok(Moment::Other(format!(
            "the recovery came to {to}, and the snapshot was taken at {}",
            snapshot.lsn
        )));
    }
    Ok(match unseen(session, snapshot, end).await? {
        Some(0) => Moment::Same,
        Some(some) => {
            let more = if some > COUNTED { "more than " } else { "" };
            Moment::Other(format!(
                "{more}{} transactions were committed that the snapshot does not see",
                some.min(COUNTED)
            ))
        }
        None => Moment::Other("the backup does not say what its snapshot sees".to_owned()),
    })
}

impl Run<'_> {
    /// Compares the rows of the recovered cluster with those that a logical backup counted, where there is one.
    pub(super) async fn compare(&mut self, server: &ConnInfo, cancel: &CancellationToken) -> Result<()> {
        let Some(with) = self.options.compare.clone() else { return Ok(()) };
        let jobs = self.jobs;
        let mut told = None;
        let work = async {
            let session = server.connect().await?;
            // Before anything else is done here.
            let end = End::of(&session).await?;
            let (mut same, mut others, mut left, mut notes) = (Vec::new(), Vec::new(), 0, Vec::new());
            for (number, known) in with.reference.databases().iter().enumerate() {
                let name = &known.contents.facts.name;
                let main = number == 0;
                match moment(&session, known, &end, main && with.stops_at_snapshot).await? {
                    Moment::Same => same.push(known.clone()),
                    // There is no one moment of several snapshots.
                    Moment::Other(why) if with.stops_at_snapshot && !main => {
                        left += 1;
                        notes.push(format!("database {name} is left out: {why}"));
                    }
                    Moment::Other(why) => {
                        others.push(known.clone());
                        notes.push(format!("the moments differ in database {name}: {why}"));
                    }
                }
            }
            drop(session);
            let Compared { tables, rows, left_out, mut found } =
                compare(&same, server, false, jobs, cancel).await?;
            let other = compare(&others, server, false, jobs, cancel).await?;
            let (tables, rows, left_out) =
                (tables + other.tables, rows + other.rows, left_out + other.left_out);
            // Where the moment was asked for, somebody wants to know what changed. Where it could not be hit, nothing is
            // proved.
            let outcome = match (found.is_empty(), other.found.is_empty()) {
                (true, true) => Outcome::Passed,
                (true, false) if with.stops_at_snapshot => Outcome::NotDone,
                _ => Outcome::Failed,
            };
            found.extend(other.found);
            told = Some(ComparedWith {
                backup: with.reference.backup().clone(),
                same_moment: others.is_empty(),
                databases: (same.len() + others.len()) as u64,
                databases_left_out: left,
                tables,
                rows,
            });
            notes.insert(0, format!("{rows} rows of {tables} tables, with {}", with.reference.backup()));
            if left_out > 0 {
                notes.push(format!(
                    "{left_out} tables of extensions, unlogged, foreign or loaded through partition roots left out"
                ));
            }
            let note = notes.join("; ");
            Ok(Looked { outcome, ..Looked::of(note, found) })
        };
        self.step(Step::Compare, cancel, work).await?;
        self.report.compared = told;
        Ok(())
    }
}
