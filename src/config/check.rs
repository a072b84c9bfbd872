//! Everything that would make the next backup or restore fail, looked for beforehand.

use std::sync::Arc;

use backup_core::check::{Report, Wanted, check_repository, check_server, check_tools};
use backup_core::physical::Parent;
use backup_core::repository::{Catalog, ClusterName};
use backup_core::{Encryptor, ErrorKind, Repository};

use super::Settings;

/// What is looked at. Where neither kind of backup is named, those are looked at that the cluster has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckOptions {
    /// Logical backups are to be made.
    pub logical: bool,
    /// Physical ones are.
    pub physical: bool,
}

impl Settings {
    /// Looks at the repository, the keys, the server that `db` reaches (else the cluster's), and this host.
    pub async fn check(&self, cluster: &ClusterName, db: Option<&str>, options: CheckOptions) -> Report {
        let mut report = Report::default();
        if self.encryption.recipients.is_empty() && self.encryption.passphrase_file.is_none() {
            report.warn(
                "keys",
                "backups are not encrypted",
                "pgark key generate makes a key; [encryption] recipients in pgark.toml uses it",
            );
        } else if report.take("keys", self.writer()).is_some() {
            report.good("keys", "backups are encrypted");
        }
        let reader = report.take("keys", self.reader()).flatten();
        let catalog = self.check_repository(cluster, reader.map(|age| Arc::new(age) as _), &mut report).await;
        let has = |kind: &str| catalog.as_ref().is_some_and(|(_, c)| c.backups().any(|b| b.kind == kind));
        let none = !options.logical && !options.physical;
        let wanted = Wanted {
            logical: options.logical || none && (has("logical") || !has("physical")),
            physical: options.physical || none && has("physical"),
        };
        self.check_source(cluster, db, wanted, &mut report).await;
        if let Some((repository, catalog)) = &catalog {
            check_tools(catalog, &self.tools(), &mut report);
            if wanted.physical {
                self.check_host(repository, catalog, &mut report);
            }
        }
        report
    }

    async fn check_repository(
        &self,
        cluster: &ClusterName,
        reader: Option<Arc<dyn Encryptor>>,
        report: &mut Report,
    ) -> Option<(Repository, Catalog)> {
        let repository = match self.open_repository().await {
            Err(error) if error.kind() == ErrorKind::NotARepository => {
                report.warn("repository", error.to_string(), "pgark init, or the first backup, makes one");
                return None;
            }
            opened => report.take("repository", opened)?,
        };
        check_repository(&repository, cluster, reader, report).await;
        let catalog = Catalog::load(&repository, cluster).await.ok()?;
        Some((repository, catalog))
    }

    async fn check_source(
        &self,
        cluster: &ClusterName,
        db: Option<&str>,
        wanted: Wanted,
        report: &mut Report,
    ) {
        let Some(connection) = report.take("server", self.connection(cluster, db)) else { return };
        check_server(&connection, wanted, report).await;
        if wanted.logical {
            match self.dumper(connection).preview().await {
                Ok(preview) => report.good("server", format!("pg_dump {} fits it", preview.pg_dump_version)),
                // That there is no connection is said already.
                Err(error) if report.checks.iter().any(|check| check.found.contains(&error.to_string())) => {}
                Err(error) => report.failed("server", &error),
            }
        }
    }

    /// Whether the next increment can be one.
    fn check_host(&self, repository: &Repository, catalog: &Catalog, report: &mut Report) {
        let Some(state) = report.take("host", self.host_state(repository, catalog.cluster())) else { return };
        if let Some(Parent::None(why)) = report.take("host", Parent::choose(catalog, &state, None)) {
            report.warn(
                "host",
                format!("the next incremental backup would be a full one: {why}"),
                "nothing: the full one makes the next increments possible. Run backups on one host, and keep its state folder",
            );
        }
    }
}
