use super::{CUSTOM, Entry, Header, MAGIC, Place, STATISTICS_DATA, TAR, Toc};
use crate::error::{Error, ErrorKind, Result};

/// A text of the archive is no longer than PostgreSQL's own limit.
const LONGEST: usize = 1 << 30;
/// `K_VERS_MAX` of PostgreSQL 18; the oldest is that of PostgreSQL 12, whose archives 15 still reads.
const VERSIONS: std::ops::RangeInclusive<u8> = 14..=16;
/// `K_OFFSET_POS_SET`
const OFFSET_SET: u8 = 2;
/// `K_OFFSET_NO_DATA`
const OFFSET_NO_DATA: u8 = 3;

/// Reads a table of contents as its bytes come.
#[derive(Default)]
pub struct TocReader {
    bytes: Vec<u8>,
    /// What has been understood of `bytes`.
    read: usize,
    header: Option<Header>,
    count: usize,
    entries: Vec<Entry>,
    /// How many more bytes of statistics are kept; nothing where all are.
    statistics: Option<usize>,
}

/// `None` where more bytes are needed.
type Partly<T> = Result<Option<T>>;

/// The value, or leaves the function because more bytes are needed.
macro_rules! whole {
    ($partly:expr) => {
        match $partly? {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

impl TocReader {
    /// Reads a table of contents that is there as a whole.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it is cut or is none, [`Unsupported`](ErrorKind::Unsupported) for
    /// an unknown version.
    pub fn read(bytes: &[u8]) -> Result<Toc> {
        let mut reader = Self::default();
        reader.push(bytes)?;
        reader.finish().map(|(toc, _)| toc)
    }

    /// Keeps at most so many bytes of statistics: they can be gathered anew, and are much of the table where tables are
    /// many. The other entries of this kind are left out.
    #[must_use]
    pub fn statistics_up_to(mut self, bytes: usize) -> Self {
        self.statistics = Some(bytes);
        self
    }

    /// Adds bytes. True once the table is whole.
    ///
    /// # Errors
    /// Those of [`TocReader::read`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        self.bytes.drain(..std::mem::take(&mut self.read));
        self.bytes.extend_from_slice(bytes);
        if self.header.is_none() {
            let mut cursor = Cursor { bytes: &self.bytes, at: 0, int_size: 4 };
            let Some(header) = header(&mut cursor)? else { return Ok(false) };
            cursor.int_size = header.int_size;
            let Some(count) = cursor.int()? else { return Ok(false) };
            self.count =
                usize::try_from(count).map_err(|_| no_archive("the number of its entries is absurd"))?;
            self.read = cursor.at;
            self.header = Some(header);
        }
        let Some(header) = &self.header else { return Ok(false) };
        while self.entries.len() < self.count {
            let mut cursor = Cursor { bytes: &self.bytes, at: self.read, int_size: header.int_size };
            let Some(entry) = entry(&mut cursor, header)? else { return Ok(false) };
            self.read = cursor.at;
            if is_kept(&entry, &mut self.statistics) {
                self.entries.push(entry);
            } else {
                self.count -= 1;
            }
        }
        Ok(true)
    }

    /// The table, and what was read beyond it.
    ///
    /// # Errors
    /// [`Integrity`](ErrorKind::Integrity) where it is not whole.
    pub fn finish(mut self) -> Result<(Toc, Vec<u8>)> {
        match self.header {
            Some(header) if self.entries.len() == self.count => {
                let beyond = self.bytes.split_off(self.read);
                Ok((Toc { header, entries: self.entries }, beyond))
            }
            _ => Err(no_archive("its table of contents is cut")),
        }
    }
}

/// Whether an entry is none of statistics, or one of as many bytes as are left.
fn is_kept(entry: &Entry, left: &mut Option<usize>) -> bool {
    let Some(left) = left.as_mut().filter(|_| entry.kind == STATISTICS_DATA) else { return true };
    let rest = left.checked_sub(entry.definition.as_ref().map_or(0, Vec::len));
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: u8,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// `ReadInt`
    fn int(&mut self) -> Partly<i32> {
        let Some(negative) = self.byte() else { return Ok(None) };
        let Some(bytes) = self.take(usize::from(self.int_size)) else { return Ok(None) };
        let mut value = 0_i64;
        for (i, byte) in bytes.iter().enumerate() {
            if i >= 4 && *byte != 0 {
                return Err(no_archive("a number in it is too large"));
            }
            value |= i64::from(*byte).checked_shl(8 * u32::try_from(i).unwrap_or(u32::MAX)).unwrap_or(0);
        }
        let value = if negative == 0 { value } else { -value };
        i32::try_from(value).map(Some).map_err(|_| no_archive("a number in it is too large"))
    }

    /// `ReadStr`
    fn text(&mut self) -> Partly<Option<Vec<u8>>> {
        let Some(length) = self.int()? else { return Ok(None) };
        let Ok(length) = usize::try_from(length) else { return Ok(Some(None)) };
        if length > LONGEST {
            return Err(no_archive("a text in it is too long"));
        }
        Ok(self.take(length).map(|text| Some(text.to_vec())))
    }
}

fn header(cursor: &mut Cursor<'_>) -> Partly<Header> {
    let Some(magic) = cursor.take(MAGIC.len()) else { return Ok(None) };
    if magic != MAGIC {
        return Err(no_archive("it does not begin like one"));
    }
    let Some([major, minor, revision, int_size, offset_size, format]) = cursor.take(6) else {
        return Ok(None);
    };
    if *major != 1 || !VERSIONS.contains(minor) {
        let message = format!("the archive has version {major}.{minor}");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("pgark reads archives of pg_dump 12 to 18, versions 1.14 to 1.16"));
    }
    if !(1..=8).contains(int_size) || *offset_size > 8 || ![CUSTOM, TAR, 5].contains(format) {
        return Err(no_archive("its head makes no sense"));
    }
    cursor.int_size = *int_size;
    let compression = if *minor >= 15 {
        let Some(method) = cursor.byte() else { return Ok(None) };
        i32::from(method)
    } else {
        whole!(cursor.int())
    };
    let mut created = [0; 7];
    for field in &mut created {
        *field = whole!(cursor.int());
    }
    Ok(Some(Header {
        version: (*major, *minor, *revision),
        int_size: *int_size,
        offset_size: *offset_size,
        format: *format,
        compression,
        created,
        database: whole!(cursor.text()),
        server_version: whole!(cursor.text()),
        dump_version: whole!(cursor.text()),
    }))
}

fn entry(cursor: &mut Cursor<'_>, header: &Header) -> Partly<Entry> {
    let mut entry = Entry { id: whole!(cursor.int()), ..Entry::default() };
    entry.has_data = whole!(cursor.int()) != 0;
    entry.catalog_oid = whole!(cursor.text());
    entry.oid = whole!(cursor.text());
    entry.name = whole!(cursor.text());
    let kind = whole!(cursor.text()).unwrap_or_default();
    entry.kind = String::from_utf8(kind).map_err(|_| no_archive("the kind of an entry is no text"))?;
    entry.section = whole!(cursor.int());
    entry.definition = whole!(cursor.text());
    entry.drop = whole!(cursor.text());
    entry.copy = whole!(cursor.text());
    entry.schema = whole!(cursor.text());
    entry.tablespace = whole!(cursor.text());
    entry.access_method = whole!(cursor.text());
    if header.minor() >= 16 {
        entry.relkind = whole!(cursor.int());
    }
    entry.owner = whole!(cursor.text());
    // Whether the table has OIDs: none has since PostgreSQL 12.
    whole!(cursor.text());
    while let Some(dependency) = whole!(cursor.text()) {
        let number = std::str::from_utf8(&dependency).ok().and_then(|text| text.parse().ok());
        entry.dependencies.push(number.ok_or_else(|| no_archive("a dependency is no number"))?);
    }
    entry.place = if header.format == CUSTOM {
        let Some(flag) = cursor.byte() else { return Ok(None) };
        let Some(offset) = cursor.take(usize::from(header.offset_size)) else { return Ok(None) };
        let offset = offset.iter().rev().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
        match flag {
            OFFSET_NO_DATA => Place::Nowhere,
            OFFSET_SET => Place::Custom(Some(offset)),
            _ => Place::Custom(None),
        }
    } else {
        match whole!(cursor.text()).filter(|name| !name.is_empty()) {
            Some(name) => Place::File(name),
            None => Place::Nowhere,
        }
    };
    Ok(Some(entry))
}

fn no_archive(why: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("this is no whole archive of pg_dump: {why}"))
        .with_hint("pg_restore -l FILE says whether PostgreSQL's own tool can read it")
}
