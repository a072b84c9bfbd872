//! SQL for `psql`: `pg_restore` makes it of an archive that it reads as it is made.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::ChildStdout;
use tokio::runtime::Handle;

use super::output::Output;
use super::source::{Form, Reading, Stored};
use super::{Counts, blocking};
use crate::dumper::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::logical::archive::{CustomWriter, Method, unwritten};
use crate::logical::pieces::Pieces;
use crate::postgres::{Process, ProcessRun, Tools};

/// Bytes that are moved at a time.
const PIECE: usize = 256 * 1024;

pub(super) async fn export(
    reading: Arc<Reading>,
    stored: Stored,
    output: Output,
    tools: &Tools,
    ctx: &Ctx,
) -> Result<Counts> {
    if let Form::Sql { part } = stored.form {
        return blocking(move || as_it_is(&reading, part, output)).await;
    }
    let tool = tools.find("pg_restore", stored.toc()?.header.dump_major())?;
    let args = vec!["--file=-".to_owned()];
    let mut process =
        Process::start(ProcessRun { tool: &tool, args, connection: None, stdin: true, stdout: true })?;
    let (stdin, stdout) = (process.stdin()?, process.stdout()?);
    let (to_tool, from_tool) = (Handle::current(), Handle::current());
    let feeding = blocking(move || feed(&reading, &stored, Pipe { stdin, runtime: to_tool }));
    let copying = blocking(move || copy(stdout, output, &from_tool));
    let (fed, copied) = tokio::join!(feeding, copying);
    // A tool that failed stops reading; data that are damaged stop the tool; so does an output that is full.
    let fed = match (fed, copied) {
        (Err(error), _) if !stopped(&error) => return failed(process, error).await,
        (_, Err(error)) => return failed(process, error).await,
        (fed, Ok(output)) => {
            let words = process.finish(&ctx.cancel).await?;
            for message in words {
                ctx.observer.event(&Event::Warning { message });
            }
            fed.map(|counts| (counts, output))
        }
    };
    let (counts, output) = fed?;
    blocking(move || output.keep(|_| Ok(()))).await?;
    Ok(counts)
}

async fn failed(mut process: Process, error: Error) -> Result<Counts> {
    process.kill().await;
    Err(error)
}

/// Whether the other end of the pipe was closed.
fn stopped(error: &Error) -> bool {
    error.kind() == ErrorKind::Io && error.to_string().contains("broken pipe")
}

fn feed(reading: &Reading, stored: &Stored, pipe: impl Write) -> Result<Counts> {
    let pipe = BufWriter::with_capacity(PIECE, pipe);
    let mut writer = CustomWriter::new(pipe, stored.toc()?, Method::None, 1)?;
    let counts = stored.read(reading, &mut writer)?;
    let (pipe, _) = writer.finish()?;
    let mut pipe = pipe.into_inner().map_err(|e| unwritten(e.into_error()))?;
    pipe.flush().map_err(unwritten)?;
    Ok(counts)
}

fn copy(mut from: ChildStdout, mut output: Output, runtime: &Handle) -> Result<Output> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = runtime.block_on(from.read(&mut piece));
        match read.map_err(|e| Error::io("reading from pg_restore", e))? {
            0 => return Ok(output),
            read => output.write_all(&piece[..read]).map_err(unwritten)?,
        }
    }
}

/// A dump that was imported as SQL.
fn as_it_is(reading: &Reading, part: u32, mut output: Output) -> Result<Counts> {
    let mut pieces = reading.open(part)?;
    while let Some(piece) = pieces.next_piece()? {
        output.write_all(&piece).map_err(unwritten)?;
    }
    output.keep(|_| Ok(()))?;
    Ok(Counts::default())
}

/// The tool's standard input, written to on a thread that may block.
struct Pipe<W> {
    stdin: W,
    runtime: Handle,
}

impl<W: AsyncWrite + Unpin> Write for Pipe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.stdin.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.stdin.flush())
    }
}
