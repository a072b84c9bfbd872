use std::sync::Arc;

use backup_core::{Error, ErrorKind, Result};
use object_store::StaticCredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};
use object_store::azure::{AzureAccessKey, AzureCredential, AzureCredentialProvider};
use secrecy::{ExposeSecret, SecretString};

use crate::object::not_configured;

/// Credentials that an application brings itself, instead of the environment and files. `Debug` does not show
/// the secrets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credentials {
    /// An access key of S3 or of a compatible store.
    S3 {
        /// Its id.
        access_key: String,
        /// Its secret.
        secret_key: SecretString,
        /// What temporary credentials have beside both.
        session_token: Option<SecretString>,
    },
    /// An access key of an Azure storage account, in base64.
    Azure(SecretString),
}

impl Credentials {
    pub(super) fn for_s3(&self) -> Result<AwsCredentialProvider> {
        let Credentials::S3 { access_key, secret_key, session_token } = self else {
            return Err(for_another_store());
        };
        Ok(Arc::new(StaticCredentialProvider::new(AwsCredential {
            key_id: access_key.clone(),
            secret_key: secret_key.expose_secret().to_owned(),
            token: session_token.as_ref().map(|token| token.expose_secret().to_owned()),
        })))
    }

    pub(super) fn for_azure(&self) -> Result<AzureCredentialProvider> {
        let Credentials::Azure(key) = self else { return Err(for_another_store()) };
        let key = AzureAccessKey::try_new(key.expose_secret()).map_err(|e| not_configured(e.into()))?;
        Ok(Arc::new(StaticCredentialProvider::new(AzureCredential::AccessKey(key))))
    }
}

pub(super) fn for_another_store() -> Error {
    Error::new(ErrorKind::Usage, "the given credentials are for another kind of store")
}
