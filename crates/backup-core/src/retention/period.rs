use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, SpanFieldwise, Timestamp};

use crate::error::{Error, ErrorKind, Result};

/// A length of time as people say it: `30d`, `12w`, `6mo`, `1y`, `36h`, or `1y 6mo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(SpanFieldwise);

impl Period {
    /// The moment so long before another. A day is one of the calendar in this zone.
    pub fn before(&self, time: Timestamp, zone: &TimeZone) -> Timestamp {
        let before = time.to_zoned(zone.clone()).checked_sub(self.0.0);
        before.map_or(Timestamp::MIN, |before| before.timestamp())
    }
}

impl Period {
    /// The moment so long after another.
    pub fn after(&self, time: Timestamp, zone: &TimeZone) -> Timestamp {
        let after = time.to_zoned(zone.clone()).checked_add(self.0.0);
        after.map_or(Timestamp::MAX, |after| after.timestamp())
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(ErrorKind::Usage, format!("{text:?} is not a length of time: {why}"))
                .with_hint("write 36h, 30d, 12w, 6mo, 1y, or several of them: 1y 6mo")
        };
        let span: Span = text.parse().map_err(|_| wrong("it cannot be read"))?;
        if span.is_negative() || span.is_zero() {
            return Err(wrong("it must be longer than nothing"));
        }
        let seconds = [
            i64::from(span.get_minutes() != 0),
            span.get_seconds(),
            span.get_milliseconds(),
            span.get_microseconds(),
            span.get_nanoseconds(),
        ];
        if seconds.iter().any(|n| *n != 0) {
            return Err(wrong("nothing shorter than an hour counts, and m means minutes; months are mo"));
        }
        Ok(Self(span.fieldwise()))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0.0)
    }
}

impl serde::Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
