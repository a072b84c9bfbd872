//! Drills as frontends ask for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::drill::{Check, Compare, DrillOptions, DrillRecord, drill};
use backup_core::logical::{self, Reference};
use backup_core::physical::{self, Recovery, Target, span};
use backup_core::repository::{BackupRecord, BackupSummary, Catalog, ClusterName};
use backup_core::wal::Archive;
use backup_core::{CancellationToken, Encryptor, Error, ErrorKind, Observer, Repository, Result};
use serde::Deserialize;

use super::Settings;

/// `[drill]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct DrillTable {
    #[serde(default)]
    checks: Vec<String>,
    work_dir: Option<PathBuf>,
    image: Option<String>,
    #[serde(default)]
    docker: bool,
    compare: Option<String>,
    #[serde(default)]
    databases: Vec<String>,
    user: Option<String>,
    #[serde(default)]
    settings: BTreeMap<String, String>,
}

/// How drills are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrillSettings {
    /// The user's own checks.
    pub checks: Vec<Check>,
    /// The folder in which drills make theirs.
    pub work_dir: Option<PathBuf>,
    /// The image of the server where this host has no programs of its version.
    pub image: Option<String>,
    /// Takes a container even where this host has them.
    pub docker: bool,
    /// The logical backup that physical ones are compared with where neither backup nor target is given: `latest`, an id,
    /// or the beginning of one.
    pub compare: Option<String>,
    /// The databases that the checks run in.
    pub databases: Vec<String>,
    /// The superuser of the cluster; `postgres` by default.
    pub user: Option<String>,
    /// Settings of the throwaway server.
    pub settings: BTreeMap<String, String>,
}

impl DrillTable {
    pub(super) fn settings(self, below: impl Fn(&Path) -> PathBuf) -> DrillSettings {
        DrillSettings {
            checks: self.checks.into_iter().map(Check::statement).collect(),
            work_dir: self.work_dir.map(|path| below(&path)),
            image: self.image,
            docker: self.docker,
            compare: self.compare,
            databases: self.databases,
            user: self.user,
            settings: self.settings,
        }
    }
}

/// What is drilled.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DrillWanted {
    /// `latest`, an id, or the beginning of one; by default the newest, or with a target the newest from before it.
    pub backup: Option<String>,
    /// Only backups of this kind.
    pub kind: Option<String>,
    /// How a physical backup recovers.
    pub recovery: Recovery,
    /// The logical backup that a physical one is compared with: `latest`, an id, or the beginning of one. Without a target
    /// it recovers up to that backup's snapshot.
    pub compare: Option<String>,
}

impl Settings {
    /// Drills a backup: see [`drill`].
    pub async fn run_drill(
        &self,
        cluster: &ClusterName,
        wanted: DrillWanted,
        observer: Option<Arc<dyn Observer>>,
        cancel: &CancellationToken,
    ) -> Result<DrillRecord> {
        let repository = self.open_repository().await?;
        let catalog = Catalog::load(&repository, cluster).await?;
        let mut recovery = wanted.recovery.clone();
        let chosen = choose(&catalog, &wanted)?;
        let mut compare = None;
        let (record, archive) = if chosen.iter().all(|backup| backup.kind == physical::KIND) {
            compare = self.compare_with(&repository, &catalog, &wanted, &mut recovery, cancel).await?;
            let planned = self.plan_drill(&repository, cluster, &chosen, &mut recovery).await;
            let (record, archive) = match &compare {
                Some(compare) => {
                    let with = compare.reference().backup();
                    let planned =
                        planned.map_err(|e| e.doing(format!("recovering up to compare with {with}")))?;
                    check_system(compare.reference(), &planned.0)?;
                    planned
                }
                None => planned?,
            };
            (record, archive)
        } else if wanted.compare.is_some() {
            return Err(Error::new(ErrorKind::Usage, "only physical backups are compared with another one")
                .with_hint("leave --compare out: a logical backup is compared with its own counts"));
        } else if recovery == Recovery::default() {
            let id = &chosen.first().ok_or_else(|| none(&wanted))?.id;
            (repository.record(cluster, id).await?, None)
        } else {
            return Err(Error::new(ErrorKind::Usage, "only physical backups recover to a target")
                .with_hint("leave the target out, or name a physical backup"));
        };
        let mut options = DrillOptions::default();
        options.work_dir.clone_from(&self.drill.work_dir);
        options.tools = self.tools();
        options.docker = self.drill.docker;
        options.image.clone_from(&self.drill.image);
        options.settings = self.drill.settings.clone().into_iter().collect();
        if let Some(user) = &self.drill.user {
            options.user.clone_from(user);
        }
        options.checks.clone_from(&self.drill.checks);
        options.databases.clone_from(&self.drill.databases);
        options.recovery = recovery;
        options.compare = compare;
        options.archive = archive;
        options.encryptor = self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
        options.jobs = self.jobs;
        options.observer = observer;
        drill(&repository, &record, options, cancel).await
    }

    /// What a physical backup is compared with, and the recovery to its moment where no target was given.
    async fn compare_with(
        &self,
        repository: &Repository,
        catalog: &Catalog,
        wanted: &DrillWanted,
        recovery: &mut Recovery,
        cancel: &CancellationToken,
    ) -> Result<Option<Compare>> {
        let has_target = recovery.target != Target::Latest;
        // What is compared as a rule chooses backup and moment by itself.
        let is_named = wanted.backup.as_deref().is_some_and(|named| named != "latest");
        let usual = self.drill.compare.as_ref().filter(|_| !has_target && !is_named);
        let Some(named) = wanted.compare.as_ref().or(usual) else { return Ok(None) };
        let found = if named == "latest" {
            catalog.latest_whole(logical::KIND).ok_or_else(|| {
                Error::new(ErrorKind::BackupNotFound, "there is no logical backup to compare with")
                    .with_hint("pgark backup makes one")
            })?
        } else {
            catalog.find(named)?
        };
        let record = repository.record(catalog.cluster(), &found.id).await?;
        let encryptor = self.reader()?.map(|age| Arc::new(age) as Arc<dyn Encryptor>);
        let reference = Reference::open(repository, &record, encryptor, cancel).await?;
        if has_target {
            return Ok(Some(Compare::with(reference)));
        }
        Compare::at_snapshot(reference, recovery).map(Some)
    }

    /// The backup to restore, and the archive where recovery needs it.
    async fn plan_drill(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        backups: &[BackupSummary],
        recovery: &mut Recovery,
    ) -> Result<(BackupRecord, Option<Archive>)> {
        let (plan, archived) = self.plan_recovery(repository, cluster, backups, recovery).await?;
        recovery.timeline = Some(plan.timeline);
        let span = span(&plan.backup);
        let brings_wal = span.as_ref().is_none_or(|span| span.wal.brings_wal);
        let needs = archived && !(brings_wal && recovery.target == Target::Immediate);
        let archive = match span {
            Some(span) if needs => Some(self.archive_of(repository, cluster, span.system)?),
            _ => None,
        };
        Ok((repository.record(cluster, &plan.backup.id).await?, archive))
    }
}

/// Refuses to compare two clusters.
fn check_system(reference: &Reference, record: &BackupRecord) -> Result<()> {
    let (Some(of), Some(span)) = (reference.system(), span(&record.summary)) else { return Ok(()) };
    if of == span.system {
        return Ok(());
    }
    let message = format!("backups {} and {} are of different clusters", record.id, reference.backup());
    Err(Error::new(ErrorKind::Usage, message)
        .with_hint("name backups from after the last initdb or pg_upgrade"))
}

fn none(wanted: &DrillWanted) -> Error {
    let kind = wanted.kind.as_deref().map(|kind| format!("{kind} ")).unwrap_or_default();
    Error::new(ErrorKind::BackupNotFound, format!("there is no {kind}backup to drill"))
        .with_hint("pgark list shows the backups that there are")
}

/// The backups to choose from: one that is named, every physical one for a target, else the newest.
fn choose(catalog: &Catalog, wanted: &DrillWanted) -> Result<Vec<BackupSummary>> {
    let of_kind = |backup: &&BackupSummary| wanted.kind.as_ref().is_none_or(|kind| backup.kind == *kind);
    if let Some(named) = wanted.backup.as_deref().filter(|named| *named != "latest") {
        return Ok(vec![catalog.find(named)?.clone()]);
    }
    if wanted.compare.is_some() && wanted.kind.is_none() {
        let physical: Vec<_> =
            catalog.staying().filter(|backup| backup.kind == physical::KIND).cloned().collect();
        return if physical.is_empty() { Err(none(wanted)) } else { Ok(physical) };
    }
    let newest = catalog.staying().filter(of_kind).rfind(|backup| backup.is_complete());
    let newest = newest.ok_or_else(|| none(wanted))?;
    if wanted.recovery.target == Target::Latest && newest.kind != physical::KIND {
        return Ok(vec![newest.clone()]);
    }
    Ok(catalog.staying().filter(|backup| backup.kind == physical::KIND).cloned().collect())
}
