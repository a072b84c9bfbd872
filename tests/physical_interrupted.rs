//! Restores that were interrupted: what the next one takes over of them, and what it does not.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pgark::physical::DataDirectory;
use pgark::{CancellationToken, ErrorKind, Event};
use serde_json::{Value, json};
use support::physical::{BackedUp, Tree, assert_same, back_up, tree};
use support::{connect, fingerprint, sample, server, sql};

/// A restored folder as a killed restore of it would have left it: a file of a part that is done, and one of another,
/// are not what they were.
struct Interrupted<'a> {
    backup: &'a BackedUp,
    target: PathBuf,
    whole: Tree,
    done: Vec<u32>,
}

const OF_DONE: &str = "base/1/1259";

impl<'a> Interrupted<'a> {
    async fn of(backup: &'a BackedUp, target: PathBuf) -> Self {
        backup.restore(DataDirectory::at(&target)).await.unwrap();
        let whole = tree(&target);
        let parts = backup.record.parts.iter();
        let done = parts.filter(|part| part.kind == "tar").map(|part| part.part).collect();
        Self { backup, target, whole, done }
    }

    fn marks(&self) -> String {
        self.done.iter().fold("cleared\n".to_owned(), |text, part| format!("{text}0 part {part}\n"))
    }

    fn head(&self, backup: &str, boot: &str) -> String {
        let folder = self.target.display();
        format!("pgark restore 1\nbackup {backup}\nboot {boot}\nfolder base {folder}\nbegun\n")
    }

    fn id(&self) -> String {
        self.backup.record.id.to_string()
    }

    fn leave(&self, journal: &str) {
        let control = self.target.join("global/pg_control");
        std::fs::rename(&control, control.with_extension("pgark")).unwrap();
        std::fs::write(self.target.join("pgark.restore"), journal).unwrap();
        // The end has not begun.
        let settings = self.target.join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, text.split("\n# Written by pgark.").next().unwrap()).unwrap();
        std::fs::remove_file(self.target.join("recovery.signal")).unwrap();
        std::fs::write(self.target.join(OF_DONE), "left alone").unwrap();
        // As after a kill in the middle of the archive of WAL, and of the manifest.
        std::fs::remove_dir_all(self.target.join("pg_wal/archive_status")).unwrap();
        for entry in std::fs::read_dir(self.target.join("pg_wal")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::File::options().write(true).open(path).unwrap().set_len(4096).unwrap();
            }
        }
        std::fs::remove_file(self.target.join("backup_manifest")).unwrap();
        std::fs::write(self.target.join("stray"), "of nobody").unwrap();
    }

    async fn again(&self) -> Value {
        let restored = self.backup.restored(DataDirectory::at(&self.target)).await.unwrap();
        assert!(!self.target.join("pgark.restore").exists());
        restored.target["resumed"].clone()
    }

    /// What is done is left as it is, and all else is as it should be.
    fn went_on(&self) {
        let mut found = tree(&self.target);
        assert_eq!(found.remove(Path::new("stray")).unwrap().1, b"of nobody");
        let left = found.get_mut(Path::new(OF_DONE)).unwrap();
        assert_eq!(left.1, b"left alone");
        left.1.clone_from(&self.whole[Path::new(OF_DONE)].1);
        assert_same(&found, &self.whole);
        self.put_right();
    }

    fn began_anew(&self) {
        assert_same(&tree(&self.target), &self.whole);
    }

    fn put_right(&self) {
        std::fs::write(self.target.join(OF_DONE), &self.whole[Path::new(OF_DONE)].1).unwrap();
        std::fs::remove_file(self.target.join("stray")).unwrap();
    }
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_goes_on_or_begins_anew() {
    let server = server();
    sql(&server, "postgres", &sample(1000)).await;
    let backup = back_up(&server).await;
    let it = Interrupted::of(&backup, server.folder().join("restored")).await;
    // A folder with something in it is left alone.
    let error = backup.restore(DataDirectory::at(&it.target)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");

    let (id, marks) = (it.id(), it.marks());
    let all = backup.record.parts.len();
    it.leave(&(it.head(&id, &boot()) + &marks));
    assert_eq!(it.again().await, json!({"parts": all, "done": it.done.len()}));
    it.went_on();

    // A line that was cut counts for nothing, and neither does what stands behind it later.
    it.leave(&(it.head(&id, &boot()) + &marks + "0 part"));
    assert_eq!(it.again().await, json!({"parts": all, "done": it.done.len()}));
    it.went_on();

    for (what, journal) in [
        ("another backup", it.head("20200101T000000Z-physical-aaaa", &boot()) + &marks),
        ("another start of the machine", it.head(&id, "11111111-2222-3333-4444-555555555555") + &marks),
        ("no id of the start", it.head(&id, "-") + &marks),
        ("folders that were not cleared", it.head(&id, &boot()) + &marks.replace("cleared\n", "")),
        ("other folders", it.head(&id, &boot()).replace("begun", "folder 1 /nowhere\nbegun") + &marks),
    ] {
        it.leave(&journal);
        assert_eq!(it.again().await, Value::Null, "{what}");
        it.began_anew();
    }

    // Nothing that the journal does not understand is touched, nor what it does not name.
    for journal in ["pgark restore 2\nbegun\n", "something else\n", "pgark restore 1\nback"] {
        it.leave(journal);
        let before = tree(&it.target);
        let error = backup.restore(DataDirectory::at(&it.target)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        let mut after = tree(&it.target);
        // A head that was cut is empty now: it is the one thing that may be written.
        after.insert("pgark.restore".into(), before[Path::new("pgark.restore")].clone());
        assert_same(&after, &before);
        std::fs::write(it.target.join("pgark.restore"), it.head("other", &boot())).unwrap();
        it.again().await;
        it.began_anew();
    }
    let copy = server.start_on(&it.target).unwrap();
    let (before, after) = (connect(&server.url("postgres")).await, connect(&copy.url("postgres")).await);
    assert_eq!(fingerprint(&before).await, fingerprint(&after).await);
}

/// The end of a restore, interrupted behind each of its steps.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_restore_can_be_done_again() {
    let server = server();
    let backup = back_up(&server).await;
    let it = Interrupted::of(&backup, server.folder().join("restored")).await;
    let settings = it.target.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&settings).unwrap();
    let own = text.find("\n# Written by pgark.").unwrap();
    let all =
        backup.record.parts.iter().fold("cleared\n".to_owned(), |t, p| format!("{t}0 part {}\n", p.part));
    let head = it.head(&it.id(), &boot());
    let done = json!({"parts": backup.record.parts.len(), "done": backup.record.parts.len()});
    let journal = it.target.join("pgark.restore");
    let control = it.target.join("global/pg_control");
    for written in [own, own + 10, text.len()] {
        // Within the settings; and, when they are whole, with pg_control in place or not.
        for in_place in [false, true] {
            std::fs::write(&journal, format!("{head}{all}settings {own}\n")).unwrap();
            std::fs::write(&settings, &text[..written]).unwrap();
            if !in_place {
                std::fs::rename(&control, control.with_extension("pgark")).unwrap();
            }
            assert_eq!(it.again().await, done);
            it.began_anew();
        }
    }
    // Other settings for the recovery need nothing else.
    std::fs::write(&journal, format!("{head}{all}settings {own}\n")).unwrap();
    let mut recovery = pgark::physical::Recovery::default();
    recovery.standby = Some("host=/nowhere".to_owned());
    let into = DataDirectory::at(&it.target).recovery(recovery);
    assert_eq!(backup.restored(into).await.unwrap().target["resumed"], done);
    assert!(it.target.join("standby.signal").exists() && !it.target.join("recovery.signal").exists());
    let found = std::fs::read_to_string(&settings).unwrap();
    assert_eq!(found.matches("Written by pgark").count(), 1);
    assert!(found.contains("/nowhere"), "{found}");

    // A server that was started on it has its own life.
    std::fs::rename(it.target.join("backup_label"), it.target.join("backup_label.old")).unwrap();
    std::fs::write(&journal, format!("{head}{all}settings {own}\n")).unwrap();
    let before = tree(&it.target);
    let error = backup.restore(DataDirectory::at(&it.target)).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Conflict && error.hint().unwrap().contains("pgark.restore"),
        "{error:?}"
    );
    assert_same(&tree(&it.target), &before);
}

/// Links that somebody put where files go are replaced, and what they lead to is not touched.
#[tokio::test(flavor = "multi_thread")]
async fn links_are_not_followed() {
    let server = server();
    let backup = back_up(&server).await;
    let it = Interrupted::of(&backup, server.folder().join("restored")).await;
    it.leave(&(it.head(&it.id(), &boot()) + "cleared\n"));
    let other = server.folder().join("other");
    std::fs::write(&other, "mine").unwrap();
    for name in [OF_DONE, "PG_VERSION"] {
        std::fs::remove_file(it.target.join(name)).unwrap();
        std::os::unix::fs::symlink(&other, it.target.join(name)).unwrap();
    }
    assert_eq!(it.again().await["done"], 0);
    std::fs::remove_file(it.target.join("stray")).unwrap();
    it.began_anew();
    assert_eq!(std::fs::read_to_string(other).unwrap(), "mine");
}

/// Within one process the next restore may begin while the last bytes of the one before are being written.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_cancelled_goes_on_at_once() {
    let server = server();
    sql(&server, "postgres", &sample(20_000)).await;
    let backup = back_up(&server).await;
    let (target, whole) = (server.folder().join("restored"), server.folder().join("whole"));
    let all = backup.restored(DataDirectory::at(&whole)).await.unwrap().raw_bytes;
    let mut steps = Vec::new();
    for share in 1..6 {
        let cancel = CancellationToken::new();
        let (told, canceller, until) = (Arc::new(Mutex::new(Vec::new())), cancel.clone(), all * share / 6);
        let heard = Arc::clone(&told);
        let observer = move |event: &Event| match event {
            Event::Progress { raw_bytes, .. } if *raw_bytes >= until => canceller.cancel(),
            Event::Step { what } => heard.lock().unwrap().push(what.clone()),
            _ => {}
        };
        match backup.watched(DataDirectory::at(&target), Arc::new(observer), &cancel).await {
            Ok(_) => break,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Cancelled, "{e:?}");
                assert!(!target.join("global/pg_control").exists());
            }
        }
        steps.append(&mut told.lock().unwrap());
    }
    let wanted = "going on with an interrupted restore: ";
    assert!(steps.iter().any(|step| step.starts_with(wanted)), "{steps:?}");
    if target.join("pgark.restore").exists() {
        backup.restore(DataDirectory::at(&target)).await.unwrap();
    }
    assert_same(&tree(&target), &tree(&whole));
}
