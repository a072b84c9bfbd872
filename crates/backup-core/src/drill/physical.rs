//! The steps of a drill that are a physical backup's own.

use tokio_util::sync::CancellationToken;

use super::look::Looked;
use super::record::Step;
use super::run::{Run, in_words};
use super::settings::{append, configuration};
use super::stop::stop;
use super::wal::{self, Answers};
use super::workplace::Workplace;
use crate::error::{Error, ErrorKind, Result};
use crate::physical::{DataDirectory, Target, span};
use crate::postgres::{Cluster, ServerPrograms};

impl Run<'_> {
    /// Restores, starts, replays.
    pub(super) async fn physical(
        &mut self,
        at: &mut Workplace,
        programs: ServerPrograms,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut recovery = self.options.recovery.clone();
        let mut answers = None;
        if let (None, Some(archive), Some(span)) =
            (&recovery.restore_command, self.options.archive.take(), span(&self.record.summary))
        {
            if let Some(compare) = self.options.compare.as_ref().filter(|compare| compare.stops_at_snapshot())
            {
                let lsn = stop(&archive, span.wal, compare.reference().snapshot()?, at).await?;
                recovery.target = Target::Lsn(lsn);
                self.report.target = in_words(&recovery);
            }
            answers = Some(Answers::begin(at, archive, span.wal.segment_bytes)?);
            recovery.restore_command = Some(wal::restore_command(at.path()));
        }
        at.make_folder("tablespaces")?;
        let to =
            DataDirectory::at(at.data()).tablespaces_below(at.path().join("tablespaces")).recovery(recovery);
        let restore = self.builder().restorer(to).build()?;
        let mut raw_bytes = 0;
        let work = async {
            let restored = restore.run(cancel).await?;
            raw_bytes = restored.raw_bytes;
            Ok(Looked::of("files, compared with their digests", Vec::new()))
        };
        self.step(Step::Restore, cancel, work).await?;
        self.report.raw_bytes = raw_bytes;
        append(&at.data(), &configuration(&self.options.settings, at))?;
        let cluster = Cluster { data: at.data(), programs };
        // It is ended in any case from here on.
        at.cluster = Some(cluster.clone());
        let mut recovered = None;
        let work = async {
            match cluster.recover(cancel).await {
                Ok(done) if done.state == "in production" => {
                    recovered = Some(done);
                    Ok(Looked::of("recovered to the target, and takes writes", Vec::new()))
                }
                Ok(done) => Err(Error::new(ErrorKind::ToolFailed, format!("the server is {}", done.state))),
                // What stopped it may be a file of WAL.
                Err(error) => Err(answers.as_ref().and_then(Answers::failure).unwrap_or(error)),
            }
        };
        self.step(Step::Recover, cancel, work).await?;
        self.report.recovered = recovered;
        Ok(())
    }
}
