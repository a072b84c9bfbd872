use serde::Serialize;

use crate::error::{Error, Result};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is as it should be.
    Good,
    /// It works, and something is to be known.
    Warning,
    /// Something will fail.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// What: `repository`, `server`, `archiving`, `restore`, `keys`.
    pub area: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found, in a line.
    pub found: String,
    /// What to do about it.
    pub mend: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// In the order in which it was looked at.
    pub checks: Vec<Checked>,
}

impl Report {
    /// How bad the worst of it is.
    pub fn worst(&self) -> Level {
        self.checks.iter().map(|check| check.level).max().unwrap_or(Level::Good)
    }

    /// Notes what is as it should be.
    pub fn good(&mut self, area: &'static str, found: impl Into<String>) {
        self.checks.push(Checked { area, level: Level::Good, found: found.into(), mend: None });
    }

    /// Notes what is to be known.
    pub fn warn(&mut self, area: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.add(area, Level::Warning, found.into(), mend.into());
    }

    /// Notes what will fail.
    pub fn bad(&mut self, area: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.add(area, Level::Bad, found.into(), mend.into());
    }

    fn add(&mut self, area: &'static str, level: Level, found: String, mend: String) {
        self.checks.push(Checked { area, level, found, mend: Some(mend) });
    }

    /// Notes an error as what will fail.
    pub fn failed(&mut self, area: &'static str, error: &Error) {
        let mend = error.hint().map(str::to_owned);
        self.checks.push(Checked { area, level: Level::Bad, found: error.with_causes(), mend });
    }

    /// The value, or nothing and a note of the error.
    pub fn take<T>(&mut self, area: &'static str, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed(area, &error)).ok()
    }
}
