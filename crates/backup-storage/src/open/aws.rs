//! The client for S3, with settings found as the AWS tools find them: environment, then the profile in
//! `~/.aws/credentials` and `~/.aws/config`, then web identity, container and instance roles.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backup_core::{Error, ErrorKind, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};

use super::{Credentials, StoreOptions, client_options, single_try};
use crate::object::not_configured;

pub(super) fn client(bucket: &str, options: &StoreOptions) -> Result<AmazonS3> {
    let profile = Profile::find(options.profile.as_deref())?;
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let region =
        options.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
        .or_else(|| variable("AWS_ENDPOINT_URL"));
    let endpoint = endpoint.or_else(|| profile.get("endpoint_url"));

    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(region.or_else(|| profile.get("region")).unwrap_or_else(|| "us-east-1".to_owned()))
        .with_retry(single_try())
        // Objects are deleted one by one: every compatible store can do that, and not every one several at once.
        .with_disable_bulk_delete(true)
        .with_conditional_put(if options.conditional_create {
            S3ConditionalPut::ETagMatch
        } else {
            S3ConditionalPut::Disabled
        });
    // What the application brings goes first, then a profile that was named, the environment, the default profile.
    // They are given whole: with a key from here, a session token of the environment would be of another one.
    if let Some(credentials) = &options.credentials {
        builder = builder.with_credentials(credentials.for_s3()?);
    } else if options.profile.is_some() || variable("AWS_ACCESS_KEY_ID").is_none() {
        match profile.credentials() {
            Some(credentials) => builder = builder.with_credentials(credentials.for_s3()?),
            None => profile.refuse_other_ways()?,
        }
    }
    let mut http = options.clone();
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        builder = builder.with_virtual_hosted_style_request(options.path_style == Some(false));
        http.endpoint = Some(endpoint);
    } else {
        builder = builder.with_virtual_hosted_style_request(options.path_style != Some(true));
    }
    let kms_key = || {
        options.kms_key.clone().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "sse with KMS needs a key").with_hint("give kms_key as well")
        })
    };
    builder = match options.sse.as_deref() {
        Some("AES256") => with(builder, "aws_server_side_encryption", "AES256")?,
        Some("aws:kms") => builder.with_sse_kms_encryption(kms_key()?),
        Some(_) => builder.with_dsse_kms_encryption(kms_key()?),
        None => builder,
    };
    builder = match options.checksum.as_deref() {
        Some("sha256") => builder.with_checksum_algorithm(Checksum::SHA256),
        Some(_) => builder.with_checksum_algorithm(Checksum::CRC64NVME),
        None => builder,
    };
    builder.with_client_options(client_options(&http)).build().map_err(not_configured)
}

fn with(builder: AmazonS3Builder, key: &str, value: &str) -> Result<AmazonS3Builder> {
    let key: AmazonS3ConfigKey = key.parse().map_err(not_configured)?;
    Ok(builder.with_config(key, value))
}

/// The settings of one profile, from both files.
#[derive(Default)]
struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
}

impl Profile {
    fn find(wanted: Option<&str>) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let named =
            wanted.map(str::to_owned).or_else(|| variable("AWS_PROFILE").and_then(|v| v.into_string().ok()));
        let name = named.clone().unwrap_or_else(|| "default".to_owned());
        let home = variable("HOME").map(|home| PathBuf::from(home).join(".aws"));
        let file = |name: &str, default: &str| {
            variable(name).map(PathBuf::from).or_else(|| home.as_ref().map(|h| h.join(default)))
        };
        let mut settings = BTreeMap::new();
        let mut found = false;
        // What stands in the credentials file wins, as in the AWS tools.
        for (path, heading) in [
            (
                file("AWS_CONFIG_FILE", "config"),
                if name == "default" { name.clone() } else { format!("profile {name}") },
            ),
            (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), name.clone()),
        ] {
            let text = path.and_then(|p| std::fs::read_to_string(p).ok()).unwrap_or_default();
            if let Some(section) = section(&text, &heading) {
                found = true;
                settings.extend(section);
            }
        }
        if named.is_some() && !found {
            return Err(Error::new(ErrorKind::Config, format!("there is no AWS profile {name:?}"))
                .with_hint("aws configure list-profiles shows those that there are"));
        }
        Ok(Self { name, settings })
    }

    fn get(&self, name: &str) -> Option<String> {
        self.settings.get(name).filter(|v| !v.is_empty()).cloned()
    }

    fn credentials(&self) -> Option<Credentials> {
        Some(Credentials::S3 {
            access_key: self.get("aws_access_key_id")?,
            secret_key: self.get("aws_secret_access_key")?.into(),
            session_token: self.get("aws_session_token").map(Into::into),
        })
    }

    /// Profiles can name ways to get credentials that need the AWS tools.
    fn refuse_other_ways(&self) -> Result<()> {
        let ways = ["role_arn", "sso_start_url", "sso_session", "credential_process", "login_session"];
        match ways.iter().find(|way| self.settings.contains_key(**way)) {
            Some(way) => {
                Err(Error::new(ErrorKind::Unsupported, format!("the AWS profile {:?} uses {way}", self.name))
                    .with_hint(
                        "eval \"$(aws configure export-credentials --format env)\" gives pgark what it needs",
                    ))
            }
            None => Ok(()),
        }
    }
}

fn section(text: &str, heading: &str) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut inside = false;
    for line in text.lines().filter(|l| !l.trim_start().starts_with(['#', ';'])) {
        if let Some(name) = line.trim().strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.split_whitespace().eq(heading.split_whitespace());
            if inside {
                found.get_or_insert_default();
            }
        // Indented lines are nested settings of the one above.
        } else if let (true, Some((name, value)), false) =
            (inside, line.split_once('='), line.starts_with([' ', '\t']))
            && let Some(found) = &mut found
        {
            found.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_found_in_their_sections() {
        let text = "# c\n[default]\nregion = a\n[profile  prod]\nregion=b\ns3 =\n  max = 1\n; x = y\naws_access_key_id = K\n[other]\nregion=c\n";
        let prod = section(text, "profile prod").unwrap();
        assert_eq!((prod["region"].as_str(), prod["aws_access_key_id"].as_str()), ("b", "K"));
        assert!(!prod.contains_key("max") && !prod.contains_key("x"));
        assert!(section(text, "nothing").is_none());
    }

    #[test]
    fn a_profile_gives_its_key_with_its_own_token_only() {
        let mut profile = Profile::default();
        profile.settings.insert("aws_access_key_id".into(), "K".into());
        assert!(profile.credentials().is_none(), "half a key is none");
        profile.settings.insert("aws_secret_access_key".into(), "s3cret".into());
        let found = profile.credentials().unwrap();
        assert!(
            matches!(&found, Credentials::S3 { access_key, session_token: None, .. } if access_key == "K")
        );
        assert!(!format!("{found:?}").contains("s3cret"));
        profile.settings.insert("aws_session_token".into(), "T".into());
        assert!(matches!(profile.credentials(), Some(Credentials::S3 { session_token: Some(_), .. })));
    }
}
