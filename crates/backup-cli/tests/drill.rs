//! Drills: good ones, ones that must fail, and what they leave behind.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
mod forge;
mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use cli::{Pgark, said};
use forge::{forge, forge_table, replace};
use host::{Host, archived};
use pgark::ErrorKind;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::containers;
use support::physical::{folder_for, server_with_checksums};
use support::{left_out, sample, server, sql};

/// What came of a step.
fn step<'a>(record: &'a Value, name: &str) -> &'a Value {
    let phases = record["phases"].as_array().unwrap();
    phases.iter().find(|phase| phase["step"] == name).unwrap_or_else(|| panic!("no {name}: {record:#}"))
}

fn outcome(record: &Value, name: &str) -> String {
    step(record, name)["outcome"].as_str().unwrap().to_owned()
}

/// Fails with this exit code; its record.
fn fails(pgark: &Pgark, args: &[&str], code: u8) -> Value {
    let output = pgark.run(&[&["--json", "drill"], args].concat());
    assert_eq!(output.status.code(), Some(i32::from(code)), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)))
}

fn assert_empty(folder: &str) {
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_physical_backup_with_its_archive() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    let space = folder_for(&server, "space");
    sql(&server, "postgres", &format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await;
    sql(&server, "postgres", "CREATE TABLE t TABLESPACE space AS SELECT n FROM generate_series(1, 1000) n")
        .await;
    host.back_up_with(&server, &["--physical", "--wal", "stream"]);
    archived(&server).await;
    sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1, 500) n").await;
    archived(&server).await;
    let before = host::one(&server, "SELECT clock_timestamp()").await;
    for _ in 0..3 {
        sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1, 100) n").await;
        archived(&server).await;
    }
    let work = host.place("work");
    let drill = |more: &[&str]| host.json(&[&["drill", "--work-dir", &work], more].concat());
    let record = drill(&["--check", "SELECT count(*) = 1800 FROM t"]);
    assert_eq!((&record["good"], &record["place"]), (&json!(true), &json!("this host")), "{record:#}");
    for passed in ["restore", "recover", "checks", "amcheck"] {
        assert_eq!(outcome(&record, passed), "passed", "{record:#}");
    }
    // Without data checksums there is nothing to compare, and it does not say that there was.
    assert_eq!(outcome(&record, "checksums"), "not_done");
    assert_eq!(record["recovered"]["state"], "in production");
    assert!(record["rto_seconds"].as_f64().unwrap() > 0.0);
    assert_empty(&work);
    // It is kept.
    let kept =
        host.path("repo/clusters/main/drills").join(format!("{}.json", record["id"].as_str().unwrap()));
    let kept: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert_eq!((&kept["good"], &kept["rto_seconds"]), (&record["good"], &record["rto_seconds"]));
    assert_eq!(kept["phases"].as_array().unwrap().len(), record["phases"].as_array().unwrap().len());
    // Anybody who can read the repository can read it.
    assert!(!kept.to_string().contains("FROM t") && !kept.to_string().contains("postgres\""), "{kept:#}");

    let record = drill(&["--to-time", &before, "--check", "SELECT count(*) = 1500 FROM t"]);
    assert_eq!(record["good"], true, "{record:#}");
    // A check that is not true fails the drill.
    let output = host.run(&["--json", "drill", "--work-dir", &work, "--check", "SELECT count(*) = 1 FROM t"]);
    assert_eq!(output.status.code(), Some(50), "{}", said(&output));
    // The source's tablespace is as it was, and so is its archive.
    assert!(space.join("PG_15_202209061").exists() || std::fs::read_dir(&space).unwrap().count() > 0);
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    assert_empty(&work);
}

/// A host whose repository is not encrypted.
fn open_host() -> Host {
    let host = Host::new();
    let config = "[repository]\nurl = \"repo\"\n[host]\nstate = \"state\"\n";
    std::fs::write(host.path("pgark.toml"), config).unwrap();
    host.ok(&["init"]);
    host
}

/// A drill that fails; its record.
fn failed_drill(host: &Host, args: &[&str]) -> Value {
    let output = host.run(&[&["--json", "drill"], args].concat());
    assert_eq!(output.status.code(), Some(50), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_physical_backup_has_the_rows_of_a_logical_one() {
    let host = open_host();
    let server = host.server();
    sql(&server, "postgres", &sample(2000)).await;
    let more = "CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS n; CREATE DATABASE shop";
    for one in more.split("; ") {
        sql(&server, "postgres", one).await;
    }
    let physical = host.back_up(&server);
    sql(&server, "postgres", "DELETE FROM people WHERE id % 5 = 0 AND id > 100").await;
    // A transaction that the snapshot does not see, and that is committed right behind it.
    let open = support::connect(&server.url("postgres")).await;
    open.rows(
        "BEGIN; CREATE TABLE later AS SELECT 1 AS n; INSERT INTO people (id, name) VALUES (900001, 'late')",
    )
    .await
    .unwrap();
    let logical = host.back_up_with(&server, &[])["id"].as_str().unwrap().to_owned();
    open.rows("COMMIT").await.unwrap();
    sql(&server, "postgres", "DELETE FROM people WHERE id % 7 = 0 AND id > 100").await;
    archived(&server).await;
    let newer = host.back_up(&server);
    archived(&server).await;
    let work = host.place("work");
    let drill = |more: &[&str]| host.json(&[&["drill", "--work-dir", &work], more].concat());

    // From the newest physical backup before it, up to its snapshot.
    let record = drill(&["--compare", "latest", "--check", "SELECT count(*) = 1620 FROM people"]);
    assert_eq!((record["good"].as_bool(), &record["backup"]), (Some(true), &json!(physical)), "{record:#}");
    assert_eq!(outcome(&record, "compare"), "passed");
    let compared = &record["compared"];
    assert_eq!(
        (&compared["backup"], &compared["same_moment"]),
        (&json!(logical), &json!(true)),
        "{record:#}"
    );
    assert!(compared["rows"].as_u64().unwrap() >= 1620 && compared["databases"] == 1, "{record:#}");
    assert!(step(&record, "compare")["note"].to_string().contains("1 tables of"), "{record:#}");
    let kept =
        host.path("repo/clusters/main/drills").join(format!("{}.json", record["id"].as_str().unwrap()));
    let kept: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert_eq!(kept["compared"], record["compared"]);

    // Somewhere else it tells what differs, and that it may.
    let elsewhere = ["--work-dir", &work, "--compare", &logical, &newer, "--to-backup-end"];
    let record = failed_drill(&host, &elsewhere);
    assert_eq!(record["compared"]["same_moment"], false, "{record:#}");
    let compare = step(&record, "compare");
    assert!(compare["note"].to_string().contains("the moments differ in database postgres: "), "{record:#}");
    assert_eq!(compare["findings"], 1, "{record:#}");
    assert!(compare["found"][0].as_str().unwrap().contains("public.people has "), "{record:#}");
    assert!(host.json(&["show", &newer]).to_string().matches("damaged").count() == 0);

    // What is wrong in one of the two is found, and named, whichever it is.
    let folder = host.path("repo/clusters/main/backups").join(&logical);
    for (field, value, words) in [
        ("rows", json!(1619), "public.people has 1620 rows, and in the backup 1619"),
        ("fingerprint", json!("00000000000000000000000000000007"), "public.people has other rows"),
    ] {
        let before = std::fs::read(folder.join("backup.json")).unwrap();
        let contents = std::fs::read(folder.join("contents.json.zst")).unwrap();
        forge_table(&folder, "people", field, &value);
        let record = failed_drill(&host, &["--work-dir", &work, "--compare", &logical]);
        assert_eq!(
            (outcome(&record, "compare"), &record["compared"]["same_moment"]),
            ("failed".into(), &json!(true))
        );
        assert_eq!(step(&record, "compare")["findings"], 1, "{record:#}");
        assert!(step(&record, "compare")["found"][0].as_str().unwrap().contains(words), "{record:#}");
        std::fs::write(folder.join("backup.json"), before).unwrap();
        std::fs::write(folder.join("contents.json.zst"), contents).unwrap();
    }
    assert_empty(&work);

    // What cannot be compared is said before anything is restored.
    let fails = |args: &[&str], kind, words: &str| {
        let said = host.fails(&[&["drill", "--work-dir", &work], args].concat(), kind);
        assert!(said.contains(words), "{words} is not in {said}");
    };
    fails(&["--compare", &physical], ErrorKind::Usage, "name a logical backup");
    fails(&[&logical, "--compare", &logical], ErrorKind::Usage, "--compare");
    fails(&[&newer, "--compare", &logical], ErrorKind::BackupNotFound, "no backup is from before the target");
}

/// The server commits all the time while the logical backup takes its snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn the_moment_of_a_busy_server_is_found() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    let bench = |args: &[&str]| {
        let mut command = std::process::Command::new(server.bin().join("pgbench"));
        command
            .args(["-h", &server.folder().display().to_string(), "-U", "postgres"])
            .args(args)
            .arg("postgres");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    assert!(bench(&["-i", "-s", "1", "-q"]).status().unwrap().success());
    host.back_up(&server);
    let mut busy = bench(&["-c", "4", "-T", "600"]).spawn().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let id = |record: Value| record["id"].as_str().unwrap().to_owned();
    let whole = id(host.back_up_with(&server, &["--all-databases"]));
    let others: Vec<String> = (0..3).map(|_| id(host.back_up_with(&server, &[]))).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    busy.kill().unwrap();
    busy.wait().unwrap();
    archived(&server).await;
    let work = host.place("work");
    // Of two commits at once, the later one may end first: then no position has what a snapshot between them saw, and it
    // must be said. That it happens to all of them is not to be expected.
    let hit = std::iter::once(whole).chain(others).find(|backup| {
        let output = host.run(&["--json", "drill", "--work-dir", &work, "--compare", backup]);
        let record: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(record["compared"]["rows"].as_u64().unwrap() > 100_000, "{record:#}");
        let same = record["compared"]["same_moment"] == true;
        let told = step(&record, "compare")["note"].to_string().contains("the moments differ in database");
        assert_eq!(told, !same, "{record:#}");
        // What was missed proves nothing.
        assert_eq!(record["good"], true, "{record:#}");
        assert!(same || outcome(&record, "compare") != "failed", "{record:#}");
        same
    });
    assert!(hit.is_some(), "no moment was hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn logical_backups() {
    let server = server();
    sql(&server, "postgres", &sample(2000)).await;
    sql(&server, "postgres", "CREATE ROLE app; CREATE ROLE reader; ALTER TABLE people OWNER TO app").await;
    sql(
        &server,
        "postgres",
        "GRANT SELECT ON adults TO reader; ALTER TABLE people ENABLE ROW LEVEL SECURITY",
    )
    .await;
    sql(&server, "postgres", "CREATE POLICY own ON people FOR SELECT TO reader, app USING (true)").await;
    let pgark = Pgark::new();
    let work = pgark.work_dir();
    let pgark = pgark.with("PGARK_REPO", "repo");
    let db = server.url("postgres");
    pgark.json(&["backup", "--db", &db]);
    let script = pgark
        .write("checks.sql", "SET enable_seqscan = off; SELECT count(*) = 2000 FROM people; SELECT true;");
    let record = pgark.json(&["drill", "--work-dir", &work, "--sql-file", &script]);
    assert_eq!(record["good"], true, "{record:#}");
    for passed in ["restore", "recover", "compare", "checks", "amcheck"] {
        assert_eq!(outcome(&record, passed), "passed", "{record:#}");
    }
    assert!(record["warnings"].to_string().contains("app, reader"), "{record:#}");
    pgark.json(&["backup", "--db", &db, "--all-databases"]);
    let text = pgark.text(&["drill", "--work-dir", &work]);
    assert!(
        text.contains(": good: ") && text.contains("comparison") && text.contains("recovery time"),
        "{text}"
    );
    assert_empty(&work);
    pgark.fails(&["drill", "--kind", "physical", "--work-dir", &work], ErrorKind::BackupNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_containers() {
    if left_out("docker") {
        return;
    }
    for major in [17, 18] {
        let container = containers::start(major).await;
        container.let_replication_in().await;
        let session = support::connect(&container.url("postgres")).await;
        session.rows(&sample(500)).await.unwrap();
        let pgark = Pgark::new();
        let work = pgark.work_dir();
        let pgark = pgark.with("PGARK_REPO", "repo");
        let db = container.url("postgres");
        let tools = containers::tools(major).display().to_string();
        for how in [&["--physical"][..], &["--pg-bin", &tools]] {
            pgark.json(&[&["backup", "--db", &db], how].concat());
            let check = "SELECT count(*) = 500 FROM people";
            let record = pgark.json(&["drill", "--work-dir", &work, "--check", check]);
            assert_eq!(record["good"], true, "{record:#}");
            assert_eq!(record["place"], format!("docker image postgres:{major}"));
            assert_eq!(outcome(&record, "amcheck"), "passed", "{record:#}");
            let own = if how[0] == "--physical" { "checksums" } else { "compare" };
            // They are on by default since 18.
            let expected = if own == "checksums" && major < 18 { "not_done" } else { "passed" };
            assert_eq!(outcome(&record, own), expected, "{record:#}");
            assert_empty(&work);
        }
        assert_eq!(drill_containers(&work), [""; 0]);
    }
}

/// The containers of drills below a folder.
fn drill_containers(work: &str) -> Vec<String> {
    let docker = |args: &[&str]| {
        let output = std::process::Command::new("docker").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let names = docker(&["ps", "--all", "--format", "{{.Names}}", "--filter", "name=pgark-drill-"]);
    let ours = |name: &&str| docker(&["inspect", "--format", "{{.HostConfig.Binds}}", name]).contains(work);
    names.lines().filter(ours).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_backups_are_found() {
    let server = server_with_checksums();
    sql(
        &server,
        "postgres",
        "CREATE TABLE t AS SELECT n, 'needle ' || n AS x FROM generate_series(1, 1000) n",
    )
    .await;
    sql(&server, "postgres", "CHECKPOINT").await;
    let pgark = Pgark::new();
    let work = pgark.work_dir();
    let pgark = pgark.with("PGARK_REPO", "repo");
    let db = server.url("postgres");
    let backup = |how: &[&str]| {
        let made = pgark.json(&[&["backup", "--db", &db, "--compress", "none"], how].concat());
        made["backup"]["id"].as_str().unwrap().to_owned()
    };
    let logical = backup(&[]);
    for kind in ["pack", "copy"] {
        let folder = pgark.path("repo/clusters/main/backups").join(&logical).join("parts");
        let has = std::fs::read_dir(folder).unwrap().flatten();
        let name = format!(".{kind}");
        if has.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(&name)) {
            forge(&pgark, &logical, kind, |bytes| replace(bytes, b"needle 777", b"needle 778"));
        }
    }
    // What the parts hold is looked at by a verification, too.
    let verified = pgark.run(&["--json", "verify", &logical]);
    assert_eq!(verified.status.code(), Some(50), "{}", said(&verified));
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    let finding = &verified["backups"][0]["findings"][0];
    assert!(finding["why"].as_str().unwrap().contains("fingerprint"), "{verified:#}");
    assert!(finding["key"].as_str().unwrap().contains(&format!("{logical}/parts/")), "{verified:#}");
    let record = fails(&pgark, &[&logical, "--work-dir", &work], 50);
    assert_eq!(
        (outcome(&record, "restore"), outcome(&record, "compare")),
        ("passed".into(), "failed".into())
    );
    assert!(step(&record, "compare")["found"].to_string().contains("public.t"), "{record:#}");

    let physical = backup(&["--physical"]);
    forge(&pgark, &physical, "tar", |bytes| replace(bytes, b"needle 777", b"needle 778"));
    let verified = pgark.run(&["verify", &physical]);
    assert_eq!(verified.status.code(), Some(50), "{}", said(&verified));
    for words in ["does not have its checksum", "another checksum than the server gave it"] {
        assert!(said(&verified).contains(words), "{}", said(&verified));
    }
    let record = fails(&pgark, &[&physical, "--work-dir", &work], 50);
    let wrong: Vec<&str> =
        ["amcheck", "checksums"].into_iter().filter(|step| outcome(&record, step) == "failed").collect();
    assert_eq!(wrong, ["amcheck", "checksums"], "{record:#}");
    assert_empty(&work);
    // A part that is damaged without such care ends the restore, and is in the record too.
    let folder = pgark.path("repo/clusters/main/backups").join(&physical).join("parts");
    let part = std::fs::read_dir(folder).unwrap().flatten().next().unwrap().path();
    std::fs::write(&part, b"nothing").unwrap();
    let record = fails(&pgark, &[&physical, "--work-dir", &work], 50);
    assert_eq!(
        (record["error"]["kind"].as_str(), outcome(&record, "restore").as_str()),
        (Some("Integrity"), "failed")
    );
    assert_empty(&work);
}

/// A drill that waits in one of its checks; and its server.
#[allow(clippy::zombie_processes, reason = "the test ends it")]
fn waiting(pgark: &Pgark, work: &str, more: &[&str]) -> (std::process::Child, i32) {
    let args = [&["drill", "--work-dir", work, "--check", "SELECT true FROM pg_sleep(600)"], more].concat();
    let child = pgark.command(&args).spawn().unwrap();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(100), "the drill does not come to its check");
        std::thread::sleep(Duration::from_millis(50));
        let Some(folder) = std::fs::read_dir(work).unwrap().flatten().next() else { continue };
        let pid = std::fs::read_to_string(folder.path().join("data/postmaster.pid")).unwrap_or_default();
        if pid.contains("ready") {
            std::thread::sleep(Duration::from_millis(500));
            return (child, pid.lines().next().unwrap().parse().unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind() {
    let server = server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await;
    let pgark = Pgark::new();
    let work = pgark.work_dir();
    let pgark = pgark.with("PGARK_REPO", "repo");
    pgark.json(&["backup", "--db", &server.url("postgres"), "--physical"]);
    // One that ended and was not waited for yet works nowhere.
    let is_there = |pid: i32| Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok();
    let in_docker: &[&[&str]] = if left_out("docker") { &[&[]] } else { &[&[], &["--docker"]] };
    for more in in_docker {
        let (mut child, pid) = waiting(&pgark, &work, more);
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(i32::from(ErrorKind::Cancelled.code())));
        assert_empty(&work);
        assert!(!more.is_empty() || !is_there(pid));
        // Killed, it leaves its folder, and on this host its server.
        let (mut child, pid) = waiting(&pgark, &work, more);
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 1);
        assert!(!more.is_empty() || is_there(pid));
        let record = pgark.json(&["drill", "--work-dir", &work]);
        assert_eq!(record["good"], true);
        assert_empty(&work);
        assert!(!more.is_empty() || !is_there(pid));
        assert!(left_out("docker") || drill_containers(&work).is_empty());
    }
    // The drill of somebody else is left alone.
    let (mut child, pid) = waiting(&pgark, &work, &[]);
    pgark.json(&["drill", "--work-dir", &work]);
    assert!(is_there(pid));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    assert_empty(&work);
}
