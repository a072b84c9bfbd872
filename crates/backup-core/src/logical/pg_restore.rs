use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use super::{ARCHIVE, DatabaseFacts, KIND};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, Process, ProcessRun, Session, Tools, quote_identifier, quote_literal};

/// Restores a database through `pg_restore`, serially, into a new database. One that exists is taken only
/// when it is empty.
#[derive(Debug, Clone)]
pub struct PgRestore {
    connection: ConnInfo,
    tools: Tools,
}

/// `pg_restore` of 17 and later sets this, and servers before 17 do not know it
/// (_doSetFixedOutputState in `pg_backup_archiver.c`, PostgreSQL 17).
const NEW_SETTING: &[u8] = b"SET transaction_timeout = 0;\n";
/// The last of the settings at the head of a script; rows come after it.
const LAST_SETTING: &[u8] = b"SELECT pg_catalog.set_config('search_path'";

impl PgRestore {
    /// Restores into the database that `connection` names.
    pub fn into(connection: ConnInfo) -> Self {
        Self { connection, tools: Tools::installed() }
    }

    /// Where `pg_restore` is looked for.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// A session of a database that is there in any case.
    async fn maintenance(&self) -> Result<Session> {
        match self.connection.with_database("postgres").connect().await {
            Err(e) if matches!(e.kind(), ErrorKind::NoDatabase | ErrorKind::Auth) => {
                self.connection.with_database("template1").connect().await.map_err(|_| e)
            }
            other => other,
        }
    }

    /// True where the database is there and empty; an error where something is in it.
    async fn exists(&self, maintenance: &Session) -> Result<bool> {
        let name = self.connection.database();
        let sql = format!("SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}", quote_literal(name));
        if maintenance.value(&sql).await?.is_none() {
            return Ok(false);
        }
        let sql = "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' LIMIT 1";
        match self.connection.connect().await?.value(sql).await? {
            None => Ok(true),
            Some(_) => {
                Err(Error::new(ErrorKind::Conflict, format!("the database {name} exists and is not empty"))
                    .with_hint("restore into another name; it will be created"))
            }
        }
    }

    async fn load(
        &self,
        source: &dyn PartSource,
        info: &ConnInfo,
        target_major: u32,
        ctx: &Ctx,
    ) -> Result<Vec<String>> {
        let parts: Vec<_> = source.parts().into_iter().filter(|p| p.spec.kind == ARCHIVE).collect();
        let [part] = &parts[..] else {
            return Err(Error::new(
                ErrorKind::Integrity,
                format!("the backup has {} archives, not one", parts.len()),
            ));
        };
        let dumped_by = source.facts().get("pg_dump_version").and_then(Value::as_str).unwrap_or_default();
        let archive_major =
            dumped_by.split(|c: char| !c.is_ascii_digit()).next().and_then(|d| d.parse().ok()).unwrap_or(0);
        // pg_restore refuses archives of a newer pg_dump, and does best with a server of its own version.
        let major = archive_major.max(target_major);
        let tool = self.tools.find_for("pg_restore", major, info).await?;
        let data = source.open(part.part).await?;
        let arg = |s: &str| s.to_owned();
        if tool.major < 17 || target_major >= 17 {
            let args = vec![
                arg("--exit-on-error"),
                arg("--no-password"),
                format!("--dbname={}", plain_name(info.database())),
            ];
            let mut process = Process::start(ProcessRun {
                tool: &tool,
                args,
                connection: Some(info),
                stdin: true,
                stdout: false,
            })?;
            let stdin = process.stdin()?;
            return conclude(feed(data, stdin, ctx).await, process, ctx).await;
        }
        // A newer pg_restore for an older server: it writes the script, psql runs it, and the one line that
        // the server cannot know is left out.
        let psql = self.tools.find_for("psql", tool.major, info).await?;
        let args = vec![arg("--file=-")];
        let mut script =
            Process::start(ProcessRun { tool: &tool, args, connection: None, stdin: true, stdout: true })?;
        let args = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
            .map(arg)
            .to_vec();
        let mut run = Process::start(ProcessRun {
            tool: &psql,
            args,
            connection: Some(info),
            stdin: true,
            stdout: false,
        })?;
        let (to_script, from_script, to_psql) = (script.stdin()?, script.stdout()?, run.stdin()?);
        let (fed, filtered) = tokio::join!(feed(data, to_script, ctx), filter(from_script, to_psql, ctx));
        let mut words = conclude(filtered, run, ctx).await?;
        words.extend(conclude(fed, script, ctx).await?);
        Ok(words)
    }
}

/// `--dbname` takes a whole connection string: a name that looks like one must be wrapped.
fn plain_name(name: &str) -> String {
    if name.contains('=') || name.contains("://") {
        return format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"));
    }
    name.to_owned()
}

/// What came first is the cause: a tool that failed stops reading, data that are damaged stop the tool.
async fn conclude(fed: Result<bool>, mut process: Process, ctx: &Ctx) -> Result<Vec<String>> {
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
async fn feed(
    mut data: crate::store::Bytestream,
    mut stdin: impl AsyncWrite + Unpin,
    ctx: &Ctx,
) -> Result<bool> {
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

#[async_trait]
impl Restorer for PgRestore {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let name = self.connection.database().to_owned();
        let maintenance = self.maintenance().await?;
        let (major, version) = maintenance.server_version().await?;
        let created = !self.exists(&maintenance).await?;
        if created {
            DatabaseFacts::from_contents(parts.contents())?.create(&maintenance, &name, major).await?;
        }
        let info = maintenance.info().with_database(&name);
        match self.load(&*parts, &info, major, ctx).await {
            Ok(words) => {
                for message in words {
                    ctx.observer.event(&Event::Warning { message });
                }
            }
            Err(error) if created => {
                let drop = format!("DROP DATABASE {} WITH (FORCE)", quote_identifier(&name));
                // The session may have been lost together with the server.
                let dropped = match maintenance.rows(&drop).await {
                    Err(_) => match self.maintenance().await {
                        Ok(session) => session.rows(&drop).await,
                        Err(e) => Err(e),
                    },
                    ok => ok,
                };
                return Err(match dropped {
                    Ok(_) => error,
                    Err(e) => {
                        error.doing(format!("the unfinished database {name} could not be dropped ({e})"))
                    }
                });
            }
            Err(error) => return Err(error.doing(format!("the database {name} is left half restored"))),
        }
        let mut told = Map::new();
        told.insert("database".to_owned(), name.into());
        told.insert("server_version".to_owned(), version.into());
        told.insert("created".to_owned(), created.into());
        Ok(told)
    }
}
