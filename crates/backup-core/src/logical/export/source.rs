//! What a backup holds, read on threads that may block.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Counts;
use crate::dumper::{PartInfo, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::logical::archive::{BLOBS, Entry, Method, Rows, TABLE_DATA, Toc, TocReader, damaged, open};
use crate::logical::pieces::{Members, PartPieces, PieceReader, Pieces, object_of};
use crate::logical::stock::{Object, Sink, each_block};
use crate::logical::{
    ARCHIVE, DatabaseContents, DatabaseFacts, LogicalContents, PACK, RowHasher, SQL, TableContents,
};

/// Packs are held in memory up to so many bytes, since tables are wanted in another order than they stand in packs; one
/// pack always is.
const PACKS_BYTES: u64 = 128 * 1024 * 1024;

/// The parts of a backup.
pub(super) struct Reading {
    parts: Arc<dyn PartSource>,
    infos: HashMap<u32, PartInfo>,
    pub(super) runtime: Handle,
    pub(super) cancel: CancellationToken,
}

impl Reading {
    pub(super) fn new(parts: Arc<dyn PartSource>, runtime: Handle, cancel: CancellationToken) -> Self {
        let infos = parts.parts().into_iter().map(|info| (info.part, info)).collect();
        Self { parts, infos, runtime, cancel }
    }

    /// Opens a part.
    pub(super) fn open(&self, part: u32) -> Result<PartPieces> {
        let stream = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(Error::cancelled()),
                opened = self.parts.open(part) => opened,
            }
        })?;
        Ok(PartPieces {
            stream: stream.fuse().boxed(),
            runtime: self.runtime.clone(),
            cancel: self.cancel.clone(),
        })
    }

    pub(super) fn is_pack(&self, part: u32) -> bool {
        self.infos.get(&part).is_some_and(|info| info.spec.kind == PACK)
    }

    fn bytes_of(&self, part: u32) -> u64 {
        self.infos.get(&part).map_or(0, |info| info.raw_bytes)
    }

    fn whole(&self, part: u32) -> Result<Vec<u8>> {
        let (mut pieces, mut whole) = (self.open(part)?, Vec::new());
        while let Some(piece) = pieces.next_piece()? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }
}

/// Where data go, entry by entry.
pub(super) trait Data {
    /// The rows of a table without a terminator; or its INSERTs, where the entry has no COPY.
    fn table(&mut self, entry: &Entry, rows: &mut dyn Pieces) -> Result<()>;

    /// A large object.
    fn object(&mut self, entry: i32, oid: u32, data: &mut dyn Pieces) -> Result<()>;
}

/// One database of a backup.
pub(super) struct Stored {
    /// Its name.
    pub(super) database: String,
    pub(super) form: Form,
}

/// How it is stored.
pub(super) enum Form {
    /// Rows of each table.
    Parts { toc: Arc<Toc>, contents: Arc<DatabaseContents> },
    /// One archive of `pg_dump`, in this part.
    Archive { part: u32, toc: Arc<Toc> },
    /// SQL, in this part.
    Sql { part: u32 },
}

impl Stored {
    pub(super) fn open(reading: &Reading, wanted: Option<&str>) -> Result<Self> {
        let contents = LogicalContents::from_contents(reading.parts.contents())?;
        let Some(contents) = contents else { return Self::whole(reading, wanted) };
        let names =
            || contents.databases.iter().map(|d| d.facts.name.as_str()).collect::<Vec<_>>().join(", ");
        let database = match (wanted, &contents.databases[..]) {
            (Some(name), _) => contents.database(name).cloned(),
            (None, [only]) => Some(only.clone()),
            (None, _) => {
                return Err(Error::new(ErrorKind::Usage, "the backup has several databases")
                    .with_hint(format!("choose with --database: {}", names())));
            }
        };
        let database = database.ok_or_else(|| no_database(wanted.unwrap_or_default(), &names()))?;
        let toc = TocReader::read(&reading.whole(database.toc)?)?;
        check(&toc, &database)?;
        let name = database.facts.name.clone();
        Ok(Self { database: name, form: Form::Parts { toc: Arc::new(toc), contents: Arc::new(database) } })
    }

    /// A backup that is one archive, or SQL.
    fn whole(reading: &Reading, wanted: Option<&str>) -> Result<Self> {
        let facts = DatabaseFacts::from_contents(reading.parts.contents())?;
        if let Some(name) = wanted.filter(|name| *name != facts.name) {
            return Err(no_database(name, &facts.name));
        }
        let part =
            |kind: &str| reading.infos.values().find(|info| info.spec.kind == kind).map(|info| info.part);
        let form = if let Some(part) = part(ARCHIVE) {
            let (toc, _) = open(PieceReader::new(reading.open(part)?))?;
            Form::Archive { part, toc: Arc::new(toc) }
        } else if let Some(part) = part(SQL) {
            Form::Sql { part }
        } else {
            return Err(Error::new(ErrorKind::Unsupported, "the backup has nothing that can be exported"));
        };
        Ok(Self { database: facts.name, form })
    }

    /// The table of contents.
    pub(super) fn toc(&self) -> Result<&Arc<Toc>> {
        match &self.form {
            Form::Parts { toc, .. } | Form::Archive { toc, .. } => Ok(toc),
            Form::Sql { .. } => {
                Err(Error::new(ErrorKind::Unsupported, "the backup is SQL, which no archive can be made of")
                    .with_hint("take --format plain"))
            }
        }
    }

    /// The archive's version.
    pub(super) fn minor(&self) -> Result<u8> {
        self.toc().map(|toc| toc.header.minor())
    }

    /// Gives all data to `to`, in the order of the table of contents.
    pub(super) fn read(&self, reading: &Reading, to: &mut dyn Data) -> Result<Counts> {
        match &self.form {
            Form::Parts { toc, contents } => in_order(reading, toc, contents, to),
            Form::Archive { part, .. } => archive(reading, *part, to),
            Form::Sql { .. } => self.toc().map(|_| Counts::default()),
        }
    }
}

fn no_database(name: &str, there: &str) -> Error {
    Error::new(ErrorKind::NoDatabase, format!("the backup has no database {name}"))
        .with_hint(format!("it has {there}"))
}

/// Checks that table of contents and contents name the same tables.
fn check(toc: &Toc, contents: &DatabaseContents) -> Result<()> {
    let mut listed: HashMap<i32, &TableContents> = contents.tables.iter().map(|t| (t.entry, t)).collect();
    for entry in toc.with_data(TABLE_DATA) {
        if listed.remove(&entry.id).is_none() {
            return Err(unlike(&format!("the rows of {}.{}", entry.schema_text(), entry.name_text())));
        }
    }
    match listed.values().next() {
        Some(table) => Err(unlike(&format!("an entry for {}.{}", table.schema, table.name))),
        None => Ok(()),
    }
}

fn unlike(what: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("the backup does not have {what}"))
        .with_hint("use another backup, or another copy of the repository")
}

/// Rows of a table on their way, compared at their end with what the backup says of them.
pub(super) struct Checked<'a, P> {
    rows: P,
    table: &'a TableContents,
    hasher: RowHasher,
    bytes: u64,
}

impl<'a, P> Checked<'a, P> {
    pub(super) fn new(rows: P, table: &'a TableContents) -> Self {
        Self { rows, table, hasher: RowHasher::default(), bytes: 0 }
    }
}

impl<P: Pieces> Pieces for Checked<'_, P> {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.rows.next_piece()? {
            self.hasher.text(&piece);
            self.bytes += piece.len() as u64;
            return Ok(Some(piece));
        }
        let (table, found) = (self.table, self.hasher.done);
        if (found.rows, found.hex(), self.bytes) == (table.rows, table.fingerprint.clone(), table.bytes) {
            return Ok(None);
        }
        let message = format!(
            "the rows of table {}.{} are not those that were backed up: {} rows in {} bytes, and not {} in {}",
            table.schema, table.name, found.rows, self.bytes, table.rows, table.bytes
        );
        Err(Error::new(ErrorKind::Integrity, message)
            .with_hint("use another backup; this one was made wrong"))
    }
}

/// The chunks of a table, joined.
pub(super) struct TableRows<'a> {
    reading: &'a Reading,
    packs: &'a mut Packs,
    table: &'a TableContents,
    next: usize,
    open: Option<PartPieces>,
}

impl<'a> TableRows<'a> {
    pub(super) fn new(reading: &'a Reading, packs: &'a mut Packs, table: &'a TableContents) -> Self {
        Self { reading, packs, table, next: 0, open: None }
    }
}

impl Pieces for TableRows<'_> {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(open) = &mut self.open {
                if let Some(piece) = open.next_piece()? {
                    return Ok(Some(piece));
                }
                self.open = None;
            }
            let Some(chunk) = self.table.chunks.get(self.next) else { return Ok(None) };
            self.next += 1;
            if self.reading.is_pack(chunk.part) {
                return self.packs.rows(self.reading, chunk.part, self.table.entry).map(Some);
            }
            self.open = Some(self.reading.open(chunk.part)?);
        }
    }
}

/// Packs in memory.
#[derive(Default)]
pub(super) struct Packs {
    loaded: Vec<(u32, HashMap<String, Bytes>)>,
}

impl Packs {
    fn rows(&mut self, reading: &Reading, part: u32, entry: i32) -> Result<Bytes> {
        let at = match self.loaded.iter().position(|(loaded, _)| *loaded == part) {
            Some(at) => at,
            None => self.load(reading, part)?,
        };
        // The one that was used last stands last.
        let pack = self.loaded.remove(at);
        let rows = pack.1.get(&format!("{entry}.dat")).cloned();
        self.loaded.push(pack);
        rows.ok_or_else(|| unlike(&format!("the rows of entry {entry} in part {part}")))
    }

    fn load(&mut self, reading: &Reading, part: u32) -> Result<usize> {
        let room = PACKS_BYTES.saturating_sub(reading.bytes_of(part));
        while self.loaded.iter().map(|(part, _)| reading.bytes_of(*part)).sum::<u64>() > room {
            self.loaded.remove(0);
        }
        let (mut members, mut tables) = (Members::new(reading.open(part)?), HashMap::new());
        while let Some((name, _)) = members.next_member()? {
            let mut rows = BytesMut::new();
            while let Some(piece) = members.next_piece()? {
                rows.extend_from_slice(&piece);
            }
            tables.insert(name, rows.freeze());
        }
        self.loaded.push((part, tables));
        Ok(self.loaded.len() - 1)
    }
}

fn in_order(reading: &Reading, toc: &Toc, contents: &DatabaseContents, to: &mut dyn Data) -> Result<Counts> {
    let tables: HashMap<i32, &TableContents> = contents.tables.iter().map(|t| (t.entry, t)).collect();
    let (mut packs, mut counts) = (Packs::default(), Counts::default());
    let mut objects = Objects::new(reading, toc, contents);
    for entry in toc.entries.iter().filter(|entry| entry.has_data) {
        if entry.kind == BLOBS {
            counts.objects += objects.of_entry(entry.id, to)?;
            continue;
        }
        let table = tables.get(&entry.id).ok_or_else(|| unlike("the rows of a table"))?;
        let rows = TableRows::new(reading, &mut packs, table);
        to.table(entry, &mut Checked::new(rows, table))?;
        counts += Counts { tables: 1, rows: table.rows, objects: 0 };
    }
    objects.finish()?;
    let expected = contents.large_objects.as_ref().map_or(0, |found| found.count);
    if counts.objects != expected {
        return Err(unlike(&format!("its {expected} large objects, but {}", counts.objects)));
    }
    Ok(counts)
}

/// Large objects in the order of entries.
struct Objects<'a> {
    reading: &'a Reading,
    parts: &'a [u32],
    holders: HashMap<u32, i32>,
    only: Option<i32>,
    /// The part after the one that is open.
    next: usize,
    open: Option<Members<PartPieces>>,
}

impl<'a> Objects<'a> {
    fn new(reading: &'a Reading, toc: &Toc, contents: &'a DatabaseContents) -> Self {
        let parts = contents.large_objects.as_ref().map_or(&[][..], |objects| &objects.parts);
        let (holders, only) = (toc.holders(), toc.only_holder());
        Self { reading, parts, holders, only, next: 0, open: None }
    }

    /// Gives those of an entry. They mostly stand together; where they do not, the parts are read again.
    fn of_entry(&mut self, entry: i32, to: &mut dyn Data) -> Result<u64> {
        let wanted = match self.only {
            Some(_) => u64::MAX,
            None => self.holders.values().filter(|holder| **holder == entry).count() as u64,
        };
        let (mut given, mut from_start) = (HashSet::new(), self.next == 0);
        while (given.len() as u64) < wanted {
            let Some(oid) = self.next_object()? else {
                if from_start {
                    break;
                }
                (self.next, from_start) = (0, true);
                continue;
            };
            let holder = self.only.or_else(|| self.holders.get(&oid).copied());
            let holder = holder.ok_or_else(|| unlike(&format!("an entry for the large object {oid}")))?;
            if holder != entry || !given.insert(oid) {
                continue;
            }
            if let Some(members) = &mut self.open {
                to.object(entry, oid, members)?;
            }
        }
        let found = given.len() as u64;
        if self.only.is_none() && found < wanted {
            return Err(unlike(&format!("{} of its large objects", wanted - found)));
        }
        Ok(found)
    }

    /// Reads what is left: the digest of a part is checked at its end.
    fn finish(mut self) -> Result<()> {
        while self.next_object()?.is_some() {}
        Ok(())
    }

    fn next_object(&mut self) -> Result<Option<u32>> {
        loop {
            if let Some(members) = &mut self.open {
                if let Some((name, _)) = members.next_member()? {
                    let oid = object_of(&name);
                    return oid.map(Some).ok_or_else(|| damaged(&format!("{name} is no large object")));
                }
                self.open = None;
            }
            let Some(part) = self.parts.get(self.next) else { return Ok(None) };
            self.open = Some(Members::new(self.reading.open(*part)?));
            self.next += 1;
        }
    }
}

/// Reads an archive of `pg_dump`.
fn archive(reading: &Reading, part: u32, to: &mut dyn Data) -> Result<Counts> {
    let mut pieces = PieceReader::new(reading.open(part)?);
    let mut to = Unpacked { to, counts: Counts::default() };
    {
        let (toc, mut blocks) = open(&mut pieces)?;
        if Method::of(&toc.header)? != Method::None {
            return Err(damaged("the archive of a backup is not compressed"));
        }
        let again = |_| Err(Error::internal("a part is read once"));
        each_block(&toc, &mut blocks, &again, &mut to)?;
    }
    // The part's digest is checked at its end.
    std::io::copy(&mut pieces, &mut std::io::sink()).map_err(crate::logical::archive::broken)?;
    Ok(to.counts)
}

/// Gives the data of an archive on.
struct Unpacked<'a> {
    to: &'a mut dyn Data,
    counts: Counts,
}

impl Sink for Unpacked<'_> {
    fn table(&mut self, _: &Toc, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        self.counts.tables += 1;
        if entry.copy.is_none() {
            return self.to.table(entry, &mut Read1(data));
        }
        let mut rows = Rows::new(data);
        self.to.table(entry, &mut rows)?;
        self.counts.rows += rows.found().0.rows;
        Ok(())
    }

    fn object(&mut self, _: &Toc, object: Object<'_>) -> Result<()> {
        self.counts.objects += 1;
        let entry = object.entry.ok_or_else(|| damaged("a large object belongs to no entry"))?;
        self.to.object(entry, object.oid, &mut Read1(object.data))
    }
}

impl<R: Read> Pieces for Rows<R> {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        Ok(self.next()?.map(Bytes::copy_from_slice))
    }
}

/// A reader as pieces.
struct Read1<'a>(&'a mut dyn Read);

impl Pieces for Read1<'_> {
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        let mut piece = vec![0; 256 * 1024];
        let read = self.0.read(&mut piece).map_err(crate::logical::archive::broken)?;
        piece.truncate(read);
        Ok((read > 0).then(|| piece.into()))
    }
}
