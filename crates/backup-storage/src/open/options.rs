use backup_core::{Error, ErrorKind, Result};

use super::Credentials;
use crate::classes::StorageClasses;
use crate::remote::RetryPolicy;

/// How a store is reached. The names are those of a URL's query and of the configuration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// `endpoint`: URL of a compatible server.
    pub endpoint: Option<String>,
    /// `region` of the bucket (S3).
    pub region: Option<String>,
    /// `path_style`: the bucket stands in the path, not in the host's name (S3). By default it does where an
    /// endpoint is given.
    pub path_style: Option<bool>,
    /// `profile` of `~/.aws/credentials` and `~/.aws/config` (S3).
    pub profile: Option<String>,
    /// Credentials that an application brings. They go before those of a profile and of the environment, and
    /// have no name: they stand neither in a URL nor in the configuration.
    pub credentials: Option<Credentials>,
    /// `account` (Azure).
    pub account: Option<String>,
    /// `storage_class` of parts, and `storage_class.parts`, `storage_class.wal` and so on by kind: `STANDARD_IA`,
    /// `GLACIER_IR` … (S3, Google).
    pub storage_class: StorageClasses,
    /// `sse`: server-side encryption, `AES256`, `aws:kms` or `aws:kms:dsse` (S3).
    pub sse: Option<String>,
    /// `kms_key` for it (S3).
    pub kms_key: Option<String>,
    /// `checksum` that the store verifies: `sha256` or `crc64nvme` (S3).
    pub checksum: Option<String>,
    /// `conditional_create`: the store refuses to create what exists. All do that are known today; for one
    /// that does not, `false` makes pgark look first.
    pub conditional_create: bool,
    /// Retries and time limits: `timeout` in seconds, `retries`.
    pub retry: RetryPolicy,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            profile: None,
            credentials: None,
            account: None,
            storage_class: StorageClasses::default(),
            sse: None,
            kms_key: None,
            checksum: None,
            conditional_create: true,
            retry: RetryPolicy::default(),
        }
    }
}

impl StoreOptions {
    /// Sets an option by its name.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) for an unknown name or a value that cannot be.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |why: String| Err(Error::new(ErrorKind::Usage, why));
        let text = || Some(value.to_owned());
        let truth = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(Error::new(ErrorKind::Usage, format!("{name} is true or false, not {value:?}"))),
        };
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| Error::new(ErrorKind::Usage, format!("{name} is a number, not {value:?}")))
        };
        match name {
            "endpoint" if !value.starts_with("http://") && !value.starts_with("https://") => {
                return wrong(format!("the endpoint {value:?} does not begin with https:// or http://"));
            }
            "endpoint" => self.endpoint = text(),
            "region" => self.region = text(),
            "path_style" => self.path_style = Some(truth()?),
            "profile" => self.profile = text(),
            "account" => self.account = text(),
            "storage_class" => self.storage_class.set("parts", value)?,
            _ if name.starts_with("storage_class.") => {
                self.storage_class.set(&name["storage_class.".len()..], value)?;
            }
            "sse" if !matches!(value, "AES256" | "aws:kms" | "aws:kms:dsse") => {
                return wrong(format!("sse is AES256, aws:kms or aws:kms:dsse, not {value:?}"));
            }
            "sse" => self.sse = text(),
            "kms_key" => self.kms_key = text(),
            "checksum" if !matches!(value, "sha256" | "crc64nvme") => {
                return wrong(format!("checksum is sha256 or crc64nvme, not {value:?}"));
            }
            "checksum" => self.checksum = text(),
            "conditional_create" => self.conditional_create = truth()?,
            "timeout" => self.retry.timeout = std::time::Duration::from_secs(number()?.max(1).into()),
            "retries" => self.retry.retries = number()? as usize,
            _ => {
                return Err(Error::new(ErrorKind::Usage, format!("unknown option {name:?} of a repository's URL")).with_hint(
                    "known are endpoint, region, path_style, profile, account, storage_class, sse, kms_key, checksum, \
                     conditional_create, timeout and retries",
                ));
            }
        }
        Ok(())
    }
}
