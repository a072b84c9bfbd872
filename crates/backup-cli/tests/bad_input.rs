//! What a user can get wrong: one line that says so, what to do, an exit code of its own, and nothing left
//! behind that looks like a backup.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cli::{Pgark, failure, hold, said, until, until_pg_dump_waits};
use pgark::ErrorKind;
use pgark::postgres::{TempServer, TempServerOptions};
use rustix::process::{Pid, Signal, kill_process};
use support::{free_port, left_out, server, server_with, sql};

/// A server that asks everybody but the socket for a password: ann's is `right`.
async fn asking() -> TempServer {
    let mut options = TempServerOptions::default();
    options.port = Some(free_port());
    options.hba.push("host all all all scram-sha-256".into());
    let server = server_with(&options);
    sql(&server, "postgres", "CREATE ROLE ann SUPERUSER LOGIN PASSWORD 'right'").await;
    server
}

async fn with_a_table() -> TempServer {
    let server = server();
    sql(&server, "postgres", "CREATE TABLE x AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i")
        .await;
    server
}

/// A repository with one backup of a small database. The id of the backup.
fn backed_up(pgark: &Pgark, server: &TempServer, more: &[&str]) -> String {
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let done = pgark.json(&[&["backup", "--repo", &repo, "--db", &db], more].concat());
    done["backup"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_reached() {
    let server = asking().await;
    let pgark = Pgark::new();
    let repo = pgark.place("repo");
    let port = server.port();
    let at = |settings: &str| format!("host=127.0.0.1 port={port} dbname=postgres {settings}");
    let (dead, nowhere) = (free_port(), format!("postgresql://ann:right@127.0.0.1:{port}/nowhere"));
    for (db, kind, word) in [
        (at("user=ann password=wrong"), ErrorKind::Auth, "password of user ann"),
        (at("user=ann"), ErrorKind::Auth, "none is known"),
        (at("user=nobody_here password=right"), ErrorKind::Auth, "nobody_here"),
        (at("user=ann password=right sslmode=require"), ErrorKind::Auth, "TLS"),
        (at("user=ann password=right sslmode=verify-full"), ErrorKind::Config, "authorities"),
        (at("user=ann password=right sslmode=sometimes"), ErrorKind::Usage, "sometimes"),
        (nowhere, ErrorKind::NoDatabase, "nowhere"),
        (format!("host=127.0.0.1 port={dead} user=ann"), ErrorKind::Connect, "no server answers"),
        (format!("host=/nonexistent port={port} user=ann"), ErrorKind::Connect, "/nonexistent"),
        ("host=no.such.host.invalid user=ann".into(), ErrorKind::Connect, "no.such.host.invalid"),
        ("service=nowhere".into(), ErrorKind::Config, "nowhere"),
        ("hots=127.0.0.1".into(), ErrorKind::Usage, "hots"),
    ] {
        let backup = ["backup", "--repo", &repo, "--db", &db];
        pgark.fails(&backup, kind).says(word);
        pgark.fails(&[&backup[..], &["--dry-run"]].concat(), kind).says(word);
        assert!(!Path::new(&repo).exists(), "{db}: a repository is left behind");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_cannot_be_used() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let tools = pgark.place("tools");
    std::fs::create_dir(&tools).unwrap();
    let backup = ["backup", "--repo", &repo, "--db", &db, "--pg-bin", &tools];
    pgark
        .fails(&backup, ErrorKind::ToolMissing)
        .says("pg_dump is not installed")
        .says("postgresql-client-15");
    let fake = pgark.write("tools/pg_dump", "#!/bin/sh\necho 'pg_dump (PostgreSQL) 14.9'\n");
    std::fs::set_permissions(fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    pgark.fails(&backup, ErrorKind::ToolMissing).says("pg_dump 14 is too old").says("postgresql-client-15");
    assert!(!Path::new(&repo).exists());
    // One that fails at its work leaves the repository, which could not be known before, and nothing in it.
    let fake = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 15.1' && exit\nprintf PGDMP\necho 'pg_dump: error: no luck' >&2\nexit 1\n";
    pgark.write("tools/pg_dump", fake);
    std::fs::set_permissions(pgark.path("tools/pg_dump"), std::fs::Permissions::from_mode(0o755)).unwrap();
    pgark.fails(&backup, ErrorKind::ToolFailed).says("no luck");
    pgark.assert_no_backup(&repo);
    assert_eq!(pgark.files("repo"), ["pgark.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_in_the_middle() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let held = hold(&server, "x").await;
    let child = pgark.command(&["backup", "--repo", &repo, "--db", &db]).spawn().unwrap();
    until_pg_dump_waits(&server).await;
    server.stop("immediate").unwrap();
    failure(&child.wait_with_output().unwrap(), ErrorKind::ConnectionLost).says("see its log");
    drop(held);
    pgark.assert_no_backup(&repo);
    assert_eq!(pgark.files("repo"), ["pgark.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_leaves_nothing_at_work() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let held = hold(&server, "x").await;
    for signal in [Signal::INT, Signal::TERM] {
        let child = pgark.command(&["backup", "--repo", &repo, "--db", &db, "--json"]).spawn().unwrap();
        until_pg_dump_waits(&server).await;
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(
            (error["error"]["kind"].as_str(), error["error"]["code"].as_u64()),
            (Some("Cancelled"), Some(130))
        );
        pgark.assert_no_backup(&repo);
        assert_eq!(pgark.files("repo"), ["pgark.json"]);
        // The table is still locked: what waited for it has to be told, or it waits for as long.
        let gone = "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'pgark' AND pid <> pg_backend_pid() AND query LIKE 'LOCK%IN ACCESS SHARE%')";
        until(&server, gone, "pg_dump's session is still there").await;
    }
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_hold_a_repository() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let db = server.url("postgres");
    let below = format!("{}/repo", pgark.write("file", "here already"));
    for verb in [&["init", "--repo", &below][..], &["backup", "--repo", &below, "--db", &db]] {
        pgark.fails(verb, ErrorKind::Io).says("not a directory");
    }
    pgark.write("full/of/something", "else");
    let full = pgark.place("full");
    for verb in [&["init", "--repo", &full][..], &["backup", "--repo", &full, "--db", &db]] {
        pgark.fails(verb, ErrorKind::Conflict).says("is not empty");
    }
    assert_eq!(pgark.files("full"), ["of/something"]);

    // Root writes everywhere but where nobody can.
    if left_out("root") {
        return;
    }
    std::fs::create_dir(pgark.path("mount")).unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    };
    run("mount", &["-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", &pgark.place("mount")]);
    let read_only = pgark.place("mount/repo");
    let tried = std::panic::catch_unwind(|| {
        for verb in [&["init", "--repo", &read_only][..], &["backup", "--repo", &read_only, "--db", &db]] {
            pgark.fails(verb, ErrorKind::StoreDenied).says("read-only");
        }
    });
    run("umount", &[&pgark.place("mount")]);
    tried.unwrap();
}

#[test]
fn a_place_without_a_repository() {
    let pgark = Pgark::new();
    std::fs::create_dir(pgark.path("empty")).unwrap();
    let (empty, missing) = (pgark.place("empty"), pgark.place("missing"));
    for repo in [&empty, &missing] {
        for verb in [
            &["list"][..],
            &["show"],
            &["verify"],
            &["restore", "--into", "host=/nonexistent dbname=x user=x"],
        ] {
            pgark.fails(&[verb, &["--repo", repo]].concat(), ErrorKind::NotARepository).says("pgark init");
        }
    }
    assert!(!Path::new(&missing).exists() && pgark.files("empty").is_empty());
    pgark.fails(&["list"], ErrorKind::Usage).says("--repo");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_told_before_anything_else() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let repo = pgark.place("repo");
    let id = backed_up(&pgark, &server, &[]);
    let newer = |file: &str| {
        let path = pgark.path(file);
        let old = std::fs::read_to_string(&path).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&old).unwrap();
        assert!(json["blake3"].is_string(), "the record's own digest, which no longer fits");
        json["format"] = 2.into();
        std::fs::write(&path, json.to_string()).unwrap();
        old
    };
    let record = format!("repo/clusters/main/backups/{id}/backup.json");
    let restore = ["restore", "--into", &server.url("restored"), "--repo", &repo];
    let old = newer(&record);
    for verb in [&["show", "--repo", &repo][..], &["verify", "--repo", &repo], &restore] {
        pgark.fails(verb, ErrorKind::NewerFormat).says("backup.json").says("use a newer pgark");
    }
    // One that is only damaged is told as such.
    std::fs::write(pgark.path(&record), old.replace("zstd", "gzip")).unwrap();
    pgark.fails(&["show", "--repo", &repo], ErrorKind::Integrity).says("backup.json");
    std::fs::write(pgark.path(&record), old).unwrap();
    newer("repo/pgark.json");
    let backup = ["backup", "--repo", &repo, "--db", &server.url("postgres")];
    for verb in [&["list", "--repo", &repo][..], &["init", "--repo", &repo], &restore, &backup] {
        pgark.fails(verb, ErrorKind::NewerFormat).says("pgark.json");
    }
    let there = sql(&server, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'restored'").await;
    assert!(there.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_there() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let repo = pgark.place("repo");
    pgark.json(&["init", "--repo", &repo]);
    for verb in [&["show"][..], &["verify"], &["restore", "--into", &server.url("y")]] {
        pgark.fails(&[verb, &["--repo", &repo]].concat(), ErrorKind::BackupNotFound).says("pgark list");
    }
    let id = backed_up(&pgark, &server, &[]);
    for wanted in ["20010101T000000Z-logical-aaaa", "1999", "", "../../etc", "LATEST", &format!("{id}x")] {
        for verb in ["show", "verify"] {
            pgark.fails(&[verb, "--repo", &repo, "--", wanted], ErrorKind::BackupNotFound).says("pgark list");
        }
    }
    pgark.fails(&["show", "--repo", &repo, "--cluster", "other"], ErrorKind::BackupNotFound).says("other");
    pgark.fails(&["show", "--repo", &repo, "--cluster", "a/b"], ErrorKind::Usage).says("a/b");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_passphrases_that_do_not_fit() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let ((key, recipient), (other, _)) = (pgark.key("key"), pgark.key("other"));
    let passphrase = pgark.write("passphrase", "correct horse\nignored\n");
    let wrong = pgark.write("wrong", "battery staple\n");
    let empty = pgark.write("empty", "\nsecond line\n");
    let garbage = pgark.write("garbage", "no key at all\n");
    let ssh = pgark.write(
        "ssh",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nbm90aGluZw==\n-----END OPENSSH PRIVATE KEY-----\n",
    );
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let missing = pgark.place("missing");
    for path in [&missing, &empty] {
        let backup = ["backup", "--repo", &repo, "--db", &db, "--passphrase-file", path];
        pgark.fails(&backup, ErrorKind::KeyMissing).says(path);
        assert!(!Path::new(&repo).exists());
    }

    let sealed_to_key = backed_up(&pgark, &server, &["--recipient", &recipient]);
    let sealed_by_passphrase = backed_up(&pgark, &server, &["--passphrase-file", &passphrase]);
    let into = server.url("restored");
    for (backup, keys, kind, word) in [
        (&sealed_to_key, &[][..], ErrorKind::KeyMissing, "--identity"),
        (&sealed_to_key, &["--identity", &other], ErrorKind::WrongKey, "identity"),
        (&sealed_to_key, &["--passphrase-file", &passphrase], ErrorKind::KeyMissing, "--identity"),
        (&sealed_to_key, &["--identity", &missing], ErrorKind::KeyMissing, "missing"),
        (&sealed_to_key, &["--identity", &garbage], ErrorKind::KeyMissing, "AGE-SECRET-KEY-1"),
        (&sealed_to_key, &["--identity", &ssh], ErrorKind::KeyMissing, "SSH"),
        (&sealed_by_passphrase, &[], ErrorKind::KeyMissing, "--passphrase-file"),
        (&sealed_by_passphrase, &["--passphrase-file", &wrong], ErrorKind::WrongKey, "passphrase"),
        (&sealed_by_passphrase, &["--passphrase-file", &empty], ErrorKind::KeyMissing, "empty"),
        (&sealed_by_passphrase, &["--identity", &key], ErrorKind::KeyMissing, "--passphrase-file"),
    ] {
        let restore = [&["restore", backup, "--repo", &repo, "--into", &into], keys].concat();
        pgark.fails(&restore, kind).says(word);
        let rotate = [&["key", "rotate", backup, "--repo", &repo, "--recipient", &recipient], keys].concat();
        pgark.fails(&rotate, kind).says(word);
        // Without a key the stored bytes can be verified all the same.
        if !keys.is_empty() {
            pgark.fails(&[&["verify", backup, "--repo", &repo], keys].concat(), kind).says(word);
        }
    }
    pgark
        .fails(&["key", "rotate", "--repo", &repo, "--identity", &key], ErrorKind::KeyMissing)
        .says("--recipient");
    pgark.fails(&["key", "generate", "--output", &key], ErrorKind::Conflict).says("never replaced");
    pgark.fails(&["key", "recipient", &missing], ErrorKind::KeyMissing).says("missing");
    let there = sql(&server, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'restored'").await;
    assert!(there.is_empty(), "no database was made");
    // What failed has changed nothing.
    pgark.json(&["verify", &sealed_to_key, "--repo", &repo, "--identity", &key]);
    pgark.json(&["verify", &sealed_by_passphrase, "--repo", &repo, "--passphrase-file", &passphrase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_by_restore_and_verify() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let repo = pgark.place("repo");
    let id = backed_up(&pgark, &server, &[]);
    let part = pgark.files("repo").into_iter().find(|f| f.contains("/parts/")).unwrap();
    let path = pgark.path("repo").join(&part);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    let into = server.url("restored");
    let restore = ["restore", "--repo", &repo, "--into", &into];
    for (bytes, kind, missing) in [
        (Some(&damaged[..]), ErrorKind::Integrity, false),
        (Some(&whole[..whole.len() - 1]), ErrorKind::Integrity, false),
        (None, ErrorKind::ObjectMissing, true),
    ] {
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        pgark.fails(&restore, kind).says("0001.toc");
        let there = sql(&server, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'restored'").await;
        assert!(there.is_empty(), "the database is left behind");
        for deep in [&[][..], &["--stored"]] {
            let output = pgark.run(&[&["verify", "--repo", &repo, "--json"], deep].concat());
            assert_eq!(output.status.code(), Some(50), "{}", said(&output));
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let finding = &report["backups"][0]["findings"][0];
            assert_eq!((&report["good"], &finding["missing"]), (&false.into(), &missing.into()), "{report}");
            let named = format!("{} {}", finding["what"], finding["why"]);
            assert!(named.contains("0001.toc") && report["backups"][0]["id"] == *id, "{report}");
            let told = pgark.run(&[&["verify", "--repo", &repo], deep].concat());
            assert!(said(&told).contains("DAMAGED") && said(&told).contains("0001.toc"), "{}", said(&told));
        }
    }
    std::fs::write(&path, &whole).unwrap();
    pgark.json(&["verify", "--repo", &repo]);
    pgark.json(&restore);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_taken_or_not_there() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let repo = pgark.place("repo");
    backed_up(&pgark, &server, &[]);
    let dead = format!("host=127.0.0.1 port={} user=u dbname=y", free_port());
    for (into, kind, word) in [
        (server.url("postgres"), ErrorKind::Conflict, "not empty"),
        (dead, ErrorKind::Connect, "no server answers"),
        (server.url("y") + " sslmode=x", ErrorKind::Usage, "sslmode"),
    ] {
        pgark.fails(&["restore", "--repo", &repo, "--into", &into], kind).says(word);
    }
    assert_eq!(sql(&server, "postgres", "SELECT count(*) FROM x").await, [[Some("1000".to_owned())]]);
    let into = server.url("y");
    let tools = pgark.place("tools");
    std::fs::create_dir(&tools).unwrap();
    pgark
        .fails(&["restore", "--repo", &repo, "--into", &into, "--pg-bin", &tools], ErrorKind::ToolMissing)
        .says("pg_restore");
    let there = sql(&server, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'y'").await;
    assert!(there.is_empty(), "the database is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_make_no_sense() {
    let server = with_a_table().await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), server.url("postgres"));
    let backup = ["backup", "--repo", &repo, "--db", &db];
    for (more, word) in [
        (["--compress", "brotli"], "brotli"),
        (["--compress", "zstd:99"], "99"),
        (["--compress", "gzip:fast"], "fast"),
        (["--compress", ""], "zstd"),
        (["--jobs", "0"], "one job"),
        (["--recipient", "age1nobody"], "not a recipient"),
        (["--recipient", "somebody@example.org"], "not a recipient"),
        (["--recipient", "ssh-dss AAAA"], "not a recipient"),
    ] {
        pgark.fails(&[&backup[..], &more].concat(), ErrorKind::Usage).says(word);
    }
    let secret = std::fs::read_to_string(pgark.key("key").0).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
    for shown in [
        pgark.fails(&[&backup[..], &["--recipient", secret]].concat(), ErrorKind::Usage).text,
        pgark.fails(&[&backup[..], &["--recipient", &secret.to_lowercase()]].concat(), ErrorKind::Usage).text,
        // Instead of the file that it is in.
        pgark.fails(&["key", "recipient", secret], ErrorKind::Usage).text,
        pgark.fails(&["verify", "--repo", &repo, "--identity", secret], ErrorKind::Usage).text,
    ] {
        assert!(!shown.to_uppercase().contains(&secret[..25]), "a secret is repeated: {shown}");
    }
    for url in [
        "ftp://host/folder",
        "s3://",
        "s3://bucket/x?retries=many",
        "s3://bucket/x?color=red",
        "s3://key:word@bucket/x",
        "",
    ] {
        let shown = pgark.fails(&["backup", "--repo", url, "--db", &db], ErrorKind::Usage).text;
        assert!(!shown.contains("word"), "{shown}");
    }
    assert!(!Path::new(&repo).exists());
    let id = backed_up(&pgark, &server, &[]);
    pgark.fails(&["verify", &id, "--repo", &repo, "--jobs", "0"], ErrorKind::Usage).says("one job");
    pgark
        .fails(
            &["restore", &id, "--repo", &repo, "--jobs", "0", "--into", &server.url("y")],
            ErrorKind::Usage,
        )
        .says("one job");
    // What cannot be parsed at all is told by the parser of arguments.
    for args in [
        &["backup", "--jobs", "many"][..],
        &["backup", "--nonsense"],
        &["nonsense"],
        &[],
        &["verify", "x", "--all"],
        &["restore"],
    ] {
        let output = pgark.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", said(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_configuration_that_is_wrong_is_pointed_at() {
    let pgark = Pgark::new();
    for (text, at, word) in [
        ("[repository]\nurl = 7\n", ":2:7", "string"),
        ("[repository]\n\nulr = \"x\"\n", ":3:1", "ulr"),
        ("[backup]\ncompress = \"brotli\"\n", ":2:12", "brotli"),
        ("[backup]\njobs = 0\n", ":2:8", "one job"),
        ("[encryption]\nrecipients = [\n  \"age1x\",\n]\n", ":3:3", "not a recipient"),
        ("[cluster.\"a/b\"]\ndb = \"\"\n", ":1:", "cluster"),
        ("nonsense\n", ":1:", ""),
    ] {
        let file = pgark.write("pgark.toml", text);
        pgark.fails(&["list", "--config", &file], ErrorKind::Config).says(&format!("{file}{at}")).says(word);
        // The one in this folder is taken unasked.
        pgark.fails(&["list"], ErrorKind::Config).says(&format!("pgark.toml{at}"));
    }
    let secret = "[cluster.shop]\ndb = \"host=h password=s3cret\n";
    let shown =
        pgark.fails(&["list", "--config", &pgark.write("pgark.toml", secret)], ErrorKind::Config).text;
    assert!(!shown.contains("s3cret"), "{shown}");
    pgark.fails(&["list", "--config", &pgark.place("missing.toml")], ErrorKind::Config).says("missing.toml");
    pgark.write("pgark.toml", "[cluster.a]\ndb = \"\"\n[cluster.b]\ndb = \"\"\n");
    pgark.fails(&["list", "--repo", &pgark.place("repo")], ErrorKind::Usage).says("--cluster");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer() {
    let server = with_a_table().await;
    let pgark =
        Pgark::new().with("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").with("AWS_SECRET_ACCESS_KEY", "very-secret");
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let repo = format!("s3://bucket/folder?endpoint={endpoint}&retries=1&timeout=2");
    for verb in [&["list"][..], &["init"], &["backup", "--db", &server.url("postgres")]] {
        let failed = pgark.fails(&[verb, &["--repo", &repo]].concat(), ErrorKind::StoreUnavailable);
        assert!(!failed.text.contains("very-secret"), "{}", failed.text);
    }
}
