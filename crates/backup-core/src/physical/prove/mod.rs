//! Reads the parts of a physical backup through: archives to their ends, pages against their checksums, files against
//! the server's manifest; of an increment what it has of each file, against its list.

mod archive;
mod blocks;
mod list;
mod page;

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use self::archive::ArchiveLook;
use self::list::ListLook;
use super::check::{Listed, parse};
use super::configuration::CONFIG;
use super::dump::block_bytes;
use super::increment::{Stored, made_path};
use super::manifest::bytes_of_hex;
use super::pages::Pages;
use super::{BASE, DELTA, FILES, INCREMENTAL, LIST, MANIFEST, WAL};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::ChannelReader;
use crate::repository::BackupRecord;
use crate::store::Bytestream;

/// What was read of the files of a backup.
pub(crate) struct FilesRead {
    /// Nothing where pages have no checksums to be compared with.
    pages: Option<Pages>,
    /// How relations are divided; nothing in records that do not say so.
    blocks: Option<Blocks>,
    /// Whether it has all files whole.
    is_full: bool,
    /// Whether the list of an increment was read to its end.
    has_list: AtomicBool,
    /// The files, by a digest of their paths: of a million files it is 32 MB.
    files: Mutex<HashMap<u64, Seen>>,
}

/// How relations are divided.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Length of a block.
    bytes: u32,
    /// How many blocks a segment has at most.
    segment: u64,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// What the list of an increment says that it has of it.
    stored: Stored,
    /// Its length: what was read of it, and as long as nothing was, what the list says.
    bytes: u64,
    /// CRC-32C of what was read of it.
    crc: Option<u32>,
}

impl FilesRead {
    /// For a backup. Of one that had damaged pages when it was made the pages are not looked at again.
    pub(crate) fn of(record: &BackupRecord) -> Result<Self> {
        let facts = &record.source;
        let had_damaged = facts.get("checksum_failures").and_then(Value::as_bool);
        let pages = if had_damaged == Some(true) { None } else { Pages::of_backup(facts)? };
        let segment_bytes = facts.get("relation_segment_bytes").and_then(Value::as_u64).unwrap_or(1 << 30);
        let blocks = block_bytes(facts).ok();
        let blocks = blocks.map(|bytes| Blocks { bytes, segment: segment_bytes / u64::from(bytes) });
        let is_full = record.parent.is_none();
        Ok(Self { pages, blocks, is_full, has_list: AtomicBool::new(false), files: Mutex::default() })
    }

    /// Whether parts of a kind are looked into.
    pub(crate) fn knows(kind: &str) -> bool {
        matches!(kind, FILES | DELTA | INCREMENTAL | LIST | WAL | CONFIG)
    }

    /// When parts of a kind are read: the list of an increment before the files that it lists, and the manifest when all of
    /// them were read.
    pub(crate) fn turn(kind: &str) -> u8 {
        match kind {
            LIST => 0,
            MANIFEST => 2,
            _ => 1,
        }
    }

    /// What reads a part.
    pub(crate) fn look(self: &Arc<Self>, kind: &str, name: &str) -> FilesLook {
        if kind == LIST {
            return FilesLook::List(ListLook::new(Arc::clone(self)));
        }
        let archive = name.split('/').next().unwrap_or_default();
        FilesLook::Archive(Box::new(ArchiveLook::new(Arc::clone(self), kind, archive)))
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Seen>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the list of an increment was read.
    fn has_list(&self) -> bool {
        self.has_list.load(Ordering::Acquire)
    }

    /// What is known of a file, by its path in the data directory.
    fn seen(&self, path: &[u8]) -> Option<Seen> {
        self.files().get(&xxh3_64(path)).copied()
    }

    fn note(&self, path: &[u8], seen: Seen) {
        self.files().insert(xxh3_64(path), seen);
    }

    /// Compares the server's manifest with the files that were read. Those that were not are missing, unless only some
    /// parts were read.
    pub(crate) async fn compare(
        self: Arc<Self>,
        mut manifest: Bytestream,
        all_read: bool,
    ) -> Result<Vec<String>> {
        use futures::StreamExt;
        let (chunks, from_store) = tokio::sync::mpsc::channel(4);
        let comparing = tokio::task::spawn_blocking(move || self.compare_listed(from_store, all_read));
        let mut result = Ok(());
        while let Some(chunk) = manifest.next().await {
            match chunk {
                // Where nobody reads any more, the reader says why.
                Ok(chunk) => drop(chunks.send(chunk).await),
                Err(error) => result = Err(error),
            }
        }
        drop(chunks);
        let found =
            comparing.await.map_err(|e| Error::internal("comparing a manifest failed").caused_by(e))?;
        result.and(found)
    }

    fn compare_listed(
        &self,
        from: tokio::sync::mpsc::Receiver<Bytes>,
        all_read: bool,
    ) -> Result<Vec<String>> {
        let (files, listed) = sync_channel::<Listed>(64);
        std::thread::scope(|scope| {
            let comparing = scope.spawn(move || {
                // It is emptied in any case, so that its writer does not wait.
                listed.into_iter().filter_map(|listed| self.compare_file(&listed, all_read)).collect()
            });
            let parsed = parse(ChannelReader::new(from), files);
            let found = comparing.join().map_err(|_| Error::internal("comparing a manifest failed"))?;
            parsed.map_err(|e| {
                Error::new(ErrorKind::Integrity, "the server's manifest cannot be read").caused_by(e)
            })?;
            Ok(found)
        })
    }

    fn compare_file(&self, listed: &Listed, all_read: bool) -> Option<String> {
        let path = match listed.path() {
            Ok(path) => path,
            Err(error) => return Some(error.to_string()),
        };
        // An increment of the server's has the name of the file that it makes in its list.
        let key = made_path(path.as_os_str().as_bytes()).filter(|_| !self.is_full);
        let key = xxh3_64(key.as_deref().unwrap_or(path.as_os_str().as_bytes()));
        let seen = self.files().get(&key).copied();
        let path = path.display();
        let Some(seen) = seen else {
            // Without its list nobody knows what an increment should have.
            let certain = all_read && (self.is_full || self.has_list());
            return certain.then(|| format!("{path} is not in the backup, and the server sent it"));
        };
        let changed_only = seen.stored == Stored::Blocks;
        if seen.crc.is_none() && !changed_only {
            return all_read.then(|| format!("{path} is not in the backup, and the server sent it"));
        }
        if seen.bytes != listed.size() {
            return Some(format!("{path} has {} bytes instead of {}", seen.bytes, listed.size()));
        }
        // Of a file whose blocks are those of the parent, too, it is that of all of them.
        let crc = seen.crc.filter(|_| !changed_only)?;
        // The server writes the bytes of the number as it has them in memory.
        let wanted = listed.crc().and_then(bytes_of_hex)?;
        (wanted != crc.to_le_bytes() && wanted != crc.to_be_bytes())
            .then(|| format!("{path} has another checksum than the server gave it"))
    }
}

/// Whether a kind of part is the server's manifest.
pub(crate) fn is_manifest(kind: &str) -> bool {
    kind == MANIFEST
}

/// The path in the data directory of a file of an archive.
fn full_path(archive: &str, path: &[u8]) -> Vec<u8> {
    if archive == BASE {
        return path.to_vec();
    }
    [format!("pg_tblspc/{archive}/").as_bytes(), path].concat()
}

/// Reads one part.
pub(crate) enum FilesLook {
    /// An archive of files.
    Archive(Box<ArchiveLook>),
    /// The list of an increment.
    List(ListLook),
}

impl FilesLook {
    /// Takes bytes of the part.
    pub(crate) fn take(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            Self::Archive(look) => look.take(bytes),
            Self::List(look) => look.take(&bytes),
        }
    }

    /// The end of the part; what is wrong in it.
    pub(crate) fn finish(self) -> Result<Vec<String>> {
        match self {
            Self::Archive(look) => look.finish(),
            Self::List(look) => look.finish(),
        }
    }
}
