//! Which backup to restore for a target, and whether it can be reached: known before a byte is written.

use jiff::Timestamp;

use super::dump::{Span, span};
use super::recovery::{Recovery, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::BackupSummary;
use crate::wal::{History, Inventory, Reach, RestorePoint};

/// What a recovery will do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// The backup to restore.
    pub backup: BackupSummary,
    /// The timeline to recover along.
    pub timeline: u32,
    /// How far it could go.
    pub reach: Reach,
}

/// The WAL archive, as far as a plan needs it.
pub struct Archived<'a> {
    /// What it has.
    pub inventory: &'a Inventory,
    /// Its restore points.
    pub points: &'a [RestorePoint],
}

/// A backup and the way that recovery goes from it.
struct Way {
    span: Span,
    history: History,
    reach: Reach,
}

impl Plan {
    /// Chooses among backups, oldest first: the newest from which the target can be reached. A transaction's place is
    /// not known, so that for one there must be a single backup to choose from.
    ///
    /// # Errors
    /// [`BackupNotFound`](ErrorKind::BackupNotFound) where no backup is from before the target;
    /// [`Unsupported`](ErrorKind::Unsupported) where the WAL does not lead there, and which moments can be reached;
    /// [`Usage`](ErrorKind::Usage) where several timelines lead on from the backup.
    pub fn make(
        backups: &[BackupSummary],
        archived: Option<&Archived<'_>>,
        recovery: &Recovery,
    ) -> Result<Self> {
        let mut physical: Vec<(&BackupSummary, Span)> =
            backups.iter().filter_map(|backup| Some((backup, span(backup)?))).collect();
        let Some((newest, of)) = physical.last().copied() else {
            return Err(Error::new(ErrorKind::BackupNotFound, "there is no physical backup to recover from")
                .with_hint("pgark backup --physical makes one"));
        };
        // Before initdb or pg_upgrade it was another cluster: its backups must be named.
        physical.retain(|(_, span)| span.system == of.system);
        if matches!(recovery.target, Target::Xid(_)) && physical.len() > 1 {
            return Err(Error::new(
                ErrorKind::Usage,
                "nothing tells which backup is from before a transaction",
            )
            .with_hint("name the backup, or give a time or a position"));
        }
        let mut refused = None;
        for (backup, span) in physical.iter().rev() {
            if !begins_before(*span, recovery) {
                continue;
            }
            let way = match Way::of(*span, archived, recovery) {
                Ok(way) => way,
                // Only the timeline that was asked for may need an older one. The newest one's reason is the one to tell.
                Err(error) if recovery.timeline.is_some() => {
                    refused.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error.doing(format!("looking for the way from {}", backup.id))),
            };
            if !way.passes_point(recovery, archived) {
                continue;
            }
            if trusts(recovery) {
                way.check_followed(recovery, archived)?;
            } else {
                way.check(recovery, archived)?;
            }
            return Ok(Self { backup: (*backup).clone(), timeline: way.history.timeline, reach: way.reach });
        }
        Err(refused
            .unwrap_or_else(|| {
                let oldest = physical.first().map_or(Timestamp::UNIX_EPOCH, |(_, span)| span.ended);
                Error::new(ErrorKind::BackupNotFound, "no backup is from before the target")
                    .with_hint(format!("the oldest, {}, ended at {oldest}", physical[0].0.id))
            })
            .doing(format!("looking for the way from {}", newest.id)))
    }
}

/// Whether WAL comes from where nobody can look beforehand: another command, or a primary.
fn trusts(recovery: &Recovery) -> bool {
    recovery.restore_command.is_some() || recovery.standby.is_some()
}

/// Whether the backup ended before a time or a position.
fn begins_before(span: Span, recovery: &Recovery) -> bool {
    match &recovery.target {
        Target::Time(time) => span.ended <= *time,
        Target::Lsn(lsn) => span.wal.end <= *lsn,
        Target::Latest | Target::Immediate | Target::Xid(_) | Target::Name(_) => true,
    }
}

impl Way {
    fn of(span: Span, archived: Option<&Archived<'_>>, recovery: &Recovery) -> Result<Self> {
        let own = span.wal.timeline;
        let alone = |timeline| {
            let mut reach = Inventory::default().reach(span.wal, &History::first(own));
            reach.timeline = timeline;
            reach
        };
        if trusts(recovery) {
            let timeline = recovery.timeline.unwrap_or(own);
            return Ok(Self { span, history: History::first(timeline), reach: alone(timeline) });
        }
        let inventory =
            archived.map(|a| a.inventory).filter(|inventory| inventory.survey.system == span.system);
        let Some(inventory) = inventory else {
            if let Some(timeline) = recovery.timeline.filter(|timeline| *timeline != own) {
                let message = format!("there is no WAL archive that leads to timeline {timeline}");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            return Ok(Self { span, history: History::first(own), reach: alone(own) });
        };
        let timeline = match (recovery.timeline, &inventory.leaves(span.wal)[..]) {
            (Some(timeline), _) => timeline,
            _ if recovery.target == Target::Immediate => own,
            (None, [one]) => *one,
            (None, several) => {
                let list: Vec<String> = several.iter().map(u32::to_string).collect();
                let message = format!("several timelines lead on from the backup: {}", list.join(", "));
                return Err(Error::new(ErrorKind::Usage, message)
                    .with_hint("choose with --timeline; pgark wal list shows how far each goes"));
            }
        };
        let history = match inventory.history(timeline) {
            // The backup brings its own.
            Err(e) if timeline == own && e.kind() == ErrorKind::ObjectMissing => History::first(own),
            history => history?,
        };
        if !history.passes(own, span.wal.end) {
            let message = format!("timeline {timeline} was begun before the backup's end on timeline {own}");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("restore an older backup, or along another timeline"));
        }
        if let Some(newer) = inventory.left_for(span.wal, &history)
            && recovery.timeline.is_none()
            && recovery.target != Target::Immediate
        {
            let message = format!(
                "timeline {newer} was begun before the backup's end, and is newer than its own, {own}"
            );
            return Err(Error::new(ErrorKind::Usage, message).with_hint(format!(
                "choose with --timeline: {newer} with an older backup, or {own}; pgark wal list shows how far each goes"
            )));
        }
        let reach = inventory.reach(span.wal, &history);
        Ok(Self { span, history, reach })
    }

    /// Whether a restore point lies behind the backup. One that nobody knows is reported for the newest backup.
    fn passes_point(&self, recovery: &Recovery, archived: Option<&Archived<'_>>) -> bool {
        let Target::Name(name) = &recovery.target else { return true };
        let points = || archived.into_iter().flat_map(|a| a.points).filter(|p| p.name == *name);
        trusts(recovery) || points().next().is_none() || points().any(|point| self.passes(point))
    }

    fn passes(&self, point: &RestorePoint) -> bool {
        point.lsn >= self.span.wal.end && self.history.passes(point.timeline, point.lsn)
    }

    /// Whether the archive has what the backup needs, where a standby has nothing else to follow.
    fn check_followed(&self, recovery: &Recovery, archived: Option<&Archived<'_>>) -> Result<()> {
        let follows_archive = recovery.restore_command.is_none() && recovery.standby.as_deref() == Some("");
        if !follows_archive || self.span.wal.brings_wal {
            return Ok(());
        }
        let inventory =
            archived.map(|a| a.inventory).filter(|inventory| inventory.survey.system == self.span.system);
        let own = History::first(self.span.wal.timeline);
        let reach = inventory.map_or_else(|| self.reach.clone(), |found| found.reach(self.span.wal, &own));
        if reach.to >= reach.from { Ok(()) } else { Err(unreached(NO_OWN_WAL.to_owned(), &reach, archived)) }
    }

    /// Whether the WAL leads to the target.
    fn check(&self, recovery: &Recovery, archived: Option<&Archived<'_>>) -> Result<()> {
        let reach = &self.reach;
        if reach.to < reach.from {
            return Err(unreached(NO_OWN_WAL.to_owned(), reach, archived));
        }
        let reached = match &recovery.target {
            // Of a transaction nothing tells: the server will.
            Target::Immediate | Target::Xid(_) => true,
            Target::Latest => reach.gap.is_none(),
            // The server stops at a record that begins there.
            Target::Lsn(lsn) => *lsn < reach.to,
            // The server stops at the first commit behind the time: without one it takes it for not reached.
            Target::Time(time) => {
                reach.last_commit.is_some_and(|last| last > *time || (recovery.exclusive && last == *time))
            }
            Target::Name(name) => archived
                .into_iter()
                .flat_map(|a| a.points)
                .any(|point| point.name == *name && self.passes(point) && point.lsn < reach.to),
        };
        if reached {
            return Ok(());
        }
        let what = match &recovery.target {
            Target::Name(name) if archived.is_none_or(|a| a.points.iter().all(|p| p.name != *name)) => {
                format!("no restore point in the archive is called {name:?}")
            }
            Target::Latest => "the WAL has a gap".to_owned(),
            _ => "the WAL does not lead to the target".to_owned(),
        };
        Err(unreached(what, reach, archived))
    }
}

const NO_OWN_WAL: &str = "the archive does not have the WAL that the backup needs, which has none of its own";

/// That recovery does not come to its target: it says how far it comes.
fn unreached(what: String, reach: &Reach, archived: Option<&Archived<'_>>) -> Error {
    let last = reach.last_commit.map(|last| format!(" (last commit {last})")).unwrap_or_default();
    let end = match &reach.gap {
        Some(gap) => format!("where {gap} is missing"),
        None if archived.is_none() => "and there is no WAL archive of it".to_owned(),
        None => "and there is no more WAL on this timeline".to_owned(),
    };
    let way = if reach.to < reach.from {
        format!("recovery must reach {}, and comes to {}", reach.from, reach.to)
    } else {
        format!("from this backup recovery comes from {} to {}", reach.from, reach.to)
    };
    Error::new(ErrorKind::Unsupported, what).with_hint(format!("{way}{last}, {end}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::postgres::Lsn;
    use crate::repository::{ClusterName, State, Tool};

    const SIZE: u64 = 16 << 20;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + hour * 3600).unwrap()
    }

    /// A backup that ended in the middle of a segment, at an hour.
    fn backup(system: u64, timeline: u32, segment: u64, hour: i64) -> BackupSummary {
        let (start, end) = (Lsn(segment * SIZE + 40), Lsn(segment * SIZE + SIZE / 2));
        let source = json!({
            "system_identifier": system.to_string(), "timeline": timeline, "start_lsn": start, "end_lsn": end,
            "wal_segment_bytes": SIZE, "end_time": at(hour).to_string(),
        });
        BackupSummary {
            format: 1,
            id: crate::repository::BackupId::new(at(hour), "physical", u128::from(segment)).unwrap(),
            state: State::Committed,
            cluster: ClusterName::default(),
            kind: "physical".to_owned(),
            started: at(hour),
            finished: at(hour),
            host: String::new(),
            tool: Tool::this(),
            compression: "zstd".to_owned(),
            encryption: None,
            parent: None,
            label: None,
            stored_bytes: 0,
            warnings: 0,
            source: source.as_object().cloned().unwrap(),
            other: Map::new(),
        }
    }

    /// Segments: timeline, number, hour of the last commit. Histories: timeline, text.
    fn inventory(segments: &[(u32, u64, i64)], histories: &[(u32, &str)]) -> Inventory {
        let segments: Vec<_> = segments.iter().map(|(t, n, hour)| (*t, *n, true, Some(at(*hour)))).collect();
        Inventory::sample(&segments, histories)
    }

    fn plan(
        backups: &[BackupSummary],
        inventory: &Inventory,
        target: Target,
        timeline: Option<u32>,
    ) -> Result<Plan> {
        let recovery = Recovery { target, timeline, ..Recovery::default() };
        Plan::make(backups, Some(&Archived { inventory, points: &[] }), &recovery)
    }

    #[test]
    fn the_newest_backup_from_before_the_target_is_taken() {
        let backups = [backup(7, 1, 2, 1), backup(7, 1, 5, 10)];
        let wal = inventory(&[(1, 2, 1), (1, 3, 4), (1, 4, 8), (1, 5, 11), (1, 6, 12)], &[]);
        let chosen = |target| plan(&backups, &wal, target, None).map(|plan| plan.backup.id);
        assert_eq!(chosen(Target::Latest).unwrap(), backups[1].id);
        assert_eq!(chosen(Target::Time(at(9))).unwrap(), backups[0].id);
        assert_eq!(chosen(Target::Time(at(11))).unwrap(), backups[1].id);
        assert_eq!(chosen(Target::Lsn(Lsn(4 * SIZE))).unwrap(), backups[0].id);
        let kind = |target| chosen(target).unwrap_err().kind();
        assert_eq!(kind(Target::Time(at(0))), ErrorKind::BackupNotFound);
        // The server stops at the first commit, or the first record, behind the target.
        assert_eq!(kind(Target::Time(at(12))), ErrorKind::Unsupported);
        assert_eq!(kind(Target::Lsn(Lsn(7 * SIZE))), ErrorKind::Unsupported);
        assert_eq!(kind(Target::Xid(700)), ErrorKind::Usage);
        let gap = inventory(&[(1, 2, 1), (1, 3, 4), (1, 5, 11), (1, 6, 12)], &[]);
        assert_eq!(
            plan(&backups[..1], &gap, Target::Latest, None).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert!(plan(&backups[..1], &gap, Target::Time(at(3)), None).is_ok());
    }

    #[test]
    fn a_branch_is_never_guessed() {
        // At five o'clock the cluster was brought back to a place before the second backup, and went on.
        let backups = [backup(7, 1, 2, 1), backup(7, 1, 5, 10)];
        let text = "1\t0/4000000\tx\n";
        let wal =
            inventory(&[(1, 2, 1), (1, 3, 4), (1, 4, 8), (1, 5, 11), (2, 4, 14), (2, 5, 20)], &[(2, text)]);
        let chosen =
            |target, timeline| plan(&backups, &wal, target, timeline).map(|p| (p.backup.id, p.timeline));
        for target in [Target::Latest, Target::Time(at(19)), Target::Time(at(3))] {
            assert_eq!(chosen(target, None).unwrap_err().kind(), ErrorKind::Usage);
        }
        assert_eq!(chosen(Target::Latest, Some(2)).unwrap(), (backups[0].id.clone(), 2));
        assert_eq!(chosen(Target::Time(at(19)), Some(2)).unwrap(), (backups[0].id.clone(), 2));
        assert_eq!(chosen(Target::Latest, Some(1)).unwrap(), (backups[1].id.clone(), 1));
        assert_eq!(chosen(Target::Immediate, None).unwrap(), (backups[1].id.clone(), 1));
        // A backup of the new timeline ends the question.
        let newer = [&backups[..], &[backup(7, 2, 5, 21)]].concat();
        let found = plan(&newer, &wal, Target::Latest, None).unwrap();
        assert_eq!((found.backup.id, found.timeline), (newer[2].id.clone(), 2));
    }

    #[test]
    fn a_backup_without_wal_needs_the_archive_whatever_the_target() {
        let mut without = backup(7, 1, 5, 10);
        without.source.insert("wal".to_owned(), "archive".into());
        let backups = [without];
        let (there, gone) =
            (inventory(&[(1, 5, 11), (1, 6, 12)], &[]), inventory(&[(1, 4, 8), (1, 6, 12)], &[]));
        for target in [Target::Immediate, Target::Latest, Target::Xid(700), Target::Time(at(10))] {
            assert!(plan(&backups, &there, target.clone(), None).is_ok(), "{target:?}");
            let error = plan(&backups, &gone, target.clone(), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{target:?}");
            assert!(
                error.hint().unwrap_or_default().contains("000000010000000000000005 is missing"),
                "{error:?}"
            );
            let recovery = Recovery { target, ..Recovery::default() };
            assert!(Plan::make(&backups, None, &recovery).is_err());
        }
        // A standby finds it with its primary; one that only follows the archive does not.
        let standby = |primary: &str, wal: Option<&Inventory>| {
            let recovery = Recovery { standby: Some(primary.to_owned()), ..Recovery::default() };
            let archived = wal.map(|inventory| Archived { inventory, points: &[] });
            Plan::make(&backups, archived.as_ref(), &recovery).is_ok()
        };
        assert!(standby("host=primary", Some(&gone)) && standby("host=primary", None));
        assert!(standby("", Some(&there)) && !standby("", Some(&gone)) && !standby("", None));
    }

    #[test]
    fn another_cluster_of_the_name_and_other_wal_are_no_reason_to_refuse() {
        let backups = [backup(6, 1, 2, 1), backup(7, 1, 2, 10)];
        let wal = inventory(&[(1, 2, 10)], &[]);
        // Before the upgrade it was another one, whose backup must be named.
        assert_eq!(
            plan(&backups, &wal, Target::Time(at(5)), None).unwrap_err().kind(),
            ErrorKind::BackupNotFound
        );
        let recovery = Recovery {
            target: Target::Time(at(15)),
            restore_command: Some("cp /elsewhere/%f %p".to_owned()),
            ..Recovery::default()
        };
        assert_eq!(Plan::make(&backups, None, &recovery).unwrap().backup.id, backups[1].id);
        let alone = Recovery { restore_command: None, ..recovery };
        assert_eq!(Plan::make(&backups, None, &alone).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
