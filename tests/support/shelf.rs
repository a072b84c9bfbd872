//! Repositories full of backups that were never made: records, announcements and objects as a run writes them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Size of segments.
pub const SEGMENT: u64 = 16 << 20;
/// The system that physical backups are of.
pub const SYSTEM: u64 = 7_448_123_456_789_012_345;

/// A backup to be put on the shelf.
#[derive(Debug, Clone)]
pub struct Fake {
    pub at: Timestamp,
    pub kind: &'static str,
    pub tail: String,
    pub parent: Option<String>,
    pub source: Value,
}

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

impl Fake {
    pub fn logical(at: Timestamp, database: &str, n: usize) -> Self {
        let source = json!({"database": database, "server_version": "15.18"});
        Self { at, kind: "logical", tail: format!("{n:04}"), parent: None, source }
    }

    /// From one segment to another.
    pub fn physical(at: Timestamp, from: u64, to: u64, n: usize) -> Self {
        let lsn = |segment: u64, offset: u64| {
            let at = segment * SEGMENT + offset;
            format!("{:X}/{:X}", at >> 32, at & 0xffff_ffff)
        };
        let source = json!({
            "system_identifier": SYSTEM.to_string(), "server_version": "15.18", "timeline": 1,
            "start_lsn": lsn(from, 40), "end_lsn": lsn(to, 80), "wal_segment_bytes": SEGMENT, "end_time": at.to_string(),
        });
        Self { at, kind: "physical", tail: format!("{n:04}"), parent: None, source }
    }

    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.source[name] = value.into();
        self
    }

    pub fn on(mut self, parent: &Fake) -> Self {
        self.parent = Some(parent.id());
        self
    }

    pub fn id(&self) -> String {
        format!("{}-{}-{}", self.at.strftime("%Y%m%dT%H%M%SZ"), self.kind, self.tail)
    }

    pub fn summary(&self) -> Value {
        json!({
            "format": 1, "id": self.id(), "state": "committed", "cluster": "main", "kind": self.kind,
            "started": self.at, "finished": self.at, "host": "h", "tool": {"name": "pgark", "version": "0"},
            "compression": "zstd", "encryption": null, "parent": self.parent, "label": null, "stored_bytes": 1000,
            "warnings": 0, "source": self.source,
        })
    }

    fn folder(&self) -> String {
        format!("clusters/main/backups/{}", self.id())
    }

    /// `started.json` of it.
    pub fn announcement(&self) -> (String, Vec<u8>) {
        let started = json!({
            "format": 1, "id": self.id(), "started": self.at, "host": "h", "process": 1,
            "tool": {"name": "pgark", "version": "0"}, "parent": self.parent,
        });
        (format!("{}/started.json", self.folder()), signed(started))
    }

    /// All its objects; the record comes last.
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let part = b"a part".to_vec();
        let mut record = self.summary();
        record["contents"] = Value::Null;
        record["parts"] = json!([{"part": 1, "kind": "pgdump", "objects": [
            {"key": "parts/0001.pgdump.zst", "bytes": part.len(), "blake3": blake3::hash(&part).to_string()}]}]);
        vec![
            self.announcement(),
            (format!("{}/parts/0001.pgdump.zst", self.folder()), part),
            (format!("{}/backup.json", self.folder()), signed(record)),
        ]
    }
}

/// With a digest of itself.
pub fn signed(mut record: Value) -> Vec<u8> {
    let digest = blake3::hash(record.to_string().as_bytes()).to_string();
    record["blake3"] = digest.into();
    record.to_string().into_bytes()
}

/// What makes a place a repository.
pub fn marker() -> (String, Vec<u8>) {
    let marker = json!({
        "format": 1, "id": "01KDVE4Q000000000000000000", "created": "2026-01-01T00:00:00Z",
        "tool": {"name": "pgark", "version": "0"}, "abilities": {"conditional_create": true, "delete": true},
    });
    ("pgark.json".to_owned(), signed(marker))
}

/// The identity of the cluster.
pub fn identity() -> (String, Vec<u8>) {
    let identity = json!({
        "format": 1, "system_identifier": SYSTEM.to_string(), "server_version": "15.18", "since": "2026-01-01T00:00:00Z",
        "tool": {"name": "pgark", "version": "0"},
    });
    ("clusters/main/identity/01KDVE4Q000000000000000000.json".to_owned(), signed(identity))
}

/// A mark.
pub fn mark(id: &str, verb: &str) -> (String, Vec<u8>) {
    (format!("clusters/main/marks/{id}.{}.{verb}.json", ulid()), b"{}".to_vec())
}

fn ulid() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("01M7YBC43R60RYQ0FH5E5{:05}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Stored length of a segment, as its name says it.
const SEGMENT_STORED: u64 = 0;

/// Key of a whole segment.
pub fn segment(timeline: u32, number: u64) -> String {
    let per_log = 0x1_0000_0000 / SEGMENT;
    let name = format!("{timeline:08X}{:08X}{:08X}", number / per_log, number % per_log);
    let digest = blake3::hash(&number.to_le_bytes()).to_string();
    let digest = &digest[..32];
    format!(
        "clusters/main/wal/{SYSTEM}/{}/{}/{name}-{:08x}-{SEGMENT:08x}-{SEGMENT:08x}-{:08x}-{digest}-{digest}-0-{}.zst",
        &name[..8],
        &name[..16],
        0,
        SEGMENT_STORED,
        1_795_000_000_000_000 + number
    )
}

/// Everything by its key.
pub fn shelf<'a>(backups: impl IntoIterator<Item = &'a Fake>) -> BTreeMap<String, Vec<u8>> {
    backups.into_iter().flat_map(Fake::objects).chain([marker(), identity()]).collect()
}
