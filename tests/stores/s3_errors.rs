//! What S3 says when it refuses, and what pgark makes of it.

use bytes::Bytes;
use pgark::{Error, ErrorKind, Store, open_store, read_whole};

use crate::fixtures::canned::{Answer, Canned};
use crate::fixtures::s3::{self, ACCESS_KEY, S3Server, SECRET_KEY};

async fn get(store: &dyn Store) -> pgark::Result<Bytes> {
    read_whole(store, "pgark.json", 1 << 20).await
}

fn open(endpoint: &str) -> std::sync::Arc<dyn Store> {
    open_store(&format!("s3://bucket/prefix?endpoint={endpoint}"), &s3::options()).unwrap()
}

/// Says what to do, and nothing that is secret.
fn check_words(error: &Error) {
    let words = format!("{error:?} {error} {:?}", error.causes());
    assert!(error.hint().is_some(), "{words}");
    for secret in [
        SECRET_KEY,
        "Signature=",
        "X-Amz-Signature",
        "SignatureProvided",
        "StringToSign",
        "5d672d79c15b13162d9279b0855cfba6",
    ] {
        assert!(!words.contains(secret), "{secret} in {words}");
    }
}

async fn refused(answer: Answer, kind: ErrorKind, tries: usize, hint: &str) {
    let server = Canned::start(&[answer]).await;
    let store = open(&server.endpoint);
    let error = get(&*store).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(server.requests().len(), tries, "{error:?}");
    check_words(&error);
    assert!(error.hint().unwrap().contains(hint), "{error:?}");
    let error = store.create("k", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    check_words(&error);
}

#[tokio::test]
async fn a_bucket_that_does_not_exist() {
    let answer = Answer::s3("404 Not Found", "NoSuchBucket", "The specified bucket does not exist");
    refused(answer, ErrorKind::BucketMissing, 1, "create it").await;
    // So does the real one, where it is listed.
    let server = S3Server::start().await;
    let url = server.url("").replace("s3://backups", "s3://nothing");
    let error = pgark::list_sorted(&*open_store(&url, &s3::options()).unwrap(), "", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BucketMissing, "{error:?}");
}

#[tokio::test]
async fn credentials_that_are_refused() {
    let answer = Answer::s3("403 Forbidden", "AccessDenied", "Access Denied");
    refused(answer, ErrorKind::StoreDenied, 1, "allowed to list the bucket").await;
    let answer = Answer::s3(
        "403 Forbidden",
        "InvalidAccessKeyId",
        "The AWS Access Key Id you provided does not exist in our records.",
    );
    refused(answer, ErrorKind::StoreDenied, 1, "access key").await;
    let answer = Answer::s3_more(
        "403 Forbidden",
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
        "<AWSAccessKeyId>PGARKTESTACCESSKEY</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256\n20260101T000000Z</StringToSign>\
         <SignatureProvided>5d672d79c15b13162d9279b0855cfba6</SignatureProvided>\
         <CanonicalRequest>GET\n/bucket/prefix/pgark.json\nX-Amz-Signature=5d672d79c15b13162d9279b0855cfba6</CanonicalRequest>",
    );
    refused(answer, ErrorKind::StoreDenied, 1, "secret key").await;
    let answer = Answer::s3("400 Bad Request", "ExpiredToken", "The provided token has expired.");
    refused(answer, ErrorKind::StoreDenied, 1, "expired").await;
    refused(Answer::new("401 Unauthorized", ""), ErrorKind::StoreDenied, 1, "credentials").await;
}

#[tokio::test]
async fn credentials_that_a_real_server_refuses() {
    let server = S3Server::start().await;
    for (access_key, secret_key, hint) in [
        (ACCESS_KEY, "wrong-secret-of-the-test", "secret key"),
        ("NOSUCHACCESSKEY", SECRET_KEY, "credentials"),
    ] {
        let store = open_store(&server.url(""), &s3::options_with(access_key, secret_key)).unwrap();
        let error = get(&*store).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreDenied, "{error:?}");
        assert!(error.hint().unwrap().contains(hint), "{error:?}");
        check_words(&error);
        assert!(!format!("{error:?}").contains("wrong-secret-of-the-test"));
        // An answer to HEAD has no body that could say more.
        assert_eq!(store.head("k").await.unwrap_err().kind(), ErrorKind::StoreDenied);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong() {
    let message = "The difference between the request time and the current time is too large.";
    refused(Answer::s3("403 Forbidden", "RequestTimeTooSkewed", message), ErrorKind::ClockSkew, 1, "clock")
        .await;
}

#[tokio::test]
async fn a_bucket_in_another_region() {
    let answer = Answer::s3_more(
        "400 Bad Request",
        "AuthorizationHeaderMalformed",
        "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'",
        "<Region>eu-central-1</Region>",
    );
    refused(answer, ErrorKind::WrongRegion, 1, "region").await;
    let message = "The bucket you are attempting to access must be addressed using the specified endpoint.";
    let moved = Answer::s3("301 Moved Permanently", "PermanentRedirect", message);
    refused(moved.clone(), ErrorKind::WrongRegion, 1, "region").await;
    let server = Canned::start(&[moved.header("x-amz-bucket-region: eu-central-1")]).await;
    assert_eq!(open(&server.endpoint).head("k").await.unwrap_err().kind(), ErrorKind::WrongRegion);
}

#[tokio::test]
async fn a_store_that_is_full() {
    let message = "Storage backend has reached its minimum free drive threshold.";
    refused(
        Answer::s3("507 Insufficient Storage", "XMinioStorageFull", message),
        ErrorKind::DiskFull,
        1,
        "space",
    )
    .await;
}

#[tokio::test]
async fn a_store_that_is_busy_is_asked_again() {
    let busy = Answer::s3("503 Slow Down", "SlowDown", "Please reduce your request rate.");
    let object = Answer::new("200 OK", "body")
        .header("ETag: \"x\"")
        .header("Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT");
    for busy in [
        busy,
        Answer::s3("400 Bad Request", "RequestTimeout", "Your socket connection was not read from in time."),
        Answer::new("429 Too Many Requests", ""),
    ] {
        let server = Canned::start(&[busy.clone(), busy, object.clone()]).await;
        assert_eq!(get(&*open(&server.endpoint)).await.unwrap(), "body");
        assert_eq!(server.requests().len(), 3);
    }
}

#[tokio::test]
async fn a_store_that_stays_busy() {
    let answer = Answer::s3("503 Slow Down", "SlowDown", "Please reduce your request rate.");
    refused(answer, ErrorKind::StoreUnavailable, 8, "store").await;
}

#[tokio::test]
async fn a_request_that_is_wrong_is_not_repeated() {
    let answer = Answer::s3("400 Bad Request", "InvalidArgument", "Invalid Argument");
    refused(answer, ErrorKind::StoreUnavailable, 1, "words").await;
    let answer = Answer::new(
        "405 Method Not Allowed",
        "<html><body>nginx?token=5d672d79c15b13162d9279b0855cfba6</body></html>",
    );
    let server = Canned::start(&[answer]).await;
    let error = get(&*open(&server.endpoint)).await.unwrap_err();
    assert!(!error.retryable() && server.requests().len() == 1, "{error:?}");
}

#[tokio::test]
async fn what_a_store_says_is_passed_on_in_its_words() {
    let server =
        Canned::start(&[Answer::s3("400 Bad Request", "InvalidArgument", "Invalid  Argument:\nx-amz-y")])
            .await;
    let error = get(&*open(&server.endpoint)).await.unwrap_err();
    let causes = error.causes().join(" ");
    assert!(
        causes.contains("400") && causes.contains("InvalidArgument: Invalid Argument: x-amz-y"),
        "{causes}"
    );
    assert!(!causes.contains("HostId") && !causes.contains('<'), "{causes}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_asked_for_again() {
    let head =
        |answer: Answer| answer.header("ETag: \"x\"").header("Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT");
    let rest = Answer::new("206 Partial Content", "dy").header("Content-Range: bytes 2-3/4");
    let server = Canned::start(&[head(Answer::cut_off("200 OK", "body", 2)), head(rest)]).await;
    assert_eq!(get(&*open(&server.endpoint)).await.unwrap(), "body");
    assert!(server.requests()[1].to_lowercase().contains("range: bytes=2-3"), "{}", server.requests()[1]);
}

#[tokio::test]
async fn a_session_token_is_sent_with_its_key() {
    let server =
        Canned::start(&[Answer::s3("404 Not Found", "NoSuchKey", "The specified key does not exist.")]).await;
    let mut options = s3::options();
    options.credentials = Some(backup_storage::Credentials::S3 {
        access_key: "TEMPORARYKEY".into(),
        secret_key: SECRET_KEY.into(),
        session_token: Some("the-session-token".to_owned().into()),
    });
    let store = open_store(&format!("s3://bucket?endpoint={}", server.endpoint), &options).unwrap();
    assert_eq!(get(&*store).await.unwrap_err().kind(), ErrorKind::ObjectMissing);
    let request = server.requests().remove(0);
    assert!(
        request.contains("Credential=TEMPORARYKEY/")
            && request.contains("x-amz-security-token: the-session-token"),
        "{request}"
    );
    assert!(!format!("{options:?} {store:?}").contains("the-session-token"));
}
