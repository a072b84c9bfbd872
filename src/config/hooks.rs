//! Commands that run before and after a restore: to stop and start an application, for example.

use std::process::Stdio;

use backup_core::{CancellationToken, Error, ErrorKind, Result};
use tokio::process::Command;

/// Commands around a restore, for `sh -c`. They see what is restored in their environment, and what they print goes to
/// standard error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Runs first; when it fails, nothing is restored.
    pub before: Option<String>,
    /// Runs last, whatever came of the restore: `PGARK_RESULT` is `ok` or `failed`.
    pub after: Option<String>,
}

impl Hooks {
    /// Runs `work` between the commands, which get the variables.
    ///
    /// # Errors
    /// Those of the work; [`ToolFailed`](ErrorKind::ToolFailed) where a command fails.
    pub async fn around<T>(
        &self,
        variables: &[(&str, String)],
        work: impl Future<Output = Result<T>>,
        cancel: &CancellationToken,
    ) -> Result<T> {
        let done = async {
            if let Some(before) = &self.before {
                run("before", before, variables, Some(cancel)).await?;
            }
            work.await
        };
        let done = done.await;
        let Some(after) = &self.after else { return done };
        let mut variables = variables.to_vec();
        variables.push(("PGARK_RESULT", if done.is_ok() { "ok" } else { "failed" }.to_owned()));
        if let Err(error) = &done {
            variables.push(("PGARK_ERROR", error.to_string()));
        }
        match (done, run("after", after, &variables, None).await) {
            (Ok(done), Ok(())) => Ok(done),
            (Ok(_), Err(error)) => Err(error.doing("the restore is done")),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(hook)) => Err(error.doing(hook)),
        }
    }
}

/// Without `cancel` it runs to its end: what starts an application again must not be left out.
async fn run(
    name: &str,
    command: &str,
    variables: &[(&str, String)],
    cancel: Option<&CancellationToken>,
) -> Result<()> {
    let mut sh = Command::new("sh");
    sh.arg("-c").arg(command).envs(variables.iter().map(|(name, value)| (name, value)));
    sh.stdin(Stdio::null()).stdout(std::io::stderr()).kill_on_drop(true);
    let mut child =
        sh.spawn().map_err(|e| Error::io(format!("running the command {name} the restore"), e))?;
    let cancelled = async {
        match cancel {
            Some(cancel) => cancel.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let status = tokio::select! {
        biased;
        () = cancelled => return Err(Error::cancelled()),
        status = child.wait() => status.map_err(|e| Error::io(format!("running the command {name} the restore"), e))?,
    };
    if status.success() {
        return Ok(());
    }
    let hint = if name == "before" {
        "nothing was restored; put the command right, and try again"
    } else {
        "run it by hand"
    };
    let message = format!("the command {name} the restore failed ({status}): {command}");
    Err(Error::new(ErrorKind::ToolFailed, message).with_hint(hint))
}
