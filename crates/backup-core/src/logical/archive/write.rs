use super::{CUSTOM, Entry, MAGIC, Place, Toc};

/// `K_OFFSET_POS_NOT_SET`
const OFFSET_NOT_SET: u8 = 1;
/// `K_OFFSET_POS_SET`
const OFFSET_SET: u8 = 2;
/// `K_OFFSET_NO_DATA`
const OFFSET_NO_DATA: u8 = 3;

/// The entries of one of [`Toc::pieces`].
const PIECE_ENTRIES: usize = 256;

/// What stands behind each entry.
#[derive(Clone, Copy)]
enum Offsets {
    /// Offsets in a custom archive.
    Custom,
    /// Names of files: a directory, or a tar.
    Files,
}

impl Toc {
    /// As bytes: the head and the table. [`Header::format`](super::Header::format) says what stands behind each
    /// entry.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.pieces().collect::<Vec<_>>().concat()
    }

    /// The same in pieces: of 20,000 tables it is 20 MB and more.
    pub fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let header = &self.header;
        let (major, minor, revision) = header.version;
        let mut out = Writer { bytes: MAGIC.to_vec(), int_size: header.int_size };
        out.bytes.extend([major, minor, revision, header.int_size, header.offset_size, header.format]);
        if minor >= 15 {
            out.bytes.push(u8::try_from(header.compression).unwrap_or_default());
        } else {
            out.int(header.compression);
        }
        header.created.iter().for_each(|field| out.int(*field));
        for text in [&header.database, &header.server_version, &header.dump_version] {
            out.text(text.as_deref());
        }
        out.int(i32::try_from(self.entries.len()).unwrap_or(i32::MAX));
        let offsets = if header.format == CUSTOM { Offsets::Custom } else { Offsets::Files };
        let entries = self.entries.chunks(PIECE_ENTRIES).map(move |entries| {
            let mut out = Writer { bytes: Vec::new(), int_size: header.int_size };
            for entry in entries {
                out.entry(entry, minor, offsets, usize::from(header.offset_size));
            }
            out.bytes
        });
        std::iter::once(out.bytes).chain(entries)
    }
}

/// `WriteInt`
pub(super) fn int(value: i32, int_size: u8) -> Vec<u8> {
    let magnitude = u64::from(value.unsigned_abs()).to_le_bytes();
    let mut bytes = vec![u8::from(value < 0)];
    bytes.extend((0..usize::from(int_size)).map(|i| magnitude.get(i).copied().unwrap_or(0)));
    bytes
}

struct Writer {
    bytes: Vec<u8>,
    int_size: u8,
}

impl Writer {
    fn int(&mut self, value: i32) {
        self.bytes.extend(int(value, self.int_size));
    }

    /// `WriteStr`
    fn text(&mut self, text: Option<&[u8]>) {
        let Some(text) = text else { return self.int(-1) };
        self.int(i32::try_from(text.len()).unwrap_or(i32::MAX));
        self.bytes.extend_from_slice(text);
    }

    fn entry(&mut self, entry: &Entry, minor: u8, offsets: Offsets, offset_size: usize) {
        self.int(entry.id);
        self.int(i32::from(entry.has_data));
        self.text(entry.catalog_oid.as_deref());
        self.text(entry.oid.as_deref());
        self.text(entry.name.as_deref());
        self.text(Some(entry.kind.as_bytes()));
        self.int(entry.section);
        for text in [
            &entry.definition,
            &entry.drop,
            &entry.copy,
            &entry.schema,
            &entry.tablespace,
            &entry.access_method,
        ] {
            self.text(text.as_deref());
        }
        if minor >= 16 {
            self.int(entry.relkind);
        }
        self.text(entry.owner.as_deref());
        self.text(Some(b"false"));
        for dependency in &entry.dependencies {
            self.text(Some(dependency.to_string().as_bytes()));
        }
        self.text(None);
        match offsets {
            // NULL instead of an empty name makes pg_restore crash.
            Offsets::Files => self.text(Some(match &entry.place {
                Place::File(name) => name,
                _ => b"",
            })),
            Offsets::Custom => {
                let (flag, offset) = match &entry.place {
                    Place::Custom(Some(offset)) => (OFFSET_SET, *offset),
                    Place::Custom(None) => (OFFSET_NOT_SET, 0),
                    _ => (OFFSET_NO_DATA, 0),
                };
                self.bytes.push(flag);
                self.bytes.extend_from_slice(&offset.to_le_bytes()[..offset_size.min(8)]);
            }
        }
    }
}
