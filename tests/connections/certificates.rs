//! Certificates made for a test.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate and its key, in PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "pgark tests");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A server's certificate for these names and addresses.
    pub(crate) fn server(&self, names: &[&str]) -> Identity {
        self.sign(&params("a server", names))
    }

    /// A server's certificate as many are: its name is only in the subject.
    pub(crate) fn old_style_server(&self, common_name: &str) -> Identity {
        self.sign(&params(common_name, &[]))
    }

    pub(crate) fn client(&self, user: &str) -> Identity {
        let mut params = params(user, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }
}

/// As `openssl req -x509` makes one, which PostgreSQL's manual advises: an authority that is the server itself.
pub(crate) fn self_signed(common_name: &str, names: &[&str], expired: bool) -> Identity {
    let mut params = params(common_name, names);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if expired {
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    Identity { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// A certificate of X.509 version 1 for localhost, as `openssl x509 -req` made them before OpenSSL 3.2.
pub(crate) fn version_1() -> Identity {
    let certificate = "\
-----BEGIN CERTIFICATE-----
MIIBIzCBywIUEAeZo+w77U1sDwrgyJh723U2OvEwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJdGVzdCByb290MCAXDTI2MTEyMTA2NDcwM1oYDzIxMjYxMDI4MDY0NzAz
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQyyPQObG3Lr7VqJhD0j+Xj9BzH05xEWzyy1zxEvRAu0Hg3ISYwnExkPKGi3Jdh
EtuwN4BuZ82FNr6ojTRCGKd3MAoGCCqGSM49BAMCA0cAMEQCIFAWjKlwcDdsiYxr
2dIHeQOFRB+Rlhb0VJ+kOIS09jAWAiBL7MjgouCgsEMCxxi21ylxTkYdyhfqxI20
PSD0Wvf9gA==
-----END CERTIFICATE-----
";
    let key = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgA1twsERB4QNTmHa+
HsWgiJPIuzm/y8Tq+02v6LzMxnmhRANCAAQyyPQObG3Lr7VqJhD0j+Xj9BzH05xE
Wzyy1zxEvRAu0Hg3ISYwnExkPKGi3JdhEtuwN4BuZ82FNr6ojTRCGKd3
-----END PRIVATE KEY-----
";
    Identity { certificate: certificate.into(), key: key.into() }
}
