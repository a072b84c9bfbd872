//! Which backup an increment builds on, and whether it can.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::host::Maps;
use super::manifest::Manifests;
use crate::error::{Error, ErrorKind, Result};
use crate::physical::KIND;
use crate::postgres::{Lsn, WalPosition};
use crate::repository::{BackupId, BackupSummary, Catalog};
use crate::state::HostState;

/// What an increment is to be made of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Parent {
    /// This backup, as far as it will do: whether it does shows when the backup begins.
    Backup(Box<BackupSummary>),
    /// None will do, and a full backup is made. The reason goes into its warnings.
    None(String),
}

impl Parent {
    /// Chooses for an increment by contents: the backup that `from` means (as [`Catalog::find`] does), else the newest
    /// physical one of which this host has the block map.
    ///
    /// # Errors
    /// [`BackupNotFound`](ErrorKind::BackupNotFound) and [`Unsupported`](ErrorKind::Unsupported) where `from` means
    /// none, or one that is not physical. A host that has no maps is no error.
    pub fn choose(catalog: &Catalog, state: &HostState, from: Option<&str>) -> Result<Self> {
        match Maps::open(state) {
            Ok(maps) => Self::choose_where(catalog, from, "block map", |backup| maps.has(backup)),
            Err(error) if from.is_none() => Ok(Self::None(error.with_causes())),
            Err(_) => Self::choose_where(catalog, from, "block map", |_| false),
        }
    }

    /// Chooses for an increment by the server, alike: it needs a backup of which this host has the manifest.
    ///
    /// # Errors
    /// Those of [`choose`](Self::choose).
    pub fn choose_for_summaries(catalog: &Catalog, state: &HostState, from: Option<&str>) -> Result<Self> {
        let manifests = Manifests::of(state);
        Self::choose_where(catalog, from, "manifest", |backup| manifests.has(backup))
    }

    fn choose_where(
        catalog: &Catalog,
        from: Option<&str>,
        needed: &str,
        has: impl Fn(&BackupSummary) -> bool,
    ) -> Result<Self> {
        if let Some(from) = from {
            let found = if from == "latest" {
                catalog.staying().rfind(|b| b.kind == KIND).map_or_else(|| catalog.find(from), Ok)?
            } else {
                catalog.find(from)?
            };
            if found.kind != KIND {
                let message =
                    format!("backup {} is {}: an increment builds on a physical one", found.id, found.kind);
                return Err(
                    Error::new(ErrorKind::Unsupported, message).with_hint("pgark list shows the backups")
                );
            }
            return Ok(match broken(catalog, found) {
                None => Self::Backup(Box::new(found.clone())),
                Some(why) => Self::None(why),
            });
        }
        let mut physical = catalog.backups().rev().filter(|b| b.kind == KIND).peekable();
        if physical.peek().is_none() {
            return Ok(Self::None(format!(
                "there is no physical backup of {} to build on",
                catalog.cluster()
            )));
        }
        Ok(physical.find(|backup| has(backup) && broken(catalog, backup).is_none()).map_or_else(
            || {
                Self::None(format!(
                    "this host has no {needed} of any backup: its state was lost, or another host made them"
                ))
            },
            |found| Self::Backup(Box::new(found.clone())),
        ))
    }
}

/// Why nothing can build on a backup: it is about to be removed, or what it builds on is gone or is about to be.
fn broken(catalog: &Catalog, backup: &BackupSummary) -> Option<String> {
    let known: BTreeMap<&BackupId, &BackupSummary> = catalog.backups().map(|b| (&b.id, b)).collect();
    let mut at = backup;
    // A chain is no longer than the catalog, unless it runs in a circle.
    for _ in 0..known.len() {
        if catalog.is_being_removed(&at.id) {
            return Some(format!("backup {} is about to be removed", at.id));
        }
        let parent = at.parent.as_ref()?;
        match known.get(parent) {
            Some(found) => at = found,
            None => {
                return Some(format!("backup {} cannot be restored: backup {parent} is gone", backup.id));
            }
        }
    }
    Some(format!("backup {} builds on itself, by its records", backup.id))
}

/// What keeps a backup from building on another one, by the facts that are known before it begins.
pub(in super::super) fn differs(parent: &Map<String, Value>, child: &Map<String, Value>) -> Option<String> {
    let facts = [
        ("system_identifier", "it is of another cluster"),
        ("block_bytes", "its blocks have another length"),
        ("relation_segment_bytes", "its relations are cut into segments of another length"),
        ("data_checksums", "data checksums were switched on or off since"),
    ];
    facts.iter().find(|(fact, _)| parent.get(*fact) != child.get(*fact)).map(|(_, why)| (*why).to_owned())
}

/// What keeps a backup from following another one in time. `history` is that of the child's timeline. On one timeline
/// nothing does: a standby that has nothing to replay begins each backup at the same position, before the end of the
/// last one.
pub(in super::super) fn cannot_follow(
    parent: WalPosition,
    start: WalPosition,
    history: &str,
) -> Option<String> {
    if parent.timeline == start.timeline {
        return None;
    }
    if parent.lsn > start.lsn {
        return Some(format!("it ends at {}, behind {}, where this one begins", parent.lsn, start.lsn));
    }
    match follows_in(history, parent.timeline) {
        None => Some(format!("timeline {} does not follow its timeline {}", start.timeline, parent.timeline)),
        Some(switch) if switch < parent.lsn => Some(format!(
            "its timeline {} was left at {switch}, before its end at {}",
            parent.timeline, parent.lsn
        )),
        Some(_) => None,
    }
}

/// Where a timeline was left, by the text of a history file (`readTimeLineHistory` in `timeline.c`: number, position,
/// reason; `#` begins a comment).
pub(in super::super) fn follows_in(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().map(str::trim).filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut words = line.split_whitespace();
        let number: u32 = words.next()?.parse().ok()?;
        let switch = words.next()?.parse().ok()?;
        (number == timeline).then_some(switch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_increment_follows_its_parent() {
        let at = |timeline, lsn: u64| WalPosition { timeline, lsn: Lsn(lsn) };
        let history = "1\t0/3000000\tno recovery target specified\n\n# words\n2\t0/5000000\tsomething\n";
        let no = |parent, start| cannot_follow(parent, start, history);
        assert_eq!(no(at(3, 0x600_0000), at(3, 0x600_0000)), None);
        assert_eq!(no(at(2, 0x500_0000), at(3, 0x600_0000)), None);
        assert!(no(at(2, 0x500_0001), at(3, 0x600_0000)).unwrap().contains("was left at 0/5000000"));
        assert!(no(at(1, 0x400_0000), at(3, 0x600_0000)).unwrap().contains("was left at 0/3000000"));
        assert!(no(at(4, 0x400_0000), at(3, 0x600_0000)).unwrap().contains("does not follow"));
        assert!(no(at(2, 0x700_0000), at(3, 0x600_0000)).unwrap().contains("behind"));
        assert_eq!(no(at(3, 0x700_0000), at(3, 0x600_0000)), None, "an idle standby");
    }
}
