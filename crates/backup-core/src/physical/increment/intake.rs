use std::sync::Arc;

use bytes::Bytes;
use tar::{EntryType, Header};
use tokio::task::JoinHandle;

use super::super::shards::Shards;
use super::super::{DELTA, FILES, INCREMENTAL, LIST};
use super::compare::{Compared, Comparer, Input, Output};
use super::list::{Entry, Stored, listed_mode, listed_path};
use crate::dumper::{PartSink, PartSpec};
use crate::error::{Error, Result};
use crate::state::StateFile;
use crate::tar_reader::{Piece, Reader};

/// Bytes that are gone over at a time, on another thread, while the next ones come.
const BATCH_BYTES: usize = 1024 * 1024;

/// What comes from the server.
pub(in super::super) enum Coming {
    /// All files. Where there is a comparer they become a map, and an increment.
    Everything(Option<Box<Comparer<StateFile>>>),
    /// An increment that the server made.
    Increment,
}

/// Takes the archives of a base backup, and stores them as parts.
pub(in super::super) struct Intake {
    sink: Arc<dyn PartSink>,
    kind: &'static str,
    archive: Option<(Reader, Shards)>,
    name: String,
    stage: Option<Stage>,
    /// The list of an increment that the server made.
    list: Vec<u8>,
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
    pub(in super::super) fn new(sink: Arc<dyn PartSink>, coming: Coming) -> Self {
        let (kind, comparer) = match coming {
            Coming::Increment => (INCREMENTAL, None),
            Coming::Everything(Some(comparer)) if comparer.is_increment() => (DELTA, Some(*comparer)),
            Coming::Everything(comparer) => (FILES, comparer.map(|comparer| *comparer)),
        };
        let stage = comparer.map(|comparer| Stage {
            comparer: Some(comparer),
            running: None,
            batch: Vec::new(),
            bytes: 0,
        });
        let (name, list) = (String::new(), Vec::new());
        Self { sink, kind, archive: None, name, stage, list, has_configuration: false }
    }

    /// Begins an archive: `base`, or the OID of a tablespace.
    pub(in super::super) async fn begin(&mut self, name: &str) -> Result<()> {
        self.end().await?;
        if let Some(stage) = &mut self.stage {
            stage.batch.push(Input::Archive(name.to_owned()));
        }
        name.clone_into(&mut self.name);
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
                if self.kind == INCREMENTAL {
                    list_member(&self.name, header, &mut self.list);
                }
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
        let mut made = self.stage.and_then(|stage| stage.comparer).map(Comparer::finish);
        let list = made.as_mut().map_or(self.list, |made| std::mem::take(&mut made.list));
        if self.kind != FILES {
            let spec = PartSpec { kind: LIST.to_owned(), name: "files".to_owned() };
            let mut part = self.sink.open(spec).await?;
            part.write(list.into()).await?;
            part.finish().await?;
        }
        Ok(Taken { made, has_configuration: self.has_configuration })
    }
}

/// What an increment of the server's own has of a member: `INCREMENTAL.<name>` stands for a file of that name
/// (`GetIncrementalFilePath` in `basebackup_incremental.c`, PostgreSQL 17 and 18).
fn list_member(archive: &str, header: &Header, list: &mut Vec<u8>) {
    let path = listed_path(header);
    let bytes = header.entry_size().unwrap_or(0);
    let (stored, bytes, path) = match (header.entry_type(), made_path(&path)) {
        _ if path.is_empty() => return,
        (EntryType::Directory, _) => (Stored::Folder, 0, path),
        (EntryType::Regular, Some(made)) => (Stored::Summarized, 0, made),
        (EntryType::Regular, None) => (Stored::Whole, bytes, path),
        // Links to tablespaces: the contents have their list.
        _ => return,
    };
    Entry { stored, mode: listed_mode(header), bytes, archive, path: &path }.write(list);
}

/// The file that an incremental one becomes; nothing where it is none.
pub(in super::super) fn made_path(path: &[u8]) -> Option<Vec<u8>> {
    let name = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let rest = path[name..].strip_prefix(b"INCREMENTAL.")?;
    Some([&path[..name], rest].concat())
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
