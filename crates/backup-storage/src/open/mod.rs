//! A store from a URL.

mod aws;
mod credentials;
mod options;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use backup_core::{Error, ErrorKind, Result, Store};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::Url;

pub use credentials::Credentials;
pub use options::StoreOptions;

use credentials::for_another_store;

use crate::local::LocalStore;
use crate::memory::MemoryTransport;
use crate::object::{Bucket, Client, not_configured};
use crate::remote::Remote;

/// Memory stores of this process, by name.
static MEMORY: LazyLock<Mutex<HashMap<String, MemoryTransport>>> = LazyLock::new(Mutex::default);

/// Opens a store.
///
/// | URL | store |
/// | --- | --- |
/// | `./backups`, `/var/backups`, `file:///var/backups` | a local folder |
/// | `s3://bucket/folder` | S3 and compatible; `?endpoint=…&region=…&path_style=true` |
/// | `gs://bucket/folder` | Google Cloud Storage |
/// | `az://container/folder` | Azure Blob; the account by `?account=…` or `AZURE_STORAGE_ACCOUNT_NAME` |
/// | `memory:name` | memory of this process, for tests |
///
/// What stands in the URL's query goes before `options`. Credentials are those of
/// [`StoreOptions::credentials`], or found as the cloud's own tools find them; they never stand in a URL. Nothing
/// is connected yet.
pub fn open(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>> {
    let wrong = |why: String| {
        Error::new(ErrorKind::Usage, why).with_hint(
            "use a folder, file:///…, s3://bucket/folder, gs://bucket/folder or az://container/folder",
        )
    };
    if let Some(name) = url.strip_prefix("memory:") {
        let transport =
            MEMORY.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().clone();
        return Ok(Arc::new(Remote::new(transport, url, options.retry.clone())));
    }
    if !url.contains("://") {
        if url.is_empty() {
            return Err(wrong("the repository's place is empty".into()));
        }
        return Ok(Arc::new(LocalStore::new(absolute(url)?)));
    }
    let parsed = Url::parse(url).map_err(|e| wrong(format!("the repository's URL is wrong: {e}")))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong("credentials do not belong into the repository's URL".into()));
    }
    let mut options = options.clone();
    for (name, value) in parsed.query_pairs() {
        options.set(&name, &value)?;
    }
    let bucket = parsed.host_str().unwrap_or_default().to_owned();
    let place = Place {
        prefix: parsed.path().trim_matches('/').to_owned(),
        location: format!("{}://{bucket}{}", parsed.scheme(), parsed.path().trim_end_matches('/')),
    };
    if bucket.is_empty() && parsed.scheme() != "file" {
        return Err(wrong("the repository's URL names no bucket".into()));
    }
    match parsed.scheme() {
        "file" => {
            let path = parsed
                .to_file_path()
                .map_err(|()| wrong("the file URL names no path of this machine".into()))?;
            Ok(Arc::new(LocalStore::new(path)))
        }
        "s3" | "s3a" => Ok(place.open(aws::client(&bucket, &options)?, &options)),
        "gs" => Ok(place.open(google(&bucket, &options)?, &options)),
        "az" | "azure" => Ok(place.open(azure(&bucket, &options)?, &options)),
        other => Err(wrong(format!("no store is called {other}://"))),
    }
}

fn google(bucket: &str, options: &StoreOptions) -> Result<GoogleCloudStorage> {
    refuse_what_only_s3_can(options)?;
    if options.credentials.is_some() {
        return Err(for_another_store());
    }
    let mut client = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(single_try());
    if let Some(endpoint) = &options.endpoint {
        client = client.with_base_url(endpoint.trim_end_matches('/'));
    }
    client.with_client_options(client_options(options)).build().map_err(not_configured)
}

fn azure(container: &str, options: &StoreOptions) -> Result<MicrosoftAzure> {
    refuse_what_only_s3_can(options)?;
    if !options.storage_class.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a storage class cannot be chosen for uploads to Azure",
        )
        .with_hint("set the access tier on the account, or by a lifecycle rule"));
    }
    let mut client =
        MicrosoftAzureBuilder::from_env().with_container_name(container).with_retry(single_try());
    if let Some(account) = &options.account {
        client = client.with_account(account);
    }
    if let Some(credentials) = &options.credentials {
        client = client.with_credentials(credentials.for_azure()?);
    }
    if let Some(endpoint) = &options.endpoint {
        client = client
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_allow_http(endpoint.starts_with("http://"));
    }
    client.with_client_options(client_options(options)).build().map_err(not_configured)
}

/// Who asks for encryption at rest must not get a store without it.
fn refuse_what_only_s3_can(options: &StoreOptions) -> Result<()> {
    let asked = [("sse", &options.sse), ("kms_key", &options.kms_key), ("checksum", &options.checksum)];
    match asked.iter().find(|(_, value)| value.is_some()) {
        Some((name, _)) => {
            Err(Error::new(ErrorKind::Unsupported, format!("{name} can only be chosen for S3")).with_hint(
                "this store encrypts by itself, with the key that the bucket or the account is set to",
            ))
        }
        None => Ok(()),
    }
}

fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(format!("finding the folder {path}"), e))
}

struct Place {
    prefix: String,
    location: String,
}

impl Place {
    fn open<C: Client>(self, client: C, options: &StoreOptions) -> Arc<dyn Store> {
        let bucket = Bucket {
            client,
            prefix: self.prefix,
            storage_class: options.storage_class.clone(),
            conditional_create: options.conditional_create,
        };
        Arc::new(Remote::new(bucket, self.location, options.retry.clone()))
    }
}

/// [`Remote`] repeats requests, so the client does not.
fn single_try() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: std::time::Duration::ZERO,
        backoff: BackoffConfig::default(),
    }
}

/// [`Remote`] limits the time of requests; a read may take as long as bytes come.
fn client_options(options: &StoreOptions) -> ClientOptions {
    let http = options.endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.retry.timeout.min(std::time::Duration::from_secs(10)))
        .with_allow_http(http)
}
