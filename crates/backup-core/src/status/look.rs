use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    CopyStatus, DrillStatus, Exposure, Objectives, Series, Size, Status, VerifyStatus, WalStatus, Window,
};
use crate::check::{Level, Report};
use crate::drill;
use crate::error::{ErrorKind, Result};
use crate::physical::{self, Span, span};
use crate::repository::{BackupSummary, Catalog, ClusterName, Repository, State, Verb};
use crate::retention::series;
use crate::wal::{Archive, History, Survey};

/// How many drills are looked at for the last good one.
const DRILLS: usize = 20;
/// How many sizes are told.
const SIZES: usize = 20;
/// Of how many backups the median is taken.
const OF_MEDIAN: usize = 10;

impl Status {
    /// Looks at what a repository has of a cluster. It takes a list of the backups, one of the marks, one of the WAL, and
    /// the last drills.
    pub async fn of(
        repository: &Repository,
        cluster: &ClusterName,
        objectives: &Objectives,
        now: Timestamp,
    ) -> Result<Self> {
        let catalog = Catalog::load(repository, cluster).await?;
        let newest = catalog.latest_whole(physical::KIND).and_then(span);
        let (survey, history) = archive(repository, cluster, newest.as_ref()).await?;
        let series = all_series(&catalog, now);
        let (wal, window) = match &survey {
            Some(survey) if survey.segments() > 0 => (
                Some(wal_status(survey, newest.as_ref(), history.as_ref())),
                window(&catalog, survey, history.as_ref()),
            ),
            _ => (None, window_of_backups(&catalog)),
        };
        let holds = series.iter().map(|series| series.holds).max();
        let whole_wal = wal.as_ref().filter(|wal| newest.is_some() && wal.gap.is_none());
        let stored = whole_wal.and_then(|wal| wal.last_stored);
        let rpo = match (stored, holds) {
            (Some(stored), Some(holds)) if stored > holds => Some(("wal", stored)),
            (_, Some(holds)) => Some(("backup", holds)),
            (_, None) => None,
        };
        let mut status = Self {
            cluster: cluster.clone(),
            at: now,
            level: Level::Good,
            findings: Vec::new(),
            rpo: rpo
                .map(|(by, stored)| Exposure { seconds: now.duration_since(stored).as_secs().max(0), by }),
            window,
            wal,
            verify: verifications(&catalog),
            drill: last_drill(repository, cluster).await?,
            copies: copies(repository, &catalog),
            not_everywhere: catalog.not_everywhere().map_or(0, |backups| backups.len()),
            backup_bytes: catalog.backups().map(|backup| backup.stored_bytes).sum(),
            sizes: sizes(&catalog),
            unfinished: catalog.unfinished().iter().map(|run| run.id.clone()).collect(),
            series,
        };
        let mut report = Report::default();
        status.judge(objectives, &mut report);
        (status.level, status.findings) = (report.worst(), report.checks);
        Ok(status)
    }
}

/// The WAL archive of the cluster, and the history of its newest timeline.
async fn archive(
    repository: &Repository,
    cluster: &ClusterName,
    newest: Option<&Span>,
) -> Result<(Option<Survey>, Option<History>)> {
    let archive = match newest {
        Some(span) => Some(Archive::of(repository, cluster, span.system, None)),
        None => Archive::current(repository, cluster, None).await?,
    };
    let Some(archive) = archive else { return Ok((None, None)) };
    let survey = Survey::load(&archive).await?;
    let Some(timeline) = survey.timelines.keys().next_back().copied() else {
        return Ok((Some(survey), None));
    };
    let history = match archive.history(timeline).await {
        Ok(Some(text)) => Some(History::parse(timeline, &String::from_utf8_lossy(&text))?),
        Ok(None) => Some(History::first(timeline)),
        // Two servers began it: nobody can tell what follows what.
        Err(error) if error.kind() == ErrorKind::Conflict => None,
        Err(error) => return Err(error),
    };
    Ok((Some(survey), history))
}

fn is_good(catalog: &Catalog, backup: &BackupSummary) -> bool {
    backup.state == State::Committed
        && backup.is_complete()
        && !catalog.marks().is_damaged(&backup.id)
        && catalog.marks().removal(&backup.id).is_none()
}

/// The moment that a backup holds.
fn holds(backup: &BackupSummary) -> Timestamp {
    span(backup).map_or(backup.started, |span| span.ended)
}

fn all_series(catalog: &Catalog, now: Timestamp) -> Vec<Series> {
    let mut groups: BTreeMap<_, Vec<&BackupSummary>> = BTreeMap::new();
    for backup in catalog.backups().filter(|backup| is_good(catalog, backup)) {
        groups.entry(series(backup)).or_default().push(backup);
    }
    let of_group = |group: Vec<&BackupSummary>| {
        let newest = *group.last()?;
        let full: Vec<u64> = group
            .iter()
            .rev()
            .filter(|backup| backup.parent.is_none())
            .map(|backup| backup.stored_bytes)
            .collect();
        let database = newest.source.get("database").and_then(|name| name.as_str());
        Some(Series {
            kind: newest.kind.clone(),
            database: database.map(str::to_owned),
            backups: group.len(),
            newest: newest.id.clone(),
            holds: holds(newest),
            age_seconds: now.duration_since(holds(newest)).as_secs(),
            stored_bytes: newest.stored_bytes,
            median_bytes: if newest.parent.is_none() {
                median(full.get(1..).unwrap_or_default())
            } else {
                None
            },
        })
    };
    groups.into_values().filter_map(of_group).collect()
}

/// The median of the first values, where there are enough to tell.
fn median(values: &[u64]) -> Option<u64> {
    let mut values = values[..values.len().min(OF_MEDIAN)].to_vec();
    values.sort_unstable();
    (values.len() >= 3).then(|| values[values.len() / 2])
}

fn wal_status(survey: &Survey, newest: Option<&Span>, history: Option<&History>) -> WalStatus {
    let end = survey.timelines.values().next_back();
    let gap = newest.and_then(|span| match history {
        Some(history) => survey.reach(span.wal, history).gap,
        None => Some("behind a timeline that two servers began".to_owned()),
    });
    WalStatus {
        segments: survey.segments(),
        stored_bytes: survey.stored_bytes,
        last_commit: survey.timelines.values().filter_map(|newest| newest.last_commit).max(),
        last_stored: end.and_then(|end| end.stored),
        gap,
        conflicts: survey.conflicts.len(),
    }
}

/// From the oldest physical backup from which the WAL leads to the end.
fn window(catalog: &Catalog, survey: &Survey, history: Option<&History>) -> Option<Window> {
    let history = history?;
    let leads = |span: &Span| {
        span.system == survey.system
            && history.passes(span.wal.timeline, span.wal.end)
            && survey.reach(span.wal, history).gap.is_none()
    };
    let spans = catalog.backups().rev().filter(|backup| is_good(catalog, backup)).filter_map(span);
    let oldest = spans.take_while(leads).last()?;
    let to = survey.timelines.values().filter_map(|newest| newest.last_commit).max();
    Some(Window { from: oldest.ended, to: to.filter(|to| *to > oldest.ended) })
}

/// Without WAL: the end of the newest backup, and no moment behind it.
fn window_of_backups(catalog: &Catalog) -> Option<Window> {
    let newest = catalog.latest_whole(physical::KIND).and_then(span)?;
    Some(Window { from: newest.ended, to: None })
}

fn verifications(catalog: &Catalog) -> VerifyStatus {
    let mut status = VerifyStatus { last: None, never: 0, damaged: Vec::new() };
    for backup in catalog.backups() {
        match catalog.marks().verification(&backup.id) {
            None => status.never += 1,
            Some(mark) => {
                status.last = status.last.max(Some(mark.since));
                if mark.verb == Verb::Damaged {
                    status.damaged.push(backup.id.clone());
                }
            }
        }
    }
    status
}

async fn last_drill(repository: &Repository, cluster: &ClusterName) -> Result<Option<DrillStatus>> {
    let drills = drill::records(repository, cluster, DRILLS).await?;
    Ok(drills.last().map(|last| DrillStatus {
        backup: last.backup.clone(),
        at: last.finished,
        good: last.good,
        rto_seconds: last.rto_seconds,
        last_good: drills.iter().rev().find(|drill| drill.good).map(|drill| drill.finished),
    }))
}

fn copies(repository: &Repository, catalog: &Catalog) -> Vec<CopyStatus> {
    let answered = catalog.in_copies();
    let of =
        |place: &str| answered.iter().find(|(answered, _)| answered == place).map(|(_, backups)| *backups);
    let all = repository.store().copies();
    all.iter()
        .map(|copy| CopyStatus { place: copy.location().to_owned(), backups: of(copy.location()) })
        .collect()
}

fn sizes(catalog: &Catalog) -> Vec<Size> {
    let all = catalog.backups().len();
    let last = catalog.backups().skip(all.saturating_sub(SIZES));
    last.map(|backup| Size { id: backup.id.clone(), stored_bytes: backup.stored_bytes }).collect()
}
