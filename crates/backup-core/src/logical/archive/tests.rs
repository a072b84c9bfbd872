use super::*;

fn toc(format: u8, minor: u8) -> Toc {
    let text = |s: &str| Some(s.as_bytes().to_vec());
    let place = if format == CUSTOM { Place::Custom(Some(77)) } else { Place::File(b"7.dat".to_vec()) };
    Toc {
        header: Header {
            version: (1, minor, 0),
            int_size: 4,
            offset_size: 8,
            format,
            compression: if minor < 15 { -1 } else { 3 },
            created: [1, 2, 3, 4, 5, 126, 0],
            database: text("shop"),
            server_version: text("18.6"),
            dump_version: text("18.6 (Debian)"),
        },
        entries: vec![
            Entry {
                id: 1,
                name: text("ENCODING"),
                kind: "ENCODING".to_owned(),
                section: PRE_DATA,
                definition: text("SET client_encoding = 'LATIN1';\n"),
                ..Entry::default()
            },
            Entry {
                id: 7,
                has_data: true,
                oid: text("16384"),
                name: Some(b"caf\xe9 (\"x\")".to_vec()),
                kind: TABLE_DATA.to_owned(),
                section: DATA,
                copy: text("COPY public.\"caf (\"\"x\"\")\" (a, \"b)\") FROM stdin;\n"),
                schema: text("public"),
                owner: text(""),
                relkind: if minor >= 16 { 114 } else { 0 },
                dependencies: vec![1, 5],
                place,
                ..Entry::default()
            },
        ],
    }
}

#[test]
fn what_is_written_is_read() {
    for format in [CUSTOM, TAR] {
        for minor in 14..=16 {
            let toc = toc(format, minor);
            assert_eq!(TocReader::read(&toc.to_bytes()).unwrap(), toc, "{format} {minor}");
        }
    }
}

#[test]
fn it_is_read_as_it_comes_and_what_follows_is_left() {
    let toc = toc(CUSTOM, 16);
    let mut bytes = toc.to_bytes();
    let length = bytes.len();
    bytes.extend(b"data");
    let mut reader = TocReader::default();
    for (i, byte) in bytes.iter().enumerate() {
        assert_eq!(reader.push(&[*byte]).unwrap(), i + 1 >= length);
    }
    assert_eq!(reader.finish().unwrap(), (toc, b"data".to_vec()));
}

#[test]
fn statistics_are_kept_as_far_as_asked_for() {
    let mut toc = toc(TAR, 16);
    let statistics = |id: i32, bytes: usize| {
        let definition = Some(vec![b' '; bytes]);
        Entry { id, kind: STATISTICS_DATA.to_owned(), section: DATA, definition, ..Entry::default() }
    };
    toc.entries.extend((100..900).map(|id| statistics(id, 10)));
    toc.entries.insert(2, statistics(1000, 3000));
    let kept = |most: usize| {
        let mut reader = TocReader::default().statistics_up_to(most);
        assert!(reader.push(&toc.to_bytes()).unwrap());
        reader.finish().unwrap().0.entries.iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    assert_eq!(TocReader::read(&toc.to_bytes()).unwrap(), toc);
    assert_eq!(kept(11_000).len(), 803);
    assert_eq!(kept(2000), [&[1, 7], &(100..300).collect::<Vec<_>>()[..]].concat());
    assert_eq!(kept(0), [1, 7]);
}

#[test]
fn a_cut_or_foreign_one_is_refused() {
    let bytes = toc(TAR, 16).to_bytes();
    for cut in [0, 3, 20, bytes.len() - 1] {
        assert!(TocReader::read(&bytes[..cut]).is_err());
    }
    assert!(TocReader::read(b"-- PostgreSQL database dump").is_err());
    let mut newer = bytes;
    newer[6] = 17;
    assert_eq!(TocReader::read(&newer).unwrap_err().kind(), crate::ErrorKind::Unsupported);
}

#[test]
fn names_are_quoted_and_columns_found() {
    let toc = toc(TAR, 16);
    let entry = &toc.entries[1];
    assert_eq!(entry.qualified(), b"\"public\".\"caf\xe9 (\"\"x\"\")\"");
    assert_eq!(entry.columns(), b"(a, \"b)\")");
    assert_eq!(toc.encoding().as_deref(), Some("LATIN1"));
    assert_eq!(toc.header.dump_major(), 18);
    let without = Entry { copy: Some(b"COPY public.empty  FROM stdin;\n".to_vec()), ..Entry::default() };
    assert_eq!(without.columns(), b"");
}

proptest::proptest! {
    #[test]
    fn bytes_of_any_kind_are_parsed(bytes: Vec<u8>, cut in 0_usize..400, at in 0_usize..400, value: u8) {
        let _ = TocReader::read(&bytes);
        let mut real = toc(CUSTOM, 16).to_bytes();
        let place = at.min(real.len() - 1);
        real[place] = value;
        real.truncate(real.len() - cut.min(real.len()));
        let _ = TocReader::read(&real);
    }
}
