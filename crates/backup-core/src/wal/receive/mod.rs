//! WAL as it is written, over a replication slot: stored before it is acknowledged.

mod incoming;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::destination::Destination;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::postgres::ConnInfo;

/// The first wait after a failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Streams WAL from a server into an archive, until it is told to stop.
///
/// The server is told that WAL is safe when it is in the store, without a gap to what came before, and never
/// earlier. So it keeps in the slot what is not, and as a synchronous standby no commit returns that the store does
/// not have. It begins where the archive ends, follows the server to its next timeline, and connects again after a
/// failure.
pub struct Receiver {
    connection: ConnInfo,
    to: Destination,
    slot: String,
    create_slot: bool,
    every: Duration,
    observer: Arc<dyn Observer>,
}

impl Receiver {
    /// Streams from what `connection` reaches, over the slot `pgark`.
    pub fn new(connection: ConnInfo, to: Destination, observer: Arc<dyn Observer>) -> Self {
        Self {
            connection,
            to,
            slot: "pgark".to_owned(),
            create_slot: false,
            every: Duration::from_secs(5),
            observer,
        }
    }

    /// Name of the slot. One that is not there is made where `create` says so.
    #[must_use]
    pub fn slot(mut self, name: impl Into<String>, create: bool) -> Self {
        (self.slot, self.create_slot) = (name.into(), create);
        self
    }

    /// How long WAL waits at most before it is stored; 5 s by default. As a synchronous standby it never waits.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// Runs until `cancel`: then what was received is stored, and acknowledged.
    ///
    /// # Errors
    /// What does not go away by itself: a wrong password, another cluster, a slot or WAL that is not there. Whatever may
    /// go away is a warning, and tried again.
    pub async fn run(&self, cancel: &CancellationToken) -> Result<()> {
        let (mut wait, mut worked) = (FIRST_WAIT, false);
        loop {
            let mut progressed = false;
            let Err(error) = self.session(cancel, &mut progressed).await else { return Ok(()) };
            worked |= progressed;
            if cancel.is_cancelled() || !passes(&error, worked) {
                return Err(error);
            }
            if progressed {
                wait = FIRST_WAIT;
            }
            let message = format!("{error}; trying again in {} s", wait.as_secs());
            self.observer.event(&Event::Warning { message });
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// Whether a failure may go away by itself. What the server refuses is a mistake when nothing was ever received, but for
/// a slot that is still in use: by the connection before, or by a receiver that was killed.
fn passes(error: &Error, worked: bool) -> bool {
    use ErrorKind::{
        Auth, Cancelled, Config, Conflict, Database, Internal, KeyMissing, NewerFormat, NoDatabase,
        StoreDenied, Unsupported, Usage, WrongKey,
    };
    match error.kind() {
        Usage | Config | Auth | NoDatabase | Conflict | KeyMissing | WrongKey | NewerFormat | Unsupported
        | Internal | Cancelled => false,
        Database | StoreDenied => worked || error.retryable(),
        _ => true,
    }
}
