//! An archive of files.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tar::{EntryType, Header};

use super::blocks::{BlocksLook, Maker};
use super::page::{Numbers, PageLook};
use super::{FilesRead, Seen, full_path};
use crate::error::{Error, ErrorKind, Result};
use crate::physical::increment::{self, Stored, listed_path, made_path};
use crate::physical::relation::relation_file;
use crate::physical::{DELTA, FILES, INCREMENTAL};
use crate::tar_reader::{Piece, Reader};

/// How the members of an archive are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As files of the server.
    Whole,
    /// As those of an increment that pgark made: below `files/` and `blocks/`.
    Delta,
    /// As the server sends its increments.
    Incremental,
    /// They are not compared with anything.
    Other,
}

/// Reads one archive of files.
pub(crate) struct ArchiveLook {
    read: Arc<FilesRead>,
    form: Form,
    archive: String,
    reader: Reader,
    member: Option<Member>,
    found: Vec<String>,
}

/// A file on its way.
struct Member {
    /// Its path in the data directory.
    path: Vec<u8>,
    stored: Stored,
    bytes: u64,
    crc: u32,
    what: What,
}

enum What {
    /// All of it, with the pages of a relation.
    Whole(Option<PageLook>),
    /// Blocks of it.
    Blocks(BlocksLook),
    /// It is damaged, and was told.
    Told,
}

impl ArchiveLook {
    pub(super) fn new(read: Arc<FilesRead>, kind: &str, archive: &str) -> Self {
        let form = match kind {
            FILES if read.is_full => Form::Whole,
            DELTA => Form::Delta,
            INCREMENTAL => Form::Incremental,
            _ => Form::Other,
        };
        let archive = archive.to_owned();
        Self { read, form, archive, reader: Reader::default(), member: None, found: Vec::new() }
    }

    pub(super) fn take(&mut self, bytes: Bytes) -> Result<()> {
        self.reader.push(bytes);
        while let Some(piece) = self.reader.next()? {
            match piece {
                Piece::Member(header) => {
                    self.end_member();
                    self.begin_member(&header);
                }
                Piece::Data(data) => self.data(&data),
            }
        }
        Ok(())
    }

    /// The end of the archive; what is wrong in it.
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        self.end_member();
        self.reader.finish()?;
        if !self.reader.has_ended() {
            return Err(Error::new(ErrorKind::Integrity, "the archive of files has no end"));
        }
        Ok(self.found)
    }

    fn begin_member(&mut self, header: &Header) {
        if self.form == Form::Other || header.entry_type() != EntryType::Regular {
            return;
        }
        let name = listed_path(header);
        let (stored, path) = match self.form {
            Form::Whole | Form::Other => (Stored::Whole, name),
            Form::Delta => {
                let Some(found) = below(&name) else {
                    self.found.push(format!("an increment has a member {}", String::from_utf8_lossy(&name)));
                    return;
                };
                found
            }
            Form::Incremental => match made_path(&name) {
                Some(made) => (Stored::Summarized, made),
                None => (Stored::Whole, name),
            },
        };
        let segment = relation_file(&self.archive, &path).map(|file| file.segment);
        let bytes = header.entry_size().unwrap_or(0);
        let what = match stored {
            Stored::Blocks => What::Blocks(BlocksLook::new(Maker::Client, bytes, shown(&path), segment)),
            Stored::Summarized => What::Blocks(BlocksLook::new(Maker::Server, bytes, shown(&path), segment)),
            Stored::Folder | Stored::Whole => {
                let pages = segment.zip(self.read.pages).map(|(segment, pages)| {
                    PageLook::new(pages, Numbers::From(segment.wrapping_mul(pages.segment)))
                });
                What::Whole(pages)
            }
        };
        let path = full_path(&self.archive, &path);
        if self.form != Form::Whole {
            self.compare_with_list(&path, stored, bytes);
        }
        self.member = Some(Member { path, stored, bytes, crc: 0, what });
    }

    /// What the list of an increment says of a member.
    fn compare_with_list(&mut self, path: &[u8], stored: Stored, bytes: u64) {
        if !self.read.has_list() {
            return;
        }
        let listed = self.read.seen(path);
        let shown = String::from_utf8_lossy(path);
        match listed {
            None => self.found.push(format!("{shown} is not in the increment's list of files")),
            Some(listed) if listed.stored != stored => {
                self.found.push(format!("{shown} is in the increment's list as something else"));
            }
            Some(listed) if stored == Stored::Whole && listed.bytes != bytes => {
                let listed = listed.bytes;
                self.found
                    .push(format!("{shown} has {bytes} bytes instead of {listed}, by the list of files"));
            }
            Some(_) => {}
        }
    }

    fn data(&mut self, data: &[u8]) {
        let Some(member) = &mut self.member else { return };
        member.crc = crc32c::crc32c_append(member.crc, data);
        let blocks = match &mut member.what {
            What::Whole(Some(pages)) => return pages.take(data),
            What::Whole(None) | What::Told => return,
            What::Blocks(blocks) => blocks,
        };
        let shown = || String::from_utf8_lossy(&member.path);
        match blocks.take(data, &self.read) {
            Ok(None) => {}
            Ok(Some(head)) => {
                let listed = self.read.seen(&member.path).filter(|_| self.read.has_list());
                let listed = listed.map(|listed| listed.bytes);
                if let (Some(file), Some(listed)) = (head.file_bytes, listed)
                    && file != listed
                {
                    let why = format!("its blocks are of a file of {file} bytes, its list says {listed}");
                    self.found.push(format!("{}: {why}", shown()));
                }
            }
            Err(error) => {
                self.found.push(format!("{}: {error}", shown()));
                member.what = What::Told;
            }
        }
    }

    fn end_member(&mut self) {
        let Some(member) = self.member.take() else { return };
        let shown = String::from_utf8_lossy(&member.path);
        match member.what {
            What::Whole(Some(pages)) => pages.finish(&shown, &mut self.found),
            What::Blocks(blocks) => blocks.finish(&shown, &mut self.found),
            What::Whole(None) | What::Told => {}
        }
        // Of a file of which blocks come, the list has its length.
        if member.stored != Stored::Blocks {
            let Member { stored, bytes, crc, .. } = member;
            self.read.note(&member.path, Seen { stored, bytes, crc: Some(crc) });
        }
    }
}

/// What a member of an increment that pgark made is of: `files/<path>`, or `blocks/<path>/<number>`.
fn below(name: &[u8]) -> Option<(Stored, Vec<u8>)> {
    let within = |folder: &str| name.strip_prefix(folder.as_bytes())?.strip_prefix(b"/");
    if let Some(path) = within(increment::FILES) {
        return Some((Stored::Whole, path.to_vec()));
    }
    let path = within(increment::BLOCKS)?;
    let end = path.iter().rposition(|b| *b == b'/')?;
    path[end + 1..].iter().all(u8::is_ascii_digit).then(|| (Stored::Blocks, path[..end].to_vec()))
}

/// A path for messages.
fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(path).into_owned())
}
