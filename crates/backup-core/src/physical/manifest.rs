//! The text of a backup's manifest (`backup_manifest.c`, PostgreSQL 15 to 18): JSON, a line for each file, with a
//! SHA-256 of all that stands before it in its last line.

use std::io::{BufRead, Read};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// A line that is longer is no manifest's.
const LINE_LIMIT: u64 = 16 * 1024;
/// What stands between the files and what follows.
const END_OF_FILES: &str = "],";

pub(super) fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("a manifest is damaged: {why}"))
        .with_hint("make another backup, or restore another one")
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: Option<u64>,
}

/// What becomes of a file's line.
pub(super) enum Line {
    Keep,
    LeaveOut,
    /// This entry stands there.
    Instead(String),
}

/// Goes through a manifest, asks of each path (and length) what becomes of its line, and writes what comes of it, with its checksum
/// made anew. An error of `change` or `out` ends it.
///
/// # Errors
/// [`Integrity`](ErrorKind::Integrity) where it is not what a server writes.
pub(super) fn rewrite(
    mut manifest: impl BufRead,
    mut change: impl FnMut(&[u8], Option<u64>) -> Result<Line>,
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        let read = Read::take(&mut manifest, LINE_LIMIT).read_until(b'\n', line);
        let read = read.map_err(|e| Error::io("reading a manifest", e))?;
        // Each line has its end, and the last one as well.
        if read == 0 || line.pop() != Some(b'\n') { Err(damaged("it is cut")) } else { Ok(()) }
    };
    let mut put = |digest: &mut Sha256, bytes: &[u8]| {
        digest.update(bytes);
        out(bytes)
    };
    loop {
        next(&mut line)?;
        put(&mut digest, &line)?;
        put(&mut digest, b"\n")?;
        if line == b"\"Files\": [" {
            break;
        }
    }
    let mut first = true;
    loop {
        next(&mut line)?;
        if line == END_OF_FILES.as_bytes() {
            break;
        }
        let entry = line.strip_suffix(b",").unwrap_or(&line);
        let listed: Listed =
            serde_json::from_slice(entry).map_err(|e| damaged("a line names no file").caused_by(e))?;
        let path = match (listed.path, listed.encoded) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(hex)) => bytes_of_hex(&hex).ok_or_else(|| damaged("a file's name cannot be read"))?,
            (None, None) => return Err(damaged("a file has no name")),
        };
        let instead = match change(&path, listed.size)? {
            Line::LeaveOut => continue,
            Line::Keep => None,
            Line::Instead(entry) => Some(entry),
        };
        if !first {
            put(&mut digest, b",\n")?;
        }
        first = false;
        put(&mut digest, instead.as_ref().map_or(entry, String::as_bytes))?;
    }
    put(&mut digest, b"\n],\n")?;
    loop {
        next(&mut line)?;
        if line.starts_with(b"\"Manifest-Checksum\"") {
            break;
        }
        put(&mut digest, &line)?;
        put(&mut digest, b"\n")?;
    }
    let sum = hex(&digest.finalize());
    out(format!("\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes())
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Bytes that are written as hexadecimal digits.
pub(super) fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [";
    const TAIL: &str = "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";

    fn manifest(files: &[&str]) -> String {
        let text = format!("{HEAD}\n{}{TAIL}", files.join(",\n"));
        let sum = hex(&Sha256::digest(text.as_bytes()));
        format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    fn trimmed(manifest: &str, keep: impl Fn(&[u8]) -> bool) -> Result<String> {
        let mut text = Vec::new();
        let change = |path: &[u8], _: Option<u64>| match path {
            b"changed" => Ok(Line::Instead("{ \"Path\": \"changed\", \"Size\": 9 }".to_owned())),
            path if keep(path) => Ok(Line::Keep),
            _ => Ok(Line::LeaveOut),
        };
        rewrite(manifest.as_bytes(), change, |bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn files_are_left_out() {
        let a = "{ \"Path\": \"base/5/1259\", \"Size\": 8192, \"Checksum\": \"aa\" }";
        let b = "{ \"Encoded-Path\": \"626173652f352f315f766d\", \"Size\": 8192 }";
        let c = "{ \"Path\": \"a \\\"quoted\\\" one\", \"Size\": 0 }";
        let all = manifest(&[a, b, c]);
        assert_eq!(trimmed(&all, |_| true).unwrap(), all);
        assert_eq!(trimmed(&all, |path| path != b"base/5/1_vm").unwrap(), manifest(&[a, c]));
        assert_eq!(trimmed(&all, |path| path == b"a \"quoted\" one").unwrap(), manifest(&[c]));
        let (before, after) =
            ("{ \"Path\": \"changed\", \"Size\": 1 }", "{ \"Path\": \"changed\", \"Size\": 9 }");
        assert_eq!(trimmed(&manifest(&[a, before]), |_| true).unwrap(), manifest(&[a, after]));
        let none = trimmed(&all, |_| false).unwrap();
        assert!(
            serde_json::from_str::<serde_json::Value>(&none).unwrap()["Files"].as_array().unwrap().is_empty()
        );
        for cut in 0..all.len() - 1 {
            let error = trimmed(&all[..cut], |_| true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity, "{cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn lines_of_any_kind_are_read(lines: Vec<String>) {
            let _ = trimmed(&lines.join("\n"), |_| true);
            let _ = trimmed(&format!("{HEAD}\n{}\n", lines.join("\n")), |_| true);
        }
    }
}
