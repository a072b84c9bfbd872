//! Reads the parts of a physical backup through: archives to their ends, pages against their checksums, files of a full
//! backup against the server's manifest.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tar::EntryType;
use xxhash_rust::xxh3::xxh3_64;

use super::chain::pages;
use super::check::{Listed, Pages, parse};
use super::configuration::CONFIG;
use super::manifest::bytes_of_hex;
use super::relation::relation_file;
use super::{BASE, DELTA, FILES, INCREMENTAL, MANIFEST, WAL};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::ChannelReader;
use crate::postgres::Page;
use crate::repository::BackupRecord;
use crate::store::Bytestream;
use crate::tar_reader::{Piece, Reader};

/// More pages of one file are counted, and not named.
const NAMED: usize = 3;

/// What was read of the files of a full backup.
pub(crate) struct FilesRead {
    pages: Option<Pages>,
    /// Whether its files are those of its manifest: those of an increment are not whole.
    is_full: bool,
    /// Length and CRC-32C of each file, by a digest of its path: of a million files it is 24 MB.
    files: Mutex<HashMap<u64, (u64, u32)>>,
}

impl FilesRead {
    /// For a backup. Of one that had damaged pages when it was made the pages are not looked at again.
    pub(crate) fn of(record: &BackupRecord) -> Result<Self> {
        let had_damaged = record.source.get("checksum_failures").and_then(serde_json::Value::as_bool);
        let pages = if had_damaged == Some(true) { None } else { pages(&record.source)? };
        Ok(Self { pages, is_full: record.parent.is_none(), files: Mutex::default() })
    }

    /// Whether a kind of part is an archive of files.
    pub(crate) fn is_archive(kind: &str) -> bool {
        matches!(kind, FILES | DELTA | INCREMENTAL | WAL | CONFIG)
    }

    /// What reads a part.
    pub(crate) fn look(self: &Arc<Self>, kind: &str, name: &str) -> FilesLook {
        let archive = name.split('/').next().unwrap_or_default().to_owned();
        let read = (kind == FILES && self.is_full).then(|| Arc::clone(self));
        FilesLook { read, archive, reader: Reader::default(), member: None, found: Vec::new() }
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
        let is_full = self.is_full;
        std::thread::scope(|scope| {
            let comparing = scope.spawn(move || {
                let mut found = Vec::new();
                // It is emptied in any case, so that its writer does not wait.
                for listed in listed {
                    if is_full {
                        found.extend(self.compare_file(&listed, all_read));
                    }
                }
                found
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
        let key = xxh3_64(path.as_os_str().as_bytes());
        let read = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let path = path.display();
        let Some((size, crc)) = read else {
            return all_read.then(|| format!("{path} is not in the backup, and the server sent it"));
        };
        if size != listed.size() {
            return Some(format!("{path} has {size} bytes instead of {}", listed.size()));
        }
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

/// A file on its way.
struct Member {
    path: Vec<u8>,
    size: u64,
    crc: u32,
    /// Of a relation whose pages have checksums: the number of the next page, and what has come of it.
    page: Option<(u32, Vec<u8>)>,
    wrong: Vec<u32>,
}

/// Reads one archive of files.
pub(crate) struct FilesLook {
    /// Nothing where files are not compared.
    read: Option<Arc<FilesRead>>,
    archive: String,
    reader: Reader,
    member: Option<Member>,
    found: Vec<String>,
}

impl FilesLook {
    /// Takes bytes of the archive.
    pub(crate) fn take(&mut self, bytes: Bytes) -> Result<()> {
        self.reader.push(bytes);
        while let Some(piece) = self.reader.next()? {
            match piece {
                Piece::Member(header) => {
                    self.end_member();
                    let Some(read) = &self.read else { continue };
                    if header.entry_type() != EntryType::Regular {
                        continue;
                    }
                    let path = header.path_bytes().into_owned();
                    let file = relation_file(&self.archive, &path);
                    let page = match (file, read.pages) {
                        (Some(file), Some(pages)) => {
                            Some((file.segment.wrapping_mul(pages.segment), Vec::new()))
                        }
                        _ => None,
                    };
                    self.member = Some(Member { path, size: 0, crc: 0, page, wrong: Vec::new() });
                }
                Piece::Data(data) => {
                    let pages = self.read.as_ref().and_then(|read| read.pages);
                    if let Some(member) = &mut self.member {
                        member.take(&data, pages);
                    }
                }
            }
        }
        Ok(())
    }

    fn end_member(&mut self) {
        let (Some(member), Some(read)) = (self.member.take(), &self.read) else { return };
        let path = if self.archive == BASE {
            member.path
        } else {
            [format!("pg_tblspc/{}/", self.archive).as_bytes(), &member.path].concat()
        };
        let shown = String::from_utf8_lossy(&path);
        if member.page.is_some_and(|(_, rest)| !rest.is_empty()) {
            self.found.push(format!("{shown} ends within a page"));
        }
        if let Some(more) = member.wrong.len().checked_sub(NAMED).filter(|more| *more > 0) {
            self.found.push(format!("{shown}: {more} more pages without their checksums"));
        }
        for number in member.wrong.iter().take(NAMED) {
            self.found.push(format!("{shown}: page {number} does not have its checksum"));
        }
        let mut files = read.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(xxh3_64(&path), (member.size, member.crc));
    }

    /// The end of the archive; what is wrong in it.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        self.end_member();
        self.reader.finish()?;
        if !self.reader.has_ended() {
            return Err(Error::new(ErrorKind::Integrity, "the archive of files has no end"));
        }
        Ok(self.found)
    }
}

impl Member {
    fn take(&mut self, data: &[u8], pages: Option<Pages>) {
        self.size += data.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, data);
        let (Some((number, rest)), Some(pages)) = (&mut self.page, pages) else { return };
        let length = pages.bytes as usize;
        let mut look = |number: &mut u32, block: &[u8]| {
            let sound = Page::of(block)
                .is_some_and(|p| p.is_new() || p.lsn() >= pages.start || p.has_its_checksum(*number));
            if !sound {
                self.wrong.push(*number);
            }
            *number = number.wrapping_add(1);
        };
        let mut data = data;
        if !rest.is_empty() {
            let (first, behind) = data.split_at(data.len().min(length - rest.len()));
            rest.extend_from_slice(first);
            data = behind;
            if rest.len() < length {
                return;
            }
            look(number, rest);
            rest.clear();
        }
        let whole = data.chunks_exact(length);
        rest.extend_from_slice(whole.remainder());
        for block in whole {
            look(number, block);
        }
    }
}
