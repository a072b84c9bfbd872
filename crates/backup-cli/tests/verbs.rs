//! Every verb once, as a script would use it: what it prints with `--json`, and that it does what it says.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cli::{Pgark, said};
use pgark::ErrorKind;
use pgark::postgres::TempServer;
use serde_json::Value;
use support::{connect, fingerprint, sample, server, sql};

/// A throwaway key of OpenSSH's, made for this test.
const SSH_KEY: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACCXIYDD40adfndjup7mwLZ0viJ/pI85YSxXIXPxgu+VtgAAAKDfkm1T35Jt
UwAAAAtzc2gtZWQyNTUxOQAAACCXIYDD40adfndjup7mwLZ0viJ/pI85YSxXIXPxgu+Vtg
AAAEDcsuMhU6BLnV7H6hPNhTh4lMKcNeYG0ZpenfBe4QY8IJchgMPjRp1+d2O6nubAtnS+
In+kjzlhLFchc/GC75W2AAAAF3Rocm93YXdheSBrZXkgb2YgYSB0ZXN0AQIDBAUG
-----END OPENSSH PRIVATE KEY-----
";
const SSH_RECIPIENT: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJchgMPjRp1+d2O6nubAtnS+In+kjzlhLFchc/GC75W2 a comment";

async fn sampled() -> TempServer {
    let server = server();
    sql(&server, "postgres", &sample(500)).await;
    server
}

/// Restores a backup into a new database and compares it with the source.
async fn comes_back(pgark: &Pgark, server: &TempServer, backup: &str, keys: &[&str]) -> Value {
    let (repo, into) = (pgark.place("repo"), server.url("restored"));
    let done = pgark.json(&[&["restore", backup, "--repo", &repo, "--into", &into], keys].concat());
    let source = fingerprint(&connect(&server.url("postgres")).await).await;
    assert_eq!(source, fingerprint(&connect(&into).await).await);
    sql(server, "postgres", "DROP DATABASE restored").await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn from_init_to_restore() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let (key, recipient) = pgark.key("key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(recipient.starts_with("age1"));
    assert_eq!(pgark.json(&["key", "recipient", &key])["recipients"], serde_json::json!([recipient]));
    assert_eq!(pgark.text(&["key", "recipient", &key]), format!("{recipient}\n"));

    let made = pgark.json(&["init", "--repo", &repo]);
    assert_eq!((&made["new"], &made["location"]), (&true.into(), &repo.as_str().into()));
    assert_eq!(made["abilities"], serde_json::json!({"conditional_create": true, "delete": true}));
    let again = pgark.json(&["init", "--repo", &repo]);
    assert_eq!((&again["new"], &again["repository"]), (&false.into(), &made["repository"]));

    let plan = pgark.json(&["backup", "--repo", &repo, "--db", &db, "--dry-run"]);
    assert_eq!(plan["preview"]["database"], "postgres");
    assert!(
        plan["preview"]["raw_bytes"].as_u64().unwrap() > 0
            && plan["memory_total"].as_u64().unwrap() > 1 << 20
    );
    pgark.assert_no_backup(&repo);

    let done = pgark.json(&[
        "backup",
        "--repo",
        &repo,
        "--db",
        &db,
        "--recipient",
        &recipient,
        "--label",
        "nightly",
        "--compress",
        "gzip:1",
        "--jobs",
        "2",
    ]);
    assert_eq!((&done["new_repository"], &done["repository"]), (&false.into(), &repo.as_str().into()));
    let backup = &done["backup"];
    let id = backup["id"].as_str().unwrap();
    assert_eq!(
        (&backup["label"], &backup["compression"], &backup["encryption"]["method"]),
        (&"nightly".into(), &"gzip".into(), &"age".into())
    );
    assert_eq!((&backup["warnings"], &backup["messages"]), (&0.into(), &serde_json::json!([])));

    let list = pgark.json(&["list", "--repo", &repo]);
    assert_eq!(
        (list["backups"].as_array().unwrap().len(), &list["backups"][0]["id"], &list["unfinished"]),
        (1, &backup["id"], &serde_json::json!([]))
    );
    let shown = pgark.json(&["show", "--repo", &repo])["backup"].clone();
    assert_eq!((&shown["id"], &shown["stored_bytes"]), (&backup["id"], &backup["stored_bytes"]));
    assert!(shown["parts"][0]["objects"][0]["key"].as_str().unwrap().ends_with(".toc.gz.age"), "{shown}");
    assert_eq!(
        pgark.json(&["show", &id[..12], "--repo", &repo])["backup"]["id"],
        backup["id"],
        "the beginning of an id"
    );

    let report = pgark.json(&["verify", "--repo", &repo, "--identity", &key]);
    assert_eq!(
        (&report["good"], &report["backups"][0]["depth"], &report["backups"][0]["raw_bytes"]),
        (&true.into(), &"raw".into(), &backup["raw_bytes"])
    );
    let report = pgark.json(&["verify", "--all", "--stored", "--repo", &repo]);
    assert_eq!((&report["good"], &report["backups"][0]["depth"]), (&true.into(), &"stored".into()));

    let restored = comes_back(&pgark, &server, "latest", &["--identity", &key]).await;
    assert_eq!(
        (&restored["restored"]["target"]["database"], &restored["restored"]["target"]["created"]),
        (&"restored".into(), &true.into())
    );
    assert_eq!(
        (&restored["restored"]["raw_bytes"], &restored["restored"]["backup"]["id"]),
        (&backup["raw_bytes"], &backup["id"])
    );

    // The same for people: something is said, and nothing with --quiet.
    let into = server.url("again");
    for (args, word) in [
        (vec!["list", "--repo", &repo], "nightly"),
        (vec!["show", "--repo", &repo], "gzip"),
        (vec!["verify", "--repo", &repo, "--identity", &key], "good"),
        (vec!["restore", "--repo", &repo, "--identity", &key, "--into", &into], "restored"),
        (vec!["backup", "--repo", &repo, "--db", &db], "not encrypted"),
        (vec!["init", "--repo", &repo], "already"),
    ] {
        let text = pgark.text(&args);
        assert!(text.contains(word), "{args:?}: {text}");
    }
    for args in [
        &["init", "--repo", &repo][..],
        &["verify", "--repo", &repo],
        &["backup", "--repo", &repo, "--db", &db],
    ] {
        let output = pgark.run(&[args, &["--quiet"]].concat());
        assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{}",
            said(&output)
        );
    }
    the_audit_log_tells(&pgark, &repo);
}

/// Who did what, and that nobody took it back.
fn the_audit_log_tells(pgark: &Pgark, repo: &str) {
    let log = pgark.json(&["audit", "list", "--repo", repo]);
    let actions: Vec<String> = (log["entries"].as_array().unwrap().iter())
        .map(|e| format!("{} {}", e["action"].as_str().unwrap(), e["outcome"].as_str().unwrap()))
        .collect();
    let restored = ["restore begun", "restore done"];
    assert_eq!(actions[..3], [&["backup done"], &restored[..]].concat());
    assert_eq!((&log["entries"][2]["details"]["database"], actions.len()), (&"restored".into(), 7));
    let text = pgark.text(&["audit", "list", "--last", "1", "--repo", repo]);
    assert!(
        text.lines().count() == 1 && text.contains(" backup ") && text.contains("kind=logical"),
        "{text}"
    );
    assert!(pgark.text(&["audit", "verify", "--repo", repo]).contains("7 entries"));
    std::fs::remove_file(Path::new(repo).join("clusters/main/audit/0000000/0000000007.json")).unwrap();
    let cut = pgark.run(&["audit", "verify", "--repo", repo, "--json"]);
    assert_eq!(cut.status.code(), Some(50), "{}", said(&cut));
    let cut: Value = serde_json::from_slice(&cut.stdout).unwrap();
    assert_eq!((&cut["seen"], &cut["findings"][0]), (&7.into(), &"entry 7 is missing".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_and_its_change() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    // Only the first line counts, whatever it ends with.
    let old = pgark.write("old", "correct horse\r\nnote\n");
    let new = pgark.write("new", "battery staple");
    pgark.json(&["backup", "--repo", &repo, "--db", &db, "--passphrase-file", &old]);
    comes_back(&pgark, &server, "latest", &["--passphrase-file", &old]).await;
    let same = pgark.write("same", "correct horse");
    pgark.json(&["verify", "--repo", &repo, "--passphrase-file", &same]);
    pgark.json(&["key", "rotate", "--repo", &repo, "--passphrase-file", &old, "--new-passphrase-file", &new]);
    pgark.fails(&["verify", "--repo", &repo, "--passphrase-file", &old], ErrorKind::WrongKey);
    comes_back(&pgark, &server, "latest", &["--passphrase-file", &new]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let ((old, old_recipient), (new, new_recipient), (second, second_recipient)) =
        (pgark.key("old"), pgark.key("new"), pgark.key("second"));
    let passphrase = pgark.write("passphrase", "correct horse\n");
    pgark.json(&["backup", "--repo", &repo, "--db", &db, "--recipient", &old_recipient]);
    pgark.json(&["backup", "--repo", &repo, "--db", &db, "--passphrase-file", &passphrase]);
    pgark.json(&["backup", "--repo", &repo, "--db", &db]);

    // All that are encrypted; one needs the identity, one the passphrase.
    let keys = ["--identity", &old, "--passphrase-file", &passphrase];
    let rotate = [
        "key",
        "rotate",
        "--all",
        "--repo",
        &repo,
        "--recipient",
        &new_recipient,
        "--recipient",
        &second_recipient,
    ];
    let done = pgark.json(&[&rotate[..], &keys].concat());
    let done = done["rotated"].as_array().unwrap();
    assert_eq!(done.len(), 2);
    for one in done {
        let id = one["id"].as_str().unwrap();
        assert!(
            one["created"].as_str().unwrap().starts_with("key-") && one["remaining"] == serde_json::json!([])
        );
        let left: Vec<String> =
            pgark.files("repo").into_iter().filter(|f| f.contains(id) && f.contains("/key")).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        pgark.fails(&["verify", id, "--repo", &repo, "--identity", &old], ErrorKind::WrongKey);
        for key in [&new, &second] {
            comes_back(&pgark, &server, id, &["--identity", key]).await;
        }
    }
    assert_eq!(pgark.json(&["verify", "--all", "--repo", &repo, "--identity", &new])["good"], true);
    pgark
        .fails(
            &["key", "rotate", "latest", "--repo", &repo, "--identity", &new, "--recipient", &old_recipient],
            ErrorKind::Unsupported,
        )
        .says("not encrypted");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_key() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let key = pgark.write("id_ed25519", SSH_KEY);
    pgark.json(&["backup", "--repo", &repo, "--db", &db, "--recipient", SSH_RECIPIENT]);
    comes_back(&pgark, &server, "latest", &["--identity", &key]).await;
    pgark.fails(&["key", "recipient", &key], ErrorKind::Unsupported).says(".pub");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_file_and_of_variables() {
    let server = sampled().await;
    let (key, recipient) = {
        let pgark = Pgark::new();
        let (file, recipient) = pgark.key("key");
        (std::fs::read_to_string(file).unwrap(), recipient)
    };
    let pgark = Pgark::new();
    pgark.write("key.txt", &key);
    let config = format!(
        "[repository]\nurl = \"repo\"\n[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"key.txt\"\n[cluster.shop]\ndb = \"{}\"\n",
        server.url("postgres")
    );
    pgark.write("pgark.toml", &config);
    let done = pgark.json(&["backup"]);
    assert_eq!(
        (&done["backup"]["cluster"], &done["backup"]["encryption"]["method"]),
        (&"shop".into(), &"age".into())
    );
    assert_eq!(pgark.json(&["verify"])["backups"][0]["depth"], "raw");
    comes_back(&pgark, &server, "latest", &[]).await;

    let elsewhere = Pgark::new().with("PGARK_REPO", &pgark.place("repo")).with("PGARK_CLUSTER", "shop");
    assert_eq!(elsewhere.json(&["list"])["backups"].as_array().unwrap().len(), 1);
    let elsewhere = elsewhere.with("PGARK_IDENTITY", &pgark.place("key.txt"));
    assert_eq!(elsewhere.json(&["verify"])["backups"][0]["depth"], "raw");
    let folder = server.folder().display().to_string();
    let elsewhere = elsewhere
        .with("PGHOST", &folder)
        .with("PGUSER", "postgres")
        .with("PGPORT", &server.port().to_string());
    assert_eq!(elsewhere.json(&["backup"])["backup"]["source"]["database"], "postgres");
}

#[test]
fn completions_and_the_demo() {
    let pgark = Pgark::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = pgark.text(&["completions", shell]);
        assert!(script.contains("pgark") && script.contains("passphrase-file"), "{shell}: {script}");
    }
    assert!(
        pgark.text(&["--help"]).contains("Exit codes") && pgark.text(&["--version"]).starts_with("pgark ")
    );
    let done = pgark.json(&["demo", "--rows", "100"]);
    let steps: Vec<&str> =
        done["steps"].as_array().unwrap().iter().map(|s| s["step"].as_str().unwrap()).collect();
    for word in ["backed it up", "verified", "destroyed", "restored it", "all equal", "removed"] {
        assert!(steps.iter().any(|step| step.contains(word)), "{word}: {steps:?}");
    }
    assert_eq!(
        std::fs::read_dir(pgark.home()).unwrap().count(),
        0,
        "nothing is left in the folder it ran in"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_backed_up_and_restored() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let (key, recipient) = pgark.key("key");
    let plan = pgark.json(&["backup", "--repo", &repo, "--db", &db, "--physical", "--dry-run"]);
    assert!(plan["preview"]["raw_bytes"].as_u64().unwrap() > 1 << 20, "{plan}");
    assert!(!pgark.path("repo").exists(), "a dry run makes nothing");

    let made = pgark.json(&[
        "backup",
        "--repo",
        &repo,
        "--db",
        &db,
        "--physical",
        "--recipient",
        &recipient,
        "--max-rate",
        "1048576",
    ]);
    assert_eq!(
        (&made["backup"]["kind"], &made["backup"]["warnings"]),
        (&"physical".into(), &0.into()),
        "{made}"
    );
    let shown = pgark.text(&["show", "--repo", &repo, "latest"]);
    assert!(shown.contains("physical") && shown.contains("WAL          0/"), "{shown}");
    assert_eq!(pgark.json(&["verify", "--repo", &repo, "--identity", &key])["good"], true);

    // Each kind has its place, and what is there is left alone.
    let into = server.url("restored");
    pgark
        .fails(&["restore", "--repo", &repo, "--identity", &key, "--into", &into], ErrorKind::Unsupported)
        .says("data directory");
    let target = server.folder().join("copy");
    let there = target.display().to_string();
    let restore = ["restore", "--repo", &repo, "--identity", &key, "--target-dir", &there];
    let done = pgark.json(&restore);
    assert_eq!(done["restored"]["target"]["timeline"], 1, "{done}");
    pgark.fails(&restore, ErrorKind::Conflict).says("not empty");
    let copy = server.start_on(&target).unwrap();
    let (source, copy) = (connect(&db).await, connect(&copy.url("postgres")).await);
    assert_eq!(fingerprint(&source).await, fingerprint(&copy).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_are_made_listed_and_restored() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let backup = ["backup", "--repo", &repo, "--db", &db, "--incremental"];
    // The first one has nothing to build on, and says so.
    let full = pgark.json(&backup);
    assert_eq!(full["backup"]["parent"], serde_json::Value::Null);
    assert!(full["backup"]["messages"][0].as_str().unwrap().contains("not an increment"), "{full}");
    let source = connect(&db).await;
    source.rows("UPDATE people SET age = 7 WHERE id = 7").await.unwrap();
    let said = pgark.text(&[&backup[..], &["--max-rate", "1048576", "--label", "small"]].concat());
    let full = full["backup"]["id"].as_str().unwrap();
    assert!(said.contains(&format!("an increment of {full}")), "{said}");

    let listed = pgark.json(&["list", "--repo", &repo]);
    let small = &listed["backups"][1];
    assert_eq!((&small["parent"], &small["warnings"]), (&full.into(), &0.into()), "{listed}");
    assert!(small["stored_bytes"].as_u64() < listed["backups"][0]["stored_bytes"].as_u64(), "{listed}");
    let table = pgark.text(&["list", "--repo", &repo]);
    assert!(table.contains("INCREMENT OF") && table.matches(full).count() == 2, "{table}");
    let shown = pgark.text(&["show", "--repo", &repo]);
    assert!(shown.contains(&format!("increment of {full}")), "{shown}");
    assert!(pgark.text(&["verify", "--repo", &repo]).contains(&format!("it builds on {full}")));

    // Another host has no map.
    let elsewhere = pgark.place("elsewhere");
    let made = pgark.json(&[&backup[..], &["--state", &elsewhere, "--from", "latest"]].concat());
    assert!(made["backup"]["messages"][0].as_str().unwrap().contains("another host"), "{made}");
    let plan = pgark.json(&[&backup[..], &["--dry-run"]].concat());
    assert!(plan["memory"]["dumper"].as_u64().unwrap() > 0, "{plan}");
    pgark.fails(&[&backup[..], &["--from", "2020"]].concat(), ErrorKind::BackupNotFound);
    let alone = ["backup", "--repo", &repo, "--db", &db, "--max-rate", "1048576"];
    assert_eq!(pgark.run(&alone).status.code(), Some(2));

    let target = server.folder().join("copy");
    let small = small["id"].as_str().unwrap();
    pgark.json(&["restore", small, "--repo", &repo, "--target-dir", &target.display().to_string()]);
    let copy = server.start_on(&target).unwrap();
    assert_eq!(fingerprint(&source).await, fingerprint(&connect(&copy.url("postgres")).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_would_fail_and_what_to_do() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let check = |args: &[&str]| {
        let output = pgark.run(&[&["check", "--repo", &repo, "--json"], args].concat());
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let bad: Vec<String> = (report["checks"].as_array().unwrap().iter())
            .filter(|check| check["level"] == "bad")
            .map(|check| format!("{} {}", check["found"].as_str().unwrap(), check["mend"]))
            .collect();
        assert_eq!(output.status.code(), Some(if bad.is_empty() { 0 } else { 47 }), "{}", said(&output));
        bad
    };
    assert_eq!(check(&["--db", &db]), Vec::<String>::new(), "the first backup makes the repository");
    let backup = pgark.json(&["backup", "--repo", &repo, "--db", &db]);
    assert_eq!(check(&["--db", &db, "--physical", "--logical"]), Vec::<String>::new());

    // A role that may read nothing, and may not replicate.
    sql(&server, "postgres", "CREATE ROLE poor LOGIN PASSWORD 'x'; CREATE TABLE hidden (a int)").await;
    sql(&server, "postgres", "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY").await;
    let poor = format!("{db} user=poor password=x");
    let bad = check(&["--db", &poor, "--physical", "--logical"]).join("\n");
    for words in ["GRANT pg_read_all_data TO poor", "ALTER ROLE poor REPLICATION"] {
        assert!(bad.contains(words), "{bad}");
    }
    sql(&server, "postgres", "GRANT pg_read_all_data TO poor").await;
    let bad = check(&["--db", &poor]).join("\n");
    assert!(bad.contains("row security hides rows of 1 tables") && !bad.contains("GRANT"), "{bad}");

    // More tables than the server has room for locks.
    sql(
        &server,
        "postgres",
        "DO $$BEGIN FOR i IN 1..700 LOOP EXECUTE format('CREATE TABLE many_%s ()', i); IF \
        i % 100 = 0 THEN COMMIT; END IF; END LOOP; END$$",
    )
    .await;
    let room = &sql(
        &server,
        "postgres",
        "SELECT current_setting('max_locks_per_transaction')::int * \
        current_setting('max_connections')::int",
    )
    .await[0][0]
        .clone()
        .unwrap();
    let warned = pgark.text(&["check", "--repo", &repo, "--db", &db]);
    assert!(warned.contains(&format!("room for {room} locks")), "{warned}");

    // A backup that was found damaged, and a server that is not there.
    let id = backup["backup"]["id"].as_str().unwrap();
    let repository =
        pgark::Repository::open(pgark::open_store(&repo, &pgark::StoreOptions::default()).unwrap());
    let cluster = pgark::repository::ClusterName::default();
    let damaged = pgark::repository::Verb::Damaged;
    repository.await.unwrap().mark(&cluster, &id.parse().unwrap(), damaged, None).await.unwrap();
    let bad = check(&["--db", "host=127.0.0.1 port=1 connect_timeout=2 user=x dbname=x"]).join("\n");
    assert!(bad.contains(id) && bad.contains("127.0.0.1"), "{bad}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_what_is_there_and_what_is_late() {
    let server = sampled().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let config = |objectives: &str| {
        pgark.write("pgark.toml", &format!("[repository]\nurl = {repo:?}\n[objectives]\n{objectives}\n"))
    };
    let file = config("");
    let status = |code: i32| {
        let output = pgark.run(&["--config", &file, "status", "--json"]);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found: Vec<String> = (status["clusters"][0]["findings"].as_array().unwrap().iter())
            .map(|f| f["area"].as_str().unwrap().to_owned())
            .collect();
        (status["clusters"][0].clone(), found)
    };
    pgark.json(&["--config", &file, "init"]);
    assert_eq!(status(47).1, ["backup"], "there is none");

    let logical = pgark.json(&["--config", &file, "backup", "--db", &db]);
    let physical = pgark.json(&["--config", &file, "backup", "--physical", "--db", &db]);
    let (told, found) = status(0);
    assert!(found.is_empty(), "{told}");
    let series = told["series"].as_array().unwrap();
    let newest: Vec<&Value> = series.iter().map(|series| &series["newest"]).collect();
    assert_eq!(newest, [&logical["backup"]["id"], &physical["backup"]["id"]]);
    assert_eq!(
        (&told["rpo"]["by"], &told["wal"], &told["drill"]),
        (&"backup".into(), &Value::Null, &Value::Null)
    );
    assert_eq!((&told["window"]["to"], &told["verify"]["never"]), (&Value::Null, &2.into()));

    // WAL leads on from the physical backup.
    for n in 0..3 {
        sql(&server, "postgres", &format!("CREATE TABLE later_{n} (); SELECT pg_switch_wal()")).await;
    }
    let name = async |lsn: &str| {
        let query = format!("SELECT pg_walfile_name({lsn})");
        sql(&server, "postgres", &query).await[0][0].clone().unwrap()
    };
    let end = physical["backup"]["source"]["end_lsn"].as_str().unwrap();
    let (first, current) = (name(&format!("'{end}'")).await, name("pg_current_wal_lsn()").await);
    let entries = std::fs::read_dir(server.data().join("pg_wal")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut segments: Vec<String> = names.filter(|n| n.len() == 24 && *n >= first && *n < current).collect();
    segments.sort();
    assert!(segments.len() >= 3, "{segments:?}");
    for segment in &segments {
        let path = server.data().join("pg_wal").join(segment);
        pgark.text(&["--config", &file, "wal", "push", path.to_str().unwrap()]);
    }
    let (told, found) = status(0);
    assert!(found.is_empty() && told["rpo"]["by"] == "wal" && told["window"]["to"].is_string(), "{told}");
    let text = pgark.text(&["--config", &file, "status"]);
    assert!(text.starts_with("main: good") && text.contains("would be lost"), "{text}");

    // Everything is late that can be.
    config("rpo = \"1s\"\nbackup_age = \"1s\"\nverify_age = \"1d\"\ndrill_age = \"1d\"");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(status(47).1, ["backup", "backup", "rpo", "verify", "drill"]);
    config("");
    // A segment between goes: the later ones lead nowhere.
    let (lost, system) = (&segments[1], physical["backup"]["source"]["system_identifier"].as_str().unwrap());
    let group = format!("{repo}/clusters/main/wal/{system}/{}/{}", &lost[..8], &lost[..16]);
    let objects = std::fs::read_dir(group).unwrap().flatten().map(|entry| entry.path());
    let of_it = |path: &std::path::PathBuf| path.to_string_lossy().contains(&format!("/{lost}-"));
    objects.filter(of_it).for_each(|path| std::fs::remove_file(path).unwrap());
    let (told, found) = status(47);
    assert_eq!((found, &told["wal"]["gap"]), (vec!["archiving".to_owned()], &lost.as_str().into()), "{told}");
    assert_eq!(told["rpo"]["by"], "backup");
}
