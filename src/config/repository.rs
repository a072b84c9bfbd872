//! The places of a repository: `[repository]`, and `[copy.NAME]` for each further one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use backup_core::{Error, ErrorKind, Result, Store};
use backup_storage::{Replicas, StoreOptions, open};
use serde::Deserialize;
use toml::Spanned;

use super::{Settings, place};

/// `[repository]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RepositoryTable {
    url: Option<Spanned<String>>,
    endpoint: Option<Spanned<String>>,
    region: Option<Spanned<String>>,
    path_style: Option<Spanned<bool>>,
    profile: Option<Spanned<String>>,
    account: Option<Spanned<String>>,
    storage_class: Option<Spanned<ClassesTable>>,
    sse: Option<Spanned<String>>,
    kms_key: Option<Spanned<String>>,
    checksum: Option<Spanned<String>>,
    conditional_create: Option<Spanned<bool>>,
    timeout: Option<Spanned<u32>>,
    retries: Option<Spanned<u32>>,
    pub(super) min_copies: Option<Spanned<usize>>,
}

/// `[copy.NAME]`
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct CopyTable(RepositoryTable);

/// One class for parts, or one for each kind.
#[derive(Deserialize)]
#[serde(untagged)]
enum ClassesTable {
    Parts(String),
    ByKind(BTreeMap<String, String>),
}

/// A further place of the repository.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CopySettings {
    /// Its URL.
    pub url: String,
    /// How its store is reached.
    pub options: StoreOptions,
}

/// A place as a table says it.
pub(super) struct PlaceOf {
    pub(super) url: Option<String>,
    pub(super) options: StoreOptions,
}

type Wrong = (Range<usize>, Error);

impl RepositoryTable {
    /// The place and its options; relative folders are below `folder`.
    pub(super) fn read(self, folder: &Path) -> Result<PlaceOf, Wrong> {
        let url = self.url.map(|url| place::repository_below(folder, url.into_inner()));
        let mut options = StoreOptions::default();
        let text_of = |v: Option<Spanned<String>>| v.map(|v| (v.span(), v.into_inner()));
        let truth_of = |v: Option<Spanned<bool>>| v.map(|v| (v.span(), v.into_inner().to_string()));
        let number_of = |v: Option<Spanned<u32>>| v.map(|v| (v.span(), v.into_inner().to_string()));
        for (option, value) in [
            ("endpoint", text_of(self.endpoint)),
            ("region", text_of(self.region)),
            ("path_style", truth_of(self.path_style)),
            ("profile", text_of(self.profile)),
            ("account", text_of(self.account)),
            ("sse", text_of(self.sse)),
            ("kms_key", text_of(self.kms_key)),
            ("checksum", text_of(self.checksum)),
            ("conditional_create", truth_of(self.conditional_create)),
            ("timeout", number_of(self.timeout)),
            ("retries", number_of(self.retries)),
        ] {
            if let Some((span, value)) = value {
                options.set(option, &value).map_err(|e| (span, e))?;
            }
        }
        if let Some(classes) = self.storage_class {
            let span = classes.span();
            let classes = match classes.into_inner() {
                ClassesTable::Parts(class) => BTreeMap::from([("parts".to_owned(), class)]),
                ClassesTable::ByKind(classes) => classes,
            };
            for (kind, class) in classes {
                options.storage_class.set(&kind, &class).map_err(|e| (span.clone(), e))?;
            }
        }
        Ok(PlaceOf { url, options })
    }
}

impl CopyTable {
    pub(super) fn read(self, folder: &Path) -> Result<CopySettings, (Option<Range<usize>>, Error)> {
        if let Some(min) = &self.0.min_copies {
            let error = Error::new(ErrorKind::Config, "min_copies stands in [repository]");
            return Err((Some(min.span()), error));
        }
        let place = self.0.read(folder).map_err(|(span, e)| (Some(span), e))?;
        let url = place.url.ok_or_else(|| (None, Error::new(ErrorKind::Config, "a copy needs a url")))?;
        Ok(CopySettings { url, options: place.options })
    }
}

impl Settings {
    /// Names the places of the repository anew: those of the file no longer count. Options of a place that the file
    /// names stay with it, and others have those of its `[repository]`.
    pub fn set_places(&mut self, urls: &[String]) {
        let Some((first, others)) = urls.split_first() else { return };
        let known = self.places();
        let options_of = |url: &String| {
            let found = known.iter().find(|(place, _)| place == url);
            found.map_or_else(|| self.store.clone(), |(_, options)| options.clone())
        };
        let copies: Vec<CopySettings> =
            others.iter().map(|url| CopySettings { url: url.clone(), options: options_of(url) }).collect();
        self.store = options_of(first);
        self.repository = Some(first.clone());
        self.copies = copies;
        // What must be met by more places than there are is met by all.
        self.min_copies = self.min_copies.map(|min| min.min(urls.len()));
    }

    /// The URLs of the places of the repository, and how they are reached.
    pub fn places(&self) -> Vec<(String, StoreOptions)> {
        let first = self.repository.iter().map(|url| (url.clone(), self.store.clone()));
        first.chain(self.copies.iter().map(|copy| (copy.url.clone(), copy.options.clone()))).collect()
    }

    /// Checks a number of copies that must have what is written.
    pub(super) fn check_min_copies(&self, min: usize) -> Result<()> {
        let count = self.copies.len() + 1;
        if (1..=count).contains(&min) {
            return Ok(());
        }
        let message = format!("min_copies is from 1 to {count}, the number of places, not {min}");
        Err(Error::new(ErrorKind::Config, message)
            .with_hint("each place has a table of its own: [repository], and [copy.NAME] for a further one"))
    }

    /// Opens the store of the repository: of all its places.
    pub fn store(&self) -> Result<Arc<dyn Store>> {
        let mut stores =
            self.places().iter().map(|(url, options)| open(url, options)).collect::<Result<Vec<_>>>()?;
        if self.repository.is_none() {
            return Err(Error::new(ErrorKind::Usage, "no repository is given")
                .with_hint("give --repo URL (or PGARK_REPO), or url in [repository] of pgark.toml"));
        }
        if stores.len() == 1
            && let Some(only) = stores.pop()
        {
            return Ok(only);
        }
        let replicas = Replicas::new(stores, self.min_copies)?;
        Ok(Arc::new(match self.patience {
            Some(patience) => replicas.patience(patience),
            None => replicas,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, "pgark.toml", Path::new("/etc/pgark"))
    }

    #[test]
    fn a_repository_has_places() {
        let settings = parse(
            r#"
            [repository]
            url = "./here"
            min_copies = 2
            [copy.offsite]
            url = "s3://acme/prod"
            timeout = 5
            storage_class = { parts = "GLACIER_IR", wal = "STANDARD_IA" }
            [copy.third]
            url = "/mnt/backups"
            "#,
        )
        .unwrap();
        let urls: Vec<String> = settings.places().into_iter().map(|(url, _)| url).collect();
        assert_eq!(urls, ["/etc/pgark/./here", "s3://acme/prod", "/mnt/backups"]);
        assert_eq!(settings.copies[0].options.retry.timeout.as_secs(), 5);
        assert!(
            !settings.copies[0].options.storage_class.is_empty() && settings.store.storage_class.is_empty()
        );
        assert_eq!(settings.min_copies, Some(2));

        // What is named on the command line counts alone, with the options of the file.
        let mut settings = settings;
        settings.set_places(&["s3://acme/prod".to_owned()]);
        assert_eq!((settings.places().len(), settings.min_copies), (1, Some(1)));
        assert_eq!(settings.store.retry.timeout.as_secs(), 5);
    }

    #[test]
    fn errors_point_at_the_line() {
        for (text, line, word) in [
            ("[repository]\nurl = \"a\"\nmin_copies = 2\n", 3, "from 1 to 1"),
            ("[repository]\nurl = \"a\"\n[copy.b]\nregion = \"x\"\n", 3, "needs a url"),
            ("[repository]\nurl = \"a\"\n[copy.b]\nurl = \"b\"\nmin_copies = 1\n", 5, "stands in"),
            ("[repository]\nurl = \"a\"\nstorage_class = { index = \"X\" }\n", 3, "no kind"),
            ("[copy.b]\nurl = \"b\"\nurll = \"c\"\n", 3, "urll"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let shown = error.to_string();
            assert!(shown.starts_with(&format!("pgark.toml:{line}:")) && shown.contains(word), "{shown}");
        }
    }
}
