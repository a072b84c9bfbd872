use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Map, Value};

use super::Totals;
use super::frames::Frames;
use super::read::{PartReader, read_part};
use crate::dumper::{PartFrames, PartInfo, PartSource, PartSpec, SourceContents};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::repository::{BackupContents, BackupRecord, PartContents, PartRecord};
use crate::store::Bytestream;

/// The parts of one backup.
pub(crate) struct Source {
    pub(crate) reader: PartReader,
    pub(crate) record: BackupRecord,
    pub(crate) contents: BackupContents,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) totals: Arc<Totals>,
    pub(crate) ancestors: Vec<Arc<dyn PartSource>>,
}

#[async_trait]
impl PartSource for Source {
    fn parts(&self) -> Vec<PartInfo> {
        let kind_of = |part| self.record.parts.iter().find(|r| r.part == part).map(|r| r.kind.clone());
        self.contents
            .parts
            .iter()
            .map(|p| PartInfo {
                part: p.part,
                spec: PartSpec { kind: kind_of(p.part).unwrap_or_default(), name: p.name.clone() },
                raw_bytes: p.raw_bytes,
            })
            .collect()
    }

    fn contents(&self) -> &SourceContents {
        &self.contents.source
    }

    fn facts(&self) -> &Map<String, Value> {
        &self.record.source
    }

    fn name(&self) -> String {
        format!("backup {}", self.record.id)
    }

    fn ancestors(&self) -> &[Arc<dyn PartSource>] {
        &self.ancestors
    }

    fn frames(&self, part: u32) -> Result<Option<Box<dyn PartFrames>>> {
        let (record, contents) = self.part(part)?;
        let (totals, observer) = (Arc::clone(&self.totals), Arc::clone(&self.observer));
        Frames::of(self.reader.clone(), record, contents, totals, observer)
    }

    async fn open(&self, part: u32) -> Result<Bytestream> {
        let (record, contents) = self.part(part)?;
        let (totals, observer) = (Arc::clone(&self.totals), Arc::clone(&self.observer));
        let stream = read_part(self.reader.clone(), record.clone(), contents.clone());
        Ok(stream
            .inspect(move |chunk| {
                if let Ok(chunk) = chunk {
                    totals.add(chunk.len() as u64, 0, &*observer);
                }
            })
            .boxed())
    }
}

impl Source {
    /// What record and contents say of a part.
    fn part(&self, part: u32) -> Result<(&PartRecord, &PartContents)> {
        let record = self.record.parts.iter().find(|r| r.part == part);
        let contents = self.contents.parts.iter().find(|c| c.part == part);
        record
            .zip(contents)
            .ok_or_else(|| Error::new(ErrorKind::ObjectMissing, format!("the backup has no part {part}")))
    }
}
