//! Reaching a server, and running the client tools beside it, through `docker exec`, `kubectl exec` or `ssh`:
//! nothing is published there, and nothing is installed here.
//!
//! Each of them runs `sh` there, which reads its script from the first line of standard input. So no secret, and
//! no long list of names, is ever in an argument, and all of it looks the same to the three.
//!
//! In a container the server is often process 1, and inherits every process that loses its parent. When such an
//! orphan ends by a signal the server takes it for one of its own, and restarts after a crash (`CleanupBackend`
//! in postmaster.c; tried with 15 and 18). So no script leaves one behind: it replaces itself by what it runs, or
//! it stays and waits for it.

mod input;
mod script;
mod stream;

use std::fmt;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

pub(super) use self::input::Input;
pub(super) use self::script::Script;
pub(super) use self::stream::{Stream, Unreached};
use super::conninfo::{ConnInfo, Host};
use crate::error::{Error, ErrorKind, Result};

/// Connects to a server, for standard input and output.
const RELAY: &str = include_str!("relay.sh");
/// Finds the socket that libpq would take there where no host is named.
const DEFAULT_PLACE: &str = include_str!("default_place.sh");
/// How long a script may take that only looks or writes a small file.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where the client tools run, and from where the server is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Via {
    /// `docker:CONTAINER`: a running container of `docker`.
    Docker {
        /// Its name or id.
        container: String,
    },
    /// `kubectl:[NAMESPACE/]POD[:CONTAINER]`: a running container of the cluster that `kubectl` talks to.
    Kubectl {
        /// The namespace; that of the context by default.
        namespace: Option<String>,
        /// The pod.
        pod: String,
        /// The container; that of the pod's default by default.
        container: Option<String>,
    },
    /// `ssh:[USER@]HOST[:PORT]`: a host that `ssh` logs in to without asking.
    Ssh {
        /// User and host, or a name of `~/.ssh/config`.
        destination: String,
        /// Port; that of `~/.ssh/config`, or 22, by default.
        port: Option<u16>,
    },
}

impl FromStr for Via {
    type Err = Error;

    /// Reads `docker:…`, `kubectl:…` or `ssh:…`. Whatever could be taken for an option is refused.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(ErrorKind::Usage, format!("{text:?} is no place to go through: {why}"))
                .with_hint("write docker:CONTAINER, kubectl:[NAMESPACE/]POD[:CONTAINER] or ssh:[USER@]HOST")
        };
        let (kind, place) = text.split_once(':').ok_or_else(|| wrong("it does not say what leads there"))?;
        let name = |name: &str, what: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain) {
                Ok(name.to_owned())
            } else if name.is_empty() {
                Err(wrong(&format!("the name of the {what} is missing")))
            } else {
                Err(wrong(&format!("{name:?} is no name of a {what}")))
            }
        };
        match kind {
            "docker" => Ok(Self::Docker { container: name(place, "container")? }),
            "kubectl" => {
                let (namespace, rest) =
                    place.split_once('/').map_or((None, place), |(namespace, rest)| (Some(namespace), rest));
                let (pod, container) =
                    rest.split_once(':').map_or((rest, None), |(pod, container)| (pod, Some(container)));
                Ok(Self::Kubectl {
                    namespace: namespace.map(|n| name(n, "namespace")).transpose()?,
                    pod: name(pod, "pod")?,
                    container: container.map(|c| name(c, "container")).transpose()?,
                })
            }
            "ssh" => {
                let (destination, port) = match place.rsplit_once(':') {
                    // More than one colon: an address of IPv6, without a port.
                    Some((host, port)) if !host.contains(':') => {
                        let port = port.parse().ok().filter(|port| *port > 0);
                        (host, Some(port.ok_or_else(|| wrong("the port is no number from 1 to 65535"))?))
                    }
                    _ => (place, None),
                };
                let host = destination.rsplit_once('@').map_or(destination, |(_, host)| host);
                let odd = |c: char| c.is_whitespace() || c.is_control();
                if host.is_empty() || destination.starts_with('@') {
                    return Err(wrong("the host or the user is missing"));
                }
                if destination.starts_with('-') || host.starts_with('-') || destination.contains(odd) {
                    return Err(wrong(&format!("{destination:?} is no name of a host")));
                }
                Ok(Self::Ssh { destination: destination.to_owned(), port })
            }
            other => Err(wrong(&format!("{other:?} is not known"))),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker { container } => write!(f, "docker:{container}"),
            Self::Kubectl { namespace, pod, container } => {
                f.write_str("kubectl:")?;
                namespace.iter().try_for_each(|namespace| write!(f, "{namespace}/"))?;
                f.write_str(pod)?;
                container.iter().try_for_each(|container| write!(f, ":{container}"))
            }
            Self::Ssh { destination, port } => {
                write!(f, "ssh:{destination}")?;
                port.iter().try_for_each(|port| write!(f, ":{port}"))
            }
        }
    }
}

impl Via {
    /// The program that leads there.
    fn program(&self) -> &'static str {
        match self {
            Self::Docker { .. } => "docker",
            Self::Kubectl { .. } => "kubectl",
            Self::Ssh { .. } => "ssh",
        }
    }

    /// The program and its options, in this process's environment without what is meant for libpq.
    fn command(&self) -> Command {
        let mut command = Command::new(self.program());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        // Its words are read, so they come in one language. Ctrl-C is for pgark, which needs it to clean up.
        command.env("LC_ALL", "C").env_remove("LANGUAGE").process_group(0);
        if let Self::Ssh { port, .. } = self {
            // Nobody is there to be asked, and a dead connection must not hang a backup.
            for option in
                ["BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=8"]
            {
                command.args(["-o", option]);
            }
            command.arg("-T").args(port.iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs `sh` there, with the script that the first line of its standard input is.
    pub(super) fn shell(&self) -> Command {
        const READ: &str = "IFS= read -r line && eval \"$line\"";
        let mut command = self.command();
        match self {
            Self::Docker { container } => command.args(["exec", "-i", container, "sh", "-c", READ]),
            Self::Kubectl { namespace, pod, container } => {
                command.args(["exec", "--stdin", "--quiet", pod]);
                command.args(namespace.iter().flat_map(|name| ["--namespace", name]));
                command.args(container.iter().flat_map(|name| ["--container", name]));
                command.args(["--", "sh", "-c", READ])
            }
            // The login shell there takes the words apart.
            Self::Ssh { destination, .. } => command.arg(destination).arg(format!("exec sh -c '{READ}'")),
        };
        command
    }

    /// Runs a script that ends by itself, with some input; what it prints.
    ///
    /// # Errors
    /// Where it fails, and where it cannot be run.
    pub(super) async fn run(&self, script: Script, text: &str, input: &[u8]) -> Result<String> {
        let mut child = self.shell().spawn().map_err(|e| self.no_program(e))?;
        let (line, stdin) = (script.line(text), child.stdin.take());
        let written = async move {
            let Some(mut stdin) = stdin else { return };
            // What stops reading says why.
            let _ = stdin.write_all(&line).await;
            let _ = stdin.write_all(input).await;
        };
        let both = async { tokio::join!(written, child.wait_with_output()).1 };
        let output = tokio::time::timeout(PATIENCE, both)
            .await
            .map_err(|_| self.unreached("nothing came back for two minutes"))?
            .map_err(|e| Error::io(format!("waiting for {}", self.program()), e))?;
        if !output.status.success() {
            return Err(self.unreached(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A stream of bytes to the server at `host`, as seen from there.
    pub(super) fn connect(&self, host: &Host) -> std::io::Result<Stream> {
        if let (Self::Ssh { destination, .. }, false) = (self, host.is_socket()) {
            let name = host.address.as_deref().unwrap_or(&host.name);
            let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
            let mut command = self.command();
            command.arg("-W").arg(format!("{name}:{}", host.port)).arg(destination);
            return Stream::start(command, Vec::new());
        }
        let script = Script::new()
            .set("host", host.address.as_deref().filter(|_| !host.is_socket()).unwrap_or(&host.name))
            .set("port", &host.port.to_string())
            .set("perl", include_str!("relay.pl"))
            .set("python", include_str!("relay.py"))
            .set("bash", include_str!("relay.bash"));
        Stream::start(self.shell(), script.line(RELAY))
    }

    /// Where the server is that libpq there would connect to without a host: its socket, or else this port of the
    /// loopback.
    async fn default_place(&self, port: u16) -> Result<Host> {
        let script = Script::new().set("port", &port.to_string());
        let told = self.run(script, DEFAULT_PLACE, b"").await?;
        Ok(match told.trim() {
            "" => Host { name: "localhost".to_owned(), address: Some("127.0.0.1".to_owned()), port },
            folder => Host { name: folder.to_owned(), address: None, port },
        })
    }

    /// The error of a program that leads there and cannot be started.
    pub(super) fn no_program(&self, error: std::io::Error) -> Error {
        let program = self.program();
        Error::new(ErrorKind::ToolMissing, format!("{program} cannot be started, which {self} needs"))
            .with_hint(format!("install {program} on this host, and see that it is in PATH"))
            .caused_by(error)
    }

    /// The error of a place that cannot be reached, with what was said.
    pub(super) fn unreached(&self, words: &str) -> Error {
        let words = words.trim();
        let error = Error::new(ErrorKind::Connect, format!("nothing can be run in {self}"))
            .with_hint(self.hint(words).unwrap_or_else(|| self.try_by_hand()));
        if words.is_empty() { error } else { error.caused_by(words.to_owned()) }
    }

    fn try_by_hand(&self) -> String {
        let option = |name: &str, value: Option<&dyn fmt::Display>| {
            value.map(|value| format!(" {name} {value}")).unwrap_or_default()
        };
        let by_hand = match self {
            Self::Docker { container } => format!("docker exec {container} sh -c true"),
            Self::Kubectl { namespace, pod, container } => {
                let namespace = option("-n", namespace.as_ref().map(|name| name as _));
                let container = option("-c", container.as_ref().map(|name| name as _));
                format!("kubectl exec{namespace} {pod}{container} -- sh -c true")
            }
            Self::Ssh { destination, port } => {
                format!("ssh{} {destination} true", option("-p", port.as_ref().map(|port| port as _)))
            }
        };
        format!("this must work on this host: {by_hand}")
    }

    /// What to do about some words of `docker`, `kubectl` or `ssh`; nothing where they are of something else.
    pub(super) fn hint(&self, words: &str) -> Option<String> {
        let has = |needle: &str| words.contains(needle);
        match self {
            Self::Docker { .. } if has("No such container") => {
                Some("check the name: docker ps lists the containers that run".to_owned())
            }
            Self::Docker { container } if has("is not running") => {
                Some(format!("start it: docker start {container}"))
            }
            Self::Docker { container } if has("is paused") => Some(format!("docker unpause {container}")),
            Self::Docker { .. } if has("docker.sock") || has("Docker daemon") => Some(
                "see that Docker runs, and that this user may use it: a member of the group docker, or root"
                    .to_owned(),
            ),
            Self::Kubectl { .. } if has("NotFound") || has("not found") || has("is not valid for pod") => Some(
                "check namespace, pod and container: kubectl get pods --all-namespaces lists them".to_owned(),
            ),
            Self::Ssh { .. } if has("Host key verification failed") => {
                Some(format!("{}; log in once by hand, to accept the host's key", self.try_by_hand()))
            }
            Self::Ssh { .. } if has("Permission denied (") => Some(format!(
                "{}; nobody is there to type a password, so ssh needs a key, or an agent with one",
                self.try_by_hand()
            )),
            Self::Ssh { .. } if has("administratively prohibited") => Some(
                "the SSH server there forbids forwarding (AllowTcpForwarding): allow it, or give the folder of the \
                 server's Unix socket as host"
                    .to_owned(),
            ),
            Self::Ssh { .. } if has("ssh: ") || has("Connection closed by") => Some(self.try_by_hand()),
            _ => None,
        }
    }
}

impl ConnInfo {
    /// Connects through a container or another host: addresses, names and sockets are as seen from there. Where no
    /// host is named it is the one that libpq there would take: the socket in its usual folder, or else 127.0.0.1.
    #[must_use]
    pub fn with_via(mut self, via: Via) -> Self {
        if self.get("host").is_none() && self.get("hostaddr").is_none() {
            for host in &mut self.hosts {
                host.name.clear();
            }
        }
        self.via = Some(via);
        self
    }

    /// What it connects through, if anything.
    pub fn via(&self) -> Option<&Via> {
        self.via.as_ref()
    }

    /// The servers to try, with the default one found out.
    pub(super) async fn places(&self) -> Result<Vec<Host>> {
        match (&self.via, &self.hosts[..]) {
            (Some(via), [only]) if only.name.is_empty() => Ok(vec![via.default_place(only.port).await?]),
            _ => Ok(self.hosts.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
