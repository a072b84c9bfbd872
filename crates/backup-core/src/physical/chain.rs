//! Unpacks a backup after those that it builds on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::TryStreamExt;

use super::configuration::CONFIG;
use super::overlay::{Ground, apply_list};
use super::restore::{Place, unpack};
use super::{LIST, MANIFEST, WAL, check};
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
        tokio::task::spawn_blocking(move || check::check_restored(&base, jobs, &cancel))
            .await
            .map_err(|e| Error::internal("checking a restore failed").caused_by(e))??;
    }
    Ok(())
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
