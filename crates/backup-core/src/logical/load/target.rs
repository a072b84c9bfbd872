//! The server and the database that a restore goes into.

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::logical::DatabaseFacts;
use crate::postgres::{ConnInfo, Session, quote_identifier, quote_literal};

/// The database as it is before a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Prospect {
    /// Where the server is.
    pub server: String,
    /// The server's version.
    pub server_version: String,
    /// The database.
    pub database: String,
    /// Whether it exists.
    pub exists: bool,
    /// Whether nothing is in it.
    pub empty: bool,
    /// Its bytes, as the server counts them.
    pub bytes: u64,
    /// Sessions of others that are connected to it.
    pub sessions: u64,
}

/// The server, and what it knows of the database.
pub(super) struct Ground {
    /// A session of another database.
    pub(super) maintenance: Session,
    pub(super) major: u32,
    pub(super) version: String,
    pub(super) name: String,
    pub(super) database: Option<There>,
}

/// A database that exists.
#[derive(Debug, Clone)]
pub(super) struct There {
    pub(super) empty: bool,
    pub(super) bytes: u64,
    pub(super) sessions: u64,
    pub(super) tablespace: String,
}

impl Ground {
    pub(super) async fn look(connection: &ConnInfo) -> Result<Self> {
        let name = connection.database().to_owned();
        let maintenance = maintenance(connection).await?;
        let (major, version) = maintenance.server_version().await?;
        let sql = format!(
            "SELECT t.spcname, pg_catalog.pg_database_size(d.oid), (SELECT count(*) FROM pg_catalog.pg_stat_activity a \
             WHERE a.datid = d.oid AND a.backend_type = 'client backend' AND a.pid <> pg_catalog.pg_backend_pid()) \
             FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = {}",
            quote_literal(&name)
        );
        let row = maintenance.rows(&sql).await?.into_iter().next();
        let database = match row.as_deref() {
            Some([tablespace, bytes, sessions]) => {
                let number = |text: &Option<String>| text.as_ref().and_then(|n| n.parse().ok()).unwrap_or(0);
                Some(There {
                    empty: is_empty(connection).await?,
                    bytes: number(bytes),
                    sessions: number(sessions),
                    tablespace: tablespace.clone().unwrap_or_default(),
                })
            }
            _ => None,
        };
        Ok(Self { maintenance, major, version, name, database })
    }

    pub(super) fn prospect(&self) -> Prospect {
        let there = self.database.as_ref();
        let host = self.maintenance.info().hosts().first();
        Prospect {
            server: host.map(ToString::to_string).unwrap_or_default(),
            server_version: self.version.clone(),
            database: self.name.clone(),
            exists: there.is_some(),
            empty: there.is_none_or(|there| there.empty),
            bytes: there.map_or(0, |there| there.bytes),
            sessions: there.map_or(0, |there| there.sessions),
        }
    }

    /// The database itself: made where it is not there.
    pub(super) async fn target(self, facts: &DatabaseFacts) -> Result<Target> {
        let created = self.database.is_none();
        if created {
            facts.create(&self.maintenance, &self.name, self.major).await?;
        }
        let Self { maintenance, major, version, name, .. } = self;
        Ok(Target { name, maintenance, major, version, created })
    }

    /// A new database of another name beside it, in the same tablespace.
    pub(super) async fn beside(self, name: String, facts: &DatabaseFacts) -> Result<Target> {
        let mut facts = facts.clone();
        facts.tablespace = self.database.as_ref().map(|there| there.tablespace.clone());
        facts.create(&self.maintenance, &name, self.major).await?;
        let Self { maintenance, major, version, .. } = self;
        Ok(Target { name, maintenance, major, version, created: true })
    }
}

/// A database that exists for the restore.
pub(super) struct Target {
    pub(super) name: String,
    /// A session of another database.
    pub(super) maintenance: Session,
    pub(super) major: u32,
    pub(super) version: String,
    /// Whether the restore made it.
    pub(super) created: bool,
}

impl Target {
    /// How to connect to it.
    pub(super) fn info(&self) -> ConnInfo {
        self.maintenance.info().with_database(&self.name)
    }

    /// Removes it after a failure, where the restore had made it.
    pub(super) async fn undo(&self, connection: &ConnInfo, error: Error) -> Error {
        let name = &self.name;
        if !self.created {
            return error.doing(format!("the database {name} is left half restored"));
        }
        let drop = format!("DROP DATABASE {} WITH (FORCE)", quote_identifier(name));
        // The session may have been lost together with the server.
        let dropped = match self.maintenance.rows(&drop).await {
            Err(_) => match maintenance(connection).await {
                Ok(session) => session.rows(&drop).await,
                Err(e) => Err(e),
            },
            ok => ok,
        };
        match dropped {
            Ok(_) => error,
            Err(e) => error.doing(format!("the unfinished database {name} could not be dropped ({e})")),
        }
    }
}

/// A session of a database that is there in any case, and is not the one that is restored.
pub(super) async fn maintenance(connection: &ConnInfo) -> Result<Session> {
    let (first, second) = if connection.database() == "postgres" {
        ("template1", "postgres")
    } else {
        ("postgres", "template1")
    };
    match connection.with_database(first).connect().await {
        Err(e) if matches!(e.kind(), ErrorKind::NoDatabase | ErrorKind::Auth) => {
            connection.with_database(second).connect().await.map_err(|_| e)
        }
        other => other,
    }
}

async fn is_empty(connection: &ConnInfo) -> Result<bool> {
    let sql = "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' LIMIT 1";
    Ok(connection.connect().await?.value(sql).await?.is_none())
}

/// Whether the database is there, and something is in it.
pub(in crate::logical) async fn is_taken(connection: &ConnInfo) -> Result<bool> {
    Ok(Ground::look(connection).await?.database.is_some_and(|there| !there.empty))
}
