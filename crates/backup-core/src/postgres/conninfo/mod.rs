//! Connection settings as libpq takes them: key/value strings and URIs, completed by a service, the
//! environment and defaults (PostgreSQL documentation, "Database Connection Control Functions";
//! fe-connect.c, PostgreSQL 18).

mod parse;
mod passfile;
mod resolve;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use resolve::Environment;

use super::via::Via;
use crate::error::{Error, ErrorKind, Result};

/// libpq waits without end by default. A backup that hangs is worse than one that fails.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A setting of libpq: its keyword, its environment variable, and what pgark does with it.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) support: Support,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// Understood.
    Full,
    /// Accepted and without effect here; it changes neither who is trusted nor what is read.
    Ignored,
    /// Refused: without it the connection would be less safe than was asked for.
    Refused,
}

const fn keyword(name: &'static str, variable: &'static str, support: Support) -> Keyword {
    let variable = if variable.is_empty() { None } else { Some(variable) };
    Keyword { name, variable, support }
}

pub(super) const KEYWORDS: &[Keyword] = &[
    keyword("service", "PGSERVICE", Support::Full),
    keyword("host", "PGHOST", Support::Full),
    keyword("hostaddr", "PGHOSTADDR", Support::Full),
    keyword("port", "PGPORT", Support::Full),
    keyword("dbname", "PGDATABASE", Support::Full),
    keyword("user", "PGUSER", Support::Full),
    keyword("password", "PGPASSWORD", Support::Full),
    keyword("passfile", "PGPASSFILE", Support::Full),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Support::Full),
    keyword("application_name", "PGAPPNAME", Support::Full),
    keyword("fallback_application_name", "", Support::Ignored),
    keyword("options", "PGOPTIONS", Support::Full),
    keyword("sslmode", "PGSSLMODE", Support::Full),
    keyword("sslrootcert", "PGSSLROOTCERT", Support::Full),
    keyword("sslcert", "PGSSLCERT", Support::Full),
    keyword("sslkey", "PGSSLKEY", Support::Full),
    keyword("sslpassword", "", Support::Refused),
    keyword("sslcertmode", "PGSSLCERTMODE", Support::Full),
    keyword("sslcrl", "PGSSLCRL", Support::Refused),
    keyword("sslcrldir", "PGSSLCRLDIR", Support::Refused),
    keyword("sslsni", "PGSSLSNI", Support::Ignored),
    keyword("sslcompression", "PGSSLCOMPRESSION", Support::Ignored),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Support::Full),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Support::Full),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Support::Full),
    keyword("channel_binding", "PGCHANNELBINDING", Support::Full),
    keyword("require_auth", "PGREQUIREAUTH", Support::Refused),
    keyword("requirepeer", "PGREQUIREPEER", Support::Refused),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Support::Full),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Support::Ignored),
    keyword("gssencmode", "PGGSSENCMODE", Support::Ignored),
    keyword("krbsrvname", "PGKRBSRVNAME", Support::Ignored),
    keyword("gsslib", "PGGSSLIB", Support::Ignored),
    keyword("gssdelegation", "PGGSSDELEGATION", Support::Ignored),
    keyword("client_encoding", "PGCLIENTENCODING", Support::Ignored),
    keyword("keepalives", "", Support::Full),
    keyword("keepalives_idle", "", Support::Full),
    keyword("keepalives_interval", "", Support::Full),
    keyword("keepalives_count", "", Support::Full),
    keyword("tcp_user_timeout", "", Support::Full),
];

pub(super) fn find_keyword(name: &str) -> Result<&'static Keyword> {
    KEYWORDS.iter().find(|k| k.name == name).ok_or_else(|| {
        // It may be a piece of a password that lacks its quotes.
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let message = if plain { format!("unknown connection setting {name:?}") } else { "unknown connection setting".to_owned() };
        Error::new(ErrorKind::Usage, message)
            .with_hint("the settings are those of libpq: host, port, dbname, user, sslmode, service …; values with spaces need quotes")
    })
}

/// A server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name, address, or folder of the Unix socket. Empty where it is found out when connecting, see
    /// [`ConnInfo::with_via`].
    pub name: String,
    /// Address to connect to instead of looking `name` up.
    pub address: Option<String>,
    /// Port; for a Unix socket the number in its name.
    pub port: u16,
}

impl Host {
    /// Whether it is the folder of a Unix socket.
    pub fn is_socket(&self) -> bool {
        self.address.is_none() && (self.name.starts_with('/') || self.name.starts_with('@'))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "port {} of the default host", self.port)
        } else if self.is_socket() {
            write!(f, "{}/.s.PGSQL.{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// Complete connection settings. `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct ConnInfo {
    pub(super) values: BTreeMap<&'static str, String>,
    pub(super) hosts: Vec<Host>,
    pub(super) home: Option<PathBuf>,
    pub(super) via: Option<Via>,
}

impl ConnInfo {
    /// Settings from a key/value string (`host=/tmp dbname=shop`), a URI (`postgresql://…`), or the bare name
    /// of a database; completed from the environment of this process as libpq does. An empty text leaves
    /// everything to it.
    pub fn parse(text: &str) -> Result<Self> {
        Self::resolve(text, &Environment::of_process())
    }

    /// The same, from a given environment.
    pub fn resolve(text: &str, environment: &Environment) -> Result<Self> {
        resolve::resolve(parse::parse(text)?, environment)
    }

    /// The servers to try, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        self.values.get("dbname").map_or("", String::as_str)
    }

    /// Name of the user.
    pub fn user(&self) -> &str {
        self.values.get("user").map_or("", String::as_str)
    }

    /// The same settings for another database.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.values.insert("dbname", name.to_owned());
        other
    }

    /// The same settings for one of the servers only: the one that a session found.
    #[must_use]
    pub fn at(&self, host: &Host) -> Self {
        Self { hosts: vec![host.clone()], ..self.clone() }
    }

    /// The same with more settings of the session: `-c name=value`, separated by spaces.
    #[must_use]
    pub(crate) fn with_options(&self, options: &str) -> Self {
        let mut other = self.clone();
        let all = other.values.entry("options").or_default();
        if !all.is_empty() {
            all.push(' ');
        }
        all.push_str(options);
        other
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The password for a server: as given, or from the password file.
    pub(super) fn password(&self, host: &Host) -> Result<Option<String>> {
        if let Some(password) = self.get("password") {
            return Ok(Some(password.to_owned()));
        }
        let path = match (self.get("passfile"), &self.home) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(home)) => home.join(".pgpass"),
            (None, None) => return Ok(None),
        };
        passfile::look_up(&path, host, self.database(), self.user())
    }

    /// The environment for a client tool that shall connect like this. All other `PG…` variables must be
    /// taken away from it. The password travels here, never in an argument.
    pub(super) fn tool_environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        let mut environment: Vec<(&str, OsString)> = Vec::new();
        for keyword in KEYWORDS {
            let taken =
                matches!(keyword.name, "service" | "host" | "hostaddr" | "port" | "password" | "passfile");
            if let (Some(variable), Some(value), false) = (keyword.variable, self.get(keyword.name), taken) {
                environment.push((variable, value.into()));
            }
        }
        if self.get("connect_timeout").is_none() {
            environment.push(("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT.as_secs().to_string().into()));
        }
        // libpq looks for certificates below the home folder, and asks the system for it where none is set.
        // Elsewhere it is another one.
        if self.via.is_none() {
            let home = self.home.clone().unwrap_or_else(|| PathBuf::from("/nonexistent"));
            environment.push(("HOME", home.into()));
        }
        let join = |f: &dyn Fn(&Host) -> String| self.hosts.iter().map(f).collect::<Vec<_>>().join(",");
        environment.push(("PGHOST", join(&|h| h.name.clone()).into()));
        environment.push(("PGPORT", join(&|h| h.port.to_string()).into()));
        if self.hosts.iter().any(|h| h.address.is_some()) {
            environment.push(("PGHOSTADDR", join(&|h| h.address.clone().unwrap_or_default()).into()));
        }
        if let [only] = &self.hosts[..]
            && let Some(password) = self.password(only)?
        {
            environment.push(("PGPASSWORD", password.into()));
        }
        Ok(environment)
    }
}

impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "database {} at {} as {}", self.database(), hosts.join(","), self.user())?;
        self.via.iter().try_for_each(|via| write!(f, " in {via}"))
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnInfo({self})")
    }
}

#[cfg(test)]
mod tests;
