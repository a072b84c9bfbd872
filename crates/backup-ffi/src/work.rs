//! What the calls do: the same as the command's verbs, with the same JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgark::config::{Settings, What};
use pgark::repository::ClusterName;
use pgark::{CancellationToken, Error, Observer, Result};
use serde::Serialize;
use serde_json::Value;

use crate::answer::panicked;

/// How long a task that still waits, for a store that does not answer for example, may keep the caller.
const SHUTDOWN: Duration = Duration::from_secs(5);

pub(crate) fn backup(
    config: &str,
    cluster: Option<&str>,
    db: Option<&str>,
    cancel: &CancellationToken,
    observer: Arc<dyn Observer>,
) -> Result<Value> {
    let (settings, cluster) = parse(config, cluster)?;
    run(async || {
        json(
            &settings
                .run_backup(&cluster, db, What::default(), |builder| builder.observer(observer), cancel)
                .await?,
        )
    })
}

pub(crate) fn list(config: &str, cluster: Option<&str>) -> Result<Value> {
    let (settings, cluster) = parse(config, cluster)?;
    run(async || json(&settings.list(&cluster).await?))
}

fn json<T: Serialize>(answer: &T) -> Result<Value> {
    serde_json::to_value(answer)
        .map_err(|e| Error::internal("an answer cannot be written as JSON").caused_by(e))
}

/// The settings, and the cluster that is meant. Relative paths stay as they are: below the working directory.
fn parse(config: &str, cluster: Option<&str>) -> Result<(Settings, ClusterName)> {
    let settings = Settings::parse(config, "config_toml", Path::new(""))?;
    let named = cluster.map(str::parse).transpose()?;
    let cluster = settings.cluster(named.as_ref())?;
    Ok((settings, cluster))
}

/// Runs it in a runtime of its own, on a thread of its own: whatever the caller's thread is, with a small
/// stack or inside another runtime, does not matter then.
fn run<T: Send>(work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    let on_thread = || {
        block_sigpipe();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Error::io("starting", e))?;
        let result = runtime.block_on(work());
        runtime.shutdown_timeout(SHUTDOWN);
        result
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pgark".to_owned()).spawn_scoped(scope, on_thread);
        let thread = thread.map_err(|e| Error::io("starting a thread", e))?;
        thread.join().unwrap_or_else(|panic| Err(panicked(&*panic)))
    })
}

/// Blocks SIGPIPE on this thread and those that it will start. A Rust program ignores the signal from its
/// beginning, and pgark takes a closed pipe or socket as an error; in a C program, which may not ignore it, it
/// would end the host. Started programs are not affected: their mask is reset.
fn block_sigpipe() {
    // SAFETY: an empty set is a valid one, and the calls write to it alone. They fail only for wrong arguments.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sigpipe_is_blocked() -> bool {
        // SAFETY: no new mask is given, so the call only writes the present one.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
            libc::sigismember(&raw const set, libc::SIGPIPE) == 1
        }
    }

    #[test]
    fn sigpipe_is_blocked_for_the_library_and_not_for_its_caller() {
        let on_a_worker = run(async || Ok(tokio::spawn(async { sigpipe_is_blocked() }).await.unwrap()));
        assert!(on_a_worker.unwrap());
        assert!(!sigpipe_is_blocked());
    }

    #[test]
    fn a_call_may_come_from_inside_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(async { run(async || Ok(7)) }).unwrap(), 7);
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = run(async || -> Result<()> { panic!("boom") }).unwrap_err();
        assert_eq!(error.to_string(), "pgark panicked: boom");
    }
}
