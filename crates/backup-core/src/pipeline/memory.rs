use serde::Serialize;

use super::{MIB, PipelineOptions};
use crate::compressor::Compressor;
use crate::encryptor::Encryptor;

/// What the process takes before a run begins: code, runtime, TLS, connections.
const BASE: usize = 24 * MIB;

/// The memory that a run can take at most, in bytes, by what takes it. It follows from the options alone,
/// not from the size of the database. Client tools that a dumper starts (`pg_dump`) are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Program, runtime, connections.
    pub base: usize,
    /// Frames being filled, compressed and sealed, raw and compressed.
    pub frames: usize,
    /// Chunks of uploads: one being filled for each open part, and those that the store holds.
    pub chunks: usize,
    /// Tables of the compression method, one set a job.
    pub compression: usize,
    /// The largest need of the encryption: a passphrase's scrypt.
    pub encryption: usize,
    /// What the dumper takes for itself: tables of blocks and files, for example.
    pub dumper: usize,
}

impl MemoryPlan {
    pub(crate) fn new(
        options: &PipelineOptions,
        jobs: usize,
        max_open: usize,
        upload_chunks: usize,
        compressor: &dyn Compressor,
        encryptor: Option<&dyn Encryptor>,
        dumper: usize,
    ) -> Self {
        Self {
            base: BASE,
            frames: (max_open + 2 * frames_in_flight(jobs)) * options.frame_bytes,
            chunks: max_open * (1 + upload_chunks) * options.chunk_bytes,
            compression: jobs * compressor.working_bytes(options.frame_bytes),
            encryption: encryptor.map_or(0, Encryptor::working_bytes),
            dumper,
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.base + self.frames + self.chunks + self.compression + self.encryption + self.dumper
    }
}

/// How many frames of a run are between their being full and their being sealed: one a job, one that is put
/// in order, and one that waits, so that no thread of the pool does.
pub(super) fn frames_in_flight(jobs: usize) -> usize {
    jobs + 2
}
