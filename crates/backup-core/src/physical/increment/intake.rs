use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::super::shards::Shards;
use super::super::tar::{Piece, Reader};
use super::super::{DELTA, FILES, LIST};
use super::compare::{Compared, Comparer, Input, Output};
use crate::dumper::{PartSink, PartSpec};
use crate::error::{Error, Result};
use crate::state::StateFile;

/// Bytes that are gone over at a time, on another thread, while the next ones come.
const BATCH_BYTES: usize = 512 * 1024;

/// Takes the archives of a base backup, and stores them as parts.
pub(in super::super) struct Intake {
    sink: Arc<dyn PartSink>,
    kind: &'static str,
    archive: Option<(Reader, Shards)>,
    stage: Option<Stage>,
    has_configuration: bool,
}

/// What was taken.
pub(in super::super) struct Taken {
    /// The block map, and what else became of comparing.
    pub(in super::super) made: Option<Compared<StateFile>>,
    /// Whether `postgresql.conf` is among the files.
    pub(in super::super) has_configuration: bool,
}

/// A [`Comparer`] that works beside.
struct Stage {
    comparer: Option<Comparer<StateFile>>,
    running: Option<JoinHandle<Worked>>,
    batch: Vec<Input>,
    bytes: usize,
}

type Worked = (Comparer<StateFile>, Result<Vec<Output>>);

impl Intake {
    pub(in super::super) fn new(sink: Arc<dyn PartSink>, comparer: Option<Comparer<StateFile>>) -> Self {
        let increment = comparer.as_ref().is_some_and(Comparer::is_increment);
        let stage = comparer.map(|comparer| Stage {
            comparer: Some(comparer),
            running: None,
            batch: Vec::new(),
            bytes: 0,
        });
        Self {
            sink,
            kind: if increment { DELTA } else { FILES },
            archive: None,
            stage,
            has_configuration: false,
        }
    }

    /// Begins an archive: `base`, or the OID of a tablespace.
    pub(in super::super) async fn begin(&mut self, name: &str) -> Result<()> {
        self.end().await?;
        if let Some(stage) = &mut self.stage {
            stage.batch.push(Input::Archive(name.to_owned()));
        }
        self.archive =
            Some((Reader::default(), Shards::new(Arc::clone(&self.sink), self.kind, name).behind()));
        Ok(())
    }

    /// Adds bytes to the archive.
    pub(in super::super) async fn add(&mut self, bytes: Bytes) -> Result<()> {
        let (reader, shards) =
            self.archive.as_mut().ok_or_else(|| Error::internal("the server sent bytes of no archive"))?;
        reader.push(bytes);
        while let Some(piece) = reader.next()? {
            if let Piece::Member(header) = &piece {
                self.has_configuration |= &*header.path_bytes() == b"postgresql.conf";
            }
            match (&mut self.stage, piece) {
                (Some(stage), piece) => {
                    stage.add(piece);
                    if stage.bytes >= BATCH_BYTES {
                        store(stage.work().await?, shards).await?;
                    }
                }
                (None, Piece::Member(header)) => shards.member(&header).await?,
                (None, Piece::Data(data)) => shards.data(data).await?,
            }
        }
        Ok(())
    }

    /// Ends the archive.
    async fn end(&mut self) -> Result<()> {
        let Some((reader, mut shards)) = self.archive.take() else { return Ok(()) };
        reader.finish()?;
        if let Some(stage) = &mut self.stage {
            store(stage.work().await?, &mut shards).await?;
            store(stage.rest().await?, &mut shards).await?;
        }
        shards.close().await
    }

    /// Ends the last archive, and stores the list of an increment.
    pub(in super::super) async fn finish(mut self) -> Result<Taken> {
        self.end().await?;
        let has_configuration = self.has_configuration;
        let Some(comparer) = self.stage.and_then(|stage| stage.comparer) else {
            return Ok(Taken { made: None, has_configuration });
        };
        let mut made = comparer.finish();
        if self.kind == DELTA {
            let spec = PartSpec { kind: LIST.to_owned(), name: "files".to_owned() };
            let mut part = self.sink.open(spec).await?;
            part.write(std::mem::take(&mut made.list).into()).await?;
            part.finish().await?;
        }
        Ok(Taken { made: Some(made), has_configuration })
    }
}

impl Stage {
    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Member(header) => {
                self.bytes += size_of_val(&*header);
                self.batch.push(Input::Member(header));
            }
            Piece::Data(data) => {
                self.bytes += data.len();
                self.batch.push(Input::Data(data));
            }
        }
    }

    /// Begins the batch; what came of the one before.
    async fn work(&mut self) -> Result<Vec<Output>> {
        let done = self.rest().await?;
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        let mut comparer =
            self.comparer.take().ok_or_else(|| Error::internal("blocks without a comparer"))?;
        self.running = Some(tokio::task::spawn_blocking(move || {
            let out = comparer.process(batch);
            (comparer, out)
        }));
        Ok(done)
    }

    /// Waits for the batch that runs.
    async fn rest(&mut self) -> Result<Vec<Output>> {
        let Some(running) = self.running.take() else { return Ok(Vec::new()) };
        let (comparer, out) =
            running.await.map_err(|e| Error::internal("comparing blocks failed").caused_by(e))?;
        self.comparer = Some(comparer);
        out
    }
}

async fn store(output: Vec<Output>, shards: &mut Shards) -> Result<()> {
    for output in output {
        match output {
            Output::Member(header) => shards.member(&header).await?,
            Output::Data(data) => shards.data(data).await?,
        }
    }
    Ok(())
}
