//! The server's manifests of the last backups, on this host: what it needs to make an increment of its own.
//!
//! They are kept as the server wrote them (`backup_manifest.c`, PostgreSQL 17 and 18: a line for each file), in a zstd
//! frame. What is given back to the server may leave out files, which the server then sends whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::kept::Kept;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{BackupId, BackupSummary, Digest};
use crate::state::{HostState, StateFile};

const FOLDER: &str = "manifests";
/// Name of the fact that says what the manifest of a backup is.
const FACT: &str = "manifest_blake3";
/// A line that is longer is no manifest's.
const LINE_LIMIT: u64 = 16 * 1024;
/// What stands between the files and what follows.
const END_OF_FILES: &str = "],";

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
    /// [`Io`](ErrorKind::Io), and [`Integrity`](ErrorKind::Integrity) where it is not what the server wrote.
    pub(super) fn trimmed(
        &self,
        backup: &BackupSummary,
        keep: impl FnMut(&[u8]) -> bool,
        out: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let reading = |e| Error::io(format!("reading the manifest of backup {}", backup.id), e);
        let file: File = self.0.open(&backup.id).map_err(reading)?;
        let input = zstd::Decoder::new(file).map_err(reading)?;
        let mut input = Hashed { input, digest: blake3::Hasher::new() };
        trim(BufReader::with_capacity(64 * 1024, &mut input), keep, out)?;
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

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("a manifest on this host is damaged: {why}"))
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

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
}

/// Leaves files out of a manifest, line by line.
fn trim(
    mut manifest: impl BufRead,
    mut keep: impl FnMut(&[u8]) -> bool,
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        let read = (&mut manifest).take(LINE_LIMIT).read_until(b'\n', line);
        let read = read.map_err(|e| Error::io("reading a manifest", e))?;
        // Each line has its end, and the last one as well.
        if read == 0 || line.pop() != Some(b'\n') { Err(damaged("it is cut")) } else { Ok(()) }
    };
    let mut put = |digest: &mut Sha256, bytes: &[u8]| {
        digest.update(bytes);
        out(bytes)
    };
    loop {
        next(&mut line)?;
        put(&mut digest, &line)?;
        put(&mut digest, b"\n")?;
        if line == b"\"Files\": [" {
            break;
        }
    }
    let mut first = true;
    loop {
        next(&mut line)?;
        if line == END_OF_FILES.as_bytes() {
            break;
        }
        let entry = line.strip_suffix(b",").unwrap_or(&line);
        let listed: Listed =
            serde_json::from_slice(entry).map_err(|e| damaged("a line names no file").caused_by(e))?;
        let path = match (listed.path, listed.encoded) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(hex)) => bytes_of_hex(&hex).ok_or_else(|| damaged("a file's name cannot be read"))?,
            (None, None) => return Err(damaged("a file has no name")),
        };
        if keep(&path) {
            if !first {
                put(&mut digest, b",\n")?;
            }
            first = false;
            put(&mut digest, entry)?;
        }
    }
    put(&mut digest, b"\n],\n")?;
    loop {
        next(&mut line)?;
        if line.starts_with(b"\"Manifest-Checksum\"") {
            break;
        }
        put(&mut digest, &line)?;
        put(&mut digest, b"\n")?;
    }
    let sum = hex(&digest.finalize());
    out(format!("\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes())
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Bytes that are written as hexadecimal digits.
pub(in super::super) fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [";
    const TAIL: &str = "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";

    fn manifest(files: &[&str]) -> String {
        let text = format!("{HEAD}\n{}{TAIL}", files.join(",\n"));
        let sum = hex(&Sha256::digest(text.as_bytes()));
        format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    fn trimmed(manifest: &str, keep: impl Fn(&[u8]) -> bool) -> Result<String> {
        let mut text = Vec::new();
        trim(manifest.as_bytes(), keep, |bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn files_are_left_out() {
        let a = "{ \"Path\": \"base/5/1259\", \"Size\": 8192, \"Checksum\": \"aa\" }";
        let b = "{ \"Encoded-Path\": \"626173652f352f315f766d\", \"Size\": 8192 }";
        let c = "{ \"Path\": \"a \\\"quoted\\\" one\", \"Size\": 0 }";
        let all = manifest(&[a, b, c]);
        assert_eq!(trimmed(&all, |_| true).unwrap(), all);
        assert_eq!(trimmed(&all, |path| path != b"base/5/1_vm").unwrap(), manifest(&[a, c]));
        assert_eq!(trimmed(&all, |path| path == b"a \"quoted\" one").unwrap(), manifest(&[c]));
        let none = trimmed(&all, |_| false).unwrap();
        assert!(serde_json::from_str::<Value>(&none).unwrap()["Files"].as_array().unwrap().is_empty());
        for cut in 0..all.len() - 1 {
            let error = trimmed(&all[..cut], |_| true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity, "{cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn lines_of_any_kind_are_read(lines: Vec<String>) {
            let _ = trimmed(&lines.join("\n"), |_| true);
            let _ = trimmed(&format!("{HEAD}\n{}\n", lines.join("\n")), |_| true);
        }
    }
}
