//! The command, with nothing of this shell's settings, and what tests ask of its answers.

#![allow(dead_code, unreachable_pub)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgark::ErrorKind;
use pgark::postgres::{Session, TempServer};
use serde_json::Value;
use tempfile::TempDir;

/// Runs pgark in a folder of its own, which is its home as well.
pub struct Pgark {
    home: TempDir,
    variables: Vec<(String, String)>,
}

/// What a failed command said.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub causes: String,
    pub hint: String,
    /// Everything, as people see it.
    pub text: String,
}

impl Failure {
    /// Whether message, causes or hint say so.
    pub fn says(&self, word: &str) -> &Self {
        let all = format!("{} {} {}", self.message, self.causes, self.hint);
        assert!(all.contains(word), "{word:?} is not in {self:?}");
        self
    }
}

impl Pgark {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A folder that the server's user can enter.
    pub fn work_dir(&self) -> String {
        for path in [self.home().to_owned(), self.path("work")] {
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        self.place("work")
    }

    /// A path below its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home().join(name)
    }

    /// The same, as an argument.
    pub fn place(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file below its folder; its path as an argument.
    pub fn write(&self, name: &str, contents: &str) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgark"));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", self.home())
            .env("PGARK_STATE", self.home().join("state"))
            .envs(self.variables.iter().map(|(n, v)| (n, v)))
            .current_dir(self.home());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Succeeds; what it prints.
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Succeeds with `--json`; says nothing beside it.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[&["--json"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        assert!(output.stderr.is_empty(), "{args:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Makes a key; its file and the recipient.
    pub fn key(&self, name: &str) -> (String, String) {
        let file = self.place(name);
        let made = self.json(&["key", "generate", "--output", &file]);
        (file, made["recipient"].as_str().unwrap().to_owned())
    }

    /// Fails with this kind, told to people and as JSON. It is run twice.
    pub fn fails(&self, args: &[&str], kind: ErrorKind) -> Failure {
        let failure = failure(&self.run(args), kind);
        let output = self.run(&[&["--json"], args].concat());
        assert_eq!(output.status.code(), Some(i32::from(kind.code())), "{args:?}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{args:?}: {}", said(&output));
        let told = String::from_utf8(output.stderr).unwrap();
        let error: Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{args:?}: {e}: {told}"));
        let error = &error["error"];
        assert_eq!(
            (error["kind"].as_str(), error["code"].as_u64()),
            (Some(kind.name()), Some(kind.code().into()))
        );
        assert!(!error["message"].as_str().unwrap().is_empty(), "{told}");
        assert_eq!(error["hint"].as_str(), Some(failure.hint.as_str()), "{args:?}");
        failure
    }

    /// There is a repository, and no backup in it.
    pub fn assert_no_backup(&self, repo: &str) {
        let list = self.json(&["list", "--repo", repo]);
        assert_eq!(list["backups"], serde_json::json!([]), "{list}");
    }

    /// All files below a folder, by their paths in it; without the audit log, which also tells of what failed.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let root = self.path(folder);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).unwrap().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        found.retain(|path| !path.contains("/audit/"));
        found.sort();
        found
    }
}

pub fn said(output: &Output) -> String {
    let code = output.status.code();
    format!(
        "{code:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Reads what a failed command told people: one line, its causes, and what to do.
pub fn failure(output: &Output, kind: ErrorKind) -> Failure {
    let all = said(output);
    assert_eq!(output.status.code(), Some(i32::from(kind.code())), "{all}");
    assert!(output.stdout.is_empty(), "{all}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let started = |line: &&str| line.starts_with("backup ") && line.ends_with(" started");
    let lines: Vec<&str> = text.lines().filter(|line| !started(line)).collect();
    let with = |start: &str| lines.iter().filter_map(|line| line.strip_prefix(start)).collect::<Vec<_>>();
    let (messages, causes, hints) = (with("pgark: "), with("  because: "), with("  what to do: "));
    assert!(messages.len() == 1 && lines[0].starts_with("pgark: "), "not one line that says it: {text}");
    assert_eq!(hints.len(), 1, "nothing says what to do: {text}");
    assert_eq!(lines.len(), 2 + causes.len(), "something else is said: {text}");
    assert!(!messages[0].contains("Some(") && !messages[0].contains("Error {"), "not for people: {text}");
    Failure { message: messages[0].to_owned(), causes: causes.join(" "), hint: hints[0].to_owned(), text }
}

/// Locks a table, so that `pg_dump` waits for as long as the session lives.
pub async fn hold(server: &TempServer, table: &str) -> Session {
    let session = server.conninfo("postgres").unwrap().connect().await.unwrap();
    session.rows(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
    session
}

/// Waits until a query has an answer.
pub async fn until(server: &TempServer, query: &str, what: &str) {
    let session = server.conninfo("postgres").unwrap().connect().await.unwrap();
    let begun = Instant::now();
    while session.rows(query).await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `pg_dump` waits for the locked table. pgark's own look at the sizes waits for a moment only, and
/// in a session that has another timeout.
pub async fn until_pg_dump_waits(server: &TempServer) {
    let query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'";
    until(server, query, "pg_dump does not wait for the lock").await;
}
