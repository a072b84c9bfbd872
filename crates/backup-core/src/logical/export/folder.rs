//! A folder in directory format (`pg_backup_directory.c`, PostgreSQL 15 to 18).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::custom::fill;
use super::output::OutputFolder;
use super::source::{Checked, Data, Form, Packs, Reading, Stored, TableRows};
use super::{Counts, blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::logical::archive::{BLOBS, Entry, Method, Place, Toc, damaged, unwritten};
use crate::logical::pieces::{Members, Pieces, object_of};
use crate::logical::{DatabaseContents, TableContents};

/// A folder being filled, by many threads.
struct Folder {
    output: OutputFolder,
    method: Method,
    /// The large objects that were written.
    objects: Mutex<Vec<u32>>,
}

impl Folder {
    fn table(&self, entry: &Entry, rows: &mut dyn Pieces) -> Result<()> {
        self.output.data(&format!("{}.dat", entry.id), self.method, |to| fill(to, rows, Some(entry)))
    }

    fn object(&self, oid: u32, data: &mut dyn Pieces) -> Result<()> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).push(oid);
        self.output.data(&format!("blob_{oid}.dat"), self.method, |to| fill(to, data, None))
    }

    /// Writes the lists of large objects, and the table of contents, and gives the folder its name.
    fn finish(self, toc: &Toc) -> Result<()> {
        let objects = self.objects.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (holders, only) = (toc.holders(), toc.only_holder());
        let mut lists: BTreeMap<i32, String> =
            toc.with_data(BLOBS).map(|entry| (entry.id, String::new())).collect();
        for oid in objects {
            let holder = only.or_else(|| holders.get(&oid).copied());
            let list = holder.and_then(|holder| lists.get_mut(&holder));
            let list = list.ok_or_else(|| damaged(&format!("the large object {oid} belongs to no entry")))?;
            let _ = writeln!(list, "{oid} blob_{oid}.dat");
        }
        let mut toc = toc.as_directory();
        for entry in toc.with_data(BLOBS) {
            let Place::File(name) = &entry.place else { continue };
            let list = lists.remove(&entry.id).unwrap_or_default();
            self.output.data(&String::from_utf8_lossy(name), Method::None, |to| {
                to.write_all(list.as_bytes()).map_err(unwritten)
            })?;
        }
        toc.header.compression = self.method.in_header(toc.header.minor());
        self.output.data("toc.dat", Method::None, |to| {
            toc.pieces().try_for_each(|piece| to.write_all(&piece)).map_err(unwritten)
        })?;
        self.output.keep()
    }
}

/// An archive is read entry by entry.
impl Data for &Folder {
    fn table(&mut self, entry: &Entry, rows: &mut dyn Pieces) -> Result<()> {
        Folder::table(self, entry, rows)
    }

    fn object(&mut self, _: i32, oid: u32, data: &mut dyn Pieces) -> Result<()> {
        Folder::object(self, oid, data)
    }
}

/// What one thread does.
enum Unit {
    /// The tables of a pack, by index.
    Pack(u32),
    /// One table, by index.
    Table(usize),
    /// A part of large objects.
    Objects(u32),
}

struct Work {
    reading: Arc<Reading>,
    folder: Folder,
    toc: Arc<Toc>,
    /// Where each entry stands in it.
    places: HashMap<i32, usize>,
    contents: Arc<DatabaseContents>,
}

pub(super) async fn export(
    reading: Arc<Reading>,
    stored: Stored,
    path: &Path,
    method: Method,
    jobs: usize,
    cancel: &CancellationToken,
) -> Result<Counts> {
    let folder = Folder { output: OutputFolder::new(path)?, method, objects: Mutex::default() };
    let Form::Parts { toc, contents } = &stored.form else {
        return blocking(move || {
            let counts = stored.read(&reading, &mut &folder)?;
            folder.finish(stored.toc()?)?;
            Ok(counts)
        })
        .await;
    };
    let units = units(&reading, contents);
    let places = toc.entries.iter().enumerate().map(|(place, entry)| (entry.id, place)).collect();
    let toc = Arc::clone(toc);
    let work = Arc::new(Work { reading, folder, toc, places, contents: Arc::clone(contents) });
    let mut running = futures::stream::iter(units)
        .map(|unit| {
            let work = Arc::clone(&work);
            blocking(move || work.unit(&unit))
        })
        .buffer_unordered(jobs.max(1));
    let (mut counts, mut failed) = (Counts::default(), None);
    while let Some(done) = running.next().await {
        match done {
            Ok(done) => counts += done,
            Err(error) => {
                // The others end soon, since their parts do. What came first is the cause.
                cancel.cancel();
                failed.get_or_insert(error);
            }
        }
    }
    drop(running);
    if let Some(error) = failed {
        return Err(error);
    }
    let expected = contents.large_objects.as_ref().map_or(0, |found| found.count);
    if counts.objects != expected {
        let message = format!("the backup has {} large objects, and says {expected}", counts.objects);
        return Err(Error::new(ErrorKind::Integrity, message));
    }
    let work = Arc::into_inner(work).ok_or_else(|| Error::internal("a thread of the export is at work"))?;
    blocking(move || work.folder.finish(&work.toc).map(|()| counts)).await
}

/// What there is to do, the largest first.
fn units(reading: &Reading, contents: &DatabaseContents) -> Vec<Unit> {
    let mut units: Vec<(u64, Unit)> = Vec::new();
    let mut packs: HashMap<u32, u64> = HashMap::new();
    for (index, table) in contents.tables.iter().enumerate() {
        match in_pack(reading, table) {
            Some(part) => *packs.entry(part).or_default() += table.bytes,
            None => units.push((table.bytes, Unit::Table(index))),
        }
    }
    units.extend(packs.into_iter().map(|(part, bytes)| (bytes, Unit::Pack(part))));
    if let Some(objects) = &contents.large_objects {
        let bytes = objects.bytes / (objects.parts.len().max(1) as u64);
        units.extend(objects.parts.iter().map(|part| (bytes, Unit::Objects(*part))));
    }
    units.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// The pack that holds all rows of a table.
fn in_pack(reading: &Reading, table: &TableContents) -> Option<u32> {
    match &table.chunks[..] {
        [chunk] if reading.is_pack(chunk.part) => Some(chunk.part),
        _ => None,
    }
}

impl Work {
    fn unit(&self, unit: &Unit) -> Result<Counts> {
        match unit {
            Unit::Pack(part) => self.pack(*part),
            Unit::Table(index) => {
                let table = &self.contents.tables[*index];
                let mut packs = Packs::default();
                self.table(table, TableRows::new(&self.reading, &mut packs, table))
            }
            Unit::Objects(part) => {
                let (mut members, mut counts) = (Members::new(self.reading.open(*part)?), Counts::default());
                while let Some((name, _)) = members.next_member()? {
                    let oid = object_of(&name);
                    let oid = oid.ok_or_else(|| damaged(&format!("{name} is no large object")))?;
                    self.folder.object(oid, &mut members)?;
                    counts.objects += 1;
                }
                Ok(counts)
            }
        }
    }

    fn pack(&self, part: u32) -> Result<Counts> {
        let here = |table: &&TableContents| in_pack(&self.reading, table) == Some(part);
        let mut tables: HashMap<String, &TableContents> =
            self.contents.tables.iter().filter(here).map(|t| (format!("{}.dat", t.entry), t)).collect();
        let (mut members, mut counts) = (Members::new(self.reading.open(part)?), Counts::default());
        while let Some((name, _)) = members.next_member()? {
            // A table may have other chunks elsewhere.
            if let Some(table) = tables.remove(&name) {
                counts += self.table(table, &mut members)?;
            }
        }
        match tables.values().next() {
            None => Ok(counts),
            Some(table) => Err(damaged(&format!("the rows of {}.{} are missing", table.schema, table.name))),
        }
    }

    fn table(&self, table: &TableContents, rows: impl Pieces) -> Result<Counts> {
        let entry = self.places.get(&table.entry).and_then(|place| self.toc.entries.get(*place));
        let entry = entry.ok_or_else(|| Error::internal("tables were compared with entries"))?;
        self.folder.table(entry, &mut Checked::new(rows, table))?;
        Ok(Counts { tables: 1, rows: table.rows, objects: 0 })
    }
}
