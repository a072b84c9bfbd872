//! The local folder: modes, temporaries, names, folders that come and go, full and read-only disks.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pgark::{
    Created, Entry, ErrorKind, LocalStore, Store, StoreOptions, list_sorted, open_store, read_whole,
};
use tempfile::TempDir;

use crate::support::left_out;

fn open(folder: &Path) -> Arc<dyn Store> {
    open_store(&folder.display().to_string(), &StoreOptions::default()).unwrap()
}

/// All files and folders below.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    walk(folder).into_iter().filter(|path| path.is_file()).collect()
}

async fn names(store: &dyn Store, folder: &str) -> Vec<String> {
    list_sorted(store, folder, None).await.unwrap().iter().map(|e| e.name().to_owned()).collect()
}

#[tokio::test]
async fn only_the_owner_reads() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("new/backups"));
    store.create("a/b/c.json", Bytes::from_static(b"x")).await.unwrap();
    let mut upload = store.upload("a/d/part").await.unwrap();
    upload.write(Bytes::from_static(b"y")).await.unwrap();
    upload.finish().await.unwrap();
    let all = walk(folder.path());
    assert_eq!(all.iter().filter(|p| p.is_file()).count(), 2);
    for path in all {
        let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
}

#[tokio::test]
async fn temporaries_are_no_objects_and_old_ones_are_swept() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    assert_eq!(store.sweep_temporaries(Duration::ZERO).await.unwrap(), 0, "there are none yet");
    store.create("k", Bytes::from_static(b"x")).await.unwrap();
    let mut upload = store.upload("up").await.unwrap();
    upload.write(Bytes::from_static(b"half")).await.unwrap();
    let temporaries = folder.path().join(".pgark-tmp");
    let dead = temporaries.join("of-a-dead-writer");
    std::fs::write(&dead, "x").unwrap();
    let old = SystemTime::now() - Duration::from_hours(3);
    std::fs::File::options().write(true).open(&dead).unwrap().set_modified(old).unwrap();
    assert_eq!(files(&temporaries).len(), 2);
    assert_eq!(names(&*store, "").await, ["k"]);
    assert!(store.head(".pgark-tmp/of-a-dead-writer").await.is_err());

    assert_eq!(store.sweep_temporaries(Duration::from_hours(1)).await.unwrap(), 1);
    assert!(!dead.exists());
    upload.finish().await.unwrap();
    assert_eq!(names(&*store, "").await, ["k", "up"]);
    assert!(files(&temporaries).is_empty(), "a finished upload has none");

    for how in ["aborted", "dropped"] {
        let mut upload = store.upload(how).await.unwrap();
        upload.write(Bytes::from_static(b"half")).await.unwrap();
        if how == "aborted" {
            upload.abort().await.unwrap();
        }
    }
    assert!(files(&temporaries).is_empty(), "nor has one that was given up");
}

#[tokio::test]
async fn names_that_lead_out_are_refused() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("secret"), "x").unwrap();
    let store = open(&folder.path().join("backups"));
    store.create("a/x", Bytes::from_static(b"x")).await.unwrap();
    for key in [
        "../secret",
        "a/../../secret",
        "a/../x",
        "/etc/passwd",
        "a//x",
        "a/x/",
        "./a/x",
        "a/.hidden",
        ".pgark-tmp/x",
        "a\0x",
        "",
    ] {
        let body = Bytes::from_static(b"x");
        let results = [
            ("create", store.create(key, body).await.map(|_| ())),
            ("upload", store.upload(key).await.map(|_| ())),
            ("read", store.read(key, None).await.map(|_| ())),
            ("head", store.head(key).await.map(|_| ())),
            ("delete", store.delete(&[key.to_owned()]).await.remove(0)),
        ];
        for (what, result) in results {
            assert_eq!(result.expect_err(what).kind(), ErrorKind::Integrity, "{what} {key:?}");
        }
        if !key.is_empty() {
            assert_eq!(
                list_sorted(&*store, key, None).await.unwrap_err().kind(),
                ErrorKind::Integrity,
                "list {key:?}"
            );
        }
    }
    assert_eq!(names(&*store, "").await, ["a"]);
    assert!(folder.path().join("secret").exists());
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.create("a/b/x", Bytes::from_static(b"x")).await.unwrap();
    std::fs::write(folder.path().join("a/.keep"), "").unwrap();
    std::fs::create_dir(folder.path().join(".git")).unwrap();
    assert_eq!(names(&*store, "").await, ["a"]);
    assert_eq!(names(&*store, "a").await, ["b"]);
    store.delete(&["a/b/x".to_owned()]).await.remove(0).unwrap();
    assert!(folder.path().join("a/.keep").exists() && !folder.path().join("a/b").exists());
}

#[tokio::test]
async fn empty_folders_go_with_their_last_object() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("backups"));
    for key in ["a/b/c/x", "a/b/y"] {
        store.create(key, Bytes::from_static(b"x")).await.unwrap();
    }
    store.delete(&["a/b/c/x".to_owned()]).await.remove(0).unwrap();
    assert!(!folder.path().join("backups/a/b/c").exists() && folder.path().join("backups/a/b/y").exists());
    store.delete(&["a/b/y".to_owned()]).await.remove(0).unwrap();
    assert!(
        names(&*store, "").await.is_empty() && folder.path().join("backups").is_dir(),
        "the store's own folder stays"
    );
    // A delete that died between the two steps left folders without objects: there are none elsewhere.
    std::fs::create_dir_all(folder.path().join("backups/a/b")).unwrap();
    std::fs::write(folder.path().join("backups/a/.hidden"), "").unwrap();
    assert!(names(&*store, "").await.is_empty() && names(&*store, "a").await.is_empty());
    std::fs::remove_file(folder.path().join("backups/a/.hidden")).unwrap();
    // It is made again.
    store.delete(&["a/b/y".to_owned()]).await.remove(0).unwrap();
    assert!(names(&*store, "").await.is_empty() && !folder.path().join("backups/a").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn folders_that_come_and_go_hinder_nobody() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 0..100 {
                    let key = format!("shared/folder/{task}-{i}");
                    assert_eq!(store.create(&key, Bytes::from_static(b"x")).await.unwrap(), Created::New);
                    store.delete(&[key]).await.remove(0).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(names(&*store, "").await.is_empty() && files(folder.path()).is_empty());
}

#[tokio::test]
async fn an_upload_replaces_nothing() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.create("k", Bytes::from_static(b"first")).await.unwrap();
    let mut upload = store.upload("k").await.unwrap();
    upload.write(Bytes::from_static(b"second")).await.unwrap();
    assert_eq!(upload.finish().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(std::fs::read(folder.path().join("k")).unwrap(), b"first");
    assert!(files(&folder.path().join(".pgark-tmp")).is_empty());
}

#[tokio::test]
async fn a_folder_may_be_a_link() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(folder.path());
    std::fs::create_dir(folder.path().join("clusters")).unwrap();
    std::os::unix::fs::symlink(other.path(), folder.path().join("clusters/main")).unwrap();
    store.create("clusters/main/x", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(std::fs::read(other.path().join("x")).unwrap(), b"x");
    assert_eq!(
        list_sorted(&*store, "clusters", None).await.unwrap(),
        [Entry::Folder("clusters/main".into())]
    );
    assert_eq!(names(&*store, "clusters/main").await, ["x"]);
}

/// A disk of its own, which only root can mount.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(TempDir::new().unwrap());
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts a small disk and needs root: run it as root, or leave it out by name, PGARK_TEST_WITHOUT=root"
        );
        disk.mount("size=8m,mode=700");
        disk
    }

    fn mount(&self, options: &str) {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "pgark-test"])
            .arg(self.0.path())
            .status();
        assert!(mounted.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk() {
    if left_out("root") {
        return;
    }
    let disk = Disk::new();
    let store = open(&disk.0.path().join("backups"));
    store.create("small", Bytes::from_static(b"x")).await.unwrap();
    let large = Bytes::from(vec![7; 9 << 20]);
    let error = store.create("large", large.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
    assert!(error.hint().unwrap().contains("space"));
    assert_eq!(files(disk.0.path()).len(), 1, "not even a temporary stays: {:?}", files(disk.0.path()));

    for end in ["aborted", "dropped"] {
        let mut upload = store.upload("large").await.unwrap();
        upload.write(large.slice(..5 << 20)).await.unwrap();
        let error = upload.write(large.slice(..5 << 20)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
        if end == "aborted" {
            upload.abort().await.unwrap();
        } else {
            drop(upload);
        }
        assert_eq!(files(disk.0.path()).len(), 1, "{end}: {:?}", files(disk.0.path()));
    }
    assert_eq!(names(&*store, "").await, ["small"]);
    assert_eq!(store.create("fits", large.slice(..7 << 20)).await.unwrap(), Created::New);
}

/// The mode of a folder hinders nobody who is root, so root gets a disk that is mounted for reading only.
#[tokio::test]
async fn a_place_that_cannot_be_written() {
    let disk;
    let folder = TempDir::new().unwrap();
    let place = if rustix::process::geteuid().is_root() {
        disk = Disk::new();
        disk.0.path()
    } else {
        folder.path()
    };
    let store = open(place);
    store.create("a/k", Bytes::from_static(b"x")).await.unwrap();
    if rustix::process::geteuid().is_root() {
        let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(place).status().unwrap();
        assert!(remounted.success());
    } else {
        for folder in [place.join("a"), place.join(".pgark-tmp")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o500)).unwrap();
        }
    }
    let results = [
        ("create", store.create("a/new", Bytes::from_static(b"x")).await.map(|_| ())),
        ("upload", store.upload("a/new").await.map(|_| ())),
        ("delete", store.delete(&["a/k".to_owned()]).await.remove(0)),
    ];
    for (what, result) in results {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::StoreDenied, "{what}: {error:?}");
        assert!(error.hint().is_some());
    }
    assert_eq!(
        store.create("a/k", Bytes::from_static(b"x")).await.unwrap(),
        Created::Same,
        "what is there is compared"
    );
    assert_eq!(names(&*store, "a").await, ["k"]);
    for folder in walk(place).into_iter().filter(|p| p.is_dir()) {
        let _ = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700));
    }
}

#[tokio::test]
async fn a_folder_that_was_taken_away_is_not_empty() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, away) = (parent.path().join("store"), parent.path().join("away"));
    let store = LocalStore::new(&folder);
    assert_eq!(store.create("a/b", Bytes::from_static(b"x")).await.unwrap(), Created::New);
    std::fs::rename(&folder, &away).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::create_dir(&folder).unwrap();
        }
        let kinds = [
            store.create("a/c", Bytes::from_static(b"y")).await.unwrap_err().kind(),
            store.head("a/b").await.unwrap_err().kind(),
            read_whole(&store, "a/b", 9).await.unwrap_err().kind(),
            list_sorted(&store, "a", None).await.unwrap_err().kind(),
            store.delete(&["a/b".to_owned()]).await.remove(0).unwrap_err().kind(),
            store.upload("a/d").await.map(drop).unwrap_err().kind(),
        ];
        assert!(kinds.iter().all(|kind| *kind == ErrorKind::StoreUnavailable), "{replaced}: {kinds:?}");
        assert_eq!(std::fs::read_dir(&folder).map_or(0, Iterator::count), 0, "something was written there");
    }
    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    assert_eq!(read_whole(&store, "a/b", 9).await.unwrap(), "x");
}
