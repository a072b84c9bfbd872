//! Bytes on a thread that may block: parts of a backup, files, and the members of a tar archive in either.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Bytestream;
use crate::tar_reader::{Piece, Reader};

/// Bytes that are read of a file at a time.
const READ_BYTES: usize = 256 * 1024;

/// Bytes, piece by piece.
pub(super) trait Pieces {
    /// The next; nothing at the end, when everything was as it should be.
    fn next_piece(&mut self) -> Result<Option<Bytes>>;
}

impl<P: Pieces + ?Sized> Pieces for &mut P {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        (**self).next_piece()
    }
}

/// A part, read on a thread that may block.
pub(super) struct PartPieces {
    pub(super) stream: Bytestream,
    pub(super) runtime: Handle,
    pub(super) cancel: CancellationToken,
}

impl Pieces for PartPieces {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        let (stream, cancel) = (&mut self.stream, &self.cancel);
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::cancelled()),
                piece = stream.next() => piece.transpose(),
            }
        })
    }
}

/// A file.
pub(super) struct FilePieces(pub(super) File);

impl Pieces for FilePieces {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        let mut piece = vec![0; READ_BYTES];
        let read = self.0.read(&mut piece).map_err(|e| Error::io("reading the dump", e))?;
        piece.truncate(read);
        Ok((read > 0).then(|| piece.into()))
    }
}

/// Pieces as a reader.
pub(super) struct PieceReader<P> {
    from: P,
    current: Bytes,
}

impl<P: Pieces> PieceReader<P> {
    pub(super) fn new(from: P) -> Self {
        Self { from, current: Bytes::new() }
    }
}

impl<P: Pieces> Read for PieceReader<P> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let taken = self.fill_buf()?.len().min(out.len());
        self.current.copy_to_slice(&mut out[..taken]);
        Ok(taken)
    }
}

impl<P: Pieces> BufRead for PieceReader<P> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.from.next_piece().map_err(io::Error::other)? {
                Some(piece) => self.current = piece,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

/// The members of a tar archive, one after the other. As [`Pieces`] it is the data of the one that began last.
pub(super) struct Members<P> {
    from: P,
    reader: Reader,
    /// A member that began while the one before was read.
    waiting: Option<(String, u64)>,
    ended: bool,
}

impl<P: Pieces> Members<P> {
    pub(super) fn new(from: P) -> Self {
        Self { from, reader: Reader::default(), waiting: None, ended: false }
    }

    /// Name and bytes of the next member; what is left of the one before is passed over. At the end of the archive all
    /// of its bytes were read.
    pub(super) fn next_member(&mut self) -> Result<Option<(String, u64)>> {
        while self.waiting.is_none() && !self.ended {
            self.next_piece()?;
        }
        Ok(self.waiting.take())
    }
}

impl<P: Pieces> Pieces for Members<P> {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        while self.waiting.is_none() && !self.ended {
            match self.reader.next()? {
                Some(Piece::Member(header)) => {
                    let bytes = header.entry_size();
                    let bytes = bytes.map_err(|e| Error::internal("a size was a number").caused_by(e))?;
                    let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
                    self.waiting = Some((name, bytes));
                }
                Some(Piece::Data(data)) => return Ok(Some(data)),
                None => {
                    if let Some(piece) = self.from.next_piece()? {
                        self.reader.push(piece);
                        continue;
                    }
                    self.reader.finish()?;
                    if !self.reader.has_ended() {
                        return Err(Error::new(ErrorKind::Integrity, "a tar archive is cut: it has no end")
                            .with_hint("take another copy of it"));
                    }
                    self.ended = true;
                }
            }
        }
        Ok(None)
    }
}

/// The `oid` of a member or file `blob_<oid>.dat`.
pub(super) fn object_of(name: &str) -> Option<u32> {
    name.strip_prefix("blob_")?.strip_suffix(".dat")?.parse().ok()
}

/// Opens a file.
pub(super) fn open_file(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))
}
