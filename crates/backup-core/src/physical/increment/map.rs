//! The block map of a backup: for every block of every relation file 96 bits of its keyed digest.
//!
//! The digest is AEGIS-128X4 used as a MAC (draft-irtf-cfrg-aegis-aead, "AEGIS as a MAC"): without the key nobody finds
//! two blocks with the same one, nor what a block holds.
//!
//! With it the next backup is compared by content, block by block, without reading this one. It is written while the
//! backup runs, in the server's order; a reader finds files by name, so that the orders of two backups may differ. In
//! memory there are 16 bytes a file.
//!
//! ```text
//! "pgarkmap", u32 version (3), u32 bytes of a block; then for each file:
//! u16 length of the name, name ("base/base/5/16384": archive, path in it), u64 length of the file, 12 bytes a block
//! ```
//!
//! Numbers are little endian. It is no part of the repository: it stays on the host.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use aegis::aegis128x4::Aegis128X4Mac;

use crate::error::{Error, Result};
use crate::physical::manifest::hex;
use crate::repository::Digest;

const MAGIC: &[u8; 8] = b"pgarkmap";
const VERSION: u32 = 3;
/// Bytes of a block's digest.
pub(super) const HASH_BYTES: usize = 12;
/// A name that is longer is no relation's.
const NAME_LIMIT: usize = 1024;

/// A block's digest.
pub(super) type BlockHash = [u8; HASH_BYTES];

/// The secret of a host with which its maps are made: who finds a map cannot confirm a guess at a block.
#[derive(Clone)]
pub(super) struct MapKey {
    secret: [u8; 32],
    /// The digest of no bytes yet.
    begun: Aegis128X4Mac<16>,
}

impl MapKey {
    pub(super) fn new(secret: [u8; 32]) -> Self {
        let key = blake3::derive_key("pgark 2026 digests of blocks", &secret);
        let mut half = [0; 16];
        half.copy_from_slice(&key[..16]);
        Self { secret, begun: Aegis128X4Mac::new(&half) }
    }

    /// A name for it that tells nothing about it.
    pub(super) fn id(&self) -> String {
        let id = blake3::derive_key("pgark 2026 id of the key of block maps", &self.secret);
        hex(&id[..8])
    }

    /// The digest of a block.
    pub(super) fn hash(&self, block: &[u8]) -> BlockHash {
        let mut mac = self.begun.clone();
        mac.update(block);
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&mac.finalize()[..HASH_BYTES]);
        hash
    }
}

/// Writes a map.
pub(super) struct MapWriter<W: Write> {
    out: BufWriter<W>,
    digest: blake3::Hasher,
}

impl<W: Write> MapWriter<W> {
    pub(super) fn new(out: W, block_bytes: u32) -> io::Result<Self> {
        let mut this = Self { out: BufWriter::with_capacity(64 * 1024, out), digest: blake3::Hasher::new() };
        this.put(MAGIC)?;
        this.put(&VERSION.to_le_bytes())?;
        this.put(&block_bytes.to_le_bytes())?;
        Ok(this)
    }

    /// Begins a file. The digests of all its blocks follow.
    pub(super) fn file(&mut self, name: &[u8], length: u64) -> io::Result<()> {
        let count = u16::try_from(name.len()).map_err(|_| io::Error::other("a name is too long"))?;
        self.put(&count.to_le_bytes())?;
        self.put(name)?;
        self.put(&length.to_le_bytes())
    }

    pub(super) fn block(&mut self, hash: BlockHash) -> io::Result<()> {
        self.put(&hash)
    }

    /// Ends it; what it was written to, and the digest of all of it.
    pub(super) fn finish(self) -> io::Result<(W, Digest)> {
        let out = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((out, self.digest.finalize().into()))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

/// A map that was written, and is what it was.
pub(super) struct BlockMap {
    file: File,
    block_bytes: u32,
    /// Digests of names, and where their files begin; sorted.
    index: Vec<(u64, u64)>,
}

/// A file of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MappedFile {
    pub(super) length: u64,
    /// Where the digests of its blocks are.
    at: u64,
}

impl BlockMap {
    /// Reads a map through, compares it with its digest, and remembers where its files are.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), also where it is not the map that it should be.
    pub(super) fn open(file: File, digest: Digest) -> Result<Self> {
        let reading = |e| Error::io("reading the block map", e);
        let mut input = Checked {
            input: BufReader::with_capacity(256 * 1024, &file),
            digest: blake3::Hasher::new(),
            at: 0,
        };
        let (block_bytes, mut index) = input.index().map_err(reading)?;
        if Digest::from(input.digest.finalize()) != digest {
            return Err(reading(io::Error::other("it is not as it was written")));
        }
        index.sort_unstable();
        index.shrink_to_fit();
        Ok(Self { file, block_bytes, index })
    }

    pub(super) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Looks for a file.
    pub(super) fn find(&self, name: &[u8]) -> io::Result<Option<MappedFile>> {
        let wanted = name_digest(name);
        let from = self.index.partition_point(|(digest, _)| *digest < wanted);
        for (_, at) in self.index[from..].iter().take_while(|(digest, _)| *digest == wanted) {
            let mut found = vec![0; 2 + name.len() + 8];
            self.file.read_exact_at(&mut found, *at)?;
            let (count, rest) = found.split_at(2);
            let (found, length) = rest.split_at(name.len());
            if count == (u16::try_from(name.len()).unwrap_or(0)).to_le_bytes() && found == name {
                let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
                return Ok(Some(MappedFile { length, at: *at + 2 + name.len() as u64 + 8 }));
            }
        }
        Ok(None)
    }

    /// The digests of at most `count` blocks of a file, from block `from` on.
    pub(super) fn hashes(&self, file: MappedFile, from: u64, count: usize) -> io::Result<Vec<u8>> {
        let blocks = file.length / u64::from(self.block_bytes);
        let count = usize::try_from(blocks.saturating_sub(from)).unwrap_or(count).min(count);
        let mut hashes = vec![0; count * HASH_BYTES];
        self.file.read_exact_at(&mut hashes, file.at + from * HASH_BYTES as u64)?;
        Ok(hashes)
    }
}

/// Input whose bytes are counted and digested.
struct Checked<R> {
    input: R,
    digest: blake3::Hasher,
    at: u64,
}

impl<R: Read> Checked<R> {
    fn index(&mut self) -> io::Result<(u32, Vec<(u64, u64)>)> {
        let wrong = |why: &str| io::Error::other(why.to_owned());
        let mut head = [0; 16];
        self.fill(&mut head)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let block_bytes = number(12);
        if &head[..8] != MAGIC || number(8) != VERSION || block_bytes == 0 {
            return Err(wrong("it is no block map of this version"));
        }
        let mut index = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let at = self.at;
            let mut count = [0; 2];
            // The end, or a file.
            if self.some(&mut count[..1])? == 0 {
                return Ok((block_bytes, index));
            }
            self.fill(&mut count[1..])?;
            let count = usize::from(u16::from_le_bytes(count));
            if count > NAME_LIMIT {
                return Err(wrong("a name is too long"));
            }
            let mut length = [0; 8];
            self.fill(&mut buffer[..count])?;
            index.push((name_digest(&buffer[..count]), at));
            self.fill(&mut length)?;
            let blocks = u64::from_le_bytes(length) / u64::from(block_bytes);
            let mut rest = blocks.checked_mul(HASH_BYTES as u64).ok_or_else(|| wrong("a length is wrong"))?;
            while rest > 0 {
                let step = usize::try_from(rest).unwrap_or(buffer.len()).min(buffer.len());
                self.fill(&mut buffer[..step])?;
                rest -= step as u64;
            }
        }
    }

    fn some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.at += read as u64;
        Ok(read)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(buffer)?;
        self.digest.update(buffer);
        self.at += buffer.len() as u64;
        Ok(())
    }
}

fn name_digest(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn written(files: &[(String, u64)], key: &MapKey) -> (File, Digest) {
        let mut map = MapWriter::new(tempfile::tempfile().unwrap(), 8192).unwrap();
        for (name, blocks) in files {
            map.file(name.as_bytes(), blocks * 8192).unwrap();
            for n in 0..*blocks {
                map.block(key.hash(format!("{name} {n}").as_bytes())).unwrap();
            }
        }
        let (mut file, digest) = map.finish().unwrap();
        file.rewind().unwrap();
        (file, digest)
    }

    #[test]
    fn files_are_found_by_name() {
        let key = MapKey::new([7; 32]);
        let files: Vec<(String, u64)> = (0..1000).map(|n| (format!("base/base/5/{n}"), n % 40)).collect();
        let (file, digest) = written(&files, &key);
        let map = BlockMap::open(file, digest).unwrap();
        for (name, blocks) in files.iter().rev() {
            let file = map.find(name.as_bytes()).unwrap().unwrap();
            assert_eq!(file.length, blocks * 8192);
            let hashes = map.hashes(file, blocks / 2, 7).unwrap();
            let wanted: Vec<u8> = (blocks / 2..*blocks)
                .take(7)
                .flat_map(|n| key.hash(format!("{name} {n}").as_bytes()))
                .collect();
            assert_eq!(hashes, wanted, "{name}");
        }
        assert_eq!(map.find(b"base/base/5/1000").unwrap(), None);
    }

    #[test]
    fn a_map_that_changed_is_refused() {
        let key = MapKey::new([7; 32]);
        let (mut file, digest) = written(&[("base/base/5/1".to_owned(), 3)], &key);
        let length = file.seek(io::SeekFrom::End(0)).unwrap();
        for at in 0..length {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let mut again = file.try_clone().unwrap();
            again.rewind().unwrap();
            assert!(BlockMap::open(again, digest).is_err(), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        file.set_len(length - 1).unwrap();
        file.rewind().unwrap();
        assert!(BlockMap::open(file, digest).is_err());
    }

    #[test]
    fn a_hundred_thousand_files_take_two_megabytes() {
        let key = MapKey::new([7; 32]);
        let files: Vec<(String, u64)> = (0..100_000).map(|n| (format!("base/base/16384/{n}"), 1)).collect();
        let (file, digest) = written(&files, &key);
        let map = BlockMap::open(file, digest).unwrap();
        assert!(map.index.capacity() * size_of::<(u64, u64)>() < 2 << 20, "{}", map.index.capacity());
        let file = map.find(b"base/base/16384/77777").unwrap().unwrap();
        assert_eq!(map.hashes(file, 0, 9).unwrap(), key.hash(b"base/base/16384/77777 0"));
    }
}
