//! Large objects, read from `pg_largeobject`: the functions for them would ask for more rights.

use bytes::{Buf, BytesMut};

use super::super::contents::LargeObjectsContents;
use super::super::{LARGE_OBJECTS, tar_writer};
use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::CopySession;

/// Large objects whose sizes are asked for at once.
const AT_ONCE: usize = 1000;
/// Bytes are given to a part in pieces of about this size.
const PIECE_BYTES: usize = 1024 * 1024;
/// The head of a binary copy: signature, flags, length of an extension (PostgreSQL documentation, "COPY").
const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Ranges of OIDs with about `each` large objects, and how many bytes there are in all.
pub(super) async fn ranges(session: &mut CopySession, jobs: usize) -> Result<(Vec<(u32, u32)>, u64)> {
    let count: usize =
        parse(session.value("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata").await?)?;
    if count == 0 {
        return Ok((Vec::new(), 0));
    }
    let bytes = parse(session.value("SELECT pg_catalog.pg_table_size('pg_catalog.pg_largeobject')").await?)?;
    let each = count.div_ceil(jobs * 4).max(AT_ONCE);
    let sql = format!(
        "SELECT oid FROM (SELECT oid, row_number() OVER (ORDER BY oid) AS n FROM pg_catalog.pg_largeobject_metadata) o \
         WHERE n % {each} = 0 ORDER BY 1"
    );
    let mut ends: Vec<u32> = Vec::new();
    for row in session.rows(&sql).await? {
        ends.push(parse(row.into_iter().next().flatten())?);
    }
    ends.push(u32::MAX);
    let starts = std::iter::once(0).chain(ends.iter().map(|end| end.saturating_add(1)));
    Ok((starts.zip(ends.iter().copied()).filter(|(from, to)| from < to || *to < u32::MAX).collect(), bytes))
}

/// Copies those of a range into a part.
pub(super) async fn copy(
    session: &mut CopySession,
    parts: &dyn PartSink,
    from: u32,
    to: u32,
) -> Result<LargeObjectsContents> {
    let mut all = LargeObjectsContents { parts: Vec::new(), count: 0, bytes: 0 };
    let block: u64 = parse(session.value("SHOW block_size").await?)?;
    // LOBLKSIZE in large_object.h
    let page = block / 4;
    let mut part: Option<Box<dyn PartWriter>> = None;
    let mut next = u64::from(from);
    while next <= u64::from(to) {
        let sql = format!(
            "SELECT m.oid, (SELECT l.pageno::bigint * {page} + octet_length(l.data) FROM pg_catalog.pg_largeobject l \
             WHERE l.loid = m.oid ORDER BY l.pageno DESC LIMIT 1) FROM pg_catalog.pg_largeobject_metadata m \
             WHERE m.oid BETWEEN {next} AND {to} ORDER BY m.oid LIMIT {AT_ONCE}"
        );
        let mut some = Vec::new();
        for row in session.rows(&sql).await? {
            let mut columns = row.into_iter();
            let oid: u32 = parse(columns.next().flatten())?;
            let size: u64 = columns.next().flatten().map_or(Ok(0), |size| parse(Some(size)))?;
            some.push((oid, size));
        }
        let Some((last, _)) = some.last().copied() else { break };
        let part = if let Some(part) = &mut part {
            part
        } else {
            let spec =
                PartSpec { kind: LARGE_OBJECTS.to_owned(), name: format!("large objects from {from}") };
            part.insert(parts.open(spec).await?)
        };
        all.count += some.len() as u64;
        all.bytes += some.iter().map(|(_, size)| size).sum::<u64>();
        copy_some(session, &mut **part, &some, page).await?;
        next = u64::from(last) + 1;
    }
    if let Some(mut part) = part {
        part.write(tar_writer::end()).await?;
        all.parts.push(part.finish().await?);
    }
    Ok(all)
}

async fn copy_some(
    session: &mut CopySession,
    part: &mut dyn PartWriter,
    objects: &[(u32, u64)],
    page: u64,
) -> Result<()> {
    let (Some((first, _)), Some((last, _))) = (objects.first(), objects.last()) else { return Ok(()) };
    session
        .copy_out(format!(
            "COPY (SELECT loid, pageno, data FROM pg_catalog.pg_largeobject WHERE loid BETWEEN {first} AND {last} \
             ORDER BY loid, pageno) TO STDOUT (FORMAT binary)"
        ))
        .await?;
    let mut members = Members::new(objects, page);
    let (mut row, mut rows) = (Vec::new(), Vec::new());
    loop {
        let more = session
            .copied(|piece, ends| {
                row.extend_from_slice(piece);
                if ends {
                    rows.push(std::mem::take(&mut row));
                }
            })
            .await?;
        for row in rows.drain(..) {
            let Some(row) = Page::parse(&row)? else { continue };
            let mut hole = members.at(&row)?;
            while hole > 0 {
                // Holes may be far larger than memory.
                hole -= members.zeros(hole);
                members.give(part, PIECE_BYTES).await?;
            }
            members.data(row.data);
        }
        if !more {
            break;
        }
        members.give(part, PIECE_BYTES).await?;
    }
    session.copied_out().await?;
    while members.end_some()? {
        members.give(part, PIECE_BYTES).await?;
    }
    members.give(part, 1).await
}

/// Turns pages into members of a tar archive; pages that are missing are zeros.
struct Members<'a> {
    objects: &'a [(u32, u64)],
    page: u64,
    /// Bytes of the first of `objects` that are written, if its header is.
    written: Option<u64>,
    out: BytesMut,
}

impl<'a> Members<'a> {
    fn new(objects: &'a [(u32, u64)], page: u64) -> Self {
        Self { objects, page, written: None, out: BytesMut::new() }
    }

    /// Goes to the member of a page; how many bytes are missing before it.
    fn at(&mut self, page: &Page<'_>) -> Result<u64> {
        while self.objects.first().is_some_and(|(first, _)| *first < page.oid) {
            self.end_member()?;
        }
        if self.objects.first().is_none_or(|(first, _)| *first != page.oid) {
            return Err(garbled());
        }
        let written = self.begin_member();
        (u64::from(page.number) * self.page).checked_sub(written).ok_or_else(garbled)
    }

    /// Ends some of the members that are left. True while there are more.
    fn end_some(&mut self) -> Result<bool> {
        while !self.objects.is_empty() && self.out.len() < PIECE_BYTES {
            self.end_member()?;
        }
        Ok(!self.objects.is_empty())
    }

    /// Gives a part what is collected, once it is so much.
    async fn give(&mut self, part: &mut dyn PartWriter, least: usize) -> Result<()> {
        if self.out.len() < least {
            return Ok(());
        }
        part.write(self.out.split().freeze()).await
    }

    fn begin_member(&mut self) -> u64 {
        if let (None, Some((oid, size))) = (self.written, self.objects.first()) {
            self.out.extend_from_slice(&tar_writer::member(&format!("blob_{oid}.dat"), *size));
            self.written = Some(0);
        }
        self.written.unwrap_or_default()
    }

    fn end_member(&mut self) -> Result<()> {
        let written = self.begin_member();
        if let Some((_, size)) = self.objects.first() {
            if written != *size {
                return Err(garbled());
            }
            self.out.extend_from_slice(&tar_writer::filling(*size));
        }
        self.objects = self.objects.get(1..).unwrap_or_default();
        self.written = None;
        Ok(())
    }

    /// Adds at most a megabyte of zeros; how many.
    fn zeros(&mut self, count: u64) -> u64 {
        let some = usize::try_from(count).unwrap_or(usize::MAX).min(PIECE_BYTES);
        self.out.resize(self.out.len() + some, 0);
        self.written = self.written.map(|written| written + some as u64);
        some as u64
    }

    fn data(&mut self, data: &[u8]) {
        self.out.extend_from_slice(data);
        self.written = self.written.map(|written| written + data.len() as u64);
    }
}

/// A row of `pg_largeobject`.
struct Page<'a> {
    oid: u32,
    number: u32,
    data: &'a [u8],
}

impl<'a> Page<'a> {
    /// One message of a binary copy; nothing for its end.
    fn parse(mut row: &'a [u8]) -> Result<Option<Self>> {
        if let Some(rest) = row.strip_prefix(BINARY_HEAD) {
            row = rest;
        }
        match row.try_get_i16() {
            Ok(3) => {}
            Ok(-1) => return Ok(None),
            _ => return Err(garbled()),
        }
        let oid = field(&mut row)?.try_get_u32().map_err(|_| garbled())?;
        let number = field(&mut row)?.try_get_u32().map_err(|_| garbled())?;
        Ok(Some(Self { oid, number, data: field(&mut row)? }))
    }
}

fn field<'a>(row: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length =
        row.try_get_i32().ok().and_then(|length| usize::try_from(length).ok()).ok_or_else(garbled)?;
    let (field, rest) = row.split_at_checked(length).ok_or_else(garbled)?;
    *row = rest;
    Ok(field)
}

fn parse<T: std::str::FromStr>(text: Option<String>) -> Result<T> {
    text.and_then(|text| text.parse().ok()).ok_or_else(garbled)
}

fn garbled() -> Error {
    Error::new(ErrorKind::Database, "the server's table of large objects makes no sense")
        .with_hint("look at it with: SELECT loid, pageno, length(data) FROM pg_largeobject ORDER BY 1, 2")
}
