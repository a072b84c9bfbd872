//! From the archive into the server's hands: what `restore_command` asks for.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::archive::Archive;
use super::name::{SegmentName, WalName};
use super::object::{Piece, Stored};
use super::page::{LONG_HEADER, SegmentHeader};
use super::place::Place;
use super::read::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Meta;

/// Where segments that were read ahead wait, below the folder that they are asked into: on its file system, so that
/// they only need another name.
const AHEAD: &str = "pgark.ahead";

/// Held by the process that reads ahead.
const LOCK: &str = "lock";
/// How often a segment that is being read ahead is looked for.
const WAIT: Duration = Duration::from_millis(2);
/// Then it is fetched a second time.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How many segments are read ahead at once.
const AT_ONCE: usize = 2;

/// Who asks: it decides what is an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// A server in recovery, which takes a missing segment for the end: the last, incomplete segment of a
    /// timeline is filled up with zeros for it.
    Recovery,
    /// A standby, which asks again: it gets whole segments only.
    Standby,
}

/// Fetches WAL files of one cluster.
#[derive(Debug, Clone)]
pub struct Fetcher {
    archive: Archive,
    asking: Asking,
}

/// A file that takes its name when it is whole and durable.
struct Target {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
}

impl Target {
    fn create(path: &Path) -> Result<Self> {
        let temporary = path.with_extension(format!("{}.tmp", Ulid::generate()));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| Error::io(format!("creating {}", temporary.display()), e))?;
        Ok(Self { file, path: path.to_owned(), temporary })
    }

    fn failed(&self) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |e| Error::io(format!("writing {}", path.display()), e)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(self.failed())
    }

    /// Gives it its name.
    fn keep(self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.path).map_err(self.failed())
    }

    /// Gives it its name, durably.
    fn keep_durably(self) -> Result<()> {
        let failed = self.failed();
        self.file.sync_all().map_err(&failed)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.to_owned();
        self.keep()?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After a rename there is nothing of this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Writes the bytes of a piece from its offset on. One that is of another place would end a recovery early.
struct Into {
    target: Target,
    place: Option<Place>,
}

impl Sink for Into {
    type Out = Target;

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(place) = &mut self.place {
            place.update(bytes);
        }
        self.target.write(bytes)
    }

    fn end(self) -> Result<Target> {
        self.place.map_or(Ok(()), |place| place.check()).map(|()| self.target)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("writing WAL failed").caused_by(e)))
}

impl Fetcher {
    /// Fetches from an archive.
    pub fn new(archive: Archive, asking: Asking) -> Self {
        Self { archive, asking }
    }

    /// Puts a file at `to`, whole and checked. False where the archive certainly does not have it.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where what is there is damaged or of another place, cluster or
    /// timeline; [`Conflict`](ErrorKind::Conflict) where there are several that differ.
    pub async fn fetch(&self, name: WalName, to: &Path) -> Result<bool> {
        self.fetch_file(name, to).await.map_err(|e| e.doing(format!("fetching {name}")))
    }

    async fn fetch_file(&self, name: WalName, to: &Path) -> Result<bool> {
        match name {
            WalName::History(timeline) => {
                let Some(text) = self.archive.history(timeline).await? else { return Ok(false) };
                let to = to.to_owned();
                blocking(move || {
                    let mut target = Target::create(&to)?;
                    target.write(&text)?;
                    target.keep_durably()
                })
                .await
                .map(|()| true)
            }
            WalName::Segment(segment) => {
                if self.take_ahead(segment, to).await? {
                    return Ok(true);
                }
                self.fetch_segment(segment, to).await
            }
            WalName::Partial(_) | WalName::Backup(..) => {
                let stored = self.archive.stored_certainly(&name).await?;
                let Some(pieces) = whole(&name, &stored)? else { return Ok(false) };
                let target = self.write(&name, &pieces, to).await?;
                blocking(move || target.keep_durably()).await.map(|()| true)
            }
        }
    }

    async fn fetch_segment(&self, segment: SegmentName, to: &Path) -> Result<bool> {
        let name = WalName::Segment(segment);
        let stored = self.archive.stored_certainly(&name).await?;
        if let Some(pieces) = whole(&name, &stored)? {
            return self.finish(segment, self.write(&name, &pieces, to).await?).await;
        }
        if self.asking == Asking::Standby {
            return Ok(false);
        }
        // The end of a timeline, of which the last segment never became whole.
        let pieces = contiguous(&stored);
        let partial = if pieces.is_empty() {
            self.archive.stored_certainly(&WalName::Partial(segment)).await?
        } else {
            Stored::default()
        };
        let partial = whole(&WalName::Partial(segment), &partial)?;
        if (pieces.is_empty() && partial.is_none()) || self.archive.has_later(segment).await? {
            return Ok(false);
        }
        let pieces = partial.unwrap_or(pieces);
        self.finish(segment, self.write(&name, &pieces, to).await?).await
    }

    /// Writes pieces one behind the other, then zeros up to the size of a segment.
    async fn write(&self, name: &WalName, pieces: &[(Piece, Meta)], to: &Path) -> Result<Target> {
        let path = to.to_owned();
        let mut target = blocking(move || Target::create(&path)).await?;
        let mut size = 0;
        for (piece, meta) in pieces {
            let offset = piece.offset;
            target = blocking(move || {
                target.file.seek(SeekFrom::Start(offset)).map_err(target.failed())?;
                Ok(target)
            })
            .await?;
            let place = match name {
                WalName::Segment(segment) => Some(Place::new(piece, *segment, self.archive.system())),
                _ => None,
            };
            target = self.archive.read_piece(piece, &meta.key, Into { target, place }).await?;
            size = size.max(piece.end()).max(piece.segment_bytes);
        }
        let name = *name;
        blocking(move || {
            if matches!(name, WalName::Segment(_)) {
                target.file.set_len(size).map_err(target.failed())?;
            }
            Ok(target)
        })
        .await
    }

    /// Checks a segment by its own words, and gives it its name. The server syncs it when it takes it
    /// (`KeepFileRestoredFromArchive` in `xlogarchive.c`), and after a crash it asks again.
    async fn finish(&self, segment: SegmentName, target: Target) -> Result<bool> {
        let system = self.archive.system();
        blocking(move || {
            check(&target.temporary, segment, system)?;
            target.keep()
        })
        .await
        .map(|()| true)
    }

    /// Takes a segment that was read ahead. It was checked when it was written, and is checked by its own words
    /// again.
    async fn take_ahead(&self, segment: SegmentName, to: &Path) -> Result<bool> {
        let (from, to, system) = (ahead(to).join(segment.to_string()), to.to_owned(), self.archive.system());
        let begun = Instant::now();
        while !from.exists() && being_read(&from) && begun.elapsed() < LONGEST_WAIT {
            tokio::time::sleep(WAIT).await;
        }
        blocking(move || {
            if !from.exists() {
                return Ok(false);
            }
            if check(&from, segment, system).is_err() {
                // It is fetched again.
                let _ = std::fs::remove_file(&from);
                return Ok(false);
            }
            std::fs::rename(&from, &to).map_err(|e| Error::io(format!("moving {}", from.display()), e))?;
            Ok(true)
        })
        .await
    }

    /// Reads the `count` segments behind one ahead, for the next calls with the same `to`. It stops at the first that
    /// is not there. One process does so at a time; another one returns at once. How many there are now.
    pub async fn read_ahead(
        &self,
        behind: SegmentName,
        to: &Path,
        count: u64,
        cancel: &CancellationToken,
    ) -> Result<u64> {
        let folder = ahead(to);
        std::fs::create_dir_all(&folder)
            .map_err(|e| Error::io(format!("making the folder {}", folder.display()), e))?;
        for other in std::fs::read_dir(all_ahead(to)).into_iter().flatten().flatten() {
            if other.path() != folder {
                // Of an earlier start of the machine: it is only space.
                let _ = std::fs::remove_dir_all(other.path());
            }
        }
        let lock = folder.join(LOCK);
        let failed = |e| Error::io(format!("locking {}", lock.display()), e);
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&lock).map_err(failed)?;
        if lock.try_lock().is_err() {
            return Ok(0);
        }
        let Some(segment_bytes) = self.segment_bytes(behind).await? else { return Ok(0) };
        forget_passed(&folder, behind);
        let mut next = behind;
        let segments: Vec<SegmentName> = std::iter::repeat_with(|| {
            next = next.next(segment_bytes);
            next
        })
        .take(usize::try_from(count).unwrap_or(0))
        .collect();
        let reading = futures::stream::iter(segments)
            .take_until(cancel.cancelled())
            .map(|segment| self.read_one_ahead(segment, folder.join(segment.to_string())))
            .buffered(AT_ONCE);
        let mut reading = pin!(reading);
        let mut there = 0;
        while reading.try_next().await?.unwrap_or(false) {
            there += 1;
        }
        Ok(there)
    }

    /// False where it is not there.
    async fn read_one_ahead(&self, segment: SegmentName, path: PathBuf) -> Result<bool> {
        if path.exists() {
            return Ok(true);
        }
        let name = WalName::Segment(segment);
        let stored = self.archive.stored_certainly(&name).await?;
        let Some(pieces) = whole(&name, &stored)? else { return Ok(false) };
        self.finish(segment, self.write(&name, &pieces, &path).await?).await
    }

    /// How many segments wait for the next calls with the same `to`.
    pub fn waiting(to: &Path) -> u64 {
        let waits = |name: &str| matches!(name.parse(), Ok(WalName::Segment(_)));
        let entries = std::fs::read_dir(ahead(to)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_str().is_some_and(waits)).count() as u64
    }

    /// Whether a process reads ahead for the next calls with the same `to`.
    pub fn is_reading_ahead(to: &Path) -> bool {
        is_at_work(&ahead(to))
    }

    async fn segment_bytes(&self, segment: SegmentName) -> Result<Option<u64>> {
        let stored = self.archive.stored_certainly(&WalName::Segment(segment)).await?;
        Ok(stored.pieces.first().map(|(piece, _)| piece.segment_bytes))
    }

    /// Removes what was read ahead: recovery has ended, or has left the timeline.
    pub fn forget_ahead(to: &Path) {
        // What stays takes space and is never served unchecked.
        let _ = std::fs::remove_dir_all(all_ahead(to));
    }
}

/// Where segments wait. They are not synced: what is there after a crash of the machine may not be what was written,
/// and so each start of the machine has a folder of its own.
fn ahead(to: &Path) -> PathBuf {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let boot = boot.map_or_else(|_| std::process::id().to_string(), |id| id.trim().to_owned());
    all_ahead(to).join(boot)
}

fn all_ahead(to: &Path) -> PathBuf {
    to.parent().unwrap_or(Path::new("")).join(AHEAD)
}

/// Whether a process is reading the segment ahead at this moment.
fn being_read(path: &Path) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return false;
    };
    let begun = |file: &str| file.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let has_begun = { entries }.any(|entry| entry.file_name().to_str().is_some_and(begun));
    has_begun && is_at_work(folder)
}

/// Whether a process reads ahead into a folder. One that was killed gave its lock back.
fn is_at_work(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

/// Removes segments that recovery has passed, or of other timelines, and what was left half written.
fn forget_passed(folder: &Path, at: SegmentName) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let waits = matches!(name.parse(), Ok(WalName::Segment(s)) if s > at && s.timeline == at.timeline);
        if !waits && name != LOCK {
            // It is only space.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The pieces that make the whole file; nothing where it is not whole.
fn whole(name: &WalName, stored: &Stored) -> Result<Option<Vec<(Piece, Meta)>>> {
    if stored.in_conflict() {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the archive has several files {name} that differ"),
        )
        .with_hint("pgark wal resolve says which one counts"));
    }
    let counts = |piece: &Piece| stored.resolved.as_ref().is_none_or(|resolved| piece.raw == *resolved);
    let single = stored
        .pieces
        .iter()
        .find(|(piece, _)| (piece.is_whole() || piece.segment_bytes == 0) && counts(piece));
    if let Some(single) = single {
        return Ok(Some(vec![single.clone()]));
    }
    Ok(stored.is_complete().then(|| contiguous(stored)))
}

/// The fewest pieces that follow each other from the beginning on, overlapping where they must.
fn contiguous(stored: &Stored) -> Vec<(Piece, Meta)> {
    let (mut chosen, mut end) = (Vec::new(), 0);
    loop {
        let next = stored
            .pieces
            .iter()
            .filter(|(piece, _)| piece.offset <= end && piece.end() > end)
            .max_by_key(|(piece, _)| piece.end());
        let Some(next) = next else { return chosen };
        end = next.0.end();
        chosen.push(next.clone());
    }
}

/// Whether a file is the segment that its name says: its size, place, cluster and timeline.
fn check(path: &Path, segment: SegmentName, system: u64) -> Result<()> {
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    let mut page = [0; LONG_HEADER];
    let mut file = File::open(path).map_err(failed)?;
    io::Read::read_exact(&mut file, &mut page).map_err(failed)?;
    let header = SegmentHeader::read(&page)?;
    let length = file.metadata().map_err(failed)?.len();
    if header.is_of(segment) && header.system_identifier == system && length == header.segment_bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Integrity,
        format!(
            "what is stored as {segment} is WAL of cluster {} from {} on timeline {}",
            header.system_identifier, header.start, header.timeline
        ),
    )
    .with_hint("restore from another backup or another copy; pgark wal verify shows what is wrong"))
}
