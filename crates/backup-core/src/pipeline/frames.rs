//! Some frames of a part, in any order.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use tokio::runtime::Handle;

use super::Totals;
use super::read::PartReader;
use crate::dumper::PartFrames;
use crate::encryptor::ReadSeek;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::repository::{Frame, ObjectRecord, PartContents, PartRecord};
use crate::store::Store;

/// Stored bytes that are asked for at a time.
const READ_AHEAD: u64 = 2 * 1024 * 1024;

/// Frames of one part.
pub(crate) struct Frames {
    reader: PartReader,
    objects: Vec<ObjectRecord>,
    places: Vec<Place>,
    /// The object that was read last.
    open: Option<(usize, Box<dyn ReadSeek>)>,
    totals: Arc<Totals>,
    observer: Arc<dyn Observer>,
}

/// Where a frame is.
#[derive(Clone, Copy)]
struct Place {
    /// In the part.
    raw: u64,
    object: usize,
    /// In the object, when that is opened.
    stored: u64,
    frame: Frame,
}

impl Frames {
    /// Nothing where the encryption does not allow it.
    pub(crate) fn of(
        reader: PartReader,
        record: &PartRecord,
        contents: &PartContents,
        totals: Arc<Totals>,
        observer: Arc<dyn Observer>,
    ) -> Result<Option<Box<dyn PartFrames>>> {
        let (mut places, mut raw) = (Vec::new(), 0);
        for (object, frames) in contents.objects.iter().enumerate() {
            let mut stored = 0;
            for frame in frames {
                places.push(Place { raw, object, stored, frame: *frame });
                raw += u64::from(frame.raw);
                stored += u64::from(frame.stored);
            }
        }
        if raw != contents.raw_bytes || record.objects.len() != contents.objects.len() {
            let message = format!("record and contents of part {} do not fit each other", record.part);
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("restore another backup"));
        }
        if let Some(cipher) = &reader.cipher
            && cipher
                .open_anywhere(Box::new(io::Cursor::new(Vec::new())))
                .is_ok_and(|opened| opened.is_none())
        {
            return Ok(None);
        }
        let objects = record.objects.clone();
        Ok(Some(Box::new(Self { reader, objects, places, open: None, totals, observer })))
    }

    /// Opens an object.
    fn object(&self, number: usize) -> Opening {
        let object = &self.objects[number];
        let stored = Stored {
            store: Arc::clone(&self.reader.store),
            key: format!("{}/{}", self.reader.folder, object.key),
            bytes: object.bytes,
            at: 0,
            ahead: Bytes::new(),
            ahead_at: 0,
            runtime: Handle::current(),
        };
        Opening { cipher: self.reader.cipher.clone(), stored }
    }
}

/// An object that is not open yet.
struct Opening {
    cipher: Option<Arc<dyn crate::encryptor::Cipher>>,
    stored: Stored,
}

impl Opening {
    fn open(self) -> Result<Box<dyn ReadSeek>> {
        let Some(cipher) = self.cipher else { return Ok(Box::new(self.stored)) };
        let opened = cipher.open_anywhere(Box::new(self.stored))?;
        opened.ok_or_else(|| Error::internal("a sealed object cannot be read from any place"))
    }
}

#[async_trait]
impl PartFrames for Frames {
    async fn at(&mut self, offset: u64) -> Result<(u64, Bytes)> {
        let number = self.places.partition_point(|place| place.raw <= offset).checked_sub(1);
        let place = number.map(|number| self.places[number]);
        let place =
            place.filter(|place| offset < place.raw + u64::from(place.frame.raw)).ok_or_else(|| {
                Error::new(ErrorKind::Integrity, "a part is shorter than the files in it")
                    .with_hint("restore another backup")
            })?;
        let open = self.open.take().filter(|(object, _)| *object == place.object);
        let opening = if open.is_none() { Some(self.object(place.object)) } else { None };
        let compressor = Arc::clone(&self.reader.compressor);
        let key = self.objects[place.object].key.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = match (open, opening) {
                (Some((_, reader)), _) => reader,
                (None, Some(opening)) => opening.open()?,
                (None, None) => return Err(Error::internal("no object to read")),
            };
            let mut stored = vec![0; place.frame.stored as usize];
            reader
                .seek(SeekFrom::Start(place.stored))
                .and_then(|_| reader.read_exact(&mut stored))
                .map_err(|e| unread(e, &key))?;
            let mut raw = Vec::new();
            compressor.decompress(&stored, place.frame.raw as usize, &mut raw)?;
            Ok((reader, raw))
        });
        let (reader, raw) =
            read.await.map_err(|e| Error::internal("reading a frame failed").caused_by(e))??;
        self.open = Some((place.object, reader));
        self.totals.add(raw.len() as u64, 0, &*self.observer);
        Ok((place.raw, raw.into()))
    }
}

/// What a failed read means: the store's own error is in it, or what was read is damaged.
fn unread(error: io::Error, key: &str) -> Error {
    let damaged = || {
        Error::new(ErrorKind::Integrity, format!("{key} is damaged"))
            .with_hint("restore from another backup or another copy; pgark verify shows what else is damaged")
    };
    // Without anything in it, it says that the end came too early, or that the seal is broken.
    let Some(inner) = error.into_inner() else { return damaged() };
    match inner.downcast::<Error>() {
        Ok(own) => own.doing(format!("reading {key}")),
        Err(other) => damaged().caused_by(other),
    }
}

/// An object of the store, read in pieces on a thread that may block.
struct Stored {
    store: Arc<dyn Store>,
    key: String,
    bytes: u64,
    at: u64,
    ahead: Bytes,
    ahead_at: u64,
    runtime: Handle,
}

impl Read for Stored {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.bytes || buf.is_empty() {
            return Ok(0);
        }
        let within = |this: &Self| {
            let from = this.at.checked_sub(this.ahead_at)?;
            usize::try_from(from).ok().filter(|from| *from < this.ahead.len())
        };
        if within(self).is_none() {
            let range = self.at..self.bytes.min(self.at + READ_AHEAD);
            let (store, key) = (Arc::clone(&self.store), self.key.clone());
            let read = self.runtime.block_on(async move {
                let stream = store.read(&key, Some(range)).await?;
                stream
                    .try_fold(Vec::new(), |mut all, chunk| async move {
                        all.extend_from_slice(&chunk);
                        Ok(all)
                    })
                    .await
            });
            self.ahead = read.map_err(io::Error::other)?.into();
            self.ahead_at = self.at;
        }
        let Some(from) = within(self) else { return Ok(0) };
        let piece = &self.ahead[from..];
        let taken = piece.len().min(buf.len());
        buf[..taken].copy_from_slice(&piece[..taken]);
        self.at += taken as u64;
        Ok(taken)
    }
}

impl Seek for Stored {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
