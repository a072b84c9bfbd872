//! One backup: a dumper, a compression, an encryption and a store composed, run, and committed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Map;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Act, Outcome};
use crate::codec::Zstd;
use crate::compressor::Compressor;
use crate::dumper::{Ctx, Dumped, Dumper, PartSink};
use crate::encryptor::{Cipher, Encryptor};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::pipeline::{CpuPool, FirstError, MemoryPlan, PipelineOptions, Sink, SinkParts, Totals};
use crate::repository::{
    BackupContents, BackupId, BackupRecord, BackupSummary, Catalog, ClusterName, DEFAULT_GRACE, Encryption,
    FORMAT, PartContents, PartRecord, Repository, Run, State, Swept, Tool, Verb, ancestors, layout,
};
use crate::store::{Kept, Store};

/// A backup ready to run. Made by [`Backup::builder`]; it can run more than once.
pub struct Backup {
    repository: Repository,
    cluster: ClusterName,
    dumper: Arc<dyn Dumper>,
    compressor: Arc<dyn Compressor>,
    encryptor: Option<Arc<dyn Encryptor>>,
    options: PipelineOptions,
    jobs: usize,
    pool: CpuPool,
    observer: Arc<dyn Observer>,
    label: Option<String>,
    grace: Duration,
    sweep: bool,
    pin: Option<Verb>,
}

/// What a backup run made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The record, as it stands in the repository, without its parts.
    #[serde(flatten)]
    pub backup: BackupSummary,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Warnings, a line each: of the dumper, and of what could not be tidied afterwards.
    #[serde(rename = "messages")]
    pub warnings: Vec<String>,
    /// Where the repository has several copies, how many of them have the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<Kept>,
}

/// Collects what a [`Backup`] is made of. Needed are a repository and a dumper; the rest has defaults: zstd
/// level 3, no encryption, as many jobs as cores.
#[derive(Default)]
pub struct BackupBuilder {
    repository: Option<Repository>,
    cluster: ClusterName,
    dumper: Option<Arc<dyn Dumper>>,
    compressor: Option<Arc<dyn Compressor>>,
    encryptor: Option<Arc<dyn Encryptor>>,
    options: PipelineOptions,
    jobs: Option<usize>,
    pool: Option<CpuPool>,
    observer: Option<Arc<dyn Observer>>,
    label: Option<String>,
    grace: Option<Duration>,
    keep_leftovers: bool,
    pin: Option<Verb>,
}

impl BackupBuilder {
    /// Where the backup goes.
    #[must_use]
    pub fn repository(mut self, repository: Repository) -> Self {
        self.repository = Some(repository);
        self
    }

    /// The cluster's name in the repository; `main` by default.
    #[must_use]
    pub fn cluster(mut self, cluster: ClusterName) -> Self {
        self.cluster = cluster;
        self
    }

    /// What is backed up.
    #[must_use]
    pub fn dumper(mut self, dumper: impl Dumper + 'static) -> Self {
        self.dumper = Some(Arc::new(dumper));
        self
    }

    /// How it is compressed.
    #[must_use]
    pub fn compressor(mut self, compressor: impl Compressor + 'static) -> Self {
        self.compressor = Some(Arc::new(compressor));
        self
    }

    /// The same, shared.
    #[must_use]
    pub fn shared_compressor(mut self, compressor: Arc<dyn Compressor>) -> Self {
        self.compressor = Some(compressor);
        self
    }

    /// How it is encrypted; nothing is by default.
    #[must_use]
    pub fn encryptor(mut self, encryptor: impl Encryptor + 'static) -> Self {
        self.encryptor = Some(Arc::new(encryptor));
        self
    }

    /// Sizes of frames, chunks and objects.
    #[must_use]
    pub fn options(mut self, options: PipelineOptions) -> Self {
        self.options = options;
        self
    }

    /// How much is done at once.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// Shares the threads of other runs; by default the backup has its own.
    #[must_use]
    pub fn pool(mut self, pool: CpuPool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Who is told what happens.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Words to find the backup by.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Keeps it whatever the retention rules say: until then, or for ever.
    #[must_use]
    pub fn pin(mut self, until: Option<Timestamp>) -> Self {
        self.pin = Some(Verb::Pin(until));
        self
    }

    /// How long another run may store nothing before it is swept; 24 hours.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Does not sweep what dead runs left.
    #[must_use]
    pub fn keep_leftovers(mut self) -> Self {
        self.keep_leftovers = true;
        self
    }

    /// The jobs, as given or by default.
    fn count_jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The memory that a run into `store` will take at most. No repository is needed yet.
    pub fn memory(&self, store: &dyn Store) -> Result<MemoryPlan> {
        let dumper = self.dumper.as_ref().ok_or_else(|| missing("a dumper"))?;
        let jobs = self.count_jobs();
        let default = Zstd::default();
        Ok(MemoryPlan::new(
            &self.options,
            jobs,
            dumper.max_open(jobs),
            store.upload_chunks(),
            self.compressor.as_deref().unwrap_or(&default),
            self.encryptor.as_deref(),
            dumper.working_bytes(),
        ))
    }

    /// Checks that it all fits.
    pub fn build(self) -> Result<Backup> {
        self.options.check()?;
        let jobs = self.count_jobs();
        if jobs == 0 {
            return Err(missing("at least one job"));
        }
        let repository = self.repository.ok_or_else(|| missing("a repository"))?;
        let sweep = !self.keep_leftovers && repository.abilities().conditional_create;
        Ok(Backup {
            repository,
            cluster: self.cluster,
            dumper: self.dumper.ok_or_else(|| missing("a dumper"))?,
            compressor: self.compressor.unwrap_or_else(|| Arc::new(Zstd::default())),
            encryptor: self.encryptor,
            options: self.options,
            jobs,
            pool: match self.pool {
                Some(pool) => pool,
                None => CpuPool::new(jobs)?,
            },
            observer: self.observer.unwrap_or_else(|| Arc::new(Silent)),
            label: self.label,
            grace: self.grace.unwrap_or(DEFAULT_GRACE),
            sweep,
            pin: self.pin,
        })
    }
}

fn removed_meanwhile(parent: &BackupId) -> Error {
    let message =
        format!("backup {parent}, or one that it builds on, was removed while an increment of it was made");
    Error::new(ErrorKind::BackupNotFound, message)
        .with_hint("make the backup again: without --from it builds on another one, or is a full one")
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("a backup needs {what}"))
}

/// The key of a run: the cipher, the method's name, and the wrapped key to be stored.
type Key = (Arc<dyn Cipher>, &'static str, Bytes);

impl Backup {
    /// Starts to compose one.
    pub fn builder() -> BackupBuilder {
        BackupBuilder::default()
    }

    /// Runs it. When this returns `Ok`, the backup is whole, durable and in the catalog. After an error, or
    /// when `cancel` is triggered, nothing looks like a backup, and what was stored is removed as far as the
    /// store allows. The future must be polled to its end: dropped in the middle it leaves leftovers, which
    /// a later sweep removes.
    pub async fn run(&self, cancel: &CancellationToken) -> Result<Summary> {
        let mut act = Act::new("backup").detail("kind", self.dumper.kind());
        let result = self.announce_and_store(&mut act, cancel).await;
        audit::note_if_possible(&self.repository, &self.cluster, act, Outcome::of(&result)).await;
        result
    }

    async fn announce_and_store(&self, act: &mut Act, cancel: &CancellationToken) -> Result<Summary> {
        let key = self.new_key().await?;
        let step = |what: &str| self.observer.event(&Event::Step { what: what.to_owned() });
        step("announcing the backup");
        let run =
            Run::begin(&self.repository, &self.cluster, self.dumper.kind(), self.dumper.parent()).await?;
        self.observer.event(&Event::Started { id: run.id.to_string() });
        act.add_backup(&run.id);
        let stored = match self.dumper.parent() {
            Some(parent) => self.look_for_removal(&run, &parent).await,
            None => Ok(()),
        };
        let stored = match stored {
            Ok(()) => self.store(&run, key, cancel).await,
            Err(error) => Err(error),
        };
        let mut summary = match stored {
            Ok(summary) => summary,
            Err(error) => {
                step("removing what the failed backup stored");
                run.give_up().await;
                return Err(error);
            }
        };
        step("tidying");
        if let Err(error) = self.tidy().await {
            // The backup is whole. A store that does not allow to delete, for example, is no failure of it.
            let message =
                format!("the catalog's index or the leftovers of other runs could not be tidied: {error}");
            self.observer.event(&Event::Warning { message: message.clone() });
            summary.warnings.push(message);
        }
        Ok(summary)
    }

    async fn new_key(&self) -> Result<Option<Key>> {
        let Some(encryptor) = self.encryptor.clone() else { return Ok(None) };
        let name = encryptor.name();
        let made = tokio::task::spawn_blocking(move || encryptor.new_key()).await;
        let (cipher, wrapped) =
            made.unwrap_or_else(|e| Err(Error::internal("making a key failed").caused_by(e)))?;
        Ok(Some((cipher, name, wrapped)))
    }

    async fn store(&self, run: &Run, key: Option<Key>, cancel: &CancellationToken) -> Result<Summary> {
        let totals = Arc::new(Totals::default());
        let mut small_bytes = 0;
        if let Some((_, name, wrapped)) = &key {
            small_bytes += run.create(&layout::key(name), wrapped.clone()).await?.bytes;
        }
        let cipher = key.map(|(cipher, name, _)| (cipher, name));
        let (dumped, parts) = self.dump(run, cipher.clone(), &totals, cancel).await?;
        let (records, contents): (Vec<PartRecord>, Vec<PartContents>) = parts.into_iter().unzip();
        let mut warnings = dumped.warnings;
        if let Some(before) = self.repository.note_identity(&run.cluster, &dumped.facts).await? {
            let message = format!(
                "{} was another PostgreSQL cluster until now: system identifier {}, version {}; is the name right?",
                run.cluster, before.system_identifier, before.server_version
            );
            self.observer.event(&Event::Warning { message: message.clone() });
            warnings.push(message);
        }
        let contents = BackupContents {
            format: FORMAT,
            parts: contents,
            source: dumped.contents,
            warnings: warnings.clone(),
            other: Map::new(),
        };
        let sealed = crate::repository::seal_contents(&contents, cipher.as_ref().map(|c| &*c.0))?;
        let contents = run.create(&layout::contents(cipher.as_ref().map(|c| c.1)), sealed).await?;
        small_bytes += contents.bytes;
        let summary = BackupSummary {
            format: FORMAT,
            id: run.id.clone(),
            state: State::Committed,
            cluster: run.cluster.clone(),
            kind: self.dumper.kind().to_owned(),
            started: run.started,
            finished: Timestamp::now(),
            host: run.host.clone(),
            tool: Tool::this(),
            compression: self.compressor.name().to_owned(),
            encryption: cipher.map(|(_, name)| Encryption { method: name.to_owned() }),
            parent: dumped.parent,
            label: self.label.clone(),
            stored_bytes: totals.stored() + small_bytes,
            warnings: warnings.len() as u64,
            source: dumped.facts,
            other: Map::new(),
        };
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let record = BackupRecord { contents: Some(contents), parts: records, summary };
        self.look_at_parent(run, &record).await?;
        if let Some(pin) = self.pin {
            // Before it is a backup: nobody finds it without its pin.
            self.repository.mark(&run.cluster, &run.id, pin, None).await?;
        }
        run.commit(&record).await?;
        let summary = record.summary;
        if let Some(after_commit) = dumped.after_commit {
            let backup = summary.clone();
            let done = tokio::task::spawn_blocking(move || after_commit.run(&backup)).await;
            if let Err(error) =
                done.unwrap_or_else(|e| Err(Error::internal("the work after a commit failed").caused_by(e)))
            {
                self.observer.event(&Event::Warning { message: error.to_string() });
                warnings.push(error.to_string());
            }
        }
        let copies = self.repository.store().kept(&run.folder());
        for missed in copies.iter().flat_map(|kept| &kept.missing) {
            let message = format!(
                "the backup is not in the copy {}: {}; pgark sync brings it there",
                missed.copy, missed.why
            );
            self.observer.event(&Event::Warning { message: message.clone() });
            warnings.push(message);
        }
        Ok(Summary { backup: summary, raw_bytes: totals.raw(), warnings, copies })
    }

    /// A backup without the one that it builds on would be of no use.
    async fn look_at_parent(&self, run: &Run, record: &BackupRecord) -> Result<()> {
        let Some(parent) = &record.parent else { return Ok(()) };
        if self.dumper.parent().as_ref() != Some(parent) {
            // Nobody could know that this run needs it.
            self.look_for_removal(run, parent).await?;
        }
        match ancestors(&self.repository, record).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BackupNotFound => {
                Err(removed_meanwhile(parent).caused_by(error))
            }
            Err(error) => Err(error.doing(format!("looking at backup {parent}, on which this one builds"))),
        }
    }

    /// Whether the parent, or a backup that it builds on, is about to be deleted. The run has announced itself and its
    /// parent before: whoever marks one of them from now on looks for runs before anything is deleted, and finds it.
    async fn look_for_removal(&self, run: &Run, parent: &BackupId) -> Result<()> {
        let catalog = Catalog::load(&self.repository, &run.cluster).await?;
        let mut at = Some(parent);
        let mut steps = catalog.backups().len();
        while let Some(id) = at {
            let known = catalog.backups().find(|backup| backup.id == *id);
            if known.is_none() || catalog.is_being_removed(id) {
                return Err(removed_meanwhile(parent));
            }
            at = known.and_then(|backup| backup.parent.as_ref()).filter(|_| steps > 0);
            steps = steps.saturating_sub(1);
        }
        Ok(())
    }

    /// Runs the dumper into the pipeline. Returns only when every upload has ended, one way or the other.
    async fn dump(
        &self,
        run: &Run,
        cipher: Option<(Arc<dyn Cipher>, &'static str)>,
        totals: &Arc<Totals>,
        cancel: &CancellationToken,
    ) -> Result<(Dumped, Vec<(PartRecord, PartContents)>)> {
        let stop = cancel.child_token();
        let failure = FirstError::default();
        let sink = Arc::new(Sink::new(SinkParts {
            options: self.options.clone(),
            pool: self.pool.clone(),
            jobs: self.jobs,
            max_open: self.dumper.max_open(self.jobs),
            compressor: Arc::clone(&self.compressor),
            cipher,
            store: Arc::clone(self.repository.store()),
            folder: run.folder(),
            observer: Arc::clone(&self.observer),
            cancel: stop.clone(),
            failure: failure.clone(),
            totals: Arc::clone(totals),
        }));
        let ctx = Ctx::new(stop.clone(), self.jobs, Arc::clone(&self.observer)).of(run.id.clone());
        let dumped = self.dumper.dump(Arc::clone(&sink) as Arc<dyn PartSink>, &ctx).await;
        if dumped.is_err() {
            stop.cancel();
        }
        sink.settle().await;
        let done = sink.take_done();
        match (dumped, failure.take()) {
            _ if cancel.is_cancelled() => Err(Error::cancelled()),
            // What failed first: a dumper that was stopped by a failing part says no more than that it was.
            (Err(stopped), Some(first)) if stopped.kind() == ErrorKind::Cancelled => Err(first),
            (Err(error), _) | (Ok(_), Some(error)) => Err(error),
            (Ok(dumped), None) => Ok((dumped, done)),
        }
    }

    async fn tidy(&self) -> Result<Swept> {
        let catalog = Catalog::load(&self.repository, &self.cluster).await?;
        let store_now = catalog.write_index(&self.repository).await?;
        if !self.sweep {
            return Ok(Swept::default());
        }
        self.repository.sweep(&catalog, self.grace, store_now).await
    }
}
