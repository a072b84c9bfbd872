//! The container of a drill: server programs of a version that this host does not have.
//!
//! It has no network, and sees the drill's folder under the same path as this host does, so that sockets and files are
//! where both look for them. Its first process reads from this one: when this one ends, however it does, the container
//! ends and is removed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ulid::Ulid;

use crate::error::{Error, ErrorKind, Result};

/// How drills call their containers.
const PREFIX: &str = "pgark-drill-";
/// Says that the container runs, and ends when its input does.
const WAIT: &str = "echo running; exec cat >/dev/null";

/// A container that is gone when the value is dropped.
#[derive(Debug)]
pub(super) struct Container {
    name: String,
    child: Child,
}

pub(super) fn new_name() -> String {
    format!("{PREFIX}{}", Ulid::generate().to_string().to_lowercase())
}

fn docker() -> Command {
    let mut command = Command::new("docker");
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Whether Docker answers.
pub(super) fn is_there() -> bool {
    let mut command = docker();
    command.args(["version", "--format", "{{.Server.Version}}"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Container {
    /// Starts it from an image, which Docker fetches where it does not have it. It blocks.
    pub(super) fn start(
        image: &str,
        name: String,
        folder: &Path,
        passwd: &Path,
        (uid, gid): (u32, u32),
    ) -> Result<Self> {
        let mut command = docker();
        let mount = |from: &Path, to: &Path, how: &str| format!("{}:{}{how}", from.display(), to.display());
        command
            .args(["run", "--rm", "--interactive", "--network", "none", "--shm-size", "1g", "--name", &name])
            .args(["--user", &format!("{uid}:{gid}"), "--entrypoint", "sh"])
            .args(["--volume", &mount(folder, folder, "")])
            .args(["--volume", &mount(passwd, Path::new("/etc/passwd"), ":ro")])
            .args(["--", image, "-c", WAIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(|e| {
            Error::new(ErrorKind::ToolMissing, "docker cannot be started").caused_by(e).with_hint(
                "install the server programs of the backup's version here, or docker, which runs them in a container",
            )
        })?;
        let mut container = Self { name, child };
        let stdout = container.child.stdout.take();
        let mut line = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        if line.trim() == "running" {
            return Ok(container);
        }
        let mut words = String::new();
        if let Some(mut stderr) = container.child.stderr.take() {
            // What it says is a hint only.
            let _ = stderr.read_to_string(&mut words);
        }
        drop(read);
        Err(Error::new(ErrorKind::ToolFailed, format!("no container can be started from the image {image}"))
            .with_hint("this must work on this host: docker run --rm IMAGE true; --image names another one")
            .caused_by(words))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        remove_left(&self.name);
        drop(self.child.stdin.take());
        // It was removed: the client ends.
        let _ = self.child.wait();
    }
}

/// Removes the container of a drill by its name, where it is still there.
pub(super) fn remove_left(name: &str) {
    if !name.starts_with(PREFIX) {
        return;
    }
    let mut command = docker();
    command.args(["rm", "--force", "--volumes", name]).stdout(Stdio::null()).stderr(Stdio::null());
    // One that is not there is gone, which is what is wanted.
    let _ = command.status();
}
