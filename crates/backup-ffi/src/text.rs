//! Strings between C and Rust.

use std::ffi::{CStr, CString, c_char};

use pgark::{Error, ErrorKind, Result};

/// The argument `name`, which must be there.
///
/// # Safety
/// `text` is NULL or a string that ends with a NUL and lives for `'a`.
pub(crate) unsafe fn required<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    // SAFETY: as the caller promises.
    unsafe { optional(text, name) }?.ok_or_else(|| Error::new(ErrorKind::Usage, format!("{name} is NULL")))
}

/// The argument `name`, which may be NULL.
///
/// # Safety
/// As for [`required`].
pub(crate) unsafe fn optional<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map(Some)
        .map_err(|e| Error::new(ErrorKind::Usage, format!("{name} is not UTF-8")).caused_by(e))
}

/// A string for C. A NUL in the middle would end it there, so it is replaced.
pub(crate) fn for_c(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}
