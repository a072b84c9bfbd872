//! Who copies a backup: two at once must not mix what they write.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use rustix::process::{Pid, test_kill_process};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::repository::{
    BackupRecord, FORMAT, RECORD_LIMIT, Repository, Started, Tool, delete_leftovers, from_json, host_name,
    layout, to_json,
};
use crate::store::{Created, read_if_there};

/// How long a copy of another host may store nothing before it counts as dead.
const GRACE: SignedDuration = SignedDuration::from_hours(24);
/// The field that says how it is copied.
const HOW: &str = "copied";

/// What this process is at work on: what it announced and is not in here is over.
static AT_WORK: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn at_work() -> MutexGuard<'static, BTreeSet<String>> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The announcement of a copy.
pub(super) struct Announced {
    key: String,
    body: bytes::Bytes,
    work: String,
}

impl Drop for Announced {
    fn drop(&mut self) {
        at_work().remove(&self.work);
    }
}

/// Announces that this process copies a backup to a repository. What another one left that died is thrown away, unless
/// both copy the bytes as they are: then what is there is what was to be copied. `how`: `as it is`, or `sealed anew`.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) where another process is at work on it.
pub(super) async fn announce(to: &Repository, record: &BackupRecord, how: &str) -> Result<Announced> {
    let folder = layout::backup(&record.cluster, &record.id);
    let key = format!("{folder}/{}", layout::STARTED);
    let announcement = Started {
        format: FORMAT,
        id: record.id.clone(),
        started: Timestamp::now(),
        host: host_name(),
        process: std::process::id(),
        tool: Tool::this(),
        parent: record.parent.clone(),
        other: Map::from_iter([(HOW.to_owned(), Value::from(how))]),
    };
    let store = &**to.store();
    let work = format!("{} {key}", to.id());
    let busy = !at_work().insert(work.clone());
    if busy {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("this process copies backup {} there already", record.id),
        ));
    }
    let announced = Announced { key, body: to_json(&announcement)?, work };
    for _ in 0..3 {
        if store.create(&announced.key, announced.body.clone()).await? != Created::Other {
            return Ok(announced);
        }
        let Some(body) = read_if_there(store, &announced.key, RECORD_LIMIT).await? else { continue };
        let other: Started = from_json(&body, &announced.key)?;
        let age = Timestamp::now().duration_since(store.head(&announced.key).await?.modified);
        if !is_dead(&other) && age <= GRACE {
            let message = format!(
                "process {} on {} copies backup {} there, or died while it did",
                other.process, other.host, record.id
            );
            return Err(Error::new(ErrorKind::Conflict, message).with_hint(
                "wait for it; what a process of another host left that died is taken over after a day",
            ));
        }
        if how == AS_IT_IS && other.other.get(HOW).and_then(Value::as_str) == Some(AS_IT_IS) {
            store.delete(std::slice::from_ref(&announced.key)).await.into_iter().collect::<Result<()>>()?;
        } else {
            delete_leftovers(store, &folder).await?;
        }
    }
    Err(Error::new(ErrorKind::Conflict, format!("others copy backup {} at the same time", record.id)))
}

/// The bytes are those of the source.
pub(super) const AS_IT_IS: &str = "as it is";
/// They are sealed with another key.
pub(super) const SEALED_ANEW: &str = "sealed anew";

/// A process of this host that is no more.
fn is_dead(started: &Started) -> bool {
    let pid = i32::try_from(started.process).ok().and_then(Pid::from_raw);
    // Of this process only one copy is at work, and that is the one that asks.
    started.host == host_name()
        && (started.process == std::process::id()
            || pid.is_none_or(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH)))
}

impl Announced {
    /// Whether it still stands: somebody may have taken this process for dead.
    pub(super) async fn check(&self, to: &Repository) -> Result<()> {
        let there = read_if_there(&**to.store(), &self.key, RECORD_LIMIT).await?;
        if there.is_some_and(|body| body == self.body) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Abandoned, "another process has taken over the copy, or it was given up")
            .with_hint("copy it again"))
    }
}
