//! Reading a backup: opening its contents, and giving its parts to a restorer.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Act, Outcome};
use crate::codec;
use crate::compressor::Compressor;
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::encryptor::{Cipher, Encryptor};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::pipeline::{CpuPool, ReadBuffers, Source, Totals};
use crate::repository::{
    BackupRecord, BackupSummary, Repository, ancestors, check_objects, layout, open_cipher, open_contents,
};

/// A restore ready to run. Made by [`Restore::builder`].
pub struct Restore {
    repository: Repository,
    record: BackupRecord,
    restorer: Arc<dyn Restorer>,
    reading: Reading,
}

/// How parts are read: keys, methods, threads.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) encryptor: Option<Arc<dyn Encryptor>>,
    pub(crate) compressor: Option<Arc<dyn Compressor>>,
    pub(crate) pool: CpuPool,
    pub(crate) jobs: usize,
    pub(crate) observer: Arc<dyn Observer>,
    buffers: ReadBuffers,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Restored {
    /// The backup that was restored.
    pub backup: BackupSummary,
    /// Bytes after decompression.
    pub raw_bytes: u64,
    /// What the restorer tells: the database, for example.
    pub target: Map<String, Value>,
}

/// Collects what a [`Restore`] is made of. Needed are a repository, the record of a backup, and a restorer.
#[derive(Default)]
pub struct RestoreBuilder {
    repository: Option<Repository>,
    record: Option<BackupRecord>,
    restorer: Option<Arc<dyn Restorer>>,
    encryptor: Option<Arc<dyn Encryptor>>,
    compressor: Option<Arc<dyn Compressor>>,
    jobs: Option<usize>,
    pool: Option<CpuPool>,
    observer: Option<Arc<dyn Observer>>,
}

impl RestoreBuilder {
    /// Where the backup is, and its record: see [`Repository::record`] and
    /// [`Catalog::find`](crate::repository::Catalog::find).
    #[must_use]
    pub fn backup(mut self, repository: Repository, record: BackupRecord) -> Self {
        self.repository = Some(repository);
        self.record = Some(record);
        self
    }

    /// Who takes the parts.
    #[must_use]
    pub fn restorer(mut self, restorer: impl Restorer + 'static) -> Self {
        self.restorer = Some(Arc::new(restorer));
        self
    }

    /// What opens the backup's key.
    #[must_use]
    pub fn encryptor(mut self, encryptor: impl Encryptor + 'static) -> Self {
        self.encryptor = Some(Arc::new(encryptor));
        self
    }

    /// The same, where it is shared or there is none.
    #[must_use]
    pub fn shared_encryptor(mut self, encryptor: Option<Arc<dyn Encryptor>>) -> Self {
        self.encryptor = encryptor;
        self
    }

    /// An application's own compression method; those of [`codec`] are known.
    #[must_use]
    pub fn compressor(mut self, compressor: impl Compressor + 'static) -> Self {
        self.compressor = Some(Arc::new(compressor));
        self
    }

    /// How much is done at once; by default as much as there are cores.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// Shares the threads of other runs.
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

    /// Checks that it all fits.
    pub fn build(self) -> Result<Restore> {
        let missing = |what: &str| Error::new(ErrorKind::Usage, format!("a restore needs {what}"));
        let record = self.record.ok_or_else(|| missing("a backup"))?;
        let restorer = self.restorer.ok_or_else(|| missing("a restorer"))?;
        if !restorer.accepts(&record.kind) {
            let message =
                format!("backup {} is {}, which cannot be restored this way", record.id, record.kind);
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("a logical backup goes into a database, a physical one into a data directory"));
        }
        let mut reading = Reading::new(self.encryptor, self.jobs, self.pool, self.observer)?;
        reading.compressor = self.compressor;
        Ok(Restore {
            repository: self.repository.ok_or_else(|| missing("a repository"))?,
            record,
            restorer,
            reading,
        })
    }
}

impl Restore {
    /// Starts to compose one.
    pub fn builder() -> RestoreBuilder {
        RestoreBuilder::default()
    }

    /// Runs it. Where the backup builds on others, they are looked at before the restorer begins: a record, a key,
    /// or an object that is missing ends the restore before anything is written.
    pub async fn run(&self, cancel: &CancellationToken) -> Result<Restored> {
        let act = || Act::new("restore").backups([&self.record.id]);
        let note =
            |act, outcome| audit::note_if_possible(&self.repository, &self.record.cluster, act, outcome);
        note(act(), Outcome::Begun).await;
        let result = self.open_and_restore(cancel).await;
        let mut done = act();
        if let Ok(restored) = &result {
            for name in ["database", "databases", "data_directory"] {
                if let Some(value) = restored.target.get(name) {
                    done = done.detail(name, value.clone());
                }
            }
        }
        note(done, Outcome::of(&result)).await;
        result
    }

    /// The same, for a caller that notes in the audit log what it does with it.
    pub(crate) async fn open_and_restore(&self, cancel: &CancellationToken) -> Result<Restored> {
        let totals = Arc::new(Totals::default());
        let ancestors = self.ancestors(&totals).await?;
        let cipher = self.reading.cipher(&self.repository, &self.record).await?;
        let mut source =
            self.reading.open(&self.repository, &self.record, cipher, Arc::clone(&totals)).await?;
        source.ancestors = ancestors;
        let all = source.ancestors.iter().map(|s| &**s).chain([&source as &dyn PartSource]);
        let expected = all.flat_map(PartSource::parts).map(|p| p.raw_bytes).sum();
        self.reading.observer.event(&Event::Expected { raw_bytes: expected });
        let ctx = Ctx::new(cancel.child_token(), self.reading.jobs, Arc::clone(&self.reading.observer))
            .of(self.record.id.clone());
        match self.restorer.restore(Arc::new(source), &ctx).await {
            // Also where it was cancelled too late: what was done is told.
            Ok(target) => {
                Ok(Restored { backup: self.record.summary.clone(), raw_bytes: totals.raw(), target })
            }
            Err(_) if cancel.is_cancelled() => Err(Error::cancelled()),
            Err(error) => Err(error),
        }
    }
}

impl Restore {
    /// Opens what the backup builds on, oldest first.
    async fn ancestors(&self, totals: &Arc<Totals>) -> Result<Vec<Arc<dyn PartSource>>> {
        let records = ancestors(&self.repository, &self.record).await?;
        if !records.is_empty() {
            for record in records.iter().chain([&self.record]) {
                check_objects(&self.repository, record).await?;
            }
        }
        let mut opened: Vec<Arc<dyn PartSource>> = Vec::with_capacity(records.len());
        for record in records {
            let open = async {
                let cipher = self.reading.cipher(&self.repository, &record).await?;
                self.reading.open(&self.repository, &record, cipher, Arc::clone(totals)).await
            };
            let doing = format!("opening backup {}, on which {} builds", record.id, self.record.id);
            opened.push(Arc::new(open.await.map_err(|e| e.doing(doing))?));
        }
        Ok(opened)
    }
}

impl Reading {
    pub(crate) fn new(
        encryptor: Option<Arc<dyn Encryptor>>,
        jobs: Option<usize>,
        pool: Option<CpuPool>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self> {
        let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
        let pool = match pool {
            Some(pool) => pool,
            None => CpuPool::new(jobs)?,
        };
        let observer = observer.unwrap_or_else(|| Arc::new(Silent));
        // Of a chain all backups are read with the same ones.
        let buffers = ReadBuffers::new(jobs, pool.width());
        Ok(Self { encryptor, compressor: None, pool, jobs, observer, buffers })
    }

    /// Opens a backup's key; nothing where it is not encrypted.
    pub(crate) async fn cipher(
        &self,
        repository: &Repository,
        record: &BackupRecord,
    ) -> Result<Option<Arc<dyn Cipher>>> {
        open_cipher(repository, record, self.encryptor.as_ref()).await
    }

    /// Opens a backup's contents.
    pub(crate) async fn open(
        &self,
        repository: &Repository,
        record: &BackupRecord,
        cipher: Option<Arc<dyn Cipher>>,
        totals: Arc<Totals>,
    ) -> Result<Source> {
        let contents = open_contents(repository, record, cipher.clone()).await?;
        let compressor = match &self.compressor {
            Some(own) if own.name() == record.compression => Arc::clone(own),
            _ => codec::by_name(&record.compression)?,
        };
        let reader = crate::pipeline::PartReader {
            store: Arc::clone(repository.store()),
            folder: layout::backup(&record.cluster, &record.id),
            pool: self.pool.clone(),
            compressor,
            cipher,
            buffers: self.buffers.clone(),
        };
        Ok(Source {
            reader,
            record: record.clone(),
            contents,
            observer: Arc::clone(&self.observer),
            totals,
            ancestors: Vec::new(),
        })
    }
}
