//! Programs that run beside a server, as its user.

use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// The programs of one server version.
pub(super) struct ServerPrograms {
    pub(super) bin: PathBuf,
    /// Whom they run as, where this process is root: PostgreSQL refuses to.
    pub(super) owner: Option<(u32, u32)>,
}

impl ServerPrograms {
    /// Runs one to its end; what it printed.
    pub(super) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.bin.join(program));
        command.args(args).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid).env_remove("HOME");
        }
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
        let mut said = String::new();
        output.rewind().and_then(|()| output.read_to_string(&mut said)).map_err(failed)?;
        if status.success() {
            return Ok(said);
        }
        Err(Error::new(ErrorKind::ToolFailed, format!("{program} failed")).caused_by(said))
    }
}
