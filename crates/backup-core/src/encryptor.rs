//! The trait of an encryption method. The implementation for age is in [`crate::crypt`].

use std::io::{Read, Seek, Write};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::repository::Digest;

/// Makes the key of a backup, and opens it again.
///
/// # Contract
/// - Each backup gets a key of its own. [`Encryptor::new_key`] makes it and wraps it for the readers; it
///   needs no secret. The wrapped key is the only object that depends on who the readers are.
/// - [`Encryptor::open_key`] needs a secret of a reader: without one it fails with
///   [`KeyMissing`](crate::ErrorKind::KeyMissing), with one that does not fit with
///   [`WrongKey`](crate::ErrorKind::WrongKey).
/// - [`Encryptor::rewrap`] wraps an opened key for the readers of now: the parts stay as they are.
pub trait Encryptor: Send + Sync {
    /// Name in the record, `"age"`; also the end of the names of sealed objects.
    fn name(&self) -> &'static str;

    /// Makes a new key: the cipher that uses it, and the key wrapped for the readers.
    fn new_key(&self) -> Result<(Arc<dyn Cipher>, Bytes)>;

    /// Opens a wrapped key.
    fn open_key(&self, wrapped: &[u8]) -> Result<Arc<dyn Cipher>>;

    /// The cipher of a key whose secret this host has kept: what [`Cipher::secret`] gave.
    fn cipher(&self, secret: &secrecy::SecretString) -> Result<Arc<dyn Cipher>>;

    /// Digest of who the readers are: a key that is used for a while is made anew when it has changed.
    fn readers(&self) -> Digest;

    /// Wraps the key of an opened cipher for the readers of this encryptor.
    fn rewrap(&self, cipher: &dyn Cipher) -> Result<Bytes>;

    /// Largest memory of one call in bytes, beside what a stream needs.
    fn working_bytes(&self) -> usize;
}

/// Seals and opens byte streams with the key of one backup.
///
/// # Contract
/// - A sealed stream cut anywhere, or with any byte changed or added, fails to open, at the latest when its
///   end is read.
/// - Any number of streams are sealed with one key.
pub trait Cipher: Send + Sync {
    /// Starts a sealed stream that is written to `to`.
    fn seal(&self, to: Box<dyn Write + Send>) -> Result<Box<dyn Seal>>;

    /// Opens a sealed stream. Errors of the reader keep their kind; a broken seal is `InvalidData`.
    fn open(&self, from: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>>;

    /// Opens a sealed stream of which some is read, from any place. What is read is checked as far as it goes. Nothing
    /// where the method cannot do that.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    fn open_anywhere(&self, from: Box<dyn ReadSeek>) -> Result<Option<Box<dyn ReadSeek>>> {
        drop(from);
        Ok(None)
    }

    /// The secret key as text, for [`Encryptor::rewrap`] and [`Encryptor::cipher`].
    fn secret(&self) -> secrecy::SecretString;
}

/// Bytes that can be read from any place.
pub trait ReadSeek: Read + Seek + Send {}

impl<T: Read + Seek + Send> ReadSeek for T {}

/// A sealed stream being written. Dropped without `finish` it stays invalid.
pub trait Seal: Write + Send {
    /// Writes the end of the stream, without which it does not open.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}
