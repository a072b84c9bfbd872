//! Pages against their checksums.

use crate::physical::pages::{Pages, tell};

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
        if !self.pages.are_sound(page, number) {
            self.wrong.push(number);
        }
    }

    /// What is wrong with the file.
    pub(super) fn finish(self, shown: &str, found: &mut Vec<String>) {
        if !self.rest.is_empty() {
            found.push(format!("{shown} ends within a page"));
        }
        tell(shown, &self.wrong, found);
    }
}
