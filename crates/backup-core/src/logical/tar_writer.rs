//! Members of a tar archive whose sizes are known beforehand.

use bytes::Bytes;
use tar::Header;

use crate::tar_reader::{BLOCK, padding};

/// The header of a file.
pub(super) fn member(name: &str, size: u64) -> Bytes {
    let mut header = Header::new_ustar();
    let bytes = header.as_mut_bytes();
    let length = name.len().min(100);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

/// What stands between the end of a file of this size and the next header.
pub(super) fn filling(size: u64) -> Bytes {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let length = usize::try_from(padding(size)).unwrap_or_default();
    Bytes::from_static(&ZEROS[..length.min(BLOCK)])
}

/// The end of an archive.
pub(super) fn end() -> Bytes {
    static ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
    Bytes::from_static(&ZEROS)
}
