use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers of one size, used again: fresh ones of megabytes cost a page fault for every 4 KiB.
#[derive(Debug, Clone)]
pub struct Buffers(Arc<Shelf>);

#[derive(Debug)]
struct Shelf {
    free: Mutex<Vec<Vec<u8>>>,
    capacity: usize,
    keep: usize,
}

impl Buffers {
    /// Buffers of `capacity` bytes, of which `keep` are held when nobody uses them.
    pub fn new(capacity: usize, keep: usize) -> Self {
        Self(Arc::new(Shelf { free: Mutex::default(), capacity, keep }))
    }

    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(self.0.capacity))
    }

    /// Gives a buffer back.
    pub fn put(&self, mut buffer: Vec<u8>) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.0.keep && buffer.capacity() >= self.0.capacity {
            buffer.clear();
            free.push(buffer);
        }
    }

    /// Freezes a buffer; it comes back when the last handle is dropped.
    pub fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, home: self.clone() })
    }
}

struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.put(std::mem::take(&mut self.buffer));
    }
}
