//! Revocation lists: which of two is the newer one, and whether one is to be believed.
//!
//! A list has a number that grows with every list of its CA (RFC 5280, 5.2.3), and a time. The number says which of two
//! is newer: a time is only as good as the clock of the machine the CA was used on, and one list made while that clock
//! was ahead would outlive all that follow. The time decides where a number is missing.

use std::cmp::Ordering;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::calendar;
use super::certificate::CertificateFacts;

/// A list that its issuer signed.
pub(super) struct RevocationList {
    pub(super) list: CertRevocationList<'static>,
    pub(super) issuer: String,
    /// The issuer's name, DER.
    pub(super) issuer_name: Vec<u8>,
    number: Option<BigUint>,
    this_update: i64,
    next_update: Option<i64>,
}

/// What a list was found to be.
pub(super) enum Parsed {
    /// One that its issuer signed.
    Signed(Arc<RevocationList>),
    /// One of this issuer, whom nobody here knows.
    Foreign(String),
}

/// A list in force that is not the one in the file.
pub(super) struct Retained {
    pub(super) issuer: String,
    /// Number and time of the list in force.
    pub(super) in_force: String,
    /// Of the one in the file; `None` if there is none of that issuer.
    pub(super) in_file: Option<String>,
}

impl RevocationList {
    /// Parses a list and holds its signature against the certificates of `issuers`.
    ///
    /// # Errors
    /// In words, if it does not parse, or names one of them and is not signed by it.
    pub(super) fn parse(der: &[u8], issuers: &[CertificateDer<'_>]) -> Result<Parsed, String> {
        let list = OwnedCertRevocationList::from_der(der)
            .map_err(|error| format!("a revocation list does not parse: {error}"))?;
        let (_, parsed) = CertificateRevocationList::from_der(der)
            .map_err(|error| format!("a revocation list does not parse: {error}"))?;
        let issuer = parsed.issuer().to_string();
        let mut named = issuers
            .iter()
            .filter_map(|certificate| X509Certificate::from_der(certificate).ok())
            .map(|(_, certificate)| certificate)
            .filter(|certificate| certificate.subject().as_raw() == parsed.issuer().as_raw())
            .peekable();
        if named.peek().is_none() {
            return Ok(Parsed::Foreign(issuer));
        }
        if !named.any(|certificate| parsed.verify_signature(certificate.public_key()).is_ok()) {
            return Err(format!("the revocation list of {issuer} is not signed by that CA"));
        }
        Ok(Parsed::Signed(Arc::new(Self {
            list: list.into(),
            issuer,
            issuer_name: parsed.issuer().as_raw().to_vec(),
            number: parsed.crl_number().cloned(),
            this_update: parsed.last_update().timestamp(),
            next_update: parsed.next_update().map(|at| at.timestamp()),
        })))
    }

    /// Whether it is newer or older than `other`, a list of the same issuer.
    pub(super) fn age_order(&self, other: &Self) -> Ordering {
        let by_number = match (&self.number, &other.number) {
            (Some(own), Some(others)) => own.cmp(others),
            _ => Ordering::Equal,
        };
        by_number.then(self.this_update.cmp(&other.this_update))
    }

    /// When it was made (Unix seconds).
    pub(super) fn made_at(&self) -> u64 {
        u64::try_from(self.this_update).unwrap_or(0)
    }

    /// Its number, if it has one that fits.
    pub(super) fn number(&self) -> Option<u64> {
        self.number.as_ref().and_then(|number| u64::try_from(number).ok())
    }

    /// Whether it is past its `nextUpdate` at `now` (Unix seconds).
    pub(super) fn is_stale(&self, now: u64) -> bool {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.next_update.is_some_and(|next| next < now)
    }

    /// Which it is, for people.
    pub(super) fn describe(&self) -> String {
        let made_at = calendar(self.made_at());
        match &self.number {
            Some(number) => format!("number {number}, of {made_at}"),
            None => format!("without a number, of {made_at}"),
        }
    }
}

/// The intermediate CAs of `chain` (own certificate first) that lead to one of `authorities`: their lists are believed as
/// well.
pub(super) fn intermediates<'a>(
    chain: &[CertificateDer<'a>],
    authorities: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    let mut found: Vec<CertificateDer<'a>> = Vec::new();
    let is_authority =
        |der: &CertificateDer<'_>| CertificateFacts::parse(der).is_ok_and(|facts| facts.is_authority);
    // From the end, where the one stands that a CA of the bundle issued.
    for candidate in chain.iter().skip(1).rev() {
        let signed = authorities.iter().chain(&found).any(|issuer| is_signed_by(candidate, issuer));
        if is_authority(candidate) && signed {
            found.push(candidate.clone());
        }
    }
    found
}

fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer))
    else {
        return false;
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}
