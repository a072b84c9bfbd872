//! The rows of one table.

use std::io::Write;

use super::Counts;
use super::csv::CsvWriter;
use super::output::Output;
use super::source::{Checked, Data, Form, Packs, Reading, Stored, TableRows};
use crate::error::{Error, ErrorKind, Result};
use crate::logical::RowHasher;
use crate::logical::archive::{Entry, TABLE_DATA, Toc, unwritten};
use crate::logical::pieces::Pieces;

pub(super) fn export(
    reading: &Reading,
    stored: &Stored,
    name: &str,
    csv: bool,
    mut output: Output,
) -> Result<Counts> {
    let toc = stored.toc()?;
    let entry = find(toc, name)?;
    if entry.copy.is_none() {
        let message = format!("the dump has INSERTs of {name}, and no rows");
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("take --format plain"));
    }
    let mut one = One { entry: entry.id, csv, to: &mut output, hasher: RowHasher::default() };
    match &stored.form {
        Form::Parts { contents, .. } => {
            let table = contents.tables.iter().find(|table| table.entry == entry.id);
            let table = table.ok_or_else(|| Error::internal("tables were compared with entries"))?;
            let mut packs = Packs::default();
            let rows = TableRows::new(reading, &mut packs, table);
            one.table(entry, &mut Checked::new(rows, table))?;
        }
        _ => {
            stored.read(reading, &mut one)?;
        }
    }
    let rows = one.hasher.done.rows;
    output.keep(|_| Ok(()))?;
    Ok(Counts { tables: 1, rows, objects: 0 })
}

/// The table of a name: `schema.name`, or a name that only one table has.
fn find<'a>(toc: &'a Toc, name: &str) -> Result<&'a Entry> {
    let is = |entry: &&Entry| format!("{}.{}", entry.schema_text(), entry.name_text()) == name;
    let bare = |entry: &&Entry| entry.name_text() == name;
    let all = || toc.with_data(TABLE_DATA);
    let found: Vec<&Entry> = match all().filter(is).collect::<Vec<_>>() {
        found if found.is_empty() => all().filter(bare).collect(),
        found => found,
    };
    match found[..] {
        [entry] => Ok(entry),
        [] => Err(Error::new(ErrorKind::Usage, format!("the backup has no rows of a table {name}"))
            .with_hint("pgark show --contents lists the tables; write SCHEMA.NAME, without quotes")),
        _ => Err(Error::new(ErrorKind::Usage, format!("several schemas have a table {name}"))
            .with_hint("write SCHEMA.NAME")),
    }
}

/// Takes one table out of all.
struct One<'a> {
    entry: i32,
    csv: bool,
    to: &'a mut Output,
    hasher: RowHasher,
}

impl Data for One<'_> {
    fn table(&mut self, entry: &Entry, rows: &mut dyn Pieces) -> Result<()> {
        let wanted = entry.id == self.entry;
        let mut csv = CsvWriter::new(entry.columns());
        if wanted && self.csv {
            csv.header(&mut self.to).map_err(unwritten)?;
        }
        while let Some(piece) = rows.next_piece()? {
            if !wanted {
                continue;
            }
            self.hasher.text(&piece);
            if self.csv {
                csv.text(&piece, &mut self.to).map_err(unwritten)?;
            } else {
                self.to.write_all(&piece).map_err(unwritten)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, _: i32, _: u32, data: &mut dyn Pieces) -> Result<()> {
        while data.next_piece()?.is_some() {}
        Ok(())
    }
}
