//! The database that a restore goes into.

use crate::error::{Error, ErrorKind, Result};
use crate::logical::DatabaseFacts;
use crate::logical::database::maintenance;
use crate::postgres::{ConnInfo, Session, quote_identifier, quote_literal};

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
    /// Finds or makes the database that `connection` names. One that exists must be empty.
    pub(super) async fn make(connection: &ConnInfo, facts: &DatabaseFacts) -> Result<Self> {
        let name = connection.database().to_owned();
        let maintenance = maintenance(connection).await?;
        let (major, version) = maintenance.server_version().await?;
        let created = !exists(connection, &maintenance).await?;
        if created {
            facts.create(&maintenance, &name, major).await?;
        }
        Ok(Self { name, maintenance, major, version, created })
    }

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

/// True where the database is there and empty; an error where something is in it.
pub(in crate::logical) async fn exists(connection: &ConnInfo, maintenance: &Session) -> Result<bool> {
    let name = connection.database();
    let sql = format!("SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}", quote_literal(name));
    if maintenance.value(&sql).await?.is_none() {
        return Ok(false);
    }
    let sql = "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' LIMIT 1";
    match connection.connect().await?.value(sql).await? {
        None => Ok(true),
        Some(_) => {
            Err(Error::new(ErrorKind::Conflict, format!("the database {name} exists and is not empty"))
                .with_hint("restore into another name; it will be created"))
        }
    }
}
