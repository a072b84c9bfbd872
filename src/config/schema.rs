use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::logical::Selection;
use backup_core::postgres::Via;
use backup_core::repository::ClusterName;
use backup_core::status::Objectives;
use backup_core::{Error, ErrorKind, Result, codec};
use backup_storage::StoreOptions;
use serde::Deserialize;
use toml::Spanned;

use super::drill::{DrillSettings, DrillTable};
use super::hooks::Hooks;
use super::objectives::ObjectivesTable;
use super::place;
use super::repository::{CopySettings, CopyTable, RepositoryTable};
use super::retention::{RetentionSettings, RetentionTable};

/// Where the file is looked for when none is named: the first that exists.
pub const DEFAULT_PATHS: &[&str] = &["pgark.toml", "/etc/pgark/pgark.toml"];

/// The file as it is written.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    repository: RepositoryTable,
    #[serde(default)]
    copy: BTreeMap<Spanned<String>, CopyTable>,
    #[serde(default)]
    encryption: EncryptionTable,
    #[serde(default)]
    backup: BackupTable,
    #[serde(default)]
    restore: RestoreTable,
    #[serde(default)]
    host: HostTable,
    retention: Option<Spanned<RetentionTable>>,
    #[serde(default)]
    objectives: ObjectivesTable,
    #[serde(default)]
    drill: DrillTable,
    #[serde(default)]
    cluster: BTreeMap<Spanned<String>, ClusterTable>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct EncryptionTable {
    #[serde(default)]
    recipients: Vec<Spanned<String>>,
    identity_file: Option<PathBuf>,
    passphrase_file: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct BackupTable {
    jobs: Option<Spanned<usize>>,
    compress: Option<Spanned<String>>,
    pg_bin: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RestoreTable {
    before: Option<String>,
    after: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct HostTable {
    state: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterTable {
    db: String,
    via: Option<Spanned<String>>,
    #[serde(default)]
    select: Selection,
    objectives: Option<ObjectivesTable>,
    retention: Option<Spanned<RetentionTable>>,
}

/// How a frontend encrypts and decrypts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionSettings {
    /// Who can read new backups.
    pub recipients: Vec<String>,
    /// What opens backups.
    pub identity_files: Vec<PathBuf>,
    /// File with a passphrase, instead of both.
    pub passphrase_file: Option<PathBuf>,
}

/// How a cluster is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterSettings {
    /// Connection settings.
    pub db: String,
    /// What they are seen from, and where the client tools run; this host by default.
    pub via: Option<Via>,
    /// What of its database is dumped.
    pub select: Selection,
    /// What is promised of it, where that differs.
    pub objectives: Option<Objectives>,
    /// Which of its backups stay, where it has rules of its own.
    pub retention: Option<RetentionSettings>,
}

/// Everything that a frontend needs to know.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Settings {
    /// The repository's URL.
    pub repository: Option<String>,
    /// How its store is reached.
    pub store: StoreOptions,
    /// The other places where it is kept.
    pub copies: Vec<CopySettings>,
    /// How many places must have what is written; all but one by default.
    pub min_copies: Option<usize>,
    /// How long one of several places may take for one request; 2 minutes by default.
    pub patience: Option<Duration>,
    /// Keys.
    pub encryption: EncryptionSettings,
    /// How much is done at once.
    pub jobs: Option<usize>,
    /// `zstd:3`
    pub compress: Option<String>,
    /// Folder of PostgreSQL's client tools.
    pub pg_bin: Option<PathBuf>,
    /// Commands around a restore.
    pub hooks: Hooks,
    /// Folder of what is kept on this host from one run to the next.
    pub state: Option<PathBuf>,
    /// Which backups stay.
    pub retention: Option<RetentionSettings>,
    /// What is promised.
    pub objectives: Objectives,
    /// Drills.
    pub drill: DrillSettings,
    /// Goes before what the file says of a cluster.
    pub via: Option<Via>,
    /// The clusters of the file.
    pub clusters: BTreeMap<ClusterName, ClusterSettings>,
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config), pointing at the line.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::new(ErrorKind::Config, format!("the configuration {} cannot be read", path.display()))
                .with_hint("name a readable file, or leave --config and PGARK_CONFIG out")
                .caused_by(e)
        })?;
        Self::parse(&text, &path.display().to_string(), path.parent().unwrap_or(Path::new(".")))
    }

    /// Reads the text of a file. `name` stands in errors; relative paths in it are below `folder`.
    pub fn parse(text: &str, name: &str, folder: &Path) -> Result<Self> {
        let file: File =
            toml::from_str(text).map_err(|e| place::wrong(text, name, e.span(), e.message(), None))?;
        let at = |span: std::ops::Range<usize>, e: &Error| {
            place::wrong(text, name, Some(span), &e.to_string(), e.hint())
        };
        let below = |path: &Path| folder.join(path);

        let mut settings = Self { repository: None, ..Self::default() };
        let min_copies = file.repository.min_copies.as_ref().map(|min| (*min.get_ref(), min.span()));
        let place = file.repository.read(folder).map_err(|(span, e)| at(span, &e))?;
        (settings.repository, settings.store) = (place.url, place.options);
        for (name, copy) in file.copy {
            let place = copy.read(folder).map_err(|(span, e)| at(span.unwrap_or_else(|| name.span()), &e))?;
            settings.copies.push(place);
        }
        if let Some((min, span)) = min_copies {
            settings.check_min_copies(min).map_err(|e| at(span, &e))?;
            settings.min_copies = Some(min);
        }
        for recipient in file.encryption.recipients {
            backup_core::crypt::Age::new().to(recipient.get_ref()).map_err(|e| at(recipient.span(), &e))?;
            settings.encryption.recipients.push(recipient.into_inner());
        }
        settings.encryption.identity_files.extend(file.encryption.identity_file.map(|p| below(&p)));
        if let Some(path) = file.encryption.passphrase_file {
            if !settings.encryption.recipients.is_empty() {
                let error = Error::new(ErrorKind::Config, "a passphrase cannot stand beside recipients");
                return Err(at(path.span(), &error));
            }
            settings.encryption.passphrase_file = Some(below(path.get_ref()));
        }
        if let Some(jobs) = file.backup.jobs {
            if *jobs.get_ref() == 0 {
                return Err(at(
                    jobs.span(),
                    &Error::new(ErrorKind::Config, "there must be at least one job"),
                ));
            }
            settings.jobs = Some(jobs.into_inner());
        }
        if let Some(compress) = file.backup.compress {
            codec::parse(compress.get_ref()).map_err(|e| at(compress.span(), &e))?;
            settings.compress = Some(compress.into_inner());
        }
        settings.pg_bin = file.backup.pg_bin.map(|p| below(&p));
        settings.hooks = Hooks { before: file.restore.before, after: file.restore.after };
        settings.state = file.host.state.map(|p| below(&p));
        let retention = |table: Option<Spanned<RetentionTable>>| {
            table.map(|table| RetentionTable::settings(table, &at)).transpose()
        };
        settings.retention = retention(file.retention)?;
        settings.objectives = file.objectives.settings(&at)?;
        settings.drill = file.drill.settings(below);
        for (cluster, table) in file.cluster {
            let name: ClusterName = cluster.get_ref().parse().map_err(|e| at(cluster.span(), &e))?;
            let via =
                table.via.map(|via| via.get_ref().parse().map_err(|e| at(via.span(), &e))).transpose()?;
            let retention = retention(table.retention)?;
            let objectives = table.objectives.map(|of| of.settings(&at)).transpose()?;
            settings.clusters.insert(
                name,
                ClusterSettings { db: table.db, via, select: table.select, objectives, retention },
            );
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, "pgark.toml", Path::new("/etc/pgark"))
    }

    #[test]
    fn a_whole_file() {
        let settings = parse(
            r#"
            [repository]
            url = "s3://acme/prod"
            endpoint = "https://minio.example:9000"
            timeout = 5
            [encryption]
            recipients = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]
            identity_file = "key.txt"
            [backup]
            jobs = 3
            compress = "zstd:9"
            [host]
            state = "state"
            [cluster.shop]
            db = "service=shop"
            via = "docker:shop-db"
            "#,
        )
        .unwrap();
        assert_eq!(settings.state, Some(PathBuf::from("/etc/pgark/state")));
        assert_eq!(settings.repository.as_deref(), Some("s3://acme/prod"));
        assert_eq!(settings.store.retry.timeout.as_secs(), 5);
        assert_eq!(settings.encryption.identity_files, [PathBuf::from("/etc/pgark/key.txt")]);
        let shop = settings.clusters.values().next().unwrap();
        assert_eq!(shop.db, "service=shop");
        assert_eq!(shop.via.as_ref().unwrap().to_string(), "docker:shop-db");
    }

    #[test]
    fn errors_point_at_the_line() {
        for (text, line, word) in [
            ("[repository]\nurl = 7\n", 2, "string"),
            ("[repository]\nulr = \"x\"\n", 2, "ulr"),
            ("[backup]\n\ncompress = \"brotli\"\n", 3, "brotli"),
            ("[backup]\njobs = 0\n", 2, "one job"),
            ("[encryption]\nrecipients = [\n  \"age1x\",\n]\n", 3, "not a recipient"),
            ("[cluster.\"a/b\"]\ndb = \"\"\n", 1, "name for a cluster"),
            ("[cluster.a]\ndb = \"\"\nvia = \"podman:x\"\n", 3, "\"podman\" is not known"),
            ("[repository]\nsse = \"rot13\"\n", 2, "sse is"),
            ("[retention]\nkeep_lots = 7\n", 2, "keep_lots"),
            ("[retention]\nkeep_daily = -7\n", 2, "u32"),
            ("[retention]\n\nkeep_within = \"6m\"\n", 3, "months are mo"),
            ("[retention]\nkeep_last = 1\nrecovery_window = \"soon\"\n", 3, "not a length of time"),
            ("[retention]\nkeep_last = 1\ntime_zone = \"Mars/Olympus\"\n", 3, "Mars/Olympus"),
            ("[retention]\nkeep_last = 1\nmax_share = 101\n", 3, "percent"),
            ("[retention]\nminimum = 3\n", 1, "no rule"),
            ("[objectives]\nrpo = \"soon\"\n", 2, "not a length of time"),
            ("[cluster.a]\ndb = \"\"\n[cluster.a.objectives]\nrto = \"-1h\"\n", 4, "not a length of time"),
            ("[cluster.a]\ndb = \"\"\n[cluster.a.retention]\nkeep_weekly = 0\n", 4, "at least 1"),
            ("[backup\n", 1, ""),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let shown = error.to_string();
            assert!(shown.starts_with(&format!("pgark.toml:{line}:")), "{shown}");
            assert!(shown.contains(word), "{shown}");
        }
    }

    #[test]
    fn a_relative_repository_is_beside_the_file() {
        let settings = parse("[repository]\nurl = \"./backups\"\n").unwrap();
        assert_eq!(settings.repository.as_deref(), Some("/etc/pgark/./backups"));
    }
}
