//! Small files put where a tool can read them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};

use super::tools::Tool;
use super::via::{Script, Via};
use crate::error::{Error, Result};

/// Makes a folder, says its name, and removes it when standard input ends.
const FOLDER: &str = include_str!("via/folder.sh");
/// How long making or removing it may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// A folder of files beside a tool. It is removed by [`remove`](Self::remove), and when it is dropped: elsewhere
/// that is soon afterwards, also where this process is killed.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Here(tempfile::TempDir),
    /// The shell there that removes the folder when its input ends.
    There(Via, Box<(Child, ChildStdin)>),
}

impl Tool {
    /// Makes a temporary folder where this tool can read files, and nobody else can.
    ///
    /// # Errors
    /// Where it cannot be made: [`Io`](crate::ErrorKind::Io), or [`Connect`](crate::ErrorKind::Connect) elsewhere,
    /// with what was said there.
    pub async fn stage(&self) -> Result<Staged> {
        match &self.via {
            None => Staged::here().map_err(|e| Error::io("making a temporary folder", e)),
            Some(via) => Staged::there(via).await.map_err(|e| e.doing("making a temporary folder")),
        }
    }
}

impl Staged {
    /// The folder, as the tool sees it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a file there: its name, without folders, and what writes it.
    ///
    /// # Errors
    /// Where it cannot be written: [`Io`](crate::ErrorKind::Io), [`DiskFull`](crate::ErrorKind::DiskFull), or
    /// [`Connect`](crate::ErrorKind::Connect) elsewhere, with what was said there.
    pub async fn file(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<()> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(Error::internal("a file to be staged whose name is none"));
        }
        let failed = |e| Error::io(format!("writing {name} to a temporary folder"), e);
        match &self.place {
            Place::Here(folder) => {
                let mut file = BufWriter::new(File::create(folder.path().join(name)).map_err(failed)?);
                write(&mut file).and_then(|()| file.flush()).map_err(failed)
            }
            Place::There(via, _) => {
                let mut bytes = Vec::new();
                write(&mut bytes).map_err(failed)?;
                let path = self.path.join(name);
                let script = Script::new().set("path", &path.to_string_lossy());
                let written = via.run(script, "umask 077; exec cat >\"$path\"", &bytes).await;
                written.map(drop).map_err(|e| e.doing(format!("writing {}", path.display())))
            }
        }
    }

    fn here() -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("pgark.").tempdir()?;
        Ok(Self { path: folder.path().to_owned(), place: Place::Here(folder) })
    }

    async fn there(via: &Via) -> Result<Self> {
        let mut command = via.shell();
        // It ends by itself, and has a folder to remove then.
        command.kill_on_drop(false);
        let mut child = command.spawn().map_err(|e| via.no_program(e))?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::internal("a program without its pipes"));
        };
        let made = async {
            // What does not read it says why.
            let _ = stdin.write_all(&Script::new().line(FOLDER)).await;
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line).await;
            line
        };
        let line = tokio::time::timeout(PATIENCE, made).await.unwrap_or_default();
        if !line.starts_with('/') || !line.ends_with('\n') {
            let mut words = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                drop(stdin);
                let _ = tokio::time::timeout(Duration::from_secs(2), stderr.read_to_string(&mut words)).await;
            }
            return Err(via.unreached(&words));
        }
        let path = PathBuf::from(line.trim_end_matches('\n'));
        Ok(Self { path, place: Place::There(via.clone(), Box::new((child, stdin))) })
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// Where it could not be removed.
    pub async fn remove(self) -> Result<()> {
        let Self { path, place } = self;
        let doing = format!("removing the temporary folder {}", path.display());
        match place {
            Place::Here(folder) => folder.close().map_err(|e| Error::io(doing, e)),
            Place::There(via, shell) => {
                let (child, stdin) = *shell;
                drop(stdin);
                let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
                match output {
                    Ok(Ok(output)) if output.status.success() => Ok(()),
                    Ok(Ok(output)) => {
                        Err(via.unreached(&String::from_utf8_lossy(&output.stderr)).doing(doing))
                    }
                    Ok(Err(e)) => Err(Error::io(doing, e)),
                    Err(_) => Err(via.unreached("nothing came back for two minutes").doing(doing)),
                }
            }
        }
    }
}
