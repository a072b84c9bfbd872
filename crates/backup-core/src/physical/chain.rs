//! Unpacks a backup after those that it builds on.

use std::sync::Arc;

use futures::TryStreamExt;
use serde_json::{Value, json};

use super::configuration::CONFIG;
use super::files::Counts;
use super::journal::Mark;
use super::overlay::apply_list;
use super::pages::Pages;
use super::place::Place;
use super::unpack::unpack;
use super::{INCREMENTAL, LIST, MANIFEST, WAL, check};
use crate::dumper::{Ctx, PartInfo, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;

/// The fact that says which cluster a backup is of.
const SYSTEM: &str = "system_identifier";

/// A backup, those that it builds on, and where they go.
pub(super) struct Chain<'a> {
    pub(super) parts: &'a Arc<dyn PartSource>,
    pub(super) place: &'a Place,
    /// See [`version_folder`](super::clear::version_folder).
    pub(super) version_folder: String,
    pub(super) counts: &'a Arc<Counts>,
}

/// What an interrupted restore left to do.
pub(super) struct Resumed {
    /// How many parts there are.
    pub(super) parts: usize,
    /// How many of them are unpacked.
    pub(super) done: usize,
}

impl Resumed {
    /// How it is told in JSON.
    pub(super) fn json(&self) -> Value {
        json!({"parts": self.parts, "done": self.done})
    }
}

impl Chain<'_> {
    /// Oldest first.
    fn steps(&self) -> Vec<&dyn PartSource> {
        self.parts.ancestors().iter().chain([self.parts]).map(|step| &**step).collect()
    }

    /// Tells what an interrupted restore has done, where this one goes on with it.
    pub(super) fn resumed(&self, ctx: &Ctx) -> Option<Resumed> {
        let done = self.place.done();
        if !done.cleared {
            return None;
        }
        let steps = self.steps();
        let parts = steps.iter().enumerate().flat_map(|(number, step)| {
            wanted(*step, number + 1 == steps.len()).into_iter().map(move |part| (number, part))
        });
        let (there, missing): (Vec<_>, Vec<_>) =
            parts.partition(|(number, part)| done.part(*number, part.part));
        let resumed = Resumed { parts: there.len() + missing.len(), done: there.len() };
        let what = format!(
            "going on with an interrupted restore: {} of {} parts are there",
            resumed.done, resumed.parts
        );
        ctx.observer.event(&Event::Step { what });
        ctx.observer.event(&Event::Expected { raw_bytes: missing.iter().map(|(_, p)| p.raw_bytes).sum() });
        Some(resumed)
    }

    /// Unpacks the backup, and before it those that it builds on.
    pub(super) async fn unpack(&self, ctx: &Ctx) -> Result<()> {
        let steps = self.steps();
        for (number, step) in steps.iter().enumerate() {
            if steps.len() > 1 {
                let what = format!("restoring {}, {} of {}", step.name(), number + 1, steps.len());
                ctx.observer.event(&Event::Step { what });
            }
            let newest = number + 1 == steps.len();
            let before = number.checked_sub(1).map(|before| steps[before]);
            let unpacked = self.unpack_step(number, *step, before, newest, ctx.jobs).await;
            unpacked.map_err(|e| if newest { e } else { e.doing(format!("restoring {}", step.name())) })?;
        }
        if steps.len() > 1 && !self.place.done().checked {
            ctx.observer
                .event(&Event::Step { what: "comparing the files with the server's manifest".to_owned() });
            let (base, jobs, cancel) = (self.place.base.clone(), ctx.jobs, ctx.cancel.clone());
            let pages = Pages::of_backup(self.parts.facts())?;
            if pages.is_none() && self.parts.parts().iter().any(|part| part.spec.kind == INCREMENTAL) {
                let message = "what the server's increment made of relations could not be checked: the cluster has no data checksums";
                ctx.observer.event(&Event::Warning { message: message.to_owned() });
            }
            tokio::task::spawn_blocking(move || check::check_restored(&base, pages, jobs, &cancel))
                .await
                .map_err(|e| Error::internal("checking a restore failed").caused_by(e))??;
            self.place.journal.mark(Mark::Checked)?;
        }
        Ok(())
    }

    /// Unpacks one backup over what those before it made.
    async fn unpack_step(
        &self,
        number: usize,
        step: &dyn PartSource,
        before: Option<&dyn PartSource>,
        newest: bool,
        jobs: usize,
    ) -> Result<()> {
        let ground = self.place.ground(newest, self.version_folder.clone(), self.counts);
        let is_increment = step.parts().iter().any(|part| part.spec.kind == LIST);
        if is_increment != before.is_some() {
            let why = if is_increment { "is an increment, without its parent" } else { "is no increment" };
            return Err(Error::new(ErrorKind::Integrity, format!("{} {why}", step.name()))
                .with_hint("restore another backup"));
        }
        if let Some(before) = before
            && step.facts().get(SYSTEM) != before.facts().get(SYSTEM)
        {
            let (this, before) = (step.name(), before.name());
            let message = format!("{this} is of another cluster than {before}, on which it builds");
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("restore another backup"));
        }
        let (journal, done) = (&ground.journal, self.place.done());
        if is_increment && !done.list(number) {
            apply_list(step, ground.clone()).await?;
            journal.mark(Mark::List { step: number })?;
        }
        let missing = wanted(step, newest).into_iter().filter(|part| !done.part(number, part.part));
        let ground = &ground;
        futures::stream::iter(missing.map(Ok))
            .try_for_each_concurrent(jobs, |part| async move {
                unpack(step, &part, ground).await?;
                journal.mark(Mark::Part { step: number, part: part.part })
            })
            .await
    }
}

/// The parts of one backup that are unpacked. Of those that others build on only the files are of use.
fn wanted(step: &dyn PartSource, newest: bool) -> Vec<PartInfo> {
    let is_wanted = |part: &PartInfo| match part.spec.kind.as_str() {
        LIST => false,
        WAL | MANIFEST | CONFIG => newest,
        _ => true,
    };
    step.parts().into_iter().filter(is_wanted).collect()
}
