//! No secret where others can see it: in the list of processes, in a log or an error, or in the clear in a
//! repository.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use cli::{Pgark, hold, until_pg_dump_waits};
use pgark::postgres::{TempServer, TempServerOptions};
use support::{free_port, left_out, server_with, sql};

const PASSWORD: &str = "pa55-w0rd-of-ann";
/// Of its own for the list of processes: a test beside it types the other one into commands.
const UNTYPED: &str = "unt7ped-pa55-of-ann";
const WRONG_PASSWORD: &str = "wr0ng-pa55-of-ann";
const PASSPHRASE: &str = "correct-h0rse-battery";

/// A server that asks for ann's password.
async fn asking(password: &str) -> TempServer {
    let mut options = TempServerOptions::default();
    options.port = Some(free_port());
    options.hba.push("host all all all scram-sha-256".into());
    let server = server_with(&options);
    sql(&server, "postgres", &format!("CREATE ROLE ann SUPERUSER LOGIN PASSWORD '{password}'")).await;
    sql(&server, "postgres", "CREATE TABLE x AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i")
        .await;
    server
}

fn settings(server: &TempServer) -> String {
    format!("host=127.0.0.1 port={} user=ann dbname=postgres", server.port())
}

/// A file of every process, as far as they can be read.
fn of_all_processes(file: &str) -> Vec<(u32, Vec<u8>)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| Some((id, std::fs::read(format!("/proc/{id}/{file}")).ok()?))).collect()
}

fn holds(haystack: &[u8], secret: &str) -> bool {
    haystack.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// The `pg_dump` that a pgark started: a child of its own, not one of a test beside this one.
fn pg_dump_of(parent: u32) -> u32 {
    let children = of_all_processes("stat").into_iter().filter(|(_, stat)| {
        let stat = String::from_utf8_lossy(stat).into_owned();
        let (head, tail) = stat.rsplit_once(") ").unwrap();
        head.contains("pg_dump") && tail.split_whitespace().nth(1) == Some(&parent.to_string())
    });
    let found: Vec<u32> = children.map(|(id, _)| id).collect();
    assert_eq!(found.len(), 1, "one pg_dump");
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_processes_shows_no_password() {
    let server = asking(UNTYPED).await;
    let by_file = Pgark::new();
    by_file.write(".pgpass", &format!("127.0.0.1:*:*:ann:{UNTYPED}\n"));
    let by_variable = Pgark::new().with("PGPASSWORD", UNTYPED);
    let typed = Pgark::new();
    let plain = settings(&server);
    let uri = format!("postgresql://ann:{UNTYPED}@127.0.0.1:{}/postgres", server.port());
    for (pgark, db, is_typed) in
        [(&by_file, &plain, false), (&by_variable, &plain, false), (&typed, &uri, true)]
    {
        let held = hold(&server, "x").await;
        let repo = pgark.place("repo");
        let child = pgark.command(&["backup", "--repo", &repo, "--db", db]).spawn().unwrap();
        until_pg_dump_waits(&server).await;
        let pg_dump = pg_dump_of(child.id());
        let lists = of_all_processes("cmdline");
        assert!(
            lists.iter().any(|(id, line)| *id == pg_dump && holds(line, "--format=custom")),
            "pg_dump is looked at"
        );
        for (id, line) in &lists {
            // What somebody types into a command they show themselves; pgark passes it on to nobody.
            let own = is_typed && *id == child.id();
            assert!(own || !holds(line, UNTYPED), "{}", String::from_utf8_lossy(line));
        }
        // It is in the environment of pg_dump, which its own user and root can read.
        let environment = format!("/proc/{pg_dump}/environ");
        assert!(holds(&std::fs::read(&environment).unwrap(), UNTYPED));
        if !left_out("root") {
            let nobody = Command::new("cat").arg(&environment).uid(65534).gid(65534).output().unwrap();
            assert!(!nobody.status.success() && nobody.stdout.is_empty(), "others can read it");
            assert!(String::from_utf8_lossy(&nobody.stderr).contains("Permission denied"), "{nobody:?}");
        }
        drop(held);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", cli::said(&output));
        assert_none(&said_by([&output]), &[UNTYPED]);
        assert_not_stored(Path::new(&repo), &[UNTYPED]);
    }
}

fn said_by<'a>(outputs: impl IntoIterator<Item = &'a Output>) -> String {
    outputs.into_iter().map(cli::said).collect()
}

fn assert_none(text: &str, secrets: &[&str]) {
    for secret in secrets {
        let at = text.to_lowercase().find(&secret.to_lowercase());
        let line = at
            .map(|at| text[text[..at].rfind('\n').map_or(0, |n| n + 1)..].lines().next().unwrap_or_default());
        assert!(line.is_none(), "{secret} is told: {line:?}");
    }
}

/// Looks for secrets in all bytes below a folder.
fn assert_not_stored(folder: &Path, secrets: &[&str]) {
    let mut folders = vec![folder.to_owned()];
    let mut files = 0;
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
                continue;
            }
            files += 1;
            let bytes = std::fs::read(entry.path()).unwrap();
            for secret in secrets {
                assert!(!holds(&bytes, secret), "{secret} is stored in {}", entry.path().display());
            }
        }
    }
    assert!(files > 0, "nothing was looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_and_no_error_tells_a_secret() {
    let server = asking(PASSWORD).await;
    let pgark = Pgark::new().with("PGARK_LOG", "trace");
    let quiet = Pgark::new();
    let ((key, recipient), (other, _)) = (quiet.key("key"), quiet.key("other"));
    let secret_of = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap().to_owned()
    };
    let (secret, other_secret) = (secret_of(&key), secret_of(&other));
    let passphrase = pgark.write("passphrase", PASSPHRASE);
    let wrong_passphrase = pgark.write("wrong", "wr0ng-h0rse");
    let (sealed, locked) = (pgark.place("sealed"), pgark.place("locked"));
    let (right, wrong) = (
        format!("{} password={PASSWORD}", settings(&server)),
        format!("{} password={WRONG_PASSWORD}", settings(&server)),
    );
    let uri = |password: &str, more: &str| {
        format!("postgresql://ann:{password}@127.0.0.1:{}/postgres{more}", server.port())
    };
    let (right_uri, wrong_uri) = (uri(PASSWORD, ""), uri(WRONG_PASSWORD, ""));
    let no_tls = uri(PASSWORD, "?sslmode=require");
    let unquoted = format!("{} password=two {PASSWORD}", settings(&server));
    let unfinished = format!("{} password='{PASSWORD}", settings(&server));
    let no_host = format!("postgresql://ann:{PASSWORD}");
    let into =
        format!("{} password={PASSWORD}", settings(&server).replace("dbname=postgres", "dbname=restored"));

    let mut outputs = Vec::new();
    for (code, args) in [
        (0, &["backup", "--repo", &sealed, "--db", &right, "--recipient", &recipient][..]),
        (0, &["backup", "--repo", &locked, "--db", &right_uri, "--passphrase-file", &passphrase]),
        (0, &["verify", "--repo", &sealed, "--identity", &key]),
        (0, &["verify", "--repo", &locked, "--passphrase-file", &passphrase]),
        (0, &["restore", "--repo", &sealed, "--identity", &key, "--into", &into]),
        (0, &["key", "recipient", &key]),
        (44, &["restore", "--repo", &sealed, "--identity", &key, "--into", &into]),
        (52, &["verify", "--repo", &sealed, "--identity", &other]),
        (52, &["restore", "--repo", &locked, "--passphrase-file", &wrong_passphrase, "--into", &into]),
        (11, &["backup", "--repo", &sealed, "--db", &wrong]),
        (11, &["backup", "--repo", &sealed, "--db", &wrong_uri, "--json"]),
        (11, &["backup", "--repo", &sealed, "--db", &no_tls]),
        (2, &["backup", "--repo", &sealed, "--db", &unquoted]),
        (2, &["backup", "--repo", &sealed, "--db", &unfinished]),
        (2, &["backup", "--repo", &sealed, "--db", &no_host]),
        (2, &["backup", "--repo", &sealed, "--db", &right, "--recipient", &secret]),
        (2, &["verify", "--repo", &sealed, "--identity", &secret]),
        (
            3,
            &[
                "list",
                "--config",
                &pgark.write(
                    "bad.toml",
                    &format!("[cluster.shop]\ndb = \"{right}\"\npassword = \"{PASSWORD}\"\n"),
                ),
            ],
        ),
        (0, &["key", "rotate", "--repo", &sealed, "--identity", &key, "--new-passphrase-file", &passphrase]),
    ] {
        let output = pgark.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", cli::said(&output));
        outputs.push(output);
    }
    let all = said_by(&outputs);
    assert!(all.contains("TRACE") || all.contains("DEBUG"), "nothing is logged at all");
    let secrets = [PASSWORD, WRONG_PASSWORD, PASSPHRASE, "wr0ng-h0rse", &secret, &other_secret];
    assert_none(&all, &secrets);
    assert_none(&all, &["AGE-SECRET-KEY-1"]);
    for repository in [&sealed, &locked] {
        assert_not_stored(Path::new(repository), &secrets);
        assert_not_stored(Path::new(repository), &["AGE-SECRET-KEY-1"]);
    }
    // The search finds what is there: the recipient of a key that was made, and the name of the database.
    let listed = pgark.run(&["show", "--repo", &sealed]);
    assert!(std::panic::catch_unwind(|| assert_none(&said_by([&listed]), &["postgres"])).is_err());
    assert!(std::panic::catch_unwind(|| assert_not_stored(Path::new(&sealed), &["postgres"])).is_err());
}

#[test]
fn no_log_tells_the_credentials_of_a_store() {
    // It refuses everything, as S3 does with a wrong key, and keeps what it was sent.
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = store.local_addr().unwrap().port();
    let (sender, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut client in store.incoming().flatten() {
            let mut request = vec![0; 16 << 10];
            let read = client.read(&mut request).unwrap_or(0);
            let _ = sender.send(String::from_utf8_lossy(&request[..read]).into_owned());
            let body = "<Error><Code>InvalidAccessKeyId</Code><Message>no</Message></Error>";
            let head = format!(
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = client.write_all(format!("{head}{body}").as_bytes());
        }
    });
    let (key, token) = ("sEcReT-kEy-oF-a-StOrE", "sEsSiOn-ToKeN-oF-a-StOrE");
    let pgark = Pgark::new().with("PGARK_LOG", "trace").with("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE");
    let pgark = pgark.with("AWS_SECRET_ACCESS_KEY", key).with("AWS_SESSION_TOKEN", token);
    let repo = format!("s3://bucket/folder?endpoint=http://127.0.0.1:{port}&retries=0&timeout=5");
    let outputs = [pgark.run(&["list", "--repo", &repo]), pgark.run(&["init", "--repo", &repo, "--json"])];
    for output in &outputs {
        assert_eq!(output.status.code(), Some(31), "{}", cli::said(output));
    }
    let all = said_by(&outputs);
    assert!(all.contains("TRACE") || all.contains("DEBUG"), "nothing is logged at all");
    assert!(requests.recv().unwrap().contains(token), "the token is used");
    assert_none(&all, &[key, token]);
}
