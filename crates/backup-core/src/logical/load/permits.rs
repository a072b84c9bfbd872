//! How much is done at once.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Permits, of which each job holds one while it works. Who waits for one gets it by weight: the longest jobs come
/// first, so that short ones fill the gaps at the end.
#[derive(Debug)]
pub(super) struct Permits {
    semaphore: Arc<Semaphore>,
    queue: Mutex<Queue>,
}

/// The right to work, given back when it is dropped.
pub(super) type Permit = OwnedSemaphorePermit;

#[derive(Debug, Default)]
struct Queue {
    /// The first comes next: the heaviest, and of equal ones who asked first.
    waiting: BTreeMap<(Reverse<u64>, u64), oneshot::Sender<Permit>>,
    asked: u64,
}

impl Permits {
    pub(super) fn new(count: usize) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(count)), queue: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many nobody holds.
    pub(super) fn free(&self) -> usize {
        self.semaphore.available_permits()
    }

    /// Waits for one.
    pub(super) async fn acquire(&self, weight: u64) -> Permit {
        let (gets, mut comes) = oneshot::channel();
        {
            let mut queue = self.queue();
            queue.asked += 1;
            let rank = (Reverse(weight), queue.asked);
            queue.waiting.insert(rank, gets);
        }
        loop {
            tokio::select! {
                biased;
                Ok(permit) = &mut comes => return permit,
                Ok(permit) = Arc::clone(&self.semaphore).acquire_owned() => self.hand_on(permit),
            }
        }
    }

    /// Gives a permit to who comes next and still waits.
    fn hand_on(&self, mut permit: Permit) {
        while let Some((_, gets)) = self.queue().waiting.pop_first() {
            match gets.send(permit) {
                Ok(()) => return,
                Err(back) => permit = back,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;

    fn polled(permits: &Permits, weight: u64) -> BoxFuture<'_, Permit> {
        let mut waits = permits.acquire(weight).boxed();
        assert!((&mut waits).now_or_never().is_none(), "{weight} did not wait");
        waits
    }

    #[tokio::test]
    async fn the_heaviest_of_those_who_wait_comes_first() {
        let permits = Permits::new(1);
        let held = permits.acquire(0).await;
        assert_eq!(permits.free(), 0);
        let (light, heavy) = (polled(&permits, 1), polled(&permits, 3));
        let (gone, same) = (polled(&permits, 9), polled(&permits, 3));
        // Who gives up keeps nobody from getting it.
        drop(gone);
        drop(held);
        let order = Mutex::new(Vec::new());
        let take = async |waits: BoxFuture<'_, Permit>, name: &'static str| {
            let _permit = waits.await;
            order.lock().unwrap().push(name);
        };
        tokio::join!(take(light, "light"), take(heavy, "heavy"), take(same, "same"));
        assert_eq!(*order.lock().unwrap(), ["heavy", "same", "light"]);
        assert_eq!(permits.free(), 1);
    }

    #[tokio::test]
    async fn a_permit_that_nobody_takes_is_free_again() {
        let permits = Permits::new(1);
        let held = permits.acquire(0).await;
        let waits = polled(&permits, 1);
        drop(held);
        // It may have been handed on to who gives up now.
        drop(waits);
        drop(permits.acquire(0).await);
        assert_eq!(permits.free(), 1);
    }
}
