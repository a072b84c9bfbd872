//! Frames in order into one object: sealed, digested, cut into chunks.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::buffers::Buffers;
use crate::encryptor::{Cipher, Seal};
use crate::error::{Error, Result};
use crate::repository::{Digest, Frame};

/// One object being assembled. It runs on the CPU pool, one step a frame.
pub(super) struct Assembler {
    seal: Box<dyn Seal>,
    chunker: Chunker,
    frames: Vec<Frame>,
}

/// A finished object.
pub(super) struct Assembled {
    pub(super) last: Bytes,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
    pub(super) frames: Vec<Frame>,
}

impl Assembler {
    pub(super) fn start(cipher: Option<&dyn Cipher>, chunks: &Buffers, chunk_bytes: usize) -> Result<Self> {
        let chunker = Chunker::new(chunks.clone(), chunk_bytes);
        let seal = match cipher {
            Some(cipher) => cipher.seal(Box::new(chunker.clone()))?,
            None => Box::new(Unsealed(chunker.clone())),
        };
        Ok(Self { seal, chunker, frames: Vec::new() })
    }

    /// Adds a frame; returns the chunks that are full now.
    pub(super) fn push(&mut self, raw_len: usize, frame: &[u8]) -> Result<Vec<Bytes>> {
        self.seal.write_all(frame).map_err(|e| Error::io("sealing a frame", e))?;
        let len = |n: usize| u32::try_from(n).map_err(|_| Error::internal("a frame of more than 4 GiB"));
        self.frames.push(Frame { raw: len(raw_len)?, stored: len(frame.len())? });
        Ok(self.chunker.full())
    }

    /// Bytes of the object until now, without what the seal holds back.
    pub(super) fn bytes(&self) -> u64 {
        self.chunker.lock().bytes()
    }

    /// Ends the object; full chunks that the end made come first.
    pub(super) fn finish(self) -> Result<(Vec<Bytes>, Assembled)> {
        self.seal.finish().map_err(|e| Error::io("sealing the end of a part", e))?;
        let full = self.chunker.full();
        let (last, bytes, digest) = self.chunker.end();
        Ok((full, Assembled { last, bytes, digest, frames: self.frames }))
    }
}

/// Cuts what is written into chunks of one size. The seal owns a handle to write to, the assembler another
/// to take chunks from; they run on one thread, one after the other.
#[derive(Clone)]
struct Chunker(Arc<Mutex<State>>);

struct State {
    filling: Vec<u8>,
    full: Vec<Bytes>,
    hasher: blake3::Hasher,
    done: u64,
    chunk_bytes: usize,
    buffers: Buffers,
}

impl State {
    fn bytes(&self) -> u64 {
        self.done + self.filling.len() as u64
    }

    fn cut(&mut self) -> Bytes {
        self.hasher.update(&self.filling);
        self.done += self.filling.len() as u64;
        let chunk = std::mem::take(&mut self.filling);
        self.buffers.freeze(chunk)
    }
}

impl Chunker {
    fn new(buffers: Buffers, chunk_bytes: usize) -> Self {
        let (filling, hasher) = (buffers.take(), blake3::Hasher::new());
        Self(Arc::new(Mutex::new(State { filling, full: Vec::new(), hasher, done: 0, chunk_bytes, buffers })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.lock().full)
    }

    fn end(&self) -> (Bytes, u64, Digest) {
        let mut state = self.lock();
        let last = state.cut();
        (last, state.done, Digest::from(state.hasher.finalize()))
    }
}

impl Write for Chunker {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        let room = state.chunk_bytes - state.filling.len();
        let taken = room.min(buf.len());
        state.filling.extend_from_slice(&buf[..taken]);
        if state.filling.len() == state.chunk_bytes {
            let chunk = state.cut();
            state.full.push(chunk);
            state.filling = state.buffers.take();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Unsealed(Chunker);

impl Write for Unsealed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seal for Unsealed {
    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}
