//! The server's manifests of the last backups, on this host: what it needs to make an increment of its own.
//!
//! They are kept as the server wrote them (`backup_manifest.c`, PostgreSQL 17 and 18: a line for each file), in a zstd
//! frame. What is given back to the server may leave out files, which the server then sends whole.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use serde_json::{Map, Value, json};

use super::kept::Kept;
use crate::error::{Error, Result};
use crate::physical::manifest::{Line, damaged, rewrite};
use crate::repository::{BackupId, BackupSummary, Digest};
use crate::state::{HostState, StateFile};

const FOLDER: &str = "manifests";
/// Name of the fact that says what the manifest of a backup is.
const FACT: &str = "manifest_blake3";

/// The manifests of a cluster on this host.
#[derive(Clone)]
pub(in super::super) struct Manifests(Kept);

/// A manifest on its way to this host.
pub(in super::super) struct ManifestCopy {
    manifests: Manifests,
    out: zstd::Encoder<'static, BufWriter<StateFile>>,
    digest: blake3::Hasher,
}

/// One that is whole, and kept when its backup has committed.
pub(in super::super) struct Copied {
    manifests: Manifests,
    file: StateFile,
    digest: Digest,
}

impl Manifests {
    pub(in super::super) fn of(state: &HostState) -> Self {
        Self(Kept::new(state, FOLDER))
    }

    /// Begins that of a backup.
    pub(in super::super) fn begin(&self, backup: &BackupId) -> Result<ManifestCopy> {
        let file = BufWriter::with_capacity(64 * 1024, self.0.begin(backup)?);
        let out = zstd::Encoder::new(file, 1).map_err(writing)?;
        Ok(ManifestCopy { manifests: self.clone(), out, digest: blake3::Hasher::new() })
    }

    /// Whether there seems to be that of a backup.
    pub(super) fn has(&self, backup: &BackupSummary) -> bool {
        digest_of(backup).is_some() && self.0.has(&backup.id)
    }

    /// Goes through the manifest of a backup, and gives `out` what the server is to have of it: without the files that
    /// are not to be kept, which `keep` is asked by their paths, and with its checksum made anew. An error of `out` ends it.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), and [`Integrity`](crate::ErrorKind::Integrity) where it is not what the server wrote.
    pub(super) fn trimmed(
        &self,
        backup: &BackupSummary,
        mut keep: impl FnMut(&[u8]) -> bool,
        out: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let change = |path: &[u8], _: Option<u64>| Ok(if keep(path) { Line::Keep } else { Line::LeaveOut });
        let reading = |e| Error::io(format!("reading the manifest of backup {}", backup.id), e);
        let file: File = self.0.open(&backup.id).map_err(reading)?;
        let input = zstd::Decoder::new(file).map_err(reading)?;
        let mut input = Hashed { input, digest: blake3::Hasher::new() };
        rewrite(BufReader::with_capacity(64 * 1024, &mut input), change, out)?;
        let digest: Digest = input.digest.finalize().into();
        if Some(digest) == digest_of(backup) { Ok(()) } else { Err(damaged("it is not that of the backup")) }
    }

    fn keep(&self, file: Option<StateFile>, parent: Option<&BackupId>) -> Result<()> {
        self.0.keep(file, parent)
    }
}

fn digest_of(backup: &BackupSummary) -> Option<Digest> {
    serde_json::from_value(backup.source.get(FACT)?.clone()).ok()
}

fn writing(error: io::Error) -> Error {
    Error::io("writing a copy of the manifest", error)
}

impl ManifestCopy {
    /// Adds bytes.
    pub(in super::super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes).map_err(writing)
    }

    /// Ends it.
    pub(in super::super) fn finish(self) -> Result<Copied> {
        let file = self.out.finish().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error));
        Ok(Copied {
            manifests: self.manifests,
            file: file.map_err(writing)?,
            digest: self.digest.finalize().into(),
        })
    }
}

impl Copied {
    /// Says among a backup's facts what its manifest is.
    pub(in super::super) fn note(&self, facts: &mut Map<String, Value>) {
        facts.insert(FACT.to_owned(), json!(self.digest));
    }

    /// Keeps it, and that of the parent.
    pub(in super::super) fn keep(self, parent: Option<&BackupId>) -> Result<()> {
        self.manifests.keep(Some(self.file), parent)
    }
}

struct Hashed<R> {
    input: R,
    digest: blake3::Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}
