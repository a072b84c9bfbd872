//! Files written past the page cache.
//!
//! A restore writes once what nobody reads soon. Direct I/O leaves the page cache to the servers that run beside it,
//! and the processor to decompression: the kernel copies nothing. It takes whole blocks in memory that is aligned to
//! them (`open(2)`, "`O_DIRECT`"); the tail of a file, small files, and file systems that refuse are buffered.
//!
//! A file that is there already can be written over: what it has is read alongside, and only blocks that differ are
//! written.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What addresses, offsets and lengths are a multiple of: the largest logical block of the disks that there are.
const ALIGNMENT: usize = 4096;
/// Bytes that are written at a time.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Bytes of files, summed up by all who write them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    written: AtomicU64,
    same: AtomicU64,
}

impl Counts {
    pub(super) fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What was there already, and was not written.
    pub(super) fn same(&self) -> u64 {
        self.same.load(Ordering::Relaxed)
    }
}

/// Writes files, one after the other. It has one buffer of 1 MiB, once a file needed it, and another one of that size
/// once it wrote over a file.
pub(super) struct FileWriter {
    /// Files of at least so many bytes are preallocated and written directly.
    direct_from: u64,
    buffer: Buffer,
    filled: usize,
    /// What the file has where the buffer goes, where it is written over.
    theirs: Buffer,
    open: Option<Open>,
    counts: Arc<Counts>,
}

/// The file that is being written.
struct Open {
    file: File,
    /// It takes whole blocks only.
    direct: bool,
    /// Where the buffer goes in a file that is written over.
    over: Option<u64>,
}

/// Bytes from an aligned address on.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// What lies before the address.
    shift: usize,
}

impl Default for FileWriter {
    fn default() -> Self {
        Self::direct_from(BUFFER_BYTES as u64)
    }
}

impl FileWriter {
    /// Writes files of at least so many bytes directly, where their file system allows it.
    pub(super) fn direct_from(bytes: u64) -> Self {
        let (buffer, theirs) = (Buffer::default(), Buffer::default());
        Self { direct_from: bytes, buffer, filled: 0, theirs, open: None, counts: Arc::default() }
    }

    /// Adds what it writes to a sum.
    pub(super) fn counted(mut self, counts: Arc<Counts>) -> Self {
        self.counts = counts;
        self
    }

    /// Begins a file, which is empty and will have `size` bytes. One that was not ended is left as it is.
    ///
    /// # Errors
    /// Where the file system has no room for it.
    pub(super) fn begin(&mut self, file: File, size: u64) -> io::Result<()> {
        self.filled = 0;
        let large = size >= self.direct_from;
        if large {
            preallocate(&file, size)?;
        }
        let direct = large && set_direct(&file, true);
        // What no address can be found in, cannot be written directly.
        let direct = direct && (self.buffer.make() || !set_direct(&file, false));
        self.open = Some(Open { file, direct, over: None });
        Ok(())
    }

    /// Begins a file of which blocks that are right already are not written. It is open for reading as well, and will
    /// have `size` bytes.
    ///
    /// # Errors
    /// Where the file system has no room for it.
    pub(super) fn begin_over(&mut self, file: File, size: u64) -> io::Result<()> {
        self.filled = 0;
        let length = file.metadata()?.len();
        let large = size >= self.direct_from;
        if length > size {
            file.set_len(size)?;
        } else if length < size && large {
            preallocate(&file, size)?;
        }
        let aligned = self.buffer.make() & self.theirs.make();
        let direct = large && aligned && set_direct(&file, true);
        self.open = Some(Open { file, direct, over: Some(0) });
        Ok(())
    }

    /// Adds bytes to the file; without one they are dropped.
    pub(super) fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let Some(open) = &mut self.open else { return Ok(()) };
            if !open.direct && open.over.is_none() {
                self.counts.add_written(data.len() as u64);
                return open.file.write_all(data);
            }
            let (taken, rest) = data.split_at(data.len().min(BUFFER_BYTES - self.filled));
            self.buffer.at(self.filled, taken.len()).copy_from_slice(taken);
            self.filled += taken.len();
            data = rest;
            if self.filled == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the file. It is not synced.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        self.open = None;
        Ok(())
    }

    /// Writes what is in the buffer: whole blocks directly, and the rest behind them buffered.
    fn flush(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let all = &*self.buffer.at(0, self.filled);
        self.filled = 0;
        if let Some(at) = open.over {
            let written = open.write_what_differs(all, &mut self.theirs, at)?;
            open.over = Some(at + all.len() as u64);
            self.counts.add_written(written);
            self.counts.same.fetch_add(all.len() as u64 - written, Ordering::Relaxed);
            return Ok(());
        }
        self.counts.add_written(all.len() as u64);
        let (blocks, tail) = all.split_at(all.len() / ALIGNMENT * ALIGNMENT);
        open.write(blocks)?;
        if !tail.is_empty() {
            open.buffered();
            open.file.write_all(tail)?;
        }
        Ok(())
    }
}

impl Buffer {
    /// Takes its memory, where it has none yet. False where no aligned address can be found in it.
    fn make(&mut self) -> bool {
        if self.bytes.is_empty() {
            self.bytes = vec![0; BUFFER_BYTES + ALIGNMENT];
            let shift = self.bytes.as_ptr().align_offset(ALIGNMENT);
            self.shift = if shift < ALIGNMENT { shift } else { ALIGNMENT };
        }
        self.shift < ALIGNMENT
    }

    fn at(&mut self, from: usize, bytes: usize) -> &mut [u8] {
        &mut self.bytes[self.shift + from..][..bytes]
    }
}

impl Open {
    /// Compares bytes with what the file has at an offset, and writes the blocks that differ. Returns how many bytes
    /// that were.
    fn write_what_differs(&mut self, ours: &[u8], theirs: &mut Buffer, at: u64) -> io::Result<u64> {
        // Read directly, blocks are read as a whole; a file ends where it ends.
        let room = theirs.at(0, ours.len().next_multiple_of(ALIGNMENT));
        let there = self.read_up_to(room, at)?;
        let theirs = &room[..there];
        let same = |block: usize| {
            let end = ours.len().min(block + ALIGNMENT);
            theirs.get(block..end) == Some(&ours[block..end])
        };
        let (mut block, mut written) = (0, 0);
        while block < ours.len() {
            let begin = block;
            while block < ours.len() && !same(block) {
                block += ALIGNMENT;
            }
            let piece = &ours[begin..block.min(ours.len())];
            if piece.is_empty() {
                block += ALIGNMENT;
            } else {
                self.write_at(piece, at + begin as u64)?;
                written += piece.len() as u64;
            }
        }
        Ok(written)
    }

    /// Reads until the room is full or the file ends.
    fn read_up_to(&mut self, room: &mut [u8], at: u64) -> io::Result<usize> {
        let mut there = 0;
        while there < room.len() {
            match self.file.read_at(&mut room[there..], at + there as u64) {
                Ok(0) => break,
                Ok(read) => {
                    there += read;
                    // Less than whole blocks: the file ends here, and a direct read could not begin here.
                    if self.direct && !there.is_multiple_of(ALIGNMENT) {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if self.direct && refused(&e) => self.buffered(),
                Err(e) => return Err(e),
            }
        }
        Ok(there)
    }

    /// Writes from a block's beginning on: whole blocks directly, what is behind them buffered.
    fn write_at(&mut self, mut data: &[u8], mut at: u64) -> io::Result<()> {
        while !data.is_empty() {
            let whole = data.len() / ALIGNMENT * ALIGNMENT;
            if self.direct && whole == 0 {
                self.buffered();
            }
            let piece = if self.direct { &data[..whole] } else { data };
            match self.file.write_at(piece, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    data = &data[written..];
                    at += written as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if self.direct && refused(&e) => self.buffered(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write(&mut self, mut blocks: &[u8]) -> io::Result<()> {
        while !blocks.is_empty() {
            match self.file.write(blocks) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => blocks = &blocks[written..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Its blocks are larger, or it wrote a part of one, or does not do this at all.
                Err(e) if self.direct && refused(&e) => self.buffered(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// From here on the file goes through the page cache.
    fn buffered(&mut self) {
        if self.direct {
            set_direct(&self.file, false);
            self.direct = false;
        }
    }
}

fn refused(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(number, Some(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP))
}

/// Gives the file its length and its blocks, so that they lie together, and a full disk is known at once. File
/// systems that cannot do it let the file grow.
#[cfg(target_os = "linux")]
fn preallocate(file: &File, size: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, size)) {
        Err(full @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(full.into()),
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn preallocate(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// Turns direct I/O of a file on or off. False where there is none.
#[cfg(target_os = "linux")]
fn set_direct(file: &File, on: bool) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let set = fcntl_getfl(file).and_then(|mut flags| {
        flags.set(OFlags::DIRECT, on);
        fcntl_setfl(file, flags)
    });
    set.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn set_direct(_: &File, _: bool) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes files in chunks of `step` bytes, and reads them again.
    fn written(writer: &mut FileWriter, folder: &std::path::Path, data: &[u8], step: usize) -> Vec<u8> {
        let path = folder.join("file");
        writer.begin(File::create(&path).unwrap(), data.len() as u64).unwrap();
        for chunk in data.chunks(step) {
            writer.write(chunk).unwrap();
        }
        writer.end().unwrap();
        std::fs::read(path).unwrap()
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect()
    }

    /// The file systems at hand: that of the temporary folder, and one in memory.
    fn folders() -> Vec<tempfile::TempDir> {
        let memory = std::path::Path::new("/dev/shm");
        let parents = [std::env::temp_dir(), memory.to_owned()];
        parents.iter().filter(|p| p.is_dir()).map(|p| tempfile::tempdir_in(p).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn files_are_what_was_written(
            lengths in prop::collection::vec(prop_oneof![0_usize..10_000, 1_000_000_usize..3_200_000, Just(2 * BUFFER_BYTES), Just(ALIGNMENT)], 1..4),
            step in prop_oneof![1_usize..5000, 100_000_usize..4_000_000],
            direct_from in prop::sample::select(vec![0, BUFFER_BYTES as u64, u64::MAX]),
        ) {
            for folder in folders() {
                let mut writer = FileWriter::direct_from(direct_from);
                for length in &lengths {
                    let data = bytes(*length);
                    // Not `prop_assert_eq`: it would print megabytes.
                    prop_assert!(written(&mut writer, folder.path(), &data, step) == data, "{length} bytes");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn a_file_that_is_written_over_is_what_was_written(
            length in prop_oneof![0_usize..10_000, 1_000_000_usize..3_200_000, Just(2 * BUFFER_BYTES)],
            before in prop_oneof![Just(None), (0_usize..3_300_000).prop_map(Some)],
            changes in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..20_000), 0..6),
            step in prop_oneof![1000_usize..5000, 100_000_usize..4_000_000],
            direct_from in prop::sample::select(vec![0, BUFFER_BYTES as u64, u64::MAX]),
        ) {
            for folder in folders() {
                let data = bytes(length);
                let mut there = bytes(before.unwrap_or(length));
                let mut touched = 0;
                for (at, count) in &changes {
                    if there.is_empty() {
                        continue;
                    }
                    let at = at.index(there.len());
                    let end = there.len().min(at + count);
                    there[at..end].iter_mut().for_each(|b| *b ^= 0xff);
                    touched += (end - at + 2 * ALIGNMENT) as u64;
                }
                let path = folder.path().join("file");
                std::fs::write(&path, &there).unwrap();
                let counts = Arc::new(Counts::default());
                let mut writer = FileWriter::direct_from(direct_from).counted(Arc::clone(&counts));
                let file = File::options().read(true).write(true).open(&path).unwrap();
                writer.begin_over(file, length as u64).unwrap();
                for chunk in data.chunks(step) {
                    writer.write(chunk).unwrap();
                }
                writer.end().unwrap();
                prop_assert!(std::fs::read(&path).unwrap() == data, "{length} bytes over {:?}", before);
                prop_assert_eq!(counts.written() + counts.same(), length as u64);
                let missing = length.saturating_sub(there.len()) as u64;
                prop_assert!(counts.written() <= touched + missing + ALIGNMENT as u64, "{:?} of {}", counts, length);
            }
        }
    }

    #[test]
    fn what_is_right_already_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let data = bytes(2 * BUFFER_BYTES + 5000);
        std::fs::write(&path, &data).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let mut writer = FileWriter::default();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        writer.begin_over(file, data.len() as u64).unwrap();
        writer.write(&data).unwrap();
        writer.end().unwrap();
        assert_eq!((writer.counts.written(), writer.counts.same()), (0, data.len() as u64));
        assert_eq!(path.metadata().unwrap().modified().unwrap(), long_ago);
    }

    #[test]
    fn a_refusal_in_the_middle_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let data = bytes(2 * BUFFER_BYTES + 5000);
        let mut writer = FileWriter::default();
        let mut file = File::create(&path).unwrap();
        // At such an offset whole blocks are refused.
        file.write_all(b"x").unwrap();
        writer.begin(file, data.len() as u64 + 1).unwrap();
        writer.write(&data).unwrap();
        writer.end().unwrap();
        assert!(std::fs::read(path).unwrap() == [b"x", &data[..]].concat());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn large_files_are_written_directly() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        if !set_direct(&file.try_clone().unwrap(), true) {
            // This folder's file system has no direct I/O: the others of these tests are about that.
            return;
        }
        set_direct(&file, false);
        let mut writer = FileWriter::default();
        writer.begin(file, BUFFER_BYTES as u64).unwrap();
        assert!(writer.open.as_ref().unwrap().direct);
        assert_eq!(folder.path().join("file").metadata().unwrap().len(), BUFFER_BYTES as u64);
    }
}
