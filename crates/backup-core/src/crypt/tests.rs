use std::io::Cursor;
use std::sync::Mutex;

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn seal(cipher: &dyn Cipher, text: &[u8]) -> Vec<u8> {
    let sink = Sink::default();
    let mut seal = cipher.seal(Box::new(sink.clone())).unwrap();
    seal.write_all(text).unwrap();
    seal.finish().unwrap();
    std::mem::take(&mut *sink.0.lock().unwrap())
}

fn open(cipher: &dyn Cipher, sealed: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let mut reader = cipher.open(Box::new(Cursor::new(sealed.to_vec()))).map_err(|e| format!("{e:?}"))?;
    reader.read_to_end(&mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

fn pair() -> (IdentityFile, String) {
    let (text, recipient) = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    (IdentityFile::parse(text.expose_secret()).unwrap(), recipient)
}

#[test]
fn several_recipients_each_open_and_a_stranger_does_not() {
    let ((a, to_a), (b, to_b), (stranger, _)) = (pair(), pair(), pair());
    let writer = Age::new().to(&to_a).unwrap().to(&to_b).unwrap();
    let (cipher, wrapped) = writer.new_key().unwrap();
    let sealed = seal(&*cipher, b"rows");
    for reader in [a, b] {
        let cipher = Age::new().identities(reader).open_key(&wrapped).unwrap();
        assert_eq!(open(&*cipher, &sealed).unwrap(), b"rows");
    }
    let refused = Age::new().identities(stranger).open_key(&wrapped).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::WrongKey);
    assert_eq!(Age::new().open_key(&wrapped).err().unwrap().kind(), ErrorKind::KeyMissing);
    assert_eq!(writer.open_key(&wrapped).err().unwrap().kind(), ErrorKind::KeyMissing);
}

#[test]
fn a_passphrase_opens_and_a_wrong_one_does_not() {
    let writer = Age::new().passphrase("correct horse".to_owned().into());
    let (cipher, wrapped) = writer.new_key().unwrap();
    let sealed = seal(&*cipher, b"rows");
    let again = writer.open_key(&wrapped).unwrap();
    assert_eq!(open(&*again, &sealed).unwrap(), b"rows");
    let wrong = Age::new().passphrase("battery".to_owned().into());
    assert_eq!(wrong.open_key(&wrapped).err().unwrap().kind(), ErrorKind::WrongKey);
    let (reader, _) = pair();
    assert_eq!(Age::new().identities(reader).open_key(&wrapped).err().unwrap().kind(), ErrorKind::KeyMissing);
}

#[test]
fn rewrapping_changes_the_readers_and_not_the_parts() {
    let ((old, to_old), (new, to_new)) = (pair(), pair());
    let (cipher, wrapped) = Age::new().to(&to_old).unwrap().new_key().unwrap();
    let sealed = seal(&*cipher, b"rows");
    let opened = Age::new().identities(old.clone()).open_key(&wrapped).unwrap();
    let rewrapped = Age::new().to(&to_new).unwrap().rewrap(&*opened).unwrap();
    let again = Age::new().identities(new).open_key(&rewrapped).unwrap();
    assert_eq!(open(&*again, &sealed).unwrap(), b"rows");
    assert_eq!(Age::new().identities(old).open_key(&rewrapped).err().unwrap().kind(), ErrorKind::WrongKey);
}

#[test]
fn every_flipped_or_missing_byte_is_found() {
    let (_, to) = pair();
    let (cipher, _) = Age::new().to(&to).unwrap().new_key().unwrap();
    let sealed = seal(&*cipher, &[7; 1000]);
    for at in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        assert!(open(&*cipher, &bad).is_err(), "byte {at}");
        assert!(open(&*cipher, &sealed[..at]).is_err(), "cut at {at}");
    }
    let mut long = sealed;
    long.push(0);
    assert!(open(&*cipher, &long).is_err());
}

#[test]
fn a_pasted_secret_is_not_repeated() {
    let (secret, _) = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    let key = secret.expose_secret().lines().last().unwrap().to_owned();
    let error = Age::new().to(&key).err().unwrap();
    assert!(!format!("{error:?}").contains(&key[16..]), "{error:?}");
}
