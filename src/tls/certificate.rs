//! What a certificate says: facts read from its DER, before anything is trusted.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::error::CertificateFault;
use crate::escrow::ids::{Identity, Invalid};

/// The facts of one certificate. Reading them verifies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its SPIFFE id; an error if it does not carry exactly one URI, or one that is no identity of ours.
    pub identity: Result<Identity, Invalid>,
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// First valid second (Unix).
    pub not_before: u64,
    /// Last valid second (Unix).
    pub not_after: u64,
    /// Its DNS names.
    pub dns: Vec<String>,
    /// Its IP addresses.
    pub ips: Vec<IpAddr>,
    /// Its URI names.
    pub uris: Vec<String>,
    /// Its subject, readable.
    pub subject: String,
    /// Its issuer, readable.
    pub issuer: String,
    /// It may issue certificates.
    pub is_authority: bool,
    /// Its public key, DER (SubjectPublicKeyInfo).
    public_key: Vec<u8>,
}

impl CertificateFacts {
    /// Reads the facts of a DER certificate.
    ///
    /// # Errors
    /// [`CertificateFault::Malformed`] if it does not parse as X.509 version 3.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateFault> {
        let malformed = |what: String| CertificateFault::Malformed(what);
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        let names = match certificate.subject_alternative_name() {
            Ok(extension) => extension.map(|found| found.value.general_names.as_slice()).unwrap_or_default(),
            Err(error) => return Err(malformed(error.to_string())),
        };
        let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
        let validity = certificate.validity();
        Ok(Self {
            identity: identity(names),
            serial: data_encoding::HEXLOWER.encode(certificate.raw_serial()),
            not_before: seconds(validity.not_before.timestamp()),
            not_after: seconds(validity.not_after.timestamp()),
            dns: names.iter().filter_map(dns_name).collect(),
            ips: names.iter().filter_map(ip_address).collect(),
            uris: names.iter().filter_map(uri).map(str::to_owned).collect(),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            is_authority: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Whether `at` (Unix seconds) lies within its validity.
    pub fn is_valid_at(&self, at: u64) -> bool {
        (self.not_before..=self.not_after).contains(&at)
    }

    /// Its public key, DER (SubjectPublicKeyInfo).
    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether its public key is this one (DER, SubjectPublicKeyInfo).
    pub(super) fn is_key(&self, public_key: &[u8]) -> bool {
        self.public_key == public_key
    }
}

/// The facts of the first certificate of a chain.
pub(super) fn leaf_facts(chain: &[CertificateDer<'_>]) -> Result<CertificateFacts, CertificateFault> {
    let leaf = chain.first().ok_or_else(|| CertificateFault::Malformed("the chain is empty".to_owned()))?;
    CertificateFacts::parse(leaf)
}

/// The X.509-SVID specification (§2): exactly one URI name, which is the SPIFFE id.
fn identity(names: &[GeneralName<'_>]) -> Result<Identity, Invalid> {
    let mut uris = names.iter().filter_map(uri);
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse(),
        (None, _) => {
            Err(Invalid::new("identity", "a URI name spiffe://<cluster>/<role>/<name>; there is none"))
        }
        (Some(_), Some(_)) => Err(Invalid::new("identity", "exactly one URI name; there are several")),
    }
}

fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::URI(uri) => Some(uri),
        _ => None,
    }
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        _ => None,
    }
}

fn ip_address(name: &GeneralName<'_>) -> Option<IpAddr> {
    match name {
        GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
