//! Databases that change while they are dumped: a whole table or an error, never a hole.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgark::logical::Dump;
use pgark::postgres::{TempServer, TempServerOptions, Tools};
use pgark::{ErrorKind, Event, Observer};
use support::containers::{self, PgContainer};
use support::round_trip::{Logical, back_up, try_back_up, watched};
use support::{connect, conninfo, left_out, server, server_with, sql};

/// Statements in a session of their own, from a thread that may block.
fn run(url: &str, statements: &str) -> Result<(), String> {
    let (url, statements) = (url.to_owned(), statements.to_owned());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let session = conninfo(&url).connect().await.map_err(|e| e.to_string())?;
            for statement in statements.split(";;") {
                session.rows(statement).await.map_err(|e| e.to_string())?;
            }
            Ok(())
        })
    });
    thread.join().unwrap()
}

/// Runs something when a step begins.
struct AtStep<F> {
    step: &'static str,
    times: AtomicU32,
    run: F,
}

impl<F: Fn() + Send + Sync> Observer for AtStep<F> {
    fn event(&self, event: &Event) {
        let begins = match event {
            Event::Step { what } => what == self.step,
            // The part of the table itself, where some of its rows have been read.
            Event::PartOpened { name, .. } => self.step == "reading rows" && name.starts_with("public.t"),
            _ => false,
        };
        if begins && self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            (self.run)();
        }
    }
}

/// What may happen to a table that is not MVCC-safe, or that looks like it.
const CHANGES: [&str; 16] = [
    "TRUNCATE t",
    "ALTER TABLE t ALTER n TYPE bigint",
    "ALTER TABLE t SET UNLOGGED",
    "ALTER TABLE t ADD COLUMN r float8 DEFAULT random()",
    "BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n int, m int, x text); COMMIT",
    "BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE other RENAME TO t; ALTER TABLE t_old RENAME TO other; COMMIT",
    "DROP TABLE t",
    "CLUSTER t USING t_pkey",
    ";;VACUUM FULL t",
    "ALTER TABLE parted DETACH PARTITION t_part",
    "ALTER TABLE t DROP COLUMN n, ADD COLUMN n int",
    "BEGIN; ALTER TABLE t RENAME n TO was_n; ALTER TABLE t RENAME m TO n; ALTER TABLE t RENAME was_n TO m; COMMIT",
    "CREATE SCHEMA moved; ALTER TABLE t SET SCHEMA moved",
    "DELETE FROM t;;VACUUM t",
    "REINDEX TABLE t",
    "ALTER TABLE t ALTER COLUMN x SET STORAGE PLAIN, ADD CHECK (n >= 0), ADD COLUMN late int DEFAULT 5",
];

const ROWS: u32 = 6000;

/// A server, here or in a container.
enum Place {
    Here(TempServer),
    Container(Box<PgContainer>),
}

impl Place {
    fn here() -> Self {
        Self::Here(server())
    }

    fn url(&self, database: &str) -> String {
        match self {
            Self::Here(server) => server.url(database),
            Self::Container(container) => container.url(database),
        }
    }

    fn tools(&self) -> Tools {
        match self {
            Self::Here(_) => Tools::installed(),
            Self::Container(container) => Tools::in_folder(containers::tools(container.major)),
        }
    }

    async fn sql(&self, database: &str, text: &str) -> Vec<Vec<Option<String>>> {
        connect(&self.url(database)).await.rows(text).await.unwrap()
    }
}

async fn tables(place: &Place, database: &str) {
    place.sql("postgres", &format!("CREATE DATABASE {database}")).await;
    let text = format!(
        "CREATE TABLE t (id int PRIMARY KEY, n int, m int, x text);
         INSERT INTO t SELECT i, i, -i, repeat(md5(i::text), 5) FROM generate_series(1, {ROWS}) i;
         CREATE TABLE other (LIKE t INCLUDING ALL); INSERT INTO other SELECT id, 7, 7, 'other' FROM t WHERE id < 10;
         CREATE TABLE parted (id int) PARTITION BY LIST (id); CREATE TABLE t_part PARTITION OF parted FOR VALUES IN (1);
         INSERT INTO parted SELECT 1 FROM generate_series(1, 500)"
    );
    place.sql(database, &text).await;
}

/// What is in the tables; of one that is not there nothing.
async fn sums(place: &Place, database: &str) -> Vec<String> {
    let mut all = Vec::new();
    for table in ["t", "other", "t_part", "moved.t"] {
        let known = format!("SELECT to_regclass('{table}') IS NOT NULL");
        if place.sql(database, &known).await != [[Some("t".to_owned())]] {
            continue;
        }
        let columns = if table == "t_part" { "id" } else { "id, n, m, x" };
        let text = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(row({columns})::text, 1)), 0) FROM {table}"
        );
        all.push(format!("{table} {:?}", place.sql(database, &text).await));
    }
    all
}

async fn restored(place: &Place, backup: &Logical, name: &str) -> Vec<String> {
    backup.restore(&place.url(name), place.tools()).await;
    sums(place, name).await
}

/// One change at one step of a backup: what is restored is what was there before, or what is there afterwards.
async fn one(place: &Place, number: usize, step: &'static str, change: &str, times: u32) {
    let name = format!("c{number}_{}_{times}", step.replace(' ', "_"));
    tables(place, &name).await;
    let url = place.url(&name);
    let before = sums(place, &name).await;
    let outcome = Arc::new(Mutex::new(String::new()));
    let (said, there, change_text) = (Arc::clone(&outcome), url.clone(), change.to_owned());
    let observer = AtStep {
        step,
        times: AtomicU32::new(times),
        run: move || {
            // What is locked must not hang the test.
            let said_now = run(&there, &format!("SET lock_timeout = '300ms';;{change_text}"));
            *said.lock().unwrap() = format!("{said_now:?}");
        },
    };
    let dump = Dump::new(conninfo(&url)).tools(place.tools()).range_bytes(64 * 1024);
    let (repository, memory, summary) = try_back_up(dump, 2, Arc::new(observer)).await;
    let after = sums(place, &name).await;
    let said = outcome.lock().unwrap().clone();
    let what = format!("{change} at {step}: {said}");
    assert!(!said.is_empty(), "{what}: never came to it");
    match summary {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error:?}");
            assert_eq!(support::left(&memory), ["pgark.json"], "{what}");
            assert!(times > 1 || said.starts_with("Ok"), "{what}: {error:?}");
            println!("{what}: {error}");
        }
        Ok(summary) => {
            let record = repository.record(&summary.backup.cluster, &summary.backup.id).await.unwrap();
            let backup = Logical { repository, memory, summary, record };
            let found = restored(place, &backup, &format!("r_{name}")).await;
            assert!(found == before || found == after, "{what}\n{found:?}\n{before:?}\n{after:?}");
            println!("{what}: as {}", if found == before { "before" } else { "after" });
            place.sql("postgres", &format!("DROP DATABASE r_{name}")).await;
        }
    }
    place.sql("postgres", &format!("DROP DATABASE {name}")).await;
}

/// At a step of the first attempt: the second one sees the table as it is then.
async fn every_change_at(place: &Place, steps: &[&'static str]) {
    for step in steps {
        for (number, change) in CHANGES.iter().enumerate() {
            one(place, number, step, change, 1).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_before_they_are_listed() {
    every_change_at(&Place::here(), &["reading the definitions"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_before_they_are_locked() {
    every_change_at(&Place::here(), &["locking the tables"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_wanted_while_they_are_copied() {
    let place = Place::here();
    every_change_at(&place, &["copying"]).await;
    for (number, change) in CHANGES.iter().enumerate().filter(|(number, _)| [0, 6, 8, 13].contains(number)) {
        one(&place, number, "reading rows", change, 1).await;
    }
}

/// The same on other versions.
async fn every_change_in_a_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let place = Place::Container(Box::new(containers::start(major).await));
    every_change_at(&place, &["reading the definitions", "locking the tables", "copying"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_17() {
    every_change_in_a_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_18() {
    every_change_in_a_container(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_at_every_attempt_fails_the_backup() {
    let server = Place::here();
    tables(&server, "busy").await;
    let url = server.url("busy");
    let place = url.clone();
    let observer = AtStep {
        step: "locking the tables",
        times: AtomicU32::new(100),
        run: move || run(&place, "BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 1, 1, 'x'); COMMIT").unwrap(),
    };
    let (_, memory, summary) = try_back_up(Dump::new(conninfo(&url)), 2, Arc::new(observer)).await;
    let error = summary.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.to_string().contains("public.t ") && error.hint().unwrap().contains("migration"),
        "{error:?}"
    );
    assert_eq!(support::left(&memory), ["pgark.json"]);
}

/// Somebody waits for a table alone, longer than the backup takes: no session of ours may wait behind it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_table_alone_does_not_stop_the_backup() {
    let server = Place::here();
    for (number, step) in ["copying", "reading rows"].into_iter().enumerate() {
        for (kind, wanted) in ["t", "other", "t_part"].into_iter().enumerate() {
            let name = format!("w{number}_{kind}");
            tables(&server, &name).await;
            let before = sums(&server, &name).await;
            let url = server.url(&name);
            let truncated = Arc::new(AtomicBool::new(false));
            let (done, place) = (Arc::clone(&truncated), url.clone());
            let observer = AtStep {
                step,
                times: AtomicU32::new(1),
                run: move || {
                    let (done, place) = (Arc::clone(&done), place.clone());
                    std::thread::spawn(move || {
                        run(&place, &format!("TRUNCATE {wanted}")).unwrap();
                        done.store(true, Ordering::SeqCst);
                    });
                    // It waits by now, or it has it.
                    std::thread::sleep(Duration::from_millis(300));
                },
            };
            let backup =
                watched(Dump::new(conninfo(&url)).range_bytes(64 * 1024), 2, Arc::new(observer)).await;
            assert_eq!(restored(&server, &backup, &format!("r_{name}")).await, before);
            support::until(|| truncated.load(Ordering::SeqCst), "it gets the table").await;
        }
    }
}

/// Money goes from account to account, and none is lost: in every snapshot there is as much of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bank_stays_in_balance() {
    let mut options = TempServerOptions::default();
    options.settings = vec!["autovacuum_naptime = 1".into(), "autovacuum_vacuum_threshold = 5".into()];
    let server = server_with(&options);
    let url = server.url("postgres");
    let schema = "CREATE TABLE accounts (id int PRIMARY KEY, branch int, money bigint, filler text) WITH (fillfactor = 60);
         INSERT INTO accounts SELECT i, i % 7, 1000, repeat('x', 150) FROM generate_series(1, 20000) i;
         CREATE INDEX ON accounts (branch);
         CREATE TABLE history (id bigserial, amount int, a int, b int, note text)";
    sql(&server, "postgres", schema).await;
    let stop = Arc::new(AtomicBool::new(false));
    let transfers = Arc::new(AtomicU32::new(0));
    let mut bankers = Vec::new();
    for banker in 0..4 {
        let (stop, url, transfers) = (Arc::clone(&stop), url.clone(), Arc::clone(&transfers));
        bankers.push(tokio::spawn(async move {
            let session = conninfo(&url).connect().await.unwrap();
            let mut dice = support::dice::Dice::new();
            while !stop.load(Ordering::Relaxed) {
                let (a, b, amount) = (1 + dice.below(20000), 1 + dice.below(20000), dice.below(500));
                let branch = if banker == 0 { ", branch = branch + 1" } else { "" };
                let (first, second) = (a.min(b), a.max(b));
                // An account that closes while its row is waited for would not be found: nobody else has it meanwhile.
                let alone = |id: usize| format!("SELECT pg_advisory_xact_lock({id})");
                let both = format!("{}; {}", alone(first), alone(second));
                let text = format!(
                    "BEGIN; {both}; UPDATE accounts SET money = money {} {amount}{branch} WHERE id = {first};
                     UPDATE accounts SET money = money {} {amount} WHERE id = {second};
                     INSERT INTO history (amount, a, b, note) VALUES ({amount}, {first}, {second}, repeat(md5('{a}'), 10)); COMMIT",
                    if first == second { "+ 0 *" } else { "-" },
                    if first == second { "+ 0 *" } else { "+" },
                );
                session.rows(&text).await.unwrap();
                transfers.fetch_add(1, Ordering::Relaxed);
                // Some accounts close, and open again with as much: their rows are elsewhere afterwards.
                if dice.below(20) == 0 {
                    let text = format!(
                        "WITH gone AS (DELETE FROM accounts WHERE id = {a} RETURNING *) INSERT INTO accounts SELECT -id, branch, money, filler FROM gone;
                         UPDATE accounts SET id = -id WHERE id = -{a}"
                    );
                    session.rows(&format!("BEGIN; {}; {text}; COMMIT", alone(a))).await.unwrap();
                }
            }
        }));
    }
    let vacuum = {
        let (stop, url) = (Arc::clone(&stop), url.clone());
        tokio::spawn(async move {
            let session = conninfo(&url).connect().await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                session.rows("VACUUM accounts").await.unwrap();
                session.rows("VACUUM history").await.unwrap();
            }
        })
    };
    for round in 0..6 {
        let before = transfers.load(Ordering::Relaxed);
        let backup = back_up(Dump::new(conninfo(&url)).range_bytes(32 * 1024), 3).await;
        let during = transfers.load(Ordering::Relaxed) - before;
        let contents = backup.contents().await;
        let accounts = contents.databases[0].tables.iter().find(|t| t.name == "accounts").unwrap().clone();
        assert!(accounts.chunks.len() > 30, "{}", accounts.chunks.len());
        assert_eq!(accounts.rows, 20000);
        let name = format!("bank{round}");
        backup.restore(&server.url(&name), Tools::installed()).await;
        let money = "SELECT sum(money) FROM accounts";
        assert_eq!(sql(&server, "postgres", money).await, [[Some("20000000".to_owned())]], "the test's own");
        let found = sql(
            &server,
            &name,
            "SELECT count(*), count(DISTINCT id), sum(money), min(id), max(id) FROM accounts",
        )
        .await;
        let wanted = ["20000", "20000", "20000000", "1", "20000"];
        assert_eq!(found, [wanted.map(|text| Some(text.to_owned()))], "round {round}");
        // Each account has what its history says.
        let wrong = "SELECT count(*) FROM accounts c LEFT JOIN (SELECT id, sum(amount) AS moved FROM
             (SELECT a AS id, -amount AS amount FROM history WHERE a <> b UNION ALL SELECT b, amount FROM history WHERE a <> b) h
             GROUP BY 1) h USING (id) WHERE money <> 1000 + coalesce(moved, 0)";
        assert_eq!(sql(&server, &name, wrong).await, [[Some("0".to_owned())]], "round {round}");
        println!("round {round}: {during} transfers, {} ranges", accounts.chunks.len());
        assert!(during > 0);
    }
    stop.store(true, Ordering::Relaxed);
    for task in bankers {
        task.await.unwrap();
    }
    vacuum.await.unwrap();
}

/// An index is rebuilt, its lock is held for longer than ours are waited for, and the backup waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_rebuilt_is_waited_for() {
    let server = Place::here();
    for (number, step) in ["copying", "reading rows"].into_iter().enumerate() {
        let name = format!("i{number}");
        tables(&server, &name).await;
        let before = sums(&server, &name).await;
        let url = server.url(&name);
        let place = url.clone();
        let observer = AtStep {
            step,
            times: AtomicU32::new(1),
            run: move || {
                let place = place.clone();
                std::thread::spawn(move || {
                    run(&place, "BEGIN;;REINDEX TABLE t;;SELECT pg_sleep(7);;COMMIT").unwrap();
                });
                std::thread::sleep(Duration::from_millis(300));
            },
        };
        let backup = watched(Dump::new(conninfo(&url)).range_bytes(64 * 1024), 2, Arc::new(observer)).await;
        assert_eq!(restored(&server, &backup, &format!("r_{name}")).await, before);
    }
}

/// Somebody has a table alone when it is to be locked: the backup begins again, and waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_has_is_waited_for() {
    let server = Place::here();
    tables(&server, "locked").await;
    let url = server.url("locked");
    let holder = conninfo(&url).connect().await.unwrap();
    let pid = holder.value("SELECT pg_backend_pid()").await.unwrap().unwrap();
    let held = Arc::new(tokio::sync::Mutex::new(holder));
    // pg_dump has released its locks, and the backup's own are about to be taken.
    let (runtime, session) = (tokio::runtime::Handle::current(), Arc::clone(&held));
    let observer = AtStep {
        step: "locking the tables",
        times: AtomicU32::new(1),
        run: move || {
            let (runtime, session) = (runtime.clone(), Arc::clone(&session));
            let thread = std::thread::spawn(move || {
                runtime.block_on(async { session.lock().await.rows("BEGIN; LOCK TABLE t").await.unwrap() });
            });
            thread.join().unwrap();
        },
    };
    let backup =
        tokio::spawn(async move { try_back_up(Dump::new(conninfo(&url)), 2, Arc::new(observer)).await.2 });
    tokio::time::sleep(Duration::from_secs(8)).await;
    // pg_dump of the second attempt waits for it: a minute. Given back, the backup goes on.
    let waits = server.sql("postgres", "SELECT count(*) FROM pg_locks WHERE NOT granted").await;
    assert_eq!(waits, [[Some("1".to_owned())]], "{pid}");
    held.lock().await.rows("ROLLBACK").await.unwrap();
    backup.await.unwrap().unwrap();
}
