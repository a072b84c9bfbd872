//! Starting a server on a data directory that was restored, and waiting until it has recovered.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::conninfo::{ConnInfo, Environment};
use super::server_programs::{AT_LEAST, ServerPrograms};
use super::tools::Tools;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait until the server is looked at again: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// Seconds until it must be consistent, for `pg_ctl`: recovery to there can take long.
const CONSISTENT_WITHIN: &str = "86400";
/// Before it recovers a server syncs every file of its data directory, one by one, which can take longer than all else
/// (`SyncDataDirectory` in `fd.c`, PostgreSQL 15 to 18). The restore has synced them; for what a person may have changed
/// since, all at once is enough.
const SYNC_AT_ONCE: &str = "-c recovery_init_sync_method=syncfs";

/// A server after its recovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recovered {
    /// `pg_controldata`'s word for what it does now: `in production`, `in archive recovery`, `shut down in recovery`.
    pub state: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Its timeline.
    pub timeline: String,
    /// The end of the WAL that it recovered, where it lets itself be asked.
    pub stopped_at: Option<String>,
    /// The last commit that it recovered, where it lets itself be asked.
    pub last_commit: Option<String>,
}

/// A data directory, and the programs that fit it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) data: PathBuf,
    pub(crate) programs: ServerPrograms,
}

/// Starts a server, and waits until it has recovered: until it takes writes, waits at its target, or has stopped
/// there; a standby, until it can be asked.
///
/// Settings that recovery needs at least are raised in `postgresql.auto.conf`, as `pg_control` demands.
///
/// # Errors
/// [`ToolMissing`](ErrorKind::ToolMissing) without server programs of its version;
/// [`ToolFailed`](ErrorKind::ToolFailed) with the end of its log where it does not start or stops on its way. Cancelled,
/// the server is left alone.
pub async fn start_and_recover(data: &Path, tools: &Tools, cancel: &CancellationToken) -> Result<Recovered> {
    let data = std::path::absolute(data).map_err(|e| Error::io("naming the data directory", e))?;
    let tools = tools.clone();
    let found = tokio::task::spawn_blocking(move || Cluster::find(data, &tools)).await;
    let cluster = found.map_err(|e| Error::internal("looking for server programs failed").caused_by(e))??;
    cluster.recover(cancel).await
}

/// What a server says of its recovery.
struct Asked {
    paused: bool,
    stopped_at: Option<String>,
    last_commit: Option<String>,
}

impl Cluster {
    /// A data directory, and the programs of this host that fit it.
    fn find(data: PathBuf, tools: &Tools) -> Result<Self> {
        let version = std::fs::read_to_string(data.join("PG_VERSION"))
            .map_err(|e| Error::io(format!("reading PG_VERSION in {}", data.display()), e))?;
        let major = version.trim().parse().unwrap_or(0);
        let tool = tools.find("pg_ctl", major)?;
        if tool.major != major {
            return Err(Error::new(
                ErrorKind::ToolMissing,
                format!("there is no server of PostgreSQL {major} here"),
            )
            .with_hint(format!("install postgresql-{major}, or name its folder with --pg-bin")));
        }
        let owner = if rustix::process::geteuid().is_root() {
            let of = std::fs::metadata(&data).map_err(|e| Error::io("looking at the data directory", e))?;
            Some((of.uid(), of.gid()))
        } else {
            None
        };
        let bin = tool.path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { data, programs: ServerPrograms { bin, owner, container: None } })
    }

    /// Starts the server, and waits until it has recovered: see [`start_and_recover`].
    pub(crate) async fn recover(self, cancel: &CancellationToken) -> Result<Recovered> {
        let begun = Instant::now();
        let blocking = tokio::task::spawn_blocking(move || self.start());
        let started = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::cancelled()),
            started = blocking => started,
        };
        let cluster = started.map_err(|e| Error::internal("starting a server failed").caused_by(e))??;
        let standby = cluster.data.join("standby.signal").exists();
        let mut wait = LOOKS.0;
        loop {
            let control = cluster.control()?;
            let state = control.get("Database cluster state").cloned().unwrap_or_default();
            let asked = cluster.ask().await;
            let paused = asked.as_ref().is_some_and(|a| a.paused);
            let stopped = !cluster.is_alive();
            if stopped && state == "in archive recovery" {
                return Err(cluster.failed("the server stopped during its recovery"));
            }
            if standby || paused || stopped || state == "in production" {
                let (stopped_at, last_commit) = asked.map_or((None, None), |a| (a.stopped_at, a.last_commit));
                return Ok(Recovered {
                    state,
                    seconds: begun.elapsed().as_secs_f64(),
                    timeline: control.get("Latest checkpoint's TimeLineID").cloned().unwrap_or_default(),
                    stopped_at,
                    last_commit,
                });
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LOOKS.1);
        }
    }

    /// Starts the server, and waits until it can be asked.
    pub(crate) fn start(self) -> Result<Self> {
        self.raise_settings()?;
        let (folder, log) = (self.data.display().to_string(), self.log().display().to_string());
        let mut args = vec!["-D", &folder, "-l", &log, "-w", "-t", CONSISTENT_WITHIN];
        if cfg!(target_os = "linux") {
            args.extend(["-o", SYNC_AT_ONCE]);
        }
        args.push("start");
        if self.programs.run("pg_ctl", &args).is_ok() {
            return Ok(self);
        }
        // One that stops at its target was running for a moment only.
        let stopped =
            self.control()?.get("Database cluster state").is_some_and(|s| s == "shut down in recovery");
        if stopped { Ok(self) } else { Err(self.failed("the server does not start")) }
    }

    /// Stops it: `fast`, or `immediate` as in a crash.
    pub(crate) fn stop(&self, mode: &str) -> Result<()> {
        let folder = self.data.display().to_string();
        self.programs
            .run("pg_ctl", &["-D", &folder, "-m", mode, "-w", "-t", CONSISTENT_WITHIN, "stop"])
            .map(drop)
    }

    /// Whether the process is there that `postmaster.pid` names: a killed one leaves the file.
    fn is_alive(&self) -> bool {
        if self.programs.container.is_some() {
            // Its number is of another world.
            return self.programs.run("pg_ctl", &["-D", &self.data.display().to_string(), "status"]).is_ok();
        }
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).ok();
        let pid = pid.and_then(|text| text.lines().next()?.trim().parse().ok());
        pid.and_then(rustix::process::Pid::from_raw)
            .is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data.join("pgark.start.log")
    }

    /// An error with the end of the log.
    fn failed(&self, what: &str) -> Error {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(8)..].join("; ");
        Error::new(ErrorKind::ToolFailed, what)
            .with_hint(format!("its log is {}, or where its settings say", self.log().display()))
            .caused_by(end)
    }

    /// What `pg_controldata` prints.
    pub(crate) fn control(&self) -> Result<BTreeMap<String, String>> {
        self.programs.control(&self.data)
    }

    fn raise_settings(&self) -> Result<()> {
        let control = self.control()?;
        let mut lines = String::new();
        for (setting, name, _) in AT_LEAST {
            let folder = self.data.display().to_string();
            let has = self.programs.run("postgres", &["-D", &folder, "-C", setting])?;
            let (has, needs) =
                (has.trim().parse::<u32>(), control.get(name).and_then(|v| v.parse::<u32>().ok()));
            if let (Ok(has), Some(needs)) = (has, needs)
                && has < needs
            {
                let _ = writeln!(lines, "{setting} = {needs}");
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.data.join("postgresql.auto.conf");
        let text = format!("\n# Written by pgark: the server that wrote the WAL had no less.\n{lines}");
        let written =
            OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(text.as_bytes()));
        written.map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }

    /// Asks the server, where it lets itself be asked over its socket.
    async fn ask(&self) -> Option<Asked> {
        // Its port is in line 4, the folder of its socket in line 5, the address in line 6 (pidfile.h).
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = pid.lines().collect();
        let socket = lines.get(4).filter(|folder| !folder.is_empty()).or_else(|| lines.get(5))?;
        let at = format!("host='{socket}' port={} dbname=postgres connect_timeout=3", lines.get(3)?);
        for user in ["postgres", ""] {
            let at = if user.is_empty() { at.clone() } else { format!("{at} user={user}") };
            let Ok(session) = ConnInfo::resolve(&at, &Environment::of_process()).ok()?.connect().await else {
                continue;
            };
            // Whether it is paused can only be asked in recovery.
            let query = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() END, \
                         pg_catalog.pg_last_wal_replay_lsn(), pg_catalog.pg_last_xact_replay_timestamp()";
            let rows = session.rows(query).await.ok()?;
            let row = rows.into_iter().next()?;
            let [paused, stopped_at, last_commit]: [Option<String>; 3] = row.try_into().ok()?;
            return Some(Asked { paused: paused.as_deref() == Some("t"), stopped_at, last_commit });
        }
        None
    }
}
