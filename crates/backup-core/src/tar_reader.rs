//! Tar archives cut into their members as they come (POSIX.1-1988 ustar, as `tar.c` of PostgreSQL writes it).

use bytes::{Buf, Bytes};
use tar::Header;

use crate::error::{Error, ErrorKind, Result};

/// Size of a header; data is padded to a multiple of it.
pub(crate) const BLOCK: usize = 512;

/// A piece of an archive.
pub(crate) enum Piece {
    /// A member begins.
    Member(Box<Header>),
    /// Bytes of the member that began last, without padding.
    Data(Bytes),
}

/// An archive on its way.
#[derive(Default)]
pub(crate) struct Reader {
    input: Bytes,
    header: Vec<u8>,
    data: u64,
    padding: u64,
    ended: bool,
}

/// Bytes that follow so many bytes of data.
pub(crate) fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

impl Reader {
    /// Adds bytes. Those before must have been read to their end.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.input = bytes;
    }

    /// The next piece; nothing where more bytes are needed.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it is no archive.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.ended || self.input.is_empty() {
                return Ok(None);
            }
            if self.data > 0 {
                let data = self.take(self.data);
                self.data -= data.len() as u64;
                return Ok(Some(Piece::Data(data)));
            }
            if self.padding > 0 {
                let padding = self.take(self.padding).len() as u64;
                self.padding -= padding;
                continue;
            }
            let missing = self.take((BLOCK - self.header.len()) as u64);
            self.header.extend_from_slice(&missing);
            if self.header.len() < BLOCK {
                return Ok(None);
            }
            let block = std::mem::take(&mut self.header);
            if block.iter().all(|b| *b == 0) {
                self.ended = true;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            let sum = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>()
                + 8 * u32::from(b' ');
            if header.cksum().ok() != Some(sum) {
                return Err(damaged("a header does not have its checksum"));
            }
            self.data = header.entry_size().map_err(|e| damaged("a size is not a number").caused_by(e))?;
            self.padding = padding(self.data);
            return Ok(Some(Piece::Member(Box::new(header.clone()))));
        }
    }

    /// Whether the block of zeros was read that stands behind the last member.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Checks that it ended behind a whole member.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.data == 0 && self.padding == 0 && self.header.is_empty() {
            return Ok(());
        }
        Err(damaged("it ends within a file"))
    }

    fn take(&mut self, most: u64) -> Bytes {
        let taken = usize::try_from(most).unwrap_or(usize::MAX).min(self.input.remaining());
        self.input.split_to(taken)
    }
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("an archive of files is damaged: {why}"))
        .with_hint("make another backup, or restore another one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(archive: &[u8], step: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let (mut reader, mut files) = (Reader::default(), Vec::<(String, Vec<u8>)>::new());
        for piece in archive.chunks(step) {
            reader.push(Bytes::copy_from_slice(piece));
            while let Some(piece) = reader.next()? {
                match piece {
                    Piece::Member(header) => {
                        files.push((String::from_utf8_lossy(&header.path_bytes()).into_owned(), Vec::new()));
                    }
                    Piece::Data(data) => files.last_mut().unwrap().1.extend_from_slice(&data),
                }
            }
        }
        reader.finish()?;
        Ok(files)
    }

    proptest::proptest! {
        #[test]
        fn members_are_those_that_were_archived(sizes in proptest::collection::vec(0_usize..2000, 0..8), step in 1_usize..3000, cut in 1_usize..600) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut files = Vec::new();
            for (n, size) in sizes.into_iter().enumerate() {
                let (name, data) = (format!("base/{n}"), vec![b'x'; size]);
                let mut header = Header::new_ustar();
                header.set_size(size as u64);
                builder.append_data(&mut header, &name, &data[..]).unwrap();
                files.push((name, data));
            }
            let archive = builder.into_inner().unwrap();
            proptest::prop_assert_eq!(&read(&archive, step).unwrap(), &files);
            // Cut in the last member, or in the header before it.
            if let Some((_, data)) = files.last() {
                let end = archive.len() - 2 * BLOCK;
                let cut = cut.min(data.len().next_multiple_of(BLOCK) + BLOCK - 1);
                proptest::prop_assert!(read(&archive[..end - cut], step).is_err());
            }
        }

        #[test]
        fn bytes_of_any_kind_are_read(bytes: Vec<u8>, step in 1_usize..700) {
            let _ = read(&bytes, step);
            let _ = read(&[&[7; BLOCK], &bytes[..]].concat(), step);
        }
    }
}
