//! Pages of relations: what they say of themselves (`bufpage.h`, `checksum_impl.h`, PostgreSQL 15 to 18).

use super::Lsn;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const BASES: [u32; LANES] = [
    0x5b1f_36e9,
    0xb852_5960,
    0x02ab_50aa,
    0x1de6_6d2a,
    0x79ff_467a,
    0x9bb9_f8a3,
    0x217e_7cd2,
    0x83e1_3d2c,
    0xf8d4_474f,
    0xe39e_b970,
    0x42c6_ae16,
    0x9932_16fa,
    0x7b09_3b5d,
    0x98da_ff3c,
    0xf718_902a,
    0x0b1c_9cdb,
    0xe58f_764b,
    0x1876_36bc,
    0x5d7b_3bb1,
    0xe73d_e7de,
    0x92be_c979,
    0xcca6_c0b2,
    0x304a_0979,
    0x85aa_43d4,
    0x7831_25bb,
    0x6ca8_eaa2,
    0xe407_eac6,
    0x4b5c_fc3e,
    0x9fbf_8c76,
    0x15ca_20be,
    0xf2ca_9fd3,
    0x959b_d756,
];
/// Length of a page's header.
const HEADER: usize = 24;

/// A page, a block of a relation's file. Numbers are in the server's byte order, which is taken for little-endian.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a>(&'a [u8]);

impl<'a> Page<'a> {
    /// Nothing where it is no whole page.
    pub(crate) fn of(block: &'a [u8]) -> Option<Self> {
        (block.len() > HEADER && block.len().is_multiple_of(4 * LANES)).then_some(Self(block))
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) | u32::from(self.half(at + 2)) << 16
    }

    /// Whether it was only ever extended: nothing has been put on it.
    pub(crate) fn is_new(&self) -> bool {
        self.half(14) == 0
    }

    /// The WAL record behind that of its last change.
    pub(crate) fn lsn(&self) -> Lsn {
        Lsn(u64::from(self.word(0)) << 32 | u64::from(self.word(4)))
    }

    /// Whether its checksum is right, where it is the block of this number in its relation.
    pub(crate) fn has_its_checksum(&self, number: u32) -> bool {
        self.half(8) == self.checksum(number)
    }

    /// `pg_checksum_page`
    fn checksum(&self, number: u32) -> u16 {
        let mut sums = BASES;
        let mix = |sum: u32, value: u32| {
            let mixed = sum ^ value;
            mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
        };
        for (row, words) in self.0.chunks_exact(4 * LANES).enumerate() {
            for (lane, (sum, word)) in sums.iter_mut().zip(words.chunks_exact(4)).enumerate() {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                // The checksum itself counts as zero: the lower half of the third word.
                let word = if (row, lane) == (0, 2) { word & 0xffff_0000 } else { word };
                *sum = mix(*sum, word);
            }
        }
        for _ in 0..2 {
            for sum in &mut sums {
                *sum = mix(*sum, 0);
            }
        }
        let sum = sums.iter().fold(0, |all, sum| all ^ sum) ^ number;
        u16::try_from(sum % 65535 + 1).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of `CREATE TABLE t AS SELECT 7 AS a, 'hello' AS b`, as PostgreSQL 15 wrote it.
    fn page() -> Vec<u8> {
        let mut page = vec![0; 8192];
        for (at, bytes) in [
            (4, &b"\x58\x37\x76\x01\x7e\xcc\x00\x00\x1c\x00\xd8\x1f\x00\x20\x04\x20"[..]),
            (24, b"\xd8\x9f\x44"),
            (8152, b"\xd4\x02"),
            (8160, b"\x05"),
            (8168, b"\x01\x00\x02\x00\x02\x08\x18\x00\x07\x00\x00\x00\x0dhello"),
        ] {
            page[at..at + bytes.len()].copy_from_slice(bytes);
        }
        page
    }

    #[test]
    fn checksums_are_those_of_the_server() {
        let mut bytes = page();
        let page = Page::of(&bytes).unwrap();
        assert!(page.has_its_checksum(0) && !page.has_its_checksum(1) && !page.is_new());
        assert_eq!(page.lsn(), Lsn(0x0176_3758));
        bytes[8180] ^= 1;
        assert!(!Page::of(&bytes).unwrap().has_its_checksum(0));
        assert!(Page::of(&[0; 8192]).unwrap().is_new());
        assert!(Page::of(&[0; 100]).is_none() && Page::of(&[]).is_none());
    }
}
