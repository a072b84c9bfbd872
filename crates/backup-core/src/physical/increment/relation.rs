//! Which files of a cluster are made of blocks.

use super::super::BASE;

/// Whether a file is a segment of a relation's fork: `base/<database>/<number>`, `global/<number>`, the same in
/// tablespaces (`relpath.c`, PostgreSQL 15 to 18). Temporary relations are in no backup.
pub(super) fn is_relation(archive: &str, path: &[u8]) -> bool {
    let Ok(path) = std::str::from_utf8(path) else { return false };
    let parts: Vec<&str> = path.split('/').collect();
    let file = match parts[..] {
        ["global", file] if archive == BASE => file,
        ["base", database, file] if archive == BASE && is_number(database) => file,
        // A tablespace within the data directory (allow_in_place_tablespaces).
        ["pg_tblspc", oid, version, database, file]
            if archive == BASE && is_number(oid) && version.starts_with("PG_") && is_number(database) =>
        {
            file
        }
        [version, database, file] if archive != BASE && version.starts_with("PG_") && is_number(database) => {
            file
        }
        _ => return false,
    };
    let (name, segment) = file.split_once('.').unwrap_or((file, "1"));
    let (number, fork) = name.split_once('_').unwrap_or((name, "vm"));
    is_number(number) && is_number(segment) && matches!(fork, "vm" | "fsm" | "init")
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::is_relation;

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
}
