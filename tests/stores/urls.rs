//! Places as they are written: what is opened, and what is refused.

use bytes::Bytes;
use pgark::{Created, Error, ErrorKind, StoreOptions, open_store};

use crate::fixtures::{azurite, s3};

fn refused(url: &str, options: &StoreOptions) -> Error {
    open_store(url, options).map(|store| store.location().to_owned()).expect_err(url)
}

#[tokio::test]
async fn memory_is_shared_by_name() {
    let open = |name: &str| open_store(name, &StoreOptions::default()).unwrap();
    let body = || Bytes::from_static(b"x");
    assert_eq!(open("memory:one").create("k", body()).await.unwrap(), Created::New);
    assert_eq!(open("memory:one").create("k", body()).await.unwrap(), Created::Same);
    assert_eq!(open("memory:two").create("k", body()).await.unwrap(), Created::New);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let options = StoreOptions::default();
    for url in [
        "",
        "ftp://host/backups",
        "s3:///no-bucket",
        "s3://user:s3cret@bucket/backups",
        "s3://AKIAKEY@bucket/backups",
        "file://other-host/backups",
        "s3://bucket?secret_access_key=s3cret",
        "az://container?sig=s3cret",
        "s3://bucket?endpoint=localhost:9000",
        "s3://bucket?path_style=maybe",
        "s3://bucket?timeout=soon",
        "s3://bucket?retries=-1",
        "s3://bucket?sse=rot13",
        "s3://bucket?checksum=md4",
        "s3://bucket?conditional_create=",
        "s3://bucket?sse=aws:kms",
    ] {
        let error = refused(url, &options);
        assert_eq!(error.kind(), ErrorKind::Usage, "{url}: {error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    let error = refused("s3://bucket?secret_access_key=x", &options);
    assert!(error.hint().unwrap().contains("endpoint, region"), "{error:?}");
}

#[test]
fn what_a_store_cannot_do_is_refused() {
    let options = StoreOptions::default();
    for url in [
        "az://c?account=a&storage_class=Cool",
        "az://c?account=a&sse=AES256",
        "gs://b?sse=AES256",
        "gs://b?checksum=sha256",
    ] {
        assert_eq!(refused(url, &options).kind(), ErrorKind::Unsupported, "{url}");
    }
}

#[test]
fn credentials_of_another_store_are_refused() {
    for (url, options) in [
        ("az://container?account=a", s3::options()),
        ("s3://bucket", azurite::options()),
        ("gs://bucket", s3::options()),
    ] {
        assert_eq!(refused(url, &options).kind(), ErrorKind::Usage, "{url}");
    }
    let mut options = azurite::options();
    options.credentials = Some(backup_storage::Credentials::Azure("not base64!".into()));
    let error = refused("az://container?account=a", &options);
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(!format!("{error:?}").contains("not base64!"));
}

#[test]
fn nothing_shows_a_secret() {
    for (url, options, secret) in [
        ("s3://bucket/folder?endpoint=http://localhost:1", s3::options(), s3::SECRET_KEY.as_bytes()),
        // The client keeps this key as bytes.
        ("az://container/folder?account=a", azurite::options(), &[17, 188, 188, 189][..]),
    ] {
        let store = open_store(url, &options).unwrap();
        let shown = format!("{options:?} {store:?} {}", store.location());
        let text = String::from_utf8_lossy(secret).into_owned();
        let numbers = format!("{secret:?}").trim_matches(['[', ']']).to_owned();
        assert!(
            !shown.contains(&text) && !shown.contains(&numbers) && !shown.contains(azurite::KEY),
            "{shown}"
        );
        assert_eq!(store.location(), url.split('?').next().unwrap());
    }
}

#[test]
fn locations_are_the_urls_without_their_queries() {
    let options = s3::options();
    for (url, location) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a?region=eu-central-1&timeout=3", "s3://bucket/a"),
        ("file:///var/backups/", "/var/backups"),
        ("/var/backups", "/var/backups"),
        ("memory:x", "memory:x"),
    ] {
        let shown = open_store(url, &options).unwrap();
        assert_eq!(shown.location().trim_end_matches('/'), location, "{url}");
    }
}
