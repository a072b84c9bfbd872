//! Compares a restored chain with the server's own list of the files that it sent: length and CRC-32C of each. Of a
//! file that the server sent as an increment it has no checksum; there the pages' own are compared, where they have one.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokio_util::sync::CancellationToken;

use super::increment::made_path;
use super::manifest::bytes_of_hex;
use super::pages::{BUFFER, Pages};
use super::relation::relation_file;
use super::restore::LEFT_OUT;
use super::unpack::below;
use super::{BASE, overlay};
use crate::error::{Error, ErrorKind, Result};

/// A file of `backup_manifest` (`backup_manifest.c`, PostgreSQL 15 to 18).
#[derive(Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// The same in hexadecimal, where it is not UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

impl Listed {
    /// Its length.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Its CRC-32C in hexadecimal, where the server made one.
    pub(super) fn crc(&self) -> Option<&str> {
        self.checksum.as_deref().filter(|_| self.algorithm.as_deref() == Some("CRC32C"))
    }

    /// Its path in the data directory.
    pub(super) fn path(&self) -> Result<PathBuf> {
        match (&self.path, &self.encoded) {
            (Some(path), _) => below(path.as_bytes()),
            (None, Some(hex)) => below(&bytes_of_hex(hex).unwrap_or_default()),
            (None, None) => Ok(PathBuf::new()),
        }
    }
}

/// Reads every file that the `backup_manifest` in a restored data directory lists. It blocks. Without `pages` the
/// results of increments that the server made are not looked at.
///
/// # Errors
/// [`Integrity`](ErrorKind::Integrity), naming the file.
pub(super) fn check_restored(
    base: &Path,
    pages: Option<Pages>,
    threads: usize,
    cancel: &CancellationToken,
) -> Result<()> {
    let manifest = base.join("backup_manifest");
    let file = File::open(&manifest).map_err(|e| Error::io(format!("opening {}", manifest.display()), e))?;
    let (files, queue) = sync_channel::<Listed>(64);
    let queue = Mutex::new(queue);
    let failed = Mutex::new(None);
    let stop = cancel.child_token();
    let parsed = std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                if let Err(error) = check_queued(base, pages, &queue, &stop) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    stop.cancel();
                }
            });
        }
        parse(BufReader::new(file), files)
    });
    if cancel.is_cancelled() {
        return Err(Error::cancelled());
    }
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => parsed.map_err(|e| {
            Error::new(ErrorKind::Integrity, "the backup's manifest cannot be read")
                .with_hint("restore another backup")
                .caused_by(e)
        }),
    }
}

/// After a failure the queue is still emptied, so that its writer does not wait.
fn check_queued(
    base: &Path,
    pages: Option<Pages>,
    queue: &Mutex<Receiver<Listed>>,
    stop: &CancellationToken,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut result = Ok(());
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(listed) if result.is_ok() && !stop.is_cancelled() => {
                result = check_file(base, &listed, pages, &mut buffer, stop);
                if result.is_err() {
                    stop.cancel();
                }
            }
            Ok(_) => {}
            Err(_) => return result,
        }
    }
}

fn check_file(
    base: &Path,
    listed: &Listed,
    pages: Option<Pages>,
    buffer: &mut [u8],
    stop: &CancellationToken,
) -> Result<()> {
    let path = listed.path()?;
    if let Some(made) = made_path(path.as_os_str().as_bytes()) {
        let Some(pages) = pages else { return Ok(()) };
        return check_pages(base, &below(&made)?, pages, buffer, stop);
    }
    if LEFT_OUT.iter().any(|left_out| path == Path::new(left_out)) {
        return Ok(());
    }
    let path = base.join(overlay::on_disk(BASE, path));
    let wrong = |why: String| Err(differs(&path, &why));
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return wrong("it is not there".to_owned()),
        Err(e) => return Err(Error::io(format!("opening {}", path.display()), e)),
    };
    let reading = |e| Error::io(format!("reading {}", path.display()), e);
    let found = file.metadata().map_err(reading)?.len();
    if found != listed.size {
        return wrong(format!("it has {found} bytes instead of {}", listed.size));
    }
    if listed.algorithm.as_deref() != Some("CRC32C") {
        return Ok(());
    }
    let mut crc = 0;
    loop {
        if stop.is_cancelled() {
            return Ok(());
        }
        match file.read(buffer).map_err(reading)? {
            0 => break,
            read => crc = crc32c::crc32c_append(crc, &buffer[..read]),
        }
    }
    // The server writes the bytes of the number as it has them in memory.
    let wanted = listed.checksum.as_deref().and_then(bytes_of_hex).unwrap_or_default();
    if wanted != crc.to_le_bytes() && wanted != crc.to_be_bytes() {
        return wrong("its contents have another checksum".to_owned());
    }
    Ok(())
}

fn differs(path: &Path, why: &str) -> Error {
    let message = format!("{} is not what the server sent: {why}", path.display());
    Error::new(ErrorKind::Integrity, message).with_hint(
        "restore an older backup, or a full one, and report this: the increments of this chain do not make its last backup",
    )
}

/// Compares the pages of a relation's file with their checksums.
fn check_pages(
    base: &Path,
    path: &Path,
    pages: Pages,
    buffer: &mut [u8],
    stop: &CancellationToken,
) -> Result<()> {
    let Some(file) = relation_file(BASE, path.as_os_str().as_bytes()) else { return Ok(()) };
    let path = base.join(path);
    let read = File::open(&path)
        .and_then(|input| pages.read(input, file.segment * pages.segment, buffer, stop))
        .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    match read.1.first() {
        Some(number) => Err(differs(&path, &format!("page {number} does not have its checksum"))),
        None => Ok(()),
    }
}

/// Reads the manifest file by file: with 100,000 of them it is 20 MB.
pub(super) fn parse(manifest: impl Read, files: SyncSender<Listed>) -> serde_json::Result<()> {
    let mut manifest = serde_json::Deserializer::from_reader(manifest);
    Manifest(files).deserialize(&mut manifest)?;
    manifest.end()
}

struct Manifest(SyncSender<Listed>);

impl<'de> DeserializeSeed<'de> for Manifest {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Manifest {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "Files" {
                map.next_value_seed(Files(&self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Files<'a>(&'a SyncSender<Listed>);

impl<'de> DeserializeSeed<'de> for Files<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> std::result::Result<(), A::Error> {
        while let Some(file) = files.next_element::<Listed>()? {
            // It is closed when nobody checks any more.
            let _ = self.0.send(file);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Lsn;

    fn check(files: &[(&str, &[u8])], manifest: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("base")).unwrap();
        for (name, contents) in files {
            std::fs::write(folder.path().join(name), contents).unwrap();
        }
        std::fs::write(folder.path().join("backup_manifest"), manifest).unwrap();
        check_restored(folder.path(), None, 2, &CancellationToken::new())
    }

    #[test]
    fn pages_of_a_server_s_increment_have_their_checksums() {
        let manifest = r#"{"Files": [{ "Path": "base/5/INCREMENTAL.16384.1", "Size": 9, "Checksum-Algorithm": "NONE" }]}"#;
        let pages = Pages { bytes: 8192, segment: 131_072, start: Lsn(0x2000) };
        // New; written after the backup began; neither, and without its checksum.
        let (new, mut later, mut torn) = ([0; 8192], [1; 8192], [1; 8192]);
        later[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0x20, 0, 0]);
        torn[..8].copy_from_slice(&[0, 0, 0, 0, 0xff, 0x1f, 0, 0]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("base/5")).unwrap();
        std::fs::write(folder.path().join("backup_manifest"), manifest).unwrap();
        let check = |contents: &[&[u8]], pages| {
            std::fs::write(folder.path().join("base/5/16384.1"), contents.concat()).unwrap();
            check_restored(folder.path(), pages, 2, &CancellationToken::new())
        };
        check(&[&new, &later], Some(pages)).unwrap();
        check(&[&torn], None).unwrap();
        let error = check(&[&new, &torn], Some(pages)).unwrap_err();
        assert!(error.to_string().contains("page 131073 does not have its checksum"), "{error}");
        assert!(check(&[&new, &later[..100]], Some(pages)).is_err());
        std::fs::remove_file(folder.path().join("base/5/16384.1")).unwrap();
        assert!(check_restored(folder.path(), Some(pages), 2, &CancellationToken::new()).is_err());
    }

    #[test]
    fn files_are_those_of_the_manifest() {
        // "123456789" has CRC-32C e3069283, as every catalogue of checksums says.
        let manifest = |size: u32, sum: &str| {
            format!(
                r#"{{ "PostgreSQL-Backup-Manifest-Version": 1, "Files": [
                {{ "Path": "tablespace_map", "Size": 9, "Last-Modified": "x" }},
                {{ "Encoded-Path": "626173652f31", "Size": {size}, "Checksum-Algorithm": "CRC32C", "Checksum": "{sum}" }}],
                "WAL-Ranges": [{{ "Timeline": 1 }}], "Manifest-Checksum": "x"}}"#
            )
        };
        check(&[("base/1", b"123456789")], &manifest(9, "839206e3")).unwrap();
        for (files, manifest, word) in [
            (&[("base/1", &b"123456780"[..])][..], manifest(9, "839206e3"), "checksum"),
            (&[("base/1", b"12345678")], manifest(9, "839206e3"), "8 bytes"),
            (&[], manifest(9, "839206e3"), "not there"),
            (&[], "{\"Files\": [{]".to_owned(), "manifest"),
        ] {
            let error = check(files, &manifest).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
