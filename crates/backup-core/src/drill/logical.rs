//! The steps of a drill that are a logical backup's own.

use tokio_util::sync::CancellationToken;

use super::look::Looked;
use super::record::Step;
use super::run::{Run, blocking_until};
use super::settings::{append, configuration};
use super::workplace::Workplace;
use crate::error::Result;
use crate::logical::ProofLoad;
use crate::postgres::{Cluster, ConnInfo, ServerPrograms, Tools, Via};

impl Run<'_> {
    /// Starts an empty server, restores into it, compares.
    pub(super) async fn logical(
        &mut self,
        at: &mut Workplace,
        programs: ServerPrograms,
        server: &ConnInfo,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>> {
        let cluster = Cluster { data: at.data(), programs };
        let (own, configuration) = (cluster.clone(), configuration(&self.options.settings, at));
        at.make_folder("data")?;
        at.cluster = Some(cluster.clone());
        let work = blocking_until(cancel, move || {
            let data = own.data.display().to_string();
            let args = ["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"];
            own.programs.run("initdb", &args)?;
            append(&own.data, &configuration)?;
            own.start()?;
            Ok(Looked::of("a new, empty server", Vec::new()))
        });
        self.step(Step::Recover, cancel, work).await?;
        // The tools of a container are in it, and connect from there.
        let into = match &at.container {
            Some(container) => {
                server.clone().with_via(Via::Docker { container: container.name().to_owned() })
            }
            None => server.clone(),
        };
        let tools = if at.container.is_some() { Tools::installed() } else { self.options.tools.clone() };
        let load = ProofLoad::into(into, tools);
        let restore = self.builder().restorer(load.clone()).build()?;
        let mut raw_bytes = 0;
        let work = async {
            let restored = restore.run(cancel).await?;
            raw_bytes = restored.raw_bytes;
            Ok(Looked::of(format!("databases {}", load.databases().join(", ")), Vec::new()))
        };
        self.step(Step::Restore, cancel, work).await?;
        self.report.raw_bytes = raw_bytes;
        let jobs = self.jobs;
        let work = async {
            let Some(compared) = load.compare(server, jobs, cancel).await? else {
                return Ok(Looked::not_done("the backup has no counts and fingerprints of its tables"));
            };
            let left_out = match compared.left_out {
                0 => String::new(),
                some => format!("; {some} tables of extensions or loaded through partition roots left out"),
            };
            let note = format!("{} rows of {} tables{left_out}", compared.rows, compared.tables);
            Ok(Looked::of(note, compared.found))
        };
        self.step(Step::Compare, cancel, work).await?;
        Ok(load.databases())
    }
}
