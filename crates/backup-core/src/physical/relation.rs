//! Which files of a cluster are made of blocks.

use super::BASE;

/// `pg_default` and `pg_global` (`pg_tablespace.dat`, PostgreSQL 15 to 18).
const DEFAULT_SPACE: u32 = 1663;
const GLOBAL_SPACE: u32 = 1664;

/// A relation: the OIDs of tablespace and database, and the number of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Relation {
    pub(super) tablespace: u32,
    /// 0 for what all databases share.
    pub(super) database: u32,
    pub(super) number: u32,
}

/// Which fork of a relation a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fork {
    Main,
    FreeSpace,
    Visibility,
    Init,
}

/// A segment of a relation's fork: a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RelationFile {
    pub(super) relation: Relation,
    pub(super) fork: Fork,
    /// Its number, from 0.
    pub(super) segment: u32,
}

/// Whether a file is a segment of a relation's fork.
pub(super) fn is_relation(archive: &str, path: &[u8]) -> bool {
    relation_file(archive, path).is_some()
}

/// What a file of an archive is of: `base/<database>/<number>`, `global/<number>`, the same in
/// tablespaces (`relpath.c`, PostgreSQL 15 to 18). Temporary relations are in no backup.
pub(super) fn relation_file(archive: &str, path: &[u8]) -> Option<RelationFile> {
    let parts: Vec<&str> = std::str::from_utf8(path).ok()?.split('/').collect();
    let (tablespace, database, file) = match parts[..] {
        ["global", file] if archive == BASE => (GLOBAL_SPACE, 0, file),
        ["base", database, file] if archive == BASE => (DEFAULT_SPACE, number(database)?, file),
        // A tablespace within the data directory (allow_in_place_tablespaces), or any in a manifest.
        ["pg_tblspc", oid, version, database, file] if archive == BASE && version.starts_with("PG_") => {
            (number(oid)?, number(database)?, file)
        }
        [version, database, file] if archive != BASE && version.starts_with("PG_") => {
            (number(archive)?, number(database)?, file)
        }
        _ => return None,
    };
    let (name, segment) = file.split_once('.').unwrap_or((file, "0"));
    let (name, fork) = name.split_once('_').unwrap_or((name, ""));
    let fork = match fork {
        "" if !file.contains('_') => Fork::Main,
        "fsm" => Fork::FreeSpace,
        "vm" => Fork::Visibility,
        "init" => Fork::Init,
        _ => return None,
    };
    let relation = Relation { tablespace, database, number: number(name)? };
    Some(RelationFile { relation, fork, segment: number(segment)? })
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_told_from_other_files() {
        for path in [
            "base/5/1259",
            "base/5/1259_vm",
            "base/5/16384.12",
            "base/5/16384_fsm.1",
            "global/1260",
            "pg_tblspc/1/PG_15_2/5/7",
        ] {
            assert!(is_relation("base", path.as_bytes()), "{path}");
        }
        for path in [
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/t3_16384",
            "base/5/",
            "pg_xact/0000",
            "PG_VERSION",
            "base/5/1259_x",
            "1259",
        ] {
            assert!(!is_relation("base", path.as_bytes()), "{path}");
        }
        assert!(is_relation("16385", b"PG_15_202209061/5/16390_init"));
        assert!(!is_relation("16385", b"base/5/16390"));
    }

    #[test]
    fn relations_have_numbers() {
        let at = |tablespace, database, number| Relation { tablespace, database, number };
        for (archive, path, relation, fork, segment) in [
            ("base", "base/5/1259.3", at(1663, 5, 1259), Fork::Main, 3),
            ("base", "global/1260_fsm", at(1664, 0, 1260), Fork::FreeSpace, 0),
            ("base", "pg_tblspc/16385/PG_17_202406281/5/7_vm.1", at(16385, 5, 7), Fork::Visibility, 1),
            ("16385", "PG_17_202406281/5/7_init", at(16385, 5, 7), Fork::Init, 0),
        ] {
            let file = RelationFile { relation, fork, segment };
            assert_eq!(relation_file(archive, path.as_bytes()), Some(file), "{path}");
        }
        for path in ["base/5/7_", "base/5/7_vm_", "base/5/7.", "base/5/_vm", "base/5/99999999999"] {
            assert_eq!(relation_file("base", path.as_bytes()), None, "{path}");
        }
    }
}
