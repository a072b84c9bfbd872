//! WAL of the archive for the throwaway server: it asks by an empty file, and this process answers with the segment.
//!
//! So the server needs neither the repository nor a key, and in a container it is all the same.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::workplace::Workplace;
use crate::error::{Error, Result};
use crate::wal::{Archive, Asking, Fetcher, WalName};

/// How often is looked whether the server asks.
const LOOK: Duration = Duration::from_millis(5);
/// How many segments are fetched before they are asked for.
const AHEAD: u64 = 4;
/// 1 ends recovery: the file is certainly not there; 126 stops the server (`RestoreArchivedFile` in `xlogarchive.c`).
/// Where the folder is gone nobody answers any more.
const SCRIPT: &str = r#"cd "${0%/*}" || exit 126
to=$2
case $to in /*) ;; *) to=$3/$to ;; esac
: > "$1.wanted" || exit 126
while [ ! -e "$1" ]; do
    if [ -e "$1.none" ]; then rm -f "$1.wanted" "$1.none"; exit 1; fi
    if [ -e "$1.failed" ] || [ ! -e "$1.wanted" ]; then exit 126; fi
    sleep 0.02 2>/dev/null || sleep 1
done
rm -f "$1.wanted"
mv "$1" "$to" || exit 126
"#;

/// Answers while the value lives.
pub(super) struct Answers {
    stop: CancellationToken,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The `restore_command` of a server that is answered; the folder must be there.
pub(super) fn restore_command(folder: &Path) -> String {
    let quoted =
        |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "%%"));
    format!("sh {} \"%f\" \"%p\" \"$PWD\"", quoted(&folder.join("wal/fetch.sh")))
}

impl Answers {
    /// Begins to answer. Segments have so many bytes.
    pub(super) fn begin(place: &Workplace, archive: Archive, segment_bytes: u64) -> Result<Self> {
        let folder = place.make_folder("wal")?;
        place.write("wal/fetch.sh", SCRIPT)?;
        let stop = CancellationToken::new();
        let failed = Arc::new(Mutex::new(None));
        let answering = Answering {
            folder,
            owner: place.owner(),
            segment_bytes,
            fetcher: Fetcher::new(archive, Asking::Recovery),
            failed: Arc::clone(&failed),
        };
        let until = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = Arc::new(answering).run() => {}
            }
        });
        Ok(Self { stop, failed })
    }

    /// Why a file could not be had, where one could not.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Answering {
    folder: PathBuf,
    owner: Option<(u32, u32)>,
    segment_bytes: u64,
    fetcher: Fetcher,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Answering {
    async fn run(self: Arc<Self>) {
        // What is being fetched, and what was fetched before anybody asked.
        let (mut working, mut ahead): (HashSet<WalName>, HashSet<WalName>) = Default::default();
        // They end with this.
        let mut fetching = JoinSet::new();
        loop {
            for asked in self.asked() {
                let Ok(name) = asked.parse::<WalName>() else {
                    self.say(&asked, "failed");
                    continue;
                };
                if !self.is_answered(&asked) && working.insert(name) {
                    fetching.spawn(Arc::clone(&self).fetch(name, true));
                }
                let WalName::Segment(mut segment) = name else { continue };
                for _ in 0..AHEAD {
                    segment = segment.next(self.segment_bytes);
                    let name = WalName::Segment(segment);
                    if !working.contains(&name) && ahead.insert(name) {
                        working.insert(name);
                        fetching.spawn(Arc::clone(&self).fetch(name, false));
                    }
                }
            }
            while let Some(done) = fetching.try_join_next() {
                // It is asked for once more where it was not there, or could not be had.
                if let Ok(name) = done {
                    working.remove(&name);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the server waits for.
    fn asked(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".wanted").map(str::to_owned)).collect()
    }

    fn is_answered(&self, name: &str) -> bool {
        let is_there = |end: &str| self.folder.join(format!("{name}{end}")).exists();
        is_there("") || is_there(".none") || is_there(".failed")
    }

    async fn fetch(self: Arc<Self>, name: WalName, is_asked: bool) -> WalName {
        // The name that the server looks for appears when the file is its own.
        let until_then = self.folder.join(format!("{name}.got"));
        let fetched = self.fetcher.fetch(name, &until_then).await.and_then(|found| {
            if found {
                let failed = |e| Error::io(format!("handing {name} to the server"), e);
                if let Some((uid, gid)) = self.owner {
                    std::os::unix::fs::chown(&until_then, Some(uid), Some(gid)).map_err(failed)?;
                }
                std::fs::rename(&until_then, self.folder.join(name.to_string())).map_err(failed)?;
            }
            Ok(found)
        });
        match fetched {
            Ok(false) if is_asked => self.say(&name.to_string(), "none"),
            Err(error) if is_asked => {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                self.say(&name.to_string(), "failed");
            }
            Ok(_) | Err(_) => {}
        }
        name
    }

    fn say(&self, name: &str, what: &str) {
        // A server that gets no answer waits, until the drill is cancelled.
        let _ = std::fs::write(self.folder.join(format!("{name}.{what}")), b"");
    }
}
