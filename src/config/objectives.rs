//! `[objectives]`: what is promised, and the status that is held against it.

use std::ops::Range;

use backup_core::repository::ClusterName;
use backup_core::status::{Objectives, Status};
use backup_core::{Error, ErrorKind, Result};
use jiff::{SignedDuration, Span, Timestamp};
use serde::Deserialize;
use toml::Spanned;

use super::Settings;

/// The table as it is written.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ObjectivesTable {
    rpo: Option<Spanned<String>>,
    rto: Option<Spanned<String>>,
    backup_age: Option<Spanned<String>>,
    verify_age: Option<Spanned<String>>,
    drill_age: Option<Spanned<String>>,
}

impl ObjectivesTable {
    /// Checks it; errors are placed by `at`.
    pub(super) fn settings(self, at: &dyn Fn(Range<usize>, &Error) -> Error) -> Result<Objectives> {
        let length = |value: Option<Spanned<String>>| -> Result<Option<SignedDuration>> {
            value.map(|value| length_of(value.get_ref()).map_err(|e| at(value.span(), &e))).transpose()
        };
        Ok(Objectives {
            rpo: length(self.rpo)?,
            rto: length(self.rto)?,
            backup_age: length(self.backup_age)?,
            verify_age: length(self.verify_age)?,
            drill_age: length(self.drill_age)?,
        })
    }
}

/// `15m`, `26h`, `8d`. A day has 24 hours here.
fn length_of(text: &str) -> Result<SignedDuration> {
    let wrong = || {
        Error::new(ErrorKind::Config, format!("{text:?} is not a length of time"))
            .with_hint("write 30s, 15m, 26h, 8d or 5w; m is minutes")
    };
    let span: Span = text.parse().map_err(|_| wrong())?;
    let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    if length.is_positive() { Ok(length) } else { Err(wrong()) }
}

impl Settings {
    /// How well a cluster is protected, held against the objectives.
    pub async fn status(&self, cluster: &ClusterName) -> Result<Status> {
        let repository = self.open_repository().await?;
        let own = self.clusters.get(cluster).and_then(|of| of.objectives);
        let objectives = own.unwrap_or(self.objectives);
        Status::of(&repository, cluster, &objectives, Timestamp::now()).await
    }
}

#[cfg(test)]
mod tests {
    use super::length_of;

    #[test]
    fn lengths_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("30s", 30),
            ("15m", 900),
            ("26h", 93_600),
            ("8d", 691_200),
            ("1d 2h", 93_600),
            ("5w", 3_024_000),
        ] {
            assert_eq!(length_of(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "soon", "-1h", "0s", "1mo"] {
            assert!(length_of(text).is_err(), "{text}");
        }
    }
}
