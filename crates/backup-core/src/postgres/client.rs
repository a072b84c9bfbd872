//! A session over SQL.

use std::pin::Pin;
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, SslMode as Negotiate, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::OLDEST_MAJOR;
use super::conninfo::{CONNECT_TIMEOUT, ConnInfo, Host};
use super::socket::{Above, Socket};
use super::tls::{self, SslMode};
use super::via::Unreached;
use crate::error::{Error, ErrorKind, Result};

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
    /// [`Config`](ErrorKind::Config) for certificates that cannot be used, and [`Usage`](ErrorKind::Usage) or
    /// [`Unsupported`](ErrorKind::Unsupported) for settings that make no sense or ask for more than there is.
    pub async fn connect(&self) -> Result<Session> {
        let wanted = Wanted::of(self)?;
        let places = self.places().await?;
        let mut failed: Vec<Error> = Vec::new();
        // `prefer-standby` takes what there is when no standby answers.
        for wanted in wanted.passes() {
            for host in &places {
                let tried = async {
                    let Opened { client, connection, .. } = self.open(host, false).await?;
                    tokio::spawn(connection);
                    let session = Session { client, info: self.at(host) };
                    wanted.check(&session).await?;
                    Ok::<_, Error>(session)
                };
                match tried.await {
                    Ok(session) => return Ok(session),
                    // libpq goes on to the next server unless this one knew the user and refused.
                    Err(e) if matches!(e.kind(), ErrorKind::Connect | ErrorKind::ConnectionLost) => {
                        failed.push(e);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        if failed.len() == 1 {
            return Err(failed.remove(0));
        }
        let said = |error: &Error| {
            std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
        };
        let mut words: Vec<String> = failed.iter().map(said).collect();
        words.dedup();
        Err(Error::new(ErrorKind::Connect, format!("none of {} hosts can be used", places.len()))
            .with_hint("check hosts, ports and target_session_attrs")
            .caused_by(words.join("; ")))
    }

    /// Logs in. With `replication` the session is a WAL sender's, and `client` is of no use.
    pub(super) async fn open(&self, host: &Host, replication: bool) -> Result<Opened> {
        let mode = SslMode::of(self)?;
        let config = self.config(host, mode)?;
        let timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        // connect_timeout of tokio-postgres ends with the TCP connection; a server that accepts and says
        // nothing must not hang a backup either.
        let attempts = Attempts { info: self, host, replication };
        let Ok(connected) = tokio::time::timeout(timeout * 2, attempts.negotiate(mode, config)).await else {
            let place = attempts.place();
            let error = match self.via() {
                None => Error::new(
                    ErrorKind::Connect,
                    format!("the server at {place} accepts connections and says nothing"),
                ),
                Some(_) => Error::new(ErrorKind::Connect, format!("nothing comes from {place}")),
            };
            return Err(error.with_hint("is it PostgreSQL that listens there?"));
        };
        connected.map_err(|refused| refused.error)
    }

    fn config(&self, host: &Host, mode: SslMode) -> Result<Config> {
        let one_of = |name: &str, known: &str, given: &str| {
            Error::new(ErrorKind::Usage, format!("{given:?} is not a value of {name}"))
                .with_hint(format!("use {known}"))
        };
        let mut config = Config::new();
        config.user(self.user()).dbname(self.database()).port(host.port).ssl_mode(Negotiate::Disable);
        config.application_name(self.get("application_name").unwrap_or("pgark"));
        match &host.address {
            _ if host.is_socket() => config.host_path(&host.name),
            Some(address) => {
                let parsed = address.parse().map_err(|_| {
                    Error::new(ErrorKind::Usage, format!("hostaddr {address:?} is not an address"))
                        .with_hint("use host for names")
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
            None | Some("prefer") => config.channel_binding(ChannelBinding::Prefer),
            Some(other) => return Err(one_of("channel_binding", "disable, prefer or require", other)),
        };
        match self.get("sslnegotiation") {
            None | Some("postgres") => {}
            Some("direct") if mode >= SslMode::Require => {
                config.ssl_negotiation(SslNegotiation::Direct);
            }
            Some("direct") => {
                let message = "sslnegotiation=direct asks for a mode that insists on TLS";
                return Err(Error::new(ErrorKind::Usage, message)
                    .with_hint("add sslmode=require, verify-ca or verify-full"));
            }
            Some(other) => return Err(one_of("sslnegotiation", "postgres or direct", other)),
        }
        let number = |name: &str| -> Result<Option<u64>> {
            self.get(name)
                .map(|v| {
                    v.parse().map_err(|_| {
                        Error::new(ErrorKind::Usage, format!("{name} {v:?} is not a number"))
                            .with_hint("give a whole number, without a unit")
                    })
                })
                .transpose()
        };
        let seconds = |n: u64| Duration::from_secs(n);
        config
            .connect_timeout(number("connect_timeout")?.filter(|n| *n > 0).map_or(CONNECT_TIMEOUT, seconds));
        config.keepalives(number("keepalives")? != Some(0));
        config.keepalives_idle(number("keepalives_idle")?.map_or(Duration::from_mins(1), seconds));
        config.keepalives_interval(number("keepalives_interval")?.map_or(Duration::from_secs(10), seconds));
        config
            .keepalives_retries(number("keepalives_count")?.and_then(|n| u32::try_from(n).ok()).unwrap_or(6));
        if let Some(timeout) = number("tcp_user_timeout")? {
            config.tcp_user_timeout(Duration::from_millis(timeout));
        }
        Ok(config)
    }
}

/// A session that has just begun.
pub(super) struct Opened {
    client: Client,
    /// What must run for the client to work.
    connection: Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>,
    /// What messages go over once the connection is dropped.
    socket: Socket,
}

impl Opened {
    /// What messages go over, in place of the client.
    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }
}

/// Attempts to log in to one server.
struct Attempts<'a> {
    info: &'a ConnInfo,
    host: &'a Host,
    replication: bool,
}

impl Attempts<'_> {
    /// The server, for messages.
    fn place(&self) -> String {
        match self.info.via() {
            None => self.host.to_string(),
            Some(via) => format!("{} in {via}", self.host),
        }
    }

    /// Connects with and without TLS, as the mode allows.
    async fn negotiate(&self, mode: SslMode, config: Config) -> Result<Opened, Refused> {
        if self.host.is_socket() || mode == SslMode::Disable {
            return self.attempt(&config, None).await;
        }
        let encrypted = |negotiate| {
            let mut config = config.clone();
            config.ssl_mode(negotiate);
            config
        };
        // With `allow` and `prefer` the other way is tried where the server refuses the first one.
        let refused = |e: &Refused| {
            matches!(e.error.kind(), ErrorKind::Auth | ErrorKind::Connect) && e.at > Stage::Nothing
        };
        match mode {
            SslMode::Allow => match self.attempt(&config, None).await {
                Err(e) if e.error.kind() == ErrorKind::Auth => {
                    let second = self.attempt(&encrypted(Negotiate::Require), Some(mode)).await;
                    second.map_err(|second| e.or(second))
                }
                other => other,
            },
            SslMode::Prefer => match self.attempt(&encrypted(Negotiate::Prefer), Some(mode)).await {
                Err(e) if refused(&e) => self.attempt(&config, None).await.map_err(|second| e.or(second)),
                other => other,
            },
            _ => self.attempt(&encrypted(Negotiate::Require), Some(mode)).await,
        }
    }

    async fn attempt(&self, config: &Config, tls: Option<SslMode>) -> Result<Opened, Refused> {
        let unreachable = |e: std::io::Error| match self.info.via() {
            None => self.unreachable(e, None),
            Some(via) => Refused { at: Stage::Nothing, error: via.no_program(e) },
        };
        let connector = tls
            .map(|mode| tls::connector(self.info, mode))
            .transpose()
            .map_err(|error| Refused { at: Stage::Nothing, error })?;
        let socket = Socket::open(self.host, self.info.via(), config, self.replication);
        let socket = socket.await.map_err(unreachable)?;
        match connector {
            None => {
                let opened = config.connect_raw(socket.clone(), NoTls).await;
                let (client, connection) = opened.map_err(|e| self.explain(e))?;
                Ok(Opened { client, connection: Box::pin(connection), socket: socket.top() })
            }
            Some(mut connector) => {
                let made = MakeTlsConnect::<Socket>::make_tls_connect(&mut connector, &self.host.name);
                let tls = made.map_err(|e| Refused {
                    at: Stage::Tls,
                    error: Error::new(
                        ErrorKind::Config,
                        format!("{} is no name of a host for TLS", self.host),
                    )
                    .with_hint("name the host as its certificate does")
                    .caused_by(e),
                })?;
                let opened = config.connect_raw(socket.clone(), Above(tls)).await;
                let (client, connection) = opened.map_err(|e| self.explain(e))?;
                Ok(Opened { client, connection: Box::pin(connection), socket: socket.top() })
            }
        }
    }

    /// The server cannot be reached.
    fn unreachable(
        &self,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
        hint: Option<String>,
    ) -> Refused {
        let message = format!("no server answers at {}", self.place());
        let hint = hint.unwrap_or_else(|| "is it running, and are host and port right?".to_owned());
        let error = Error::new(ErrorKind::Connect, message).with_hint(hint).caused_by(why);
        Refused { at: Stage::Nothing, error }
    }

    /// What a failed connection means.
    fn explain(&self, error: tokio_postgres::Error) -> Refused {
        let (host, user, database) = (self.place(), self.info.user(), self.info.database());
        let refused = |at, kind, message: String, hint: &str| Refused {
            at,
            error: Error::new(kind, message).with_hint(hint),
        };
        let Some(db) = error.as_db_error() else { return self.explain_silence(error) };
        let code = db.code();
        let mut explained = if *code == SqlState::INVALID_PASSWORD {
            refused(
                Stage::Login,
                ErrorKind::Auth,
                format!("the password of user {user} at {host} is wrong"),
                "check PGPASSWORD, ~/.pgpass or the connection settings",
            )
        } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            refused(
                Stage::Server,
                ErrorKind::Auth,
                format!("the server at {host} does not let user {user} in"),
                if self.replication {
                    "pg_hba.conf on the server needs a line for the database \"replication\" and this user"
                } else {
                    "check the user's name, and pg_hba.conf on the server"
                },
            )
        } else if *code == SqlState::INVALID_CATALOG_NAME {
            refused(
                Stage::Database,
                ErrorKind::NoDatabase,
                format!("there is no database {database} at {host}"),
                "check the name; psql -l lists the databases",
            )
        } else if *code == SqlState::INSUFFICIENT_PRIVILEGE && self.replication {
            refused(
                Stage::Database,
                ErrorKind::Auth,
                format!("user {user} may not replicate from the server at {host}"),
                "ALTER ROLE … REPLICATION gives the right",
            )
        } else if *code == SqlState::TOO_MANY_CONNECTIONS && self.replication {
            refused(
                Stage::Database,
                ErrorKind::Connect,
                format!("the server at {host} has no free WAL sender"),
                "raise max_wal_senders there, or end a process that it lists in pg_stat_replication",
            )
        } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            refused(
                Stage::Database,
                ErrorKind::Auth,
                format!("user {user} may not connect to database {database} at {host}"),
                "grant CONNECT on it",
            )
        } else {
            refused(
                Stage::Server,
                ErrorKind::Connect,
                format!("the server at {host} refused the connection"),
                "the server's own words stand above",
            )
        };
        explained.error = explained.error.caused_by(db.message().to_owned());
        explained
    }

    /// What a connection means that failed without a word of the server.
    fn explain_silence(&self, error: tokio_postgres::Error) -> Refused {
        if let (Some(via), Some(words)) = (self.info.via(), unreached(&error)) {
            return self.unreachable(words.clone(), via.hint(&words));
        }
        let (host, user) = (self.place(), self.info.user());
        // The kinds of tokio-postgres are private; their words are not.
        let kind = error.to_string();
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let (at, new) = if why == "password missing" {
            let message = format!("the server at {host} wants a password for user {user}, and none is known");
            let hint = "put it into ~/.pgpass (mode 0600) or PGPASSWORD";
            return Refused { at: Stage::Login, error: Error::new(ErrorKind::Auth, message).with_hint(hint) };
        } else if kind.starts_with("authentication") {
            let message = format!("user {user} and the server at {host} could not agree on how to log in");
            (
                Stage::Login,
                Error::new(ErrorKind::Auth, message).with_hint("check channel_binding and the password"),
            )
        } else if kind.contains("TLS") || is_tls(&error) {
            let message = format!("no trusted TLS connection to {host}");
            let hint =
                "check sslmode, sslrootcert, the server's certificate, and the one that sslcert shows it";
            (Stage::Tls, Error::new(ErrorKind::Auth, message).with_hint(hint))
        } else if kind.contains("parsing") || kind.contains("unexpected") {
            let message = format!("what answers at {host} is not PostgreSQL");
            (Stage::Server, Error::new(ErrorKind::Connect, message).with_hint("are host and port right?"))
        } else {
            let message = format!("the server at {host} hung up");
            let hint = "see its log; if it is not PostgreSQL that listens there, host or port are wrong";
            (Stage::Server, Error::new(ErrorKind::Connect, message).with_hint(hint))
        };
        Refused { at, error: new.caused_by(error) }
    }
}

/// Whether TLS itself ended a connection: a server may refuse a certificate only after the handshake.
fn is_tls(error: &tokio_postgres::Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if cause.is::<rustls::Error>()
            || inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
        {
            return true;
        }
        next = cause.source();
    }
    false
}

/// What `docker`, `kubectl`, `ssh`, or what they ran, said when they ended a connection.
fn unreached(error: &tokio_postgres::Error) -> Option<String> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(unreached) = inner.and_then(|inner| inner.downcast_ref::<Unreached>()) {
            return Some(unreached.0.clone());
        }
        next = cause.source();
    }
    None
}

/// How far an attempt got.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Nothing,
    Server,
    Tls,
    Login,
    Database,
}

/// A failed attempt to connect.
struct Refused {
    at: Stage,
    error: Error,
}

impl Refused {
    /// Of two attempts with the same server the one that got further tells more.
    fn or(self, second: Self) -> Self {
        if second.at > self.at { second } else { self }
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
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("{other:?} is not one of the target_session_attrs"),
                )
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
            Self::ReadWrite => {
                "SELECT NOT (pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool)"
            }
            Self::ReadOnly => {
                "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool"
            }
            Self::Primary => "SELECT NOT pg_is_in_recovery()",
            Self::Standby => "SELECT pg_is_in_recovery()",
        };
        if session.value(sql).await?.as_deref() == Some("t") {
            return Ok(());
        }
        let wanted = session.info().get("target_session_attrs").unwrap_or_default();
        let host = &session.info().hosts()[0];
        Err(Error::new(
            ErrorKind::Connect,
            format!("the server at {host} is not what target_session_attrs={wanted} asks for"),
        )
        .with_hint("name a server that is, or leave target_session_attrs out"))
    }
}

impl Session {
    /// The settings that lead to this very server.
    pub fn info(&self) -> &ConnInfo {
        &self.info
    }

    /// Runs SQL; the rows of its results as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let messages = self.client.simple_query(sql).await.map_err(|e| Self::failed(&e))?;
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
        let number =
            self.value("SHOW server_version_num").await?.and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
        let text = self.value("SHOW server_version").await?.unwrap_or_default();
        let version = text.split_whitespace().next().unwrap_or_default().to_owned();
        let major = number / 10_000;
        if major < OLDEST_MAJOR {
            return Err(Error::new(ErrorKind::Unsupported, format!("the server is PostgreSQL {version}"))
                .with_hint(format!("pgark works with PostgreSQL {OLDEST_MAJOR} and later")));
        }
        Ok((major, version))
    }

    fn failed(error: &tokio_postgres::Error) -> Error {
        let Some(db) = error.as_db_error() else {
            return lost("the server closed the connection").caused_by(error.to_string());
        };
        server_error(&ServerWords {
            severity: db.severity().to_owned(),
            code: db.code().code().to_owned(),
            message: db.message().to_owned(),
            hint: db.hint().map(str::to_owned),
            detail: db.detail().map(str::to_owned),
        })
    }
}

/// What a server says when it refuses something, or warns.
#[derive(Debug, Default)]
pub(super) struct ServerWords {
    pub(super) severity: String,
    /// SQLSTATE
    pub(super) code: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// Which row it is about, for example.
    pub(super) detail: Option<String>,
}

/// What the words mean.
pub(super) fn server_error(words: &ServerWords) -> Error {
    let code = SqlState::from_code(&words.code);
    if words.code.starts_with("08") || matches!(words.code.as_str(), "57P01" | "57P02" | "57P03") {
        return lost(&words.message.to_lowercase());
    }
    let kind = if code == SqlState::DISK_FULL { ErrorKind::DiskFull } else { ErrorKind::Database };
    // A slot is in use until the server has noticed that who used it is gone.
    let passes = code == SqlState::OBJECT_IN_USE;
    let new = Error::new(kind, format!("the server says: {}", words.message))
        .retryable_if(passes)
        .with_sqlstate(&words.code);
    let new = match &words.detail {
        Some(detail) => new.caused_by(detail.clone()),
        None => new,
    };
    match &words.hint {
        Some(hint) => new.with_hint(hint),
        None if code == SqlState::INSUFFICIENT_PRIVILEGE => {
            new.with_hint("the user lacks a privilege: grant it, or use another user")
        }
        None => new,
    }
}

fn lost(why: &str) -> Error {
    Error::new(ErrorKind::ConnectionLost, why.to_owned())
        .with_hint("see the server's log for why it ended the session")
}

/// A name as SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}
