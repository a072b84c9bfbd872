//! Pages of relations against their checksums.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::BASE;
use super::dump::block_bytes;
use super::relation::relation_file;
use crate::error::{Error, Result};
use crate::postgres::{Lsn, Page};

/// Read at a time.
pub(super) const BUFFER: usize = 256 * 1024;
/// How much of a file a thread takes at a time. Pages of every length fit into it.
const RANGE: u64 = 32 << 20;
/// More pages of one file are counted, and not named.
const NAMED: usize = 3;
/// The folders of a data directory that have relations in them.
const FOLDERS: [&str; 3] = ["base", "global", "pg_tblspc"];

/// The deepest folder of relations: `pg_tblspc/<OID>/PG_<version>/<database>`.
const DEEPEST: usize = 4;

/// What is known of pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pages {
    /// Their length.
    pub(crate) bytes: u32,
    /// How many a segment of a relation has.
    pub(crate) segment: u32,
    /// Where the backup begins: what was written later may be torn, and is made whole by the WAL.
    pub(crate) start: Lsn,
}

impl Pages {
    /// Those of a backup; nothing where they have no checksums.
    pub(super) fn of_backup(facts: &Map<String, Value>) -> Result<Option<Self>> {
        if facts.get("data_checksums").and_then(Value::as_str) != Some("on") {
            return Ok(None);
        }
        let bytes = block_bytes(facts)?;
        let segment = facts.get("relation_segment_bytes").and_then(Value::as_u64).unwrap_or(1 << 30);
        let segment = u32::try_from(segment / u64::from(bytes)).unwrap_or(u32::MAX);
        let start = facts.get("start_lsn").and_then(Value::as_str).and_then(|lsn| lsn.parse().ok());
        Ok(start.map(|start| Self { bytes, segment, start }))
    }

    /// Whether a block is a page that has its checksum, or needs none.
    pub(super) fn are_sound(&self, block: &[u8], number: u32) -> bool {
        Page::of(block).is_some_and(|p| p.is_new() || p.lsn() >= self.start || p.has_its_checksum(number))
    }

    /// Reads blocks to the end, of which the first has a number; the numbers of all that are not sound, and how many it
    /// read.
    pub(super) fn read(
        &self,
        mut input: impl Read,
        first: u32,
        buffer: &mut [u8],
        stop: &CancellationToken,
    ) -> io::Result<(u32, Vec<u32>)> {
        let length = self.bytes as usize;
        let whole = buffer.len() / length * length;
        let (mut number, mut wrong) = (first, Vec::new());
        while !stop.is_cancelled() {
            let mut filled = 0;
            while filled < whole {
                match input.read(&mut buffer[filled..whole])? {
                    0 => break,
                    read => filled += read,
                }
            }
            if filled == 0 {
                break;
            }
            for block in buffer[..filled].chunks(length) {
                if block.len() < length || !self.are_sound(block, number) {
                    wrong.push(number);
                }
                number = number.wrapping_add(1);
            }
        }
        Ok((number.wrapping_sub(first), wrong))
    }
}

/// Tells which pages of a file are wrong.
pub(super) fn tell(file: &str, wrong: &[u32], found: &mut Vec<String>) {
    if let Some(more) = wrong.len().checked_sub(NAMED).filter(|more| *more > 0) {
        found.push(format!("{file}: {more} more pages without their checksums"));
    }
    for number in wrong.iter().take(NAMED) {
        found.push(format!("{file}: page {number} does not have its checksum"));
    }
}

/// What was read of a cluster.
#[derive(Debug, Default)]
pub(crate) struct PagesRead {
    /// How many pages.
    pub(crate) pages: u64,
    /// What is wrong, a line each.
    pub(crate) found: Vec<String>,
}

/// Reads every page of a cluster that no server runs on. It blocks.
///
/// # Errors
/// Those of reading a file, and [`Cancelled`](crate::ErrorKind::Cancelled).
pub(crate) fn read_cluster(
    data: &Path,
    pages: Pages,
    threads: usize,
    cancel: &CancellationToken,
) -> Result<PagesRead> {
    let mut ranges = Vec::new();
    for folder in FOLDERS {
        ranges_below(data, Path::new(folder), &mut ranges)?;
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<PagesRead> {
        let (mut read, mut buffer) = (PagesRead::default(), vec![0; BUFFER]);
        while let Some(Range { path, segment, from }) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let first = segment.wrapping_mul(pages.segment);
            let first = first.wrapping_add(u32::try_from(from / u64::from(pages.bytes)).unwrap_or(u32::MAX));
            let mut of_range = || -> io::Result<_> {
                let mut file = File::open(data.join(path))?;
                file.seek(SeekFrom::Start(*from))?;
                pages.read(file.take(RANGE), first, &mut buffer, cancel)
            };
            let (count, wrong) =
                of_range().map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
            read.pages += u64::from(count);
            tell(&path.display().to_string(), &wrong, &mut read.found);
        }
        Ok(read)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut all = PagesRead::default();
        for thread in threads {
            let read = thread.join().map_err(|_| Error::internal("a thread that reads pages failed"))??;
            all.pages += read.pages;
            all.found.extend(read.found);
        }
        all.found.sort();
        Ok(all)
    })
}

/// What a thread takes at a time: [`RANGE`] bytes of a file.
struct Range {
    /// In the data directory.
    path: PathBuf,
    /// Which segment of its relation the file is.
    segment: u32,
    from: u64,
}

/// The files of relations below a folder of a data directory, in pieces.
fn ranges_below(data: &Path, folder: &Path, ranges: &mut Vec<Range>) -> Result<()> {
    let failed = |e| Error::io(format!("listing {}", data.join(folder).display()), e);
    for entry in std::fs::read_dir(data.join(folder)).map_err(failed)? {
        let path = folder.join(entry.map_err(failed)?.file_name());
        // A tablespace is behind a link.
        let found = std::fs::metadata(data.join(&path)).map_err(failed)?;
        if found.is_dir() && path.components().count() <= DEEPEST {
            ranges_below(data, &path, ranges)?;
        } else if let Some(file) = relation_file(BASE, path.as_os_str().as_bytes()) {
            let starts = (0..found.len()).step_by(usize::try_from(RANGE).unwrap_or(usize::MAX));
            ranges.extend(starts.map(|from| Range { path: path.clone(), segment: file.segment, from }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relation_of_a_cluster_is_read() {
        let data = tempfile::tempdir().unwrap();
        let (at, other) = (data.path().join("data"), data.path().join("space"));
        let new = [0; 8192];
        let wrong = [1; 8192];
        let write = |path: PathBuf, pages: &[&[u8]]| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, pages.concat()).unwrap();
        };
        write(at.join("base/5/1"), &[&new, &wrong, &new]);
        write(at.join("base/5/1.2"), &[&wrong]);
        write(at.join("base/5/1_fsm"), &[&wrong]);
        write(at.join("base/5/t3_1"), &[&wrong]);
        write(at.join("base/5/pg_filenode.map"), &[&wrong]);
        write(at.join("base/6/1"), &[&new.repeat(5000), &wrong]);
        write(at.join("global/1260"), &[&new, &new[..100]]);
        write(other.join("PG_15_202209061/5/9"), &[&wrong[..]; 5]);
        write(other.join("lost"), &[&wrong]);
        std::fs::create_dir(at.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&other, at.join("pg_tblspc/7")).unwrap();
        let pages = Pages { bytes: 8192, segment: 100, start: Lsn(u64::MAX) };
        let cancel = CancellationToken::new();
        for threads in [1, 3] {
            let read = read_cluster(&at, pages, threads, &cancel).unwrap();
            assert_eq!(read.pages, 3 + 1 + 1 + 5001 + 2 + 5);
            let lacks = |file: &str, number: u32| format!("{file}: page {number} does not have its checksum");
            let space = "pg_tblspc/7/PG_15_202209061/5/9";
            let expected = [
                lacks("base/5/1.2", 200),
                lacks("base/5/1", 1),
                lacks("base/5/1_fsm", 0),
                lacks("base/6/1", 5000),
                lacks("global/1260", 1),
                format!("{space}: 2 more pages without their checksums"),
                lacks(space, 0),
                lacks(space, 1),
                lacks(space, 2),
            ];
            assert_eq!(read.found, expected);
        }
        cancel.cancel();
        assert_eq!(read_cluster(&at, pages, 2, &cancel).unwrap_err().kind(), crate::ErrorKind::Cancelled);
        std::fs::remove_dir_all(at.join("global")).unwrap();
        assert!(read_cluster(&at, pages, 2, &CancellationToken::new()).is_err());
    }
}
