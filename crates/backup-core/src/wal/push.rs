//! From the server's `pg_wal` into the archive: what `archive_command` asks for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

use super::archive::key_name;
use super::destination::Destination;
use super::key::WalKey;
use super::name::WalName;
use super::object::{Piece, ShortDigest};
use super::page::{LONG_HEADER, SegmentHeader, TimeScan, Times};
use super::seal::{Sealed, Sealer};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::system_identifier;
use crate::repository::Digest;
use crate::state::HostLock;

/// How much of a file is read at once.
const READ: usize = 256 * 1024;
/// More than any history or backup label has.
const SMALL: u64 = 1 << 20;
/// The state has a file for each one that was pushed ahead of its turn.
const AHEAD: &str = "wal-pushed";
/// Held by the process that pushes ahead.
const LOCK: &str = "wal-push.lock";
/// Held by the process that pushes a file: one of so many, by the file's name.
const LOCKS: u32 = 16;

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the archive now.
    New,
    /// It was there already, with the same bytes.
    Already,
}

/// Pushes WAL files of one cluster.
pub struct Pusher {
    to: Destination,
}

/// A file that was read through once.
struct Incoming {
    sealed: Sealed,
    raw: ShortDigest,
    length: u64,
    header: Option<SegmentHeader>,
    times: Times,
}

impl Pusher {
    /// Pushes into an archive.
    pub fn new(to: Destination) -> Self {
        Self { to }
    }

    /// Pushes one file. When this returns `Ok`, it is in the archive, durably.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where the archive has a file of this name with other bytes, or is that of
    /// another cluster.
    pub async fn push(&self, path: &Path) -> Result<Pushed> {
        let name = name_of(path)?;
        let _lock = self.lock(&name).await?;
        if self.was_pushed_ahead(path, &name).await? {
            return Ok(Pushed::Already);
        }
        let (pushed, _) = self.store(path, &name).await?;
        Ok(pushed)
    }

    /// Waits for a process that pushes the same file.
    async fn lock(&self, name: &WalName) -> Result<HostLock> {
        let number =
            name.to_string().bytes().fold(0_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        self.to.state.lock(&format!("wal-push.{}.lock", number % LOCKS)).await
    }

    /// Whether the process that pushes ahead stored exactly these bytes. What it noted is used once.
    async fn was_pushed_ahead(&self, path: &Path, name: &WalName) -> Result<bool> {
        let note = format!("{AHEAD}/{name}");
        let Some(noted) = self.to.state.read(&note)? else { return Ok(false) };
        let path = path.to_owned();
        let found = tokio::task::spawn_blocking(move || digest(&path)).await;
        let found = found.unwrap_or_else(|e| Err(Error::internal("reading WAL failed").caused_by(e)))?;
        self.to.state.remove(&note)?;
        Ok(found.as_str().as_bytes() == noted)
    }

    /// Files below `pg_wal` that wait for their turn, histories first, then the oldest.
    pub fn ready(pg_wal: &Path) -> Result<Vec<WalName>> {
        let folder = pg_wal.join("archive_status");
        let failed = |e| Error::io(format!("listing {}", folder.display()), e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
            found.extend(name.and_then(|name| name.parse::<WalName>().ok()));
        }
        found.sort_by_key(|name| (!matches!(name, WalName::History(_)), *name));
        Ok(found)
    }

    /// Pushes what waits below `pg_wal`, `jobs` files at once, until nothing does; how many. One process of a host
    /// does so at a time: another one returns at once. The server still asks for each file, and is told then.
    pub async fn push_ahead(&self, pg_wal: &Path, jobs: usize, cancel: &CancellationToken) -> Result<u64> {
        let Some(_lock) = self.to.state.try_lock(LOCK)? else { return Ok(0) };
        let mut pushed = 0;
        loop {
            let waiting: Vec<WalName> = Self::ready(pg_wal)?
                .into_iter()
                .filter(|name| !self.to.state.path(&format!("{AHEAD}/{name}")).exists())
                .collect();
            self.forget_done(pg_wal)?;
            if waiting.is_empty() || cancel.is_cancelled() {
                return Ok(pushed);
            }
            // In their order: should it stop in the middle, the archive has no gap.
            let done: Vec<()> = futures::stream::iter(waiting)
                .take_until(cancel.cancelled())
                .map(|name| self.push_one_ahead(pg_wal, name))
                .buffered(jobs.max(1))
                .try_collect()
                .await?;
            pushed += done.len() as u64;
        }
    }

    async fn push_one_ahead(&self, pg_wal: &Path, name: WalName) -> Result<()> {
        let _lock = self.lock(&name).await?;
        // It may have had its turn meanwhile.
        if !pg_wal.join("archive_status").join(format!("{name}.ready")).exists() {
            return Ok(());
        }
        let (_, digest) = self.store(&pg_wal.join(name.to_string()), &name).await?;
        self.to.state.write(&format!("{AHEAD}/{name}"), digest.as_str().as_bytes())
    }

    /// Removes notes of files that the server no longer asks for.
    fn forget_done(&self, pg_wal: &Path) -> Result<()> {
        let Ok(notes) = std::fs::read_dir(self.to.state.path(AHEAD)) else { return Ok(()) };
        for note in notes.flatten() {
            let name = note.file_name().to_string_lossy().into_owned();
            if !pg_wal.join("archive_status").join(format!("{name}.ready")).exists() {
                self.to.state.remove(&format!("{AHEAD}/{name}"))?;
            }
        }
        Ok(())
    }

    async fn store(&self, path: &Path, name: &WalName) -> Result<(Pushed, ShortDigest)> {
        let stored = match name {
            WalName::History(timeline) => self.store_history(path, *timeline).await,
            _ => self.store_file(path, name).await,
        };
        stored.map_err(|e| e.doing(format!("pushing {name}")))
    }

    async fn store_history(&self, path: &Path, timeline: u32) -> Result<(Pushed, ShortDigest)> {
        let text = read_small(path)?;
        let system = system_beside(path)?;
        let archive = self.to.archive(system, &version_beside(path).unwrap_or_default()).await?;
        let new = archive.store_history(timeline, &text).await?;
        let digest = Digest::of(&text).into();
        Ok((if new { Pushed::New } else { Pushed::Already }, digest))
    }

    async fn store_file(&self, path: &Path, name: &WalName) -> Result<(Pushed, ShortDigest)> {
        let key = self.to.key().await?;
        let incoming = self.read(path, name, key.clone());
        let system = match name {
            WalName::Segment(_) | WalName::Partial(_) => read_header(path)?.system_identifier,
            _ => system_beside(path)?,
        };
        let archive = async {
            let archive = self.to.archive(system, &version_beside(path).unwrap_or_default()).await?;
            let before = archive.stored(name).await?;
            Ok::<_, Error>((archive, before))
        };
        let (incoming, (archive, before)) = tokio::try_join!(incoming, archive)?;
        let Incoming { sealed, raw, length, header, times } = incoming;
        if before.wholes().contains(&&raw) && !before.in_conflict() {
            return Ok((Pushed::Already, raw));
        }
        let piece = Piece {
            offset: 0,
            length,
            segment_bytes: header.map_or(0, |h| h.segment_bytes),
            stored_bytes: Some(sealed.bytes),
            raw: raw.clone(),
            stored: sealed.digest.clone(),
            first: None,
            last: None,
            key: key_name(key.as_ref()),
        }
        .with_times(&times);
        if !before.wholes().contains(&&raw) {
            // First: what is in the archive already is not looked at again.
            super::points::store(&archive, name, &times, key.as_ref()).await?;
            archive.store_piece(name, &piece, sealed).await?;
        }
        // Another writer may have stored another file meanwhile: whoever looks last sees both.
        let after = archive.stored(name).await?;
        if after.in_conflict() || after.resolved.as_ref().is_some_and(|r| *r != raw) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the archive of {} has another file {name}, with other bytes", self.to.cluster()),
            )
            .with_hint(
                "two servers archive into one place: stop the one that must not, or give it a cluster name of its \
                 own. Both files are kept; pgark wal resolve says which one counts",
            ));
        }
        let received: Vec<Piece> =
            after.pieces.into_iter().map(|(piece, _)| piece).filter(|p| !p.is_whole()).collect();
        if !received.is_empty() && !agrees(path, received).await? {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("what was received of {name} has other bytes than this file"),
            )
            .with_hint(
                "wal receive streams from another server than the one that archives: give one of them a cluster name \
                 of its own. Both are kept, and the whole file is served",
            ));
        }
        Ok((Pushed::New, raw))
    }

    /// Reads a file through once: digest, times, compressed and sealed bytes.
    async fn read(&self, path: &Path, name: &WalName, key: Option<WalKey>) -> Result<Incoming> {
        let (path, name, level) = (path.to_owned(), *name, self.to.level);
        let read = tokio::task::spawn_blocking(move || read_through(&path, &name, level, key.as_ref())).await;
        read.unwrap_or_else(|e| Err(Error::internal("reading WAL failed").caused_by(e)))
    }
}

fn name_of(path: &Path) -> Result<WalName> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse()
}

fn opened(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    opened(path)?.take(SMALL).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn read_header(path: &Path) -> Result<SegmentHeader> {
    let mut page = [0; LONG_HEADER];
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    let mut file = opened(path)?;
    let length = file.metadata().map_err(failed)?.len();
    if length < LONG_HEADER as u64 {
        return Err(Error::new(ErrorKind::Integrity, format!("{} has only {length} bytes", path.display())));
    }
    file.read_exact(&mut page).map_err(failed)?;
    SegmentHeader::read(&page).map_err(|e| e.doing(format!("reading {}", path.display())))
}

/// The system identifier of the data directory that a file's `pg_wal` is in: `pg_control` begins with it.
fn system_beside(path: &Path) -> Result<u64> {
    let pg_wal = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    system_identifier(&data_of(pg_wal))
}

fn version_beside(path: &Path) -> Option<String> {
    let pg_wal = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let version = std::fs::read_to_string(data_of(pg_wal).join("PG_VERSION")).ok()?;
    Some(version.trim().to_owned())
}

/// The data directory of a `pg_wal`, which may be a link: as the server names it, or where it works.
fn data_of(pg_wal: &Path) -> PathBuf {
    let parent = pg_wal.parent().unwrap_or(Path::new("."));
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if parent.join("global/pg_control").exists() { parent.to_owned() } else { PathBuf::from(".") }
}

fn digest(path: &Path) -> Result<ShortDigest> {
    let mut hasher = blake3::Hasher::new();
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    hasher.update_reader(opened(path)?).map_err(failed)?;
    Ok(hasher.finalize().into())
}

/// Whether a file has the bytes of pieces that were received of it.
async fn agrees(path: &Path, pieces: Vec<Piece>) -> Result<bool> {
    let path = path.to_owned();
    let compared = tokio::task::spawn_blocking(move || {
        let failed = |e| Error::io(format!("reading {}", path.display()), e);
        let mut file = opened(&path)?;
        for piece in pieces {
            file.seek(SeekFrom::Start(piece.offset)).map_err(failed)?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(Read::by_ref(&mut file).take(piece.length)).map_err(failed)?;
            if ShortDigest::from(hasher.finalize()) != piece.raw {
                return Ok(false);
            }
        }
        Ok(true)
    });
    compared.await.unwrap_or_else(|e| Err(Error::internal("reading WAL failed").caused_by(e)))
}

fn read_through(path: &Path, name: &WalName, level: i32, key: Option<&WalKey>) -> Result<Incoming> {
    let segment = match name {
        WalName::Segment(segment) | WalName::Partial(segment) => Some(*segment),
        _ => None,
    };
    let header = segment.map(|_| read_header(path)).transpose()?;
    let length = opened(path)?.metadata().map_or(0, |m| m.len());
    if let (Some(segment), Some(header)) = (segment, header) {
        let wrong = |why: String| {
            Error::new(ErrorKind::Integrity, why)
                .with_hint("it is not as PostgreSQL writes it; nothing was stored")
        };
        if length != header.segment_bytes {
            let wanted = header.segment_bytes;
            return Err(wrong(format!("{} has {length} bytes, not {wanted}", path.display())));
        }
        if !header.is_of(segment) {
            return Err(wrong(format!("{} holds the WAL of another place", path.display())));
        }
    }
    let mut sealer = Sealer::fast(level, key)?;
    let mut scan = header.map(TimeScan::new);
    let (mut hasher, mut read) = (blake3::Hasher::new(), 0);
    let (mut file, mut buffer) = (opened(path)?, vec![0; READ]);
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        if let Some(scan) = &mut scan {
            scan.update(&buffer[..n]);
        }
        sealer.write(&buffer[..n])?;
        read += n as u64;
    }
    if read != length {
        return Err(Error::new(
            ErrorKind::Integrity,
            format!("{} changed while it was read", path.display()),
        ));
    }
    let times = scan.map(|mut scan| scan.take()).unwrap_or_default();
    Ok(Incoming { sealed: sealer.finish()?, raw: hasher.finalize().into(), length, header, times })
}
