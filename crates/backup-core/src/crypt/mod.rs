//! Encryption with age (<https://age-encryption.org/v1>).
//!
//! Each backup has an X25519 identity of its own. Its parts are sealed to that identity, and the identity is
//! stored once, sealed to the readers: public keys (X25519 or SSH) or one passphrase. So a host that writes
//! backups needs no secret and can read none of them, and a new reader costs one small object.

mod age_key;
mod readers;

use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::Arc;

use age::x25519;
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

pub use age_key::{IdentityFile, generate_identity};
pub use readers::Age;

use crate::encryptor::{Cipher, Encryptor, ReadSeek, Seal};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Digest;

/// The identity of one backup.
pub(crate) struct AgeCipher {
    identity: x25519::Identity,
}

impl AgeCipher {
    fn generate() -> Self {
        Self { identity: x25519::Identity::generate() }
    }

    fn parse(text: &str) -> Option<Self> {
        // Comments may stand above, as age-keygen writes them.
        let line = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#'))?;
        x25519::Identity::from_str(line).ok().map(|identity| Self { identity })
    }
}

impl Cipher for AgeCipher {
    fn seal(&self, to: Box<dyn Write + Send>) -> Result<Box<dyn Seal>> {
        let recipient = self.identity.to_public();
        let failed = |e: io::Error| Error::io("starting a sealed stream", e);
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            .map_err(|e| Error::internal("age refused its own recipient").caused_by(e))?;
        Ok(Box::new(AgeSeal(encryptor.wrap_output(to).map_err(failed)?)))
    }

    fn open(&self, from: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.reader(from)?))
    }

    fn open_anywhere(&self, from: Box<dyn ReadSeek>) -> Result<Option<Box<dyn ReadSeek>>> {
        Ok(Some(Box::new(self.reader(from)?)))
    }

    fn secret(&self) -> SecretString {
        self.identity.to_string()
    }
}

impl AgeCipher {
    fn reader<R: Read>(&self, from: R) -> Result<age::stream::StreamReader<R>> {
        // The backup's own key is here already: what it does not open is not what was sealed to it.
        let damaged = |e: &age::DecryptError| match not_opened(e) {
            e if e.kind() == ErrorKind::WrongKey => Error::new(
                ErrorKind::Integrity,
                "a sealed object is damaged, or of another backup: the backup's key does not open it",
            ),
            e => e,
        };
        let decryptor = age::Decryptor::new(from).map_err(|e| damaged(&e))?;
        decryptor.decrypt(std::iter::once(&self.identity as &dyn age::Identity)).map_err(|e| damaged(&e))
    }
}

struct AgeSeal(age::stream::StreamWriter<Box<dyn Write + Send>>);

impl Write for AgeSeal {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seal for AgeSeal {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.finish().map(|_| ())
    }
}

fn not_opened(error: &age::DecryptError) -> Error {
    let say = |kind, text: &str| Error::new(kind, text);
    match error {
        age::DecryptError::NoMatchingKeys | age::DecryptError::KeyDecryptionFailed => {
            say(ErrorKind::WrongKey, "the key does not fit")
        }
        age::DecryptError::DecryptionFailed => say(ErrorKind::WrongKey, "the key or the passphrase is wrong"),
        age::DecryptError::Io(e)
            if e.kind() != io::ErrorKind::UnexpectedEof && e.kind() != io::ErrorKind::InvalidData =>
        {
            Error::io("reading a sealed object", io::Error::new(e.kind(), e.to_string()))
        }
        e => say(
            ErrorKind::Integrity,
            &format!("a sealed object is damaged: {}", e.to_string().to_lowercase()),
        ),
    }
}

impl Encryptor for Age {
    fn name(&self) -> &'static str {
        "age"
    }

    fn new_key(&self) -> Result<(Arc<dyn Cipher>, Bytes)> {
        let cipher = AgeCipher::generate();
        let wrapped = self.rewrap(&cipher)?;
        Ok((Arc::new(cipher), wrapped))
    }

    fn open_key(&self, wrapped: &[u8]) -> Result<Arc<dyn Cipher>> {
        self.cipher(&self.unwrap_key(wrapped)?)
    }

    fn cipher(&self, secret: &SecretString) -> Result<Arc<dyn Cipher>> {
        let cipher = AgeCipher::parse(secret.expose_secret())
            .ok_or_else(|| Error::new(ErrorKind::Integrity, "the key is not an age identity"))?;
        Ok(Arc::new(cipher))
    }

    fn readers(&self) -> Digest {
        Digest::of(self.readers_text().expose_secret().as_bytes())
    }

    fn rewrap(&self, cipher: &dyn Cipher) -> Result<Bytes> {
        self.wrap_key(&cipher.secret())
    }

    fn working_bytes(&self) -> usize {
        self.scrypt_bytes()
    }
}

#[cfg(test)]
mod tests;
