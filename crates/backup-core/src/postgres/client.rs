//! A session over SQL.

use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, SslMode as Negotiate, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::conninfo::{ConnInfo, Host};
use super::tls::{self, SslMode};
use super::OLDEST_MAJOR;
use crate::error::{Error, ErrorKind, Result};

/// libpq waits without end by default. A backup that hangs is worse than one that fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a server. It ends when the value is dropped.
pub struct Session {
    client: Client,
    info: ConnInfo,
}

impl ConnInfo {
    /// Connects to the first of the servers that answers and is of the kind that `target_session_attrs`
    /// asks for.
    ///
    /// # Errors
    /// [`Connect`](ErrorKind::Connect), [`Auth`](ErrorKind::Auth), [`NoDatabase`](ErrorKind::NoDatabase),
    /// and [`Config`](ErrorKind::Config) for certificates that cannot be used.
    pub async fn connect(&self) -> Result<Session> {
        let wanted = Wanted::of(self)?;
        let mut first_error = None;
        // `prefer-standby` takes what there is when no standby answers.
        for wanted in wanted.passes() {
            for host in self.hosts() {
                let tried = async {
                    let session = Session { client: self.connect_to(host).await?, info: self.at(host) };
                    wanted.check(&session).await?;
                    Ok::<_, Error>(session)
                };
                match tried.await {
                    Ok(session) => return Ok(session),
                    // libpq goes on to the next server unless this one knew the user and refused.
                    Err(e) if matches!(e.kind(), ErrorKind::Auth | ErrorKind::NoDatabase | ErrorKind::Config) => return Err(e),
                    Err(e) => first_error = first_error.or(Some(e)),
                }
            }
        }
        Err(first_error.unwrap_or_else(|| Error::internal("there is no host to connect to")))
    }

    async fn connect_to(&self, host: &Host) -> Result<Client> {
        let mode = SslMode::of(self)?;
        let config = self.config(host)?;
        if host.is_socket() || mode == SslMode::Disable {
            return self.attempt(host, config, None).await;
        }
        let encrypted = |negotiate| {
            let mut config = config.clone();
            config.ssl_mode(negotiate);
            if self.get("sslnegotiation") == Some("direct") {
                config.ssl_negotiation(SslNegotiation::Direct);
            }
            config
        };
        // With `allow` and `prefer` the other way is tried where the server refuses the first one.
        let refused = |e: &Error| matches!(e.kind(), ErrorKind::Auth | ErrorKind::Connect);
        match mode {
            SslMode::Allow => match self.attempt(host, config.clone(), None).await {
                Err(e) if e.kind() == ErrorKind::Auth => {
                    self.attempt(host, encrypted(Negotiate::Require), Some(mode)).await.map_err(|_| e)
                }
                other => other,
            },
            SslMode::Prefer => match self.attempt(host, encrypted(Negotiate::Prefer), Some(mode)).await {
                Err(e) if refused(&e) => self.attempt(host, config.clone(), None).await.map_err(|_| e),
                other => other,
            },
            _ => self.attempt(host, encrypted(Negotiate::Require), Some(mode)).await,
        }
    }

    fn config(&self, host: &Host) -> Result<Config> {
        let mut config = Config::new();
        config.user(self.user()).dbname(self.database()).port(host.port).ssl_mode(Negotiate::Disable);
        config.application_name(self.get("application_name").unwrap_or("pgark"));
        match &host.address {
            _ if host.is_socket() => config.host_path(&host.name),
            Some(address) => {
                let parsed = address.parse().map_err(|_| {
                    Error::new(ErrorKind::Usage, format!("hostaddr {address:?} is not an address")).with_hint("use host for names")
                })?;
                config.host(&host.name).hostaddr(parsed)
            }
            None => config.host(&host.name),
        };
        if let Some(options) = self.get("options") {
            config.options(options);
        }
        if let Some(password) = self.password(host)? {
            config.password(password);
        }
        match self.get("channel_binding") {
            Some("require") => config.channel_binding(ChannelBinding::Require),
            Some("disable") => config.channel_binding(ChannelBinding::Disable),
            _ => config.channel_binding(ChannelBinding::Prefer),
        };
        let number = |name: &str| -> Result<Option<u64>> {
            self.get(name)
                .map(|v| v.parse().map_err(|_| Error::new(ErrorKind::Usage, format!("{name} {v:?} is not a number"))))
                .transpose()
        };
        let seconds = |n: u64| Duration::from_secs(n);
        config.connect_timeout(number("connect_timeout")?.filter(|n| *n > 0).map_or(CONNECT_TIMEOUT, seconds));
        config.keepalives(number("keepalives")? != Some(0));
        config.keepalives_idle(number("keepalives_idle")?.map_or(Duration::from_secs(60), seconds));
        config.keepalives_interval(number("keepalives_interval")?.map_or(Duration::from_secs(10), seconds));
        config.keepalives_retries(number("keepalives_count")?.and_then(|n| u32::try_from(n).ok()).unwrap_or(6));
        if let Some(timeout) = number("tcp_user_timeout")? {
            config.tcp_user_timeout(Duration::from_millis(timeout));
        }
        Ok(config)
    }

    async fn attempt(&self, host: &Host, config: Config, tls: Option<SslMode>) -> Result<Client> {
        let timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        let connect = async {
            match tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await.map_err(|e| self.explain(host, e))?;
                    tokio::spawn(connection);
                    Ok(client)
                }
                Some(mode) => {
                    let connector = tls::connector(self, mode)?;
                    let (client, connection) = config.connect(connector).await.map_err(|e| self.explain(host, e))?;
                    tokio::spawn(connection);
                    Ok(client)
                }
            }
        };
        // connect_timeout of tokio-postgres ends with the TCP connection; a server that accepts and says
        // nothing must not hang a backup either.
        match tokio::time::timeout(timeout * 2, connect).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(ErrorKind::Connect, format!("the server at {host} accepts connections and says nothing"))
                .with_hint("is it PostgreSQL that listens there?")),
        }
    }

    /// What a failed connection means.
    fn explain(&self, host: &Host, error: tokio_postgres::Error) -> Error {
        let (user, database) = (self.user(), self.database());
        let new = |kind, message: String, hint: &str| Error::new(kind, message).with_hint(hint);
        let explained = match error.code() {
            Some(code) if *code == SqlState::INVALID_PASSWORD => {
                new(ErrorKind::Auth, format!("the password of user {user} at {host} is wrong"), "check PGPASSWORD, ~/.pgpass or the connection settings")
            }
            Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                new(ErrorKind::Auth, format!("the server at {host} does not let user {user} in"), "check the user's name, and pg_hba.conf on the server")
            }
            Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
                new(ErrorKind::NoDatabase, format!("there is no database {database} at {host}"), "check the name; psql -l lists the databases")
            }
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                new(ErrorKind::Auth, format!("user {user} may not connect to database {database} at {host}"), "grant CONNECT on it")
            }
            Some(_) => new(ErrorKind::Connect, format!("the server at {host} refused the connection"), "the server's own words stand above"),
            None => {
                let text = format!("{error:?}").to_lowercase();
                let message = error.to_string().to_lowercase();
                if message.contains("password") {
                    new(ErrorKind::Auth, format!("the server at {host} wants a password for user {user}, and none is known"), "put it into ~/.pgpass (mode 0600) or PGPASSWORD")
                } else if message.contains("authentication") || message.contains("sasl") {
                    new(ErrorKind::Auth, format!("user {user} and the server at {host} could not agree on how to log in"), "check channel_binding and the password")
                } else if text.contains("certificate") || text.contains("tls") || text.contains("notsupported") {
                    new(ErrorKind::Auth, format!("no trusted TLS connection to {host}"), "check sslmode, sslrootcert and the server's certificate")
                } else {
                    new(ErrorKind::Connect, format!("no server answers at {host}"), "is it running, and are host and port right?")
                }
            }
        };
        let words = error.as_db_error().map(|db| db.message().to_owned());
        match words {
            Some(words) => explained.caused_by(words),
            None => explained.caused_by(error),
        }
    }
}

/// `target_session_attrs`
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Wanted {
    fn of(info: &ConnInfo) -> Result<Self> {
        Ok(match info.get("target_session_attrs") {
            None | Some("any") => Self::Any,
            Some("read-write") => Self::ReadWrite,
            Some("read-only") => Self::ReadOnly,
            Some("primary") => Self::Primary,
            Some("standby") => Self::Standby,
            Some("prefer-standby") => Self::PreferStandby,
            Some(other) => {
                return Err(Error::new(ErrorKind::Usage, format!("{other:?} is not one of the target_session_attrs"))
                    .with_hint("use any, read-write, read-only, primary, standby or prefer-standby"));
            }
        })
    }

    fn passes(self) -> Vec<Self> {
        if self == Self::PreferStandby { vec![Self::Standby, Self::Any] } else { vec![self] }
    }

    async fn check(self, session: &Session) -> Result<()> {
        let sql = match self {
            Self::Any | Self::PreferStandby => return Ok(()),
            Self::ReadWrite => "SELECT NOT (pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool)",
            Self::ReadOnly => "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool",
            Self::Primary => "SELECT NOT pg_is_in_recovery()",
            Self::Standby => "SELECT pg_is_in_recovery()",
        };
        if session.value(sql).await?.as_deref() == Some("t") {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Connect, "no server is of the kind that target_session_attrs asks for"))
    }
}

impl Session {
    /// The settings that lead to this very server.
    pub fn info(&self) -> &ConnInfo {
        &self.info
    }

    /// Runs SQL; the rows of its results as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let messages = self.client.simple_query(sql).await.map_err(|e| self.failed(&e))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// Runs SQL; the first column of the first row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>> {
        Ok(self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// The server's major version and its full version.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where it is older than pgark works with.
    pub async fn server_version(&self) -> Result<(u32, String)> {
        let number = self.value("SHOW server_version_num").await?.and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
        let text = self.value("SHOW server_version").await?.unwrap_or_default();
        let version = text.split_whitespace().next().unwrap_or_default().to_owned();
        let major = number / 10_000;
        if major < OLDEST_MAJOR {
            return Err(Error::new(ErrorKind::Unsupported, format!("the server is PostgreSQL {version}"))
                .with_hint(format!("pgark works with PostgreSQL {OLDEST_MAJOR} and later")));
        }
        Ok((major, version))
    }

    fn failed(&self, error: &tokio_postgres::Error) -> Error {
        let lost = |why: &str| {
            Error::new(ErrorKind::ConnectionLost, why.to_owned()).with_hint("see the server's log for why it ended the session")
        };
        let Some(db) = error.as_db_error() else {
            return lost("the server closed the connection").caused_by(error.to_string());
        };
        let code = db.code();
        if code.code().starts_with("08") || matches!(code.code(), "57P01" | "57P02" | "57P03") {
            return lost(&db.message().to_lowercase());
        }
        let kind = if *code == SqlState::DISK_FULL { ErrorKind::DiskFull } else { ErrorKind::Database };
        let new = Error::new(kind, format!("the server says: {}", db.message()));
        let hint = match (db.hint(), code) {
            (Some(hint), _) => hint.to_owned(),
            (None, code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                format!("user {} lacks a privilege: grant it, or use another user", self.info.user())
            }
            _ => return new,
        };
        new.with_hint(hint)
    }
}

/// A name as SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}
