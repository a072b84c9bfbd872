//! The journal of a restore: `pgark.restore` in the data directory, written first and removed last.
//!
//! It says what is restored and where to, and has a line for each step that is done, so that a restore that was killed
//! goes on. What it says counts only until the machine starts anew: the files are not synced before the end, and a loss
//! of power takes what the page cache held, but not necessarily the lines that say so.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// Its name. A folder that has it is not a data directory yet.
pub(super) const MARKER: &str = "pgark.restore";
/// Its name while it is written anew.
const NEW: &str = "pgark.restore.new";
const FIRST_LINE: &str = "pgark restore 1";
/// Ends the head. What has none was cut while it was written, before anything else was touched.
const BEGUN: &str = "begun";
/// A journal is locked for a moment longer where a restore was cancelled within this process.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long a restore that was given up may take to end, and how often it is looked at.
const SETTLED_WITHIN: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(10);

/// What is restored, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Id of the backup.
    pub(super) backup: String,
    /// The kernel's id of this start of the machine, where it has one.
    pub(super) boot: Option<String>,
    /// The system identifier of the data directory that is restored over.
    pub(super) over: Option<u64>,
    /// Where each archive goes: `base` or the OID of a tablespace.
    pub(super) folders: BTreeMap<String, PathBuf>,
}

impl Head {
    /// Whether what this one's restore did is of use for another.
    pub(super) fn goes_on_with(&self, other: &Self) -> bool {
        self.backup == other.backup
            && self.boot.is_some()
            && self.boot == other.boot
            && self.folders == other.folders
    }

    fn bytes(&self) -> Vec<u8> {
        let boot = self.boot.as_deref().unwrap_or("-");
        let mut head = format!("{FIRST_LINE}\nbackup {}\nboot {boot}\n", self.backup).into_bytes();
        if let Some(system) = self.over {
            head.extend_from_slice(format!("over {system}\n").as_bytes());
        }
        for (archive, folder) in &self.folders {
            head.extend_from_slice(format!("folder {archive} ").as_bytes());
            escape(folder, &mut head);
            head.push(b'\n');
        }
        head.extend_from_slice(format!("{BEGUN}\n").as_bytes());
        head
    }

    /// The lines before [`BEGUN`].
    fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (mut backup, mut boot, mut over, mut folders) = (None, None, None, BTreeMap::new());
        for line in lines {
            let space = line.iter().position(|b| *b == b' ')?;
            let (name, value) = (&line[..space], &line[space + 1..]);
            let text = || std::str::from_utf8(value).ok().map(str::to_owned);
            match name {
                b"backup" => backup = Some(text()?),
                b"boot" => boot = Some(text()?).filter(|boot| boot != "-"),
                b"over" => over = Some(text()?.parse().ok()?),
                b"folder" => {
                    let space = value.iter().position(|b| *b == b' ')?;
                    let archive = std::str::from_utf8(&value[..space]).ok()?;
                    folders.insert(archive.to_owned(), unescape(&value[space + 1..])?);
                }
                _ => return None,
            }
        }
        Some(Self { backup: backup?, boot, over, folders })
    }
}

/// A path in one line.
fn escape(path: &Path, out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            other => out.push(*other),
        }
    }
}

fn unescape(text: &[u8]) -> Option<PathBuf> {
    let (mut path, mut bytes) = (Vec::with_capacity(text.len()), text.iter());
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b'\\' => b'\\',
                _ => return None,
            },
            other => *other,
        });
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

/// Something that is done. `step` is the place of a backup in the chain, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The folders have nothing in them that the restore does not know of.
    Cleared,
    /// The list of an increment was applied.
    List { step: usize },
    /// A part is unpacked: its stream ended well, and so did its files.
    Part { step: usize, part: u32 },
    /// The files were compared with the server's manifest.
    Checked,
    /// So long was `postgresql.auto.conf` before settings were added to it.
    Settings { bytes: u64 },
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cleared => f.write_str("cleared"),
            Self::List { step } => write!(f, "{step} list"),
            Self::Part { step, part } => write!(f, "{step} part {part}"),
            Self::Checked => f.write_str("checked"),
            Self::Settings { bytes } => write!(f, "settings {bytes}"),
        }
    }
}

impl Mark {
    fn parse(line: &[u8]) -> Option<Self> {
        let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
        Some(match words[..] {
            ["cleared"] => Self::Cleared,
            ["checked"] => Self::Checked,
            ["settings", bytes] => Self::Settings { bytes: bytes.parse().ok()? },
            [step, "list"] => Self::List { step: step.parse().ok()? },
            [step, "part", part] => Self::Part { step: step.parse().ok()?, part: part.parse().ok()? },
            _ => return None,
        })
    }
}

/// What an earlier run did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) cleared: bool,
    pub(super) checked: bool,
    pub(super) settings: Option<u64>,
    lists: BTreeSet<usize>,
    parts: BTreeSet<(usize, u32)>,
}

impl Done {
    fn add(&mut self, mark: Mark) {
        match mark {
            Mark::Cleared => self.cleared = true,
            Mark::Checked => self.checked = true,
            Mark::Settings { bytes } => self.settings = Some(bytes),
            Mark::List { step } => drop(self.lists.insert(step)),
            Mark::Part { step, part } => drop(self.parts.insert((step, part))),
        }
    }

    /// Whether a later step was begun: one begins when the one before it is done.
    fn is_behind(&self, step: usize) -> bool {
        let last = self.lists.last().copied().max(self.parts.last().map(|(step, _)| *step));
        last.is_some_and(|last| step < last)
    }

    /// Whether the list of an increment was applied. It must not be applied again then: it would remove what parts of
    /// the same increment wrote.
    ///
    /// One that was begun, and not ended, is applied again from its beginning, over what all earlier steps made and no
    /// part of its own has touched. That comes to the same as once: what is absent, and what comes whole, is gone or
    /// goes; folders are there or are made; a file of which blocks come is never removed, and is cut or extended to a
    /// length that it then has. The bytes that a first pass cut off or added as zeros are those that a second one
    /// would.
    pub(super) fn list(&self, step: usize) -> bool {
        self.is_behind(step) || self.lists.contains(&step)
    }

    /// Whether a part is unpacked. Of an increment that is so only behind its list.
    pub(super) fn part(&self, step: usize, part: u32) -> bool {
        self.is_behind(step) || (self.parts.contains(&(step, part)) && (step == 0 || self.list(step)))
    }
}

/// The journal of a restore, locked for this process: another restore into the folder is refused as long as this value
/// lives.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Nothing after a line that could not be written whole: no other may follow it.
    file: Mutex<Option<File>>,
    /// Nothing where it was cut while it was begun.
    pub(super) head: Option<Head>,
    /// What an earlier run did.
    pub(super) done: Done,
}

impl Journal {
    /// The journal in a folder, where there is one.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where another restore works with it, or where it is none.
    pub(super) fn find(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MARKER);
        let failed = |e| Error::io(format!("reading {}", path.display()), e);
        for _ in 0..TRIES {
            let mut file = match options().open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(failed(e)),
            };
            // Whoever had it until now may have removed it, or put another one in its place.
            if file.try_lock().is_err() || !is_at(&file, &path).map_err(failed)? {
                std::thread::sleep(TRY_AGAIN);
                continue;
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(failed)?;
            let (head, done, whole) = parse(&text).ok_or_else(|| {
                Error::new(ErrorKind::Conflict, format!("{} is not of this pgark", path.display()))
                    .with_hint("go on with the version that wrote it, or choose another folder")
            })?;
            // A line that was cut must not become one with the next.
            file.set_len(whole).map_err(failed)?;
            return Ok(Some(Self { path, file: Mutex::new(Some(file)), head, done }));
        }
        Err(another(folder))
    }

    /// Begins one where there is none.
    pub(super) fn begin(folder: &Path, head: Head) -> Result<Self> {
        let path = folder.join(MARKER);
        let failed = |e| Error::io(format!("writing {}", path.display()), e);
        let mut file = match options().create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(another(folder)),
            Err(e) => return Err(failed(e)),
        };
        if file.try_lock().is_err() {
            return Err(another(folder));
        }
        write_synced(&mut file, &head, folder).map_err(failed)?;
        Ok(Self { path, file: Mutex::new(Some(file)), head: Some(head), done: Done::default() })
    }

    /// Begins anew in the place of this one. At every moment there is one of them as a whole.
    pub(super) fn begin_anew(self, head: Head) -> Result<Self> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let (path, new) = (self.path.clone(), folder.join(NEW));
        let replaced = || {
            match std::fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = options().create_new(true).mode(0o600).open(&new)?;
            file.lock()?;
            write_synced(&mut file, &head, folder)?;
            std::fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()?;
            Ok(file)
        };
        let file = replaced().map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        Ok(Self { path, file: Mutex::new(Some(file)), head: Some(head), done: Done::default() })
    }

    /// Adds what is done, with one write.
    pub(super) fn mark(&self, mark: Mark) -> Result<()> {
        let failed = |e| Error::io(format!("writing {}", self.path.display()), e);
        let line = format!("{mark}\n");
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = open.as_mut().ok_or_else(|| failed(io::ErrorKind::WriteZero.into()))?;
        let written = match file.write(line.as_bytes()) {
            Ok(written) if written == line.len() => return Ok(()),
            Ok(_) => io::ErrorKind::WriteZero.into(),
            Err(e) => e,
        };
        *open = None;
        Err(failed(written))
    }

    /// Removes it: the restore is done, or has touched nothing.
    pub(super) fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.path)
            .map_err(|e| Error::io(format!("removing {}", self.path.display()), e))
    }
}

/// Waits until nobody writes any more into a folder, where a restore into it was given up: what waits for a disk ends
/// a moment later, and would make its folders again.
pub(crate) fn settled(folder: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < SETTLED_WITHIN
        && options().open(folder.join(MARKER)).is_ok_and(|file| file.try_lock().is_err())
    {
        std::thread::sleep(LOOK);
    }
}

/// It is appended to only, and never found through a link.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW.bits();
    options.read(true).append(true).custom_flags(i32::from_ne_bytes(flags.to_ne_bytes()));
    options
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn write_synced(file: &mut File, head: &Head, folder: &Path) -> io::Result<()> {
    file.write_all(&head.bytes())?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

fn another(folder: &Path) -> Error {
    Error::new(ErrorKind::Conflict, format!("another restore fills {}", folder.display()))
        .with_hint("wait for it, or choose another folder")
}

/// Head and marks of a journal, and how many bytes of it are whole lines. Nothing where it is no journal.
fn parse(text: &[u8]) -> Option<(Option<Head>, Done, u64)> {
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let mut lines = text[..whole].split(|b| *b == b'\n');
    let first = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let cut = || Some((None, Done::default(), 0));
    if first != FIRST_LINE.as_bytes() {
        let is_cut = first.len() == text.len() && FIRST_LINE.as_bytes().starts_with(first);
        return if is_cut { cut() } else { None };
    }
    let _ = lines.next();
    let mut head = Vec::new();
    loop {
        match lines.next() {
            Some(line) if line == BEGUN.as_bytes() => break,
            Some(line) if !line.is_empty() => head.push(line),
            _ => return cut(),
        }
    }
    let head = Head::parse(head.into_iter())?;
    let mut done = Done::default();
    lines.filter_map(Mark::parse).for_each(|mark| done.add(mark));
    Some((Some(head), done, whole as u64))
}

/// The kernel's id of this start of the machine (`random(4)`). Systems without one do not go on with a restore.
pub(super) fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let folders = [("base", "/a b/\n\\x"), ("16385", "/ts")];
        Head {
            backup: "20261121T020000Z-physical-k7qd".to_owned(),
            boot: Some("b00t".to_owned()),
            over: None,
            folders: folders.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).into(),
        }
    }

    const MARKS: [Mark; 6] = [
        Mark::Cleared,
        Mark::Part { step: 0, part: 12 },
        Mark::List { step: 1 },
        Mark::Part { step: 1, part: 3 },
        Mark::Checked,
        Mark::Settings { bytes: 88 },
    ];

    #[test]
    fn a_journal_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Journal::find(folder.path()).unwrap().is_none());
        for over in [None, Some(u64::MAX)] {
            let head = Head { over, ..head() };
            let journal = match Journal::find(folder.path()).unwrap() {
                Some(found) => found.begin_anew(head.clone()).unwrap(),
                None => Journal::begin(folder.path(), head.clone()).unwrap(),
            };
            for mark in MARKS {
                journal.mark(mark).unwrap();
            }
            drop(journal);
            let found = Journal::find(folder.path()).unwrap().unwrap();
            assert_eq!(found.head.as_ref(), Some(&head));
            assert!(found.done.cleared && found.done.checked && found.done.settings == Some(88));
            // The first step is behind, and so are parts of it that are not named.
            assert!(found.done.list(1) && found.done.part(1, 3) && found.done.part(0, 99));
            assert!(!found.done.part(1, 12) && !found.done.list(2) && !found.done.part(2, 3));
        }
    }

    #[test]
    fn a_journal_that_is_cut_anywhere_claims_no_more_than_was_done() {
        let mut text = head().bytes();
        let begun = text.len();
        text.extend(MARKS.iter().flat_map(|mark| format!("{mark}\n").into_bytes()));
        for cut in 0..=text.len() {
            let (head, done, whole) = parse(&text[..cut]).unwrap();
            assert_eq!(head.is_some(), cut >= begun, "{cut}");
            let mut expected = Done::default();
            let lines = text[..cut].iter().skip(begun).filter(|b| **b == b'\n').count();
            MARKS.iter().take(lines).for_each(|mark| expected.add(*mark));
            assert_eq!(done, expected, "{cut}");
            assert!(whole <= cut as u64);
        }
        for other in ["pgark restore 2\nbegun\n", "/data/copy", "pgark restore 1\nx\nbegun\n"] {
            assert!(parse(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn a_line_that_was_cut_does_not_become_one_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::begin(folder.path(), head()).unwrap();
        journal.mark(Mark::Cleared).unwrap();
        drop(journal);
        let path = folder.path().join(MARKER);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&before[..], b"0 part 1"].concat()).unwrap();
        let journal = Journal::find(folder.path()).unwrap().unwrap();
        assert!(!journal.done.part(0, 1));
        journal.mark(Mark::Part { step: 0, part: 2 }).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), [&before[..], b"0 part 2\n"].concat());
    }

    #[test]
    fn parts_of_an_increment_count_only_behind_its_list() {
        let mut done = Done::default();
        done.add(Mark::Part { step: 1, part: 1 });
        assert!(!done.part(1, 1) && done.part(0, 1));
        done.add(Mark::List { step: 1 });
        assert!(done.part(1, 1));
    }

    #[test]
    fn only_one_restore_has_a_journal() {
        let folder = tempfile::tempdir().unwrap();
        let first = Journal::begin(folder.path(), head()).unwrap();
        for other in [Journal::begin(folder.path(), head()), Journal::find(folder.path()).map(Option::unwrap)]
        {
            assert_eq!(other.unwrap_err().kind(), ErrorKind::Conflict);
        }
        // The one in its place is locked as well.
        let second = first.begin_anew(head()).unwrap();
        assert_eq!(Journal::find(folder.path()).unwrap_err().kind(), ErrorKind::Conflict);
        second.remove().unwrap();
        drop(second);
        assert!(Journal::find(folder.path()).unwrap().is_none());
    }

    #[test]
    fn a_folder_is_settled_when_the_last_one_writes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        settled(folder.path());
        let journal = Journal::begin(folder.path(), head()).unwrap();
        let written = folder.path().join("written");
        std::thread::scope(|scope| {
            let path = &written;
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(200));
                std::fs::write(path, "").unwrap();
                drop(journal);
            });
            settled(folder.path());
            assert!(written.exists());
        });
        // One that was given up long ago.
        settled(folder.path());
    }

    #[test]
    fn a_journal_is_not_found_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("other"), head().bytes()).unwrap();
        std::os::unix::fs::symlink("other", folder.path().join(MARKER)).unwrap();
        assert!(Journal::find(folder.path()).is_err());
    }

    #[test]
    fn what_another_restore_did_is_of_no_use() {
        let head = head();
        assert!(head.goes_on_with(&head));
        for other in [
            Head { backup: "other".to_owned(), ..head.clone() },
            Head { boot: Some("later".to_owned()), ..head.clone() },
            Head { boot: None, ..head.clone() },
            Head { folders: BTreeMap::new(), ..head.clone() },
        ] {
            assert!(!head.goes_on_with(&other) && !other.goes_on_with(&head), "{other:?}");
        }
        let nowhere = Head { boot: None, ..head };
        assert!(!nowhere.goes_on_with(&nowhere));
    }
}
