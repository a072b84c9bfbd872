//! A repository in several places, by the command.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::process::Stdio;
use std::time::Duration;

use cli::{Pgark, said};
use pgark::ErrorKind;
use pgark::postgres::TempServer;
use rustix::process::{Pid, Signal, kill_process};
use support::dice::Dice;
use support::{connect, fingerprint, sample, server, sql};

/// As if the file system of a place were taken away, and be back.
fn take_away(pgark: &Pgark, place: &str) {
    std::fs::rename(pgark.path(place), pgark.path(&format!("{place}.away"))).unwrap();
}

fn bring_back(pgark: &Pgark, place: &str) {
    std::fs::rename(pgark.path(&format!("{place}.away")), pgark.path(place)).unwrap();
}

/// The name of the segment that is written now, when it is full.
async fn full_segment(server: &TempServer) -> String {
    sql(server, "postgres", "CREATE TABLE IF NOT EXISTS t (x int); INSERT INTO t VALUES (1)").await;
    // Behind the record of a commit: at the beginning of a segment the name would be that of the one before.
    let name = sql(server, "postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    sql(server, "postgres", "SELECT pg_switch_wal()").await;
    name[0][0].clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_goes_where_there_is_a_copy() {
    let server = server();
    let pgark = Pgark::new();
    let (a, b) = (pgark.place("a"), pgark.place("b"));
    let both = ["--repo", &a, "--repo", &b];
    pgark.text(&[&["init"], &both[..]].concat());
    let pg_wal = server.data().join("pg_wal");
    let mut names = Vec::new();
    for away in ["b", "a", ""] {
        let name = full_segment(&server).await;
        if !away.is_empty() {
            take_away(&pgark, away);
        }
        let path = pg_wal.join(&name).display().to_string();
        pgark.text(&[&["wal", "push", &path, "--ahead", "0"], &both[..]].concat());
        if !away.is_empty() {
            assert!(!pgark.path(away).exists(), "it was written to the place of a copy that is away");
            bring_back(&pgark, away);
        }
        names.push(name);
    }
    let fetch = |name: &str, places: &[&str]| {
        let to = pgark.place("RECOVERYXLOG");
        let output = pgark.run(&[&["wal", "fetch", name, &to, "--ahead", "0"], places].concat());
        let read = std::fs::read(&to).unwrap_or_default();
        let _ = std::fs::remove_file(&to);
        (output.status.code(), read)
    };
    for (name, away) in [(&names[0], "a"), (&names[1], "b"), (&names[0], "b"), (&names[2], "a")] {
        take_away(&pgark, away);
        let (code, bytes) = fetch(name, &both);
        let there = std::fs::read(pg_wal.join(name)).unwrap();
        let only_away_has_it = (name == &names[0] && away == "a") || (name == &names[1] && away == "b");
        if only_away_has_it {
            // Not "there is none": that would end a recovery.
            assert_eq!(code, Some(126), "{name} without {away}");
        } else {
            assert!(code == Some(0) && bytes == there, "{name} without {away}: {code:?}");
        }
        bring_back(&pgark, away);
    }
    let missing = "0000000100000000000000FF";
    assert_eq!(fetch(missing, &both).0, Some(1));
    take_away(&pgark, "b");
    assert_eq!(fetch(missing, &both).0, Some(126), "nobody knows what the other copy has");
    assert_eq!(fetch(missing, &["--repo", &a]).0, Some(1));
    bring_back(&pgark, "b");

    let report = pgark.json(&[&["sync"], &both[..]].concat());
    assert_eq!(
        (&report["good"], report["sync"]["copies"][0]["objects"].as_u64() > Some(0)),
        (&true.into(), true),
        "{report}"
    );
    for place in [&a, &b] {
        for name in &names {
            let (code, bytes) = fetch(name, &["--repo", place]);
            let there = std::fs::read(pg_wal.join(name)).unwrap();
            assert!(code == Some(0) && bytes == there, "{name} in {place}: {code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_comes_back_from_each_copy() {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE shop").await;
    sql(&server, "shop", &sample(2000)).await;
    let pgark = Pgark::new();
    let (identity, recipient) = pgark.key("key.txt");
    let config = format!(
        "[repository]\nurl = \"a\"\n[copy.second]\nurl = \"b\"\n[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"key.txt\"\n"
    );
    let config = pgark.write("pgark.toml", &config);
    let with = |args: &[&str]| {
        [&["--config", &config][..], args].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // A copy that is away is told on standard error.
    let json = |args: &[&str]| -> serde_json::Value {
        let all = with(args);
        let words: Vec<&str> = ["--json"].into_iter().chain(all.iter().map(String::as_str)).collect();
        let output = pgark.run(&words);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let db = server.url("shop");
    let first = json(&["backup", "--db", &db]);
    assert_eq!(
        (&first["new_repository"], &first["backup"]["copies"]["whole"]),
        (&true.into(), &2.into()),
        "{first}"
    );
    take_away(&pgark, "b");
    let second = json(&["backup", "--db", &db]);
    assert!(!pgark.path("b").exists(), "a place that is away was made anew");
    assert_eq!(second["backup"]["copies"]["whole"], 1, "{second}");
    assert!(second["backup"]["messages"].to_string().contains("pgark sync"), "{second}");
    let away = pgark.run(&["--config", &config, "status"]);
    assert_eq!(away.status.code(), Some(47), "{}", said(&away));
    assert!(said(&away).contains("b does not answer"), "{}", said(&away));
    let id = second["backup"]["id"].as_str().unwrap();
    let has = |id: &str| -> Vec<Option<bool>> {
        let shown = json(&["show", id]);
        assert_eq!(shown["backup"]["id"], id, "{shown}");
        let copies = shown["copies"].as_array().unwrap();
        assert!(copies[1]["place"].as_str().unwrap().ends_with('b'), "{shown}");
        copies.iter().map(|copy| copy["has"].as_bool()).collect()
    };
    assert_eq!(has(id), [Some(true), None]);
    bring_back(&pgark, "b");
    assert_eq!(has(id), [Some(true), Some(false)]);
    assert_eq!(has(first["backup"]["id"].as_str().unwrap()), [Some(true), Some(true)]);
    let shown = said(&pgark.run(&["--config", &config, "show", id]));
    assert!(shown.contains("a: has it") && shown.contains("b: LACKS IT"), "{shown}");
    assert!(pgark.json(&["show", "--repo", &pgark.place("a"), id])["copies"].is_null());
    let listed = json(&["list"]);
    assert_eq!(listed["backups"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(listed["not_everywhere"][id].as_array().unwrap().len(), 1, "{listed}");
    let status = &json(&["status"])["clusters"][0];
    let counts: Vec<&serde_json::Value> =
        status["copies"].as_array().unwrap().iter().map(|copy| &copy["backups"]).collect();
    assert_eq!((counts, &status["not_everywhere"]), (vec![&2.into(), &1.into()], &1.into()), "{status}");
    let report = json(&["sync"]);
    assert_eq!(report["sync"]["copies"][1]["backups"], serde_json::json!([id]), "{report}");
    assert_eq!(json(&["list"])["not_everywhere"], serde_json::json!({}));
    assert_eq!(has(id), [Some(true), Some(true)]);

    // Damage in one copy is found there, read around, and repaired.
    let part = pgark.files("a").into_iter().find(|f| f.contains(id) && f.contains("/parts/")).unwrap();
    let path = pgark.path(&format!("a/{part}"));
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let into = server.url("restored");
    json(&["restore", id, "--into", &into]);
    let (source, copy) = (connect(&db).await, connect(&into).await);
    assert_eq!(fingerprint(&source).await, fingerprint(&copy).await);
    let found = pgark.run(&with(&["--json", "verify", id]).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(found.status.code(), Some(50), "{}", said(&found));
    let repaired = json(&["verify", id, "--repair"]);
    assert_eq!(repaired["repairs"]["repaired"].as_array().unwrap().len(), 1, "{repaired}");
    assert_eq!(std::fs::read(&path).unwrap(), good);
    assert_eq!(json(&["verify", "--all"])["good"], true);

    // Each copy alone brings it back.
    for place in ["a", "b"] {
        let into = server.url(&format!("from_{place}"));
        pgark.json(&["restore", id, "--repo", &pgark.place(place), "--identity", &identity, "--into", &into]);
        assert_eq!(fingerprint(&source).await, fingerprint(&connect(&into).await).await);
    }
    // For other readers, in another repository.
    let (other, other_recipient) = pgark.key("other.txt");
    let copied =
        json(&["copy", "--all", "--to", &pgark.place("c"), "--re-encrypt", "--recipient", &other_recipient]);
    assert_eq!(copied["copied"]["backups"].as_array().unwrap().len(), 2, "{copied}");
    let c = pgark.place("c");
    pgark.fails(
        &["restore", id, "--repo", &c, "--identity", &identity, "--into", &server.url("no")],
        ErrorKind::WrongKey,
    );
    let into = server.url("from_c");
    pgark.json(&["restore", id, "--repo", &c, "--identity", &other, "--into", &into]);
    assert_eq!(fingerprint(&source).await, fingerprint(&connect(&into).await).await);
}

/// Whatever a copy has damaged of backups, of WAL and beside them comes back from another one.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "it is one story")]
async fn all_that_copies_share_is_repaired() {
    let server = server();
    sql(&server, "postgres", &sample(50)).await;
    let pgark = Pgark::new();
    let (_, recipient) = pgark.key("key.txt");
    let config = format!(
        "[repository]\nurl = \"a\"\n[copy.second]\nurl = \"b\"\n[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"key.txt\"\n"
    );
    let config = pgark.write("pgark.toml", &config);
    let run = |args: &[&str]| pgark.run(&[&["--config", &config], args].concat());
    let ok = |args: &[&str]| {
        let output = run(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        output
    };
    let db = server.url("postgres");
    ok(&["backup", "--db", &db]);
    ok(&["pin", "latest"]);
    ok(&["backup", "--db", &db]);
    for _ in 0..3 {
        let name = full_segment(&server).await;
        let path = server.data().join("pg_wal").join(name).display().to_string();
        ok(&["wal", "push", &path, "--ahead", "0"]);
    }
    let piece =
        pgark.files("a").into_iter().find(|name| name.contains("/wal/") && name.contains(".zst")).unwrap();
    let system = piece.split('/').nth(3).unwrap();
    let text = "1\t0/1000002\tno reason\n";
    let digest = blake3::hash(text.as_bytes()).to_hex();
    for place in ["a", "b"] {
        let name = format!("{place}/clusters/main/wal/{system}/history/00000002-{}.history", &digest[..32]);
        pgark.write(&name, text);
    }
    ok(&["verify", "--all"]);
    let files = |place: &str| -> Vec<String> {
        let of_copy = |name: &String| !name.contains("/marks/") || name.ends_with(".pin.json");
        pgark.files(place).into_iter().filter(of_copy).collect()
    };
    let shared = files("a");
    let some = |has: &[&str]| -> Vec<String> {
        let of_it = |name: &&String| has.iter().all(|part| name.contains(part));
        shared.iter().filter(of_it).cloned().collect()
    };
    let pieces = some(&["/wal/", "/0000000100000000/", ".zst.age"]);
    assert_eq!(pieces.len(), 3, "{shared:?}");
    let one = |has: &[&str]| some(has).first().unwrap_or_else(|| panic!("{has:?} in {shared:?}")).clone();
    let index = one(&["/index/"]);
    let in_a = [
        pieces[0].clone(),
        one(&[".history"]),
        one(&["/wal/keys/"]),
        one(&["/started.json"]),
        "clusters/main/audit/0000000/0000000002.json".to_owned(),
        one(&["/key.age"]),
        one(&["/parts/"]),
        one(&["/marks/"]),
        index.clone(),
    ];
    let in_b = [pieces[1].clone(), one(&["/identity/"]), one(&["/backup.json"]), one(&["contents.json"])];
    let mut dice = Dice::new();
    for (place, keys) in [("a", &in_a[..]), ("b", &in_b)] {
        for key in keys {
            let path = pgark.path(&format!("{place}/{key}"));
            let mut bytes = std::fs::read(&path).unwrap();
            let at = dice.below(bytes.len());
            if key.contains("/started.json") || key.contains("/identity/") {
                bytes.truncate(at / 2);
            } else {
                bytes[at] ^= 1 << dice.below(8);
            }
            std::fs::write(&path, bytes).unwrap();
        }
    }
    // The key of a backup is gone in one copy; a segment as well, which is none of a verification's business.
    let key = some(&["/key.age"])[1].clone();
    std::fs::remove_file(pgark.path(&format!("b/{key}"))).unwrap();
    std::fs::remove_file(pgark.path(&format!("b/{}", pieces[2]))).unwrap();

    let found = run(&["verify", "--all"]);
    assert_eq!(found.status.code(), Some(50), "{}", said(&found));
    for name in in_a.iter().chain(&in_b).chain([&key]).filter(|name| !name.contains("/parts/")) {
        assert!(said(&found).contains(name.as_str()), "{name} is not told: {}", said(&found));
    }
    assert!(!said(&found).contains(&pieces[2]), "{}", said(&found));
    let repaired = ok(&["--json", "verify", "--all", "--repair"]);
    let repaired: serde_json::Value = serde_json::from_slice(&repaired.stdout).unwrap();
    assert_eq!((&repaired["good"], &repaired["repairs"]["problems"]), (&true.into(), &serde_json::json!([])));
    for (place, other, keys) in
        [("a", "b", &in_a[..]), ("b", "a", &in_b), ("b", "a", std::slice::from_ref(&key))]
    {
        for key in keys.iter().filter(|key| **key != index) {
            let read = |place: &str| std::fs::read(pgark.path(&format!("{place}/{key}"))).unwrap();
            assert!(read(place) == read(other), "{key} in {place}");
        }
    }
    assert!(!pgark.path(&format!("a/{index}")).exists(), "an index is written anew");
    ok(&["verify", "--all"]);
    ok(&["list"]);
    marker_is_repaired(&pgark, &config);
}

/// Without its marker a place is nothing; what else is in it says whether it is a copy.
fn marker_is_repaired(pgark: &Pgark, config: &str) {
    let run = |args: &[&str]| pgark.run(&[&["--config", config], args].concat());
    let marker = pgark.path("b/pgark.json");
    let id = |place: &str| -> serde_json::Value {
        let text = std::fs::read(pgark.path(&format!("{place}/pgark.json"))).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["id"].take()
    };
    let piece = pgark.files("b").into_iter().find(|name| name.contains("/parts/")).unwrap();
    let piece = pgark.path(&format!("b/{piece}"));
    let whole = std::fs::read(&piece).unwrap();
    for bytes in [Some(&b"{"[..]), Some(b""), None] {
        match bytes {
            Some(bytes) => std::fs::write(&marker, bytes).unwrap(),
            None => std::fs::remove_file(&marker).unwrap(),
        }
        // What is damaged behind it is found in the same run.
        std::fs::write(&piece, &whole[1..]).unwrap();
        let one = run(&["verify"]);
        assert!(said(&one).contains("pgark.json") && said(&one).contains("nothing of it"), "{}", said(&one));
        let found = run(&["verify", "--all"]);
        assert_eq!(found.status.code(), Some(50), "{}", said(&found));
        assert!(said(&found).contains("pgark.json in"), "{}", said(&found));
        let repaired = run(&["verify", "--all", "--repair"]);
        assert!(repaired.status.success(), "{}", said(&repaired));
        assert!(said(&repaired).contains("repaired: pgark.json in"), "{}", said(&repaired));
        assert_eq!((id("b"), std::fs::read(&piece).unwrap() == whole), (id("a"), true));
        let again = run(&["verify", "--all"]);
        assert!(again.status.success(), "{}", said(&again));
    }
    // An empty place may be one whose file system is not mounted.
    take_away(pgark, "b");
    std::fs::create_dir(pgark.path("b")).unwrap();
    let verified = run(&["verify", "--all", "--repair"]);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(said(&verified).contains("nothing of it was verified"), "{}", said(&verified));
    assert_eq!(pgark.files("b"), Vec::<String>::new());
    // What has nothing of this repository is none of its copies.
    for name in ["pgark.json", "clusters/main/identity/01ARZ3NDEKTSV4RRFFQ69G5FAV.json"] {
        pgark.write(&format!("b/{name}"), "{");
    }
    let verified = run(&["verify", "--all", "--repair"]);
    assert_eq!(verified.status.code(), Some(50), "{}", said(&verified));
    assert!(said(&verified).contains("NOT REPAIRED: pgark.json in"), "{}", said(&verified));
    assert_eq!(std::fs::read(&marker).unwrap(), b"{");
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_copied_for_other_readers_is_the_same() {
    let server = server();
    let pgark = Pgark::new();
    let (a, c) = (pgark.place("a"), pgark.place("c"));
    let (old, recipient) = pgark.key("key.txt");
    let (new, other) = pgark.key("other.txt");
    let config = pgark.write(
        "pgark.toml",
        &format!("[repository]\nurl = \"a\"\n[encryption]\nrecipients = [\"{recipient}\"]\n"),
    );
    let db = server.url("postgres");
    let made = pgark.json(&["--config", &config, "backup", "--physical", "--db", &db]);
    let id = made["backup"]["id"].as_str().unwrap();
    let push = |path: &std::path::Path| {
        pgark.text(&["--config", &config, "wal", "push", &path.display().to_string(), "--ahead", "0"]);
    };
    // That of the backup, which has ended it, and those behind it.
    let start = made["backup"]["source"]["start_lsn"].as_str().unwrap();
    let mut names = vec![
        sql(&server, "postgres", &format!("SELECT pg_walfile_name('{start}')")).await[0][0].clone().unwrap(),
    ];
    for _ in 0..2 {
        names.push(full_segment(&server).await);
    }
    for name in &names {
        push(&server.data().join("pg_wal").join(name));
    }
    let history = "00000002.history";
    let pg_wal = server.data().join("pg_wal");
    std::fs::write(pg_wal.join(history), "1\t0/1000002\tno reason\n").unwrap();
    push(&pg_wal.join(history));
    let written = |name: &str| std::fs::read(pg_wal.join(name)).unwrap();
    let fetch = |name: &str, repo: &str, identity: &str| {
        let to = pgark.place("RECOVERYXLOG");
        let args = ["wal", "fetch", name, &to, "--ahead", "0", "--repo", repo, "--identity", identity];
        let output = pgark.run(&args);
        let read = std::fs::read(&to).ok();
        let _ = std::fs::remove_file(&to);
        (output.status.code(), read, said(&output))
    };
    let copy = [
        "copy",
        id,
        "--repo",
        &a,
        "--identity",
        &old,
        "--to",
        &c,
        "--wal",
        "--re-encrypt",
        "--recipient",
        &other,
    ];
    let copied = pgark.json(&copy);
    let objects = copied["copied"]["wal_objects"].as_u64().unwrap();
    assert!(objects >= names.len() as u64 && copied["copied"]["sealed_anew"] == true, "{copied}");
    for name in &names {
        for (repo, right, wrong) in [(&a, &old, &new), (&c, &new, &old)] {
            let (code, bytes, said) = fetch(name, repo, right);
            assert!(code == Some(0) && bytes.as_ref() == Some(&written(name)), "{name} in {repo}: {said}");
            let (code, bytes, said) = fetch(name, repo, wrong);
            assert!(code == Some(126) && bytes.is_none(), "{name} in {repo} with the other key: {said}");
        }
    }
    // Nothing is secret in a history, and it is the same for all.
    assert_eq!(fetch(history, &c, &new).1, Some(written(history)));
    // The cluster is recovered from there, beyond its backup.
    let work = pgark.work_dir();
    let rows = "SELECT count(*) = 2 FROM t";
    let drill = ["drill", "--work-dir", &work, "--repo", &c, "--identity", &new, "--check", rows];
    let drilled = pgark.json(&[&drill[..], &["--timeline", "1"]].concat());
    assert_eq!(drilled["good"], true, "{drilled:#}");
    // No key of the one opens anything of the other, and no sealed bytes are in both.
    let of_wal = |place: &str| -> Vec<String> {
        pgark
            .files(place)
            .into_iter()
            .filter(|file| file.contains("/wal/") && file.contains(".age"))
            .collect()
    };
    let (sealed, anew) = (of_wal("a"), of_wal("c"));
    assert!(
        anew.len() > names.len() && anew.iter().all(|file| !sealed.contains(file)),
        "{sealed:?} {anew:?}"
    );
    let read = |place: &str, files: &[String]| -> Vec<Vec<u8>> {
        files.iter().map(|file| std::fs::read(pgark.path(&format!("{place}/{file}"))).unwrap()).collect()
    };
    let (sealed, anew) = (read("a", &sealed), read("c", &anew));
    assert!(anew.iter().all(|bytes| !sealed.contains(bytes)));
    assert_eq!(pgark.json(&["wal", "verify", "--repo", &c, "--identity", &new])["good"], true);
    pgark.fails(&["wal", "verify", "--repo", &c, "--identity", &old], ErrorKind::WrongKey);
    let before = of_wal("c");
    let again = pgark.json(&copy);
    assert_eq!(again["copied"]["wal_objects"], 0, "{again}");
    assert_eq!(of_wal("c"), before, "no key was made for nothing");

    // What a place has as the old readers read it is not taken for what the new ones are promised.
    let d = pgark.place("d");
    pgark.json(&["copy", id, "--repo", &a, "--to", &d, "--wal"]);
    std::fs::remove_dir_all(pgark.path("d/clusters/main/backups")).unwrap();
    let to_d: Vec<&str> = copy.iter().map(|arg| if *arg == c { &d } else { *arg }).collect();
    pgark.fails(&to_d, ErrorKind::Conflict).says("old readers").says("another place");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_they_go_on() {
    let server = server();
    sql(
        &server,
        "postgres",
        "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 30) AS x FROM generate_series(1, 40000) i",
    )
    .await;
    let pgark = Pgark::new();
    let (a, b, c) = (pgark.place("a"), pgark.place("b"), pgark.place("c"));
    let (identity, recipient) = pgark.key("key.txt");
    let db = server.url("postgres");
    for _ in 0..2 {
        pgark.json(&["backup", "--repo", &a, "--db", &db, "--recipient", &recipient, "--compress", "none"]);
    }
    let ids: Vec<String> = pgark.json(&["list", "--repo", &a])["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| backup["id"].as_str().unwrap().to_owned())
        .collect();
    let (_, other) = pgark.key("other.txt");
    let sync: Vec<&str> = vec!["sync", "--repo", &a, "--repo", &b];
    let copy = vec![
        "copy",
        "--all",
        "--repo",
        &a,
        "--to",
        &c,
        "--re-encrypt",
        "--recipient",
        &other,
        "--identity",
        &identity,
    ];
    pgark.text(&["init", "--repo", &a, "--repo", &b]);
    let mut dice = Dice::new();
    for (args, place, key) in [(sync, &b, "key.txt"), (copy, &c, "other.txt")] {
        let mut killed = 0;
        for _ in 0..8 {
            let mut child = pgark.command(&args).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(dice.time(Duration::from_millis(400)));
            if child.try_wait().unwrap().is_none() {
                kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
                killed += 1;
            }
            child.wait().unwrap();
            // What is there is whole.
            if pgark.path(place).join("pgark.json").exists() {
                let listed = pgark.json(&["list", "--repo", place]);
                for backup in listed["backups"].as_array().unwrap() {
                    let id = backup["id"].as_str().unwrap();
                    assert_eq!(pgark.json(&["verify", id, "--repo", place, "--stored"])["good"], true);
                }
            }
        }
        pgark.text(&args);
        let listed = pgark.json(&["list", "--repo", place]);
        let there: Vec<&str> =
            listed["backups"].as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap()).collect();
        assert_eq!(there, ids, "after {killed} kills");
        let key = pgark.place(key);
        assert_eq!(pgark.json(&["verify", "--all", "--repo", place, "--identity", &key])["good"], true);
    }
}
