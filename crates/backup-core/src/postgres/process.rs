//! The one place that starts a client tool, here or elsewhere.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::quote_literal;
use super::conninfo::{ConnInfo, KEYWORDS};
use super::tools::Tool;
use super::via::{Input, Script, Via};
use crate::error::{Error, ErrorKind, Result};

/// Lines of the tool's own words that are kept.
const KEPT_LINES: usize = 200;
/// How long a tool may take to end when it is asked to.
const TIME_TO_END: Duration = Duration::from_secs(2);
/// How long it may take to end a tool's session on the server, and to see that it is gone.
const TIME_TO_END_SESSION: Duration = Duration::from_secs(20);
/// What a tool's shell elsewhere says first. Where it is not said, nothing was run there.
const BEGUN: &str = "pgark: begun";
/// What `kubectl` adds to the words of a tool that failed.
const OF_KUBECTL: &str = "command terminated with exit code";
/// Runs a tool that reads standard input.
const WITH_INPUT: &str = "echo 'pgark: begun' >&2\nexec \"$@\"";
/// Runs a tool that does not, and ends it when standard input does: so it does not outlive this process.
const WITHOUT_INPUT: &str = concat!("echo 'pgark: begun' >&2\n", include_str!("via/tool.sh"));
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
    input: Option<Input>,
    words: Arc<Mutex<Words>>,
    reader: JoinHandle<()>,
    there: Option<There>,
}

/// What a tool has said.
#[derive(Default)]
struct Words {
    lines: Vec<String>,
    begun: bool,
}

/// What is known of a tool that runs elsewhere.
struct There {
    via: Via,
    /// How its session is found: where it connects to, and the name of its application.
    session: Option<(ConnInfo, String)>,
    /// Holds the standard input of a tool that does not read it.
    hold: Option<JoinHandle<()>>,
}

impl Drop for There {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Process {
    pub(crate) fn start(run: Run<'_>) -> Result<Self> {
        if let Some(connection) = run.connection
            && connection.via() != run.tool.via.as_ref()
        {
            return Err(Error::internal("a tool that runs elsewhere than its connection begins"));
        }
        match &run.tool.via {
            None => Self::start_here(run),
            Some(via) => Self::start_there(&run, via),
        }
    }

    fn start_here(run: Run<'_>) -> Result<Self> {
        let Run { tool, args, connection, stdin, stdout } = run;
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
        let child = command.spawn().map_err(|e| {
            let full = e.kind() == std::io::ErrorKind::NotFound;
            let kind = if full { ErrorKind::ToolMissing } else { ErrorKind::ToolFailed };
            Error::new(kind, format!("{} cannot be started", tool.path.display())).caused_by(e)
        })?;
        Self::of(tool, child, Vec::new(), None)
    }

    /// Has `sh` there take the environment from standard input, and become the tool.
    fn start_there(run: &Run<'_>, via: &Via) -> Result<Self> {
        let mut script = Script::new().export("LC_ALL", "C").unset("LANGUAGE").unset("PGSERVICEFILE");
        for variable in KEYWORDS.iter().filter_map(|keyword| keyword.variable) {
            script = script.unset(variable);
        }
        let mut session = None;
        if let Some(connection) = run.connection {
            // Of this name there is one, so that it can be ended by it.
            let name = format!("pgark {}", ulid::Ulid::generate());
            for (variable, value) in connection.tool_environment()? {
                script = script.export(variable, &value.to_string_lossy());
            }
            script = script.export("PGAPPNAME", &name);
            session = Some((connection.clone(), name));
        }
        let path = run.tool.path.to_string_lossy();
        script = script.arguments(std::iter::once(&*path).chain(run.args.iter().map(String::as_str)));
        let line = script.line(if run.stdin { WITH_INPUT } else { WITHOUT_INPUT });
        let mut command = via.shell();
        if !run.stdout {
            command.stdout(Stdio::null());
        }
        let child = command.spawn().map_err(|e| via.no_program(e))?;
        let there = There { via: via.clone(), session, hold: None };
        let mut process = Self::of(run.tool, child, line, Some(there))?;
        if !run.stdin
            && let (Some(mut input), Some(there)) = (process.input.take(), &mut process.there)
        {
            there.hold = Some(tokio::spawn(async move {
                // What does not read it says why.
                let _ = input.flush().await;
                std::future::pending::<()>().await;
            }));
        }
        Ok(process)
    }

    /// A child at work, whose input begins with `line`.
    fn of(tool: &Tool, mut child: Child, line: Vec<u8>, there: Option<There>) -> Result<Self> {
        let name = tool.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stderr = child.stderr.take().ok_or_else(|| Error::internal("a tool without standard error"))?;
        let input = child.stdin.take().map(|stdin| Input::new(line, stdin));
        let words = Arc::new(Mutex::new(Words::default()));
        let reader = tokio::spawn(listen(stderr, Arc::clone(&words)));
        Ok(Self { name, child, input, words, reader, there })
    }

    pub(crate) fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().ok_or_else(|| Error::internal("the tool's output is taken"))
    }

    pub(crate) fn stdin(&mut self) -> Result<Input> {
        self.input.take().ok_or_else(|| Error::internal("the tool's input is taken"))
    }

    /// Waits for the end. `Ok` with what it said, if it succeeded.
    pub(crate) async fn finish(mut self, cancel: &CancellationToken) -> Result<Vec<String>> {
        self.input = None;
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
            return Ok(words.lines);
        }
        if let Some(there) = &mut self.there {
            if !words.begun {
                let doing = format!("starting {}", self.name);
                return Err(there.via.unreached(&words.lines.join("\n")).doing(doing));
            }
            // What led there may have failed, and not the tool.
            there.end(&self.name).await;
        }
        Err(self.explain(status, &words.lines))
    }

    /// Ends it. Asked to end, `pg_dump` and `pg_restore` tell the server to stop as well (`sigTermHandler` in
    /// parallel.c, PostgreSQL 18); killed at once they leave a session behind that may wait for a lock for days.
    pub(crate) async fn kill(&mut self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        self.input = None;
        if let Some(there) = &mut self.there {
            there.let_go();
        } else {
            // It may have ended by itself.
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let ended = tokio::time::timeout(TIME_TO_END, self.child.wait()).await.is_ok();
        if let Some(there) = &mut self.there {
            there.end(&self.name).await;
        }
        if !ended && tokio::time::timeout(TIME_TO_END, self.child.wait()).await.is_err() {
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
        words.lines.iter().filter(|word| !word.contains("terminated by user")).cloned().collect()
    }

    fn explain(&self, status: ExitStatus, words: &[String]) -> Error {
        use std::os::unix::process::ExitStatusExt;
        let name = match &self.there {
            None => self.name.clone(),
            Some(there) => format!("{} in {}", self.name, there.via),
        };
        // A shell tells of a signal by its number and 128.
        let of_shell = status.code().filter(|code| self.there.is_some() && (129..=159).contains(code));
        if let Some(signal) = status.signal().or(of_shell.map(|code| code - 128)) {
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

impl There {
    /// Ends what standard input keeps going.
    fn let_go(&mut self) {
        self.hold.take().inspect(JoinHandle::abort);
    }

    /// Ends the tool's session on the server: what leads to the tool can be gone while the tool goes on. A tool
    /// without its session ends.
    async fn end(&mut self, tool: &str) {
        self.let_go();
        let Some((connection, name)) = self.session.take() else { return };
        let ended = tokio::time::timeout(TIME_TO_END_SESSION, end_session(&connection, &name)).await;
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(_) => "the server did not end it in time".to_owned(),
        };
        tracing::warn!(
            "{tool} may go on in {}: its session, whose application_name is {name:?}, could not be ended: {why}",
            self.via
        );
    }
}

/// Ends the sessions of an application, and waits until there are none.
async fn end_session(connection: &ConnInfo, name: &str) -> Result<()> {
    let session = connection.connect().await?;
    let sql = format!(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE application_name = {}",
        quote_literal(name)
    );
    while !session.rows(&sql).await?.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Keeps what a tool says.
async fn listen(stderr: ChildStderr, words: Arc<Mutex<Words>>) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while (&mut lines).take(LINE_LIMIT).read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        if text == BEGUN {
            words.begun = true;
            // What came before was said on the way there.
            words.lines.clear();
        } else if !words.begun || !text.starts_with(OF_KUBECTL) {
            if words.lines.len() == KEPT_LINES {
                words.lines.remove(KEPT_LINES / 2);
            }
            words.lines.push(text);
        }
    }
}
