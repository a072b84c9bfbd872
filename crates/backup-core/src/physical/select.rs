//! A backup of which only some files are read.
//!
//! A [`Selective`] stands in for a backup: its archives have only the members that are wanted, its list only their
//! entries, its manifest only their lines. So it is restored like any other, chains too. Frames of the archives in which
//! nothing is wanted are not read, and therefore not decompressed, nor fetched where the store reads ranges.
//!
//! A part of which only some frames are read cannot be compared with its digest. Each frame has its own checksum, and
//! every file is compared with the server's manifest in the end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::increment::{BLOCKS, Entry, FILES as WHOLE, ListReader, Stored, made_path};
use super::manifest::{Line, rewrite};
use super::relation::{Relation, relation_file};
use super::unpack::blocking;
use super::{BASE, DELTA, FILES, INCREMENTAL, LIST, MANIFEST, WAL};
use crate::dumper::{PartFrames, PartInfo, PartSource, SourceContents};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Bytestream;
use crate::tar_reader::{BLOCK, Piece, Reader, padding};

/// Says of a file whether it is wanted: the relation that it is of, if it is of one.
pub(super) type Wants = Arc<dyn Fn(Option<Relation>) -> bool + Send + Sync>;

/// Where the members of a part are that are of relations.
#[derive(Clone, Copy)]
struct Member {
    /// Where its header begins.
    at: u64,
    /// Its length, with header and padding.
    bytes: u64,
    relation: Relation,
}

/// What was found in the parts that were gone through, by the backup's place in its chain and the part's number.
type Index = Arc<Mutex<HashMap<(usize, u32), Arc<Vec<Member>>>>>;

/// A backup, and what is known of where its files are.
#[derive(Clone)]
pub(super) struct Selecting {
    parts: Arc<dyn PartSource>,
    index: Index,
    /// The server's manifest of the newest backup.
    manifest: PathBuf,
}

impl Selecting {
    /// Reads the manifest to a file.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where there is none: then nothing could be compared with it.
    pub(super) async fn begin(parts: Arc<dyn PartSource>, manifest: &Path) -> Result<Self> {
        let part = parts.parts().into_iter().find(|part| part.spec.kind == MANIFEST);
        let part = part.ok_or_else(|| Error::new(ErrorKind::Unsupported, "the backup has no manifest"))?;
        let mut stream = parts.open(part.part).await?;
        let failed = |e| Error::io("writing a manifest", e);
        let mut file = File::create(manifest).map_err(failed)?;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            file = blocking(move || file.write_all(&bytes).map_err(failed).map(|()| file)).await?;
        }
        Ok(Self { parts, index: Index::default(), manifest: manifest.to_owned() })
    }

    /// The backup with only what is wanted. `first` has what is no relation as well: WAL, empty folders.
    pub(super) async fn select(&self, wants: Wants, first: bool) -> Result<Arc<dyn PartSource>> {
        let ancestors = self.parts.ancestors().iter().enumerate().map(|(step, parts)| {
            Arc::new(self.one(parts, step, wants.clone(), first, None)) as Arc<dyn PartSource>
        });
        let ancestors: Vec<_> = ancestors.collect();
        let (path, wanted) = (self.manifest.clone(), wants.clone());
        let manifest = blocking(move || {
            let mut text = Vec::new();
            each_line(
                &path,
                |_, relation| if wanted(relation) { Line::Keep } else { Line::LeaveOut },
                |b| {
                    text.extend_from_slice(b);
                },
            )?;
            Ok(Bytes::from(text))
        });
        let manifest = manifest.await?;
        let mut newest = self.one(&self.parts, ancestors.len(), wants, first, Some(manifest));
        newest.ancestors = ancestors;
        Ok(Arc::new(newest))
    }

    fn one(
        &self,
        parts: &Arc<dyn PartSource>,
        step: usize,
        wants: Wants,
        first: bool,
        manifest: Option<Bytes>,
    ) -> Selective {
        let (parts, index) = (Arc::clone(parts), Arc::clone(&self.index));
        Selective { parts, ancestors: Vec::new(), step, wants, first, manifest, index }
    }

    /// Gives each file of a relation to `each`: its path in the data directory, and its length where it is known.
    pub(super) async fn relations(
        &self,
        mut each: impl FnMut(&Path, Relation, Option<u64>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let path = self.manifest.clone();
        blocking(move || {
            let mut done = Ok(());
            each_line(
                &path,
                |listed, relation| {
                    if let (Some(relation), Ok(())) = (relation, &done) {
                        done =
                            super::unpack::below(&listed.path).and_then(|p| each(&p, relation, listed.bytes));
                    }
                    Line::LeaveOut
                },
                |_| {},
            )?;
            done
        })
        .await
    }
}

/// A line of the manifest.
struct Listed {
    /// Without what marks an increment of the server's.
    path: Vec<u8>,
    /// Of the file that is made of it.
    bytes: Option<u64>,
}

/// Goes through the manifest.
fn each_line(
    path: &Path,
    mut change: impl FnMut(&Listed, Option<Relation>) -> Line,
    mut out: impl FnMut(&[u8]),
) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("opening a manifest", e))?;
    let changed = |path: &[u8], bytes: Option<u64>| {
        let made = made_path(path);
        let bytes = bytes.filter(|_| made.is_none());
        let listed = Listed { path: made.unwrap_or_else(|| path.to_vec()), bytes };
        let relation = relation_file(BASE, &listed.path).map(|file| file.relation);
        Ok(change(&listed, relation))
    };
    rewrite(BufReader::with_capacity(256 * 1024, file), changed, |bytes| {
        out(bytes);
        Ok(())
    })
}

/// One backup with only some of its files.
struct Selective {
    parts: Arc<dyn PartSource>,
    ancestors: Vec<Arc<dyn PartSource>>,
    step: usize,
    wants: Wants,
    first: bool,
    /// Of the newest backup.
    manifest: Option<Bytes>,
    index: Index,
}

#[async_trait]
impl PartSource for Selective {
    fn parts(&self) -> Vec<PartInfo> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.parts.parts().into_iter().filter(|part| match part.spec.kind.as_str() {
            FILES | DELTA | INCREMENTAL => {
                let members = index.get(&(self.step, part.part)).filter(|_| !self.first);
                members.is_none_or(|members| members.iter().any(|m| (self.wants)(Some(m.relation))))
            }
            LIST => true,
            MANIFEST => self.manifest.is_some(),
            WAL => self.first,
            _ => false,
        });
        all.map(|mut part| {
            if let Some(manifest) = self.manifest.as_ref().filter(|_| part.spec.kind == MANIFEST) {
                part.raw_bytes = manifest.len() as u64;
            }
            part
        })
        .collect()
    }

    fn contents(&self) -> &SourceContents {
        self.parts.contents()
    }

    fn facts(&self) -> &Map<String, Value> {
        self.parts.facts()
    }

    fn name(&self) -> String {
        self.parts.name()
    }

    fn ancestors(&self) -> &[Arc<dyn PartSource>] {
        &self.ancestors
    }

    async fn open(&self, part: u32) -> Result<Bytestream> {
        let info = self.parts.parts().into_iter().find(|info| info.part == part);
        let info =
            info.ok_or_else(|| Error::new(ErrorKind::ObjectMissing, format!("there is no part {part}")))?;
        match (info.spec.kind.as_str(), &self.manifest) {
            (FILES | DELTA | INCREMENTAL, _) => self.archive(info).await,
            (LIST, _) => self.list(part).await,
            (MANIFEST, Some(text)) => Ok(once(text.clone())),
            _ => self.parts.open(part).await,
        }
    }
}

fn once(bytes: Bytes) -> Bytestream {
    futures::stream::once(async move { Ok(bytes) }).boxed()
}

impl Selective {
    /// The list, with all folders and what is wanted.
    async fn list(&self, part: u32) -> Result<Bytestream> {
        let mut stream = self.parts.open(part).await?;
        let (mut reader, mut list) = (ListReader::default(), Vec::new());
        while let Some(bytes) = stream.next().await {
            reader.take(&bytes?, |entry: Entry<'_>| {
                let relation = relation_file(entry.archive, entry.path).map(|file| file.relation);
                if entry.stored == Stored::Folder || (self.wants)(relation) {
                    entry.write(&mut list);
                }
                Ok(())
            })?;
        }
        reader.finish()?;
        Ok(once(list.into()))
    }

    /// An archive with the members that are wanted.
    async fn archive(&self, info: PartInfo) -> Result<Bytestream> {
        let key = (self.step, info.part);
        let known = self.index.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let frames: Box<dyn PartFrames> = match self.parts.frames(info.part)? {
            Some(frames) => frames,
            None => {
                Box::new(InOrder { stream: self.parts.open(info.part).await?, at: 0, chunk: Bytes::new() })
            }
        };
        let (tx, rx) = mpsc::channel(2);
        let walk = Walk { frames, current: (0, Bytes::new()), tx, raw_bytes: info.raw_bytes };
        let (wants, index, first) = (self.wants.clone(), Arc::clone(&self.index), self.first);
        tokio::spawn(async move {
            let (mut walk, errors) = (walk, None::<Error>);
            let done = match known.filter(|_| !first) {
                Some(members) => walk.through(&members, &wants).await,
                None => walk.find(&info, &wants).await.map(|found| {
                    if let Some(found) = found {
                        let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
                        index.insert(key, Arc::new(found));
                    }
                }),
            };
            if let Some(error) = done.err().or(errors) {
                // Where nobody reads any more nobody wants to know.
                let _ = walk.tx.send(Err(error)).await;
            }
        });
        let next =
            |mut rx: mpsc::Receiver<Result<Bytes>>| async move { rx.recv().await.map(|item| (item, rx)) };
        Ok(futures::stream::unfold(rx, next).boxed())
    }
}

/// The way through an archive.
struct Walk {
    frames: Box<dyn PartFrames>,
    /// The frame that was read last, and where it begins.
    current: (u64, Bytes),
    tx: mpsc::Sender<Result<Bytes>>,
    raw_bytes: u64,
}

impl Walk {
    /// The bytes at an offset: up to the end of their frame.
    async fn at(&mut self, offset: u64) -> Result<Bytes> {
        let (begin, bytes) = &self.current;
        let within = offset.checked_sub(*begin).and_then(|from| usize::try_from(from).ok());
        if let Some(from) = within.filter(|from| *from < bytes.len()) {
            return Ok(bytes.slice(from..));
        }
        self.current = self.frames.at(offset).await?;
        let (begin, bytes) = &self.current;
        let from = offset.checked_sub(*begin).and_then(|from| usize::try_from(from).ok());
        match from.filter(|from| *from < bytes.len()) {
            Some(from) => Ok(bytes.slice(from..)),
            None => Err(Error::internal("a frame of a part is not where it was looked for")),
        }
    }

    /// Passes on what is wanted, and notes where relations are. Nothing where nobody reads any more.
    async fn find(&mut self, info: &PartInfo, wants: &Wants) -> Result<Option<Vec<Member>>> {
        let archive = info.spec.name.split('/').next().unwrap_or_default();
        let (mut at, mut members) = (0, Vec::new());
        while at < self.raw_bytes {
            let header = self.header(at).await?;
            let mut reader = Reader::default();
            reader.push(header);
            let Some(Piece::Member(header)) = reader.next()? else { break };
            let size =
                header.entry_size().map_err(|e| Error::internal("a member without a size").caused_by(e))?;
            let bytes = BLOCK as u64 + size + padding(size);
            let name = header.path_bytes();
            let relation = member_path(&info.spec.kind, &name)
                .and_then(|path| relation_file(archive, &path))
                .map(|file| file.relation);
            if let Some(relation) = relation {
                members.push(Member { at, bytes, relation });
            }
            if wants(relation) && !self.pass(at, bytes).await? {
                return Ok(None);
            }
            at += bytes;
        }
        Ok(Some(members))
    }

    /// Passes on what is wanted of an archive whose members are known.
    async fn through(&mut self, members: &[Member], wants: &Wants) -> Result<()> {
        for member in members.iter().filter(|member| wants(Some(member.relation))) {
            if !self.pass(member.at, member.bytes).await? {
                break;
            }
        }
        Ok(())
    }

    /// A header, which two frames may share.
    async fn header(&mut self, at: u64) -> Result<Bytes> {
        let bytes = self.at(at).await?;
        if bytes.len() >= BLOCK {
            return Ok(bytes.slice(..BLOCK));
        }
        let mut header = bytes.to_vec();
        while header.len() < BLOCK {
            let more = self.at(at + header.len() as u64).await?;
            header.extend_from_slice(&more[..more.len().min(BLOCK - header.len())]);
        }
        Ok(header.into())
    }

    /// Passes bytes on. False where nobody reads any more.
    async fn pass(&mut self, from: u64, bytes: u64) -> Result<bool> {
        let (mut at, end) = (from, from + bytes);
        while at < end {
            let piece = self.at(at).await?;
            let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
            at += length as u64;
            if self.tx.send(Ok(piece.slice(..length))).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The file that a member of an archive is of.
fn member_path(kind: &str, name: &[u8]) -> Option<Vec<u8>> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    match kind {
        DELTA => {
            if let Some(path) = name.strip_prefix(WHOLE.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")) {
                return Some(path.to_vec());
            }
            let path = name.strip_prefix(BLOCKS.as_bytes())?.strip_prefix(b"/")?;
            let end = path.iter().rposition(|byte| *byte == b'/')?;
            Some(path[..end].to_vec())
        }
        INCREMENTAL => Some(made_path(name).unwrap_or_else(|| name.to_vec())),
        _ => Some(name.to_vec()),
    }
}

/// A part that can only be read from its beginning.
struct InOrder {
    stream: Bytestream,
    at: u64,
    chunk: Bytes,
}

#[async_trait]
impl PartFrames for InOrder {
    async fn at(&mut self, offset: u64) -> Result<(u64, Bytes)> {
        while offset >= self.at + self.chunk.len() as u64 {
            self.at += self.chunk.len() as u64;
            self.chunk = self.stream.next().await.transpose()?.ok_or_else(|| {
                Error::new(ErrorKind::Integrity, "a part is shorter than the files in it")
                    .with_hint("restore another backup")
            })?;
        }
        Ok((self.at, self.chunk.clone()))
    }
}
