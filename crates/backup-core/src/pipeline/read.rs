//! From a stored part back to its raw bytes, every digest checked.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};

use super::buffers::Buffers;
use super::pool::{CpuPool, received};
use crate::compressor::Compressor;
use crate::encryptor::Cipher;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{Digest, Frame, ObjectRecord, PartContents, PartRecord, RawHasher};
use crate::store::{Bytestream, Store, elsewhere, sources, worse};

/// What is needed to read the parts of a backup.
#[derive(Clone)]
pub(crate) struct PartReader {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) folder: String,
    pub(crate) pool: CpuPool,
    pub(crate) compressor: Arc<dyn Compressor>,
    pub(crate) cipher: Option<Arc<dyn Cipher>>,
    pub(crate) buffers: ReadBuffers,
}

/// Buffers of frames that are read, used again by all parts of a run.
#[derive(Clone)]
pub(crate) struct ReadBuffers {
    stored: Buffers,
    raw: Buffers,
}

impl ReadBuffers {
    /// For `open` parts at a time, decompressed on `width` threads.
    pub(crate) fn new(open: usize, width: usize) -> Self {
        // One a thread and one that waits; then one that is cut or handed on, one in a channel, one in use.
        let keep = open * (width + 4);
        Self { stored: Buffers::new(0, keep), raw: Buffers::new(0, keep) }
    }
}

/// The raw bytes of a part. The stream ends well only when all lengths and digests are right.
pub(crate) fn read_part(reader: PartReader, record: PartRecord, contents: PartContents) -> Bytestream {
    let (tx, rx) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = reader.produce(&record, &contents, &tx).await {
            // A closed channel means that nobody reads any more.
            let _ = tx.send(Err(error)).await;
        }
    });
    futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) }).boxed()
}

impl PartReader {
    async fn produce(
        &self,
        record: &PartRecord,
        contents: &PartContents,
        tx: &mpsc::Sender<Result<Bytes>>,
    ) -> Result<()> {
        if record.objects.len() != contents.objects.len() {
            return Err(damaged(
                &format!("part {}", record.part),
                "record and contents do not fit each other",
            ));
        }
        let (mut raw, mut raw_bytes) = (RawHasher::like(&contents.raw), 0);
        for (object, frames) in record.objects.iter().zip(&contents.objects) {
            let done = self.object(object, frames, tx, &mut raw, &mut raw_bytes).await;
            if !done.map_err(|e| e.doing(format!("reading {}/{}", self.folder, object.key)))? {
                return Ok(());
            }
        }
        let (found, expected) = (raw.finish(), contents.raw);
        if (raw_bytes, found) != (contents.raw_bytes, expected) {
            let why =
                format!("its contents have {raw_bytes} bytes and digest {found}, not those of the backup");
            return Err(damaged(&format!("part {}", record.part), &why));
        }
        Ok(())
    }

    /// Reads one object through, in another copy where one fails. False when nobody reads any more.
    ///
    /// A frame is handed on when it was opened and decompressed, before the digest of the whole object is known. So
    /// another copy is read from the object's beginning: frames that were handed on are not handed on again, and
    /// must be the same there.
    async fn object(
        &self,
        object: &ObjectRecord,
        frames: &[Frame],
        tx: &mpsc::Sender<Result<Bytes>>,
        raw: &mut RawHasher,
        raw_bytes: &mut u64,
    ) -> Result<bool> {
        let sources = sources(&self.store);
        let several = sources.len() > 1;
        let mut handing = Handing { tx, raw, raw_bytes, done: Vec::new(), again: 0, several, reading: true };
        let mut failed = None;
        for source in sources {
            handing.again = 0;
            let read = async {
                // Nothing tells a damaged frame from another one: so nothing is handed on before all is compared.
                if several && self.cipher.is_none() && self.compressor.suffix().is_none() {
                    check_stored(&*source, &self.folder, object).await?;
                }
                self.object_from(&*source, object, frames.to_vec(), &mut handing).await
            };
            match read.await {
                Err(error) if several && elsewhere(&error) && !handing.is_wrong() => {
                    tracing::warn!(copy = source.location(), key = object.key, %error, "reading it from another copy");
                    failed = Some(worse(failed, error));
                }
                other => return other,
            }
        }
        Err(failed.unwrap_or_else(|| Error::internal("a store without copies")))
    }

    /// Reads one object through from one place.
    async fn object_from(
        &self,
        source: &dyn Store,
        object: &ObjectRecord,
        frames: Vec<Frame>,
        handing: &mut Handing<'_>,
    ) -> Result<bool> {
        let key = format!("{}/{}", self.folder, object.key);
        let stored = source.read(&key, None).await?;
        let (chunks, from_store) = mpsc::channel(4);
        let fetch = tokio::spawn(fetch(stored, chunks, object.clone()));
        let (to_pool, mut frames_in) = mpsc::channel(1);
        let buffers = self.buffers.stored.clone();
        let opened = open_on_thread(self.cipher.clone(), from_store, frames, buffers, to_pool)?;

        let mut pending = VecDeque::new();
        let delivered = loop {
            let room = pending.len() <= self.pool.width();
            let delivered = tokio::select! {
                biased;
                frame = frames_in.recv(), if room => match frame {
                    Some((frame, data)) => { pending.push_back(self.decompress(frame, data)); Ok(true) }
                    None if pending.is_empty() => break Ok(true),
                    None => self.deliver(&mut pending, handing).await,
                },
                delivered = self.deliver(&mut pending, handing), if !room => delivered,
            };
            if !matches!(delivered, Ok(true)) {
                break delivered;
            }
        };
        if !delivered? {
            return Ok(false);
        }
        let opened = opened.await.unwrap_or_else(|_| Err(Error::internal("the opening thread is gone")));
        let fetched =
            fetch.await.unwrap_or_else(|e| Err(Error::internal("the reading task failed").caused_by(e)));
        // A store that failed is the cause of a stream that ended early.
        match (fetched, opened) {
            (Err(e), _) if e.kind() != ErrorKind::Integrity => Err(e),
            (_, Err(e)) | (Err(e), _) => Err(e),
            (Ok(()), Ok(())) => Ok(true),
        }
    }

    fn decompress(&self, frame: Frame, data: Vec<u8>) -> oneshot::Receiver<Result<Vec<u8>>> {
        let compressor = Arc::clone(&self.compressor);
        let ReadBuffers { stored, raw: fresh } = self.buffers.clone();
        self.pool.submit(move || {
            let mut raw = fresh.take();
            compressor.decompress(&data, frame.raw as usize, &mut raw)?;
            stored.put(data);
            Ok(raw)
        })
    }

    /// Hands the oldest frame on. False when nobody reads any more.
    async fn deliver(
        &self,
        pending: &mut VecDeque<oneshot::Receiver<Result<Vec<u8>>>>,
        handing: &mut Handing<'_>,
    ) -> Result<bool> {
        let Some(oldest) = pending.pop_front() else { return Ok(true) };
        let raw = received(oldest.await)?;
        handing.take(raw, &self.buffers.raw).await
    }
}

/// Frames of an object on their way to whoever reads the part.
struct Handing<'a> {
    tx: &'a mpsc::Sender<Result<Bytes>>,
    raw: &'a mut RawHasher,
    raw_bytes: &'a mut u64,
    /// Digests of the frames of this object that were handed on, where it may be read again.
    done: Vec<u128>,
    /// How many of them were seen again in this copy.
    again: usize,
    several: bool,
    /// False once a frame that was handed on was found to be another one.
    reading: bool,
}

impl Handing<'_> {
    fn is_wrong(&self) -> bool {
        !self.reading
    }

    async fn take(&mut self, frame: Vec<u8>, buffers: &Buffers) -> Result<bool> {
        if self.several {
            let digest = xxhash_rust::xxh3::xxh3_128(&frame);
            match self.done.get(self.again) {
                Some(before) if *before == digest => {
                    self.again += 1;
                    buffers.put(frame);
                    return Ok(true);
                }
                Some(_) => {
                    self.reading = false;
                    return Err(damaged("what was read of it from another copy", "it had other bytes"));
                }
                None => {
                    self.done.push(digest);
                    self.again += 1;
                }
            }
        }
        self.raw.update(&frame);
        *self.raw_bytes += frame.len() as u64;
        Ok(self.tx.send(Ok(buffers.freeze(frame))).await.is_ok())
    }
}

/// Reads an object from the store, checks its length and digest, and passes the bytes on.
async fn fetch(mut stored: Bytestream, chunks: mpsc::Sender<Bytes>, object: ObjectRecord) -> Result<()> {
    let mut check = StoredCheck::new(object);
    while let Some(chunk) = stored.next().await {
        let chunk = chunk?;
        check.update(&chunk);
        if chunks.send(chunk).await.is_err() {
            // The opening thread stopped: its error says why.
            return Ok(());
        }
    }
    check.finish()
}

/// Opens the seal and cuts the stream at its frames, on a thread of its own since age reads synchronously.
fn open_on_thread(
    cipher: Option<Arc<dyn Cipher>>,
    from_store: mpsc::Receiver<Bytes>,
    frames: Vec<Frame>,
    buffers: Buffers,
    to_pool: mpsc::Sender<(Frame, Vec<u8>)>,
) -> Result<oneshot::Receiver<Result<()>>> {
    let (tx, rx) = oneshot::channel();
    let work = move || {
        let from = Box::new(ChannelReader::new(from_store));
        let mut reader: Box<dyn Read + Send> = match cipher {
            Some(cipher) => cipher.open(from)?,
            None => from,
        };
        let cut = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Integrity, "it ends too early"),
            _ => Error::new(ErrorKind::Integrity, "it is damaged").caused_by(e),
        };
        for frame in frames {
            let mut data = buffers.take();
            data.resize(frame.stored as usize, 0);
            reader.read_exact(&mut data).map_err(cut)?;
            if to_pool.blocking_send((frame, data)).is_err() {
                return Ok(());
            }
        }
        match reader.read(&mut [0]).map_err(cut)? {
            0 => Ok(()),
            _ => Err(Error::new(ErrorKind::Integrity, "it is longer than it should be")),
        }
    };
    std::thread::Builder::new()
        .name("pgark-open".into())
        .spawn(move || {
            // Nobody waits when the restore was cancelled.
            let _ = tx.send(work());
        })
        .map_err(|e| Error::io("starting a thread", e))?;
    Ok(rx)
}

/// Reads on a thread what a task sends.
pub(crate) struct ChannelReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl ChannelReader {
    pub(crate) fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunks, current: Bytes::new() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let taken = self.current.len().min(buf.len());
        self.current.copy_to_slice(&mut buf[..taken]);
        Ok(taken)
    }
}

/// Compares stored bytes with the record of their object.
pub(crate) struct StoredCheck {
    object: ObjectRecord,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl StoredCheck {
    pub(crate) fn new(object: ObjectRecord) -> Self {
        Self { object, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    pub(crate) fn update(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
    }

    pub(crate) fn finish(self) -> Result<()> {
        let expected = &self.object;
        if self.bytes != expected.bytes {
            return Err(Self::other_length(&expected.key, self.bytes, expected.bytes));
        }
        if Digest::from(self.hasher.finalize()) != expected.blake3 {
            return Err(Self::other_bytes(&expected.key));
        }
        Ok(())
    }

    /// An object has another length.
    pub(crate) fn other_length(key: &str, found: u64, expected: u64) -> Error {
        damaged(key, &format!("it has {found} bytes instead of {expected}"))
    }

    /// An object has other bytes.
    pub(crate) fn other_bytes(key: &str) -> Error {
        damaged(key, "its bytes are not those that were written")
    }
}

/// Reads an object through and compares it with its record: no key is needed.
pub(crate) async fn check_stored(store: &dyn Store, folder: &str, object: &ObjectRecord) -> Result<()> {
    let check = StoredCheck::new(object.clone());
    taken(store, &format!("{folder}/{}", object.key), None, check, StoredCheck::update).await?.finish()
}

/// Reads an object, or a range of it, through, into something.
pub(crate) async fn taken<T: Send + 'static>(
    store: &dyn Store,
    key: &str,
    range: Option<Range<u64>>,
    into: T,
    mut add: impl FnMut(&mut T, &[u8]) + Send + 'static,
) -> Result<T> {
    fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
    let into = Arc::new(Mutex::new(Some(into)));
    let taking = Arc::clone(&into);
    let take = move |bytes: &[u8]| {
        if let Some(into) = &mut *locked(&taking) {
            add(into, bytes);
        }
    };
    store.read_through(key, range, Box::new(take)).await?;
    let taken = locked(&into).take();
    taken.ok_or_else(|| Error::internal("what was read is gone"))
}

fn damaged(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("{what} is damaged: {why}"))
        .with_hint("restore from another backup or another copy; pgark verify shows what else is damaged")
}
