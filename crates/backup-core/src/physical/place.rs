//! The folders that a restore fills: whether it may, what they are before the first file comes, and how they become a
//! data directory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, test_kill_process};

use super::BASE;
use super::clear::{Clearing, Names};
use super::configuration::{self, Outside};
use super::files::Counts;
use super::journal::{Done, Head, Journal, MARKER, Mark, boot};
use super::overlay::Ground;
use super::recovery::Recovery;
use super::restore::{PG_CONTROL, PG_CONTROL_UNTIL_THEN};
use super::unpack::{Existing, empty_but, make_folder, own};
use super::{delta, export};
use crate::error::{Error, ErrorKind, Result};

pub(super) const LABEL: &str = "backup_label";
const AUTO_CONF: &str = "postgresql.auto.conf";
/// What tells a server to recover. It has one of them.
const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];

/// What is restored, and where to.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Id of the backup.
    pub(super) backup: String,
    /// Where each archive goes.
    pub(super) targets: BTreeMap<String, PathBuf>,
    /// The backup's system identifier, where an existing data directory may be restored over.
    pub(super) over: Option<u64>,
    /// See [`version_folder`](super::clear::version_folder).
    pub(super) version_folder: String,
}

impl Wanted {
    fn base(&self) -> Result<&Path> {
        let base = self.targets.get(BASE).ok_or_else(|| Error::internal("no data directory"))?;
        Ok(base)
    }

    fn head(&self, over: Option<u64>) -> Head {
        Head { backup: self.backup.clone(), boot: boot(), over, folders: self.targets.clone() }
    }
}

/// How a restore begins.
#[derive(Debug)]
enum Begin {
    /// In folders that are empty or not there.
    Empty,
    /// In folders that an interrupted restore filled, and that are emptied.
    Emptied,
    /// Over a data directory.
    Over,
    /// Where an interrupted restore of the same backup ended.
    GoingOn,
}

/// Folders that a restore may fill. Nothing in them was touched.
#[derive(Debug)]
pub(super) struct Looked {
    wanted: Wanted,
    begin: Begin,
    journal: Option<Journal>,
}

impl Looked {
    /// Looks at every folder.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where something is in them that must not be lost.
    pub(super) fn at(wanted: Wanted) -> Result<Self> {
        let base = wanted.base()?;
        let journal = Journal::find(base)?;
        refuse_server(base)?;
        let before = journal.as_ref().and_then(|journal| journal.head.as_ref());
        let begin = match (before, wanted.over) {
            (None, Some(system)) if !is_empty_but_journal(base)? => {
                delta::look(&wanted.targets, system, None)?;
                Begin::Over
            }
            (None, _) => {
                for path in wanted.targets.values() {
                    let empty = if path == base { is_empty_but_journal(path)? } else { is_empty(path)? };
                    if !empty {
                        return Err(not_empty(path));
                    }
                }
                Begin::Empty
            }
            (Some(Head { over: Some(_), .. }), None) => {
                let message = format!("a restore over {} was interrupted", base.display());
                return Err(Error::new(ErrorKind::Conflict, message).with_hint(
                    "go on with --delta; without it the folder would be emptied first, as would its tablespaces",
                ));
            }
            (Some(head), _) => {
                let goes_on = head.goes_on_with(&wanted.head(None));
                let is_cleared = journal.as_ref().is_some_and(|journal| journal.done.cleared);
                match (head.over, wanted.over) {
                    (Some(_), Some(system)) => delta::look(&wanted.targets, system, Some(head))?,
                    _ => look_at_interrupted(base, &wanted.targets, head)?,
                }
                match (goes_on && is_cleared && !was_started(base), head.over) {
                    (true, _) => Begin::GoingOn,
                    (false, Some(_)) => Begin::Over,
                    (false, None) => Begin::Emptied,
                }
            }
        };
        Ok(Self { wanted, begin, journal })
    }

    /// Whether [`Looked::prepare`] needs the names of the backup's files.
    pub(super) fn needs_names(&self) -> bool {
        matches!(self.begin, Begin::Over)
    }

    /// Begins the journal, and makes the folders ready. Returns what a person should know as well.
    pub(super) fn prepare(self, names: &Names) -> Result<(Place, Vec<String>)> {
        let Self { wanted, begin, journal } = self;
        let base = wanted.base()?.to_owned();
        let owner = owner_at(&base)?;
        let existing = match begin {
            Begin::Empty | Begin::Emptied => Existing::Refused,
            Begin::Over => Existing::WrittenOver,
            Begin::GoingOn => match journal.as_ref().and_then(|journal| journal.head.as_ref()) {
                Some(Head { over: Some(_), .. }) => Existing::WrittenOver,
                _ => Existing::Replaced,
            },
        };
        let journal = match (&begin, journal) {
            (Begin::GoingOn, Some(journal)) => journal,
            (_, journal) => {
                let over = if matches!(begin, Begin::Over) { wanted.over } else { None };
                if over.is_none() {
                    make_folder(&base, 0o700, owner)?;
                }
                match journal {
                    Some(journal) => journal.begin_anew(wanted.head(over))?,
                    None => Journal::begin(&base, wanted.head(over))?,
                }
            }
        };
        let place = Place { base, targets: wanted.targets, owner, existing, journal: Arc::new(journal) };
        if matches!(begin, Begin::GoingOn) {
            place.go_back()?;
            return Ok((place, Vec::new()));
        }
        if matches!(begin, Begin::Over) {
            place.put_control_away()?;
        }
        for path in place.targets.values() {
            // The mode of a data directory that is there, 0700 or 0750, is not in a backup.
            if !matches!(begin, Begin::Over) || !path.is_dir() {
                make_folder(path, 0o700, owner)?;
            }
            if matches!(begin, Begin::Emptied) {
                empty_but(MARKER, path).map_err(|e| Error::io(format!("emptying {}", path.display()), e))?;
            }
        }
        let mut told = Vec::new();
        if matches!(begin, Begin::Over) {
            let version_folder = &wanted.version_folder;
            told = Clearing { targets: &place.targets, names, version_folder }.run()?;
        }
        place.link_tablespaces()?;
        place.journal.mark(Mark::Cleared)?;
        Ok((place, told))
    }
}

/// The folders that a restore fills.
pub(super) struct Place {
    pub(super) base: PathBuf,
    pub(super) targets: BTreeMap<String, PathBuf>,
    /// Whom the files belong to, where this process is root.
    pub(super) owner: Option<(u32, u32)>,
    /// What may stand where a file goes.
    pub(super) existing: Existing,
    pub(super) journal: Arc<Journal>,
}

impl Place {
    /// What an earlier run did.
    pub(super) fn done(&self) -> &Done {
        &self.journal.done
    }

    /// What writing the files of a backup needs to know.
    pub(super) fn ground(&self, newest: bool, version_folder: String, counts: &Arc<Counts>) -> Ground {
        Ground {
            targets: self.targets.clone(),
            owner: self.owner,
            newest,
            existing: self.existing,
            as_sent: false,
            version_folder,
            counts: Arc::clone(counts),
            journal: Arc::clone(&self.journal),
        }
    }

    /// Takes back what an interrupted [`Place::complete`] did.
    fn go_back(&self) -> Result<()> {
        let failed = |e| Error::io("taking back the end of a restore", e);
        let (until_then, control) = (self.base.join(PG_CONTROL_UNTIL_THEN), self.base.join(PG_CONTROL));
        if control.exists() && !until_then.exists() {
            std::fs::rename(control, until_then).map_err(failed)?;
        }
        let Some(bytes) = self.done().settings else { return Ok(()) };
        match OpenOptions::new().write(true).open(self.base.join(AUTO_CONF)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            settings => settings.and_then(|file| file.set_len(bytes)).map_err(failed),
        }
    }

    /// Takes `pg_control` away from a data directory, so that no server starts on it. One that began to start before
    /// has written its `postmaster.pid` by then, which it does before it reads `pg_control` (`PostmasterMain` in
    /// `postmaster.c`).
    fn put_control_away(&self) -> Result<()> {
        let failed = |e| Error::io(format!("putting {PG_CONTROL} away"), e);
        let (control, until_then) = (self.base.join(PG_CONTROL), self.base.join(PG_CONTROL_UNTIL_THEN));
        let was_there = control.exists();
        if was_there {
            std::fs::rename(&control, &until_then).map_err(failed)?;
            let folder = self.base.join("global");
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        refuse_server(&self.base).inspect_err(|_| {
            if was_there && std::fs::rename(&until_then, &control).is_ok() {
                let _ = self.journal.remove();
            }
        })
    }

    fn link_tablespaces(&self) -> Result<()> {
        let links = self.base.join("pg_tblspc");
        for (name, path) in self.targets.iter().filter(|(name, _)| *name != BASE) {
            make_folder(&links, 0o700, self.owner)?;
            let link = links.join(name);
            if std::fs::read_link(&link).is_ok_and(|leads| leads == *path) {
                continue;
            }
            std::os::unix::fs::symlink(path, &link)
                .and_then(|()| own(&link, self.owner))
                .map_err(|e| Error::io(format!("linking {}", link.display()), e))?;
        }
        Ok(())
    }

    /// Puts configuration files where a server finds them, if it has none of its own. It can be done again.
    pub(super) fn configure(&self, outside: &Outside) -> Result<()> {
        let written = configuration::place(&self.base, &self.base.join(configuration::FOLDER), outside)
            .and_then(|written| written.iter().try_for_each(|path| own(path, self.owner)));
        written.map_err(|e| Error::io("writing configuration files", e))
    }

    /// Makes it a data directory, when all files are there: settings, signal, and last `pg_control`. Where it is
    /// interrupted, it is done again from its beginning.
    pub(super) fn complete(&self, timeline: u32, recovery: &Recovery) -> Result<()> {
        self.settle(timeline, recovery)?;
        sync_all(&self.base.join("pg_wal"))?;
        self.finish()
    }

    /// The same for a server that does not outlive this process: without the source's settings, and without syncing.
    pub(super) fn complete_throwaway(&self, timeline: u32, recovery: &Recovery) -> Result<()> {
        match std::fs::remove_file(self.base.join(AUTO_CONF)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing settings", e)),
            _ => {}
        }
        self.settle(timeline, recovery)?;
        self.put_control_in_place()
    }

    /// All that makes it a data directory but `pg_control`.
    fn settle(&self, timeline: u32, recovery: &Recovery) -> Result<()> {
        let failed = |doing: &'static str| move |e: io::Error| Error::io(doing, e);
        let wal = self.base.join("pg_wal");
        make_folder(&wal.join("archive_status"), 0o700, self.owner)?;
        for entry in std::fs::read_dir(&wal).map_err(failed("listing pg_wal"))? {
            let name = entry.map_err(failed("listing pg_wal"))?.file_name();
            let name = name.to_string_lossy();
            if name.len() == 24 {
                self.write(&format!("pg_wal/archive_status/{name}.done"), b"")?;
            }
        }
        self.complete_label()?;
        // The next run cuts it to this length before it adds them again.
        let bytes = std::fs::metadata(self.base.join(AUTO_CONF)).map_or(0, |found| found.len());
        self.journal.mark(Mark::Settings { bytes })?;
        self.write(AUTO_CONF, recovery.settings(timeline).as_bytes())?;
        for signal in SIGNALS {
            match std::fs::remove_file(self.base.join(signal)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("removing a signal")(e)),
                _ => {}
            }
        }
        self.write(recovery.signal(), b"")
    }

    /// Puts `pg_control` in its place when all else is safe, and ends the journal.
    fn finish(&self) -> Result<()> {
        for path in self.targets.values() {
            sync_all(path)?;
        }
        self.put_control_in_place()?;
        sync_all(&self.base)
    }

    fn put_control_in_place(&self) -> Result<()> {
        let (from, to) = (self.base.join(PG_CONTROL_UNTIL_THEN), self.base.join(PG_CONTROL));
        std::fs::rename(from, to).map_err(|e| Error::io("putting pg_control in place", e))?;
        self.journal.remove()
    }

    /// Leaves the files as the server sent them, or as they were made of a chain (`combined`), with a manifest of
    /// exactly these: of tablespaces and signals there is nothing that would lead a server elsewhere.
    pub(super) fn complete_export(&self, combined: bool) -> Result<()> {
        if combined {
            self.complete_label()?;
        }
        let outside = self.base.join(configuration::FOLDER);
        match std::fs::remove_dir_all(&outside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("removing {}", outside.display()), e));
            }
            _ => {}
        }
        export::write_manifest(&self.base, self.owner, combined)?;
        self.finish()
    }

    /// No server starts on a label that says that it is of an increment (`read_backup_label` in `xlogrecovery.c`).
    fn complete_label(&self) -> Result<()> {
        let path = self.base.join(LABEL);
        let until_then = self.base.join("backup_label.pgark");
        let completed = || {
            let label = std::fs::read_to_string(&path)?;
            let whole: String =
                label.split_inclusive('\n').filter(|line| !line.starts_with("INCREMENTAL FROM ")).collect();
            if whole == label {
                return Ok(());
            }
            std::fs::write(&until_then, whole)?;
            std::fs::set_permissions(&until_then, std::fs::metadata(&path)?.permissions())?;
            own(&until_then, self.owner)?;
            std::fs::rename(&until_then, &path)
        };
        completed().map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }

    /// Makes a file, or adds to it.
    fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.base.join(name);
        let written = || {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            file.write_all(contents)?;
            own(&path, self.owner)
        };
        written().map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }
}

/// Refuses a folder that a server works in, or may: a process that is not here may be in a container, or on another host.
fn refuse_server(base: &Path) -> Result<()> {
    let path = base.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    let number = text.lines().next().unwrap_or_default().trim();
    let pid = number.parse().ok().and_then(Pid::from_raw);
    // Any other answer than that it is not there means that it is.
    let lives = pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
    let (message, hint) = if lives {
        let message = format!("a server runs in {}: process {number}", base.display());
        (message, "stop it with pg_ctl stop, or choose another folder".to_owned())
    } else {
        let message = format!("a server ran in {}, and did not stop in order", base.display());
        let hint = format!(
            "process {number} is not on this host; where no server runs in a container or on another host either, remove {}",
            path.display()
        );
        (message, hint)
    };
    Err(Error::new(ErrorKind::Conflict, message).with_hint(hint))
}

/// Whether a server was started on a folder whose restore was complete, and only its journal left. The server renames
/// `backup_label` when it begins to recover.
fn was_started(base: &Path) -> bool {
    let is_there = |name| base.join(name).exists();
    is_there(PG_CONTROL) && !is_there(PG_CONTROL_UNTIL_THEN) && !is_there("backup_label")
}

/// Looks at the folders that a restore into empty ones was to fill.
fn look_at_interrupted(base: &Path, targets: &BTreeMap<String, PathBuf>, head: &Head) -> Result<()> {
    if was_started(base) {
        let message = format!("a server was started on {}, whose restore was complete", base.display());
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_hint(format!("to keep it, remove {MARKER} in it; to restore again, remove the folder")));
    }
    for path in targets.values().filter(|path| *path != base) {
        // Only what the interrupted restore made is emptied: the journal lists the folders.
        if !is_empty(path)? && !head.folders.values().any(|folder| folder == path) {
            return Err(Error::new(ErrorKind::Conflict, format!("{} is not empty", path.display()))
                .with_hint("the restore that was interrupted did not write there; choose another folder"));
        }
    }
    Ok(())
}

pub(super) fn not_empty(path: &Path) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} is not empty", path.display())).with_hint(
        "restore into a new or an empty folder; --tablespace-map moves tablespaces elsewhere; --delta restores over a data directory",
    )
}

/// PostgreSQL does not run as root: then files belong to the owner of the folder, or of the one that it is made in.
fn owner_at(path: &Path) -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let absolute =
        std::path::absolute(path).map_err(|e| Error::io(format!("naming {}", path.display()), e))?;
    let there = absolute.ancestors().find_map(|path| std::fs::metadata(path).ok());
    Ok(there.map(|meta| (meta.uid(), meta.gid())))
}

/// Whether a folder has nothing in it, or is not there.
pub(super) fn is_empty(path: &Path) -> Result<bool> {
    has_nothing_but(path, None)
}

fn is_empty_but_journal(path: &Path) -> Result<bool> {
    has_nothing_but(path, Some(MARKER))
}

fn has_nothing_but(path: &Path, name: Option<&str>) -> Result<bool> {
    let looking = |e| Error::io(format!("looking into {}", path.display()), e);
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries.map_err(looking)?,
    };
    for entry in entries {
        let found = entry.map_err(looking)?.file_name();
        if name.is_none_or(|name| found != name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Everything of the file system that holds a folder.
fn sync_all(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&folder).map_err(|e| Error::io(format!("syncing {}", path.display()), e.into()))?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        rustix::fs::sync();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_directory(folder: &Path) -> (PathBuf, Wanted) {
        let base = folder.join("data");
        for name in ["PG_VERSION", "global/other", "base/1/1"] {
            std::fs::create_dir_all(base.join(name).parent().unwrap()).unwrap();
            std::fs::write(base.join(name), name).unwrap();
        }
        std::fs::write(base.join(PG_CONTROL), 7_u64.to_le_bytes()).unwrap();
        let wanted = Wanted {
            backup: "b".to_owned(),
            targets: [(BASE.to_owned(), base.clone())].into(),
            over: Some(7),
            version_folder: "PG_15_".to_owned(),
        };
        (base, wanted)
    }

    #[test]
    fn a_server_that_begins_to_start_meanwhile_gets_its_files_back() {
        let folder = tempfile::tempdir().unwrap();
        let (base, wanted) = data_directory(folder.path());
        let looked = Looked::at(wanted.clone()).unwrap();
        std::fs::write(base.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        let error = looked.prepare(&Names::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        assert!(!base.join(MARKER).exists() && !base.join(PG_CONTROL_UNTIL_THEN).exists());
        let left =
            ["PG_VERSION", "global/other", "base/1/1", PG_CONTROL].map(|name| base.join(name).exists());
        assert_eq!(left, [true; 4]);
        assert_eq!(Looked::at(wanted).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn a_journal_that_was_cut_while_it_began_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (base, wanted) = data_directory(folder.path());
        std::fs::write(base.join(MARKER), "pgark restore 1\nbackup b\n").unwrap();
        // What is there is a data directory as it was.
        let without = Wanted { over: None, ..wanted.clone() };
        assert_eq!(Looked::at(without.clone()).unwrap_err().kind(), ErrorKind::Conflict);
        assert!(matches!(Looked::at(wanted.clone()).unwrap().begin, Begin::Over));
        let other = Wanted { over: Some(8), ..wanted.clone() };
        assert_eq!(Looked::at(other.clone()).unwrap_err().kind(), ErrorKind::Conflict);
        let (place, _) = Looked::at(wanted.clone()).unwrap().prepare(&Names::default()).unwrap();
        assert!(!base.join(PG_CONTROL).exists() && !base.join("base").exists());
        drop(place);
        // From here on the journal says which cluster it was of.
        assert!(matches!(Looked::at(wanted).unwrap().begin, Begin::GoingOn));
        assert_eq!(Looked::at(other).unwrap_err().kind(), ErrorKind::Conflict);
        // An empty folder with such a journal is empty.
        std::fs::remove_dir_all(&base).unwrap();
        std::fs::create_dir(&base).unwrap();
        std::fs::write(base.join(MARKER), "pga").unwrap();
        assert!(matches!(Looked::at(without).unwrap().begin, Begin::Empty));
    }
}
