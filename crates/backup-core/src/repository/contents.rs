//! The sealed contents of a backup: JSON, compressed with zstd, encrypted like the parts.

use std::io::{Cursor, Read, Write};
use std::sync::Arc;

use bytes::Bytes;

use super::open::RECORD_LIMIT;
use super::record::{from_json, to_json};
use super::{BackupContents, BackupRecord, Digest, Repository, layout};
use crate::encryptor::Cipher;
use crate::error::{Error, ErrorKind, Result};
use crate::shared_writer::SharedWriter;
use crate::store::read_checked;

/// Contents as they are stored.
pub(crate) fn seal_contents(contents: &BackupContents, cipher: Option<&dyn Cipher>) -> Result<Bytes> {
    let failed = |e| Error::io("sealing the contents", e);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).map_err(failed)?;
    encoder.include_checksum(true).map_err(failed)?;
    encoder.write_all(&to_json(contents)?).map_err(failed)?;
    let compressed = encoder.finish().map_err(failed)?;
    let Some(cipher) = cipher else { return Ok(compressed.into()) };
    let sealed = SharedWriter::new(Vec::new());
    let mut seal = cipher.seal(Box::new(sealed.clone()))?;
    seal.write_all(&compressed).map_err(failed)?;
    seal.finish().map_err(failed)?;
    Ok(sealed.take().into())
}

/// Reads, checks and opens the contents of a backup.
pub(crate) async fn open_contents(
    repository: &Repository,
    record: &BackupRecord,
    cipher: Option<Arc<dyn Cipher>>,
) -> Result<BackupContents> {
    let damaged = |why: &str| {
        let message = format!("the contents of backup {} are damaged: {why}", record.id);
        Error::new(ErrorKind::Integrity, message)
            .with_hint("restore from another backup or another copy; pgark verify shows what else is damaged")
    };
    let object = record.contents.as_ref().ok_or_else(|| damaged("the record names none"))?;
    let key = format!("{}/{}", layout::backup(&record.cluster, &record.id), object.key);
    let stored = read_checked(repository.store(), &key, RECORD_LIMIT, |stored| {
        if stored.len() as u64 == object.bytes && Digest::of(&stored) == object.blake3 {
            return Ok(stored);
        }
        Err(damaged("its bytes are not those that were written"))
    })
    .await?;
    let from: Box<dyn Read + Send> = Box::new(Cursor::new(stored));
    let from = match cipher {
        Some(cipher) => cipher.open(from).map_err(|e| {
            if e.kind() != ErrorKind::Integrity {
                return e;
            }
            // The bytes are those that were written: so it is not the key that they were sealed with.
            let message = format!(
                "the key of backup {} is damaged, or of another backup: it does not open the contents",
                record.id
            );
            Error::new(ErrorKind::Integrity, message)
                .with_hint("put the backup's own key back, or restore from another copy or another backup")
                .caused_by(e)
        })?,
        None => from,
    };
    let decoder = zstd::Decoder::new(from).map_err(|e| damaged(&e.to_string()))?;
    let mut json = Vec::new();
    // A hostile frame may expand without end.
    let mut limited = decoder.take(16 * RECORD_LIMIT as u64);
    limited.read_to_end(&mut json).map_err(|e| damaged(&e.to_string()))?;
    from_json(&json, &key)
}
