//! Small objects: JSON with a digest of itself, whose names say of what they are.

use serde_json::Value;
use ulid::Ulid;

use super::open::RECORD_LIMIT;
use super::{from_json, layout};
use crate::error::{Error, ErrorKind, Result};

/// An identity is named a moment after its time was taken.
const MOMENT_MS: u64 = 60 * 60 * 1000;

/// Checks that a small object is what was written, and that it is of its name: a record under another's name has its own
/// digest all the same.
///
/// # Errors
/// [`Integrity`](ErrorKind::Integrity), [`NewerFormat`](ErrorKind::NewerFormat).
pub(crate) fn check_small(key: &str, body: &[u8]) -> Result<()> {
    let damaged = |why: String| {
        Error::new(ErrorKind::Integrity, format!("{key} is damaged: {why}"))
            .with_hint("put back a good copy of this object; the other backups are not touched by this")
    };
    let value: Value = if key.strip_suffix(".zst").is_some() {
        let json = zstd::bulk::decompress(body, RECORD_LIMIT).map_err(|e| damaged(e.to_string()))?;
        from_json(&json, key)?
    } else {
        from_json(body, key)?
    };
    if is_of(key, &value) { Ok(()) } else { Err(damaged("it is the object of another name".to_owned())) }
}

fn is_of(key: &str, value: &Value) -> bool {
    let path: Vec<&str> = key.split('/').collect();
    let [layout::CLUSTERS, cluster, area, below @ ..] = &path[..] else { return true };
    let stem = below.last().map(|name| name.trim_end_matches(".zst"));
    let Some(stem) = stem.and_then(|name| name.strip_suffix(".json")) else { return true };
    let says = |field: &str, wanted: &str| value.get(field).and_then(Value::as_str) == Some(wanted);
    match (*area, below) {
        ("backups", [id, layout::STARTED | layout::RECORD]) => says("id", id),
        // It may have none.
        ("index", _) => {
            let backups = value.get("backups").and_then(Value::as_array);
            backups.into_iter().flatten().all(|of| of.get("cluster").and_then(Value::as_str) == Some(cluster))
        }
        ("drills", _) => says("id", stem),
        ("marks", _) => {
            let mut fields = stem.splitn(3, '.');
            let (id, verb) = (fields.next(), fields.nth(1));
            id.is_none_or(|id| says("backup", id)) && verb.is_none_or(|verb| says("verb", verb))
        }
        ("audit", _) => stem.parse().ok() == value.get("number").and_then(Value::as_u64),
        ("identity", _) => {
            let since = value.get("since").and_then(Value::as_str).and_then(|text| text.parse().ok());
            let since = since.map(|since: jiff::Timestamp| since.as_millisecond());
            match (stem.parse::<Ulid>(), since.and_then(|ms| u64::try_from(ms).ok())) {
                (Ok(name), Some(since)) => name.timestamp_ms().abs_diff(since) < MOMENT_MS,
                _ => true,
            }
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::to_json;
    use serde_json::json;

    #[test]
    fn an_object_is_of_its_name() {
        let id = "20261121T020000Z-logical-k7qd";
        let ulid = Ulid::from_parts(1_795_000_000_000, 7);
        for (name, right, wrong) in [
            (format!("backups/{id}/started.json"), json!({"id": id}), json!({"id": "x"})),
            (format!("backups/{id}/backup.json"), json!({"id": id}), json!({})),
            (format!("drills/{id}.json"), json!({"id": id}), json!({"id": "x"})),
            (
                format!("marks/{id}.{ulid}.pin.json"),
                json!({"backup": id, "verb": "pin"}),
                json!({"backup": id, "verb": "unpin"}),
            ),
            ("audit/0000000/0000000007.json".to_owned(), json!({"number": 7}), json!({"number": 8})),
            (
                format!("identity/{ulid}.json"),
                json!({"since": "2026-11-18T11:06:40Z"}),
                json!({"since": "2026-10-18T11:06:40Z"}),
            ),
            (
                format!("index/{ulid}.json"),
                json!({"backups": [{"cluster": "main"}]}),
                json!({"backups": [{"cluster": "main"}, {"cluster": "other"}]}),
            ),
        ] {
            let key = format!("clusters/main/{name}");
            let body = |mut value: Value| {
                value["format"] = json!(1);
                to_json(&value).unwrap()
            };
            check_small(&key, &body(right.clone())).unwrap();
            let error = check_small(&key, &body(wrong)).unwrap_err();
            assert!(
                error.to_string().contains(&key) && error.to_string().contains("another name"),
                "{error}"
            );
            let whole = body(right);
            assert!(check_small(&key, &whole[..whole.len() / 2]).is_err());
        }
    }
}
