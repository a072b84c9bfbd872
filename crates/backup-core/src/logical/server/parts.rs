//! The parts of one database of several. A part that is dropped unfinished fails the whole run, and a database that
//! cannot be dumped shall not: its parts are ended here, whole as parts, though nothing can be restored from them.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, ErrorKind, Result};

/// A sink for one database. Each part is written by a task of its own, which a writer that is dropped does not tear.
pub(super) struct DatabaseParts {
    parts: Arc<dyn PartSink>,
    tasks: TaskTracker,
    written: Arc<Mutex<Vec<u32>>>,
}

/// What a writer tells its task. A closed channel without [`Message::End`] means that it was dropped.
enum Message {
    Bytes(Bytes),
    End,
}

impl DatabaseParts {
    pub(super) fn new(parts: Arc<dyn PartSink>) -> Self {
        Self { parts, tasks: TaskTracker::new(), written: Arc::default() }
    }

    /// Waits until no part is open; the numbers of those that were written.
    pub(super) async fn settle(&self) -> Vec<u32> {
        self.tasks.close();
        self.tasks.wait().await;
        let mut written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        written.sort_unstable();
        written
    }
}

#[async_trait]
impl PartSink for DatabaseParts {
    async fn open(&self, spec: PartSpec) -> Result<Box<dyn PartWriter>> {
        let part = self.parts.open(spec).await?;
        let (messages, queue) = mpsc::channel(1);
        let (outcome, finished) = oneshot::channel();
        let written = Arc::clone(&self.written);
        self.tasks.spawn(async move {
            let result = write(part, queue).await;
            if let Ok(part) = &result {
                written.lock().unwrap_or_else(PoisonError::into_inner).push(*part);
            }
            // The writer may be gone; a failure of the store is known to the run by itself.
            let _ = outcome.send(result);
        });
        Ok(Box::new(Writer { messages, finished }))
    }
}

async fn write(mut part: Box<dyn PartWriter>, mut queue: mpsc::Receiver<Message>) -> Result<u32> {
    while let Some(Message::Bytes(bytes)) = queue.recv().await {
        part.write(bytes).await?;
    }
    part.finish().await
}

struct Writer {
    messages: mpsc::Sender<Message>,
    finished: oneshot::Receiver<Result<u32>>,
}

/// The part's task ends early only where the sink failed, and the sink says why.
fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "the part's task has ended")
}

#[async_trait]
impl PartWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.messages.send(Message::Bytes(chunk)).await.map_err(|_| stopped())
    }

    async fn finish(self: Box<Self>) -> Result<u32> {
        self.messages.send(Message::End).await.map_err(|_| stopped())?;
        self.finished.await.map_err(|_| stopped())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of each part, and whether it was ended.
    type Written = Arc<Mutex<Vec<(Vec<u8>, bool)>>>;

    /// Keeps what was written; a part that is dropped unfinished stays open.
    #[derive(Default)]
    struct Kept(Written);

    struct KeptPart(Written, usize);

    #[async_trait]
    impl PartSink for Kept {
        async fn open(&self, _: PartSpec) -> Result<Box<dyn PartWriter>> {
            let mut kept = self.0.lock().unwrap();
            kept.push((Vec::new(), false));
            Ok(Box::new(KeptPart(Arc::clone(&self.0), kept.len() - 1)))
        }
    }

    #[async_trait]
    impl PartWriter for KeptPart {
        async fn write(&mut self, chunk: Bytes) -> Result<()> {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            self.0.lock().unwrap()[self.1].0.extend_from_slice(&chunk);
            Ok(())
        }

        async fn finish(self: Box<Self>) -> Result<u32> {
            self.0.lock().unwrap()[self.1].1 = true;
            Ok(u32::try_from(self.1).unwrap() + 1)
        }
    }

    #[tokio::test]
    async fn a_writer_that_is_dropped_leaves_a_part_that_is_ended() {
        let kept = Kept::default();
        let written = Arc::clone(&kept.0);
        let parts = DatabaseParts::new(Arc::new(kept));
        let spec = || PartSpec { kind: "copy".to_owned(), name: "t".to_owned() };
        let mut whole = parts.open(spec()).await.unwrap();
        whole.write(Bytes::from_static(b"whole")).await.unwrap();
        assert_eq!(whole.finish().await.unwrap(), 1);
        let mut torn = parts.open(spec()).await.unwrap();
        torn.write(Bytes::from_static(b"one")).await.unwrap();
        torn.write(Bytes::from_static(b"two")).await.unwrap();
        // A write that is given up half-way, as by a task that is aborted.
        let third = torn.write(Bytes::from_static(b"three"));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), third).await.is_err());
        drop(torn);
        assert_eq!(parts.settle().await, [1, 2]);
        let kept = written.lock().unwrap().clone();
        assert_eq!(kept, [(b"whole".to_vec(), true), (b"onetwo".to_vec(), true)]);
    }
}
