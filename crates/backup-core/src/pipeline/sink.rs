//! The sink of a backup run: hands out part writers, and runs a task a part that stores what they write.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::assemble::{Assembled, Assembler};
use super::buffers::Buffers;
use super::memory::frames_in_flight;
use super::pool::{CpuPool, received};
use super::writer::Writer;
use super::{FirstError, PipelineOptions, Totals};
use crate::compressor::Compressor;
use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::encryptor::Cipher;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::repository::{ObjectRecord, PartContents, PartRecord, RawHasher, layout};
use crate::store::{Store, Upload};

/// Everything that the parts of a run share.
pub(crate) struct Sink {
    pub(super) shared: Arc<Shared>,
    tasks: TaskTracker,
    open: Arc<AtomicUsize>,
    max_open: usize,
    next: AtomicU32,
}

pub(super) struct Shared {
    pub(super) options: PipelineOptions,
    pub(super) pool: CpuPool,
    pub(super) compressor: Arc<dyn Compressor>,
    pub(super) raw_buffers: Buffers,
    pub(super) frame_buffers: Buffers,
    pub(super) frames: Arc<Semaphore>,
    pub(super) cancel: CancellationToken,
    store: Arc<dyn Store>,
    cipher: Option<Arc<dyn Cipher>>,
    cipher_suffix: Option<&'static str>,
    folder: String,
    chunks: Buffers,
    observer: Arc<dyn Observer>,
    totals: Arc<Totals>,
    failure: FirstError,
    done: Mutex<Vec<(PartRecord, PartContents)>>,
}

/// A frame on its way: the raw bytes, and the compressed ones.
pub(super) type Compressed = (Vec<u8>, Vec<u8>);

/// What a writer tells its part's task.
pub(super) enum Message {
    /// The next frame. The permit bounds how many there are; it is given back when the frame is sealed.
    Frame(oneshot::Receiver<Result<Compressed>>, OwnedSemaphorePermit),
    /// The part is whole. Without this mark a closed channel means that the writer was dropped.
    End,
}

/// What a sink is made of.
pub(crate) struct SinkParts {
    pub(crate) options: PipelineOptions,
    pub(crate) pool: CpuPool,
    pub(crate) jobs: usize,
    pub(crate) max_open: usize,
    pub(crate) compressor: Arc<dyn Compressor>,
    pub(crate) cipher: Option<(Arc<dyn Cipher>, &'static str)>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) folder: String,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) cancel: CancellationToken,
    pub(crate) failure: FirstError,
    pub(crate) totals: Arc<Totals>,
}

impl Sink {
    pub(crate) fn new(parts: SinkParts) -> Self {
        let in_flight = frames_in_flight(parts.jobs);
        let (frame_bytes, chunk_bytes) = (parts.options.frame_bytes, parts.options.chunk_bytes);
        let (cipher, cipher_suffix) = parts.cipher.unzip();
        let shared = Shared {
            raw_buffers: Buffers::new(frame_bytes, in_flight + parts.max_open),
            frame_buffers: Buffers::new(0, in_flight),
            chunks: Buffers::new(chunk_bytes, parts.max_open * (1 + parts.store.upload_chunks())),
            frames: Arc::new(Semaphore::new(in_flight)),
            options: parts.options,
            pool: parts.pool,
            compressor: parts.compressor,
            cancel: parts.cancel,
            store: parts.store,
            cipher,
            cipher_suffix,
            folder: parts.folder,
            observer: parts.observer,
            totals: parts.totals,
            failure: parts.failure,
            done: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            tasks: TaskTracker::new(),
            open: Arc::default(),
            max_open: parts.max_open,
            next: AtomicU32::new(1),
        }
    }

    /// Waits until every part's task has ended, uploads aborted included.
    pub(crate) async fn settle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The finished parts, by number.
    pub(crate) fn take_done(&self) -> Vec<(PartRecord, PartContents)> {
        let mut done = std::mem::take(&mut *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner));
        done.sort_by_key(|(record, _)| record.part);
        done
    }
}

#[async_trait]
impl PartSink for Sink {
    async fn open(&self, spec: PartSpec) -> Result<Box<dyn PartWriter>> {
        if !layout::is_word(&spec.kind) {
            return Err(Error::internal(format!(
                "{:?} is not a kind of part: lower-case letters",
                spec.kind
            )));
        }
        let slot = Slot::take(&self.open, self.max_open)?;
        let part = self.next.fetch_add(1, Ordering::Relaxed);
        let (messages, queue) = mpsc::channel(1);
        let (outcome, finished) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        shared.observer.event(&Event::PartOpened { part, name: spec.name.clone() });
        self.tasks.spawn(async move {
            let result = shared.store_part(part, spec, queue).await;
            drop(slot);
            let stored = match result {
                Ok(done) => {
                    shared.done.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                    Ok(part)
                }
                Err(error) => {
                    shared.failure.set(error);
                    shared.cancel.cancel();
                    Err(Error::cancelled())
                }
            };
            // The writer may be gone: then the failure stands in its slot.
            let _ = outcome.send(stored);
        });
        Ok(Box::new(Writer::new(Arc::clone(&self.shared), messages, finished)))
    }
}

/// One of the parts that may be open.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>, max: usize) -> Result<Self> {
        let slot = Self(Arc::clone(open));
        if open.fetch_add(1, Ordering::AcqRel) >= max {
            return Err(Error::internal(format!("the dumper opened more than the {max} parts it declared")));
        }
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A part while it is stored.
struct PartInProgress {
    part: u32,
    kind: String,
    objects: Vec<ObjectRecord>,
    frames: Vec<Vec<crate::repository::Frame>>,
    raw: RawHasher,
    raw_bytes: u64,
    upload: Option<Box<dyn Upload>>,
}

impl Shared {
    async fn store_part(
        &self,
        part: u32,
        spec: PartSpec,
        queue: mpsc::Receiver<Message>,
    ) -> Result<(PartRecord, PartContents)> {
        let mut progress = PartInProgress {
            part,
            kind: spec.kind,
            objects: Vec::new(),
            frames: Vec::new(),
            raw: RawHasher::default(),
            raw_bytes: 0,
            upload: None,
        };
        let stored = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled()),
            stored = self.store_frames(&mut progress, queue) => stored,
        };
        if let Err(error) = stored {
            if let Some(upload) = progress.upload.take() {
                // What remains is invisible, and the bucket's lifecycle rule removes it.
                if let Err(e) = upload.abort().await {
                    tracing::warn!(error = %e, "an upload could not be aborted");
                }
            }
            return Err(error);
        }
        let stored_bytes = progress.objects.iter().map(|o| o.bytes).sum();
        self.observer.event(&Event::PartFinished { part, stored_bytes });
        let record = PartRecord { part, kind: progress.kind, objects: progress.objects };
        let contents = PartContents {
            part,
            name: spec.name,
            raw_bytes: progress.raw_bytes,
            raw: progress.raw.finish(),
            objects: progress.frames,
        };
        Ok((record, contents))
    }

    async fn store_frames(
        &self,
        progress: &mut PartInProgress,
        mut queue: mpsc::Receiver<Message>,
    ) -> Result<()> {
        let mut object = Some(self.start_object(progress).await?);
        while let Some(message) = queue.recv().await {
            let Message::Frame(frame, permit) = message else {
                if let Some(object) = object {
                    self.finish_object(progress, object).await?;
                }
                return Ok(());
            };
            let (raw, frame) = received(frame.await)?;
            let mut assembler = match object.take() {
                Some(object) => object,
                None => self.start_object(progress).await?,
            };
            let (raw_len, before) = (raw.len() as u64, assembler.bytes());
            let mut hasher = std::mem::take(&mut progress.raw);
            let (raw_home, frame_home) = (self.raw_buffers.clone(), self.frame_buffers.clone());
            let (assembler, hasher, full) = self
                .pool
                .run(move || {
                    hasher.update(&raw);
                    let full = assembler.push(raw.len(), &frame)?;
                    raw_home.put(raw);
                    frame_home.put(frame);
                    Ok((assembler, hasher, full))
                })
                .await?;
            drop(permit);
            progress.raw = hasher;
            progress.raw_bytes += raw_len;
            self.totals.add(raw_len, assembler.bytes() - before, &*self.observer);
            self.write_chunks(progress, full).await?;
            if assembler.bytes() >= self.options.object_bytes {
                self.finish_object(progress, assembler).await?;
            } else {
                object = Some(assembler);
            }
        }
        Err(Error::internal(format!("part {} was dropped before it was finished", progress.part)))
    }

    fn object_name(&self, progress: &PartInProgress) -> String {
        let codec = self.compressor.suffix();
        layout::part(progress.part, progress.objects.len() + 1, &progress.kind, codec, self.cipher_suffix)
    }

    async fn start_object(&self, progress: &mut PartInProgress) -> Result<Assembler> {
        let key = format!("{}/{}", self.folder, self.object_name(progress));
        progress.upload = Some(self.store.upload(&key).await?);
        Assembler::start(self.cipher.as_deref(), &self.chunks, self.options.chunk_bytes)
    }

    async fn write_chunks(&self, progress: &mut PartInProgress, chunks: Vec<Bytes>) -> Result<()> {
        let upload = progress.upload.as_mut().ok_or_else(|| Error::internal("no upload is open"))?;
        for chunk in chunks {
            upload.write(chunk).await?;
        }
        Ok(())
    }

    async fn finish_object(&self, progress: &mut PartInProgress, object: Assembler) -> Result<()> {
        let before = object.bytes();
        let (full, Assembled { last, bytes, digest, frames }) =
            self.pool.run(move || object.finish()).await?;
        self.write_chunks(progress, full).await?;
        if !last.is_empty() {
            self.write_chunks(progress, vec![last]).await?;
        }
        let upload = progress.upload.take().ok_or_else(|| Error::internal("no upload is open"))?;
        upload.finish().await?;
        self.totals.add(0, bytes - before, &*self.observer);
        let key = self.object_name(progress);
        progress.objects.push(ObjectRecord { key, bytes, blake3: digest });
        progress.frames.push(frames);
        Ok(())
    }
}

/// The error that a writer returns when its part's task has ended: the cause stands in the run's slot.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "the part's task has ended")
}
