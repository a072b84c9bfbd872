//! Objects that were damaged, cut, lost, or changed with those of another backup: what is said of each.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
mod forge;
mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use cli::Pgark;
use forge::{forge, replace, with_own_digest};
use host::{Host, Receiving, archived, caught_up, said, until};
use pgark::config::{Settings, VerifyWanted};
use pgark::postgres::{TempServer, TempServerOptions};
use pgark::repository::{Catalog, ClusterName};
use pgark::{CancellationToken, ErrorKind};
use serde_json::{Value, json};
use support::containers::with_summaries;
use support::dice::Dice;
use support::physical::server_with_checksums;
use support::{left_out, server_with, sql};

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// One bit is another one.
    Bit,
    /// It ends too early.
    Cut,
    /// It is gone.
    Lost,
    /// It is the object of another backup.
    Swapped,
    /// Nothing is in it.
    Empty,
}

const HARMS: [Harm; 5] = [Harm::Bit, Harm::Cut, Harm::Lost, Harm::Swapped, Harm::Empty];

/// Harms an object, and mends it when it is dropped.
struct Harmed {
    path: PathBuf,
    whole: Vec<u8>,
}

/// A name that is no object's.
fn away(path: &Path) -> PathBuf {
    path.with_file_name(".away")
}

impl Harmed {
    fn new(path: &Path, other: &Path, harm: Harm, dice: &mut Dice) -> Self {
        let whole = std::fs::read(path).unwrap();
        let mut bytes = whole.clone();
        let at = dice.below(bytes.len());
        match harm {
            Harm::Bit => bytes[at] ^= 1 << dice.below(8),
            // The end of a record's last line says nothing.
            Harm::Cut => bytes.truncate(at.min(whole.len().saturating_sub(2))),
            Harm::Swapped => bytes = std::fs::read(other).unwrap(),
            Harm::Empty => bytes.clear(),
            Harm::Lost => {}
        }
        assert!(harm == Harm::Lost || bytes != whole);
        // It keeps its owner.
        if harm == Harm::Lost {
            std::fs::rename(path, away(path)).unwrap();
        } else {
            std::fs::write(path, bytes).unwrap();
        }
        Self { path: path.to_owned(), whole }
    }
}

impl Drop for Harmed {
    fn drop(&mut self) {
        if self.path.exists() {
            std::fs::write(&self.path, &self.whole).unwrap();
        } else {
            std::fs::rename(away(&self.path), &self.path).unwrap();
        }
    }
}

/// The objects of a backup by what they are: the parts of a kind, the contents, the key, the record.
fn objects(host: &Pgark, backup: &Value) -> Vec<(String, PathBuf)> {
    let id = backup["id"].as_str().unwrap();
    let shown = host.json(&["show", id]);
    let folder = host.path("repo/clusters/main/backups").join(id);
    let record = &shown["backup"];
    let mut found = Vec::new();
    for part in record["parts"].as_array().unwrap() {
        let kind = part["kind"].as_str().unwrap();
        if found.iter().all(|(name, _)| name != kind) {
            found.push((kind.to_owned(), folder.join(part["objects"][0]["key"].as_str().unwrap())));
        }
    }
    found.push(("contents".to_owned(), folder.join(record["contents"]["key"].as_str().unwrap())));
    found.push(("key".to_owned(), folder.join("key.age")));
    found.push(("record".to_owned(), folder.join("backup.json")));
    found
}

/// Fails as damage, or as what is missing, and names one of these.
fn told(output: &std::process::Output, names: &[&str], what: &str, wrong: &mut Vec<String>) {
    let code = output.status.code().and_then(|code| u8::try_from(code).ok());
    let kinds = [
        ErrorKind::Integrity,
        ErrorKind::ObjectMissing,
        ErrorKind::BackupNotFound,
        ErrorKind::WrongKey,
        ErrorKind::NewerFormat,
    ];
    let words = said(output);
    if !code.is_some_and(|code| kinds.iter().any(|kind| kind.code() == code)) {
        wrong.push(format!("{what}: {words}"));
    } else if !names.iter().any(|name| words.contains(name)) {
        wrong.push(format!("{what} is not named {names:?}: {words}"));
    }
}

/// `verify` and `restore` of a backup one of whose objects, or of its ancestor's, is not what it was.
fn look(
    host: &Pgark,
    (verified, restored): (&str, &str),
    (kind, path): (&str, &Path),
    harm: Harm,
    wrong: &mut Vec<String>,
) {
    let what = format!("{harm:?} {kind}");
    let file = path.file_name().unwrap().to_str().unwrap();
    let part = file.split('.').next().unwrap().trim_start_matches('0');
    let part = format!("part {part} ");
    // Without its record a backup is none; a key that is another one opens nothing.
    let owner = path.iter().rev().find_map(|name| name.to_str().filter(|name| name.contains("-physical-")));
    let words = format!("the {kind} of backup {}", owner.unwrap());
    let names = match kind {
        "record" => vec![owner.unwrap()],
        "contents" | "key" => vec![file, &words],
        _ => vec![file, &part],
    };
    told(&host.run(&["verify", verified]), &names, &format!("verify, {what}"), wrong);
    if kind != "key" || harm == Harm::Lost {
        let stored = host.run(&["verify", "--stored", verified]);
        told(&stored, &names, &format!("verify --stored, {what}"), wrong);
    }
    let to = host.path("target");
    let restore = host.run(&["restore", restored, "--target-dir", &host.place("target")]);
    told(&restore, &names, &format!("restore, {what}"), wrong);
    if to.join("global/pg_control").exists() {
        wrong.push(format!("{what}: a server could start on it"));
    }
    let _ = std::fs::remove_dir_all(to);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_a_backup() {
    let mut dice = Dice::new();
    let host = Pgark::new();
    let (key, recipient) = host.key("key.txt");
    let host = host.with("PGARK_REPO", "repo").with("PGARK_IDENTITY", &key);
    let server = server_with(&TempServerOptions::default());
    let url = server.url("postgres");
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await;
    let mut backups = Vec::new();
    for how in ["--physical", "--physical", "--incremental", "--incremental"] {
        sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1, 1000) n").await;
        let mut made = host.json(&["backup", "--db", &url, "--recipient", &recipient, how]);
        backups.push(made["backup"].take());
    }
    let ids: Vec<&str> = backups.iter().map(|backup| backup["id"].as_str().unwrap()).collect();
    let all: Vec<_> = backups.iter().map(|backup| objects(&host, backup)).collect();
    let of = |backup: usize, kind: &str| all[backup].iter().find(|(k, _)| k == kind).unwrap().1.clone();
    let mut wrong = Vec::new();
    // What is harmed, what it is swapped with, what is restored: the backup itself, or one that builds on it.
    for (harmed, other, restored) in [(0, 1, 0), (3, 2, 3), (1, 0, 3), (2, 3, 3)] {
        for (kind, path) in &all[harmed] {
            // Of ancestors only these are read.
            if harmed != restored
                && !["tar", "delta", "list", "contents", "key", "record"].contains(&kind.as_str())
            {
                continue;
            }
            for harm in HARMS {
                // Each is tried on the backup itself; on ancestors those that are found otherwise.
                if harmed != restored && [Harm::Cut, Harm::Bit, Harm::Empty].contains(&harm) {
                    continue;
                }
                let _mended = Harmed::new(path, &of(other, kind), harm, &mut dice);
                look(&host, (ids[harmed], ids[restored]), (kind, path), harm, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // All of it was put back.
    host.json(&["verify", "--all"]);
    host.json(&["restore", ids[3], "--target-dir", &host.place("target")]);
}

/// What a host keeps of its backups for the next increment.
fn kept(host: &Pgark, name: &str) -> PathBuf {
    let of_it = |path: &String| path.ends_with(&format!("/maps/{name}"));
    let files = host.files("state");
    host.path("state")
        .join(files.iter().find(|path| of_it(path)).unwrap_or_else(|| panic!("{name}: {files:?}")))
}

/// Block maps are no objects of the repository: neither a verification nor a restore misses them. An increment is made with
/// a map that is whole, or is none.
#[tokio::test(flavor = "multi_thread")]
async fn every_block_map_of_the_host() {
    let mut dice = Dice::new();
    let host = Pgark::new().with("PGARK_REPO", "repo");
    let server = server_with(&TempServerOptions::default());
    let url = server.url("postgres");
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 20000) n").await;
    let back_up = |how: &str| host.json(&["backup", "--db", &url, how])["backup"].take();
    let id_of = |made: &Value| made["id"].as_str().unwrap().to_owned();
    let restores = |id: &str| {
        // It compares every file with the server's manifest.
        host.json(&["restore", id, "--target-dir", &host.place("target")]);
        std::fs::remove_dir_all(host.path("target")).unwrap();
    };
    let (mut older, mut newest) = (id_of(&back_up("--physical")), id_of(&back_up("--physical")));
    for harm in HARMS {
        // A few blocks in the middle, and some at the end.
        sql(&server, "postgres", "UPDATE t SET n = n + 1 WHERE n % 5000 = 7; INSERT INTO t VALUES (1)").await;
        let made = {
            let _mended = Harmed::new(&kept(&host, &newest), &kept(&host, &older), harm, &mut dice);
            if harm == Harm::Lost {
                assert_eq!(host.json(&["verify", &newest])["good"], true);
                restores(&newest);
            }
            back_up("--incremental")
        };
        let messages = made["messages"].to_string();
        if harm == Harm::Lost {
            // The host has that of an older backup.
            assert_eq!(made["parent"], older.as_str(), "{made}");
            restores(&id_of(&made));
        } else {
            assert!(made["parent"].is_null(), "{harm:?}: {made}");
            let why = format!("the block map of backup {newest} cannot be used");
            assert!(messages.contains(&why), "{harm:?}: {messages}");
        }
        (older, newest) = (newest, id_of(&made));
    }
    // The secret that the digests are keyed with: with another one no map fits.
    for harm in [Harm::Bit, Harm::Cut, Harm::Empty, Harm::Lost] {
        let key = kept(&host, "key");
        let _mended = Harmed::new(&key, &key, harm, &mut dice);
        let checked = said(&host.run(&["check", "--db", &url, "--physical"]));
        assert!(checked.contains("no block map of any backup"), "{harm:?}: {checked}");
        let made = back_up("--incremental");
        assert!(made["parent"].is_null(), "{harm:?}: {made}");
        assert!(made["messages"].to_string().contains("no block map of any backup"), "{harm:?}: {made}");
        if harm == Harm::Bit {
            // It has a map of the key that is there now.
            let next = back_up("--incremental");
            assert_eq!(next["parent"], made["id"], "{next}");
            restores(&id_of(&next));
        }
    }
    assert_eq!(host.json(&["verify", "--all", "--stored"])["good"], true);
}

/// The objects of all segments, in order.
fn pieces(host: &Host) -> Vec<PathBuf> {
    let is_piece =
        |path: &&String| path.contains("/wal/") && path.ends_with(".zst.age") && !path.contains("/points/");
    let files = host.files("repo");
    files.iter().filter(is_piece).map(|path| host.path("repo").join(path)).collect()
}

/// `wal verify` names the object, and no segment is served that has it.
fn look_at_wal(host: &Host, path: &Path, harm: Harm, wrong: &mut Vec<String>) {
    let file = path.file_name().unwrap().to_str().unwrap();
    let segment = host::segment_of(path).unwrap();
    let segment = segment.as_str();
    let what = format!("{harm:?} {}", path.display());
    told(&host.run(&["wal", "verify"]), &[file, segment], &format!("wal verify, {what}"), wrong);
    let to = host.place("fetched");
    let fetched = host.run(&["wal", "fetch", segment, &to, "--ahead", "0"]);
    // Only what is certainly not there ends a recovery; that there are later ones is known before it.
    let code = if harm == Harm::Lost { 1 } else { 126 };
    if fetched.status.code() != Some(code) || Path::new(&to).exists() {
        wrong.push(format!("fetch, {what}: {}", said(&fetched)));
    }
    if harm == Harm::Lost {
        let restore = host.run(&["restore", "--target-dir", &host.place("target")]);
        if restore.status.code() != Some(i32::from(ErrorKind::Unsupported.code()))
            || !said(&restore).contains(segment)
        {
            wrong.push(format!("restore, {what}: {}", said(&restore)));
        }
    }
    let _ = std::fs::remove_file(to);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_wal() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await;
    let backup = host.back_up_with(&server, &["--physical", "--wal", "stream"]);
    archived(&server).await;
    for _ in 0..3 {
        sql(&server, "postgres", "INSERT INTO t SELECT n FROM generate_series(1, 1000) n").await;
        archived(&server).await;
    }
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let mut wrong = Vec::new();
    let all = pieces(&host);
    let (path, other) = (&all[all.len() - 2], &all[all.len() - 1]);
    for harm in HARMS {
        let _mended = Harmed::new(path, other, harm, &mut dice);
        look_at_wal(&host, path, harm, &mut wrong);
    }
    // An object under the name of another segment: in its place, with a name and bytes that fit each other.
    let [of, as_other] = [path, other].map(|path| host::segment_of(path).unwrap());
    let name = other.file_name().unwrap().to_str().unwrap();
    let misplaced = path.with_file_name(name.replace(&as_other, &of));
    std::fs::copy(other, &misplaced).unwrap();
    std::os::unix::fs::chown(&misplaced, Some(host.owner.0), Some(host.owner.1)).unwrap();
    std::fs::rename(path, away(path)).unwrap();
    look_at_wal(&host, &misplaced, Harm::Swapped, &mut wrong);
    std::fs::rename(away(path), path).unwrap();
    // Beside the right one it is a conflict.
    look_at_wal(&host, &misplaced, Harm::Swapped, &mut wrong);
    std::fs::remove_file(&misplaced).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let recovered = host.recover(&server, "recovered", &[backup["id"].as_str().unwrap()]).await;
    assert_eq!(host::one(&recovered, "SELECT count(*) FROM t").await, "4000");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_piece_that_was_received() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    let server = server_with(&TempServerOptions::default());
    sql(&server, "postgres", "CREATE TABLE t (n int, x text)").await;
    host.back_up(&server);
    let receiving = Receiving::start(&host, &server);
    until(&server, "SELECT count(*) FROM pg_stat_replication", "1").await;
    for round in 0..3 {
        let rows = format!(
            "INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 30000) n WHERE n > {round}"
        );
        sql(&server, "postgres", &rows).await;
        caught_up(&server).await;
    }
    sql(&server, "postgres", "SELECT pg_switch_wal()").await;
    sql(&server, "postgres", "INSERT INTO t VALUES (0)").await;
    sql(&server, "postgres", "SELECT pg_switch_wal()").await;
    sql(&server, "postgres", "INSERT INTO t VALUES (0)").await;
    caught_up(&server).await;
    receiving.end();
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
    let all = pieces(&host);
    let folder = |path: &Path| path.parent().unwrap().to_owned();
    // The first segment ended with the backup: behind that it has zeros, which fit everywhere.
    let second = all.iter().map(|path| folder(path)).find(|found| *found != folder(&all[0])).unwrap();
    let of_one: Vec<&PathBuf> = all.iter().filter(|path| folder(path) == second).collect();
    assert!(of_one.len() > 2, "{all:?}");
    let mut wrong = Vec::new();
    // The first, one in the middle, and the last of a segment.
    for n in [0, 1, of_one.len() - 1] {
        let other = of_one[usize::from(n == 0)];
        for harm in HARMS {
            let _mended = Harmed::new(of_one[n], other, harm, &mut dice);
            look_at_wal(&host, of_one[n], harm, &mut wrong);
        }
        if n + 1 == of_one.len() {
            // Behind the switch of segments there are zeros here as well.
            continue;
        }
        // Under the name of another segment.
        let to = all.iter().find(|path| folder(path) != folder(of_one[n])).unwrap();
        let misplaced = to.with_file_name(of_one[n].file_name().unwrap());
        std::fs::rename(of_one[n], &misplaced).unwrap();
        let verified = host.run(&["wal", "verify"]);
        told(
            &verified,
            &[misplaced.file_name().unwrap().to_str().unwrap()],
            &format!("misplaced {n}"),
            &mut wrong,
        );
        std::fs::rename(&misplaced, of_one[n]).unwrap();
    }
    // A segment that is made up of its own first pieces, and behind them of those of another one.
    let offset = |path: &Path| -> u64 {
        let name = path.file_name().unwrap().to_str().unwrap();
        u64::from_str_radix(name.split('-').next().unwrap(), 16).unwrap()
    };
    let third = all.iter().map(|path| folder(path)).find(|found| *found > second).unwrap();
    let put_away = host.path("put-away");
    std::fs::create_dir(&put_away).unwrap();
    for path in all.iter().filter(|path| folder(path) == third && offset(path) >= offset(of_one[1])) {
        std::fs::rename(path, put_away.join(path.file_name().unwrap())).unwrap();
    }
    for path in &of_one[1..] {
        std::fs::rename(path, third.join(path.file_name().unwrap())).unwrap();
    }
    let segment = third.file_name().unwrap().to_str().unwrap();
    let fetched = host.run(&["wal", "fetch", segment, &host.place("fetched"), "--ahead", "0"]);
    if fetched.status.code() != Some(126)
        || !said(&fetched).contains(segment)
        || host.path("fetched").exists()
    {
        wrong.push(format!("a segment of two: {}", said(&fetched)));
    }
    told(&host.run(&["wal", "verify"]), &[segment], "a segment of two", &mut wrong);
    for path in &of_one[1..] {
        std::fs::rename(third.join(path.file_name().unwrap()), path).unwrap();
    }
    for path in std::fs::read_dir(put_away).unwrap().flatten() {
        std::fs::rename(path.path(), third.join(path.file_name())).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.json(&["wal", "verify"])["good"], true);
}

/// The one object below a folder whose name ends so.
fn the_object(host: &Host, folder: &str, end: &str) -> PathBuf {
    let found: Vec<String> = host.files(folder).into_iter().filter(|name| name.ends_with(end)).collect();
    host.path(folder).join(found.last().unwrap_or_else(|| panic!("nothing ends with {end} in {folder}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_a_logical_backup_and_of_the_cluster() {
    let mut dice = Dice::new();
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", &support::sample(500)).await;
    let rows =
        "CREATE TABLE large AS SELECT n, repeat(md5(n::text), 40) AS x FROM generate_series(1, 8000) n";
    sql(&server, "postgres", rows).await;
    let ids: Vec<String> =
        (0..2).map(|_| host.back_up_with(&server, &[])["id"].as_str().unwrap().to_owned()).collect();
    host.back_up(&server);
    archived(&server).await;
    sql(&server, "postgres", "DELETE FROM large WHERE n = 1").await;
    archived(&server).await;
    assert_eq!(host.json(&["verify", "--all"])["good"], true);

    let of = |id: &str, end: &str| the_object(&host, &format!("repo/clusters/main/backups/{id}"), end);
    // As the user of this test: a build for tests finds the words of age's errors in the folder of its sources.
    let config = host.place("pgark.toml");
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pgark"));
        command.arg("--config").arg(&config).args(args).env_remove("PGARK_CONFIG").output().unwrap()
    };
    let mut wrong = Vec::new();
    let kinds = [".toc.zst.age", ".copy.zst.age", ".pack.zst.age", ".blobs.zst.age", "contents.json.zst.age"];
    for end in kinds.into_iter().chain(["key.age", "backup.json"]) {
        let (path, other) = (of(&ids[1], end), of(&ids[0], end));
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        for harm in HARMS {
            let _mended = Harmed::new(&path, &other, harm, &mut dice);
            let what = format!("{harm:?} {end}");
            let part = format!("part {} ", file.split('.').next().unwrap().trim_start_matches('0'));
            let which = if end == "backup.json" { "--all" } else { &ids[1] };
            let names = [&file, part.as_str(), "the key of backup"];
            told(&run(&["verify", which]), &names, &format!("verify, {what}"), &mut wrong);
            if ![Harm::Bit, Harm::Swapped].contains(&harm) {
                continue;
            }
            // A restore fails, or it does not begin.
            let into = server.url("restored");
            let restore = run(&["restore", &ids[1], "--into", &into]);
            if restore.status.success() {
                wrong.push(format!("restore, {what}: {}", said(&restore)));
            }
            sql(&server, "postgres", "DROP DATABASE IF EXISTS restored WITH (FORCE)").await;
        }
    }
    // What is of no one backup. An index is a cache, the name of a mark says it all, and an announcement is of no use
    // any more; but that they are not what was written is told.
    let cluster = "repo/clusters/main";
    for (folder, end) in
        [("identity", ".json"), ("index", ".json.zst"), ("marks", ".json"), ("wal/keys", ".age")]
    {
        let path = the_object(&host, &format!("{cluster}/{folder}"), end);
        let file = path.file_name().unwrap().to_str().unwrap();
        let key = file.split('.').next().unwrap();
        for harm in [Harm::Bit, Harm::Cut, Harm::Empty, Harm::Lost] {
            if harm == Harm::Lost && folder != "wal/keys" {
                continue;
            }
            let _mended = Harmed::new(&path, &path, harm, &mut dice);
            let verified = run(&["verify", "--all"]);
            told(&verified, &[file, key], &format!("verify, {harm:?} {folder}"), &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let whole = run(&["verify", "--all"]);
    assert!(whole.status.success(), "{}", said(&whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_verified() {
    let host = Pgark::new().with("PGARK_REPO", "repo");
    let server = server_with(&TempServerOptions::default());
    let url = server.url("postgres");
    for n in 0..40 {
        sql(&server, "postgres", &format!("CREATE TABLE t{n} AS SELECT n FROM generate_series(1, 9000) n"))
            .await;
    }
    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = host.json(&["backup", "--db", &url]);
        ids.push(made["backup"]["id"].as_str().unwrap().to_owned());
    }
    let marks = |host: &Pgark| host.files("repo/clusters/main/marks");
    // Samples: others each time, the same with the same seed; they mark nothing.
    let sampled = host.json(&["verify", "--all", "--sample", "5%"]);
    assert_eq!((&sampled["good"], &sampled["checked"]), (&Value::Bool(true), &Value::from(2)));
    let seed = sampled["sample"]["seed"].to_string();
    let again = host.json(&["verify", "--all", "--sample", "5%", "--seed", &seed]);
    let objects = |answer: &Value, n: usize| answer["backups"][n]["objects"].as_u64().unwrap();
    assert_eq!(sampled["backups"][0]["stored_bytes"], again["backups"][0]["stored_bytes"]);
    let whole = host.json(&["verify", "--since", "1h"]);
    for n in [0, 1] {
        assert!(objects(&sampled, n) >= 2 && objects(&sampled, n) < objects(&whole, n), "{sampled:#}");
    }
    let found = marks(&host);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|name| name.ends_with(".verified-raw.json")), "{found:?}");
    // All of them were verified a moment ago, and made since an hour.
    assert_eq!(host.json(&["verify", "--not-verified-since", "1h"])["checked"], 0);
    assert_eq!(host.json(&["verify", "--since", "2100-01-01T00:00:00Z"])["checked"], 0);
    // One that is damaged is marked; a good look at its stored bytes alone does not take that back.
    let folder = host.path("repo/clusters/main/backups").join(&ids[1]);
    let contents = folder.join("contents.json.zst");
    let whole = std::fs::read(&contents).unwrap();
    std::fs::write(&contents, &whole[1..]).unwrap();
    let text = host.run(&["verify", "--all"]);
    assert_eq!(text.status.code(), Some(50));
    assert!(
        said(&text).contains("checked 2 backups: 1 good, 1 not; 1 damaged, 0 missing"),
        "{}",
        said(&text)
    );
    std::fs::write(&contents, &whole).unwrap();
    let of_second = |host: &Pgark| {
        let of_it = marks(host).into_iter().filter(|name| name.contains(&ids[1]));
        of_it.map(|name| name.rsplit('.').nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    host.json(&["verify", "--all", "--stored"]);
    assert_eq!(of_second(&host), ["verified-raw", "damaged"]);
    host.json(&["verify", "--all"]);
    assert_eq!(of_second(&host), ["verified-raw", "damaged", "verified-raw"]);
    // One that ended behind the first backup goes on with the second.
    let state: Vec<String> =
        host.files("state").into_iter().filter(|name| name.ends_with("/verified")).collect();
    assert_eq!(state, [""; 0], "{state:?}");
    let place = std::fs::read_dir(host.path("state")).unwrap().flatten().next().unwrap().path().join("main");
    std::fs::write(place.join("verified"), format!("raw\n{}\n", ids[0])).unwrap();
    let resumed = host.json(&["verify", "--all", "--resume"]);
    assert_eq!(
        (&resumed["resumed"], &resumed["backups"][0]["id"]),
        (&Value::from(1), &Value::from(ids[1].as_str()))
    );
    assert_eq!(host.json(&["verify", "--all", "--resume"])["resumed"], 0);
    std::fs::write(place.join("verified"), format!("stored\n{}\n", ids[0])).unwrap();
    assert_eq!(host.json(&["verify", "--all", "--resume"])["resumed"], 0, "stored bytes are not all");
    // Who may not write marks can verify.
    std::fs::remove_dir_all(host.path("repo/clusters/main/marks")).unwrap();
    std::fs::write(host.path("repo/clusters/main/marks"), b"").unwrap();
    let verified = host.run(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(said(&verified).contains("was not marked"), "{}", said(&verified));
}

/// The folder of a backup as it was, put back when this is dropped.
struct Kept {
    folder: PathBuf,
    kept: tempfile::TempDir,
}

impl Kept {
    fn of(host: &Pgark, id: &str) -> Self {
        let kept = Self {
            folder: host.path("repo/clusters/main/backups").join(id),
            kept: tempfile::tempdir().unwrap(),
        };
        kept.copy(&kept.folder, &kept.kept.path().join("backup"));
        kept
    }

    fn copy(&self, from: &Path, to: &Path) {
        let _ = self;
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
        self.copy(&self.kept.path().join("backup"), &self.folder);
    }
}

/// Changes what a part of an increment holds, with all digests; a verification says these words.
fn forged(host: &Pgark, id: &str, kind: &str, change: &dyn Fn(&mut Vec<u8>), words: &[&str]) {
    let _kept = Kept::of(host, id);
    forge(host, id, kind, change);
    let verified = host.run(&["verify", id]);
    assert_eq!(verified.status.code(), Some(50), "{words:?}: {}", said(&verified));
    for words in words {
        assert!(said(&verified).contains(words), "{words}: {}", said(&verified));
    }
}

/// Changes bytes at a distance behind others, where those are.
fn at(bytes: &mut [u8], after: &[u8], distance: usize, to: &[u8]) {
    if let Some(found) = bytes.windows(after.len()).position(|window| window == after) {
        bytes[found + distance..found + distance + to.len()].copy_from_slice(to);
    }
}

/// Where the windows of a file begin in an archive: behind the header of their member.
fn member(bytes: &[u8], name: &str) -> Option<usize> {
    let is_it = |header: &[u8]| {
        header.starts_with(name.as_bytes()) && header[name.len()] == 0 && &header[257..262] == b"ustar"
    };
    bytes.chunks(512).position(is_it).map(|n| (n + 1) * 512)
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_increments_are_found() {
    let server = server_with_checksums();
    let table = "CREATE TABLE t AS SELECT n, 'needle ' || n AS x FROM generate_series(1, 5000) n";
    sql(&server, "postgres", table).await;
    let host = Pgark::new().with("PGARK_REPO", "repo");
    let db = server.url("postgres");
    let backup = |how: &str| {
        let made = host.json(&["backup", "--db", &db, "--compress", "none", how]);
        made["backup"]["id"].as_str().unwrap().to_owned()
    };
    let full = backup("--physical");
    sql(&server, "postgres", "UPDATE t SET x = 'sherlock ' || n WHERE n % 10 = 7").await;
    sql(&server, "postgres", "CHECKPOINT").await;
    let id = backup("--incremental");
    let one = async |query: &str| sql(&server, "postgres", query).await[0][0].clone().unwrap();
    let path = one("SELECT pg_relation_filepath('t')").await;
    let page = one("SELECT (ctid::text::point)[0]::int FROM t WHERE n = 777").await;
    assert_eq!(host.json(&["verify", "--all"])["good"], true);

    let page_is_wrong = format!("{path}: page {page} does not have its checksum");
    forged(&host, &id, "delta", &|b| replace(b, b"sherlock 777", b"moriarty 777"), &[&page_is_wrong]);
    let window = format!("blocks/{path}/1");
    let in_window = |bytes: &mut Vec<u8>, offset: usize, to: &[u8]| {
        if let Some(begin) = member(bytes, &window) {
            bytes[begin + offset..begin + offset + to.len()].copy_from_slice(to);
        }
    };
    forged(&host, &id, "delta", &|b| in_window(b, 0, b"nonsense"), &[&path, "do not begin as blocks do"]);
    forged(&host, &id, "delta", &|b| in_window(b, 8, &16384_u32.to_le_bytes()), &[&path, "do not fit"]);
    forged(&host, &id, "delta", &|b| in_window(b, 24, &[0xff; 4]), &[&path, "do not fit the file"]);
    forged(
        &host,
        &id,
        "delta",
        &|b| in_window(b, 16, &(1_u64 << 31).to_le_bytes()),
        &[&path, "behind the end"],
    );
    let longer = |b: &mut Vec<u8>| in_window(b, 16, &(1_u64 << 20).to_le_bytes());
    forged(&host, &id, "delta", &longer, &[&path, "its list says"]);
    // What came whole has the server's checksum.
    let other = |b: &mut Vec<u8>| replace(b, b"User Name Maps", b"user Name Maps");
    forged(&host, &id, "delta", &other, &["pg_ident.conf has another checksum than the server gave it"]);
    let listed = format!("/{path}\0");
    let renamed = format!("/{}x\0", &path[..path.len() - 1]);
    let renamed = |b: &mut Vec<u8>| replace(b, listed.as_bytes(), renamed.as_bytes());
    let words = format!("{path} is not in the increment's list");
    forged(&host, &id, "list", &renamed, &[&words]);
    let whole = format!("b 600 {}", one("SELECT pg_relation_size('t') || ' base/'").await);
    let as_whole = |b: &mut Vec<u8>| {
        let entry = format!("{whole}{path}\0");
        at(b, entry.as_bytes(), 0, b"w");
    };
    forged(&host, &id, "list", &as_whole, &["is in the increment's list as something else"]);

    // What it builds on: an object that is gone, a record that is, and what a verification found.
    let words = |output: &std::process::Output, words: &[&str]| {
        assert_eq!(output.status.code(), Some(50), "{}", said(output));
        for word in words {
            assert!(said(output).contains(word), "{word}: {}", said(output));
        }
    };
    {
        let _kept = Kept::of(&host, &full);
        let part = the_part(&host, &full);
        std::fs::remove_file(&part).unwrap();
        let name = part.file_name().unwrap().to_str().unwrap();
        words(
            &host.run(&["verify", "--stored", &id]),
            &["missing: parent", &full, name, "cannot be restored"],
        );
        std::fs::write(&part, b"short").unwrap();
        words(&host.run(&["verify", "--stored", &id]), &["damaged: parent", &full, name, "5 bytes"]);
        std::fs::remove_file(host.path("repo/clusters/main/backups").join(&full).join("backup.json"))
            .unwrap();
        words(&host.run(&["verify", "--stored", &id]), &["missing: parent", &full]);
    }
    {
        let _kept = Kept::of(&host, &full);
        forge(&host, &full, "tar", |bytes| replace(bytes, b"needle 777", b"needle 778"));
        words(&host.run(&["verify", "--all"]), &["damaged: parent", &full, "2 not"]);
    }
    words(&host.run(&["verify", &id]), &["damaged: parent", "a verification found it damaged on"]);
    assert_eq!(host.json(&["verify", "--all"])["good"], true);
    assert_eq!(host.json(&["verify", &id])["good"], true);
}

/// The first part of a backup.
fn the_part(host: &Pgark, id: &str) -> PathBuf {
    let folder = host.path("repo/clusters/main/backups").join(id).join("parts");
    let parts = std::fs::read_dir(folder).unwrap().flatten();
    parts.map(|entry| entry.path()).min().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_increments_of_the_server_are_found() {
    if left_out("docker") {
        return;
    }
    let (container, session) = with_summaries(18).await;
    let all = async |statements: &[&str]| support::chain::all(&session, statements).await;
    all(&[
        "CREATE TABLE t AS SELECT n, 'needle ' || n AS x FROM generate_series(1, 60000) n",
        // Its hint bits would change all of its pages later.
        "VACUUM t",
        "CHECKPOINT",
    ])
    .await;
    let host = Pgark::new().with("PGARK_REPO", "repo");
    let db = container.url("postgres");
    let backup = |how: &[&str]| {
        let made = host.json(&[&["backup", "--db", &db, "--compress", "none"], how].concat());
        made["backup"]["id"].as_str().unwrap().to_owned()
    };
    backup(&["--physical"]);
    // What was made since its parent comes whole.
    all(&["CHECKPOINT"]).await;
    backup(&["--incremental", "--server-summaries"]);
    all(&["UPDATE t SET x = 'sherlock ' || n WHERE n % 1000 = 777", "CHECKPOINT"]).await;
    let id = backup(&["--incremental", "--server-summaries"]);
    let shown = host.json(&["show", &id]);
    assert!(shown["backup"]["parts"].to_string().contains("\"incremental\""), "{shown:#}");
    let one = async |query: &str| session.value(query).await.unwrap().unwrap();
    let path = one("SELECT pg_relation_filepath('t')").await;
    let page = one("SELECT (ctid::text::point)[0]::int FROM t WHERE n = 777").await;
    assert_eq!(host.json(&["verify", "--all"])["good"], true);

    let (folder, name) = path.rsplit_once('/').unwrap();
    let file = format!("{folder}/INCREMENTAL.{name}");
    let other_sum = format!("{file} has another checksum than the server gave it");
    let page_is_wrong = format!("{path}: page {page} does not have its checksum");
    let words = [page_is_wrong.as_str(), &other_sum];
    forged(&host, &id, "incremental", &|b| replace(b, b"sherlock 777", b"moriarty 777"), &words[..1]);
    let in_head = |bytes: &mut Vec<u8>, offset: usize, to: &[u8]| {
        if let Some(begin) = member(bytes, &file) {
            bytes[begin + offset..begin + offset + to.len()].copy_from_slice(to);
        }
    };
    let head = |offset: usize, to: &'static [u8], words: &[&str]| {
        forged(&host, &id, "incremental", &|b| in_head(b, offset, to), &[&[path.as_str()], words].concat());
    };
    head(0, b"nope", &["do not begin as a server's increment does"]);
    head(4, &[1, 0, 0, 0], &["another length than its blocks"]);
    head(8, &[0xff, 0xff, 0xff, 0x7f], &["longer than a segment"]);
    head(12, &[0xff, 0xff, 0xff, 0x7f], &["not in order"]);
    // What came whole, and where nothing but the manifest tells: zeros behind the numbers.
    let other = |b: &mut Vec<u8>| replace(b, b"User Name Maps", b"user Name Maps");
    forged(
        &host,
        &id,
        "incremental",
        &other,
        &["pg_ident.conf has another checksum than the server gave it"],
    );
    forged(&host, &id, "incremental", &|b| in_head(b, 8000, b"x"), &[&other_sum]);
}

/// Pushes a file as `archive_command` does.
fn push(host: &Pgark, config: &str, path: &Path) {
    let pushed = host.run(&["--config", config, "wal", "push", path.to_str().unwrap(), "--ahead", "0"]);
    assert!(pushed.status.success(), "{}", said(&pushed));
}

/// Stores a history as `wal push` does, and nothing of its timeline.
fn store_history(cluster: &Path, timeline: u32) {
    let text = format!("1\t0/100000{timeline}\tno reason\n");
    let is_system = |path: &PathBuf| {
        path.file_name().unwrap().to_str().unwrap().starts_with(|c: char| c.is_ascii_digit())
    };
    let systems = std::fs::read_dir(cluster.join("wal")).unwrap().flatten().map(|entry| entry.path());
    let folder = systems.into_iter().find(is_system).unwrap().join("history");
    std::fs::create_dir_all(&folder).unwrap();
    let digest = blake3::hash(text.as_bytes()).to_hex();
    std::fs::write(folder.join(format!("{timeline:08X}-{}.history", &digest[..32])), text).unwrap();
}

/// Ends a segment; its path.
async fn full_segment(server: &TempServer) -> PathBuf {
    let name = sql(server, "postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    sql(
        server,
        "postgres",
        "SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)",
    )
    .await;
    server.data().join("pg_wal").join(name[0][0].as_deref().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "it is one matrix")]
async fn every_object_beside_the_backups() {
    let mut dice = Dice::new();
    let server = support::server();
    sql(&server, "postgres", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    let host = Pgark::new();
    let (_, recipient) = host.key("key.txt");
    let config = format!(
        "[repository]\nurl = \"repo\"\n[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"key.txt\"\n[host]\nstate = \"state\"\n"
    );
    let config = host.write("pgark.toml", &config);
    let run = |args: &[&str]| host.run(&[&["--config", &config], args].concat());
    let ok = |args: &[&str]| {
        let output = run(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
    };
    let db = server.url("postgres");
    let mut ids = Vec::new();
    for _ in 0..2 {
        ok(&["backup", "--db", &db]);
        let listed: Value = serde_json::from_slice(&run(&["--json", "list"]).stdout).unwrap();
        let newest = listed["backups"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
        ids.push(newest);
        ok(&["pin", ids.last().unwrap()]);
    }
    // Those of another repository, and of another cluster in this one.
    ok(&["backup", "--db", &db, "--cluster", "other"]);
    ok(&["init", "--repo", &host.place("second")]);
    let segment = full_segment(&server).await;
    push(&host, &config, &segment);
    let cluster = host.path("repo/clusters/main");
    for timeline in [2, 3] {
        store_history(&cluster, timeline);
    }
    // An identity that was, and records of drills.
    let identity = json!({"format": 1, "system_identifier": "7", "server_version": "14.1", "since": "2026-01-01T00:00:00Z"});
    let before = cluster.join("identity/01KDVE4Q000000000000000000.json");
    std::fs::write(&before, with_own_digest(identity)).unwrap();
    std::fs::create_dir_all(cluster.join("drills")).unwrap();
    for id in ["20260101T000000Z-drill-aaaa", "20260102T000000Z-drill-bbbb"] {
        let record = with_own_digest(json!({"format": 1, "id": id, "cluster": "main"}));
        std::fs::write(cluster.join(format!("drills/{id}.json")), record).unwrap();
    }
    let name_of = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let all = |folder: &str, has: &str| -> Vec<PathBuf> {
        let found = host.files(&format!("repo/{folder}")).into_iter().filter(|name| name.contains(has));
        found.map(|name| host.path("repo").join(folder).join(name)).collect()
    };
    let own = |area: &str| format!("clusters/main/{area}");
    let (marks, audit, histories) =
        (all(&own("marks"), "pin"), all(&own("audit"), ""), all(&own("wal"), ".history"));
    let of_backup = |n: usize, name: &str| own(&format!("backups/{}/{name}", ids[n]));
    let at = |key: String| host.path("repo").join(key);
    let last = |area: &str| all(&own(area), "").pop().unwrap();
    let drills = all(&own("drills"), "");
    // What is harmed, what it is swapped with, and whether its loss can be seen.
    let matrix: Vec<(&str, PathBuf, PathBuf, bool)> = vec![
        ("repository", at("pgark.json".to_owned()), host.path("second/pgark.json"), true),
        ("announcement", at(of_backup(1, "started.json")), at(of_backup(0, "started.json")), false),
        ("identity", last("identity"), before, true),
        ("index", last("index"), all("clusters/other/index", "").pop().unwrap(), false),
        ("pin", marks[1].clone(), marks[0].clone(), false),
        ("audit entry", audit[1].clone(), audit[0].clone(), true),
        ("last audit entry", audit[audit.len() - 1].clone(), audit[0].clone(), false),
        ("drill", drills[1].clone(), drills[0].clone(), false),
        ("key of WAL", last("wal/keys"), at(of_backup(0, "key.age")), true),
        ("history", histories[1].clone(), histories[0].clone(), false),
    ];
    let settings = Settings::load(Path::new(&config)).unwrap();
    let (main, cancel) = (ClusterName::default(), CancellationToken::new());
    let mut wanted = VerifyWanted::default();
    wanted.all = true;
    let verify = async || settings.run_verify(&main, &wanted, None, &cancel).await;
    assert!(verify().await.unwrap().good);
    let raw = std::fs::read(&segment).unwrap();
    let mut wrong = Vec::new();
    for (kind, path, other, loss_is_seen) in &matrix {
        for harm in HARMS {
            let _mended = Harmed::new(path, other, harm, &mut dice);
            let (what, name) = (format!("{harm:?} {kind}"), name_of(path));
            let stem = name.split('.').next().unwrap();
            // That of another repository is one, too: only where there are copies can that be told.
            let can_be_seen =
                (harm != Harm::Lost || *loss_is_seen) && (*kind, harm) != ("repository", Harm::Swapped);
            match verify().await {
                Ok(found) if !can_be_seen => {
                    assert!(found.good || harm == Harm::Swapped, "{what}: {found:?}");
                }
                Ok(found) if found.good => wrong.push(format!("{what} was not found")),
                Ok(found) => {
                    let words = format!("{:?} {:?}", found.others, found.wal);
                    let folder = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
                    let told = |word: &str| words.split("findings").any(|list| list.contains(word));
                    let named = told(stem) || (harm == Harm::Lost && told(folder));
                    if !named {
                        wrong.push(format!("{what} is not named: {words}"));
                    }
                }
                // Nothing opens, and nothing says that another key would not.
                Err(error) => {
                    let words = format!("{error:?}");
                    let named = words.contains(stem) || error.kind() == ErrorKind::NotARepository;
                    // The bit may make the format a newer one, which nobody here can read.
                    let newer = error.kind() == ErrorKind::NewerFormat;
                    if !(newer || ["repository", "key of WAL"].contains(kind)) || !named {
                        wrong.push(format!("{what}: {words}"));
                    }
                }
            }
            // The backups are the same ones, or nobody says which.
            let listed = async { Catalog::load(&settings.open_repository().await?, &main).await };
            match listed.await {
                Ok(catalog) => {
                    let found: Vec<&str> = catalog.backups().map(|backup| backup.id.as_str()).collect();
                    let pinned = |id: &&String| {
                        catalog.marks().pin(&id.parse().unwrap(), jiff::Timestamp::now()).is_some()
                    };
                    let pins = ids.iter().filter(pinned).count();
                    if found != ids || (pins != 2 && (*kind, harm) != ("pin", Harm::Lost)) {
                        wrong.push(format!("{what}: {pins} pins, listed are {found:?}"));
                    }
                }
                Err(error) if *kind == "repository" => drop(error),
                Err(error) => wrong.push(format!("{what}: listing: {error:?}")),
            }
            // WAL is what it was, or it is not served; that it is not there is never said.
            if ["identity", "key of WAL", "history"].contains(kind) {
                let (asked, wanted) = match *kind {
                    "history" => ("00000003.history".to_owned(), b"1\t0/1000003\tno reason\n".to_vec()),
                    _ => (name_of(&segment), raw.clone()),
                };
                let to = host.place("fetched");
                let fetched = run(&["wal", "fetch", &asked, &to, "--ahead", "0"]);
                let there = std::fs::read(&to).ok();
                let right = match fetched.status.code() {
                    Some(0) => there.as_ref() == Some(&wanted),
                    Some(1) => there.is_none() && harm == Harm::Lost,
                    code => code == Some(126) && there.is_none(),
                };
                if !right {
                    wrong.push(format!("{what}: fetch: {}", said(&fetched)));
                }
                let _ = std::fs::remove_file(to);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(verify().await.unwrap().good);
}
