//! From settings to the engine's parts.

use std::path::Path;

use backup_core::crypt::{Age, IdentityFile};
use backup_core::logical::{Dump, Load, Selection, ServerDump, ServerLoad};
use backup_core::postgres::{ConnInfo, Tools};
use backup_core::repository::ClusterName;
use backup_core::state::HostState;
use backup_core::{Backup, BackupBuilder, Error, ErrorKind, Repository, Result, codec};

use super::{ServerOptions, Settings, What};

const PASSPHRASE_HINT: &str = "the passphrase is the first line of the file that passphrase_file names";

impl Settings {
    /// Opens the repository.
    pub async fn open_repository(&self) -> Result<Repository> {
        Repository::open(self.store()?).await
    }

    /// Opens the repository, or makes it where nothing is yet. True where it is new.
    pub async fn init_repository(&self) -> Result<(Repository, bool)> {
        Repository::init(self.store()?).await
    }

    /// Opens the repository, or makes it, and makes empty places copies of one that is in other places. True where it is
    /// new.
    pub async fn init_places(&self) -> Result<(Repository, bool)> {
        Repository::init_copies(self.store()?).await
    }

    /// The cluster to work on: as named, or the only one of the file, or `main`.
    pub fn cluster(&self, named: Option<&ClusterName>) -> Result<ClusterName> {
        let mut known = self.clusters.keys();
        match (named, known.next(), known.next()) {
            (Some(named), ..) => Ok(named.clone()),
            (None, Some(only), None) => Ok(only.clone()),
            (None, None, _) => Ok(ClusterName::default()),
            (None, Some(_), Some(_)) => {
                let choice: Vec<&str> = self.clusters.keys().map(ClusterName::as_str).collect();
                Err(Error::new(ErrorKind::Usage, "the configuration has several clusters")
                    .with_hint(format!("choose with --cluster: {}", choice.join(", "))))
            }
        }
    }

    /// Connection settings of a cluster: as given, else those of the file, else the environment's. They lead through
    /// what is given, or else through what the file says.
    pub fn connection(&self, cluster: &ClusterName, given: Option<&str>) -> Result<ConnInfo> {
        let known = self.clusters.get(cluster);
        let text = given.or(known.map(|cluster| cluster.db.as_str())).unwrap_or_default();
        let connection = ConnInfo::parse(text)?;
        Ok(match self.via.as_ref().or(known.and_then(|cluster| cluster.via.as_ref())) {
            Some(via) => connection.with_via(via.clone()),
            None => connection,
        })
    }

    fn passphrase(&self) -> Result<Option<String>> {
        let Some(path) = &self.encryption.passphrase_file else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::new(
                ErrorKind::KeyMissing,
                format!("the passphrase file {} cannot be read", path.display()),
            )
            .with_hint(PASSPHRASE_HINT)
            .caused_by(e)
        })?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(Error::new(
                ErrorKind::KeyMissing,
                format!("the passphrase file {} is empty", path.display()),
            )
            .with_hint(PASSPHRASE_HINT));
        }
        Ok(Some(line.to_owned()))
    }

    /// What seals new backups; nothing where neither recipient nor passphrase is set.
    pub fn writer(&self) -> Result<Option<Age>> {
        let mut age = Age::new();
        for recipient in &self.encryption.recipients {
            age = age.to(recipient)?;
        }
        if let Some(passphrase) = self.passphrase()? {
            age = age.passphrase(passphrase.into());
        }
        Ok(age.can_write().then_some(age))
    }

    /// What opens backups; nothing where neither identity nor passphrase is set.
    pub fn reader(&self) -> Result<Option<Age>> {
        let mut age = Age::new();
        for path in &self.encryption.identity_files {
            age = age.identities(IdentityFile::read(path)?);
        }
        if let Some(passphrase) = self.passphrase()? {
            age = age.passphrase(passphrase.into());
        }
        Ok(age.can_read().then_some(age))
    }

    /// What this host keeps for a cluster of a repository.
    pub fn host_state(&self, repository: &Repository, cluster: &ClusterName) -> Result<HostState> {
        let folder = match &self.state {
            Some(folder) => folder.clone(),
            None => HostState::default_folder()?,
        };
        Ok(HostState::of(&folder, repository, cluster))
    }

    /// Where PostgreSQL's programs are.
    pub fn tools(&self) -> Tools {
        self.pg_bin.as_deref().map_or_else(Tools::installed, |folder: &Path| Tools::in_folder(folder))
    }

    /// What dumps one database.
    pub fn dumper(&self, connection: ConnInfo) -> Dump {
        Dump::new(connection).tools(self.tools())
    }

    /// What dumps all databases of a server.
    pub fn server_dumper(&self, connection: ConnInfo, options: &ServerOptions) -> ServerDump {
        ServerDump::new(connection).tools(self.tools()).no_role_passwords(options.no_role_passwords)
    }

    /// A backup, up to what a frontend adds: repository, label, observer.
    pub fn backup(&self, cluster: ClusterName, connection: ConnInfo, what: &What) -> Result<BackupBuilder> {
        let of_file = self.clusters.get(&cluster).map(|settings| settings.select.clone());
        let builder = match what {
            What::Database(given) => {
                let of_file = of_file.filter(|_| *given == Selection::default());
                let selection = of_file.unwrap_or_else(|| given.clone());
                Backup::builder().dumper(self.dumper(connection).selection(selection))
            }
            What::Server(options) => Backup::builder().dumper(self.server_dumper(connection, options)),
            What::Cluster(options) => Backup::builder().dumper(options.dumper(connection)),
        };
        self.completed(builder, cluster)
    }

    /// Adds what the settings say of any backup: compression, keys, jobs.
    pub(super) fn completed(&self, builder: BackupBuilder, cluster: ClusterName) -> Result<BackupBuilder> {
        let mut builder = builder.cluster(cluster);
        if let Some(method) = &self.compress {
            builder = builder.shared_compressor(codec::parse(method)?);
        }
        if let Some(age) = self.writer()? {
            builder = builder.encryptor(age);
        }
        if let Some(jobs) = self.jobs {
            builder = builder.jobs(jobs);
        }
        Ok(builder)
    }

    /// A restorer into a database.
    pub fn restorer(&self, connection: ConnInfo) -> Load {
        Load::into(connection).tools(self.tools())
    }

    /// A restorer of all databases of a server.
    pub fn server_restorer(&self, connection: ConnInfo) -> ServerLoad {
        ServerLoad::into(connection).tools(self.tools())
    }
}
