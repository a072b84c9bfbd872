//! Programs that run beside a server, as its user: here, or in a container.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// What recovery must not have less of than the server that wrote the WAL: the settings, the names under which
/// `pg_controldata` prints them, and what a server gets that needs no more.
pub(super) const AT_LEAST: [(&str, &str, u32); 5] = [
    ("max_connections", "max_connections setting", 20),
    ("max_worker_processes", "max_worker_processes setting", 8),
    ("max_wal_senders", "max_wal_senders setting", 0),
    ("max_prepared_transactions", "max_prepared_xacts setting", 0),
    ("max_locks_per_transaction", "max_locks_per_xact setting", 64),
];

/// The programs of one server version.
#[derive(Debug, Clone)]
pub(crate) struct ServerPrograms {
    /// Their folder; in a container they are found in its `PATH`.
    pub(crate) bin: PathBuf,
    /// Whom they run as, where this process is root: PostgreSQL refuses to.
    pub(crate) owner: Option<(u32, u32)>,
    /// The Docker container that they run in, which sees the server's folder under the same path.
    pub(crate) container: Option<String>,
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; nothing where a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed, errors too.
    pub(crate) said: String,
}

impl ServerPrograms {
    /// What `pg_controldata` prints of a data directory.
    pub(crate) fn control(&self, data: &Path) -> Result<BTreeMap<String, String>> {
        let text = self.run("pg_controldata", &["-D", &data.display().to_string()])?;
        let pair = |line: &str| line.split_once(':').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
        Ok(text.lines().filter_map(pair).collect())
    }

    /// Runs one to its end; what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let ended = self.ended(program, args)?;
        if ended.code == Some(0) {
            return Ok(ended.said);
        }
        Err(Error::new(ErrorKind::ToolFailed, format!("{program} failed")).caused_by(ended.said))
    }

    /// Runs one to its end, however it ends.
    pub(crate) fn ended(&self, program: &str, args: &[&str]) -> Result<Ended> {
        let mut command = self.command(program);
        command.args(args).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        // The server inherits these of pg_ctl, so they must not be pipes.
        let failed = |e| Error::io("making a file for output", e);
        let mut output = tempfile::tempfile().map_err(failed)?;
        command.stdout(output.try_clone().map_err(failed)?).stderr(output.try_clone().map_err(failed)?);
        let status = command.status().map_err(|e| Error::io(format!("starting {program}"), e))?;
        let mut said = Vec::new();
        output.rewind().and_then(|()| output.read_to_end(&mut said)).map_err(failed)?;
        Ok(Ended { code: status.code(), said: String::from_utf8_lossy(&said).into_owned() })
    }

    fn command(&self, program: &str) -> Command {
        if let Some(container) = &self.container {
            let mut command = Command::new("docker");
            command.args(["exec", "--env", "LC_ALL=C", container, program]);
            return command;
        }
        let mut command = Command::new(self.bin.join(program));
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid).env_remove("HOME");
        }
        command
    }

    /// Whether there is such a program.
    pub(crate) fn has(&self, program: &str) -> bool {
        match self.container {
            None => self.bin.join(program).is_file(),
            Some(_) => self.ended(program, &["--version"]).is_ok_and(|ended| ended.code == Some(0)),
        }
    }
}
