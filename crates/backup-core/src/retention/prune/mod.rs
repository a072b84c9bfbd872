//! Throwing backups away: the plan, and carrying it out so that it can be interrupted anywhere.
//!
//! First each backup that is to go gets a mark. From then on nothing chooses it. After a wait everything is looked at
//! again: what came to need a backup in between, or pinned it, saves it. Then the records go, so that nothing looks whole
//! that is not, then the objects, then the WAL that no remaining backup needs, and at last the marks. Running it again
//! finishes what was interrupted.

mod apply;
mod gather;
mod wal;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{AnyOf, Decision, RetentionPolicy, Rules, WalNeeds, decide};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::physical::span;
use crate::postgres::Lsn;
use crate::repository::{BackupId, BackupSummary, ClusterName, Repository};
use crate::wal::Stretch;
use gather::Gathered;

/// Prunes the backups and the WAL of a cluster.
#[derive(Clone)]
pub struct Prune {
    repository: Repository,
    cluster: ClusterName,
    rules: Rules,
    also: Vec<Arc<dyn RetentionPolicy>>,
    wait: Duration,
    max_share: u8,
    allow_more: bool,
    observer: Arc<dyn Observer>,
}

/// What is to be done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PrunePlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The time that it is for.
    pub now: Timestamp,
    /// In which days begin.
    pub time_zone: String,
    /// All backups, oldest first.
    pub backups: Vec<Planned>,
    /// The archives of WAL, one for each system identifier.
    pub wal: Vec<WalRemoval>,
    /// How many keys of WAL go: nothing that stays is sealed with them.
    pub wal_keys: u64,
    /// Backups whose removal was interrupted, and which are to be removed for good.
    pub interrupted: Vec<BackupId>,
    /// Sums over what goes.
    pub remove: Sums,
}

/// A backup, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Planned {
    /// Its id.
    pub id: BackupId,
    /// `logical` or `physical`.
    pub kind: String,
    /// Its database; nothing where it is of a whole server or cluster.
    pub database: Option<String>,
    /// When it began.
    pub started: Timestamp,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Whether it stays.
    pub keep: bool,
    /// Why, a short phrase each.
    pub reasons: Vec<String>,
    /// Whether it was marked before, by a prune that was interrupted.
    pub marked: bool,
}

/// What goes of an archive of WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalRemoval {
    /// The system identifier.
    pub system_identifier: String,
    /// From here on everything stays; nothing where all of it does.
    pub needed_from: Option<Lsn>,
    /// Why.
    pub why: String,
    /// The segments that go.
    pub remove: Vec<Stretch>,
    /// How many other objects go: unfinished segments, labels of backups, restore points and decisions of these, and
    /// histories of timelines.
    pub others: u64,
}

/// Sums over what goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sums {
    /// How many backups.
    pub backups: usize,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// How many segments of WAL.
    pub wal_segments: u64,
    /// Their bytes as stored.
    pub wal_bytes: u64,
    /// How many other objects of WAL, keys included.
    pub wal_others: u64,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Backups that are gone.
    pub removed: Vec<BackupId>,
    /// Backups that were to go, and that something needs that came meanwhile.
    pub saved: Vec<BackupId>,
    /// Objects of backups that were deleted, records and marks included.
    pub objects: u64,
    /// Objects of WAL that were deleted.
    pub wal_objects: u64,
    /// What the store did not let go.
    pub left: Vec<Left>,
}

/// Something that could not be deleted: it is locked, or the credentials may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Left {
    /// Its key.
    pub object: String,
    /// What the store said.
    pub why: String,
}

impl Prune {
    /// By these rules. Needs a call of [`plan`](Self::plan) or [`apply`](Self::apply).
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where there are no rules.
    pub fn new(repository: Repository, cluster: ClusterName, rules: Rules) -> Result<Self> {
        rules.policy()?;
        Ok(Self {
            repository,
            cluster,
            rules,
            also: Vec::new(),
            wait: DEFAULT_WAIT,
            max_share: DEFAULT_MAX_SHARE,
            allow_more: false,
            observer: Arc::new(Silent),
        })
    }

    /// Keeps what this rule keeps, too.
    #[must_use]
    pub fn also(mut self, policy: Arc<dyn RetentionPolicy>) -> Self {
        self.also.push(policy);
        self
    }

    /// How long to wait between the marks and the second look; 60 seconds.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// The share of all backups, in percent, that may go at once; 50.
    #[must_use]
    pub fn max_share(mut self, percent: u8) -> Self {
        self.max_share = percent;
        self
    }

    /// More than that may go.
    #[must_use]
    pub fn allow_more(mut self, allow: bool) -> Self {
        self.allow_more = allow;
        self
    }

    /// Who is told what happens.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Says what would be done, and changes nothing.
    pub async fn plan(&self) -> Result<PrunePlan> {
        self.step("looking at the backups");
        let gathered = Gathered::load(&self.repository, &self.cluster).await?;
        self.plan_of(&gathered, Timestamp::now(), &BTreeSet::new()).await
    }

    fn step(&self, what: &str) {
        self.observer.event(&Event::Step { what: what.to_owned() });
    }

    fn policy(&self) -> Result<AnyOf> {
        let mut policy = self.rules.policy()?;
        policy.0.extend(self.also.iter().cloned());
        Ok(policy)
    }

    /// The decisions. `spared` stay, whatever the rules say of them.
    fn decisions(
        &self,
        gathered: &Gathered,
        now: Timestamp,
        spared: &BTreeSet<BackupId>,
    ) -> Result<Vec<Decision>> {
        let known = gathered.known(now, spared);
        Ok(decide(&self.policy()?, &gathered.backups, &known, now))
    }

    /// What is needed of the archive of each system.
    fn wal_needs(&self, gathered: &Gathered, decisions: &[Decision], now: Timestamp) -> Vec<(u64, WalNeeds)> {
        let stays: BTreeSet<&BackupId> = decisions.iter().filter(|d| d.keep).map(|d| &d.id).collect();
        let kept: Vec<&BackupSummary> =
            gathered.backups.iter().filter(|backup| stays.contains(&backup.id)).collect();
        let running = gathered.running_physical();
        let window = self.rules.window();
        let needs = |system: u64| {
            // Backups that only it has may need WAL that only the others have.
            if !gathered.catalog.is_whole() {
                return (
                    system,
                    WalNeeds::everything("a copy of the repository did not answer, and may need it"),
                );
            }
            let current = gathered.system.is_none_or(|current| current == system);
            let of = WalNeeds::of(system, &kept, &gathered.backups, &running, window.as_ref(), current, now);
            (system, of)
        };
        gathered.archives.iter().copied().map(needs).collect()
    }

    async fn plan_of(
        &self,
        gathered: &Gathered,
        now: Timestamp,
        spared: &BTreeSet<BackupId>,
    ) -> Result<PrunePlan> {
        let decisions = self.decisions(gathered, now, spared)?;
        let marks = gathered.catalog.marks();
        let backups: Vec<Planned> = gathered
            .backups
            .iter()
            .zip(&decisions)
            .map(|(backup, decision)| Planned {
                id: decision.id.clone(),
                kind: backup.kind.clone(),
                database: backup.source.get("database").and_then(|name| name.as_str()).map(str::to_owned),
                started: backup.started,
                stored_bytes: backup.stored_bytes,
                keep: decision.keep,
                reasons: decision.reasons.clone(),
                marked: marks.removal(&backup.id).is_some(),
            })
            .collect();
        let mut remove = Sums::default();
        for backup in backups.iter().filter(|backup| !backup.keep) {
            remove.backups += 1;
            remove.stored_bytes += backup.stored_bytes;
        }
        let mut plan = PrunePlan {
            cluster: self.cluster.clone(),
            now,
            time_zone: self.rules.zone.iana_name().unwrap_or("UTC").to_owned(),
            backups,
            wal: Vec::new(),
            wal_keys: 0,
            interrupted: gathered.catalog.half_removed().iter().cloned().collect(),
            remove,
        };
        self.plan_wal(&mut plan, gathered, &decisions).await?;
        Ok(plan)
    }

    /// Refuses to remove too much at once: a wrong rule, or a wrong clock, shows in that. What was marked before was
    /// agreed to.
    fn check_share(&self, plan: &PrunePlan) -> Result<()> {
        let all = plan.backups.len();
        let new = plan.backups.iter().filter(|backup| !backup.keep && !backup.marked).count();
        if self.allow_more || new * 100 <= all * usize::from(self.max_share) {
            return Ok(());
        }
        let message = format!(
            "{new} of {all} backups of {} would be removed, more than {} %",
            self.cluster, self.max_share
        );
        Err(Error::new(ErrorKind::Usage, message)
            .with_hint("look at the plan without --apply; if it is what you want, add --yes"))
    }
}

/// How long a prune waits after its marks: as long as NFS takes a listing for true without asking (`acdirmax`).
pub const DEFAULT_WAIT: Duration = Duration::from_mins(1);
/// The share of all backups, in percent, that may go at once.
pub const DEFAULT_MAX_SHARE: u8 = 50;

impl PrunePlan {
    /// Whether nothing goes.
    pub fn is_nothing(&self) -> bool {
        self.remove == Sums::default() && self.interrupted.is_empty()
    }

    /// Those that go.
    fn removed(&self) -> impl Iterator<Item = &BackupId> {
        self.backups.iter().filter(|backup| !backup.keep).map(|backup| &backup.id)
    }
}

/// Whether a backup is of files, by its id: a run has no record yet.
fn is_physical(id: &BackupId) -> bool {
    id.as_str().split('-').nth(1) == Some(crate::physical::KIND)
}

/// The system that a backup is of.
fn system_of(backup: &BackupSummary) -> Option<u64> {
    span(backup).map(|span| span.system)
}
