//! Logical backups written as stock tools have them.

mod csv;
mod custom;
mod folder;
mod output;
mod plain;
mod source;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::source::{Reading, Stored};
use super::KIND;
use super::archive::Method;
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::Tools;

/// What an export of a logical backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportFormat {
    /// The directory format of `pg_dump`: `pg_restore -j` takes it.
    Directory,
    /// The custom format: one file.
    Custom,
    /// SQL that `psql` takes.
    Plain,
    /// The rows of one table as CSV (RFC 4180) with a header, as `COPY … (FORMAT csv, HEADER)` writes them.
    Csv(String),
    /// The rows of one table as COPY text.
    Copy(String),
}

/// Writes a logical backup as stock tools have it. All rows are compared with the backup's own counts and fingerprints on
/// their way. What takes its name is whole: until then it has another one, and a failed export removes it.
///
/// Rows and names are in the encoding of the dump, which its table of contents names.
pub struct Export {
    to: To,
    format: ExportFormat,
    compress: Option<Method>,
    database: Option<String>,
    tools: Tools,
}

/// Where it goes.
enum To {
    Path(PathBuf),
    Stream(Mutex<Option<Box<dyn Write + Send>>>),
}

impl Export {
    /// Exports to a file, or to a folder in directory format; nothing may be there, or an empty folder.
    pub fn to(path: impl Into<PathBuf>, format: ExportFormat) -> Self {
        Self::new(To::Path(path.into()), format)
    }

    /// Exports to a stream, standard output for example; not in directory format. An archive in custom format has no
    /// offsets then, so that `pg_restore` reads it serially. Whoever reads the stream must look whether the export
    /// succeeded.
    pub fn to_stream(stream: impl Write + Send + 'static, format: ExportFormat) -> Self {
        Self::new(To::Stream(Mutex::new(Some(Box::new(stream)))), format)
    }

    fn new(to: To, format: ExportFormat) -> Self {
        Self { to, format, compress: None, database: None, tools: Tools::installed() }
    }

    /// How data are compressed. By default as the `pg_restore` of the dump's version reads it: gzip for dumps of
    /// PostgreSQL 15 and earlier, zstd for later ones. Not for SQL and single tables.
    #[must_use]
    pub fn compress(mut self, method: Option<Method>) -> Self {
        self.compress = method;
        self
    }

    /// Which database, of a backup that has several.
    #[must_use]
    pub fn database(mut self, name: Option<String>) -> Self {
        self.database = name;
        self
    }

    /// Where `pg_restore` is looked for, which makes SQL of an archive.
    #[must_use]
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    fn method(&self, minor: u8) -> Result<Method> {
        let method = self.compress.unwrap_or(if minor < 15 { Method::Gzip } else { Method::Zstd });
        method.check(minor).map(|()| method)
    }

    /// The place as an output of one file.
    fn file(&self) -> Result<output::Output> {
        match &self.to {
            To::Path(path) => output::Output::file(path),
            To::Stream(stream) => {
                let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                stream.map(output::Output::Stream).ok_or_else(|| Error::internal("the stream was written to"))
            }
        }
    }

    fn checked(&self) -> Result<()> {
        let one_table = matches!(self.format, ExportFormat::Csv(_) | ExportFormat::Copy(_));
        if self.compress.is_some() && (one_table || self.format == ExportFormat::Plain) {
            return Err(Error::new(ErrorKind::Usage, "SQL and single tables are written uncompressed")
                .with_hint("leave --compress out; pipe --to - into a compressor"));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("format", &self.format).finish_non_exhaustive()
    }
}

/// What was exported.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    tables: u64,
    rows: u64,
    objects: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.tables += other.tables;
        self.rows += other.rows;
        self.objects += other.objects;
    }
}

/// Does what may block on a thread where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("the export failed").caused_by(e)))
}

#[async_trait]
impl Restorer for Export {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        self.checked()?;
        let cancel: CancellationToken = ctx.cancel.child_token();
        let reading = Arc::new(Reading::new(parts, Handle::current(), cancel.clone()));
        let wanted = self.database.clone();
        let opening = Arc::clone(&reading);
        let stored = blocking(move || Stored::open(&opening, wanted.as_deref())).await?;
        let name = stored.database.clone();
        let counts = match (&self.format, &self.to) {
            (ExportFormat::Directory, To::Path(path)) => {
                let method = self.method(stored.minor()?)?;
                folder::export(reading, stored, path, method, ctx.jobs, &cancel).await?
            }
            (ExportFormat::Directory, To::Stream(_)) => {
                return Err(Error::new(ErrorKind::Usage, "a directory cannot be written to a stream")
                    .with_hint("name a folder, or take --format custom"));
            }
            (ExportFormat::Custom, _) => {
                let method = self.method(stored.minor()?)?;
                let (output, threads) = (self.file()?, u32::try_from(ctx.jobs).unwrap_or(1));
                blocking(move || custom::export(&reading, &stored, output, method, threads)).await?
            }
            (ExportFormat::Plain, _) => {
                plain::export(reading, stored, self.file()?, &self.tools, ctx).await?
            }
            (ExportFormat::Csv(table), _) => {
                let (table, output) = (table.clone(), self.file()?);
                blocking(move || table::export(&reading, &stored, &table, true, output)).await?
            }
            (ExportFormat::Copy(table), _) => {
                let (table, output) = (table.clone(), self.file()?);
                blocking(move || table::export(&reading, &stored, &table, false, output)).await?
            }
        };
        let mut told = Map::new();
        told.insert("database".to_owned(), name.into());
        if let To::Path(path) = &self.to {
            told.insert("path".to_owned(), path.to_string_lossy().into_owned().into());
        }
        told.insert("tables".to_owned(), counts.tables.into());
        told.insert("rows".to_owned(), counts.rows.into());
        told.insert("large_objects".to_owned(), counts.objects.into());
        Ok(told)
    }
}
