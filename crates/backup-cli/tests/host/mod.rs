//! A host on which a server archives with pgark.

#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgark::ErrorKind;
use pgark::postgres::{TempServer, TempServerOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{self, server_with, sql};

/// A folder that the server's user can use, with pgark, its configuration, a key, and a repository in it.
pub struct Host {
    home: TempDir,
    pub owner: (u32, u32),
}

impl Host {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        // PostgreSQL does not run as root: then it runs as the user postgres, and so does what it calls.
        let id = |what: &str| -> u32 {
            let of = if rustix::process::geteuid().is_root() { "postgres" } else { "" };
            let output = Command::new("id").arg(what).args(of.split_whitespace()).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
        };
        let owner = (id("-u"), id("-g"));
        let key = home.path().join("key.txt").display().to_string();
        let made = Command::new(env!("CARGO_BIN_EXE_pgark"))
            .args(["--json", "key", "generate", "--output", &key])
            .output()
            .unwrap();
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let recipient = made["recipient"].as_str().unwrap();
        let config = format!(
            "[repository]\nurl = \"repo\"\n[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"key.txt\"\n[host]\nstate = \"state\"\n"
        );
        std::fs::write(home.path().join("pgark.toml"), config).unwrap();
        // By another process: a child that another thread starts meanwhile would have the file open for writing, and it
        // could not be run.
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_pgark")).arg(home.path().join("pgark")).status();
        assert!(copied.unwrap().success());
        for path in [home.path().to_owned(), home.path().join("key.txt")] {
            chown(path, Some(owner.0), Some(owner.1)).unwrap();
        }
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { home, owner }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn place(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The beginning of every command.
    pub fn program(&self) -> String {
        format!("{} --config {}", self.place("pgark"), self.place("pgark.toml"))
    }

    /// A server that archives here.
    pub fn server(&self) -> TempServer {
        self.server_with(&[])
    }

    pub fn server_with(&self, more: &[&str]) -> TempServer {
        let mut options = TempServerOptions::default();
        options.settings = vec![
            "archive_mode = on".to_owned(),
            format!("archive_command = '{} wal push \"%p\"'", self.program()),
        ];
        options.settings.extend(more.iter().map(|line| (*line).to_owned()));
        server_with(&options)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("pgark"));
        command.arg("--config").arg(self.path("pgark.toml")).args(args).current_dir(self.home.path());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        if rustix::process::geteuid().is_root() {
            command.uid(self.owner.0).gid(self.owner.1);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[&["--json"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Succeeds, whatever it prints.
    pub fn ok(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
    }

    /// Fails with this kind; what it said.
    pub fn fails(&self, args: &[&str], kind: ErrorKind) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(i32::from(kind.code())), "{args:?}: {}", said(&output));
        said(&output)
    }

    pub fn back_up(&self, server: &TempServer) -> String {
        self.back_up_with(server, &["--physical"])["id"].as_str().unwrap().to_owned()
    }

    /// The record of a backup of the cluster.
    pub fn back_up_with(&self, server: &TempServer, how: &[&str]) -> Value {
        let mut made = self.json(&[&["backup", "--db", &server.url("postgres")], how].concat());
        made["backup"].take()
    }

    /// All files below a folder, by their paths in it.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let (root, mut found) = (self.path(folder), Vec::new());
        let mut folders = vec![root.clone()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    /// Nothing of any backup is in the repository.
    pub fn assert_no_backup(&self) {
        let list = self.json(&["list"]);
        assert_eq!((&list["backups"], &list["unfinished"]), (&json!([]), &json!([])), "{list}");
        assert_eq!(self.files("repo/clusters/main/backups"), [""; 0]);
        assert_eq!(self.files("repo/.pgark-tmp"), [""; 0]);
    }

    /// Restores into a folder, and starts a server on it that recovers.
    pub async fn recover(&self, server: &TempServer, name: &str, args: &[&str]) -> TempServer {
        let folder = self.place(name);
        self.json(&[&["restore", "--target-dir", &folder], args].concat());
        let recovered = server.start_on(&self.path(name)).unwrap();
        let begun = Instant::now();
        while one(&recovered, "SELECT pg_is_in_recovery()").await == "t" {
            assert!(begun.elapsed() < Duration::from_mins(1), "it does not come out of recovery");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        recovered
    }
}

pub fn said(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub async fn one(server: &TempServer, query: &str) -> String {
    sql(server, "postgres", query).await[0][0].clone().unwrap_or_default()
}

/// Ends the segment, and waits until it is in the archive.
pub async fn archived(server: &TempServer) {
    let segment = one(server, "SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    sql(server, "postgres", "SELECT pg_switch_wal()").await;
    let begun = Instant::now();
    let query = format!("SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver");
    while one(server, &query).await != "t" {
        let failed = one(server, "SELECT last_failed_wal || ' ' || failed_count FROM pg_stat_archiver").await;
        assert!(begun.elapsed() < Duration::from_mins(1), "{segment} is not archived; failed: {failed}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Host {
    /// Runs `pg_ctl` on a restored folder, as the server's user; whether it succeeded.
    pub fn pg_ctl(&self, server: &TempServer, folder: &str, args: &[&str]) -> bool {
        let data = self.path(folder);
        let options = format!("-k {} -c listen_addresses='' -c fsync=off", self.home.path().display());
        let mut command = Command::new(server.bin().join("pg_ctl"));
        command.arg("-D").arg(&data).args(["-l", &self.place("server.log"), "-o", &options]).args(args);
        command.current_dir(self.home.path()).stdout(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(self.owner.0).gid(self.owner.1);
        }
        command.status().unwrap().success()
    }

    pub async fn ask(&self, query: &str) -> String {
        let at = format!("host={} port=5432 user=postgres dbname=postgres", self.home.path().display());
        let session = support::connect(&at).await;
        session.rows(query).await.unwrap()[0][0].clone().unwrap_or_default()
    }

    pub async fn until(&self, query: &str, answer: &str) {
        let begun = Instant::now();
        while self.ask(query).await != answer {
            let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_mins(1), "{query} is not {answer}: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until a query has an answer.
pub async fn until(server: &TempServer, query: &str, answer: &str) {
    let begun = Instant::now();
    loop {
        let found = sql(server, "postgres", query).await;
        if found.first().and_then(|row| row[0].as_deref()) == Some(answer) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{query} is {found:?}, not {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A receiver that is killed when the test ends.
pub struct Receiving(Child);

impl Receiving {
    /// At once, without a look whether it has connected.
    pub fn start(host: &Host, server: &TempServer) -> Self {
        Self::start_from(host, &server.url("postgres"))
    }

    pub fn start_from(host: &Host, url: &str) -> Self {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(host.path("receive.log")).unwrap();
        let mut command =
            host.command(&["--json", "wal", "receive", "--create-slot", "--every", "1", "--db", url]);
        Self(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap()
    }

    /// The most memory that it had so far, in KiB.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Asks it to end, as a service manager does.
    pub fn end(mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until everything that the server wrote is stored.
pub async fn caught_up(server: &TempServer) {
    let now = one(server, "SELECT pg_current_wal_flush_lsn()").await;
    until(
        server,
        &format!("SELECT coalesce(bool_and(flush_lsn >= '{now}'), false) FROM pg_stat_replication"),
        "t",
    )
    .await;
}

/// The objects of each segment in a repository, by its name: those beside its neighbours, and those in its folder.
pub fn segments(repo: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut folders = vec![repo.join("clusters/main/wal")];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
                continue;
            }
            if let Some(file) = segment_of(&entry.path()) {
                found.entry(file).or_default().push(entry.path());
            }
        }
    }
    found
}

/// The segment that a stored object is of.
pub fn segment_of(object: &Path) -> Option<String> {
    let mut names = object.iter().rev().filter_map(|name| name.to_str());
    let beside = names.next()?.split('-').next();
    beside.into_iter().chain(names.next()).find(|name| name.len() == 24).map(str::to_owned)
}
