//! Whatever dies in the middle of a backup: never a record, never a success.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgark::postgres::TempServer;
use rustix::process::{Pid, Signal, kill_process};
use support::{left_out, server, sql};

/// A command with nothing of this shell's settings.
fn pgark(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgark"));
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn json(args: &[&str]) -> serde_json::Value {
    let output = pgark(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A database large enough to be in the middle of.
async fn large(server: &TempServer) {
    sql(
        server,
        "postgres",
        "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 30) AS x FROM generate_series(1, 250000) i",
    )
    .await;
}

fn start(server: &TempServer, repo: &str) -> Child {
    pgark(&["backup", "--repo", repo, "--db", &server.url("postgres"), "--compress", "none"]).spawn().unwrap()
}

/// Waits until some of the data is stored and the backup still runs.
fn until_in_the_middle(child: &mut Child, repo: &Path) {
    let begun = Instant::now();
    loop {
        assert!(child.try_wait().unwrap().is_none(), "the backup ended before anything could be killed");
        assert!(begun.elapsed() < Duration::from_mins(1), "nothing is stored");
        let temporaries = std::fs::read_dir(repo.join(".pgark-tmp")).into_iter().flatten().flatten();
        if temporaries.filter_map(|f| f.metadata().ok()).any(|m| m.len() >= 8 << 20) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

/// Without the audit log, which also tells of what failed.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.retain(|path| !path.contains("/audit/"));
    found.sort();
    found
}

fn assert_no_backup(repo: &str) {
    let list = json(&["list", "--repo", repo, "--json"]);
    assert_eq!(list["backups"], serde_json::json!([]), "{list}");
}

/// The `pg_dump` that a pgark started, once it has.
fn child_of(parent: u32) -> Pid {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_mins(1) {
        if let Some(pid) = found_child_of(parent) {
            return pid;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("pgark {parent} has no pg_dump");
}

fn found_child_of(parent: u32) -> Option<Pid> {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        if tail.split_whitespace().nth(1) == Some(&parent.to_string()) && head.contains("pg_dump") {
            return Pid::from_raw(head.split_whitespace().next().unwrap().parse().unwrap());
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pg_dump_is_a_failed_backup() {
    let server = server();
    large(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    // It waits for a lock.
    let holder = server.conninfo("postgres").unwrap().connect().await.unwrap();
    holder.rows("BEGIN; LOCK TABLE t").await.unwrap();
    let child = start(&server, repo.to_str().unwrap());
    let waits = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) \
                 WHERE NOT granted AND query LIKE 'LOCK TABLE%'";
    support::until_sql(&server, waits, "1").await;
    kill_process(child_of(child.id()), Signal::KILL).unwrap();
    let output = finish(child);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(21), "{words}");
    assert!(words.contains("pg_dump was killed by signal 9"), "{words}");
    assert_no_backup(repo.to_str().unwrap());
    assert_eq!(files(&repo), ["pgark.json"], "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pgark_leaves_no_backup_and_is_swept() {
    let server = server();
    large(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let place = repo.to_str().unwrap();
    let mut child = start(&server, place);
    until_in_the_middle(&mut child, &repo);
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    finish(child);
    assert_no_backup(place);
    let list = json(&["list", "--repo", place, "--json"]);
    assert_eq!(list["unfinished"].as_array().unwrap().len(), 1, "{list}");
    let dead = list["unfinished"][0].as_str().unwrap().to_owned();
    // pg_dump ends by itself: nobody reads what it writes.
    let begun = Instant::now();
    while !sql(
        &server,
        "postgres",
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgark' AND query LIKE 'COPY%'",
    )
    .await
    .is_empty()
    {
        assert!(begun.elapsed() < Duration::from_secs(30), "pg_dump goes on without a reader");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The next backup within the grace period leaves the dead run alone; the one after it sweeps.
    let backup = ["backup", "--repo", place, "--db", &server.url("postgres"), "--json"];
    json(&backup);
    assert!(files(&repo).iter().any(|f| f.contains(&dead) && f.ends_with("started.json")));
    json(&[&backup[..], &["--grace", "0"]].concat());
    let left: Vec<String> =
        files(&repo).into_iter().filter(|f| f.contains(&dead) || f.contains("tmp/")).collect();
    assert_eq!(left, [format!("clusters/main/backups/{dead}/backup.json")]);
    let list = json(&["list", "--repo", place, "--json"]);
    assert_eq!(
        (list["backups"].as_array().unwrap().len(), list["unfinished"].as_array().unwrap().len()),
        (2, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_a_failed_backup() {
    let server = server();
    large(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let mut child = start(&server, repo.to_str().unwrap());
    until_in_the_middle(&mut child, &repo);
    server.stop("immediate").unwrap();
    let output = finish(child);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(13), "{words}");
    assert_no_backup(repo.to_str().unwrap());
    assert_eq!(files(&repo), ["pgark.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_failed_backup() {
    // A small file system of its own takes root.
    if left_out("root") {
        return;
    }
    let server = server();
    large(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        assert!(
            Command::new("mount").args(args).status().unwrap().success(),
            "tests of a full disk mount a tmpfs"
        );
    };
    mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs", folder.path().to_str().unwrap()]);
    let repo = folder.path().join("repo");
    let output = finish(start(&server, repo.to_str().unwrap()));
    let left = files(&repo);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let listed = pgark(&["list", "--repo", repo.to_str().unwrap(), "--json"]).output().unwrap();
    assert!(Command::new("umount").arg(folder.path()).status().unwrap().success());
    assert_eq!(output.status.code(), Some(35), "{words}");
    assert!(words.contains("what to do: "), "{words}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("\"backups\": []"));
    assert_eq!(left, ["pgark.json"], "the space is given back");
}

/// The largest resident size of a child, in bytes, and its output.
fn peak(mut command: Command) -> (usize, Output) {
    let child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let reader = std::thread::spawn(move || {
        let mut peak = 0;
        // The file is there without a size once the process is dead.
        while let Some(line) = std::fs::read_to_string(&status)
            .ok()
            .and_then(|s| s.lines().find(|l| l.starts_with("VmHWM")).map(str::to_owned))
        {
            peak = line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024;
            std::thread::sleep(Duration::from_millis(2));
        }
        peak
    });
    let output = finish(child);
    (reader.join().unwrap(), output)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_run_is_what_the_plan_says() {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE small").await;
    sql(
        &server,
        "small",
        "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 10) AS x FROM generate_series(1, 150000) i",
    )
    .await;
    large(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let recipient = support::keys().1;
    for jobs in ["1", "2", "4"] {
        let repo = folder.path().join(jobs);
        let backup = |database: &str| {
            [
                "backup",
                "--repo",
                repo.to_str().unwrap(),
                "--jobs",
                jobs,
                "--recipient",
                &recipient,
                "--json",
                "--db",
                &server.url(database),
            ]
            .map(str::to_owned)
        };
        let args = backup("postgres");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let plan = json(&[&args[..], &["--dry-run"]].concat());
        let plan = usize::try_from(plan["memory_total"].as_u64().unwrap()).unwrap();
        let mut peaks = Vec::new();
        for database in ["small", "postgres"] {
            let args = backup(database);
            let (peak, output) = peak(pgark(&args.iter().map(String::as_str).collect::<Vec<_>>()));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(
                peak > 1 << 20 && peak <= plan,
                "jobs {jobs}, {database}: {peak} bytes, the plan says {plan}"
            );
            peaks.push(peak);
        }
        println!("jobs {jobs}: plan {plan}, small and large database {peaks:?}");
    }
}
