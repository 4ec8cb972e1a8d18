//! What stands in the certificates a CA makes.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::index::IndexRecord;
use crate::escrow::ids::{ClusterName, Invalid, Role};
use crate::tls::certificate::CertificateFacts;
use crate::tls::error::TlsError;

/// RFC 5280 §4.1.2.2: at most 20 bytes; positive.
pub(super) const SERIAL_BYTES: usize = 20;

pub(super) fn generate_key() -> Result<KeyPair, TlsError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(TlsError::Generate)
}

pub(super) fn random_serial() -> Result<[u8; SERIAL_BYTES], TlsError> {
    let mut serial = [0; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| TlsError::Generate(rcgen::Error::RingUnspecified))?;
    // Positive, and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

pub(super) fn date(seconds: u64) -> Result<OffsetDateTime, TlsError> {
    let at = i64::try_from(seconds).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    at.ok_or_else(|| Invalid::new("validity", "a time before the year 10000").into())
}

/// X.509-SVID §3: a signing certificate names the trust domain and no path.
pub(in crate::tls) fn cluster_of(facts: &CertificateFacts) -> Option<ClusterName> {
    match facts.uris.as_slice() {
        [uri] => uri.strip_prefix("spiffe://")?.parse().ok(),
        _ => None,
    }
}

pub(super) fn authority_params(
    cluster: &ClusterName,
    not_before: u64,
    not_after: u64,
) -> Result<CertificateParams, TlsError> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    // Part of the serial number keeps two CAs of one cluster apart by name, which is how revocation lists are found.
    let tag = data_encoding::HEXLOWER.encode(&serial[SERIAL_BYTES - 4..]);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("Strongroom CA {tag}"));
    params.subject_alt_names = vec![SanType::URI(ia5(format!("spiffe://{cluster}"))?)];
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    (params.not_before, params.not_after) = (date(not_before)?, date(not_after)?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(super) fn leaf_params(record: &IndexRecord, serial: &[u8]) -> Result<CertificateParams, TlsError> {
    let identity = &record.identity;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, identity.cluster.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, identity.role.as_str());
    params.distinguished_name.push(DnType::CommonName, identity.name.as_str());
    params.subject_alt_names.push(SanType::URI(ia5(identity.to_string())?));
    for name in &record.dns {
        params.subject_alt_names.push(SanType::DnsName(dns_name(name)?));
    }
    params.subject_alt_names.extend(record.ips.iter().copied().map(SanType::IpAddress));
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    (params.not_before, params.not_after) = (date(record.not_before)?, date(record.not_after)?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match identity.role {
        Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        _ => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ia5(text: String) -> Result<rcgen::string::Ia5String, TlsError> {
    text.try_into().map_err(TlsError::Generate)
}

/// A host name (RFC 1123), or one with a wildcard as its first label.
fn dns_name(name: &str) -> Result<rcgen::string::Ia5String, TlsError> {
    let host = name.strip_prefix("*.").unwrap_or(name);
    match rustls::pki_types::DnsName::try_from(host) {
        Ok(_) => ia5(name.to_owned()),
        Err(_) => Err(Invalid::new("dns", format!("a host name; found {name:?}")).into()),
    }
}
