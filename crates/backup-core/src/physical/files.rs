//! Files written past the page cache.
//!
//! A restore writes once what nobody reads soon. Direct I/O leaves the page cache to the servers that run beside it,
//! and the processor to decompression: the kernel copies nothing. It takes whole blocks in memory that is aligned to
//! them (`open(2)`, "`O_DIRECT`"); the tail of a file, small files, and file systems that refuse are buffered.

use std::fs::File;
use std::io::{self, Write};

/// What addresses, offsets and lengths are a multiple of: the largest logical block of the disks that there are.
const ALIGNMENT: usize = 4096;
/// Bytes that are written at a time.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Writes files, one after the other. It has one buffer of 1 MiB, once a file needed it.
pub(super) struct FileWriter {
    /// Files of at least so many bytes are preallocated and written directly.
    direct_from: u64,
    /// The buffer, and what lies before its first aligned address.
    buffer: Vec<u8>,
    shift: usize,
    filled: usize,
    open: Option<Open>,
}

/// The file that is being written.
struct Open {
    file: File,
    /// It takes whole blocks only.
    direct: bool,
}

impl Default for FileWriter {
    fn default() -> Self {
        Self::direct_from(BUFFER_BYTES as u64)
    }
}

impl FileWriter {
    /// Writes files of at least so many bytes directly, where their file system allows it.
    pub(super) fn direct_from(bytes: u64) -> Self {
        Self { direct_from: bytes, buffer: Vec::new(), shift: 0, filled: 0, open: None }
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
        if direct && self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_BYTES + ALIGNMENT];
            self.shift = self.buffer.as_ptr().align_offset(ALIGNMENT);
        }
        // What no address can be found in, cannot be written directly.
        let direct = direct && (self.shift < ALIGNMENT || !set_direct(&file, false));
        self.open = Some(Open { file, direct });
        Ok(())
    }

    /// Adds bytes to the file; without one they are dropped.
    pub(super) fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let Some(open) = &mut self.open else { return Ok(()) };
            if !open.direct {
                return open.file.write_all(data);
            }
            let (taken, rest) = data.split_at(data.len().min(BUFFER_BYTES - self.filled));
            let at = self.shift + self.filled;
            self.buffer[at..at + taken.len()].copy_from_slice(taken);
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
        let all = &self.buffer[self.shift..self.shift + self.filled];
        self.filled = 0;
        let (blocks, tail) = all.split_at(all.len() / ALIGNMENT * ALIGNMENT);
        open.write(blocks)?;
        if !tail.is_empty() {
            open.buffered();
            open.file.write_all(tail)?;
        }
        Ok(())
    }
}

impl Open {
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
