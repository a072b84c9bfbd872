use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::sink::{Message, Shared, stopped};
use crate::dumper::PartWriter;
use crate::error::{Error, Result};

/// Collects what is written into frames and sends them to be compressed.
pub(super) struct Writer {
    shared: Arc<Shared>,
    messages: mpsc::Sender<Message>,
    finished: oneshot::Receiver<Result<u32>>,
    filling: Vec<u8>,
    /// A write whose future was dropped half-way: nobody knows what of it arrived.
    torn: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        messages: mpsc::Sender<Message>,
        finished: oneshot::Receiver<Result<u32>>,
    ) -> Self {
        Self { shared, messages, finished, filling: Vec::new(), torn: false }
    }

    async fn send_frame(&mut self) -> Result<()> {
        let permit = tokio::select! {
            biased;
            () = self.shared.cancel.cancelled() => return Err(stopped()),
            permit = Arc::clone(&self.shared.frames).acquire_owned() => permit.map_err(|_| stopped())?,
        };
        let raw = std::mem::take(&mut self.filling);
        let mut frame = self.shared.frame_buffers.take();
        let compressor = Arc::clone(&self.shared.compressor);
        let compressed = self.shared.pool.submit(move || {
            compressor.compress(&raw, &mut frame)?;
            Ok((raw, frame))
        });
        self.messages.send(Message::Frame(compressed, permit)).await.map_err(|_| stopped())
    }

    async fn fill(&mut self, mut chunk: Bytes) -> Result<()> {
        let frame_bytes = self.shared.options.frame_bytes;
        while !chunk.is_empty() {
            if self.filling.capacity() == 0 {
                self.filling = self.shared.raw_buffers.take();
            }
            let taken = (frame_bytes - self.filling.len()).min(chunk.len());
            self.filling.extend_from_slice(&chunk.split_to(taken));
            if self.filling.len() == frame_bytes {
                self.send_frame().await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl PartWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            return Err(Error::internal("a write to this part was interrupted or failed before"));
        }
        self.fill(chunk).await?;
        self.torn = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<u32> {
        if self.torn {
            return Err(Error::internal("a write to this part was interrupted or failed before"));
        }
        if !self.filling.is_empty() {
            self.send_frame().await?;
        }
        self.messages.send(Message::End).await.map_err(|_| stopped())?;
        self.finished.await.map_err(|_| stopped())?
    }
}
