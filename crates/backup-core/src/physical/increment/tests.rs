//! Chains of backups of files that change at random: what is restored is what was sent last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tar::{EntryType, Header};

use super::compare::Comparer;
use super::intake::{Coming, Intake};
use super::map::{BlockMap, MapKey};
use crate::dumper::{Ctx, PartInfo, PartSink, PartSource, PartSpec, PartWriter, SourceContents};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Silent;
use crate::physical::chain::Chain;
use crate::physical::clear::Names;
use crate::physical::files::Counts;
use crate::physical::place::{Looked, Wanted};
use crate::physical::{BASE, MANIFEST};
use crate::repository::Digest;
use crate::state::HostState;
use crate::store::Bytestream;

const BLOCK: usize = 64;
const SPACE: &str = "16385";

/// Files by archive and path.
type Files = BTreeMap<(&'static str, String), Vec<u8>>;
type Stored = Vec<(PartSpec, Bytes)>;

#[derive(Debug, Clone)]
enum Change {
    Write {
        file: usize,
        block: usize,
        blocks: usize,
        with: u8,
    },
    Cut {
        file: usize,
        blocks: usize,
    },
    Extend {
        file: usize,
        blocks: usize,
        with: u8,
    },
    Create {
        file: usize,
        blocks: usize,
        odd: usize,
    },
    Remove {
        file: usize,
    },
    Copy {
        from: usize,
        to: usize,
    },
    /// A file becomes a folder, or a folder a file.
    Turn,
}

const NAMES: [(&str, &str); 10] = [
    (BASE, "base/5/100"),
    (BASE, "base/5/100_vm"),
    (BASE, "base/5/100.1"),
    (BASE, "global/200"),
    (BASE, "base/6/100"),
    (BASE, "base/5/PG_VERSION"),
    (BASE, "pg_xact/0000"),
    (SPACE, "PG_15_202209061/5/300"),
    (SPACE, "PG_15_202209061/5/300_fsm"),
    (SPACE, "PG_15_202209061/7/301"),
];

fn change() -> impl Strategy<Value = Change> {
    let file = 0..NAMES.len();
    let with = 0_u8..4;
    prop_oneof![
        3 => (file.clone(), 0_usize..1500, 1_usize..700, with.clone())
            .prop_map(|(file, block, blocks, with)| Change::Write { file, block, blocks, with }),
        2 => (file.clone(), 0_usize..1500).prop_map(|(file, blocks)| Change::Cut { file, blocks }),
        2 => (file.clone(), 1_usize..700, with).prop_map(|(file, blocks, with)| Change::Extend { file, blocks, with }),
        2 => (file.clone(), 0_usize..1100, prop_oneof![4 => Just(0_usize), 1 => 1..BLOCK])
            .prop_map(|(file, blocks, odd)| Change::Create { file, blocks, odd }),
        1 => file.clone().prop_map(|file| Change::Remove { file }),
        1 => (file.clone(), file).prop_map(|(from, to)| Change::Copy { from, to }),
        1 => Just(Change::Turn),
    ]
}

fn key_of(file: usize) -> (&'static str, String) {
    (NAMES[file].0, NAMES[file].1.to_owned())
}

fn apply(files: &mut Files, change: &Change, stamp: u8) {
    match change {
        Change::Write { file, block, blocks, with } => {
            if let Some(bytes) = files.get_mut(&key_of(*file)) {
                let end = bytes.len().min((block + blocks) * BLOCK);
                let begin = end.min(block * BLOCK);
                bytes[begin..end].fill(*with);
            }
        }
        Change::Cut { file, blocks } => {
            if let Some(bytes) = files.get_mut(&key_of(*file)) {
                bytes.truncate(blocks * BLOCK);
            }
        }
        Change::Extend { file, blocks, with } => {
            if let Some(bytes) = files.get_mut(&key_of(*file)) {
                bytes.resize(bytes.len() + blocks * BLOCK, *with);
            }
        }
        Change::Create { file, blocks, odd } => {
            let bytes =
                (0..blocks * BLOCK + odd).map(|n| u8::try_from(n / BLOCK % 3).unwrap() + stamp).collect();
            files.insert(key_of(*file), bytes);
        }
        Change::Remove { file } => {
            files.remove(&key_of(*file));
        }
        Change::Copy { from, to } => {
            if let Some(bytes) = files.get(&key_of(*from)).cloned() {
                files.insert(key_of(*to), bytes);
            }
        }
        Change::Turn => {
            let (flat, deep) = ((BASE, "own".to_owned()), (BASE, "own/file".to_owned()));
            if files.remove(&flat).is_some() {
                files.insert(deep, b"in a folder".to_vec());
            } else {
                files.remove(&deep);
                files.insert(flat, b"a file".to_vec());
            }
        }
    }
}

/// An archive as the server sends it, files in an order of its own.
fn archive(files: &Files, name: &str, turn: usize) -> Vec<u8> {
    let mut folders = if name == BASE { vec!["pg_tblspc".to_owned()] } else { vec![] };
    let mut members: Vec<(&String, &Vec<u8>)> = files
        .iter()
        .filter(|((archive, _), _)| *archive == name)
        .map(|((_, path), bytes)| (path, bytes))
        .collect();
    for (path, _) in &members {
        folders.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
    }
    folders.sort();
    folders.dedup();
    if !members.is_empty() {
        let by = turn % members.len();
        members.rotate_left(by);
    }
    let mut tar = Vec::new();
    let mut member = |path: &str, bytes: &[u8], kind: EntryType| {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_size(bytes.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o700 } else { 0o600 });
        header.set_entry_type(kind);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    };
    for folder in &folders {
        member(&format!("{folder}/"), b"", EntryType::Directory);
    }
    for (path, bytes) in members {
        member(path, bytes, EntryType::Regular);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn manifest(files: &Files) -> String {
    let listed: Vec<Value> = files
        .iter()
        .map(|((archive, path), bytes)| {
            let path = if *archive == BASE { path.clone() } else { format!("pg_tblspc/{archive}/{path}") };
            let crc = crc32c::crc32c(bytes).to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
            json!({"Path": path, "Size": bytes.len(), "Checksum-Algorithm": "CRC32C", "Checksum": crc})
        })
        .collect();
    json!({"Files": listed}).to_string()
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Stored>>);

struct MemoryPart {
    memory: Memory,
    spec: PartSpec,
    bytes: Vec<u8>,
}

#[async_trait]
impl PartSink for Memory {
    async fn open(&self, spec: PartSpec) -> Result<Box<dyn PartWriter>> {
        Ok(Box::new(MemoryPart { memory: self.clone(), spec, bytes: Vec::new() }))
    }
}

#[async_trait]
impl PartWriter for MemoryPart {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u32> {
        let mut stored = self.memory.0.lock().unwrap();
        stored.push((self.spec, self.bytes.into()));
        Ok(u32::try_from(stored.len()).unwrap())
    }
}

struct Source {
    stored: Stored,
    ancestors: Vec<Arc<dyn PartSource>>,
    contents: SourceContents,
    facts: Map<String, Value>,
    /// Pieces that come before the store answers no more.
    pieces: Arc<AtomicUsize>,
}

#[async_trait]
impl PartSource for Source {
    fn parts(&self) -> Vec<PartInfo> {
        let info = |(n, (spec, bytes)): (usize, &(PartSpec, Bytes))| PartInfo {
            part: u32::try_from(n).unwrap(),
            spec: spec.clone(),
            raw_bytes: bytes.len() as u64,
        };
        self.stored.iter().enumerate().map(info).collect()
    }

    fn contents(&self) -> &SourceContents {
        &self.contents
    }

    fn facts(&self) -> &Map<String, Value> {
        &self.facts
    }

    async fn open(&self, part: u32) -> Result<Bytestream> {
        let bytes = self.stored[part as usize].1.clone();
        // Pieces that end in the middle of everything.
        let pieces: Vec<Result<Bytes>> = (0..bytes.len())
            .step_by(3001)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + 3001))))
            .collect();
        let left = Arc::clone(&self.pieces);
        let or_lost = move |piece| {
            let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            taken.map_err(|_| Error::new(ErrorKind::StoreUnavailable, "the store is gone")).and(piece)
        };
        Ok(futures::stream::iter(pieces).map(or_lost).boxed())
    }

    fn ancestors(&self) -> &[Arc<dyn PartSource>] {
        &self.ancestors
    }
}

/// Backs files up as the server would send them. The map takes its place in the state.
async fn back_up(
    files: &Files,
    state: &HostState,
    number: usize,
    parent: Option<Digest>,
    step: usize,
) -> (Stored, Digest) {
    let key = MapKey::new([9; 32]);
    let parent = parent.map(|digest| {
        let file = std::fs::File::open(state.path(&format!("map{}", number - 1))).unwrap();
        BlockMap::open(file, digest).unwrap()
    });
    let map = state.begin(&format!("map{number}")).unwrap();
    let block_bytes = u32::try_from(BLOCK).unwrap();
    let memory = Memory::default();
    let sink: Arc<dyn PartSink> = Arc::new(memory.clone());
    let mut intake = Intake::new(
        sink,
        Coming::Everything(Some(Box::new(Comparer::new(key, block_bytes, Some(map), parent)))),
    );
    for name in [SPACE, BASE] {
        intake.begin(name).await.unwrap();
        for piece in archive(files, name, number).chunks(step) {
            intake.add(Bytes::copy_from_slice(piece)).await.unwrap();
        }
    }
    let (map, digest) = intake.finish().await.unwrap().made.unwrap().map.unwrap();
    map.keep().unwrap();
    let spec = PartSpec { kind: MANIFEST.to_owned(), name: "backup_manifest".to_owned() };
    let mut stored = std::mem::take(&mut *memory.0.lock().unwrap());
    stored.push((spec, manifest(files).into()));
    (stored, digest)
}

fn restored(root: &Path, archive: &'static str, files: &mut Files) {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let (name, kind) = (folder.join(entry.file_name()), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                let path = name.to_str().unwrap().to_owned();
                files.insert((archive, path), std::fs::read(entry.path()).unwrap());
            }
        }
    }
}

/// A data directory with other contents, and links and files of nobody.
fn another_state(base: &Path, space: &Path, files: &Files) {
    for ((archive, path), contents) in files {
        let root = if *archive == BASE { base } else { space };
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut contents = contents.clone();
        if let Some(byte) = contents.get_mut(5000) {
            *byte ^= 1;
        }
        contents.truncate(70_000);
        std::fs::write(path, contents).unwrap();
    }
    for folder in ["global", "pg_tblspc", "stray/below"] {
        std::fs::create_dir_all(base.join(folder)).unwrap();
    }
    for (file, contents) in
        [("global/pg_control", &[7; 8][..]), ("stray/below/file", b"x"), ("PG_VERSION", b"?")]
    {
        std::fs::write(base.join(file), contents).unwrap();
    }
    std::os::unix::fs::symlink(space, base.join("pg_tblspc").join(SPACE)).unwrap();
    std::os::unix::fs::symlink("/", base.join("stray/root")).unwrap();
}

/// `cuts` say after how many pieces each restore is interrupted; the one after them ends. Restored over another state of
/// the cluster or not.
async fn chain_comes_back(steps: &[Vec<Change>], piece: usize, cuts: &[usize], over: bool) {
    let folder = tempfile::tempdir().unwrap();
    let state = HostState::at(folder.path().join("state"));
    let mut files = Files::from([
        ((BASE, "PG_VERSION".to_owned()), b"15\n".to_vec()),
        ((BASE, "base/5/100".to_owned()), vec![1; 1200 * BLOCK]),
        ((BASE, "base/5/100_vm".to_owned()), vec![2; BLOCK]),
        ((SPACE, "PG_15_202209061/5/300".to_owned()), vec![3; 20 * BLOCK]),
    ]);
    let mut chain: Vec<Arc<dyn PartSource>> = Vec::new();
    let pieces = Arc::new(AtomicUsize::new(usize::MAX));
    let source = |stored, ancestors| -> Arc<dyn PartSource> {
        Arc::new(Source {
            stored,
            ancestors,
            contents: SourceContents::default(),
            facts: Map::new(),
            pieces: Arc::clone(&pieces),
        })
    };
    let (base, space) = (folder.path().join("data"), folder.path().join("space"));
    let mut digest = None;
    let mut last = None;
    for (number, changes) in steps.iter().enumerate() {
        for change in changes {
            apply(&mut files, change, u8::try_from(number).unwrap());
        }
        let (stored, next) = back_up(&files, &state, number, digest, piece).await;
        digest = Some(next);
        if let Some(stored) = last.replace(stored) {
            chain.push(source(stored, Vec::new()));
        }
        if over && number == steps.len() / 2 {
            another_state(&base, &space, &files);
        }
    }
    let targets = BTreeMap::from([(BASE.to_owned(), base.clone()), (SPACE.to_owned(), space.clone())]);
    let newest = source(last.unwrap(), chain);
    let first = Arc::clone(newest.ancestors().first().unwrap_or(&newest));
    let wanted = Wanted {
        backup: "b".to_owned(),
        targets,
        over: over.then_some(u64::from_le_bytes([7; 8])),
        version_folder: String::new(),
    };
    let ctx = Ctx::new(crate::CancellationToken::new(), 2, Arc::new(Silent));
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let looked = Looked::at(wanted.clone()).unwrap();
        let needs_names = looked.needs_names();
        let names = if needs_names { Names::of(&*first).await.unwrap() } else { Names::default() };
        let (place, _) = looked.prepare(&names).unwrap();
        let counts = Arc::new(Counts::default());
        let version_folder = String::new();
        let chain = Chain { parts: &newest, place: &place, version_folder, counts: &counts };
        pieces.store(cut, Ordering::SeqCst);
        let unpacked = chain.unpack(&ctx).await;
        pieces.store(usize::MAX, Ordering::SeqCst);
        match unpacked {
            Ok(()) => break,
            Err(e) => assert!(cut < usize::MAX && format!("{e:?}").contains("the store is gone"), "{e:?}"),
        }
    }

    let mut found = Files::new();
    restored(&base, BASE, &mut found);
    restored(&space, SPACE, &mut found);
    found.retain(|(_, path), _| path != "backup_manifest" && path != "pgark.restore");
    let names = |files: &Files| files.iter().map(|(k, v)| (k.clone(), v.len())).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&files));
    assert!(found == files, "a file has other bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_chain_is_what_was_sent_last(
        steps in proptest::collection::vec(proptest::collection::vec(change(), 0..7), 1..6),
        piece in prop_oneof![Just(32 * 1024_usize), 100_usize..9000],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(chain_comes_back(&steps, piece, &[], false));
    }

    #[test]
    fn a_chain_is_what_was_sent_last_however_often_its_restore_is_interrupted(
        steps in proptest::collection::vec(proptest::collection::vec(change(), 0..7), 1..6),
        cuts in proptest::collection::vec(0_usize..60, 1..8),
        over: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(chain_comes_back(&steps, 5000, &cuts, over));
    }
}

#[tokio::test]
async fn what_did_not_change_costs_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let state = HostState::at(folder.path().join("state"));
    let mut files = Files::from([
        ((BASE, "base/5/100".to_owned()), vec![1; 2000 * BLOCK]),
        ((BASE, "base/5/101".to_owned()), vec![1; 2000 * BLOCK]),
    ]);
    let (_, digest) = back_up(&files, &state, 0, None, 5000).await;
    for block in [3, 4, 900] {
        files.get_mut(&(BASE, "base/5/101".to_owned())).unwrap()[block * BLOCK] = 7;
    }
    let (stored, _) = back_up(&files, &state, 1, Some(digest), 5000).await;
    let kinds: Vec<(&str, usize)> =
        stored.iter().map(|(spec, bytes)| (spec.kind.as_str(), bytes.len())).collect();
    // A header, 24 bytes, three numbers and three blocks, padded; and the end of the archive.
    assert_eq!(kinds[0], ("delta", 512 + 512 + 1024));
    assert_eq!(kinds[1].0, "list");
    let list = String::from_utf8(stored[1].1.to_vec()).unwrap().replace('\0', "\n");
    let wanted = "d 700 0 base/base\nd 700 0 base/base/5\nd 700 0 base/pg_tblspc\nb 600 128000 base/base/5/101\nb 600 128000 base/base/5/100\n";
    assert_eq!(list, wanted);
}
