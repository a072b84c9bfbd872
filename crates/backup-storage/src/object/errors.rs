//! What the errors of `object_store` mean. It tells apart by HTTP status; the codes that clouds put into the
//! body say more, so the text of the whole chain is looked at.

#![allow(clippy::needless_pass_by_value)] // Both take an error from `map_err`.

use std::error::Error as StdError;

use backup_core::{Error, ErrorKind};

/// A client that cannot be made: its settings are wrong or missing.
pub(crate) fn not_configured(error: object_store::Error) -> Error {
    Error::new(ErrorKind::Config, "the store's settings are not complete").caused_by(safe(&chain(&error)))
}

/// Refusals that another try may overcome: too many requests, and bodies that were lost or changed on their way.
/// Those with a code are S3's, under the status 400.
const COME_BACK: &[&str] = &[
    "status code: 408",
    "status code: 429",
    "<Code>RequestTimeout<",
    "<Code>IncompleteBody<",
    "<Code>BadDigest<",
];

pub(super) fn classify(key: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let text = chain(&error);
    let has = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    let new = |kind, message: String, hint: &str| Error::new(kind, message).with_hint(hint);
    let explained = if has(&["NoSuchBucket", "ContainerNotFound", "specified bucket does not exist"]) {
        new(
            ErrorKind::BucketMissing,
            "the bucket or container does not exist".into(),
            "check its name, or create it: pgark never does",
        )
    } else if has(&[
        "RequestTimeTooSkewed",
        "RequestExpired",
        "Request date header too old",
        "AuthenticationFailed</Code><Message>Request date",
    ]) {
        new(
            ErrorKind::ClockSkew,
            "the store refuses this host's clock".into(),
            "set the clock (NTP) and try again",
        )
    } else if has(&[
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "IllegalLocationConstraint",
        "incorrectly configured region",
    ]) {
        new(
            ErrorKind::WrongRegion,
            "the bucket is in another region".into(),
            "give its region: ?region=… in the URL, or AWS_REGION",
        )
    } else if has(&["XMinioStorageFull", "InsufficientStorage", "507 Insufficient"]) {
        new(ErrorKind::DiskFull, "the store has no space left".into(), "free some space there")
    } else if has(&["NoSuchUpload"]) {
        Error::new(ErrorKind::ObjectMissing, format!("the upload of {key} is gone"))
    } else {
        match &error {
            E::NotFound { .. } => Error::new(ErrorKind::ObjectMissing, format!("there is no {key}")),
            E::AlreadyExists { .. } | E::Precondition { .. } => {
                Error::new(ErrorKind::Conflict, format!("{key} exists"))
            }
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => denied(key, &text),
            E::NotSupported { .. } | E::NotImplemented { .. } => {
                Error::new(ErrorKind::Unsupported, "the store cannot do that")
            }
            _ if has(&[
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "ExpiredToken",
                "AccessDenied",
                "InvalidToken",
                "invalid_grant",
            ]) =>
            {
                denied(key, &text)
            }
            _ if has(&["instance metadata", "169.254.169.254", "metadata endpoint"]) => new(
                ErrorKind::StoreDenied,
                "no credentials for the store were found".into(),
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws/credentials",
            ),
            _ if has(&["status code: 416", "InvalidRange"]) => {
                Error::new(ErrorKind::Integrity, format!("{key} is shorter than it should be"))
            }
            // A request that the store understood and refused fails again; these ask to come back.
            _ if has(&["status code: 4"]) && !has(COME_BACK) => new(
                ErrorKind::StoreUnavailable,
                format!("the store refused a request for {key}"),
                "the store's own words stand below",
            )
            .retryable_if(false),
            _ => new(
                ErrorKind::StoreUnavailable,
                "the store did not answer, or answered that it cannot now".into(),
                "is the endpoint right, and the store up?",
            ),
        }
    };
    explained.caused_by(safe(&text))
}

fn denied(key: &str, text: &str) -> Error {
    let hint = if text.contains("SignatureDoesNotMatch") {
        "the secret key is wrong"
    } else if text.contains("InvalidAccessKeyId") || text.contains("ExpiredToken") {
        "the access key is unknown or has expired"
    } else {
        "the credentials must be allowed to list the bucket, and to read and write objects in it"
    };
    Error::new(ErrorKind::StoreDenied, format!("the store denies access to {key}")).with_hint(hint)
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// The text in one line of bounded length, without the queries of URLs: signatures may stand in them. Of an XML
/// body only the code and the message: S3 repeats what was signed.
fn safe(text: &str) -> String {
    let body = text.find("<?xml").or_else(|| text.find("<Error>"));
    let text = match body.map(|at| text.split_at(at)) {
        Some((before, xml)) => {
            let said =
                ["Code", "Message"].map(|name| element(xml, name)).into_iter().flatten().collect::<Vec<_>>();
            format!("{before}{}", said.join(": "))
        }
        None => text.to_owned(),
    };
    let words = text.split_whitespace().map(|word| match word.split_once('?') {
        Some((url, _)) if url.contains("://") => url,
        _ => word,
    });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(600).collect()
}

fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}
