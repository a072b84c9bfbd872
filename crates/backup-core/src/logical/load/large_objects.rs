//! Large objects, from tar archives.

use std::fmt::Write as _;

use futures::StreamExt;

use crate::dumper::PartSource;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::CopySession;
use crate::tar_reader::{Piece, Reader};

/// SQL that is collected before it is sent; bytes stand in it as hexadecimal digits.
const SQL_BYTES: usize = 2 * 1024 * 1024;
/// Bytes that one call writes.
const PIECE_BYTES: usize = 256 * 1024;

/// Writes the bytes of the large objects of a part. The objects themselves are there.
pub(super) async fn load(session: &mut CopySession, source: &dyn PartSource, part: u32) -> Result<()> {
    let mut data = source.open(part).await?;
    let mut reader = Reader::default();
    let mut open: Option<(u32, u64)> = None;
    let mut sql = "BEGIN;".to_owned();
    while let Some(bytes) = data.next().await {
        reader.push(bytes?);
        while let Some(piece) = reader.next()? {
            match piece {
                Piece::Member(header) => open = Some((oid(&header.path_bytes())?, 0)),
                Piece::Data(bytes) => {
                    let Some((oid, at)) = &mut open else { continue };
                    for piece in bytes.chunks(PIECE_BYTES) {
                        // Nothing but LO_PUT itself tells of a piece, and nobody reads its answer.
                        let _ = write!(sql, "SELECT pg_catalog.lo_put({oid},{at},'\\x");
                        push_hex(&mut sql, piece);
                        sql.push_str("');");
                        *at += piece.len() as u64;
                        if sql.len() >= SQL_BYTES {
                            put(session, &mut sql).await?;
                        }
                    }
                }
            }
        }
    }
    reader.finish()?;
    sql.push_str("COMMIT;");
    put(session, &mut sql).await
}

async fn put(session: &mut CopySession, sql: &mut String) -> Result<()> {
    session.rows(&*sql).await.map_err(|e| e.doing("writing large objects"))?;
    sql.clear();
    Ok(())
}

fn push_hex(sql: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    sql.reserve(2 * bytes.len());
    for byte in bytes {
        sql.push(char::from(DIGITS[usize::from(byte >> 4)]));
        sql.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

fn oid(member: &[u8]) -> Result<u32> {
    let name = String::from_utf8_lossy(member);
    let oid = name
        .strip_prefix("blob_")
        .and_then(|name| name.strip_suffix(".dat"))
        .and_then(|oid| oid.parse().ok());
    oid.ok_or_else(|| {
        Error::new(ErrorKind::Integrity, format!("a part of large objects holds something else: {name}"))
    })
}
