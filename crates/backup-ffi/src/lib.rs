//! libpgark: the C ABI.
//!
//! The functions here translate: C strings to Rust's, results to JSON, errors to a status and a handle. What
//! is done for them is in [`work`]. Their documentation is written for C, since cbindgen copies it into
//! `include/pgark.h`.
//!
//! The ABI does not grow with the options: these stand in the TOML text of the configuration.

mod answer;
mod event;
mod text;
mod work;

use std::ffi::{CStr, c_char, c_void};

use pgark::CancellationToken;

pub use answer::Failure;
pub use event::EventFn;

/// The version of this ABI. It changes when a function changes in a way that breaks its callers; a new
/// function does not change it.
pub const PGARK_ABI_VERSION: u32 = 1;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version has no NUL"),
};

/// What cancels a call from another thread. Made by pgark_cancel_new().
pub struct Cancel(CancellationToken);

/// The version of the library, "1.2.3". The string is static: never free it.
#[unsafe(no_mangle)]
pub extern "C" fn pgark_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the ABI that the library was built with. A program that loads the library at run time
/// compares it with PGARK_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn pgark_abi_version() -> u32 {
    PGARK_ABI_VERSION
}

/// Backs one database up. Makes the repository where there is none yet.
///
/// Blocks until the backup is whole and durable, or until it has failed and what it stored is removed as far
/// as the store allows. Several threads may make backups at once.
///
/// - config_toml: the configuration, as the file pgark.toml has it. [repository] with its url is needed.
///   Relative paths in it are relative to the working directory of the process.
/// - cluster: name of the cluster in the repository. NULL: the only one of the configuration, or "main".
/// - db: the database as a libpq connection string, a URI, or a name. NULL: that of the cluster in the
///   configuration, or what libpq's environment variables say.
/// - cancel: cancels the call; it ends with PGARK_CANCELLED soon after. NULL: it cannot be cancelled. It must
///   not be freed before the call has returned.
/// - on_event: told what happens, see pgark_event_fn. NULL: nobody is. user is passed on to it untouched.
/// - json_out: what `pgark backup --json` prints: an object with "repository" (its URL), "new_repository"
///   (whether this call made it) and "backup" (the record: "id", "stored_bytes", "raw_bytes", ...). Free it
///   with pgark_string_free(). Set to NULL after a failure. NULL: not wanted.
/// - error_out: set to NULL, or after a failure to an error. Free it with pgark_error_free(). NULL: not
///   wanted.
///
/// Returns PGARK_OK, or the status of the failure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_backup(
    config_toml: *const c_char,
    cluster: *const c_char,
    db: *const c_char,
    cancel: *mut Cancel,
    on_event: EventFn,
    user: *mut c_void,
    json_out: *mut *mut c_char,
    error_out: *mut *mut Failure,
) -> i32 {
    let call = || {
        // SAFETY: the caller passes NULL or strings that end with a NUL and stay as they are during the call.
        let (config, cluster, db) = unsafe {
            (
                text::required(config_toml, "config_toml")?,
                text::optional(cluster, "cluster")?,
                text::optional(db, "db")?,
            )
        };
        // SAFETY: it is NULL or comes from `pgark_cancel_new` and is not freed before the call returns.
        let cancel = unsafe { cancel.as_ref() }.map(|c| c.0.clone()).unwrap_or_default();
        event::told(on_event, user, |observer| work::backup(config, cluster, db, &cancel, observer))
    };
    // SAFETY: the caller passes NULL or places to write to.
    unsafe { answer::give(json_out, error_out, call) }
}

/// Lists the backups of a cluster.
///
/// - config_toml, cluster, error_out: as for pgark_backup(). The repository must exist.
/// - json_out: what `pgark list --json` prints: an object with "cluster", "backups" (an array of records,
///   oldest first) and "unfinished" (an array of ids: runs at work, or dead). Free it with
///   pgark_string_free(). Set to NULL after a failure. NULL: not wanted.
///
/// Returns PGARK_OK, or the status of the failure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_list(
    config_toml: *const c_char,
    cluster: *const c_char,
    json_out: *mut *mut c_char,
    error_out: *mut *mut Failure,
) -> i32 {
    let call = || {
        // SAFETY: the caller passes NULL or strings that end with a NUL and stay as they are during the call.
        let (config, cluster) =
            unsafe { (text::required(config_toml, "config_toml")?, text::optional(cluster, "cluster")?) };
        work::list(config, cluster)
    };
    // SAFETY: the caller passes NULL or places to write to.
    unsafe { answer::give(json_out, error_out, call) }
}

/// Makes what cancels a call. One serves any number of calls, and cancels them all. Free it with
/// pgark_cancel_free().
#[unsafe(no_mangle)]
pub extern "C" fn pgark_cancel_new() -> *mut Cancel {
    Box::into_raw(Box::new(Cancel(CancellationToken::new())))
}

/// Cancels the calls that were given it, and those that are given it later. Returns at once. Any thread may
/// call it, also from an event function, and more than once; a signal handler may not. NULL: nothing happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_cancel_trigger(cancel: *mut Cancel) {
    // SAFETY: it is NULL or comes from `pgark_cancel_new` and is not freed yet.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.0.cancel();
    }
}

/// Frees it, when every call that was given it has returned. NULL: nothing happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_cancel_free(cancel: *mut Cancel) {
    if !cancel.is_null() {
        // SAFETY: it comes from `pgark_cancel_new`, and the caller gives it up.
        drop(unsafe { Box::from_raw(cancel) });
    }
}

/// The status that the failed call returned. NULL: PGARK_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_error_code(error: *const Failure) -> i32 {
    // SAFETY: it is NULL or comes from a failed call and is not freed yet.
    unsafe { error.as_ref() }.map_or(0, |e| e.code)
}

/// What went wrong, and because of what, in one line. The string belongs to the error and lives as long. NULL
/// only for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_error_message(error: *const Failure) -> *const c_char {
    // SAFETY: it is NULL or comes from a failed call and is not freed yet.
    unsafe { error.as_ref() }.map_or(std::ptr::null(), |e| e.message.as_ptr())
}

/// What to do about it, or NULL where there is nothing to say. The string belongs to the error and lives as
/// long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_error_hint(error: *const Failure) -> *const c_char {
    // SAFETY: it is NULL or comes from a failed call and is not freed yet.
    unsafe { error.as_ref() }.and_then(|e| e.hint.as_deref()).map_or(std::ptr::null(), CStr::as_ptr)
}

/// Frees an error. NULL: nothing happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_error_free(error: *mut Failure) {
    if !error.is_null() {
        // SAFETY: it comes from a failed call, and the caller gives it up.
        drop(unsafe { Box::from_raw(error) });
    }
}

/// Frees a string that a call gave in its json_out. NULL: nothing happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgark_string_free(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: it comes from `json_out`, and the caller gives it up.
        drop(unsafe { std::ffi::CString::from_raw(string) });
    }
}
