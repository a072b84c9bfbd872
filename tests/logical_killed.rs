//! Sessions and servers that die in the middle of a dump or a restore, and parts that are damaged: a clear error,
//! and nothing that looks whole.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pgark::logical::{Dump, Load};
use pgark::postgres::TempServer;
use pgark::verify::{VerifyOptions, verify};
use pgark::{CancellationToken, ErrorKind, Event, Observer};
use support::round_trip::{Logical, back_up, try_back_up};
use support::{conninfo, server, sql};

/// Ends the sessions of pgark that a condition chooses, once `after` parts have been opened.
struct Terminate {
    url: String,
    which: &'static str,
    after: AtomicU32,
}

impl Observer for Terminate {
    fn event(&self, event: &Event) {
        if !matches!(event, Event::PartOpened { .. }) || self.after.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        let (url, which) = (self.url.clone(), self.which);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let text = format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {which}"
                );
                let ended = conninfo(&url).connect().await.unwrap().value(&text).await.unwrap();
                assert_ne!(ended.as_deref(), Some("0"));
            });
        });
        thread.join().unwrap();
    }
}

async fn tables(server: &TempServer) {
    let text = "CREATE TABLE large AS SELECT i, repeat(md5(i::text), 30) AS x FROM generate_series(1, 30000) i;
         CREATE TABLE small AS SELECT i FROM generate_series(1, 1000) i;
         CREATE TABLE other AS SELECT i FROM generate_series(1, 100) i;
         SELECT count(lo_from_bytea(i, decode(repeat(md5(i::text), 20), 'hex'))) FROM generate_series(1000, 1500) i";
    sql(server, "postgres", text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_fails_the_backup() {
    let server = server();
    tables(&server).await;
    // The one that holds the locks, which waits meanwhile, and one that copies.
    for which in [
        "state = 'idle in transaction' AND query NOT LIKE 'SET client_encoding%' AND query NOT LIKE '%COPY %'",
        "query LIKE '%COPY %large%'",
    ] {
        for after in [2, 4] {
            let url = server.url("postgres");
            let observer = Terminate { url: url.clone(), which, after: AtomicU32::new(after) };
            let dump = Dump::new(conninfo(&url)).range_bytes(4 << 20);
            let (_, memory, summary) = try_back_up(dump, 2, Arc::new(observer)).await;
            let error = summary.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{which}, {after}: {error:?}");
            assert_eq!(support::left(&memory), ["pgark.json"]);
            let said =
                if which.contains("idle") { "that held the tables' locks" } else { "copying the rows of" };
            assert!(error.to_string().contains(said), "{error:?}");
        }
    }
    let left =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark' AND pid <> pg_backend_pid()";
    support::until_sql(&server, left, "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_fails_the_restore() {
    let server = server();
    tables(&server).await;
    let backup = back_up(Dump::new(conninfo(&server.url("postgres"))).range_bytes(1 << 20), 2).await;
    for mode in ["immediate", "fast"] {
        let target = Load::into(conninfo(&server.url("copy")));
        let restore = backup.try_restore(target, 2);
        let stop = async {
            let copying = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%COPY %large%FROM STDIN%' AND datname = 'copy'";
            support::until_sql(&server, copying, "t").await;
            server.stop(mode).unwrap();
        };
        let (restored, ()) = tokio::join!(restore, stop);
        let error = restored.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{mode}: {error:?}");
        // Nobody can drop a database of a server that is down: the error says that it stays.
        assert!(error.to_string().contains("the unfinished database copy could not be dropped"), "{error}");
        server.start_again().unwrap();
        sql(&server, "postgres", "DROP DATABASE copy").await;
    }
}

async fn found_by(backup: &Logical) -> (Option<String>, String) {
    let report =
        verify(&backup.repository, &backup.record, VerifyOptions::default(), &CancellationToken::new()).await;
    match report {
        Ok(report) if report.is_good() => (None, String::new()),
        Ok(report) => (Some(format!("{report:?}")), String::new()),
        Err(error) => (Some(format!("{error:?}")), String::new()),
    }
}

/// Every object of a backup, damaged in every way: verify names it, and a restore fails and leaves no database.
#[tokio::test(flavor = "multi_thread")]
async fn damage_of_every_kind_is_found() {
    let server = server();
    tables(&server).await;
    let dump = || Dump::new(conninfo(&server.url("postgres"))).range_bytes(4 << 20);
    let first = back_up(dump(), 2).await;
    let objects: Vec<String> =
        first.memory.keys().into_iter().filter(|k| k.contains("/parts/") || k.contains("contents")).collect();
    for kind in ["toc", "copy", "pack", "blobs", "contents"] {
        assert!(objects.iter().any(|key| key.contains(kind)), "{kind}: {objects:?}");
    }
    let mut kinds = std::collections::BTreeSet::new();
    let mut count = 0;
    for key in objects {
        let kind = key
            .rsplit('/')
            .next()
            .unwrap()
            .split('.')
            .nth(usize::from(key.contains("/parts/")))
            .unwrap()
            .to_owned();
        if !kinds.insert(kind) {
            continue;
        }
        for how in ["missing", "cut", "flipped", "longer", "swapped"] {
            let backup = back_up(dump(), 2).await;
            let key = backup.memory.keys().into_iter().find(|k| same_kind(k, &key)).unwrap();
            let other = backup
                .memory
                .keys()
                .into_iter()
                .find(|k| k.contains("/parts/") && !same_kind(k, &key))
                .unwrap();
            let mut others = Vec::new();
            backup.memory.tamper(&other, |bytes| {
                others.clone_from(&bytes);
                Some(bytes)
            });
            backup.memory.tamper(&key, |mut bytes| {
                let middle = bytes.len() / 2;
                match how {
                    "missing" => return None,
                    "cut" => bytes.truncate(middle),
                    "flipped" => bytes[middle] ^= 4,
                    "longer" => bytes.extend(b"more"),
                    _ => bytes = others.clone(),
                }
                Some(bytes)
            });
            let (found, _) = found_by(&backup).await;
            let name = key.rsplit('/').next().unwrap();
            let number =
                name.split('.').next().unwrap().trim_start_matches('0').split('-').next().unwrap().to_owned();
            let found = found.unwrap_or_else(|| panic!("verify does not see that {key} is {how}"));
            assert!(found.contains(name) || found.contains(&number), "{key} {how}: {found}");
            let error = backup.try_restore(Load::into(conninfo(&server.url("copy"))), 2).await.unwrap_err();
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::Integrity | ErrorKind::ObjectMissing),
                "{key} {how}: {error:?}"
            );
            let words = std::iter::once(error.to_string()).chain(error.causes()).collect::<String>();
            assert!(
                words.contains("part") || words.contains(name) || words.contains("contents"),
                "{key} {how}: {error:?}"
            );
            let there = sql(&server, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'copy'").await;
            assert!(there.is_empty(), "{key} {how}: the unfinished database stays");
            count += 1;
        }
    }
    assert!(count >= 25, "{count}");
}

/// Names of objects without the id of the backup and the number of the part.
fn same_kind(a: &str, b: &str) -> bool {
    let kind = |key: &str| {
        key.rsplit('/')
            .next()
            .unwrap()
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '-')
            .to_owned()
    };
    kind(a) == kind(b)
}
