//! What a backup asks of an archive that has its WAL.

use std::fmt;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};

use super::archive::Archive;
use super::name::{SegmentName, WalName};
use crate::error::{Error, ErrorKind, Result};

/// How many segments are looked for at once.
const LISTS: usize = 16;

/// An archive of WAL, as far as a backup needs it that has none of its own.
#[async_trait]
pub trait ArchivedWal: fmt::Debug + Send + Sync {
    /// The system identifier of the cluster that it is of.
    fn system(&self) -> u64;

    /// Whether there is anything in it.
    async fn has_any(&self) -> Result<bool>;

    /// Those of the segments that it does not have whole, in their order.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where it has several of a name that differ, and those of the store.
    async fn missing(&self, segments: &[SegmentName]) -> Result<Vec<SegmentName>>;
}

#[async_trait]
impl ArchivedWal for Archive {
    fn system(&self) -> u64 {
        self.system()
    }

    async fn has_any(&self) -> Result<bool> {
        Ok(self.newest(u32::MAX).await?.is_some())
    }

    async fn missing(&self, segments: &[SegmentName]) -> Result<Vec<SegmentName>> {
        let looked: Vec<(SegmentName, bool)> = futures::stream::iter(segments.iter().copied())
            .map(|segment| async move {
                let stored = self.stored(&WalName::Segment(segment)).await?;
                if stored.in_conflict() {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("the archive has several files {segment} that differ"),
                    )
                    .with_hint("pgark wal resolve says which one counts"));
                }
                Ok((segment, stored.is_complete()))
            })
            .buffered(LISTS)
            .try_collect()
            .await?;
        Ok(looked.into_iter().filter(|(_, whole)| !whole).map(|(segment, _)| segment).collect())
    }
}
