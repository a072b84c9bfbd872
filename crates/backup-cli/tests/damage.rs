//! Objects that were damaged, cut, lost, or changed with those of another backup: what is said of each.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use cli::Pgark;
use host::{Host, Receiving, archived, caught_up, said, until};
use pgark::ErrorKind;
use pgark::postgres::TempServerOptions;
use serde_json::Value;
use support::dice::Dice;
use support::{server_with, sql};

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
            Harm::Cut => bytes.truncate(at),
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
    let segment = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
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
    let misplaced = path.with_file_name(other.file_name().unwrap());
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
