use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::error::{Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// Threads for work that needs a core: compression, encryption, digests. A process wants one of them, as
/// wide as the cores that backups may use. Cloning shares the threads; they end with the last clone.
///
/// The queue has no bound of its own: each caller bounds what it submits.
#[derive(Clone)]
pub struct CpuPool {
    jobs: Sender<Job>,
    width: usize,
}

impl CpuPool {
    /// Starts `width` threads (at least one).
    pub fn new(width: usize) -> Result<Self> {
        let width = width.max(1);
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for i in 0..width {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("pgark-cpu-{i}"))
                .spawn(move || work(&queue))
                .map_err(|e| Error::io("starting a worker thread", e))?;
        }
        Ok(Self { jobs, width })
    }

    /// How many threads there are.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Queues `job`; the receiver gets its result. A panic becomes an error of this job alone.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> oneshot::Receiver<Result<T>> {
        let (tx, rx) = oneshot::channel();
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| Err(panicked(&*panic)));
            // Nobody waits any more after a cancel.
            let _ = tx.send(result);
        };
        // It fails only when no thread is left, and then the receiver says so.
        let _ = self.jobs.send(Box::new(job));
        rx
    }

    /// Runs `job` and waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        received(self.submit(job).await)
    }
}

/// The result of a submitted job.
pub(crate) fn received<T>(result: Result<Result<T>, oneshot::error::RecvError>) -> Result<T> {
    result.unwrap_or_else(|_| Err(Error::internal("the worker threads are gone")))
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("a worker panicked: {}", text.unwrap_or("no message")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_job_alone() {
        let pool = CpuPool::new(1).unwrap();
        let bad = pool.run(|| -> Result<()> { panic!("boom") }).await.unwrap_err();
        assert_eq!(bad.kind(), ErrorKind::Internal);
        assert!(bad.to_string().contains("boom"));
        assert_eq!(pool.run(|| Ok(7)).await.unwrap(), 7);
    }
}
