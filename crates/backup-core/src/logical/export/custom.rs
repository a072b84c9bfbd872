//! One file in custom format.

use std::io::Write;

use super::Counts;
use super::output::Output;
use super::source::{Data, Reading, Stored};
use crate::error::Result;
use crate::logical::archive::{CustomWriter, Entry, Method, TERMINATOR, set_offsets, unwritten};
use crate::logical::pieces::Pieces;

pub(super) fn export(
    reading: &Reading,
    stored: &Stored,
    output: Output,
    method: Method,
    threads: u32,
) -> Result<Counts> {
    let mut writer = CustomWriter::new(output, stored.toc()?, method, threads)?;
    let counts = stored.read(reading, &mut writer)?;
    let (output, toc) = writer.finish()?;
    output.keep(|file| set_offsets(file, &toc))?;
    Ok(counts)
}

/// Writes data as an archive has them.
pub(super) fn fill(to: &mut dyn Write, data: &mut dyn Pieces, entry: Option<&Entry>) -> Result<()> {
    while let Some(piece) = data.next_piece()? {
        to.write_all(&piece).map_err(unwritten)?;
    }
    match entry {
        Some(entry) if entry.copy.is_some() => to.write_all(TERMINATOR).map_err(unwritten),
        _ => Ok(()),
    }
}

impl<W: Write> Data for CustomWriter<W> {
    fn table(&mut self, entry: &Entry, rows: &mut dyn Pieces) -> Result<()> {
        self.rows(entry.id, |to| fill(to, rows, Some(entry)))
    }

    fn object(&mut self, entry: i32, oid: u32, data: &mut dyn Pieces) -> Result<()> {
        CustomWriter::object(self, entry, oid, |to| fill(to, data, None))
    }
}
