//! Unpacks a backup after those that it builds on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::TryStreamExt;
use serde_json::{Map, Value};

use super::check::Pages;
use super::configuration::CONFIG;
use super::dump::block_bytes;
use super::overlay::{Ground, apply_list};
use super::restore::{Place, unpack};
use super::{INCREMENTAL, LIST, MANIFEST, WAL, check};
use crate::dumper::{Ctx, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;

/// The fact that says which cluster a backup is of.
const SYSTEM: &str = "system_identifier";

/// Unpacks a backup, and before it those that it builds on, oldest first.
pub(super) async fn unpack_chain(
    parts: &Arc<dyn PartSource>,
    targets: &BTreeMap<String, PathBuf>,
    place: &Place,
    ctx: &Ctx,
) -> Result<()> {
    let chain: Vec<&dyn PartSource> = parts.ancestors().iter().chain([parts]).map(|step| &**step).collect();
    for (number, step) in chain.iter().enumerate() {
        if chain.len() > 1 {
            let what = format!("restoring {}, {} of {}", step.name(), number + 1, chain.len());
            ctx.observer.event(&Event::Step { what });
        }
        let newest = number + 1 == chain.len();
        let ground = Ground { targets: targets.clone(), owner: place.owner, newest };
        let unpacked = async {
            let is_increment = step.parts().iter().any(|part| part.spec.kind == LIST);
            if is_increment != (number > 0) {
                let why =
                    if is_increment { "is an increment, without its parent" } else { "is no increment" };
                return Err(Error::new(ErrorKind::Integrity, format!("{} {why}", step.name()))
                    .with_hint("restore another backup"));
            }
            if number > 0 && step.facts().get(SYSTEM) != chain[number - 1].facts().get(SYSTEM) {
                let before = chain[number - 1].name();
                return Err(Error::new(
                    ErrorKind::Integrity,
                    format!("{} is of another cluster than {before}, on which it builds", step.name()),
                )
                .with_hint("restore another backup"));
            }
            if is_increment {
                apply_list(*step, ground.clone()).await?;
            }
            unpack_all(*step, &ground, ctx.jobs).await
        };
        unpacked.await.map_err(|e| if newest { e } else { e.doing(format!("restoring {}", step.name())) })?;
    }
    if chain.len() > 1 {
        ctx.observer
            .event(&Event::Step { what: "comparing the files with the server's manifest".to_owned() });
        let (base, jobs, cancel) = (place.base.clone(), ctx.jobs, ctx.cancel.clone());
        let pages = pages(parts.facts())?;
        if pages.is_none() && parts.parts().iter().any(|part| part.spec.kind == INCREMENTAL) {
            let message = "what the server's increment made of relations could not be checked: the cluster has no data checksums";
            ctx.observer.event(&Event::Warning { message: message.to_owned() });
        }
        tokio::task::spawn_blocking(move || check::check_restored(&base, pages, jobs, &cancel))
            .await
            .map_err(|e| Error::internal("checking a restore failed").caused_by(e))??;
    }
    Ok(())
}

/// What is known of the pages of a backup; nothing where they have no checksums.
fn pages(facts: &Map<String, Value>) -> Result<Option<Pages>> {
    if facts.get("data_checksums").and_then(Value::as_str) != Some("on") {
        return Ok(None);
    }
    let bytes = block_bytes(facts)?;
    let segment = facts.get("relation_segment_bytes").and_then(Value::as_u64).unwrap_or(1 << 30);
    let segment = u32::try_from(segment / u64::from(bytes)).unwrap_or(u32::MAX);
    let start = facts.get("start_lsn").and_then(Value::as_str).and_then(|lsn| lsn.parse().ok());
    Ok(start.map(|start| Pages { bytes, segment, start }))
}

/// Unpacks the parts of one backup. Of those that others build on only the files are of use.
async fn unpack_all(parts: &dyn PartSource, ground: &Ground, jobs: usize) -> Result<()> {
    let wanted = parts.parts().into_iter().filter(|part| match part.spec.kind.as_str() {
        LIST => false,
        WAL | MANIFEST | CONFIG => ground.newest,
        _ => true,
    });
    futures::stream::iter(wanted.map(Ok))
        .try_for_each_concurrent(jobs, |part| async move { unpack(parts, &part, ground).await })
        .await
}
