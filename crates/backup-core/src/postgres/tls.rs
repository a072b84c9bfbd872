//! TLS with the meaning that libpq gives to `sslmode` (PostgreSQL documentation, "SSL Support").

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::ConnInfo;
use super::x509;
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
            Some("disable") => Self::Disable,
            Some("allow") => Self::Allow,
            None | Some("prefer") => Self::Prefer,
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
                .with_hint(
                    "the system's authorities sign for everybody: without the name they prove nothing",
                ));
        }
        Ok(mode)
    }
}

/// What the TLS of a connection takes from its settings.
pub(super) fn connector(info: &ConnInfo, mode: SslMode) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = roots(info, mode)?;
    let verifier = Arc::new(Verifier::new(roots, mode == SslMode::VerifyFull, Arc::clone(&provider))?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(info)?)
        .map_err(|e| Error::new(ErrorKind::Config, "TLS cannot be set up").caused_by(e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client_certificate(info)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
            Error::new(ErrorKind::Config, "the client certificate and its key cannot be used")
                .with_hint("sslkey must be the key that belongs to sslcert")
                .caused_by(e)
        })?,
        None => builder.with_no_client_auth(),
    };
    if info.get("sslnegotiation") == Some("direct") {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

/// The versions between `ssl_min_protocol_version` and `ssl_max_protocol_version`. rustls knows two.
fn versions(info: &ConnInfo) -> Result<Vec<&'static SupportedProtocolVersion>> {
    const NAMES: [&str; 4] = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];
    let number = |setting: &str, default: usize| match info.get(setting) {
        None => Ok(default),
        Some(given) => NAMES.iter().position(|name| name.eq_ignore_ascii_case(given)).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{given:?} is not a TLS version"))
                .with_hint(format!("{setting} is one of {}", NAMES.join(", ")))
        }),
    };
    let (lowest, highest) = (number("ssl_min_protocol_version", 2)?, number("ssl_max_protocol_version", 3)?);
    if highest < 2 {
        return Err(Error::new(ErrorKind::Unsupported, "TLS below version 1.2 is not supported")
            .with_hint("leave out ssl_max_protocol_version, and let the server speak TLS 1.2 or later"));
    }
    let wanted = [(2, &TLS12), (3, &TLS13)].into_iter().filter(|(n, _)| (lowest..=highest).contains(n));
    let wanted: Vec<_> = wanted.map(|(_, version)| version).collect();
    if wanted.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "the range of TLS protocol versions is empty")
            .with_hint("ssl_min_protocol_version must not be above ssl_max_protocol_version"));
    }
    Ok(wanted)
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
        Some(path) if mode >= SslMode::Require => {
            if let Some(list) = default_file(info, "root.crl") {
                let message = format!("lists of revoked certificates are not supported: {}", list.display());
                return Err(Error::new(ErrorKind::Unsupported, message)
                    .with_hint("libpq would refuse what stands in it; remove it if nothing in it counts"));
            }
            read_certificates(&path).map(Some)
        }
        None if mode >= SslMode::VerifyCa => Err(Error::new(
            ErrorKind::Config,
            "there is no file of certificate authorities to verify the server with",
        )
        .with_hint("name it with sslrootcert, put it at ~/.postgresql/root.crt, or use sslrootcert=system")),
        _ => Ok(None),
    }
}

impl PartialOrd for SslMode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |e: String| {
        Error::new(ErrorKind::Config, format!("no certificates can be read from {}: {e}", path.display()))
            .with_hint("sslrootcert and sslcert name files in PEM")
    };
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
    match info.get("sslcertmode") {
        None | Some("allow") => {}
        Some("disable") => return Ok(None),
        Some(other) => {
            return Err(Error::new(ErrorKind::Usage, format!("{other:?} is not an sslcertmode"))
                .with_hint("use allow or disable"));
        }
    }
    let given = info.get("sslcert").map(PathBuf::from);
    let Some(certificate) = given.or_else(|| default_file(info, "postgresql.crt")) else { return Ok(None) };
    let chain = read_certificates(&certificate)?;
    let key = info.get("sslkey").map(PathBuf::from).or_else(|| default_file(info, "postgresql.key"));
    let Some(key) = key else {
        return Err(Error::new(ErrorKind::Config, "there is a client certificate, and no key for it")
            .with_hint("name it with sslkey"));
    };
    let wrong = |why: String| {
        Error::new(ErrorKind::Config, format!("the client key {} {why}", key.display()))
            .with_hint("sslkey names a file in PEM, without a passphrase")
    };
    let metadata = std::fs::metadata(&key).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let forbidden = if metadata.uid() == 0 { 0o027 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(wrong("can be read by others".to_owned()).with_hint("chmod 0600 it"));
    }
    let parsed = PrivateKeyDer::from_pem_file(&key).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    Ok(Some((chain, parsed)))
}

/// Verifies as much of the server's certificate as the mode asks for.
#[derive(Debug)]
struct Verifier {
    /// None where it does not matter who the server is.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The file of authorities.
    roots: Vec<CertificateDer<'static>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        roots: Option<Vec<CertificateDer<'static>>>,
        check_name: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self> {
        let Some(roots) = roots else {
            return Ok(Self { chain: None, roots: Vec::new(), check_name, provider });
        };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|e| {
                Error::new(ErrorKind::Config, "the certificate authorities cannot be used")
                    .with_hint("sslrootcert names a file of X.509 certificates in PEM")
                    .caused_by(e)
            })?;
        Ok(Self { chain: Some(chain), roots, check_name, provider })
    }

    /// OpenSSL, and so libpq, accepts a server whose certificate is an authority of the file itself, as
    /// `openssl req -x509` makes them. webpki does not; it says so after it has looked at the dates.
    fn is_an_authority_itself(&self, certificate: &CertificateDer<'_>, refused: &CertificateError) -> bool {
        let CertificateError::Other(why) = refused else { return false };
        let why = why.0.downcast_ref::<webpki::Error>();
        why == Some(&webpki::Error::CaUsedAsEndEntity) && self.roots.iter().any(|root| root == certificate)
    }

    fn verify_name(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        if !self.check_name {
            return Ok(());
        }
        match rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name) {
            // Without any alternative name libpq takes the one in the subject.
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            })) if presented.is_empty()
                && x509::Fields::parse(certificate).is_some_and(|f| f.subject_names(&name.to_str())) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// The key that signs the handshake, where nothing else of the certificate matters. rustls refuses to
    /// read certificates of X.509 version 1, which OpenSSL made until 3.2 wherever no extension was asked for.
    fn bare_key<'a>(&self, certificate: &'a CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'a>> {
        if self.chain.is_some() {
            return None;
        }
        x509::Fields::parse(certificate).map(|fields| SubjectPublicKeyInfoDer::from(fields.public_key))
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
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is verified before the name.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(rustls::Error::InvalidCertificate(e)) if self.is_an_authority_itself(end_entity, &e) => {}
            other => return other,
        }
        self.verify_name(end_entity, server_name).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let Some(key) = self.bare_key(cert) else {
            return rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms);
        };
        let refused = || rustls::Error::from(CertificateError::BadSignature);
        let key = webpki::RawPublicKeyEntity::try_from(&key).map_err(|_| refused())?;
        // The scheme does not name the curve, so several may fit.
        let fitting = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
        let mut fitting = fitting.flat_map(|(_, algorithms)| algorithms.iter());
        if fitting.any(|algorithm| key.verify_signature(*algorithm, message, dss.signature()).is_ok()) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match self.bare_key(cert) {
            Some(key) => rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, dss, algorithms),
            None => rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
