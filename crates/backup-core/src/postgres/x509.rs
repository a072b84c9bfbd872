//! The few fields of a certificate that rustls does not give out: its public key whatever its version, and
//! the name in its subject (RFC 5280, section 4.1). Nothing is verified here.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;
/// `UTF8String`, `PrintableString` and `IA5String`.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Public key and subject of a certificate, in DER.
pub(super) struct Fields<'a> {
    /// `SubjectPublicKeyInfo`
    pub(super) public_key: &'a [u8],
    subject: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn parse(certificate: &'a [u8]) -> Option<Self> {
        let signed = Der(certificate).expect(SEQUENCE)?;
        let mut fields = Der(Der(signed.contents).expect(SEQUENCE)?.contents);
        // Certificates of version 1 do not say so.
        let mut serial = fields.next()?;
        if serial.tag == VERSION {
            serial = fields.next()?;
        }
        if serial.tag != INTEGER {
            return None;
        }
        let _signature = fields.expect(SEQUENCE)?;
        let _issuer = fields.expect(SEQUENCE)?;
        let _validity = fields.expect(SEQUENCE)?;
        let subject = fields.expect(SEQUENCE)?.contents;
        let public_key = fields.expect(SEQUENCE)?.whole;
        Some(Self { public_key, subject })
    }

    /// The first common name of the subject.
    fn common_name(&self) -> Option<&'a str> {
        let mut names = Der(self.subject);
        while let Some(name) = names.next() {
            let mut attributes = Der((name.tag == SET).then_some(name.contents)?);
            while let Some(attribute) = attributes.next() {
                let mut pair = Der(attribute.contents);
                let kind = pair.expect(OBJECT_IDENTIFIER)?;
                let value = pair.next()?;
                if kind.contents == COMMON_NAME {
                    let text = TEXTS.contains(&value.tag).then_some(value.contents)?;
                    return std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'));
                }
            }
        }
        None
    }

    /// Whether the subject names a host, as libpq compares it: `*.` at the beginning stands for one label
    /// (`wildcard_certificate_match` in fe-secure-common.c, PostgreSQL 18).
    pub(super) fn subject_names(&self, host: &str) -> bool {
        let Some(name) = self.common_name() else { return false };
        if name.eq_ignore_ascii_case(host) {
            return true;
        }
        let Some(domain) =
            name.strip_prefix('*').filter(|domain| domain.len() > 1 && domain.starts_with('.'))
        else {
            return false;
        };
        host.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty()
                && rest.eq_ignore_ascii_case(&domain[1..])
                && host.parse::<std::net::IpAddr>().is_err()
        })
    }
}

struct Element<'a> {
    tag: u8,
    contents: &'a [u8],
    whole: &'a [u8],
}

/// Elements that follow each other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        let (whole, _) = self.0.split_at(self.0.len() - rest.len());
        self.0 = rest;
        Some(Element { tag, contents, whole })
    }

    fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        self.next().filter(|element| element.tag == tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
        let mut der = vec![tag];
        match contents.len() {
            short @ 0..=0x7f => der.push(u8::try_from(short).unwrap()),
            long => {
                der.push(0x82);
                der.extend(u16::try_from(long).unwrap().to_be_bytes());
            }
        }
        der.extend(contents);
        der
    }

    fn certificate(version: bool, name: &[u8]) -> Vec<u8> {
        let attribute = |id: &[u8], value: &[u8]| {
            element(SET, &element(SEQUENCE, &[element(OBJECT_IDENTIFIER, id), element(0x0c, value)].concat()))
        };
        let subject =
            [attribute(&[0x55, 0x04, 0x0a], b"an organization"), attribute(COMMON_NAME, name)].concat();
        let mut fields = if version { element(VERSION, &element(INTEGER, &[2])) } else { Vec::new() };
        fields.extend(element(INTEGER, &[7]));
        for contents in [b"signature".as_slice(), b"issuer", b"validity", &subject, b"key"] {
            fields.extend(element(SEQUENCE, contents));
        }
        element(SEQUENCE, &[element(SEQUENCE, &fields), element(SEQUENCE, b"signed")].concat())
    }

    #[test]
    fn key_and_subject_are_found_in_every_version() {
        for version in [true, false] {
            let long = "n".repeat(300);
            let der = certificate(version, long.as_bytes());
            let fields = Fields::parse(&der).unwrap();
            assert_eq!(fields.public_key, element(SEQUENCE, b"key"));
            assert_eq!(fields.common_name(), Some(long.as_str()));
            // Whatever is cut off is no certificate.
            assert!((0..der.len()).all(|end| Fields::parse(&der[..end]).is_none()));
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let names =
            |name: &[u8], host: &str| Fields::parse(&certificate(true, name)).unwrap().subject_names(host);
        for (name, host) in
            [("db", "DB"), ("*.a.org", "x.a.org"), ("*.A.org", "x.a.ORG"), ("127.0.0.1", "127.0.0.1")]
        {
            assert!(names(name.as_bytes(), host), "{name} {host}");
        }
        for (name, host) in [
            ("db", "db2"),
            ("*.a.org", "a.org"),
            ("*.a.org", ".a.org"),
            ("*.a.org", "y.x.a.org"),
            ("*", "db"),
            ("*.", "db."),
            ("*a.org", "xa.org"),
            ("*.0.0.1", "127.0.0.1"),
            ("", ""),
        ] {
            assert!(names(name.as_bytes(), host) == (name == host), "{name} {host}");
        }
        assert!(!names(b"db\0.evil", "db") && !names(b"\xff", "\u{fffd}"));
    }
}
