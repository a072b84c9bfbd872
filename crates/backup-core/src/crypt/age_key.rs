//! Identities in files, as `age-keygen` and `ssh-keygen` write them.

use std::fmt;
use std::io::BufReader;
use std::path::Path;

use age::x25519;
use secrecy::{ExposeSecret, SecretString};

use crate::error::{Error, ErrorKind, Result};

/// A new X25519 identity: the text of its file, and the recipient that belongs to it.
pub fn generate_identity(now: jiff::Timestamp) -> (SecretString, String) {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    let text = format!("# created: {now:.0}\n# public key: {recipient}\n{}\n", secret.expose_secret());
    (text.into(), recipient)
}

/// The identities of one file.
#[derive(Clone)]
pub struct IdentityFile {
    keys: Vec<Key>,
}

#[derive(Clone)]
enum Key {
    X25519(x25519::Identity),
    Ssh(age::ssh::Identity),
}

impl IdentityFile {
    /// Reads a file of age identities (`AGE-SECRET-KEY-1…` lines, `#` comments), or an SSH private key
    /// (ed25519 or RSA, without a passphrase).
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            let error = Error::io(format!("reading the identity file {}", path.display()), e);
            if missing {
                Error::new(ErrorKind::KeyMissing, format!("no identity file {}", path.display()))
            } else {
                error
            }
        })?;
        Self::parse(&text).map_err(|e| e.doing(format!("reading the identity file {}", path.display())))
    }

    /// Parses the text of such a file.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(ErrorKind::KeyMissing, why.to_owned()).with_hint(
                "it holds AGE-SECRET-KEY-1… lines (pgark key generate, age-keygen) or an SSH private key",
            )
        };
        if text.contains("-----BEGIN") {
            let key = age::ssh::Identity::from_buffer(BufReader::new(text.as_bytes()), None)
                .map_err(|_| wrong("the SSH key cannot be read"))?;
            return match key {
                age::ssh::Identity::Encrypted(_) => Err(wrong("the SSH key is protected by a passphrase")
                    .with_hint("use a key without one (ssh-keygen -p makes a copy so), or an age identity")),
                age::ssh::Identity::Unsupported(_) => Err(wrong("this kind of SSH key is not supported")),
                age::ssh::Identity::Unencrypted(_) => Ok(Self { keys: vec![Key::Ssh(key)] }),
            };
        }
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let keys = lines
            .map(|line| line.parse().map(Key::X25519).map_err(|_| wrong("a line is not an age identity")))
            .collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            return Err(wrong("there is no identity in it"));
        }
        Ok(Self { keys })
    }

    /// The recipients that belong to the age identities of the file.
    pub fn recipients(&self) -> Vec<String> {
        self.keys
            .iter()
            .filter_map(|k| match k {
                Key::X25519(identity) => Some(identity.to_public().to_string()),
                Key::Ssh(_) => None,
            })
            .collect()
    }

    pub(super) fn identities(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.keys.iter().map(|k| match k {
            Key::X25519(identity) => identity as &dyn age::Identity,
            Key::Ssh(identity) => identity as &dyn age::Identity,
        })
    }
}

impl fmt::Debug for IdentityFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityFile({} keys)", self.keys.len())
    }
}
