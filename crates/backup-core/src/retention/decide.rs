//! From the opinions of rules to what is really removed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{AnyOf, Pinned, RetentionPolicy, Verdict, Verified};
use crate::repository::{BackupId, BackupSummary, Marks};

/// What is known of backups beside their records.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Known {
    /// Pins that count.
    pub pinned: BTreeMap<BackupId, Option<Timestamp>>,
    /// Those of which the last verification found damage.
    pub damaged: BTreeSet<BackupId>,
    /// Those that the last verification found good.
    pub verified: BTreeSet<BackupId>,
    /// Runs at work, and what they build on.
    pub running: Vec<(BackupId, Option<BackupId>)>,
    /// What stays whatever the rules say.
    pub spared: BTreeSet<BackupId>,
}

impl Known {
    /// What marks say at a time.
    pub fn of(marks: &Marks, running: &[(BackupId, Option<BackupId>)], now: Timestamp) -> Self {
        use crate::repository::Verb;
        let mut known = Self::default();
        known.running.extend_from_slice(running);
        for id in marks.ids() {
            if let Some(pin) = marks.pin(id, now) {
                let until = if let Verb::Pin(until) = pin.verb { until } else { None };
                known.pinned.insert(id.clone(), until);
            }
            match marks.verification(id).map(|mark| mark.verb) {
                Some(Verb::Damaged) => known.damaged.insert(id.clone()),
                Some(_) => known.verified.insert(id.clone()),
                None => false,
            };
        }
        known
    }
}

/// What becomes of a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// The backup.
    pub id: BackupId,
    /// Whether it stays.
    pub keep: bool,
    /// Why, a short phrase each; never empty.
    pub reasons: Vec<String>,
}

/// Which backups compete with each other: of one kind, of one database, whole or a selection.
fn series(backup: &BackupSummary) -> (&str, &str, &str) {
    let fact = |name: &str| backup.source.get(name).and_then(serde_json::Value::as_str);
    let what = match () {
        // Made when it was imported, but of a time before.
        () if fact("imported").is_some() => "imported",
        () if backup.source.contains_key("databases") => "server",
        () if backup.is_selection() => "selection",
        () => "whole",
    };
    // Physical backups are of the whole cluster.
    (&backup.kind, what, fact("database").unwrap_or_default())
}

/// Decides which of a cluster's backups stay: those that the policy keeps of each kind and database, and
/// - what is pinned, what has a time in the future, and what a run at work builds on;
/// - the newest good one, and the newest verified one, of each kind and database;
/// - what is not good, for as long as no good one followed it. It never pushes out a good one;
/// - and all that these build on.
///
/// `backups` are committed ones, oldest first; the decisions come in their order. It is pure.
pub fn decide(
    policy: &dyn RetentionPolicy,
    backups: &[BackupSummary],
    known: &Known,
    now: Timestamp,
) -> Vec<Decision> {
    let by_id: BTreeMap<&BackupId, &BackupSummary> = backups.iter().map(|b| (&b.id, b)).collect();
    let mut reasons: BTreeMap<BackupId, Vec<String>> = BTreeMap::new();
    let mut keep = |id: &BackupId, why: String| reasons.entry(id.clone()).or_default().push(why);

    let mut bad: BTreeMap<&BackupId, &str> = BTreeMap::new();
    let mut groups: BTreeMap<_, Vec<BackupSummary>> = BTreeMap::new();
    let mut not_good: BTreeMap<_, Vec<&BackupSummary>> = BTreeMap::new();
    for backup in backups {
        if backup.started > now {
            keep(&backup.id, "its time lies in the future".to_owned());
            continue;
        }
        let Some(why) = what_is_bad(backup, &by_id, known) else {
            groups.entry(series(backup)).or_default().push(backup.clone());
            continue;
        };
        bad.insert(&backup.id, why);
        not_good.entry(series(backup)).or_default().push(backup);
    }
    let of_marks = AnyOf(vec![std::sync::Arc::new(Verified(known.verified.clone()))]);
    for group in groups.values() {
        if let Some(newest) = group.last() {
            keep(&newest.id, "the newest good one of its kind".to_owned());
        }
        for Verdict { id, reasons, .. } in
            policy.decide(group, now).into_iter().chain(of_marks.decide(group, now)).filter(|v| v.keep)
        {
            for why in reasons {
                keep(&id, why);
            }
        }
    }
    for (series, backups) in &not_good {
        let newest = groups.get(series).and_then(|group| group.last());
        for backup in backups {
            if newest.is_none_or(|good| (good.started, &good.id) < (backup.started, &backup.id)) {
                keep(&backup.id, "no good one followed it".to_owned());
            }
        }
    }
    for verdict in Pinned(known.pinned.clone()).decide(backups, now).into_iter().filter(|v| v.keep) {
        for why in verdict.reasons {
            keep(&verdict.id, why);
        }
    }
    for id in &known.spared {
        keep(id, "it was not to go a moment ago".to_owned());
    }
    for (run, parent) in &known.running {
        if let Some(parent) = parent {
            keep(parent, format!("{run} builds on it, which is at work"));
        }
    }
    // What stays needs what it builds on. Newest first, so that one pass reaches every end of a chain; a child has the
    // later id, unless the clocks of two hosts differ: then another pass is made.
    loop {
        let mut found = false;
        for backup in backups.iter().rev().filter(|b| reasons.contains_key(&b.id)).collect::<Vec<_>>() {
            let Some(parent) = &backup.parent else { continue };
            let why = format!("{} builds on it", backup.id);
            let known = reasons.entry(parent.clone()).or_default();
            if !known.contains(&why) && !known.iter().any(|why| why.ends_with(BUILDS)) {
                found |= known.is_empty();
                known.push(why);
            }
        }
        if !found {
            break;
        }
    }
    backups
        .iter()
        .map(|backup| {
            let kept = reasons.remove(&backup.id);
            let why = bad
                .get(&backup.id)
                .map_or("no rule keeps it".to_owned(), |bad| format!("{bad}, and a good one followed it"));
            Decision {
                id: backup.id.clone(),
                keep: kept.is_some(),
                reasons: kept.unwrap_or_else(|| vec![why]),
            }
        })
        .collect()
}

/// How the reason ends that a child is.
const BUILDS: &str = " builds on it";

/// Why a backup does not count; nothing where it is good.
fn what_is_bad(
    backup: &BackupSummary,
    all: &BTreeMap<&BackupId, &BackupSummary>,
    known: &Known,
) -> Option<&'static str> {
    if !backup.is_complete() {
        return Some("it lacks databases");
    }
    let mut at = backup;
    // A chain is no longer than the catalog, unless it runs in a circle.
    for step in 0..=all.len() {
        if known.damaged.contains(&at.id) {
            return Some(if step == 0 { "it is damaged" } else { "it builds on a damaged one" });
        }
        match &at.parent {
            None => return None,
            Some(parent) => match all.get(parent) {
                Some(found) => at = found,
                None => return Some("what it builds on is gone"),
            },
        }
    }
    Some("it builds on itself")
}
