//! The files that `pg_dump` writes, in each of its formats.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::logical::archive::{
    BLOBS, Blocks, Entry, Method, Place, TAR, Toc, TocReader, Within, broken, damaged, decoder, open,
};
use crate::logical::pieces::{FilePieces, Members, PieceReader, Pieces, object_of, open_file};
use crate::logical::stock::{Object, Seen, Sink, each_block, named, to_the_end};

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;
/// A list of large objects has a line of at most 30 bytes for each.
const LIST_LIMIT: u64 = 1 << 31;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Custom,
    Directory,
    Tar,
    /// SQL, compressed so.
    Plain(Method),
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Directory => "directory",
            Self::Tar => "tar",
            Self::Plain(_) => "plain",
        }
    }

    /// Finds out by the first bytes.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let found =
            std::fs::metadata(path).map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
        if found.is_dir() {
            return Ok(Self::Directory);
        }
        if !found.is_file() {
            let message = format!("{} is neither a file nor a folder", path.display());
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("write the dump into a file first: parts of it are read twice"));
        }
        let mut head = Vec::new();
        let read = open_file(path)?.take(512).read_to_end(&mut head);
        read.map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        Ok(match &head[..] {
            [b'P', b'G', b'D', b'M', b'P', ..] => Self::Custom,
            [0x1f, 0x8b, ..] => Self::Plain(Method::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Plain(Method::Zstd),
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Plain(Method::Lz4),
            head if head.get(257..262) == Some(b"ustar") => Self::Tar,
            _ => Self::Plain(Method::None),
        })
    }
}

/// Where the archive begins to be read: with its table of contents.
pub(super) enum Source {
    Custom { path: PathBuf, toc: Toc, blocks: Blocks<Box<dyn BufRead>> },
    Directory { path: PathBuf, toc: Toc },
    Tar { toc: Toc, members: Members<FilePieces> },
}

impl Source {
    pub(super) fn open(path: &Path, format: Format) -> Result<Self> {
        match format {
            Format::Directory => {
                let file = path.join("toc.dat");
                let bytes = std::fs::read(&file)
                    .map_err(|e| Error::io(format!("reading {}", file.display()), e))
                    .map_err(|e| e.with_hint("a dump in directory format has a file toc.dat"))?;
                Ok(Self::Directory { path: path.to_owned(), toc: files(whole_toc(&bytes)?)? })
            }
            Format::Tar => {
                let mut members = Members::new(FilePieces(open_file(path)?));
                match members.next_member()? {
                    Some((name, _)) if name == "toc.dat" => {}
                    _ => return Err(damaged("the tar archive does not begin with toc.dat")),
                }
                let mut reader = TocReader::default();
                while let Some(piece) = members.next_piece()? {
                    reader.push(&piece)?;
                }
                let (toc, beyond) = reader.finish()?;
                nothing_beyond(&beyond)?;
                Ok(Self::Tar { toc: files(toc)?, members })
            }
            _ => {
                let (toc, blocks) = open(open_file(path)?)?;
                Ok(Self::Custom { path: path.to_owned(), toc, blocks })
            }
        }
    }

    pub(super) fn toc(&self) -> &Toc {
        match self {
            Self::Custom { toc, .. } | Self::Directory { toc, .. } | Self::Tar { toc, .. } => toc,
        }
    }

    /// Gives all data to `sink`, each once.
    pub(super) fn read(self, sink: &mut dyn Sink) -> Result<()> {
        match self {
            Self::Custom { path, toc, mut blocks } => {
                let again = |offset| data_at(&path, &toc, offset);
                each_block(&toc, &mut blocks, &again, sink)
            }
            Self::Directory { path, toc } => directory(&path, &toc, sink),
            Self::Tar { toc, members } => tar(&toc, members, sink),
        }
    }
}

fn whole_toc(bytes: &[u8]) -> Result<Toc> {
    let mut reader = TocReader::default();
    reader.push(bytes)?;
    let (toc, beyond) = reader.finish()?;
    nothing_beyond(&beyond)?;
    Ok(toc)
}

fn nothing_beyond(beyond: &[u8]) -> Result<()> {
    if beyond.is_empty() {
        return Ok(());
    }
    Err(damaged("something stands behind its table of contents"))
}

/// The table of contents of data in files.
fn files(toc: Toc) -> Result<Toc> {
    if toc.header.format == TAR {
        return Ok(toc);
    }
    Err(damaged("its table of contents is not that of data in files"))
}

/// Data of a custom archive, from an offset on.
fn data_at(path: &Path, toc: &Toc, offset: u64) -> Result<Box<dyn Read>> {
    let mut file = open_file(path)?;
    file.seek(SeekFrom::Start(offset)).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    Blocks::new(toc, BufReader::with_capacity(READ_BYTES, file), offset)?.into_data()
}

/// The name of an entry's file, which is a plain one.
fn file_of(entry: &Entry) -> Result<&str> {
    let Place::File(name) = &entry.place else {
        return Err(damaged(&format!("{} has data and no file", named(entry))));
    };
    plain(std::str::from_utf8(name).unwrap_or_default())
}

fn plain(name: &str) -> Result<&str> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(damaged(&format!("{name:?} is no name of a file of its data")));
    }
    Ok(name)
}

/// Opens a file of a directory, which may be compressed (`InitDiscoverCompressFileHandle` in `compress_io.c`).
fn open_data(folder: &Path, name: &str) -> Result<Box<dyn Read>> {
    for method in Method::ALL {
        let path = folder.join(format!("{name}{}", method.suffix()));
        match File::open(&path) {
            Ok(file) => {
                let file = BufReader::with_capacity(READ_BYTES, file);
                return decoder(method, Within::File, file)
                    .map_err(|e| broken(e).doing(path.display().to_string()));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("opening {}", path.display()), e)),
        }
    }
    Err(damaged(&format!("the file {name} is missing")))
}

fn directory(folder: &Path, toc: &Toc, sink: &mut dyn Sink) -> Result<()> {
    let mut seen = Seen::new(toc);
    for entry in toc.entries.iter().filter(|entry| entry.has_data) {
        let name = file_of(entry)?;
        seen.entry(entry.id, entry.kind == BLOBS)?;
        if entry.kind != BLOBS {
            to_the_end(open_data(folder, name)?, |data| sink.table(toc, entry, data))
                .map_err(|e| e.doing(format!("{} ({name})", named(entry))))?;
            continue;
        }
        let mut list = Vec::new();
        open_data(folder, name)?.take(LIST_LIMIT).read_to_end(&mut list).map_err(broken)?;
        for (oid, file) in listed(&list)? {
            seen.object(oid)?;
            to_the_end(open_data(folder, &file)?, |data| {
                let again = || open_data(folder, &file);
                let object = Object { oid, entry: Some(entry.id), bytes: None, data, again: &again };
                sink.object(toc, object)
            })
            .map_err(|e| e.doing(format!("large object {oid}")))?;
        }
    }
    seen.finish()
}

/// The large objects of a `blobs.toc`: lines of OID and file.
fn listed(list: &[u8]) -> Result<Vec<(u32, String)>> {
    let wrong = || damaged("the list of its large objects is cut, or none");
    let text = std::str::from_utf8(list).map_err(|_| wrong())?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(wrong());
    }
    let line = |line: &str| {
        let (oid, file) = line.split_once(' ').ok_or_else(wrong)?;
        Ok((oid.parse().map_err(|_| wrong())?, plain(file)?.to_owned()))
    };
    text.lines().map(line).collect()
}

/// The last member is `restore.sql`, which is not needed.
fn tar(toc: &Toc, mut members: Members<FilePieces>, sink: &mut dyn Sink) -> Result<()> {
    let mut seen = Seen::new(toc);
    let mut told = HashSet::new();
    while let Some((name, bytes)) = members.next_member()? {
        if let Some(oid) = object_of(&name) {
            seen.object(oid)?;
            let again = || Err(Error::internal("the length of a member is known"));
            let object = |data: &mut dyn Read| {
                let object = Object { oid, entry: None, bytes: Some(bytes), data, again: &again };
                sink.object(toc, object)
            };
            to_the_end(PieceReader::new(&mut members), object)
                .map_err(|e| e.doing(format!("large object {oid}")))?;
            continue;
        }
        let Some(entry) = entry_of(toc, &name) else {
            if name == "restore.sql" {
                continue;
            }
            return Err(damaged(&format!("its member {name:?} belongs to nothing")));
        };
        seen.entry(entry.id, entry.kind == BLOBS)?;
        if entry.kind == BLOBS {
            let mut list = Vec::new();
            PieceReader::new(&mut members).take(LIST_LIMIT).read_to_end(&mut list).map_err(broken)?;
            told.extend(listed(&list)?.into_iter().map(|(oid, _)| oid));
            continue;
        }
        to_the_end(PieceReader::new(&mut members), |data| sink.table(toc, entry, data))
            .map_err(|e| e.doing(format!("{} ({name})", named(entry))))?;
    }
    if let Some(oid) = told.symmetric_difference(seen.objects()).min() {
        return Err(damaged(&format!("the large object {oid} and the list of them do not fit each other")));
    }
    seen.finish()
}

/// The entry that a member of a tar archive has the data of. The list of large objects has another name than the table of
/// contents says (`_StartLOs` in `pg_backup_tar.c`, PostgreSQL 17).
fn entry_of<'a>(toc: &'a Toc, name: &str) -> Option<&'a Entry> {
    let list = |entry: &&Entry| name == "blobs.toc" || name == format!("blobs_{}.toc", entry.id);
    toc.with_data(BLOBS).find(list).or_else(|| {
        let place = Place::File(name.as_bytes().to_vec());
        toc.entries.iter().find(|entry| entry.kind != BLOBS && entry.place == place)
    })
}

/// SQL, out of a file that may be compressed.
pub(super) fn plain_reader(path: &Path, method: Method) -> Result<impl BufRead> {
    let file = BufReader::with_capacity(READ_BYTES, open_file(path)?);
    let decoder = decoder(method, Within::File, file).map_err(broken)?;
    Ok(BufReader::with_capacity(READ_BYTES, decoder))
}
