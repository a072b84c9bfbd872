//! The one place that starts a client tool.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::conninfo::ConnInfo;
use super::tools::Tool;
use crate::error::{Error, ErrorKind, Result};

/// Lines of the tool's own words that are kept.
const KEPT_LINES: usize = 200;
/// How long a tool may take to end when it is asked to.
const TIME_TO_END: Duration = Duration::from_secs(2);
/// More than that of one line is cut.
const LINE_LIMIT: u64 = 4096;

/// What is started.
pub(crate) struct Run<'a> {
    pub(crate) tool: &'a Tool,
    pub(crate) args: Vec<String>,
    /// Where it connects to; none for a tool that does not connect.
    pub(crate) connection: Option<&'a ConnInfo>,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
}

/// A client tool at work. It is killed when the value is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    words: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Process {
    pub(crate) fn start(run: Run<'_>) -> Result<Self> {
        let Run { tool, args, connection, stdin, stdout } = run;
        let name = tool.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let piped = |yes| if yes { Stdio::piped() } else { Stdio::null() };
        let mut command = Command::new(&tool.path);
        command.args(args).stdin(piped(stdin)).stdout(piped(stdout)).stderr(Stdio::piped());
        // Its words are read, so they come in one language; and it connects as it is told, not as this
        // process's environment would have it.
        command.env("LC_ALL", "C").env_remove("LANGUAGE").kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        if let Some(connection) = connection {
            command.envs(connection.tool_environment()?).env("PGAPPNAME", "pgark");
        }
        let mut child = command.spawn().map_err(|e| {
            let full = e.kind() == std::io::ErrorKind::NotFound;
            let kind = if full { ErrorKind::ToolMissing } else { ErrorKind::ToolFailed };
            Error::new(kind, format!("{} cannot be started", tool.path.display())).caused_by(e)
        })?;
        let stderr = child.stderr.take().ok_or_else(|| Error::internal("a tool without standard error"))?;
        let words = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&words);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while (&mut lines).take(LINE_LIMIT).read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if heard.len() == KEPT_LINES {
                    heard.remove(KEPT_LINES / 2);
                }
                heard.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        });
        Ok(Self { name, child, words, reader })
    }

    pub(crate) fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().ok_or_else(|| Error::internal("the tool's output is taken"))
    }

    pub(crate) fn stdin(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().ok_or_else(|| Error::internal("the tool's input is taken"))
    }

    /// Waits for the end. `Ok` with what it said, if it succeeded.
    pub(crate) async fn finish(mut self, cancel: &CancellationToken) -> Result<Vec<String>> {
        let status = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                self.kill().await;
                return Err(Error::cancelled());
            }
            status = self.child.wait() => status.map_err(|e| Error::io(format!("waiting for {}", self.name), e))?,
        };
        // Its children may keep standard error open; what it said itself is there by now.
        let _ = tokio::time::timeout(Duration::from_secs(2), &mut self.reader).await;
        let words = std::mem::take(&mut *self.words.lock().unwrap_or_else(PoisonError::into_inner));
        if status.success() {
            return Ok(words);
        }
        Err(self.explain(status, &words))
    }

    /// Ends it. Asked to end, `pg_dump` and `pg_restore` tell the server to stop as well (`sigTermHandler` in
    /// parallel.c, PostgreSQL 18); killed at once they leave a session behind that may wait for a lock for days.
    pub(crate) async fn kill(&mut self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let ended = async {
            // It may have ended by itself.
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
            let _ = self.child.wait().await;
        };
        if tokio::time::timeout(TIME_TO_END, ended).await.is_err() {
            let _ = self.child.kill().await;
        }
        self.reader.abort();
    }

    /// Ends a tool of which nothing more is wanted; what it had said by then.
    pub(crate) async fn end(mut self) -> Vec<String> {
        let words = Arc::clone(&self.words);
        self.kill().await;
        let words = words.lock().unwrap_or_else(PoisonError::into_inner);
        // That it was ended is no news.
        words.iter().filter(|word| !word.contains("terminated by user")).cloned().collect()
    }

    fn explain(&self, status: ExitStatus, words: &[String]) -> Error {
        use std::os::unix::process::ExitStatusExt;
        let name = &self.name;
        if let Some(signal) = status.signal() {
            let hint = if signal == 9 {
                "the kernel does that when memory runs out: see dmesg"
            } else {
                "see the server's log"
            };
            return Error::new(ErrorKind::ToolFailed, format!("{name} was killed by signal {signal}"))
                .with_hint(hint);
        }
        let said = words.iter().find(|w| w.contains("error:")).or(words.last());
        let said = said.map_or("nothing", |w| w.rsplit_once("error: ").map_or(w.as_str(), |(_, said)| said));
        let all = words.join("\n");
        let has = |needles: &[&str]| needles.iter().any(|n| all.contains(n));
        let (kind, hint) = if has(&[
            "server closed the connection",
            "terminating connection",
            "connection to server was lost",
            "could not receive data from server",
            "SSL SYSCALL error",
            "no connection to the server",
        ]) {
            (ErrorKind::ConnectionLost, "the server went away: see its log")
        } else if has(&["password authentication failed", "no password supplied"]) {
            (ErrorKind::Auth, "check PGPASSWORD, ~/.pgpass or the connection settings")
        } else if has(&["No space left on device"]) {
            (ErrorKind::DiskFull, "free some space on the server")
        } else if has(&["connection to server"]) {
            (ErrorKind::Connect, "is the server running, and are host and port right?")
        } else if has(&["permission denied"]) {
            (
                ErrorKind::Database,
                "the user must be allowed to read everything that is backed up: a superuser, the owner, or a member of pg_read_all_data",
            )
        } else {
            (ErrorKind::ToolFailed, "the tool's own words stand above")
        };
        let code = status.code().unwrap_or(-1);
        Error::new(kind, format!("{name} failed (exit code {code}): {said}")).with_hint(hint).caused_by(all)
    }
}
