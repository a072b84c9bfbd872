use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;

use super::{ARCHIVE, DatabaseFacts, KIND};
use crate::dumper::{Ctx, Dumped, Dumper, PartSink, PartSpec};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, Process, ProcessRun, Session, Tools};

/// Bytes that are read from `pg_dump` at a time. The pipe is made as large.
const READ_BYTES: usize = 1024 * 1024;

/// `pg_dump` writes 4 KiB at a time. Waking up for each would cost more than reading it, so a large pipe is
/// left to fill for a moment.
const GATHER: Duration = Duration::from_millis(1);

/// Makes the pipe hold as much as is read at a time. False where the system does not allow it.
#[cfg(target_os = "linux")]
fn enlarge(pipe: &ChildStdout) -> bool {
    rustix::pipe::fcntl_setpipe_size(pipe, READ_BYTES).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn enlarge(_: &ChildStdout) -> bool {
    false
}

/// Dumps one database through `pg_dump`, in custom format and uncompressed: compression is the pipeline's.
/// One part, `<database>.pgdump`.
#[derive(Debug, Clone)]
pub struct PgDump {
    connection: ConnInfo,
    tools: Tools,
}

/// What [`PgDump::preview`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// The database.
    pub database: String,
    /// The server's version.
    pub server_version: String,
    /// Version of the `pg_dump` that would run.
    pub pg_dump_version: String,
    /// Estimate of the bytes before compression.
    pub raw_bytes: u64,
}

impl PgDump {
    /// Dumps the database that `connection` names.
    pub fn new(connection: ConnInfo) -> Self {
        Self { connection, tools: Tools::installed() }
    }

    /// Where `pg_dump` is looked for.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    async fn facts(session: &Session, version: &str) -> Result<Map<String, Value>> {
        let mut facts = Map::new();
        facts.insert("server_version".to_owned(), version.into());
        facts.insert("database".to_owned(), session.info().database().into());
        // Some managed services forbid it: then the backup does not say which cluster it is from.
        if let Ok(Some(id)) =
            session.value("SELECT system_identifier FROM pg_catalog.pg_control_system()").await
        {
            facts.insert("system_identifier".to_owned(), id.into());
        }
        Ok(facts)
    }

    /// Looks at what a backup would meet, and changes nothing.
    ///
    /// # Errors
    /// Those that the backup would end with before it begins: no connection, no fitting `pg_dump`.
    pub async fn preview(&self) -> Result<Preview> {
        let session = self.connection.connect().await?;
        let (major, server_version) = session.server_version().await?;
        let tool = self.tools.find_for("pg_dump", major, &self.connection).await?;
        let raw_bytes = Self::estimate(&session).await.unwrap_or(0);
        Ok(Preview {
            database: session.info().database().to_owned(),
            server_version,
            pg_dump_version: tool.version,
            raw_bytes,
        })
    }

    /// About how many bytes `pg_dump` will write: those of the tables, without indexes.
    async fn estimate(session: &Session) -> Option<u64> {
        let sql = "SELECT sum(pg_catalog.pg_table_size(oid))::bigint FROM pg_catalog.pg_class \
                   WHERE relkind IN ('r', 'm') AND relnamespace <> 'pg_catalog'::regnamespace AND relpersistence <> 't'";
        // The sizes are behind locks, and an estimate is not worth waiting for.
        session.rows("SET lock_timeout = '100ms'").await.ok()?;
        session.value(sql).await.ok().flatten()?.parse().ok()
    }
}

#[async_trait]
impl Dumper for PgDump {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn max_open(&self, _: usize) -> usize {
        1
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped> {
        let session = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Error::cancelled()),
            session = self.connection.connect() => session?,
        };
        let (major, version) = session.server_version().await?;
        let tool = self.tools.find_for("pg_dump", major, &self.connection).await?;
        let database = DatabaseFacts::read(&session, major).await?;
        let mut facts = Self::facts(&session, &version).await?;
        facts.insert("pg_dump_version".to_owned(), tool.version.clone().into());
        if let Some(raw_bytes) = Self::estimate(&session).await {
            ctx.observer.event(&Event::Expected { raw_bytes });
        }

        let args = ["--format=custom", "--compress=0", "--no-password"].map(str::to_owned).to_vec();
        let connection = session.info();
        let mut process = Process::start(ProcessRun {
            tool: &tool,
            args,
            connection: Some(connection),
            stdin: false,
            stdout: true,
        })?;
        let mut output = process.stdout()?;
        let large_pipe = enlarge(&output);
        let spec =
            PartSpec { kind: ARCHIVE.to_owned(), name: format!("{}.{ARCHIVE}", connection.database()) };
        let mut part = parts.open(spec).await?;
        let copied = async {
            let mut buffer = BytesMut::new();
            loop {
                // What was written is copied by then, so that this takes the same memory again.
                buffer.reserve(READ_BYTES);
                let read =
                    output.read_buf(&mut buffer).await.map_err(|e| Error::io("reading from pg_dump", e))?;
                if read == 0 {
                    return Ok(());
                }
                part.write(buffer.split().freeze()).await?;
                if large_pipe && read < READ_BYTES / 4 {
                    tokio::time::sleep(GATHER).await;
                }
            }
        };
        let copied = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => Err(Error::cancelled()),
            copied = copied => copied,
        };
        if let Err(error) = copied {
            process.kill().await;
            return Err(error);
        }
        // Only its exit status tells whether the archive is whole.
        let warnings = process.finish(&ctx.cancel).await?;
        part.finish().await?;
        for message in &warnings {
            ctx.observer.event(&Event::Warning { message: message.clone() });
        }
        Ok(Dumped { facts, contents: database.to_contents()?, warnings, ..Dumped::default() })
    }
}
