//! Carrying a plan out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::gather::forget_removed;
use super::{Gathered, Left, Prune, PrunePlan, Pruned};
use crate::audit::{self, Act, Outcome};
use crate::error::{Error, Result};
use crate::repository::{BackupId, BackupSummary, Catalog, Verb, check_clock, layout};
use crate::retention::Decision;
use crate::store::Store;

/// Marks, and folders of backups, that are worked on at once.
const AT_ONCE: usize = 8;
/// Objects that are deleted with one call.
const BATCH: usize = 1000;
/// For so long the marks of a backup that is gone stay: whoever read an old index may still write the backup into a new
/// one.
const MARKS_STAY: SignedDuration = SignedDuration::from_hours(24);

impl Prune {
    /// Makes a plan and carries it out.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) where too much would go, [`ClockSkew`](crate::ErrorKind::ClockSkew) where
    /// this host's clock is not the store's. What the store does not let go is no error, but in the answer.
    pub async fn apply(&self, cancel: &CancellationToken) -> Result<(PrunePlan, Pruned)> {
        self.step("looking at the backups");
        let first = Gathered::load(&self.repository, &self.cluster).await?;
        // What was just written has the store's time.
        let now = first.catalog.write_index(&self.repository).await?;
        check_clock(Timestamp::now(), now)?;
        let plan = self.plan_of(&first, now, &BTreeSet::new()).await?;
        self.check_share(&plan)?;
        if plan.is_nothing() {
            let mut done = Pruned::default();
            self.take_back(&first, &plan, &mut done).await?;
            self.forget_marks(&first.catalog, now, &mut done).await;
            return Ok((plan, done));
        }
        let act = || Act::new("prune").backups(plan.removed());
        audit::note_if_possible(&self.repository, &self.cluster, act(), Outcome::Begun).await;
        let done = self.carry_out(first, &plan, now, cancel).await;
        let mut noted = Act::new("prune");
        if let Ok(done) = &done {
            noted = noted.backups(&done.removed).detail("wal_objects", done.wal_objects);
        }
        audit::note_if_possible(&self.repository, &self.cluster, noted, Outcome::of(&done)).await;
        done.map(|done| (plan, done))
    }

    async fn carry_out(
        &self,
        first: Gathered,
        plan: &PrunePlan,
        now: Timestamp,
        cancel: &CancellationToken,
    ) -> Result<Pruned> {
        let mut done = Pruned::default();
        self.take_back(&first, plan, &mut done).await?;
        let going: BTreeSet<BackupId> = plan.removed().cloned().collect();
        if !going.is_empty() {
            self.step("marking what goes");
            self.mark(plan.backups.iter().filter(|b| !b.keep && !b.marked).map(|b| &b.id), Verb::Remove)
                .await?;
            self.wait_after_marks(&first, plan, now, cancel).await?;
        }
        // Thousands of backups take their memory: one look at them at a time.
        drop(first);
        self.step("looking again");
        let second = Gathered::load(&self.repository, &self.cluster).await?;
        // Whatever was to stay, and whatever came since, stays for this time.
        let spared: BTreeSet<BackupId> =
            second.backups.iter().map(|b| &b.id).filter(|id| !going.contains(id)).cloned().collect();
        let decisions = self.decisions(&second, now, &spared)?;
        let saved: Vec<&BackupId> =
            decisions.iter().filter(|d| d.keep && going.contains(&d.id)).map(|d| &d.id).collect();
        self.mark(saved.iter().copied(), Verb::Keep).await?;
        done.saved.extend(saved.into_iter().cloned());
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        self.step("deleting backups");
        let mut gone = self.delete_records(&second, &decisions, &mut done).await;
        done.removed.clone_from(&gone);
        gone.extend(second.catalog.half_removed().iter().cloned());
        self.delete_objects(&gone, &mut done).await?;
        if plan.remove.wal_segments + plan.remove.wal_others > 0 {
            self.delete_wal(&second, &decisions, now, cancel, &mut done).await?;
        }
        drop(second);
        self.step("tidying");
        let mut after = Catalog::load_whole(&self.repository, &self.cluster).await?;
        forget_removed(&self.repository, &mut after).await?;
        after.write_index(&self.repository).await?;
        self.forget_marks(&after, now, &mut done).await;
        Ok(done)
    }

    /// Backups that an earlier prune marked and that stay after all.
    async fn take_back(&self, first: &Gathered, plan: &PrunePlan, done: &mut Pruned) -> Result<()> {
        let stay = plan.backups.iter().filter(|backup| backup.keep && backup.marked).map(|b| &b.id);
        let stay: Vec<&BackupId> = stay.filter(|id| first.catalog.is_being_removed(id)).collect();
        self.mark(stay.iter().copied(), Verb::Keep).await?;
        done.saved.extend(stay.into_iter().cloned());
        Ok(())
    }

    async fn mark(&self, ids: impl Iterator<Item = &BackupId>, verb: Verb) -> Result<()> {
        futures::stream::iter(ids)
            .map(|id| self.repository.mark(&self.cluster, id, verb, None))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Waits until every mark is as old as it has to be. Those of an interrupted prune often are.
    async fn wait_after_marks(
        &self,
        first: &Gathered,
        plan: &PrunePlan,
        now: Timestamp,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let age = |id: &BackupId| {
            let since = first.catalog.marks().removal(id).map_or(now, |mark| mark.since);
            Duration::try_from(now.duration_since(since)).unwrap_or_default()
        };
        let youngest = plan.removed().map(age).min().unwrap_or_default();
        let wait = self.wait.saturating_sub(youngest);
        if wait.is_zero() {
            return Ok(());
        }
        self.step(&format!("waiting {} s before anything is deleted", wait.as_secs()));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled()),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    /// Deletes the records of what goes: increments before what they build on. Where the store keeps a record, all that
    /// the backup builds on stays as well. Those whose record is gone.
    async fn delete_records(
        &self,
        gathered: &Gathered,
        decisions: &[Decision],
        done: &mut Pruned,
    ) -> Vec<BackupId> {
        let marks = gathered.catalog.marks();
        let goes = |id: &BackupId| decisions.iter().any(|d| !d.keep && d.id == *id);
        let mut left: BTreeMap<&BackupId, &BackupSummary> = gathered
            .backups
            .iter()
            .filter(|backup| marks.removal(&backup.id).is_some() && goes(&backup.id))
            .map(|backup| (&backup.id, backup))
            .collect();
        let mut gone = Vec::new();
        loop {
            let parents: BTreeSet<&BackupId> = left.values().filter_map(|b| b.parent.as_ref()).collect();
            let leaves: Vec<BackupId> =
                left.keys().filter(|id| !parents.contains(**id)).map(|id| (*id).clone()).collect();
            if leaves.is_empty() {
                return gone;
            }
            let key = |id: &BackupId| format!("{}/{}", layout::backup(&self.cluster, id), layout::RECORD);
            let keys: Vec<String> = leaves.iter().map(key).collect();
            for ((id, key), deleted) in leaves.iter().zip(&keys).zip(self.store().delete(&keys).await) {
                match deleted {
                    Ok(()) => {
                        done.objects += 1;
                        gone.push(id.clone());
                        left.remove(id);
                    }
                    Err(error) => {
                        done.left.push(Left { object: key.clone(), why: error.to_string() });
                        let mut at = left.remove(id);
                        while let Some(parent) = at.and_then(|backup| backup.parent.as_ref()) {
                            at = left.remove(parent);
                        }
                    }
                }
            }
        }
    }

    fn store(&self) -> &dyn Store {
        &**self.repository.store()
    }

    /// Deletes what is left of backups without a record: the announcement last, which says what the rest is.
    async fn delete_objects(&self, ids: &[BackupId], done: &mut Pruned) -> Result<()> {
        let deleted: Vec<(u64, Vec<Left>)> = futures::stream::iter(ids)
            .map(|id| async move {
                let folder = layout::backup(&self.cluster, id);
                let mut objects: Vec<String> =
                    self.store().walk(&folder).map_ok(|meta| meta.key).try_collect().await?;
                let announced = |key: &str| key.ends_with(&format!("/{}", layout::STARTED));
                let last: Vec<String> = objects.extract_if(.., |key| announced(key)).collect();
                let (mut count, mut left) = self.delete(objects).await;
                if left.is_empty() {
                    let (more, kept) = self.delete(last).await;
                    count += more;
                    left = kept;
                }
                Ok::<_, Error>((count, left))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for (count, left) in deleted {
            done.objects += count;
            done.left.extend(left);
        }
        Ok(())
    }

    pub(super) async fn delete(&self, keys: Vec<String>) -> (u64, Vec<Left>) {
        let (mut count, mut left) = (0, Vec::new());
        for batch in keys.chunks(BATCH) {
            for (key, deleted) in batch.iter().zip(self.store().delete(batch).await) {
                match deleted {
                    Ok(()) => count += 1,
                    Err(error) => left.push(Left { object: key.clone(), why: error.to_string() }),
                }
            }
        }
        (count, left)
    }

    /// Deletes the marks of backups that are gone for a while.
    async fn forget_marks(&self, catalog: &Catalog, now: Timestamp, done: &mut Pruned) {
        let marks = catalog.marks();
        let old =
            |id: &&BackupId| marks.of(id).iter().all(|mark| now.duration_since(mark.since) > MARKS_STAY);
        let keys: Vec<String> = marks
            .ids()
            .filter(|id| !catalog.has_folder(id))
            .filter(old)
            .flat_map(|id| marks.of(id))
            .map(|mark| mark.key.clone())
            .collect();
        for result in self.store().delete(&keys).await {
            match result {
                Ok(()) => done.objects += 1,
                Err(error) => tracing::debug!(%error, "a mark stays"),
            }
        }
    }
}
