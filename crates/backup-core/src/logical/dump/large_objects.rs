//! Large objects, read from `pg_largeobject`: the functions for them would ask for more rights.

use bytes::{Buf, Bytes, BytesMut};

use super::super::contents::LargeObjectsContents;
use super::super::{LARGE_OBJECTS, tar_writer};
use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::CopySession;

/// Large objects whose sizes are asked for at once.
const AT_ONCE: usize = 1000;
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
        let part = match &mut part {
            Some(part) => part,
            None => {
                let spec =
                    PartSpec { kind: LARGE_OBJECTS.to_owned(), name: format!("large objects from {from}") };
                part.insert(parts.open(spec).await?)
            }
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
            members.row(&row)?;
        }
        if !more {
            break;
        }
        if members.out.len() >= 1024 * 1024 {
            part.write(members.out.split().freeze()).await?;
        }
    }
    session.copied_out().await?;
    while let Some(chunk) = members.finish() {
        part.write(chunk).await?;
    }
    Ok(())
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

    /// One message of a binary copy.
    fn row(&mut self, mut row: &[u8]) -> Result<()> {
        if let Some(rest) = row.strip_prefix(BINARY_HEAD) {
            row = rest;
        }
        let Some(fields) = row.try_get_i16().ok().filter(|fields| *fields == 3) else { return Ok(()) };
        debug_assert_eq!(fields, 3);
        let oid = field(&mut row)?.try_get_u32().map_err(|_| garbled())?;
        let number = field(&mut row)?.try_get_u32().map_err(|_| garbled())?;
        let data = field(&mut row)?;
        while self.objects.first().is_some_and(|(first, _)| *first < oid) {
            self.end_member();
        }
        if self.objects.first().is_none_or(|(first, _)| *first != oid) {
            return Err(garbled());
        }
        let written = self.begin_member();
        let begin = u64::from(number) * self.page;
        let gap = begin.checked_sub(written).ok_or_else(garbled)?;
        self.zeros(gap);
        self.out.extend_from_slice(data);
        self.written = Some(begin + data.len() as u64);
        Ok(())
    }

    /// Ends the members that are left, a megabyte at a time.
    fn finish(&mut self) -> Option<Bytes> {
        while !self.objects.is_empty() && self.out.len() < 1024 * 1024 {
            self.end_member();
        }
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    fn begin_member(&mut self) -> u64 {
        if let (None, Some((oid, size))) = (self.written, self.objects.first()) {
            self.out.extend_from_slice(&tar_writer::member(&format!("blob_{oid}.dat"), *size));
            self.written = Some(0);
        }
        self.written.unwrap_or_default()
    }

    fn end_member(&mut self) {
        self.begin_member();
        if let Some((_, size)) = self.objects.first() {
            self.out.extend_from_slice(&tar_writer::filling(*size));
        }
        self.objects = self.objects.get(1..).unwrap_or_default();
        self.written = None;
    }

    fn zeros(&mut self, count: u64) {
        let length = self.out.len() + usize::try_from(count).unwrap_or(usize::MAX);
        self.out.resize(length, 0);
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
