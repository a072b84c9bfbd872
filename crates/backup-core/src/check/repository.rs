use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use ulid::Ulid;

use super::Report;
use crate::encryptor::Encryptor;
use crate::error::{Error, Result};
use crate::physical::span;
use crate::repository::{
    BackupId, BackupSummary, Catalog, ClusterName, DEFAULT_GRACE, Marks, Repository, open_cipher, signed,
};
use crate::store::{Created, read_whole};
use crate::wal::{Archive, History, Inventory};

const AREA: &str = "repository";
/// How far the clocks may be apart before ids and ages mislead. A run does not start beyond an hour.
const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(5);

/// Looks at the repository of a cluster: whether it can be written and read, what a backup needs of it, and whether the
/// newest backups can be used. `encryptor` opens backups; without one nothing is known of the keys.
pub async fn check_repository(
    repository: &Repository,
    cluster: &ClusterName,
    encryptor: Option<Arc<dyn Encryptor>>,
    report: &mut Report,
) {
    let writes = write_and_read(repository, report).await;
    report.take(AREA, writes);
    let abilities = repository.abilities();
    if !abilities.conditional_create {
        report.warn(
            AREA,
            "the store cannot refuse to create what exists: two writers cannot be told apart, and dead runs are not swept",
            "use a store with conditional writes (S3, GCS, Azure, a recent MinIO or Garage)",
        );
    }
    if !abilities.delete {
        report.warn(
            AREA,
            "these credentials may not delete: what failed runs leave, and old backups, stay",
            "nothing, where the bucket's own rules or another host's credentials delete; prune needs the right",
        );
    }
    let loaded = async {
        let catalog = Catalog::load(repository, cluster).await?;
        Ok((catalog, Marks::load(repository, cluster).await?))
    };
    let loaded = loaded.await;
    let Some((catalog, marks)) = report.take(AREA, loaded) else { return };
    space(repository, &catalog, report).await;
    unfinished(&catalog, report);
    for backup in catalog.backups().filter(|backup| marks.is_damaged(&backup.id)) {
        report.bad(
            AREA,
            format!("backup {} is damaged: a verification found it", backup.id),
            "pgark verify shows what; another copy can repair it, else make a new backup",
        );
    }
    let opened = keys(repository, &catalog, encryptor.as_ref(), report).await;
    report.take("keys", opened);
    let gaps = wal(repository, &catalog, report).await;
    report.take("archiving", gaps);
}

/// Creates an object, reads it, and removes it.
async fn write_and_read(repository: &Repository, report: &mut Report) -> Result<()> {
    let store = repository.store();
    let key = format!("probe/{}", Ulid::generate());
    let body = Bytes::from_static(b"pgark check");
    if store.create(&key, body.clone()).await? == Created::Other
        || read_whole(&**store, &key, 64).await? != body
    {
        return Err(Error::internal(format!("what was written to {} reads differently", store.location())));
    }
    let apart = store.head(&key).await?.modified.duration_since(Timestamp::now());
    let deleted = store.delete(&[key]).await.into_iter().all(|answer| answer.is_ok());
    let and_deleted = if deleted { ", and deleted" } else { "" };
    report.good(AREA, format!("{} can be written, read{and_deleted}", store.location()));
    if apart.abs() > CLOCKS_APART {
        report.bad(
            AREA,
            format!("the clocks of this host and of the store are {} s apart", apart.abs().as_secs()),
            "set the clock of this host (NTP): backups are sorted and kept by time",
        );
    }
    Ok(())
}

/// Whether the next backup has room, going by the last of each kind.
async fn space(repository: &Repository, catalog: &Catalog, report: &mut Report) {
    let Ok(Some(free)) = repository.store().free_bytes().await else { return };
    let full = |backup: &&BackupSummary| backup.parent.is_none();
    let expected = ["logical", "physical"]
        .iter()
        .filter_map(|kind| catalog.backups().rev().filter(full).find(|backup| backup.kind == *kind))
        .map(|backup| backup.stored_bytes)
        .max();
    let Some(expected) = expected else { return };
    let (free_mib, expected_mib) = (free >> 20, expected >> 20);
    // Databases grow, and the backup before it is not gone yet.
    let found = format!("{free_mib} MiB are free, and the last backup took {expected_mib}");
    if free < expected + expected / 5 {
        report.bad(AREA, found, "free some space: pgark prune removes old backups");
    } else if free < 3 * expected {
        report.warn(AREA, found, "free some space, or keep fewer backups");
    } else {
        report.good(AREA, found);
    }
}

fn unfinished(catalog: &Catalog, report: &mut Report) {
    let old = Timestamp::now() - signed(DEFAULT_GRACE);
    for run in catalog.unfinished().iter().filter(|run| run.id.started() < old) {
        report.warn(
            AREA,
            format!("the run {} began more than a day ago and has not ended", run.id),
            "a backup removes what dead runs left; where it is at work, nothing",
        );
    }
}

/// Whether the keys at hand open the newest backup of each kind.
async fn keys(
    repository: &Repository,
    catalog: &Catalog,
    encryptor: Option<&Arc<dyn Encryptor>>,
    report: &mut Report,
) -> Result<()> {
    let newest: Vec<&BackupId> = ["physical", "logical"]
        .iter()
        .filter_map(|kind| catalog.latest_whole(kind))
        .filter(|backup| backup.encryption.is_some())
        .map(|backup| &backup.id)
        .collect();
    if newest.is_empty() {
        return Ok(());
    }
    if encryptor.is_none() {
        report.warn(
            "keys",
            "no identity was given: whether the backups can be opened is not known",
            "check on a host that has it, with --identity; a host that only makes backups needs none",
        );
        return Ok(());
    }
    for id in newest {
        let record = repository.record(catalog.cluster(), id).await?;
        match open_cipher(repository, &record, encryptor).await {
            Ok(_) => report.good("keys", format!("the identity opens {id}")),
            Err(error) => report.failed("keys", &error),
        }
    }
    Ok(())
}

/// Whether recovery from the newest physical backup meets a gap.
async fn wal(repository: &Repository, catalog: &Catalog, report: &mut Report) -> Result<()> {
    let Some(newest) = catalog.latest_whole(crate::physical::KIND) else { return Ok(()) };
    let Some(span) = span(newest) else { return Ok(()) };
    let archive = Archive::of(repository, catalog.cluster(), span.system, None);
    let inventory = Inventory::load(&archive).await?;
    if inventory.survey.segments() == 0 {
        report.warn(
            "archiving",
            format!("there is no WAL archive: what was written after {} is lost with the server", newest.id),
            "archive_command = 'pgark wal push %p', or pgark wal receive",
        );
        return Ok(());
    }
    let timeline = inventory.leaves(span.wal).last().copied().unwrap_or(span.wal.timeline);
    let history = inventory.history(timeline).unwrap_or_else(|_| History::first(span.wal.timeline));
    let reach = inventory.reach(span.wal, &history);
    match reach.gap {
        Some(gap) => report.bad(
            "archiving",
            format!("from {} recovery comes to {} only: segment {gap} is missing or in conflict", newest.id, reach.to),
            "push it again where the server still has it (pgark wal list shows conflicts), and make a new backup now",
        ),
        None => report.good("archiving", format!("from {} recovery comes to {} without a gap", newest.id, reach.to)),
    }
    Ok(())
}
