//! Events for C: a queue, and a thread that calls the event function.
//!
//! The function belongs to the host and may be slow, so the run's own tasks only queue. A thread of its own
//! delivers, one event at a time, and has ended before the call returns.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pgark::event::Silent;
use pgark::{Error, Event, Observer, Result};

use crate::text;

/// Told what happens during a call, as a JSON object, which lives until the function returns. "event" says
/// what it is:
///
/// - {"event":"step","what":"tidying"}: a step began; one line.
/// - {"event":"started","id":"..."}: the backup has an id. No backup exists before the call succeeds.
/// - {"event":"expected","raw_bytes":N}: an estimate of the bytes before compression.
/// - {"event":"part_opened","part":N,"name":"..."}: parts count from 1. The name can hold that of the
///   database, which an encrypted repository hides: keep it out of public logs.
/// - {"event":"progress","raw_bytes":N,"stored_bytes":N}: bytes so far, before compression and as stored.
/// - {"event":"part_finished","part":N,"stored_bytes":N}: the part is stored whole.
/// - {"event":"warning","message":"..."}: for a person to read; one line. The run goes on.
///
/// Later versions add others: ignore what you do not know.
///
/// One thread of the library makes all calls during one pgark_backup(), one after the other, and none after
/// that has returned. A slow function does not slow the backup, but misses progress and, far behind, other
/// events; pgark_backup() returns only when it has heard the last. It must return: no exception and no
/// longjmp() may leave it. It may call pgark_cancel_trigger().
pub type EventFn = Option<unsafe extern "C" fn(user: *mut c_void, event_json: *const c_char)>;

/// How many events wait at most.
const ROOM: usize = 1024;
/// How many may wait already for one that comes often and may be lost.
const ROOM_FOR_FREQUENT: usize = ROOM - 256;

#[derive(Clone, Copy)]
struct Listener {
    function: unsafe extern "C" fn(*mut c_void, *const c_char),
    user: *mut c_void,
}

// SAFETY: the header says that the function is called from another thread, with `user`.
unsafe impl Send for Listener {}

impl Listener {
    fn tell(&self, event: &Event) {
        // Plain fields: it cannot fail.
        let Ok(json) = serde_json::to_string(event) else { return };
        let json = text::for_c(&json);
        // SAFETY: the host passed a function for this, and the string lives during the call.
        unsafe { (self.function)(self.user, json.as_ptr()) };
    }
}

/// Makes a call whose events go to `function`, where there is one.
pub(crate) fn told<T>(
    function: EventFn,
    user: *mut c_void,
    call: impl FnOnce(Arc<dyn Observer>) -> Result<T>,
) -> Result<T> {
    let Some(function) = function else { return call(Arc::new(Silent)) };
    let listener = Listener { function, user };
    let queue = Arc::new(Queue::default());
    std::thread::scope(|scope| {
        let heard = &queue;
        std::thread::Builder::new()
            .name("pgark-events".to_owned())
            .spawn_scoped(scope, move || heard.deliver(listener))
            .map_err(|e| Error::io("starting a thread", e))?;
        // Also when the call panics: the scope waits for the thread.
        let _close = CloseOnDrop(&queue);
        call(Arc::clone(&queue) as Arc<dyn Observer>)
    })
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Event>,
    closed: bool,
}

struct CloseOnDrop<'a>(&'a Queue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl Observer for Queue {
    fn event(&self, event: &Event) {
        let mut state = self.lock();
        let progress = matches!(event, Event::Progress { .. });
        let frequent = progress || matches!(event, Event::PartOpened { .. } | Event::PartFinished { .. });
        let room = if frequent { ROOM_FOR_FREQUENT } else { ROOM };
        // The numbers of progress are sums, so the newer one says all.
        if progress && matches!(state.waiting.back(), Some(Event::Progress { .. })) {
            state.waiting.pop_back();
        }
        if !state.closed && state.waiting.len() < room {
            state.waiting.push_back(event.clone());
        }
        self.changed.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next event; nothing when the queue is closed and empty.
    fn next(&self) -> Option<Event> {
        let empty = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let waited = self.changed.wait_while(self.lock(), empty);
        waited.unwrap_or_else(PoisonError::into_inner).waiting.pop_front()
    }

    fn deliver(&self, listener: Listener) {
        while let Some(event) = self.next() {
            listener.tell(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ffi::CStr;

    use super::*;

    unsafe extern "C" fn note(user: *mut c_void, event_json: *const c_char) {
        // SAFETY: the tests pass a `Mutex<Vec<String>>`, and the library a string.
        let (seen, json) = unsafe { (&*user.cast::<Mutex<Vec<String>>>(), CStr::from_ptr(event_json)) };
        seen.lock().unwrap().push(json.to_str().unwrap().to_owned());
    }

    #[test]
    fn everything_is_told_before_the_call_returns_and_nothing_later() {
        let seen = Mutex::new(Vec::<String>::new());
        let user = (&raw const seen).cast_mut().cast();
        let kept = told(Some(note), user, |observer| {
            observer.event(&Event::Started { id: "x".to_owned() });
            observer.event(&Event::Warning { message: "a \"quoted\"\0one".to_owned() });
            Ok(observer)
        });
        kept.unwrap().event(&Event::Started { id: "late".to_owned() });
        let expected =
            [r#"{"event":"started","id":"x"}"#, r#"{"event":"warning","message":"a \"quoted\"\u0000one"}"#];
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[test]
    fn a_panic_ends_the_thread_as_well() {
        let seen = Mutex::new(Vec::<String>::new());
        let user = (&raw const seen).cast_mut().cast();
        let call = || told(Some(note), user, |_| -> Result<()> { panic!("boom") });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err());
    }

    #[test]
    fn a_full_queue_still_takes_warnings() {
        let queue = Queue::default();
        for raw_bytes in 0..5000 {
            queue.event(&Event::Progress { raw_bytes, stored_bytes: 0 });
        }
        assert_eq!(queue.lock().waiting.len(), 1, "progress is kept once");
        for part in 0..5000 {
            queue.event(&Event::PartFinished { part, stored_bytes: 0 });
        }
        queue.event(&Event::Warning { message: "read me".to_owned() });
        assert_eq!(queue.lock().waiting.len(), ROOM_FOR_FREQUENT + 1);
        assert_eq!(queue.next(), Some(Event::Progress { raw_bytes: 4999, stored_bytes: 0 }));
    }
}
