use std::sync::Arc;

use bytes::Bytes;
use tar::{EntryType, Header};

use super::super::shards::Shards;
use super::super::{DELTA, FILES, INCREMENTAL, LIST};
use super::compare::{Compared, Comparer};
use super::list::{Entry, Stored, listed_mode, listed_path};
use crate::dumper::{PartSink, PartSpec};
use crate::error::{Error, Result};
use crate::state::StateFile;
use crate::tar_reader::{Piece, Reader};

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
    comparer: Option<Comparer<StateFile>>,
    /// What is to be stored of the piece that came last.
    out: Vec<Piece>,
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

impl Intake {
    pub(in super::super) fn new(sink: Arc<dyn PartSink>, coming: Coming) -> Self {
        let (kind, comparer) = match coming {
            Coming::Increment => (INCREMENTAL, None),
            Coming::Everything(Some(comparer)) if comparer.is_increment() => (DELTA, Some(*comparer)),
            Coming::Everything(comparer) => (FILES, comparer.map(|comparer| *comparer)),
        };
        let (name, list) = (String::new(), Vec::new());
        Self { sink, kind, archive: None, name, comparer, out: Vec::new(), list, has_configuration: false }
    }

    /// Begins an archive: `base`, or the OID of a tablespace.
    pub(in super::super) async fn begin(&mut self, name: &str) -> Result<()> {
        self.end().await?;
        if let Some(comparer) = &mut self.comparer {
            comparer.archive(name);
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
            match &mut self.comparer {
                Some(comparer) => comparer.piece(piece, &mut self.out)?,
                None => self.out.push(piece),
            }
            for piece in self.out.drain(..) {
                match piece {
                    Piece::Member(header) => shards.member(&header).await?,
                    Piece::Data(data) => shards.data(data).await?,
                }
            }
        }
        Ok(())
    }

    /// Ends the archive.
    async fn end(&mut self) -> Result<()> {
        let Some((reader, mut shards)) = self.archive.take() else { return Ok(()) };
        reader.finish()?;
        shards.close().await
    }

    /// Ends the last archive, and stores the list of an increment.
    pub(in super::super) async fn finish(mut self) -> Result<Taken> {
        self.end().await?;
        let mut made = self.comparer.take().map(Comparer::finish);
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
