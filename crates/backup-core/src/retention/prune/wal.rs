//! The WAL that goes, and what belongs to it: restore points, histories of timelines, keys.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::gather::Gathered;
use super::{Prune, PrunePlan, Pruned, WalRemoval, system_of};
use crate::error::{Error, Result};
use crate::physical::span;
use crate::postgres::Lsn;
use crate::repository::{BackupId, BackupSummary, Repository};
use crate::retention::{Decision, WalNeeds};
use crate::wal::{Archive, SegmentName, Sieve, Surveyor};

/// Objects that are deleted with one call.
const BATCH: usize = 1000;

/// What is needed of an archive, for single objects of it.
struct Needed<'a> {
    needs: &'a WalNeeds,
    /// Size of segments, where a backup says it.
    size: Option<u64>,
}

impl Needed<'_> {
    fn segment(&self, segment: SegmentName, size: Option<u64>) -> bool {
        !self.needs.is_nothing() && size.or(self.size).is_none_or(|size| self.needs.needs(segment, size))
    }

    fn point(&self, timeline: u32, lsn: Lsn) -> bool {
        let needs = |size| self.needs.needs(SegmentName::at(timeline, lsn, size), size);
        !self.needs.is_nothing() && self.size.is_none_or(needs)
    }
}

/// Judges the objects of the archives of a cluster, one archive after the other.
struct Judge<'a> {
    prune: &'a Prune,
    gathered: &'a Gathered,
    /// The backups that stay.
    stay: &'a BTreeSet<&'a BackupId>,
    now: Timestamp,
    sieve: Sieve,
    /// Whether everything was seen: else nothing is known of keys.
    whole: bool,
}

impl<'a> Judge<'a> {
    fn new(
        prune: &'a Prune,
        gathered: &'a Gathered,
        stay: &'a BTreeSet<&'a BackupId>,
        now: Timestamp,
    ) -> Self {
        let whole = gathered.catalog.is_whole();
        Self { prune, gathered, stay, now, sieve: Sieve::default(), whole }
    }

    fn needed<'n>(&self, system: u64, needs: &'n WalNeeds) -> Needed<'n> {
        Needed { needs, size: segment_bytes(&self.gathered.backups, system) }
    }

    fn goes(&mut self, archive: &Archive, needed: &Needed<'_>, key: &str) -> bool {
        self.sieve.goes(
            archive,
            key,
            |segment, size| needed.segment(segment, size),
            |t, lsn| needed.point(t, lsn),
        )
    }

    /// The histories that go, when all other objects of an archive were judged.
    async fn histories(&mut self, system: u64, needed: &Needed<'_>) -> Result<Vec<String>> {
        // What only a copy has that did not answer would be taken for absent.
        for copy in self.prune.repository.each_copy() {
            let seen = self.see(&copy, system, needed).await;
            if let Err(error) = seen {
                tracing::warn!(copy = copy.store().location(), %error, "keys and histories of WAL stay");
                self.whole = false;
            }
        }
        let stay = self.gathered.backups.iter().filter(|backup| self.stay.contains(&backup.id));
        for span in stay.filter_map(span).filter(|span| span.system == system) {
            self.sieve.needs_timeline(span.wal.timeline);
        }
        let archive = self.prune.archive(system);
        let gone = self.sieve.end(&archive, self.now).await?;
        // Nobody knows which timeline a run at work is of.
        Ok(if self.whole && self.gathered.running_physical().is_empty() { gone } else { Vec::new() })
    }

    async fn see(&mut self, copy: &Repository, system: u64, needed: &Needed<'_>) -> Result<()> {
        let archive = Archive::of(copy, &self.prune.cluster, system, None);
        let mut objects = archive.objects();
        while let Some((key, _)) = objects.try_next().await? {
            self.goes(&archive, needed, &key);
        }
        Ok(())
    }

    /// The keys that go, when all archives were judged.
    async fn keys(&self) -> Result<Vec<String>> {
        if !self.whole {
            return Ok(Vec::new());
        }
        self.sieve.keys(&self.prune.repository, &self.prune.cluster, self.now).await
    }
}

impl Prune {
    fn archive(&self, system: u64) -> Archive {
        Archive::of(&self.repository, &self.cluster, system, None)
    }

    /// Adds what goes of the archives to a plan.
    pub(super) async fn plan_wal(
        &self,
        plan: &mut PrunePlan,
        gathered: &Gathered,
        decisions: &[Decision],
    ) -> Result<()> {
        let stay: BTreeSet<&BackupId> = decisions.iter().filter(|d| d.keep).map(|d| &d.id).collect();
        let mut judge = Judge::new(self, gathered, &stay, plan.now);
        for (system, needs) in self.wal_needs(gathered, decisions, plan.now) {
            let (mut segments, mut others) = (Surveyor::default(), 0);
            if needs.from.is_some() {
                let (archive, needed) = (self.archive(system), judge.needed(system, &needs));
                let mut objects = archive.objects();
                while let Some((key, bytes)) = objects.try_next().await? {
                    if judge.goes(&archive, &needed, &key) && !segments.take(&key, bytes) {
                        others += 1;
                    }
                }
                others += judge.histories(system, &needed).await?.len() as u64;
            } else {
                judge.whole = false;
            }
            let remove = segments.finish().rows();
            plan.remove.wal_segments += remove.iter().map(|stretch| stretch.segments).sum::<u64>();
            plan.remove.wal_bytes += remove.iter().map(|stretch| stretch.stored_bytes).sum::<u64>();
            plan.remove.wal_others += others;
            plan.wal.push(WalRemoval {
                system_identifier: system.to_string(),
                needed_from: needs.from.filter(|from| *from != Lsn(u64::MAX)),
                why: needs.why,
                remove,
                others,
            });
        }
        plan.wal_keys = judge.keys().await?.len() as u64;
        plan.remove.wal_others += plan.wal_keys;
        Ok(())
    }

    /// Deletes the WAL that no remaining backup needs, and what belongs to it. Records are gone by now: what they needed is nobody's any more.
    pub(super) async fn delete_wal(
        &self,
        gathered: &Gathered,
        decisions: &[Decision],
        now: Timestamp,
        cancel: &CancellationToken,
        done: &mut Pruned,
    ) -> Result<()> {
        // What the store kept needs its WAL.
        let kept: BTreeSet<&str> =
            done.left.iter().filter_map(|left| left.object.rsplit('/').nth(1)).collect();
        let decisions: Vec<Decision> = decisions
            .iter()
            .cloned()
            .map(|decision| Decision {
                keep: decision.keep || kept.contains(decision.id.as_str()),
                ..decision
            })
            .collect();
        let stay: BTreeSet<&BackupId> = decisions.iter().filter(|d| d.keep).map(|d| &d.id).collect();
        let mut judge = Judge::new(self, gathered, &stay, now);
        self.step("deleting WAL");
        for (system, needs) in self.wal_needs(gathered, &decisions, now) {
            if needs.from.is_none() {
                judge.whole = false;
                continue;
            }
            let (archive, needed) = (self.archive(system), judge.needed(system, &needs));
            let mut objects = archive.objects();
            let mut batch = Vec::with_capacity(BATCH);
            loop {
                let next = objects.try_next().await?;
                let ended = next.is_none();
                batch.extend(next.map(|(key, _)| key).filter(|key| judge.goes(&archive, &needed, key)));
                if batch.len() == BATCH || ended {
                    self.delete_of_wal(std::mem::take(&mut batch), &mut judge, done).await;
                }
                if ended {
                    break;
                }
                if cancel.is_cancelled() {
                    return Err(Error::cancelled());
                }
            }
            let histories = judge.histories(system, &needed).await?;
            self.delete_of_wal(histories, &mut judge, done).await;
        }
        // Last: whatever they open is gone.
        let keys = judge.keys().await?;
        self.delete_of_wal(keys, &mut judge, done).await;
        Ok(())
    }

    async fn delete_of_wal(&self, keys: Vec<String>, judge: &mut Judge<'_>, done: &mut Pruned) {
        let (count, left) = self.delete(keys).await;
        for left in &left {
            judge.sieve.is_left(&left.object);
        }
        done.wal_objects += count;
        done.left.extend(left);
    }
}

/// Size of the segments of a system, by its backups.
fn segment_bytes(backups: &[BackupSummary], system: u64) -> Option<u64> {
    let of_it = backups.iter().rev().filter(|backup| system_of(backup) == Some(system));
    of_it.filter_map(span).map(|span| span.wal.segment_bytes).next()
}
