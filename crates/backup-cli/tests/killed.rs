//! Commands that are killed at random moments, many times: what was done stays whole, and the next one goes on.

#![allow(clippy::unwrap_used, missing_docs)]

mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use host::{Host, Receiving, archived, caught_up, one, until};
use pgark::postgres::{TempServer, TempServerOptions};
use rustix::process::{Pid, Signal, kill_process};
use support::dice::Dice;
use support::{connect, fingerprint, sample, server_with, sql};

/// Inserts numbers, one a transaction, until it is told to stop; how many commits returned.
struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    /// Now and then it runs another statement as well.
    fn start(server: &TempServer, every: u32, also: &'static str) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let connection = server.conninfo("postgres").unwrap();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&committed));
        let task = tokio::spawn(async move {
            let session = connection.connect().await.unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let n = counted.load(Ordering::Relaxed) + 1;
                // A server that is killed ends it.
                if session.rows(&format!("INSERT INTO t VALUES ({n})")).await.is_err() {
                    return;
                }
                counted.store(n, Ordering::Relaxed);
                if n.is_multiple_of(every) {
                    session.rows(also).await.unwrap();
                }
            }
        });
        Self { stop, committed, task }
    }

    fn committed(&self) -> u32 {
        self.committed.load(Ordering::Relaxed)
    }

    async fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.committed.load(Ordering::Relaxed)
    }
}

/// The processes of a host that push, foreground and background.
fn pushing(host: &Host) -> Vec<Pid> {
    let program = host.place("pgark");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(program.as_bytes()) && line.windows(5).any(|word| word == b"push\0") {
            found.extend(Pid::from_raw(number));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_killed_loses_nothing() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    // PostgreSQL starts its archiver anew, after ten seconds, where the command dies of a signal: a shell stands
    // between them, so that there is time for many deaths.
    let script = host.path("push.sh");
    let text = format!(
        "#!/bin/sh\nwhile :; do {} wal push \"$1\"; code=$?; [ $code -eq 137 ] || exit $code; done\n",
        host.program()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = host.server_with(&[&format!("archive_command = '{} \"%p\"'", script.display())]);
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    let backup = host.back_up(&server);
    let writer = Writer::start(&server, 40, "SELECT pg_switch_wal()");
    let (begun, mut killed, mut ahead) = (Instant::now(), 0, 0);
    while begun.elapsed() < Duration::from_secs(12) {
        tokio::time::sleep(dice.time(Duration::from_millis(60))).await;
        let found = pushing(&host);
        let Some(victim) = found.get(dice.below(found.len())) else { continue };
        let line = std::fs::read(format!("/proc/{}/cmdline", victim.as_raw_nonzero())).unwrap_or_default();
        ahead += u32::from(line.windows(12).any(|word| word == b"--background"));
        // It may have ended just now.
        killed += u32::from(kill_process(*victim, Signal::KILL).is_ok());
    }
    let committed = writer.stop().await;
    archived(&server).await;
    println!("{killed} were killed, {ahead} of them in the background; {committed} commits");
    assert!(killed > 30 && ahead > 3, "{killed}, {ahead}");
    until(&server, "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0").await;
    let verified = host.json(&["wal", "verify"]);
    assert_eq!(verified["good"], true, "{verified}");
    assert_eq!(verified["archive"]["timelines"][0]["runs"].as_array().unwrap().len(), 1, "{verified}");
    let recovered = host.recover(&server, "recovered", &[]).await;
    assert_eq!(
        one(&recovered, "SELECT count(DISTINCT n) || ' ' || max(n) FROM t").await,
        format!("{committed} {committed}")
    );

    // What they left is swept by a backup, once it is old enough. The archiver pushes beside it: what is written at
    // this moment is none of it.
    while !pushing(&host).is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = host.files("repo/.pgark-tmp");
    host.back_up_with(&server, &["--physical", "--grace", "0"]);
    let still: Vec<String> =
        host.files("repo/.pgark-tmp").into_iter().filter(|file| left.contains(file)).collect();
    assert_eq!(still, [""; 0], "of {left:?}");
    host.ok(&["verify", &backup]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_killed_loses_nothing_that_was_acknowledged() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    host.back_up(&server);
    let mut receiving = Receiving::start(&host, &server);
    caught_up(&server).await;
    sql(&server, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'pgark'").await;
    sql(&server, "postgres", "SELECT pg_reload_conf()").await;
    until(&server, "SELECT sync_state FROM pg_stat_replication", "sync").await;
    let writer = Writer::start(&server, 25, "SELECT pg_switch_wal()");
    let mut rounds = 0;
    for round in 0..25 {
        let before = writer.committed();
        // Some die before they have connected, some in the middle of many commits.
        let longest = if round % 5 == 0 { 80 } else { 1200 };
        tokio::time::sleep(dice.time(Duration::from_millis(longest))).await;
        rounds += u32::from(writer.committed() > before);
        drop(receiving);
        receiving = Receiving::start(&host, &server);
    }
    let begun = Instant::now();
    let before = writer.committed();
    while writer.committed() < before + 5 {
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(dice.time(Duration::from_millis(500))).await;
    // Everything but the store dies at a random moment.
    drop(receiving);
    let postmaster = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let postmaster: i32 = postmaster.lines().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(postmaster).unwrap(), Signal::KILL).unwrap();
    let acknowledged = writer.stop().await;
    println!("{acknowledged} commits, in {rounds} of 25 rounds some");
    assert!(rounds > 5 && acknowledged > 20, "{acknowledged} commits, {rounds} rounds");
    std::fs::remove_dir_all(server.data().join("pg_wal")).unwrap();
    drop(server);

    let verified = host.json(&["wal", "verify"]);
    assert_eq!(verified["good"], true, "{verified}");
    let other = server_with(&TempServerOptions::default());
    let recovered = host.recover(&other, "recovered", &[]).await;
    let newest: u32 = one(&recovered, "SELECT max(n) FROM t").await.parse().unwrap();
    assert!(newest >= acknowledged, "{acknowledged} commits were acknowledged, {newest} are there");
    assert_eq!(one(&recovered, "SELECT count(DISTINCT n) = max(n) FROM t").await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_still_in_use_is_waited_for() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    let first = Receiving::start(&host, &server);
    until(&server, "SELECT active FROM pg_replication_slots", "t").await;
    // Its host has lost its power: the server does not know yet.
    kill_process(first.pid(), Signal::STOP).unwrap();
    let second = Receiving::start(&host, &server);
    let log = || std::fs::read_to_string(host.path("receive.log")).unwrap();
    let begun = Instant::now();
    while !log().contains("trying again") {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(first);
    sql(&server, "postgres", "CREATE TABLE t (n int)").await;
    caught_up(&server).await;
    second.end();
}

/// What a run that was killed may leave for a sweep, and nothing else: no backup, no slot.
fn assert_only_whole_backups(host: &Host, committed: &[String]) {
    let listed = host.json(&["list"]);
    let ids: Vec<&str> =
        listed["backups"].as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap()).collect();
    assert_eq!(ids, committed, "{listed}");
}

/// The block maps on the host are those of backups that committed.
fn assert_maps(host: &Host, committed: &[String]) {
    let ends = |file: &str| Path::new(file).extension().is_some_and(|ending| ending == "tmp");
    for file in host.files("state").iter().filter(|file| file.contains("/maps/") && !ends(file)) {
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        assert!(name == "key" || committed.iter().any(|id| id == name), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_killed_is_none() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", &sample(2000)).await;
    let large =
        "CREATE TABLE large AS SELECT n, repeat(md5(n::text), 10) AS x FROM generate_series(1, 60000) n";
    sql(&server, "postgres", large).await;
    archived(&server).await;
    let url = server.url("postgres");
    let begun = Instant::now();
    let mut committed = vec![host.back_up(&server)];
    let whole = begun.elapsed();
    let mut killed = 0;
    for (round, how) in [
        &["--physical"][..],
        &["--incremental"],
        &["--physical", "--wal", "archive"],
        &["--incremental", "--wal", "archive"],
    ]
    .iter()
    .cycle()
    .take(16)
    .enumerate()
    {
        sql(&server, "postgres", &format!("UPDATE large SET n = n + 1 WHERE n % 16 = {round}")).await;
        let mut command = host.command(&[&["--json", "backup", "--db", &url], *how].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(dice.time(whole * 2)).await;
        let dead = child.try_wait().unwrap().is_none() && {
            kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
            !child.wait().unwrap().success()
        };
        // It may have committed before it died: then it is whole.
        let listed = host.json(&["list"]);
        let listed = listed["backups"].as_array().unwrap();
        if listed.len() > committed.len() {
            let id = listed.last().unwrap()["id"].as_str().unwrap().to_owned();
            host.ok(&["verify", &id]);
            committed.push(id);
        } else {
            killed += u32::from(dead);
            assert!(dead, "it ended, and is not there");
        }
        assert_only_whole_backups(&host, &committed);
        assert_maps(&host, &committed);
        until(&server, "SELECT count(*) FROM pg_replication_slots", "0").await;
    }
    println!("{killed} were killed, {} committed", committed.len());
    assert!(killed > 4, "{killed}");

    // The next one does not care; it builds on a backup that is whole, and sweeps.
    let made = host.back_up_with(&server, &["--incremental", "--grace", "0"]);
    assert!(committed.iter().any(|id| made["parent"] == **id), "{made}");
    committed.push(made["id"].as_str().unwrap().to_owned());
    assert_only_whole_backups(&host, &committed);
    assert_eq!(host.json(&["list"])["unfinished"].as_array().unwrap().len(), 0);
    assert_eq!(host.files("repo/.pgark-tmp"), [""; 0]);
    for file in host.files("repo/clusters/main/backups") {
        let (id, rest) = file.split_once('/').unwrap();
        assert!(rest == "backup.json" || committed.iter().any(|whole| whole == id), "{file} stays");
    }
    host.ok(&["verify", "--all"]);
    let recovered = host.recover(&server, "recovered", &["--to-backup-end"]).await;
    let (source, copy) = (connect(&url).await, connect(&recovered.url("postgres")).await);
    assert_eq!(fingerprint(&source).await, fingerprint(&copy).await);
}

/// Clients that come back at once whenever they are sent away, and read.
struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU32>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Clients {
    fn start(server: &TempServer, database: &str) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let connection = server.conninfo(database).unwrap();
        let task = |_| {
            let (connection, stop, answers) = (connection.clone(), Arc::clone(&stop), Arc::clone(&answers));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(session) = connection.connect().await else {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        continue;
                    };
                    while session.rows("SELECT count(*) FROM large").await.is_ok() {
                        answers.fetch_add(1, Ordering::Relaxed);
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            })
        };
        let tasks = (0..3).map(task).collect();
        Self { stop, answers, tasks }
    }

    async fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.answers.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_leaves_a_database_that_works() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE DATABASE shop").await;
    sql(&server, "shop", &sample(2000)).await;
    let large = "CREATE TABLE large AS SELECT n, repeat(md5(n::text), 10) AS x FROM generate_series(1, 60000) n; \
         CREATE INDEX ON large (n); CREATE INDEX ON large (x)";
    sql(&server, "shop", large).await;
    let old = fingerprint(&connect(&server.url("shop")).await).await;
    host.ok(&["backup", "--db", &server.url("shop")]);
    let change = "DELETE FROM large WHERE n % 2 = 0; CREATE TABLE since AS SELECT 1 AS x";
    sql(&server, "shop", change).await;
    let new = fingerprint(&connect(&server.url("shop")).await).await;
    let (live, copy) = (server.url("shop"), server.url("copy"));
    let swap = ["restore", "--into", &live, "--swap", "--end-sessions", "--yes"];
    let into_new = ["restore", "--into", &copy, "--yes"];
    let databases = async |like: &str| {
        let query = format!("SELECT datname FROM pg_database WHERE datname LIKE '{like}'");
        let rows = sql(&server, "postgres", &query);
        rows.await.into_iter().map(|row| row[0].clone().unwrap()).collect::<Vec<_>>()
    };
    let clients = Clients::start(&server, "shop");
    let begun = Instant::now();
    host.ok(&swap);
    let whole = begun.elapsed();
    sql(&server, "shop", change).await;

    let (mut killed, mut swapped) = (0, 0);
    for round in 0..24 {
        let mut command = host.command(if round % 4 == 0 { &into_new } else { &swap });
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Most of them near the end, where the names change.
        let (shortest, longest) =
            if round % 4 == 1 { (Duration::ZERO, whole) } else { (whole / 2, whole * 2 / 3) };
        tokio::time::sleep(shortest + dice.time(longest)).await;
        killed += u32::from(
            child.try_wait().unwrap().is_none() && {
                kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
                !child.wait().unwrap().success()
            },
        );
        // One or the other, as a whole, and it lets everybody in. Who connects while the server still renames is told
        // that it is gone.
        let begun = Instant::now();
        let session = loop {
            match server.conninfo("shop").unwrap().connect().await {
                Ok(session) => break session,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let there = fingerprint(&session).await;
        assert!(there == old || there == new, "round {round}: {there:?}");
        if there == old {
            swapped += 1;
            session.rows(change).await.unwrap();
        }
        if !databases("copy").await.is_empty() {
            let said = host.run(&into_new);
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            // It may have been killed before it had made anything, or not at all.
            assert!(said.is_empty() || said.contains("exists and is not empty"), "{said}");
            sql(&server, "postgres", "DROP DATABASE copy WITH (FORCE)").await;
        }
        // The last one stays, to be told of.
        let left = databases("shop\\_pgark\\_%").await;
        for left in left.iter().take(left.len().saturating_sub(1)) {
            sql(&server, "postgres", &format!("DROP DATABASE {left} WITH (FORCE)")).await;
        }
    }
    println!("{killed} of 24 were killed, {swapped} had swapped");
    assert!(killed > 4 && swapped > 0, "{killed}, {swapped}");
    let left = databases("shop\\_pgark\\_new%").await;
    let done = host.run(&swap);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        done.status.success() && left.iter().all(|left| said.contains(&format!("DROP DATABASE \"{left}\""))),
        "{said}"
    );
    assert!(clients.stop().await > 100, "they were let in");
    assert_eq!(fingerprint(&connect(&live).await).await, old);
}
