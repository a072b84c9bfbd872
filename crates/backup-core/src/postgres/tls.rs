//! TLS with the meaning that libpq gives to `sslmode` (PostgreSQL documentation, "SSL Support").

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::ConnInfo;
use crate::error::{Error, ErrorKind, Result};

/// `sslmode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub(super) fn of(info: &ConnInfo) -> Result<Self> {
        let system = info.get("sslrootcert") == Some("system");
        let mode = match info.get("sslmode") {
            None if system => Self::VerifyFull,
            None => Self::Prefer,
            Some("disable") => Self::Disable,
            Some("allow") => Self::Allow,
            Some("prefer") => Self::Prefer,
            Some("require") => Self::Require,
            Some("verify-ca") => Self::VerifyCa,
            Some("verify-full") => Self::VerifyFull,
            Some(other) => {
                return Err(Error::new(ErrorKind::Usage, format!("{other:?} is not an sslmode"))
                    .with_hint("use disable, allow, prefer, require, verify-ca or verify-full"));
            }
        };
        if system && mode != Self::VerifyFull {
            return Err(Error::new(ErrorKind::Usage, "sslrootcert=system asks for sslmode=verify-full")
                .with_hint("the system's authorities sign for everybody: without the name they prove nothing"));
        }
        Ok(mode)
    }
}

/// What the TLS of a connection takes from its settings.
pub(super) fn connector(info: &ConnInfo, mode: SslMode) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = roots(info, mode)?;
    let verifier = Arc::new(Verifier::new(roots, mode == SslMode::VerifyFull, Arc::clone(&provider))?);
    let failed = |e| Error::new(ErrorKind::Config, "TLS cannot be set up").caused_by(e);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client_certificate(info)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(failed)?,
        None => builder.with_no_client_auth(),
    };
    if info.get("sslnegotiation") == Some("direct") {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

fn default_file(info: &ConnInfo, name: &str) -> Option<PathBuf> {
    info.home.as_ref().map(|home| home.join(".postgresql").join(name)).filter(|path| path.exists())
}

/// The authorities to trust; none where the mode does not ask who the server is. As in libpq, `require` with
/// a file of authorities verifies like `verify-ca`.
fn roots(info: &ConnInfo, mode: SslMode) -> Result<Option<Vec<CertificateDer<'static>>>> {
    if info.get("sslrootcert") == Some("system") {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            return Err(Error::new(ErrorKind::Config, "the system has no certificate authorities")
                .with_hint("install ca-certificates, or name a file with sslrootcert"));
        }
        return Ok(Some(found.certs));
    }
    let given = info.get("sslrootcert").map(PathBuf::from);
    match given.or_else(|| default_file(info, "root.crt")) {
        Some(path) if mode >= SslMode::Require => read_certificates(&path).map(Some),
        Some(_) => Ok(None),
        None if mode >= SslMode::VerifyCa => {
            Err(Error::new(ErrorKind::Config, "there is no file of certificate authorities to verify the server with")
                .with_hint("name it with sslrootcert, put it at ~/.postgresql/root.crt, or use sslrootcert=system"))
        }
        None => Ok(None),
    }
}

impl PartialOrd for SslMode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |e: String| Error::new(ErrorKind::Config, format!("no certificates can be read from {}: {e}", path.display()));
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| wrong(e.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(e.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("there are none in it".to_owned()));
    }
    Ok(certificates)
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(info: &ConnInfo) -> Result<Option<ClientCertificate>> {
    let given = info.get("sslcert").map(PathBuf::from);
    let Some(certificate) = given.or_else(|| default_file(info, "postgresql.crt")) else { return Ok(None) };
    let key = info.get("sslkey").map(PathBuf::from).or_else(|| default_file(info, "postgresql.key"));
    let Some(key) = key else {
        return Err(Error::new(ErrorKind::Config, "there is a client certificate, and no key for it").with_hint("name it with sslkey"));
    };
    let wrong = |why: String| Error::new(ErrorKind::Config, format!("the client key {} {why}", key.display()));
    let metadata = std::fs::metadata(&key).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let forbidden = if metadata.uid() == 0 { 0o027 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(wrong("can be read by others".to_owned()).with_hint("chmod 0600 it"));
    }
    let parsed = PrivateKeyDer::from_pem_file(&key).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    Ok(Some((read_certificates(&certificate)?, parsed)))
}

/// Verifies as much of the server's certificate as the mode asks for.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The file of authorities: OpenSSL, and so libpq, accepts a server certificate that stands in it itself.
    pinned: Vec<CertificateDer<'static>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(roots: Option<Vec<CertificateDer<'static>>>, check_name: bool, provider: Arc<CryptoProvider>) -> Result<Self> {
        let Some(pinned) = roots else { return Ok(Self { chain: None, pinned: Vec::new(), check_name, provider }) };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(pinned.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|e| Error::new(ErrorKind::Config, "the certificate authorities cannot be used").caused_by(e))?;
        Ok(Self { chain: Some(chain), pinned, check_name, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.pinned.iter().any(|p| p == end_entity) {
            if self.check_name {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        // The chain is verified before the name.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.check_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
