//! The one error type of pgark, and the table of what each kind of failure means to a caller.
//!
//! An [`Error`] says what pgark was doing, what went wrong, and what to do about it. Its `Display` is one
//! lower-case line without the chain of causes; a frontend prints [`std::error::Error::source`] and
//! [`Error::hint`] itself. Errors never carry a password, a key or a connection string.

use std::error::Error as StdError;
use std::fmt;

/// A result whose error is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $text:literal;)+) => {
        /// What kind of failure it was: few enough to act on. [`ErrorKind::code`] is the exit code of the
        /// command and the status of the C ABI; the numbers never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[$doc])+ $name,)+ }

        impl ErrorKind {
            /// Every kind, in the order of the codes.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)+];

            /// Exit code of the command and status of the C ABI.
            pub const fn code(self) -> u8 { match self { $(ErrorKind::$name => $code,)+ } }

            /// The kind in a few words.
            pub const fn describe(self) -> &'static str { match self { $(ErrorKind::$name => $text,)+ } }

            /// The name as it stands in JSON, `StoreUnavailable` for example.
            pub const fn name(self) -> &'static str { match self { $(ErrorKind::$name => stringify!($name),)+ } }
        }
    };
}

kinds! {
    /// Arguments that contradict each other or make no sense.
    Usage = 2, "wrong usage";
    /// The configuration file cannot be read or is wrong.
    Config = 3, "wrong configuration";
    /// The server does not answer.
    Connect = 10, "no connection to PostgreSQL";
    /// The server refuses the user or the password, or TLS could not be agreed on.
    Auth = 11, "PostgreSQL refused the login";
    /// The database does not exist.
    NoDatabase = 12, "no such database";
    /// The server went away during the work.
    ConnectionLost = 13, "connection to PostgreSQL lost";
    /// The server refused a statement.
    Database = 14, "PostgreSQL reported an error";
    /// A client tool is not installed, or older than the server.
    ToolMissing = 20, "a client tool is missing or too old";
    /// A client tool failed or was killed.
    ToolFailed = 21, "a client tool failed";
    /// The store does not answer, or answers that it is overloaded.
    StoreUnavailable = 30, "the store did not answer";
    /// The store refuses the credentials, or they lack a permission.
    StoreDenied = 31, "the store denied access";
    /// The bucket or container does not exist.
    BucketMissing = 32, "the bucket does not exist";
    /// The bucket is in another region.
    WrongRegion = 33, "wrong region";
    /// This host's clock is wrong.
    ClockSkew = 34, "the clock is wrong";
    /// No space is left.
    DiskFull = 35, "no space left";
    /// Reading or writing a local file failed.
    Io = 36, "input or output failed";
    /// There is no repository at this place.
    NotARepository = 40, "not a repository";
    /// The repository or a record was written by a newer pgark.
    NewerFormat = 41, "newer format";
    /// The backup that was asked for does not exist.
    BackupNotFound = 42, "no such backup";
    /// An object that must exist does not.
    ObjectMissing = 43, "an object is missing";
    /// Something with this name exists already.
    Conflict = 44, "exists already";
    /// The backup was declared dead before it could commit.
    Abandoned = 45, "the backup was abandoned";
    /// Some databases of a server could not be backed up, or not be restored; the rest is there.
    Partial = 46, "only part of it was done";
    /// Something will fail, or is late: a check or a status found it.
    Attention = 47, "something needs attention";
    /// Stored bytes are not those that were written.
    Integrity = 50, "damaged data";
    /// A key is needed and was not given.
    KeyMissing = 51, "a key is needed";
    /// The given key does not open it.
    WrongKey = 52, "wrong key";
    /// It cannot be done with this server, store or backup.
    Unsupported = 60, "not supported";
    /// A mistake in pgark or in a part that an application brought.
    Internal = 70, "internal error";
    /// Cancelled by the caller.
    Cancelled = 130, "cancelled";
}

/// Why something failed: kind, what pgark was doing, the message, a hint, and the cause.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(thiserror::Error)]
struct Inner {
    kind: ErrorKind,
    message: String,
    doing: Option<String>,
    hint: Option<String>,
    sqlstate: Option<String>,
    retryable: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error. `message` is a lower-case fragment: "the password is wrong".
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retryable = kind == ErrorKind::StoreUnavailable;
        let message = message.into();
        Self(Box::new(Inner {
            kind,
            message,
            doing: None,
            hint: None,
            sqlstate: None,
            retryable,
            source: None,
        }))
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says what pgark was doing, `"reading the catalog"` for example. An outer call goes in front.
    #[must_use]
    pub fn doing(mut self, doing: impl fmt::Display) -> Self {
        self.0.doing = Some(match self.0.doing.take() {
            Some(inner) => format!("{doing}: {inner}"),
            None => doing.to_string(),
        });
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says whether the same call may succeed when it is made again.
    #[must_use]
    pub fn retryable_if(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Keeps the server's code.
    #[must_use]
    pub(crate) fn with_sqlstate(mut self, code: &str) -> Self {
        self.0.sqlstate = Some(code.to_owned());
        self
    }

    /// The server's code of what it refused, `55P03`; unlike its words it is the same in every language.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether the same call may succeed when it is made again.
    pub fn retryable(&self) -> bool {
        self.0.retryable
    }

    /// The error that a cancelled call returns.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// A mistake in pgark, or in a part that an application brought.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An error of the operating system about a local file. A full disk and a missing permission get kinds
    /// of their own.
    pub fn io(doing: impl fmt::Display, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let (kind, hint) = match error.kind() {
            Io::StorageFull | Io::QuotaExceeded => {
                (ErrorKind::DiskFull, Some("free some space, or use another place"))
            }
            Io::PermissionDenied | Io::ReadOnlyFilesystem => {
                (ErrorKind::StoreDenied, Some("check the owner and the mode of the file and of its folders"))
            }
            Io::NotADirectory => {
                (ErrorKind::Io, Some("a file stands where a folder should be: choose another path"))
            }
            _ => (ErrorKind::Io, None),
        };
        let mut new = Self::new(kind, error.to_string().to_lowercase()).doing(doing).caused_by(error);
        new.0.hint = hint.map(str::to_owned);
        new
    }

    /// The error and its causes on one line.
    pub(crate) fn with_causes(&self) -> String {
        let words: Vec<String> = std::iter::once(self.to_string()).chain(self.causes()).collect();
        words.join(": ").replace('\n', " ")
    }

    /// The causes, outermost first, as one-line texts, without repeating what stands in the error already.
    pub fn causes(&self) -> Vec<String> {
        let mut said = self.to_string().to_lowercase();
        let mut causes = Vec::new();
        let mut next = StdError::source(self);
        while let Some(cause) = next {
            let text = cause.to_string().replace('\n', " ");
            if !said.contains(&text.to_lowercase()) {
                said.push_str(&text.to_lowercase());
                causes.push(text);
            }
            next = cause.source();
        }
        causes
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.doing {
            Some(doing) => write!(f, "{doing}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0)?;
        for cause in self.causes() {
            write!(f, "; caused by: {cause}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_leave_signals_alone() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in ErrorKind::ALL {
            assert!(seen.insert(kind.code()), "{kind:?} shares its code");
            assert!(kind.code() > 1 && (kind.code() < 126 || *kind == ErrorKind::Cancelled), "{kind:?}");
        }
    }

    #[test]
    fn display_is_one_line_and_the_chain_repeats_nothing() {
        let io = std::io::Error::other("device on fire");
        let error = Error::io("writing a part", io).doing("backing up");
        assert_eq!(error.to_string(), "backing up: writing a part: device on fire");
        assert!(error.causes().is_empty());
        let error = Error::new(ErrorKind::Connect, "no answer").caused_by(std::io::Error::other("refused"));
        assert_eq!(error.causes(), ["refused"]);
    }
}
