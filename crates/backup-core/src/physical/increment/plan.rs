//! From a wish for an increment to what the backup does: an increment, or a full backup and the reason.

use serde_json::{Map, Value};

use super::compare::{Compared, Comparer};
use super::host::{MapFacts, Maps};
use super::map::BlockMap;
use super::parent::{Parent, cannot_follow, differs};
use crate::dumper::{AfterCommit, Ctx, Dumped};
use crate::error::{Error, Result};
use crate::event::{Event, Observer};
use crate::physical::dump::position;
use crate::postgres::{Replication, WalPosition};
use crate::repository::{BackupId, BackupSummary};
use crate::state::{HostState, StateFile};

/// What a backup makes of its parent and its map.
pub(in super::super) struct Plan {
    maps: Option<Maps>,
    comparer: Option<Comparer<StateFile>>,
    parent: Option<(BackupId, WalPosition)>,
    warnings: Vec<String>,
}

/// The history file of a timeline, or why it cannot be had.
pub(in super::super) struct History {
    timeline: u32,
    text: std::result::Result<String, String>,
}

impl Plan {
    /// Begins a map where there is a state, and opens the parent's. What does not go is a warning, never an error.
    pub(in super::super) async fn make(
        state: Option<&HostState>,
        parent: Option<&Parent>,
        facts: &Map<String, Value>,
        ctx: &Ctx,
    ) -> Result<Self> {
        let (state, parent) = (state.cloned(), parent.cloned());
        let (facts, backup) = (facts.clone(), ctx.backup.clone());
        if let Some(Parent::Backup(parent)) = &parent {
            ctx.observer
                .event(&Event::Step { what: format!("reading the block map of backup {}", parent.id) });
        }
        // The parent's map is read through: 1.5 GB a terabyte.
        tokio::task::spawn_blocking(move || Self::make_now(state.as_ref(), parent, &facts, backup.as_ref()))
            .await
            .map_err(|e| Error::internal("opening the block map failed").caused_by(e))
    }

    /// For an increment that the server makes: nothing is compared, and there is no map.
    pub(in super::super) fn from_summaries(parent: &BackupSummary) -> Result<Self> {
        let (timeline, lsn) = position(&parent.source)?;
        let parent = Some((parent.id.clone(), WalPosition { timeline, lsn }));
        Ok(Self { maps: None, comparer: None, parent, warnings: Vec::new() })
    }

    /// Adds a warning before the others.
    pub(in super::super) fn warn(&mut self, warning: Option<String>) {
        self.warnings.splice(..0, warning);
    }

    fn make_now(
        state: Option<&HostState>,
        parent: Option<Parent>,
        facts: &Map<String, Value>,
        backup: Option<&BackupId>,
    ) -> Self {
        let mut plan = Self { maps: None, comparer: None, parent: None, warnings: Vec::new() };
        let block_bytes =
            facts.get("block_bytes").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let (Some(state), Some(backup), Some(block_bytes)) = (state, backup, block_bytes) else {
            if parent.is_some() {
                plan.full_because("this host keeps no block maps");
            }
            return plan;
        };
        let maps = match Maps::open(state) {
            Ok(maps) => maps,
            Err(error) => {
                plan.no_map(&error);
                if parent.is_some() {
                    plan.full_because("this host keeps no block maps");
                }
                return plan;
            }
        };
        let map = maps.begin(backup).map_err(|error| plan.no_map(&error)).ok();
        let found = match parent {
            None => None,
            Some(Parent::None(why)) => {
                plan.full_because(&why);
                None
            }
            Some(Parent::Backup(parent)) => match Self::open_parent(&maps, &parent, facts) {
                Ok((map, end)) => {
                    plan.parent = Some((parent.id, end));
                    Some(map)
                }
                Err(why) => {
                    plan.full_because(&why);
                    None
                }
            },
        };
        if map.is_some() || found.is_some() {
            plan.comparer = Some(Comparer::new(maps.key(), block_bytes, map, found));
        }
        plan.maps = Some(maps);
        plan
    }

    fn open_parent(
        maps: &Maps,
        parent: &BackupSummary,
        facts: &Map<String, Value>,
    ) -> std::result::Result<(BlockMap, WalPosition), String> {
        if let Some(why) = differs(&parent.source, facts) {
            return Err(format!("it cannot build on backup {}: {why}", parent.id));
        }
        let (timeline, lsn) = position(&parent.source).map_err(|e| e.to_string())?;
        let map = maps.map_of(parent)?;
        if Some(u64::from(map.block_bytes())) != facts.get("block_bytes").and_then(Value::as_u64) {
            return Err(format!("the block map of backup {} has blocks of another length", parent.id));
        }
        Ok((map, WalPosition { timeline, lsn }))
    }

    /// The history of the server's timeline, where the parent is of another one. An error is an answer as well.
    pub(in super::super) async fn history(&self, timeline: u32, server: &mut Replication) -> History {
        let text = match &self.parent {
            Some((_, end)) if end.timeline != timeline && timeline > 1 => server
                .timeline_history(timeline)
                .await
                .map(|history| history.text)
                .map_err(|e| e.with_causes()),
            _ => Ok(String::new()),
        };
        History { timeline, text }
    }

    /// What goes over the files of the backup that begins at `start`: without the parent where it does not follow it.
    pub(in super::super) fn take_comparer(
        &mut self,
        start: WalPosition,
        history: History,
    ) -> Option<Comparer<StateFile>> {
        let mut comparer = self.comparer.take()?;
        let (parent, end) = self.parent.clone().unzip();
        let why = match (end, history.text) {
            (None, _) => None,
            (Some(end), Ok(_)) if history.timeline != start.timeline && end.timeline != start.timeline => {
                Some("the server changed its timeline just now".to_owned())
            }
            (Some(end), Ok(text)) => cannot_follow(end, start, &text),
            (Some(_), Err(error)) => {
                Some(format!("the history of timeline {} cannot be read: {error}", start.timeline))
            }
        };
        if let (Some(parent), Some(why)) = (parent, why) {
            self.parent = None;
            self.full_because(&format!("it cannot build on backup {parent}: {why}"));
            comparer.forget_parent();
        }
        Some(comparer)
    }

    pub(in super::super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tells the backup what came of it.
    pub(in super::super) fn finish(
        mut self,
        compared: Option<Compared<StateFile>>,
        dumped: &mut Dumped,
        observer: &dyn Observer,
    ) {
        let mut map = None;
        let said = self.warnings.len();
        if let (Some(maps), Some(compared)) = (&self.maps, compared) {
            if let Some(error) = compared.map_error {
                self.no_map(&Error::io("writing it", error));
            } else if let Some((file, blake3)) = compared.map {
                MapFacts { key: maps.key_id(), blake3 }.note(&mut dumped.facts);
                map = Some(file);
            }
        }
        for message in &self.warnings[said..] {
            observer.event(&Event::Warning { message: message.clone() });
        }
        dumped.warnings.append(&mut self.warnings);
        dumped.parent = self.parent.map(|(parent, _)| parent);
        if let Some(maps) = self.maps {
            let parent = dumped.parent.clone();
            dumped.after_commit = Some(AfterCommit::new(move |_| {
                let doing = "keeping the block map: the next increment will be a full backup";
                maps.keep(map, parent.as_ref()).map_err(|e| e.doing(doing))
            }));
        }
    }

    fn full_because(&mut self, why: &str) {
        self.warnings.push(format!("this is a full backup, not an increment: {why}"));
    }

    fn no_map(&mut self, error: &Error) {
        let words = error.with_causes();
        self.warnings
            .push(format!("no increment can build on this backup: its block map could not be kept: {words}"));
    }
}
