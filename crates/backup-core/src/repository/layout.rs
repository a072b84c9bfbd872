//! Names of the objects of a repository. `docs/format.md` says what is in them.

use super::{BackupId, ClusterName};

/// The object that makes a place a repository.
pub const REPOSITORY: &str = "pgark.json";
/// Folder of all clusters.
pub const CLUSTERS: &str = "clusters";
/// A run's announcement, in its backup's folder.
pub const STARTED: &str = "started.json";
/// The record, in its backup's folder.
pub const RECORD: &str = "backup.json";
/// Folder of the parts, in a backup's folder.
pub const PARTS: &str = "parts";

/// Folder of a cluster's backups.
pub fn backups(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/backups")
}

/// Folder of a backup.
pub fn backup(cluster: &ClusterName, id: &BackupId) -> String {
    format!("{}/{id}", backups(cluster))
}

/// Folder of a cluster's summaries of records.
pub fn index(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/index")
}

/// Folder of the records of a cluster's drills.
pub fn drills(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/drills")
}

/// Folder of the marks of a cluster's backups.
pub fn marks(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/marks")
}

/// Folder of a cluster's audit log.
pub fn audit(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/audit")
}

/// Folder of a cluster's identities.
pub fn identity(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/identity")
}

/// Folder of the WAL of one PostgreSQL cluster, by its system identifier: after `initdb` or `pg_upgrade` the names of
/// segments begin anew.
pub fn wal(cluster: &ClusterName, system: u64) -> String {
    format!("{CLUSTERS}/{cluster}/wal/{system}")
}

/// Folder of all WAL of a cluster: those of the systems, and that of the keys.
pub fn wal_root(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/wal")
}

/// Folder of the wrapped keys of WAL.
pub fn wal_keys(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/wal/keys")
}

/// A part's object, in its backup's folder: `parts/0001.pgdump.zst.age`. Where a part has several, the
/// second is `parts/0001_002.pgdump.zst.age`: so they sort in their order.
pub fn part(part: u32, object: usize, kind: &str, codec: Option<&str>, cipher: Option<&str>) -> String {
    let number = if object > 1 { format!("{part:04}_{object:03}") } else { format!("{part:04}") };
    let mut name = format!("{PARTS}/{number}.{kind}");
    for suffix in [codec, cipher].into_iter().flatten() {
        name.push('.');
        name.push_str(suffix);
    }
    name
}

/// The sealed contents, in a backup's folder.
pub fn contents(cipher: Option<&str>) -> String {
    match cipher {
        Some(cipher) => format!("contents.json.zst.{cipher}"),
        None => "contents.json.zst".to_owned(),
    }
}

/// The first wrapped key of a backup, in its folder: `key.age`.
pub fn key(cipher: &str) -> String {
    format!("key.{cipher}")
}

/// A key wrapped again: `key-<ulid>.age`. The last by name counts.
pub fn rotated_key(ulid: &str, cipher: &str) -> String {
    format!("key-{ulid}.{cipher}")
}

/// Whether a name in a backup's folder is that of a wrapped key.
pub fn is_key(name: &str) -> bool {
    name.starts_with("key.") || name.starts_with("key-")
}

/// Whether `text` is a kind: one to 32 lower-case letters.
pub fn is_word(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase())
}
