//! Who can read a backup: recipients or a passphrase, and the identities that open it.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use age::{ssh, x25519};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

use super::age_key::IdentityFile;
use super::not_opened;
use crate::error::{Error, ErrorKind, Result};

/// Cost of the passphrase's scrypt, as a power of two. 2^17 with r = 8 takes 128 MiB and about 0.4 s
/// (OWASP's advice for scrypt); age's own default aims at one second and took 528 MB here.
const SCRYPT_LOG_N: u8 = 17;
/// The highest cost that is accepted when a key is opened: 2^20 takes 1 GiB.
const SCRYPT_MAX_LOG_N: u8 = 20;

/// Encryption with age: to recipients or to a passphrase, opened with identities or the passphrase.
///
/// A writer needs [`Age::to`] or [`Age::passphrase`], a reader [`Age::identities`] or
/// [`Age::passphrase`]. One value can hold both sides.
#[derive(Default)]
pub struct Age {
    recipients: Vec<Recipient>,
    identities: Vec<IdentityFile>,
    passphrase: Option<SecretString>,
}

enum Recipient {
    X25519(x25519::Recipient),
    Ssh(ssh::Recipient),
}

impl Age {
    /// Neither writes nor reads yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a recipient: `age1…`, or an SSH public key (`ssh-ed25519 …`, `ssh-rsa …`).
    pub fn to(mut self, recipient: &str) -> Result<Self> {
        let text = recipient.trim();
        let parsed = if text.starts_with("ssh-") {
            ssh::Recipient::from_str(text).map(Recipient::Ssh).map_err(|_| ())
        } else {
            x25519::Recipient::from_str(text).map(Recipient::X25519).map_err(|_| ())
        };
        let recipient = parsed.map_err(|()| {
            let shown: String = text.chars().take(16).collect();
            // Somebody may have pasted the secret half: that must not land in a log.
            let shown = if text.to_uppercase().starts_with("AGE-SECRET") { "a secret key" } else { shown.as_str() };
            Error::new(ErrorKind::Usage, format!("not a recipient: {shown}"))
                .with_hint("a recipient is age1… (pgark key generate) or a line of an SSH .pub file (ssh-ed25519, ssh-rsa)")
        })?;
        self.recipients.push(recipient);
        Ok(self)
    }

    /// Adds identities to read with.
    #[must_use]
    pub fn identities(mut self, file: IdentityFile) -> Self {
        self.identities.push(file);
        self
    }

    /// Writes and reads with a passphrase. age allows no recipients beside a passphrase.
    #[must_use]
    pub fn passphrase(mut self, passphrase: SecretString) -> Self {
        self.passphrase = Some(passphrase);
        self
    }

    /// Whether new backups can be sealed with it.
    pub fn can_write(&self) -> bool {
        !self.recipients.is_empty() || self.passphrase.is_some()
    }

    /// Whether backups can be opened with it, if the key fits.
    pub fn can_read(&self) -> bool {
        !self.identities.is_empty() || self.passphrase.is_some()
    }

    pub(super) fn scrypt_bytes(&self) -> usize {
        if self.passphrase.is_some() { (128 * 8) << SCRYPT_LOG_N } else { 0 }
    }

    /// Who the readers are, in one order.
    pub(super) fn readers_text(&self) -> SecretString {
        let mut lines: Vec<String> = self
            .recipients
            .iter()
            .map(|r| match r {
                Recipient::X25519(r) => r.to_string(),
                Recipient::Ssh(r) => r.to_string(),
            })
            .collect();
        lines.sort();
        lines.extend(self.passphrase.as_ref().map(|p| format!("passphrase {}", p.expose_secret())));
        lines.join("\n").into()
    }

    pub(super) fn wrap_key(&self, secret: &SecretString) -> Result<Bytes> {
        let mut wrapped = Vec::new();
        let scrypt;
        let recipients: Vec<&dyn age::Recipient> = match &self.passphrase {
            Some(_) if !self.recipients.is_empty() => {
                return Err(Error::new(ErrorKind::Usage, "a passphrase cannot stand beside recipients")
                    .with_hint("use either --passphrase-file or --recipient"));
            }
            Some(passphrase) => {
                let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(SCRYPT_LOG_N);
                scrypt = recipient;
                vec![&scrypt]
            }
            None => self
                .recipients
                .iter()
                .map(|r| match r {
                    Recipient::X25519(r) => r as &dyn age::Recipient,
                    Recipient::Ssh(r) => r as &dyn age::Recipient,
                })
                .collect(),
        };
        let failed = |e: std::io::Error| Error::io("sealing the backup's key", e);
        let encryptor = age::Encryptor::with_recipients(recipients.into_iter()).map_err(|e| {
            Error::new(ErrorKind::KeyMissing, "there is nobody to encrypt to")
                .caused_by(e)
                .with_hint("give --recipient")
        })?;
        let mut writer = encryptor.wrap_output(&mut wrapped).map_err(failed)?;
        writer.write_all(secret.expose_secret().as_bytes()).map_err(failed)?;
        writer.write_all(b"\n").map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(wrapped.into())
    }

    pub(super) fn unwrap_key(&self, wrapped: &[u8]) -> Result<SecretString> {
        let decryptor = age::Decryptor::new(wrapped).map_err(|e| not_opened(&e))?;
        let by_passphrase = decryptor.is_scrypt();
        let missing =
            |what: &str, hint: &str| Err(Error::new(ErrorKind::KeyMissing, what.to_owned()).with_hint(hint));
        let opened = match (&self.passphrase, by_passphrase) {
            (None, true) => {
                return missing("the backup is sealed with a passphrase", "give --passphrase-file FILE");
            }
            (Some(passphrase), true) => {
                let mut identity = age::scrypt::Identity::new(passphrase.clone());
                identity.set_max_work_factor(SCRYPT_MAX_LOG_N);
                decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
            }
            (_, false) if self.identities.is_empty() => {
                return missing("the backup is encrypted, and no identity was given", "give --identity FILE");
            }
            (_, false) => decryptor.decrypt(self.identities.iter().flat_map(IdentityFile::identities)),
        };
        let mut reader = opened.map_err(|e| {
            let error = not_opened(&e);
            match error.kind() {
                ErrorKind::WrongKey if by_passphrase => {
                    error.with_hint("give the passphrase that the backup was made with")
                }
                ErrorKind::WrongKey => {
                    error.with_hint("give the identity that belongs to one of the backup's recipients")
                }
                _ => error,
            }
        })?;
        let mut text = String::new();
        reader
            .read_to_string(&mut text)
            .map_err(|e| Error::new(ErrorKind::Integrity, "the sealed key is damaged").caused_by(e))?;
        Ok(text.into())
    }
}

impl fmt::Debug for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Age")
            .field("recipients", &self.recipients.len())
            .field("identities", &self.identities.len())
            .field("passphrase", &self.passphrase.is_some())
            .finish()
    }
}
