//! From the raw bytes of a WAL file to stored ones, and back.

use std::io::{self, Read, Seek, SeekFrom, Write};

use tempfile::{SpooledData, SpooledTempFile};
use zstd::zstd_safe::CParameter;

use super::key::WalKey;
use super::object::ShortDigest;
use crate::encryptor::{Cipher, Seal};
use crate::error::{Error, ErrorKind, Result};
use crate::shared_writer::SharedWriter;
use crate::store::{Created, Store};

/// Stored bytes up to this length stay in memory, and are stored with one request. It is also the length of a
/// chunk of a longer upload.
const IN_MEMORY: usize = 6 * 1024 * 1024;

/// Bytes that a thread compresses at a time: the server waits for its segment, and has no other one meanwhile.
const JOB: u32 = 512 * 1024;

/// How many threads compress one file.
fn workers() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)).min(4)
}

/// Compressed and sealed bytes, ready to be stored.
pub(super) struct Sealed {
    file: SpooledTempFile,
    pub(super) bytes: u64,
    pub(super) digest: ShortDigest,
}

/// Where sealed bytes go.
struct Spool {
    file: SpooledTempFile,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Self { file: SpooledTempFile::new(IN_MEMORY), hasher: blake3::Hasher::new(), bytes: 0 }
    }
}

impl Write for Spool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.hasher.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Out {
    Clear(SharedWriter<Spool>),
    Sealed(Box<dyn Seal>),
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(out) => out.write(buf),
            Self::Sealed(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(out) => out.flush(),
            Self::Sealed(out) => out.flush(),
        }
    }
}

/// Compresses and seals what is written to it.
pub(super) struct Sealer {
    encoder: zstd::Encoder<'static, Out>,
    spool: SharedWriter<Spool>,
}

impl Sealer {
    /// On several threads, for who waits for a whole file.
    pub(super) fn fast(level: i32, key: Option<&WalKey>) -> Result<Self> {
        let mut sealer = Self::new(level, key)?;
        let failed = |e| Error::io("compressing WAL", e);
        sealer.encoder.multithread(workers()).map_err(failed)?;
        sealer.encoder.set_parameter(CParameter::JobSize(JOB)).map_err(failed)?;
        Ok(sealer)
    }

    /// On this thread, with less memory.
    pub(super) fn new(level: i32, key: Option<&WalKey>) -> Result<Self> {
        let spool = SharedWriter::new(Spool::default());
        let out = match key {
            Some(key) => Out::Sealed(key.cipher.seal(Box::new(spool.clone()))?),
            None => Out::Clear(spool.clone()),
        };
        let failed = |e| Error::io("compressing WAL", e);
        let mut encoder = zstd::Encoder::new(out, level).map_err(failed)?;
        encoder.include_checksum(true).map_err(failed)?;
        Ok(Self { encoder, spool })
    }

    pub(super) fn write(&mut self, raw: &[u8]) -> Result<()> {
        self.encoder.write_all(raw).map_err(|e| Error::io("compressing WAL", e))
    }

    pub(super) fn finish(self) -> Result<Sealed> {
        let failed = |e| Error::io("sealing WAL", e);
        match self.encoder.finish().map_err(failed)? {
            Out::Clear(_) => {}
            Out::Sealed(seal) => seal.finish().map_err(failed)?,
        }
        let Spool { mut file, hasher, bytes } = self.spool.take();
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Sealed { file, bytes, digest: hasher.finalize().into() })
    }
}

impl Sealed {
    /// Stores it. True where the object is new.
    pub(super) async fn store(self, store: &dyn Store, key: &str) -> Result<bool> {
        let mut file = match self.file.into_inner() {
            SpooledData::InMemory(bytes) => {
                return match store.create(key, bytes.into_inner().into()).await? {
                    Created::New => Ok(true),
                    Created::Same => Ok(false),
                    Created::Other => Err(Error::new(
                        ErrorKind::Integrity,
                        format!("{key} is damaged: its name does not fit its bytes"),
                    )
                    .with_hint("remove this object; what it should hold is stored again then")),
                };
            }
            SpooledData::OnDisk(file) => file,
        };
        let mut upload = store.upload(key).await?;
        let mut left = self.bytes;
        while left > 0 {
            let mut chunk = vec![0; usize::try_from(left).unwrap_or(IN_MEMORY).min(IN_MEMORY)];
            left -= chunk.len() as u64;
            let read = file.read_exact(&mut chunk).map_err(|e| Error::io("reading sealed WAL", e));
            let written = match read {
                Ok(()) => upload.write(chunk.into()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                // What cannot be thrown away is swept later.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
        match upload.finish().await {
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(false),
            other => other.map(|()| true),
        }
    }
}

/// Reads stored bytes back as raw ones.
pub(super) fn open(
    stored: Box<dyn Read + Send>,
    cipher: Option<&dyn Cipher>,
) -> Result<zstd::Decoder<'static, io::BufReader<Box<dyn Read + Send>>>> {
    let clear = match cipher {
        Some(cipher) => cipher.open(stored)?,
        None => stored,
    };
    let failed = |e| Error::io("decompressing WAL", e);
    let mut decoder = zstd::Decoder::new(clear).map_err(failed)?;
    // 128 MiB, more than any level below 20 uses: a hostile frame must not take all memory.
    decoder.window_log_max(27).map_err(failed)?;
    Ok(decoder)
}
