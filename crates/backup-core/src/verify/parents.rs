//! The backups that an increment builds on. They are not read, but what is cheaply seen is told: that one of them is gone,
//! lacks an object, or was found damaged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Depth, Finding, Report};
use crate::error::{ErrorKind, Result};
use crate::repository::{BackupId, BackupRecord, Marks, Repository, has_key, lacking, layout};

/// What is known of backups that others build on, in each place. Cloning shares it.
#[derive(Clone, Default)]
pub struct Parents(Arc<Mutex<HashMap<Place, Known>>>);

/// A backup in a place.
type Place = (String, BackupId);

/// What is known of a backup.
#[derive(Clone, Default)]
struct Known {
    parent: Option<BackupId>,
    /// What is wrong with it.
    wrong: Vec<Finding>,
}

fn place(repository: &Repository, id: &BackupId) -> Place {
    (repository.store().location().to_owned(), id.clone())
}

impl Parents {
    /// What is wrong with the backups that one builds on.
    pub(super) async fn look(&self, repository: &Repository, record: &BackupRecord) -> Result<Vec<Finding>> {
        let (mut wrong, mut seen) = (Vec::new(), vec![record.id.clone()]);
        let mut next = record.parent.clone();
        while let Some(id) = next {
            if seen.contains(&id) {
                let why = format!("backup {} builds on itself, by its records", record.id);
                wrong.push(of_parent(&id, None, false, &why));
                break;
            }
            let at = place(repository, &id);
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned();
            let known = if let Some(known) = known {
                known
            } else {
                let known = look_at(repository, record, &id).await?;
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(at, known.clone());
                known
            };
            wrong.extend(known.wrong);
            next = known.parent;
            seen.push(id);
        }
        Ok(wrong)
    }

    /// What the verification of a backup says to those that build on it. Stored bytes, or a sample, that are good do not
    /// take back what an earlier verification found.
    pub(super) fn note(&self, repository: &Repository, record: &BackupRecord, report: &Report) {
        let mut own = report.findings.iter().filter(|finding| finding.parent.is_none());
        let wrong = match own.next() {
            Some(first) => {
                let why = format!("it is damaged: {}: {}", first.what, first.why);
                vec![of_parent(&record.id, None, first.missing, &why)]
            }
            None if report.depth == Depth::Raw && !report.sampled => Vec::new(),
            None => return,
        };
        let known = Known { parent: record.parent.clone(), wrong };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place(repository, &record.id), known);
    }
}

fn of_parent(id: &BackupId, key: Option<String>, missing: bool, why: &str) -> Finding {
    let why = format!("{why}; without it this backup cannot be restored");
    Finding { parent: Some(id.clone()), ..Finding::of(format!("parent {id}"), key, missing, why) }
}

/// Looks at a backup that `child` builds on: its record, its objects with their lengths, and what was found of it.
async fn look_at(repository: &Repository, child: &BackupRecord, id: &BackupId) -> Result<Known> {
    let folder = layout::backup(&child.cluster, id);
    let record = match repository.record(&child.cluster, id).await {
        Ok(record) => record,
        Err(error) if matches!(error.kind(), ErrorKind::BackupNotFound | ErrorKind::Integrity) => {
            let missing = error.kind() == ErrorKind::BackupNotFound;
            let key = format!("{folder}/{}", layout::RECORD);
            return Ok(Known {
                parent: None,
                wrong: vec![of_parent(id, Some(key), missing, &error.to_string())],
            });
        }
        Err(error) => return Err(error.doing(format!("looking at {id}, on which {} builds", child.id))),
    };
    let mut wrong: Vec<Finding> = lacking(repository, &record)
        .await?
        .into_iter()
        .map(|(key, error)| {
            of_parent(id, Some(key), error.kind() == ErrorKind::ObjectMissing, &error.to_string())
        })
        .collect();
    if let Some(encryption) = &record.encryption
        && !has_key(repository, &record).await?
    {
        let key = format!("{folder}/{}", layout::key(&encryption.method));
        wrong.push(of_parent(id, Some(key.clone()), true, &format!("{key} is missing: nobody can read it")));
    }
    let marks = Marks::load(repository, &child.cluster).await?;
    if wrong.is_empty()
        && let Some(mark) = marks.verification(id).filter(|_| marks.is_damaged(id))
    {
        let why = format!(
            "a verification found it damaged on {}, and none has found it good since: pgark verify {id} looks again",
            mark.since
        );
        wrong.push(of_parent(id, None, false, &why));
    }
    Ok(Known { parent: record.parent.clone(), wrong })
}
