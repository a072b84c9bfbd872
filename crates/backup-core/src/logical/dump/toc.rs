//! The table of contents, from the head of what `pg_dump` writes.

use tokio::io::AsyncReadExt;

use super::super::archive::{BLOBS, Place, TABLE_DATA, TAR, Toc, TocReader};
use crate::dumper::Ctx;
use crate::error::{Error, Result};
use crate::postgres::{ConnInfo, Process, ProcessRun, Tool};

/// How long `pg_dump` waits for a lock. Nothing of ours holds one meanwhile.
const LOCK_WAIT: &str = "60s";
/// Statistics that are kept, in memory as all of the table of contents: those of some 3,000 tables with four columns.
/// A restore gathers the others.
const STATISTICS_BYTES: usize = 12 * 1024 * 1024;

/// Runs `pg_dump` on a snapshot with the arguments of a selection, reads the table of contents, which comes before the
/// data, and ends it.
pub(super) async fn read(
    tool: &Tool,
    connection: &ConnInfo,
    snapshot: &str,
    selection: Vec<String>,
    ctx: &Ctx,
) -> Result<(Toc, Vec<String>)> {
    let mut args = vec![
        "--format=custom".to_owned(),
        "--compress=0".to_owned(),
        "--no-password".to_owned(),
        format!("--snapshot={snapshot}"),
        format!("--lock-wait-timeout={LOCK_WAIT}"),
    ];
    args.extend(selection);
    let run = ProcessRun { tool, args, connection: Some(connection), stdin: false, stdout: true };
    let mut process = Process::start(run)?;
    let mut output = process.stdout()?;
    let read = async {
        let mut reader = TocReader::default().statistics_up_to(STATISTICS_BYTES);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = output.read(&mut buffer).await.map_err(|e| Error::io("reading from pg_dump", e))?;
            if read == 0 {
                return Ok((reader, true));
            }
            if reader.push(&buffer[..read])? {
                return Ok((reader, false));
            }
        }
    };
    let read = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        read = read => read,
    };
    let (reader, ended) = match read {
        Ok(read) => read,
        Err(error) => {
            process.kill().await;
            return Err(error);
        }
    };
    // Without a word of data it ends by itself, and says why where it failed.
    let warnings = if ended { process.finish(&ctx.cancel).await? } else { process.end().await };
    let (toc, _) = reader.finish()?;
    Ok((as_directory(toc), warnings))
}

/// As the `toc.dat` of a directory, whose files are not compressed.
fn as_directory(mut toc: Toc) -> Toc {
    toc.header.format = TAR;
    toc.header.compression = 0;
    for entry in &mut toc.entries {
        entry.place = match entry.kind.as_str() {
            TABLE_DATA if entry.has_data => Place::File(format!("{}.dat", entry.id).into_bytes()),
            BLOBS if toc.header.version.1 >= 16 => {
                Place::File(format!("blobs_{}.toc", entry.id).into_bytes())
            }
            BLOBS => Place::File(b"blobs.toc".to_vec()),
            _ => Place::Nowhere,
        };
    }
    toc
}
