//! Feeding `pg_restore` and `psql`.

use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use super::options::LoadOptions;
use crate::dumper::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{ConnInfo, Process, ProcessRun, Tool, Tools, quote_identifier};
use crate::store::Bytestream;

/// `pg_restore` of 17 and later sets this, and servers before 17 do not know it
/// (_doSetFixedOutputState in `pg_backup_archiver.c`, PostgreSQL 17).
const NEW_SETTING: &[u8] = b"SET transaction_timeout = 0;\n";
/// The last of the settings at the head of a script; rows come after it.
const LAST_SETTING: &[u8] = b"SELECT pg_catalog.set_config('search_path'";

/// Whether `pg_restore` cannot work on the server itself: it sets what an older server does not know. Then it
/// writes a script, `psql` runs it, and the one line is left out.
pub(super) fn needs_script(tool: &Tool, target_major: u32) -> bool {
    tool.major >= 17 && target_major < 17
}

/// Restores an archive of a major version of `pg_dump`, serially.
pub(super) async fn load(
    data: Bytestream,
    archive_major: u32,
    info: &ConnInfo,
    target_major: u32,
    options: &LoadOptions,
    tools: &Tools,
    ctx: &Ctx,
) -> Result<Vec<String>> {
    // pg_restore refuses archives of a newer pg_dump, and does best with a server of its own version.
    let tool = tools.find_for("pg_restore", archive_major.max(target_major), info).await?;
    let mut args = options.arguments(tool.major);
    if !needs_script(&tool, target_major) {
        args.extend([
            "--exit-on-error".to_owned(),
            "--no-password".to_owned(),
            format!("--dbname={}", plain_name(info.database())),
        ]);
        let run = ProcessRun { tool: &tool, args, connection: Some(info), stdin: true, stdout: false };
        let mut process = Process::start(run)?;
        let stdin = process.stdin()?;
        return conclude(feed(data, stdin, ctx).await, process, ctx).await;
    }
    args.push("--file=-".to_owned());
    let run = ProcessRun { tool: &tool, args, connection: None, stdin: true, stdout: true };
    let mut script = Process::start(run)?;
    let to_script = script.stdin()?;
    let (fed, run) =
        tokio::join!(feed(data, to_script, ctx), run_script(&mut script, info, &tool, tools, true, ctx));
    let mut words = run?;
    words.extend(conclude(fed, script, ctx).await?);
    Ok(words)
}

/// How `psql` runs a script from its standard input.
fn psql_arguments(stop_at_errors: bool) -> Vec<String> {
    let mut args =
        ["--no-psqlrc", "--quiet", "--no-password", "--output=/dev/null"].map(str::to_owned).to_vec();
    if stop_at_errors {
        args.push("--set=ON_ERROR_STOP=1".to_owned());
    }
    args
}

/// Runs a script that `pg_dump` wrote.
pub(super) async fn run_psql(
    data: Bytestream,
    info: &ConnInfo,
    target_major: u32,
    options: &LoadOptions,
    tools: &Tools,
    ctx: &Ctx,
) -> Result<Vec<String>> {
    let psql = tools.find_for("psql", target_major, info).await?;
    let mut args = psql_arguments(true);
    if let Some(role) = &options.role {
        args.push(format!("--command=SET ROLE {}", quote_identifier(role)));
        args.push("--file=-".to_owned());
    }
    let run = ProcessRun { tool: &psql, args, connection: Some(info), stdin: true, stdout: false };
    let mut process = Process::start(run)?;
    let stdin = process.stdin()?;
    conclude(feed(data, stdin, ctx).await, process, ctx).await
}

/// The head of a script without the setting that an older server does not know.
pub(super) fn without_new_setting(head: Vec<u8>, target_major: u32) -> Vec<u8> {
    if target_major >= 17 {
        return head;
    }
    let settings = head.windows(LAST_SETTING.len()).position(|piece| piece == LAST_SETTING);
    let found = head[..settings.unwrap_or(0)].windows(NEW_SETTING.len()).position(|line| line == NEW_SETTING);
    match found {
        Some(at) => [&head[..at], &head[at + NEW_SETTING.len()..]].concat(),
        None => head,
    }
}

/// Runs the script that a `pg_restore` writes, without the setting that the server does not know.
pub(super) async fn run_script(
    script: &mut Process,
    info: &ConnInfo,
    tool: &Tool,
    tools: &Tools,
    stop_at_errors: bool,
    ctx: &Ctx,
) -> Result<Vec<String>> {
    let psql = tools.find_for("psql", tool.major, info).await?;
    let args = psql_arguments(stop_at_errors);
    let run = ProcessRun { tool: &psql, args, connection: Some(info), stdin: true, stdout: false };
    let mut run = Process::start(run)?;
    let (from_script, to_psql) = (script.stdout()?, run.stdin()?);
    conclude(filter(from_script, to_psql, ctx).await, run, ctx).await
}

/// `--dbname` takes a whole connection string: a name that looks like one must be wrapped.
pub(super) fn plain_name(name: &str) -> String {
    if name.contains('=') || name.contains("://") {
        return format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"));
    }
    name.to_owned()
}

/// What came first is the cause: a tool that failed stops reading, data that are damaged stop the tool.
pub(super) async fn conclude(fed: Result<bool>, mut process: Process, ctx: &Ctx) -> Result<Vec<String>> {
    match fed {
        Err(error) => {
            process.kill().await;
            Err(error)
        }
        Ok(whole) => {
            let words = process.finish(&ctx.cancel).await?;
            if whole {
                Ok(words)
            } else {
                Err(Error::new(ErrorKind::ToolFailed, "the tool ended before it had read everything"))
            }
        }
    }
}

/// Writes the archive to a tool, to the last byte, so that its digest is checked before the tool can
/// succeed. False when the tool stopped reading.
async fn feed(mut data: Bytestream, mut stdin: impl AsyncWrite + Unpin, ctx: &Ctx) -> Result<bool> {
    let mut open = true;
    loop {
        let chunk = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
            chunk = data.next() => chunk,
        };
        match chunk {
            Some(chunk) => {
                let chunk = chunk?;
                if open && stdin.write_all(&chunk).await.is_err() {
                    open = false;
                    return Ok(open);
                }
            }
            None => return Ok(stdin.shutdown().await.is_ok()),
        }
    }
}

/// Passes a script on without the setting that an older server does not know.
async fn filter(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, ctx: &Ctx) -> Result<bool> {
    let mut from = BufReader::with_capacity(1 << 20, from);
    let copy = async {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).await? > 0 {
            if line != NEW_SETTING {
                to.write_all(&line).await?;
            }
            if line.starts_with(LAST_SETTING) {
                break;
            }
            line.clear();
        }
        tokio::io::copy_buf(&mut from, &mut to).await?;
        to.shutdown().await
    };
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::cancelled()),
        copied = copy => Ok(copied.is_ok()),
    }
}
