//! Files of `pg_dump` made backups.

mod facts;
mod source;
mod sql;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use self::source::{Format, Source};
use self::store::{Target, Whole, Writer};
use super::archive::{CustomWriter, Method, TABLE_DATA, Toc, unwritten};
use super::{ARCHIVE, DatabaseContents, ExtensionContents, KIND, LogicalContents, TOC};
use crate::dumper::{Ctx, Dumped, Dumper, PartSink};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;

/// Makes a file that `pg_dump` wrote a backup: an archive in custom, directory or tar format, or SQL. It is read whole and
/// checked: what `pg_restore` would not restore is refused, and so is what it would take although something is
/// missing.
///
/// The rows of an archive are stored as those of a backup of pgark's own. SQL, and the archive of a `pg_dump` with
/// `--inserts`, are kept as they are.
#[derive(Debug, Clone)]
pub struct Import {
    path: PathBuf,
}

impl Import {
    /// Takes the file, or the folder of the directory format.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// What the file is, by its beginning: `custom`, `directory`, `tar`, `plain`.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) where it cannot be read, [`Integrity`](ErrorKind::Integrity) where it is no dump.
    pub fn format(&self) -> Result<&'static str> {
        let format = Format::of(&self.path)?;
        match format {
            Format::Plain(method) => sql::check_head(&self.path, method)?,
            _ => drop(Source::open(&self.path, format)?),
        }
        Ok(format.name())
    }
}

/// How a file was when it was looked at.
fn stamp(path: &Path) -> Result<(u64, Option<std::time::SystemTime>)> {
    let found =
        std::fs::metadata(path).map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
    Ok((found.len(), found.modified().ok()))
}

fn import(path: &Path, parts: &Arc<dyn PartSink>, ctx: &Ctx, runtime: Handle) -> Result<Dumped> {
    let before = stamp(path)?;
    let format = Format::of(path)?;
    let target = Target { parts: Arc::clone(parts), runtime, cancel: ctx.cancel.clone() };
    let dumped = match format {
        Format::Plain(method) => sql::import(path, method, &target)?,
        _ => archive(path, format, &target)?,
    };
    if stamp(path)? != before {
        let message = format!("{} was written to while it was read", path.display());
        return Err(Error::new(ErrorKind::Integrity, message).with_hint("import it when pg_dump has ended"));
    }
    for message in &dumped.warnings {
        ctx.observer.event(&Event::Warning { message: message.clone() });
    }
    Ok(dumped)
}

fn archive(path: &Path, format: Format, target: &Target) -> Result<Dumped> {
    let source = Source::open(path, format)?;
    let toc = source.toc().clone();
    let (database, has_locale) = facts::database(&toc);
    let mut dumped = Dumped::default();
    if !has_locale {
        dumped.warnings.push(
            "the dump is one of some schemas or tables, and does not say the database's locale: a restore makes it with C"
                .to_owned(),
        );
    }
    let server_version = facts::version(toc.header.server_version.as_deref());
    let pg_dump_version = facts::version(toc.header.dump_version.as_deref());
    for (fact, value) in [
        ("server_version", server_version.as_str()),
        ("pg_dump_version", &pg_dump_version),
        ("database", &database.name),
        ("imported", format.name()),
    ] {
        dumped.facts.insert(fact.to_owned(), value.into());
    }
    if toc.with_data(TABLE_DATA).any(|entry| entry.copy.is_none()) {
        whole(source, &toc, target)?;
        dumped.contents = database.to_contents()?;
        return Ok(dumped);
    }
    let toc_part = target.store(TOC, "toc.dat", &toc.as_directory().to_bytes())?;
    let mut writer = Writer::new(target);
    source.read(&mut writer)?;
    let stored = writer.finish(&toc)?;
    let extensions = toc.entries.iter().filter(|entry| entry.kind == "EXTENSION");
    let extensions = extensions
        // The archive does not say which version.
        .map(|entry| ExtensionContents { name: entry.name_text(), version: String::new() })
        .collect();
    let database = DatabaseContents {
        facts: database,
        server_version,
        pg_dump_version,
        toc: toc_part,
        snapshot: None,
        database_bytes: stored.bytes,
        tables: stored.tables,
        large_objects: stored.objects,
        extensions,
        left_out: Vec::new(),
    };
    dumped.contents =
        LogicalContents { databases: vec![database], ..LogicalContents::default() }.to_contents()?;
    Ok(dumped)
}

/// Keeps an archive that has INSERTs, which are not rows, as one part: in custom format and uncompressed.
fn whole(source: Source, toc: &Toc, target: &Target) -> Result<()> {
    let name =
        format!("{}.{ARCHIVE}", String::from_utf8_lossy(toc.header.database.as_deref().unwrap_or(b"dump")));
    let part = target.open(ARCHIVE, &name)?;
    let mut sink = Whole::new(CustomWriter::new(part, toc, Method::None, 1)?, toc, target);
    source.read(&mut sink)?;
    let (part, _) = sink.finish()?;
    part.finish().map_err(unwritten)?;
    Ok(())
}

#[async_trait]
impl Dumper for Import {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn max_open(&self, _: usize) -> usize {
        // A pack, a large table, and large objects.
        3
    }

    fn working_bytes(&self) -> usize {
        store::WORKING_BYTES
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, ctx: &Ctx) -> Result<Dumped> {
        let (path, ctx, runtime) = (self.path.clone(), ctx.clone(), Handle::current());
        let work = tokio::task::spawn_blocking(move || import(&path, &parts, &ctx, runtime));
        let done = work.await.map_err(|e| Error::internal("the import failed").caused_by(e))?;
        done.map_err(|e| e.doing(format!("importing {}", self.path.display())))
    }
}

/// A record's facts of a dump in SQL.
fn plain_facts(database: &str, server: &str, dump: &str) -> Map<String, Value> {
    let facts = [
        ("server_version", server),
        ("pg_dump_version", dump),
        ("database", database),
        ("imported", "plain"),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}
