//! Pages against their checksums.

use crate::physical::check::Pages;
use crate::postgres::Page;

/// More pages of one file are counted, and not named.
const NAMED: usize = 3;

/// Which numbers pages have that come one behind the other.
pub(super) enum Numbers {
    /// All from one on.
    From(u32),
    /// These.
    Listed(std::vec::IntoIter<u32>),
}

impl Numbers {
    fn next(&mut self) -> Option<u32> {
        match self {
            Self::From(number) => {
                let next = *number;
                *number = number.wrapping_add(1);
                Some(next)
            }
            Self::Listed(numbers) => numbers.next(),
        }
    }
}

/// Compares the pages of a file as they come.
pub(super) struct PageLook {
    pages: Pages,
    numbers: Numbers,
    /// The beginning of a page whose end has not come.
    rest: Vec<u8>,
    wrong: Vec<u32>,
}

impl PageLook {
    pub(super) fn new(pages: Pages, numbers: Numbers) -> Self {
        Self { pages, numbers, rest: Vec::new(), wrong: Vec::new() }
    }

    pub(super) fn take(&mut self, mut data: &[u8]) {
        let length = self.pages.bytes as usize;
        if !self.rest.is_empty() {
            let (first, behind) = data.split_at(data.len().min(length - self.rest.len()));
            self.rest.extend_from_slice(first);
            data = behind;
            if self.rest.len() < length {
                return;
            }
            let page = std::mem::take(&mut self.rest);
            self.look(&page);
        }
        let whole = data.chunks_exact(length);
        self.rest.extend_from_slice(whole.remainder());
        for page in whole {
            self.look(page);
        }
    }

    fn look(&mut self, page: &[u8]) {
        // More pages than were named are told by whoever counts them.
        let Some(number) = self.numbers.next() else { return };
        let sound = Page::of(page)
            .is_some_and(|p| p.is_new() || p.lsn() >= self.pages.start || p.has_its_checksum(number));
        if !sound {
            self.wrong.push(number);
        }
    }

    /// What is wrong with the file.
    pub(super) fn finish(self, shown: &str, found: &mut Vec<String>) {
        if !self.rest.is_empty() {
            found.push(format!("{shown} ends within a page"));
        }
        if let Some(more) = self.wrong.len().checked_sub(NAMED).filter(|more| *more > 0) {
            found.push(format!("{shown}: {more} more pages without their checksums"));
        }
        for number in self.wrong.iter().take(NAMED) {
            found.push(format!("{shown}: page {number} does not have its checksum"));
        }
    }
}
