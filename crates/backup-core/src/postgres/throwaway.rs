//! A server on a data directory that was restored to be asked, and is removed then.
//!
//! It listens on a Unix socket in its own folder and nowhere else, archives nothing, follows nobody, loads no library of
//! the source's, and runs no jobs. Its settings are not the source's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::client::Session;
use super::conninfo::{ConnInfo, Environment};
use super::server_programs::{AT_LEAST, ServerPrograms};
use super::tools::Tools;
use super::work_folder::{WorkFolder, postmaster};
use crate::error::{Error, ErrorKind, Result};

/// How often the server is looked at.
const LOOK: Duration = Duration::from_millis(50);
const LOG: &str = "log";
/// The running server. It is stopped when the value is dropped.
pub(crate) struct Throwaway {
    data: PathBuf,
    folder: PathBuf,
    programs: ServerPrograms,
    users: BTreeSet<String>,
}

impl Throwaway {
    /// The programs for data of a major version.
    ///
    /// # Errors
    /// [`ToolMissing`](ErrorKind::ToolMissing), saying what to install.
    pub(crate) fn programs(tools: &Tools, major: u32) -> Result<PathBuf> {
        let tool = tools.find("pg_ctl", major)?;
        if tool.major != major {
            let message = format!("there is no server of PostgreSQL {major} here");
            return Err(Error::new(ErrorKind::ToolMissing, message).with_hint(format!(
                "a physical backup needs one of its own version: install postgresql-{major}, or name its folder with --pg-bin",
            )));
        }
        // Without initdb, it is still a server; without postgres, only clients are installed.
        tools.find("postgres", major)?;
        Ok(tool.path.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// Starts a server on the data directory `data` in a folder. It blocks until it is consistent, which can take long.
    /// `users` are names of superusers.
    pub(crate) fn start(bin: PathBuf, folder: &WorkFolder, users: BTreeSet<String>) -> Result<Self> {
        let data = folder.data();
        let programs = ServerPrograms { bin, owner: folder.owner(), container: None };
        let server = Self { data, folder: folder.path().to_owned(), programs, users };
        server.configure(folder)?;
        let (data, log) = (server.data.display().to_string(), server.log().display().to_string());
        let args = ["-D", &data, "-l", &log, "-w", "-t", "86400", "start"];
        if server.programs.run("pg_ctl", &args).is_err() {
            return Err(server.failed("the throwaway server does not start"));
        }
        Ok(server)
    }

    fn configure(&self, folder: &WorkFolder) -> Result<()> {
        let control = self.control()?;
        let mut settings = format!(
            "# Written by pgark.\nport = 5432\nlisten_addresses = ''\nunix_socket_directories = '{}'\n\
             unix_socket_permissions = 0700\nhot_standby = off\nfsync = off\nfull_page_writes = off\nautovacuum = off\nssl = off\n\
             shared_preload_libraries = ''\nshared_buffers = 64MB\nlogging_collector = off\nlog_destination = stderr\n\
             log_min_messages = warning\nlc_messages = 'C'\nlog_line_prefix = ''\njit = off\nwal_level = minimal\n\
             session_replication_role = replica\ncheckpoint_timeout = 1h\nmax_wal_size = 16GB\nrestart_after_crash = off\nignore_invalid_pages = on\n",
            self.folder.display().to_string().replace('\'', "''"),
        );
        for (setting, name, least) in AT_LEAST {
            let has = control.get(name).and_then(|value| value.parse::<u32>().ok()).unwrap_or(least);
            // Nothing is sent anywhere, and with wal_level minimal nothing may be.
            let value = if setting == "max_wal_senders" { 0 } else { has.max(least) };
            let _ = writeln!(settings, "{setting} = {value}");
        }
        for (name, text) in [
            ("postgresql.conf", settings.as_str()),
            ("pg_hba.conf", "local all all trust\n"),
            ("pg_ident.conf", ""),
        ] {
            folder.write(&format!("data/{name}"), text)?;
        }
        Ok(())
    }

    /// What `pg_controldata` prints.
    fn control(&self) -> Result<BTreeMap<String, String>> {
        self.programs.control(&self.data)
    }

    fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    /// An error with the end of the log.
    fn failed(&self, what: &str) -> Error {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        Error::new(ErrorKind::ToolFailed, what).caused_by(lines[lines.len().saturating_sub(8)..].join("; "))
    }

    /// Waits until it has recovered, and connects to a database.
    ///
    /// # Errors
    /// [`ToolFailed`](ErrorKind::ToolFailed) with the end of its log where it stops on its way, and those of a
    /// connection.
    pub(crate) async fn connect(&self, database: &str, cancel: &CancellationToken) -> Result<Session> {
        loop {
            let mut error =
                Error::new(ErrorKind::Auth, "the backup's catalogs name no superuser that may log in");
            for user in &self.users {
                match self.info(user, database)?.connect().await {
                    Ok(session) => {
                        let recovering = session.value("SELECT pg_catalog.pg_is_in_recovery()").await?;
                        if recovering.as_deref() == Some("f") {
                            return Ok(session);
                        }
                    }
                    // Another one may be there.
                    Err(e) if e.kind() == ErrorKind::Auth => error = e,
                    Err(e) if matches!(e.kind(), ErrorKind::Connect | ErrorKind::ConnectionLost) => {
                        error = e;
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
            if postmaster(&self.data).is_none() && !self.is_alive() {
                return Err(self.failed("the throwaway server stopped during its recovery"));
            }
            if error.kind() == ErrorKind::Auth {
                return Err(error);
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn is_alive(&self) -> bool {
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).ok();
        let pid = pid.and_then(|text| text.lines().next()?.trim().parse().ok());
        pid.and_then(rustix::process::Pid::from_raw)
            .is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    }

    fn info(&self, user: &str, database: &str) -> Result<ConnInfo> {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!(
            "host='{}' port=5432 user='{}' dbname='{}'",
            quoted(&self.folder.display().to_string()),
            quoted(user),
            quoted(database)
        );
        ConnInfo::resolve(&text, &Environment::default())
    }

    /// Gives each file to `each` of which the WAL has changes to pages that were not there: its path in the data directory,
    /// without the number of a segment and the name of a fork. The server logs them as warnings (`report_invalid_page` in
    /// `xlogutils.c`, PostgreSQL 15 to 18).
    pub(crate) fn invalid_pages(&self, mut each: impl FnMut(&Path)) -> Result<()> {
        let failed = |e| Error::io("reading the log of a throwaway server", e);
        let log = BufReader::new(File::open(self.log()).map_err(failed)?);
        for line in log.split(b'\n') {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line);
            let Some((_, rest)) = line.split_once("WARNING:  page ") else { continue };
            let Some((_, path)) = rest.split_once(" of relation ") else { continue };
            let path = path.split(' ').next().unwrap_or_default();
            let end = path.rfind('/').map_or(0, |slash| slash + 1);
            let number: String = path[end..].chars().take_while(char::is_ascii_digit).collect();
            each(&Path::new(&path[..end]).join(number));
        }
        Ok(())
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        let data = self.data.display().to_string();
        let _ = self.programs.run("pg_ctl", &["-D", &data, "-m", "immediate", "-w", "-t", "60", "stop"]);
    }
}
