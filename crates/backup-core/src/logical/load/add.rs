//! Adding a part of a backup to a database that is there.

use std::collections::HashSet;

use super::super::archive::{Entry, TABLE_DATA, Toc};
use super::choice::Choice;
use super::failure::describe;
use super::options::LoadOptions;
use super::target::Target;
use super::there;
use crate::error::{Error, Result};
use crate::postgres::Session;

/// What keeps the objects from being made, a line each.
pub(super) fn obstacles(
    toc: &Toc,
    choice: &Choice,
    there: &HashSet<i32>,
    options: &LoadOptions,
) -> Vec<String> {
    let chosen = || toc.entries.iter().filter(|entry| choice.has(entry.id));
    if options.data_only {
        let by_id = toc.by_id();
        let missing = |entry: &&Entry| {
            let tables = entry
                .dependencies
                .iter()
                .filter(|id| by_id.get(id).is_some_and(|e| e.kind.ends_with("TABLE")));
            entry.kind == TABLE_DATA && tables.into_iter().any(|id| !there.contains(id))
        };
        let missing: Vec<String> =
            chosen().filter(missing).map(|e| format!("{}.{}", e.schema_text(), e.name_text())).collect();
        if missing.is_empty() {
            return Vec::new();
        }
        return vec![format!("tables for the rows are missing: {}", missing.join(", "))];
    }
    let taken: Vec<String> = chosen()
        .filter(|e| {
            there.contains(&e.id) && choice.was_asked_for(e.id) && e.kind != "SCHEMA" && e.kind != "EXTENSION"
        })
        .map(describe)
        .collect();
    if taken.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "objects are there already: {} (drop or rename them; or load their rows with --data-only)",
        taken.join(", ")
    )]
}

/// Drops what the restore had made; what was there stays.
pub(super) async fn undo(
    target: &Target,
    toc: &Toc,
    choice: &Choice,
    there: &HashSet<i32>,
    options: &LoadOptions,
    error: Error,
) -> Error {
    if options.data_only {
        return error;
    }
    match take_back(target, toc, choice, there).await {
        Ok(left) if left.is_empty() => error,
        Ok(left) => error.doing(format!("these are left, and could not be dropped: {}", left.join(", "))),
        Err(e) => error.doing(format!(
            "what was made so far is left in {}, because it could not be dropped ({e})",
            target.name
        )),
    }
}

async fn take_back(target: &Target, toc: &Toc, choice: &Choice, there: &HashSet<i32>) -> Result<Vec<String>> {
    let session = target.info().connect().await?;
    let made = |entry: &&Entry| choice.has(entry.id) && !there.contains(&entry.id);
    // Only what can be looked up is dropped: of the rest nobody knows whether it was there.
    let known =
        |entry: &&Entry| there::is_known(entry) || entry.kind == "FK CONSTRAINT" || entry.kind == "DEFAULT";
    for entry in toc.entries.iter().rev().filter(made).filter(known) {
        let Some(drop) = entry.drop.as_deref().filter(|drop| !drop.is_empty()) else { continue };
        // It may not have come so far, or have gone with its table.
        let _ = session.rows(&String::from_utf8_lossy(drop)).await;
    }
    let left = there::there(&session, toc).await?;
    Ok(toc.entries.iter().filter(made).filter(|e| left.contains(&e.id)).map(describe).collect())
}

/// Drops what the backup brings, in one transaction: all of it or, where something else depends on it, nothing.
pub(super) async fn clear(session: &Session, toc: &Toc, choice: &Choice, there: &HashSet<i32>) -> Result<()> {
    session.rows("BEGIN").await?;
    for entry in toc.entries.iter().rev().filter(|entry| choice.has(entry.id)) {
        let Some(drop) = drop_of(entry) else { continue };
        let must = there.contains(&entry.id) && entry.kind != "SCHEMA";
        if must {
            session.rows(&drop).await.map_err(|e| {
                e.doing(format!("dropping {}; nothing was changed", describe(entry)))
                    .with_hint("drop what depends on it, or restore with --swap")
            })?;
        } else if !there::is_known(entry) || there.contains(&entry.id) {
            // It may not be there, or a schema may have other things in it.
            session.rows("SAVEPOINT maybe").await?;
            let undo = if session.rows(&drop).await.is_ok() { "RELEASE maybe" } else { "ROLLBACK TO maybe" };
            session.rows(undo).await?;
        }
    }
    session.rows("COMMIT").await.map(drop)
}

/// The statement that drops an object, where it does not go with its table.
fn drop_of(entry: &Entry) -> Option<String> {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    match entry.kind.as_str() {
        // OIDs, one a line; from 17 on many in one entry.
        "BLOB METADATA" | "BLOB" => {
            let oids =
                if entry.kind == "BLOB" { entry.name_text() } else { text(entry.definition.as_deref()) };
            let oids: Vec<&str> =
                oids.split_whitespace().filter(|oid| oid.bytes().all(|b| b.is_ascii_digit())).collect();
            (!oids.is_empty()).then(|| {
                format!(
                    "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid IN ({})",
                    oids.join(", ")
                )
            })
        }
        "EXTENSION" | "INDEX" | "STATISTICS" | "CONSTRAINT" | "CHECK CONSTRAINT" | "TRIGGER" | "RULE"
        | "POLICY" => None,
        _ => Some(text(entry.drop.as_deref())).filter(|drop| !drop.is_empty()),
    }
}
