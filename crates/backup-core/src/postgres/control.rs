use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The system identifier of a data directory: `pg_control` begins with it (`pg_control.h`, little-endian).
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) where the file cannot be read.
pub fn system_identifier(data: &Path) -> Result<u64> {
    let path = data.join("global/pg_control");
    let mut bytes = [0; 8];
    File::open(&path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    Ok(u64::from_le_bytes(bytes))
}
