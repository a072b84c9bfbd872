//! What a run tells about itself while it works: one stream of [`Event`]s.
//!
//! An [`Observer`] is called from the run's own tasks, so it must be quick and must not block. For a stream
//! to read at leisure use [`channel`].

use std::sync::Arc;

use futures::Stream;
use serde::Serialize;
use tokio::sync::mpsc;

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run has an id and has announced itself in the repository.
    Started {
        /// Id of the backup.
        id: String,
    },
    /// The run estimates how many raw bytes it will move.
    Expected {
        /// Raw bytes; an estimate.
        raw_bytes: u64,
    },
    /// A part was opened.
    PartOpened {
        /// Number of the part, from 1.
        part: u32,
        /// Its name: secret.
        name: String,
    },
    /// More bytes went through; the numbers are sums over the run.
    Progress {
        /// Bytes before compression.
        raw_bytes: u64,
        /// Bytes as stored.
        stored_bytes: u64,
    },
    /// A part is stored whole.
    PartFinished {
        /// Number of the part.
        part: u32,
        /// Bytes as stored.
        stored_bytes: u64,
    },
    /// Something that a person should read; the run goes on.
    Warning {
        /// One line.
        message: String,
    },
    /// WAL was received and stored.
    Wal {
        /// Its timeline.
        timeline: u32,
        /// Everything before this position is stored: `16/B374D848`.
        stored: String,
        /// The end of the server's WAL.
        server: String,
        /// How many bytes lie between.
        lag_bytes: u64,
        /// Whether commits wait until they are stored.
        synchronous: bool,
    },
    /// A step began: "connecting", "sweeping".
    Step {
        /// One line.
        what: String,
    },
}

/// Receives the events of a run. Closures are observers.
pub trait Observer: Send + Sync {
    /// Called once for each event, from many tasks. Must be quick and must not block.
    fn event(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync> Observer for F {
    fn event(&self, event: &Event) {
        self(event);
    }
}

/// An observer that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event) {}
}

/// An observer and the stream of what it sees. The stream holds `capacity` events; a reader that falls
/// behind loses progress, never slows the run.
pub fn channel(capacity: usize) -> (Arc<dyn Observer>, impl Stream<Item = Event> + Send + Unpin) {
    let (tx, rx) = mpsc::channel(capacity.max(1));
    let observer = Arc::new(move |event: &Event| {
        // A full channel means a slow reader, a closed one that nobody reads: neither is the run's concern.
        let _ = tx.try_send(event.clone());
    });
    (
        observer,
        Box::pin(futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|e| (e, rx)) })),
    )
}
