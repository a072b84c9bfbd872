//! A throwaway PostgreSQL from the server programs of this machine.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::conninfo::{ConnInfo, Environment};
use super::server_programs::ServerPrograms;
use super::tools::Tools;
use crate::error::{Error, ErrorKind, Result};

/// How the server is made.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TempServerOptions {
    /// Where the programs are.
    pub tools: Tools,
    /// Lowest major version; the oldest that pgark works with by default.
    pub major: u32,
    /// Lines for postgresql.conf.
    pub settings: Vec<String>,
    /// Lines of `pg_hba.conf` that come before "local all all trust".
    pub hba: Vec<String>,
    /// Files for the data folder: name and contents, mode 0600.
    pub files: Vec<(String, String)>,
    /// Listens on 127.0.0.1 as well, on this port.
    pub port: Option<u16>,
    /// More arguments of `initdb`.
    pub initdb: Vec<String>,
    /// Parent of its folder; the system's temporary folder by default.
    pub parent: Option<PathBuf>,
}

/// A running server that is gone when the value is dropped. Its superuser is `postgres`, and it listens on a
/// Unix socket in a folder of its own.
///
/// PostgreSQL refuses to run as root; then it runs as the user `postgres`.
pub struct TempServer {
    folder: Option<TempDir>,
    bin: PathBuf,
    owner: Option<(u32, u32)>,
    port: u16,
    major: u32,
}

impl TempServer {
    /// Makes and starts one. It blocks for about a second.
    ///
    /// # Errors
    /// [`ToolMissing`](ErrorKind::ToolMissing) where there are no server programs.
    pub fn start(options: &TempServerOptions) -> Result<Self> {
        let initdb = options.tools.find("initdb", options.major.max(super::OLDEST_MAJOR))?;
        let bin = initdb.path.parent().map(Path::to_owned).unwrap_or_default();
        let owner = server_owner()?;
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let io = |e| Error::io("making a throwaway server", e);
        let folder = tempfile::Builder::new().prefix("pgark-pg-").tempdir_in(parent).map_err(io)?;
        let server = Self {
            folder: Some(folder),
            bin,
            owner,
            port: options.port.unwrap_or(5432),
            major: initdb.major,
        };
        std::fs::create_dir(server.data()).map_err(io)?;
        if let Some((uid, gid)) = owner {
            for path in [server.folder().to_owned(), server.data()] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(io)?;
            }
        }
        let data = server.data().display().to_string();
        let mut args = vec!["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"];
        args.extend(options.initdb.iter().map(String::as_str));
        server.run("initdb", &args)?;
        server.configure(options).map_err(io)?;
        server.start_again()?;
        Ok(server)
    }

    /// Starts another one on a data directory of the same version, which becomes its own: one that was restored,
    /// for example. It only listens on its socket.
    ///
    /// # Errors
    /// [`ToolFailed`](ErrorKind::ToolFailed) with the server's log where it does not start.
    pub fn start_on(&self, data: &Path) -> Result<Self> {
        let io = |e| Error::io("moving a data directory to a throwaway server", e);
        let parent = data.parent().unwrap_or(Path::new("."));
        let folder = tempfile::Builder::new().prefix("pgark-pg-").tempdir_in(parent).map_err(io)?;
        let server = Self {
            folder: Some(folder),
            bin: self.bin.clone(),
            owner: self.owner,
            port: 5432,
            major: self.major,
        };
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(server.folder(), Some(uid), Some(gid)).map_err(io)?;
        }
        std::fs::rename(data, server.data()).map_err(io)?;
        let settings = server.data().join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&settings).map_err(io)?;
        let socket = server.folder().display();
        let _ = writeln!(text, "\nport = 5432\nunix_socket_directories = '{socket}'\nlisten_addresses = ''");
        std::fs::write(&settings, text).map_err(io)?;
        server.start_again()?;
        Ok(server)
    }

    fn configure(&self, options: &TempServerOptions) -> std::io::Result<()> {
        let data = self.data();
        let mut settings = format!(
            "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '{}'\nfsync = off\nmax_connections = 50\n",
            self.port,
            self.folder().display(),
            if options.port.is_some() { "127.0.0.1" } else { "" },
        );
        for line in &options.settings {
            let _ = writeln!(settings, "{line}");
        }
        let mut hba = options.hba.join("\n");
        hba.push_str("\nlocal all all trust\nlocal replication all trust\n");
        let mut files = options.files.clone();
        let own = std::fs::read_to_string(data.join("postgresql.conf"))?;
        files.push(("postgresql.conf".to_owned(), own + &settings));
        files.push(("pg_hba.conf".to_owned(), hba));
        for (name, contents) in files {
            use std::os::unix::fs::PermissionsExt;
            let path = data.join(name);
            std::fs::write(&path, contents)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            if let Some((uid, gid)) = self.owner {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
            }
        }
        Ok(())
    }

    /// Starts it after [`TempServer::stop`].
    pub fn start_again(&self) -> Result<()> {
        let (data, log) = (self.data().display().to_string(), self.log().display().to_string());
        self.run("pg_ctl", &["-D", &data, "-l", &log, "-w", "-t", "60", "start"]).map_err(|e| {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            e.caused_by(log)
        })
    }

    /// Stops it: `fast`, or `immediate` for a crash.
    pub fn stop(&self, mode: &str) -> Result<()> {
        let data = self.data().display().to_string();
        self.run("pg_ctl", &["-D", &data, "-m", mode, "-w", "-t", "60", "stop"])
    }

    /// Its folder: the socket's and the log's.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// Folder of its programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Its port, which is also the number in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// A connection string for one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.folder().display(), self.port)
    }

    /// Connection settings for one of its databases, whatever this process's environment says.
    pub fn conninfo(&self, database: &str) -> Result<ConnInfo> {
        ConnInfo::resolve(&self.url(database), &Environment::default())
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let programs = ServerPrograms { bin: self.bin.clone(), owner: self.owner, container: None };
        programs.run(program, args).map(drop)
    }
}

impl Drop for TempServer {
    fn drop(&mut self) {
        // It may be stopped already; its folder goes in any case.
        let _ = self.stop("immediate");
    }
}

/// Whom the server runs as, when this process is root.
pub(crate) fn server_owner() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    crate::passwd::ids_of("postgres")?.map(Some).ok_or_else(|| {
        Error::new(ErrorKind::ToolMissing, "PostgreSQL does not run as root, and there is no user postgres")
            .with_hint("install postgresql, which makes that user, or run this as another user")
    })
}
