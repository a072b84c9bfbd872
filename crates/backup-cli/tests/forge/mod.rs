//! Backups that were changed by somebody who knows the format: every digest fits.

#![allow(dead_code, unreachable_pub)]

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::Pgark;

/// BLAKE3 of a record without its own digest, as `docs/format.md` says.
pub fn with_own_digest(mut record: Value) -> Vec<u8> {
    fn canonical(value: &Value, out: &mut String) {
        match value {
            Value::Object(fields) => {
                let mut names: Vec<&String> = fields.keys().collect();
                names.sort();
                out.push('{');
                for (n, name) in names.into_iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(name.as_str()).to_string());
                    out.push(':');
                    canonical(&fields[name], out);
                }
                out.push('}');
            }
            Value::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    canonical(item, out);
                }
                out.push(']');
            }
            plain => out.push_str(&plain.to_string()),
        }
    }
    record.as_object_mut().unwrap().remove("blake3");
    let mut text = String::new();
    canonical(&record, &mut text);
    record["blake3"] = json!(blake3::hash(text.as_bytes()).to_hex().to_string());
    serde_json::to_vec(&record).unwrap()
}

/// Changes bytes of a part of an unencrypted, uncompressed backup, and forges every digest up to the record's own.
pub fn forge(pgark: &Pgark, id: &str, kind: &str, change: impl Fn(&mut Vec<u8>)) {
    let folder = pgark.path("repo/clusters/main/backups").join(id);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let mut record: Value = serde_json::from_slice(&read("backup.json")).unwrap();
    let mut contents: Value =
        serde_json::from_slice(&zstd::decode_all(&read("contents.json.zst")[..]).unwrap()).unwrap();
    let mut changed = false;
    for part in record["parts"].as_array_mut().unwrap() {
        if part["kind"] != kind {
            continue;
        }
        let number = part["part"].clone();
        let object = &mut part["objects"][0];
        let key = object["key"].as_str().unwrap().to_owned();
        let before = read(&key);
        let mut bytes = before.clone();
        change(&mut bytes);
        if bytes == before {
            continue;
        }
        changed = true;
        assert_eq!(bytes.len(), before.len());
        std::fs::write(folder.join(&key), &bytes).unwrap();
        object["blake3"] = json!(blake3::hash(&bytes).to_hex().to_string());
        let of_part =
            contents["parts"].as_array_mut().unwrap().iter_mut().find(|part| part["part"] == number).unwrap();
        let fields = of_part.as_object_mut().unwrap();
        if fields.contains_key("raw_xxh3") {
            let digest = xxhash_rust::xxh3::xxh3_128(&bytes);
            fields.insert("raw_xxh3".to_owned(), json!(format!("{digest:032x}")));
        }
        if fields.contains_key("raw_blake3") {
            fields.insert("raw_blake3".to_owned(), json!(blake3::hash(&bytes).to_hex().to_string()));
        }
    }
    assert!(changed);
    keep(&folder, record, contents);
}

/// Stores contents of an unencrypted backup, and the record, with all digests right.
fn keep(folder: &Path, mut record: Value, contents: Value) {
    let sealed = zstd::encode_all(&with_own_digest(contents)[..], 3).unwrap();
    std::fs::write(folder.join("contents.json.zst"), &sealed).unwrap();
    record["contents"]["bytes"] = json!(sealed.len());
    record["contents"]["blake3"] = json!(blake3::hash(&sealed).to_hex().to_string());
    std::fs::write(folder.join("backup.json"), with_own_digest(record)).unwrap();
}

/// Changes what an unencrypted backup says of a table.
pub fn forge_table(folder: &Path, name: &str, field: &str, value: &Value) {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let record = serde_json::from_slice(&read("backup.json")).unwrap();
    let mut contents: Value =
        serde_json::from_slice(&zstd::decode_all(&read("contents.json.zst")[..]).unwrap()).unwrap();
    let tables = contents["source"]["logical"]["databases"][0]["tables"].as_array_mut().unwrap();
    tables.iter_mut().find(|table| table["name"] == name).unwrap()[field] = value.clone();
    keep(folder, record, contents);
}

pub fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    if let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
}
