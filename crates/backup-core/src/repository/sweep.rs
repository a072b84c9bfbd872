//! Removes what dead runs left, by the rule that a run is either committed or abandoned, never both.

use std::time::Duration;

use jiff::Timestamp;

use super::run::{abandon, abandon_everywhere, delete_leftovers, leftovers, signed};
use super::{BackupId, Catalog, Repository, layout};
use crate::error::Result;

/// How long a run may store nothing before it counts as dead.
pub const DEFAULT_GRACE: Duration = Duration::from_hours(24);

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Runs that were declared dead.
    pub abandoned: Vec<BackupId>,
    /// Objects that were deleted.
    pub deleted: u64,
}

impl Repository {
    /// Sweeps the unfinished runs of `catalog`: whichever has stored nothing for longer than `grace` is
    /// marked as abandoned, so that it can never commit, and what it stored is deleted.
    ///
    /// `store_now` is the time by the store's clock: when an object that was just written was written.
    pub async fn sweep(&self, catalog: &Catalog, grace: Duration, store_now: Timestamp) -> Result<Swept> {
        let mut swept = Swept::default();
        let store = &**self.store();
        for id in catalog.unfinished().iter().map(|u| &u.id) {
            let folder = layout::backup(catalog.cluster(), id);
            let newest = leftovers(store, &folder).await?.into_iter().map(|meta| meta.modified).max();
            if newest.is_none_or(|newest| store_now.duration_since(newest) <= signed(grace)) {
                continue;
            }
            if abandon(self, catalog.cluster(), id).await? {
                swept.abandoned.push(id.clone());
                swept.deleted += delete_leftovers(store, &folder).await?;
            }
        }
        // A run that was slow, not dead, may have stored more after it was given up.
        for id in catalog.abandoned() {
            let folder = layout::backup(catalog.cluster(), id);
            if !store.copies().is_empty() && !leftovers(store, &folder).await?.is_empty() {
                abandon_everywhere(self, catalog.cluster(), id).await?;
            }
            swept.deleted += delete_leftovers(store, &folder).await?;
        }
        swept.deleted += store.sweep_temporaries(grace).await?;
        Ok(swept)
    }
}
