//! How a call answers: a status, JSON or an error. Nothing unwinds into C.

use std::any::Any;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pgark::{Error, Result};
use serde_json::Value;

use crate::text;

/// Why a call failed.
pub struct Failure {
    pub(crate) code: i32,
    pub(crate) message: CString,
    pub(crate) hint: Option<CString>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut message = error.to_string();
        for cause in error.causes() {
            message.push_str("; because: ");
            message.push_str(&cause);
        }
        Self {
            code: i32::from(error.kind().code()),
            message: text::for_c(&message.replace('\n', " ")),
            hint: error.hint().map(text::for_c),
        }
    }
}

/// Makes the call, and gives what comes of it to whoever wants it.
///
/// # Safety
/// `json_out` and `error_out` are NULL or may be written to.
pub(crate) unsafe fn give(
    json_out: *mut *mut c_char,
    error_out: *mut *mut Failure,
    call: impl FnOnce() -> Result<Value>,
) -> i32 {
    // They are set at once, so that neither is ever left as it was.
    // SAFETY: as the caller promises.
    unsafe {
        set(json_out, ptr::null_mut);
        set(error_out, ptr::null_mut);
    }
    // A caller in C sees nothing of what a panic may have left half done.
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panicked(&*panic)));
    match result {
        Ok(json) => {
            // SAFETY: as the caller promises.
            unsafe { set(json_out, || text::for_c(&json.to_string()).into_raw()) };
            0
        }
        Err(error) => {
            let failure = Failure::from(&error);
            let code = failure.code;
            // SAFETY: as the caller promises.
            unsafe { set(error_out, || Box::into_raw(Box::new(failure))) };
            code
        }
    }
}

/// Makes a value only where there is a place for it: C frees what it gets, and nobody else would.
///
/// # Safety
/// `out` is NULL or may be written to.
unsafe fn set<T>(out: *mut *mut T, value: impl FnOnce() -> *mut T) {
    if !out.is_null() {
        // SAFETY: as the caller promises.
        unsafe { out.write(value()) };
    }
}

/// What a panic becomes.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Error {
    let said =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("pgark panicked: {}", said.unwrap_or("no message")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pgark::ErrorKind;

    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_stale_answers_go() {
        let mut json = ptr::dangling_mut();
        let mut error = ptr::null_mut();
        // SAFETY: both are places of this function.
        let status = unsafe { give(&raw mut json, &raw mut error, || panic!("boom")) };
        assert_eq!(status, i32::from(ErrorKind::Internal.code()));
        assert!(json.is_null());
        // SAFETY: the failed call made it.
        let failure = unsafe { Box::from_raw(error) };
        assert_eq!(failure.code, status);
        assert_eq!(failure.message.to_str().unwrap(), "pgark panicked: boom");
    }

    #[test]
    fn nobody_needs_to_want_the_answer() {
        // SAFETY: NULL is allowed.
        let status = unsafe { give(ptr::null_mut(), ptr::null_mut(), || Ok(Value::Null)) };
        assert_eq!(status, 0);
        // SAFETY: NULL is allowed.
        let status = unsafe { give(ptr::null_mut(), ptr::null_mut(), || Err(Error::cancelled())) };
        assert_eq!(status, 130);
    }

    #[test]
    fn a_message_has_its_causes_on_the_same_line() {
        let error =
            Error::new(ErrorKind::Connect, "no answer").caused_by("refused\0by\nthe host").with_hint("wait");
        let failure = Failure::from(&error);
        assert_eq!(failure.message.to_str().unwrap(), "no answer; because: refused\u{fffd}by the host");
        assert_eq!(failure.hint.unwrap().to_str().unwrap(), "wait");
    }
}
