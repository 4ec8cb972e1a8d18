//! Whom this process believes: the CAs, their revocation lists, and the one function that judges a chain.
//!
//! Revocation: every certificate of a chain is looked up in the list of its issuer, if one is loaded; an issuer
//! without a list is not checked, and warned about if there are lists of others. A list past its `nextUpdate` stays in
//! force and is warned about: what it revokes stays revoked, and a forgotten file does not lock everybody out of their
//! disks. While a process runs, a list is only ever replaced by a newer one of the same issuer: a file that was cut
//! short, restored from a backup or overwritten with another CA's list makes nobody's certificate valid again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::certificate::{CertificateFacts, leaf_facts};
use super::error::{CertificateFault, TlsError};
use super::{files, unix_now};
use crate::escrow::ids::Identity;

/// Most CAs in one bundle.
pub const AUTHORITIES_MAX: usize = 64;

/// The CAs that are believed, with their revocation lists.
pub struct TrustAnchors {
    authorities: Vec<Authority>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Newest first: webpki takes the first list that speaks for an issuer.
    revocation_lists: Vec<Arc<RevocationList>>,
    /// Issuers whose list in force is not the one in the file.
    retained: Vec<String>,
}

/// A CA of the bundle, beside its trust anchor (webpki drops an anchor's validity).
struct Authority {
    certificate: CertificateDer<'static>,
    facts: CertificateFacts,
    /// Its subject as revocation lists name it, DER.
    subject: Vec<u8>,
}

struct RevocationList {
    list: CertRevocationList<'static>,
    issuer: String,
    /// The issuer's name, DER.
    issuer_name: Vec<u8>,
    this_update: i64,
    next_update: Option<i64>,
}

/// What a chain was found to be.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) identity: Identity,
    pub(super) serial: String,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// The first moment (Unix seconds) any certificate of the path, CA included, stops being valid.
    pub(super) expires_at: u64,
}

/// Which side of a connection a certificate speaks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Client,
    Server,
}

impl TrustAnchors {
    /// The CAs of a PEM file, without revocation lists: enough to verify what was signed, offline.
    ///
    /// # Errors
    /// [`TlsError::File`] if it cannot be read, [`TlsError::Unusable`] if it does not hold CA certificates.
    pub fn from_pem_file(path: &Path) -> Result<Self, TlsError> {
        Self::from_pem(path, &files::read(path)?)
    }

    /// What the CAs' certificates say, in the order of the bundle.
    pub fn authorities(&self) -> impl Iterator<Item = &CertificateFacts> {
        self.authorities.iter().map(|authority| &authority.facts)
    }

    /// As [`TrustAnchors::from_pem_file`], from the content; `path` is for the errors.
    pub(super) fn from_pem(path: &Path, pem: &[u8]) -> Result<Self, TlsError> {
        let unusable = |what: String| TlsError::Unusable { path: path.to_owned(), what };
        let mut trust = Self {
            authorities: Vec::new(),
            anchors: Vec::new(),
            revocation_lists: Vec::new(),
            retained: Vec::new(),
        };
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| unusable(format!("not PEM: {error}")))?;
            trust.add(certificate).map_err(unusable)?;
        }
        match trust.anchors.len() {
            0 => Err(unusable("holds no CA certificate (PEM, BEGIN CERTIFICATE)".to_owned())),
            1..=AUTHORITIES_MAX => Ok(trust),
            more => {
                Err(unusable(format!("holds {more} CA certificates; at most {AUTHORITIES_MAX} are accepted")))
            }
        }
    }

    fn add(&mut self, certificate: CertificateDer<'static>) -> Result<(), String> {
        let facts =
            CertificateFacts::parse(&certificate).map_err(|fault| format!("a certificate {fault}"))?;
        if !facts.is_authority {
            return Err(format!("the certificate of {} is not a CA's", facts.subject));
        }
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|error| format!("the CA certificate of {} is not usable: {error}", facts.subject))?
            .to_owned();
        // webpki finds a revocation list by its issuer's name alone, so one name must mean one key.
        let clash = |known: &TrustAnchor<'_>| {
            known.subject == anchor.subject && known.subject_public_key_info != anchor.subject_public_key_info
        };
        if self.anchors.iter().any(clash) {
            return Err(format!("two CAs with different keys are both named {}: rename one", facts.subject));
        }
        let subject = match X509Certificate::from_der(&certificate) {
            Ok((_, parsed)) => parsed.subject().as_raw().to_vec(),
            Err(error) => return Err(format!("a certificate does not parse: {error}")),
        };
        self.anchors.push(anchor);
        self.authorities.push(Authority { certificate, facts, subject });
        Ok(())
    }

    /// Adds the revocation lists of a PEM file. One of a CA in the bundle must carry its signature; one of another
    /// issuer (an intermediate CA) is kept and its signature checked when it is used.
    pub(super) fn with_revocation_lists(mut self, path: &Path, pem: &[u8]) -> Result<Self, TlsError> {
        let unusable = |what: String| TlsError::Unusable { path: path.to_owned(), what };
        for der in CertificateRevocationListDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| unusable(format!("not PEM: {error}")))?;
            let list = self.parse_revocation_list(&der).map_err(unusable)?;
            self.revocation_lists.push(Arc::new(list));
        }
        if self.revocation_lists.is_empty() {
            return Err(unusable("holds no revocation list (PEM, BEGIN X509 CRL)".to_owned()));
        }
        self.sort_revocation_lists();
        Ok(self)
    }

    /// Keeps in force each list of `previous` that these CAs still speak for and that nothing newer replaces.
    pub(super) fn keeping_lists_of(mut self, previous: &Self) -> Self {
        for list in &previous.revocation_lists {
            let replaced = |newer: &Arc<RevocationList>| {
                newer.issuer_name == list.issuer_name && newer.this_update >= list.this_update
            };
            if previous.speaks_for(list, &self) && !self.revocation_lists.iter().any(replaced) {
                self.revocation_lists.push(list.clone());
                self.retained.push(list.issuer.clone());
            }
        }
        self.sort_revocation_lists();
        self
    }

    /// Whether the issuer of `list`, one of ours, is the same CA in `next`; or an intermediate one, which is in neither.
    fn speaks_for(&self, list: &RevocationList, next: &Self) -> bool {
        let of = |trust: &Self| {
            let issuer = trust.authorities.iter().find(|authority| authority.subject == list.issuer_name);
            issuer.map(|authority| authority.facts.public_key().to_vec())
        };
        of(self) == of(next)
    }

    fn sort_revocation_lists(&mut self) {
        self.revocation_lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
    }

    fn parse_revocation_list(&self, der: &[u8]) -> Result<RevocationList, String> {
        let list = OwnedCertRevocationList::from_der(der)
            .map_err(|error| format!("a revocation list does not parse: {error}"))?;
        let (_, parsed) = CertificateRevocationList::from_der(der)
            .map_err(|error| format!("a revocation list does not parse: {error}"))?;
        let issuer = parsed.issuer().to_string();
        for authority in &self.authorities {
            // It parsed when it was added.
            let Ok((_, certificate)) = X509Certificate::from_der(&authority.certificate) else { continue };
            if authority.subject == parsed.issuer().as_raw() {
                parsed
                    .verify_signature(certificate.public_key())
                    .map_err(|_| format!("the revocation list of {issuer} is not signed by that CA"))?;
            }
        }
        Ok(RevocationList {
            list: list.into(),
            issuer,
            issuer_name: parsed.issuer().as_raw().to_vec(),
            this_update: parsed.last_update().timestamp(),
            next_update: parsed.next_update().map(|at| at.timestamp()),
        })
    }

    /// Verifies what was signed with the key of a certificate (ECDSA P-256 with SHA-256), offline: the chain leads
    /// to a CA of ours and is valid at `at_unix_seconds` (`None`: now), and the signature is the certificate's.
    /// `certificates` is DER, the signer's own first. Returns who signed.
    ///
    /// # Errors
    /// [`TlsError::Peer`] if the chain is not acceptable, [`TlsError::Signature`] if the signature is not.
    pub fn verify_signed(
        &self,
        certificates: &[Vec<u8>],
        message: &[u8],
        signature: &[u8],
        at_unix_seconds: Option<u64>,
    ) -> Result<Identity, TlsError> {
        let chain = chain_of(certificates);
        let at = at_unix_seconds.unwrap_or_else(unix_now);
        let verified = self.verify(&chain, Side::Client, at).map_err(TlsError::Peer)?;
        verify_signature(&chain, message, signature)?;
        Ok(verified.identity)
    }

    /// As [`TrustAnchors::verify_signed`], for what was signed at some unknown moment at or after `since` (Unix
    /// seconds): the chain may be younger than `since`, but must not have ended before it.
    ///
    /// # Errors
    /// As [`TrustAnchors::verify_signed`].
    pub fn verify_signed_since(
        &self,
        certificates: &[Vec<u8>],
        message: &[u8],
        signature: &[u8],
        since: u64,
    ) -> Result<Identity, TlsError> {
        let leaf = leaf_facts(&chain_of(certificates)).map_err(TlsError::Peer)?;
        self.verify_signed(certificates, message, signature, Some(since.max(leaf.not_before)))
    }

    /// Judges a chain (own certificate first) at a time, revocation included.
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        now: u64,
    ) -> Result<Verified, CertificateFault> {
        let facts = leaf_facts(chain)?;
        let path_end = self.verify_path(chain, side, now).map_err(|error| fault(error, &facts, now))?;
        let identity = facts.identity.map_err(|invalid| CertificateFault::NoIdentity(invalid.expected))?;
        Ok(Verified {
            identity,
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
            expires_at: path_end.min(facts.not_after),
        })
    }

    /// The first moment the part of the path above the leaf stops being valid.
    fn verify_path(&self, chain: &[CertificateDer<'_>], side: Side, now: u64) -> Result<u64, webpki::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(webpki::Error::BadDer)?;
        let leaf = EndEntityCert::try_from(leaf)?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let lists: Vec<_> = self.revocation_lists.iter().map(|list| &list.list).collect();
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_status_policy(UnknownStatusPolicy::Allow).build());
        let within_authority = |path: &VerifiedPath<'_>| self.check_authority(path, now);
        let path = leaf.verify_for_usage(
            supported_algorithms().all,
            &self.anchors,
            intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            usage,
            revocation,
            Some(&within_authority),
        )?;
        let authority = self.authorities_of(&path, now).map(|facts| facts.not_after).max().unwrap_or(0);
        let intermediates = path.intermediate_certificates().map(|certificate| {
            CertificateFacts::parse(&certificate.der()).map_or(0, |facts| facts.not_after)
        });
        Ok(intermediates.fold(authority, u64::min))
    }

    /// webpki does not look at a trust anchor's own validity; we do.
    fn check_authority(&self, path: &VerifiedPath<'_>, now: u64) -> Result<(), webpki::Error> {
        let valid = self.authorities_of(path, now).next().is_some();
        if valid { Ok(()) } else { Err(webpki::Error::InvalidCertValidity) }
    }

    /// The CA a path leads to, if it is valid at `now`; several, if it was renewed under the same key.
    fn authorities_of<'a>(
        &'a self,
        path: &'a VerifiedPath<'_>,
        now: u64,
    ) -> impl Iterator<Item = &'a CertificateFacts> {
        let used = path.anchor();
        let same = |anchor: &TrustAnchor<'_>| {
            anchor.subject == used.subject && anchor.subject_public_key_info == used.subject_public_key_info
        };
        let candidates = self.anchors.iter().zip(&self.authorities).filter(move |(anchor, _)| same(anchor));
        candidates.map(|(_, authority)| &authority.facts).filter(move |facts| facts.is_valid_at(now))
    }

    /// The anchors' names, for the hint a server gives about the client certificates it takes.
    pub(super) fn subjects(&self) -> Vec<rustls::DistinguishedName> {
        self.anchors.iter().map(|anchor| rustls::DistinguishedName::in_sequence(&anchor.subject)).collect()
    }

    /// Whether `certificate` is one of the CAs.
    pub(super) fn holds(&self, certificate: &CertificateDer<'_>) -> bool {
        self.authorities.iter().any(|authority| authority.certificate == *certificate)
    }

    /// The CAs' certificates, DER, in the order of the bundle.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.authorities.iter().map(|authority| &authority.certificate)
    }

    /// CAs without a revocation list, if there are lists of others.
    pub(super) fn authorities_without_list(&self) -> impl Iterator<Item = &str> {
        let listed = |authority: &Authority| {
            self.revocation_lists.iter().any(|list| list.issuer_name == authority.subject)
        };
        let without = move |authority: &&Authority| !self.revocation_lists.is_empty() && !listed(authority);
        self.authorities.iter().filter(without).map(|authority| authority.facts.subject.as_str())
    }

    /// Issuers whose list in force is missing from the file, or older there.
    pub(super) fn retained_revocation_lists(&self) -> &[String] {
        &self.retained
    }

    /// Issuers whose revocation list is past its `nextUpdate` at `now` (Unix seconds).
    pub(super) fn stale_revocation_lists(&self, now: u64) -> impl Iterator<Item = &str> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let stale = move |list: &&Arc<RevocationList>| list.next_update.is_some_and(|next| next < now);
        self.revocation_lists.iter().filter(stale).map(|list| list.issuer.as_str())
    }
}

/// The algorithms certificates may be signed with.
pub(super) fn supported_algorithms() -> WebPkiSupportedAlgorithms {
    super::verifier::provider().signature_verification_algorithms
}

fn chain_of(certificates: &[Vec<u8>]) -> Vec<CertificateDer<'_>> {
    certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect()
}

fn verify_signature(chain: &[CertificateDer<'_>], message: &[u8], signature: &[u8]) -> Result<(), TlsError> {
    let leaf = chain.first().ok_or(webpki::Error::BadDer).and_then(EndEntityCert::try_from);
    leaf.and_then(|leaf| leaf.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, message, signature))
        .map_err(TlsError::Signature)
}

fn fault(error: webpki::Error, leaf: &CertificateFacts, now: u64) -> CertificateFault {
    match error {
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateFault::Malformed(error.to_string()),
        // The leaf or a CA above it.
        webpki::Error::CertExpired { .. } if leaf.not_after < now => {
            CertificateFault::Expired { since: leaf.not_after }
        }
        webpki::Error::CertNotValidYet { .. } if leaf.not_before > now => {
            CertificateFault::NotYetValid { until: leaf.not_before }
        }
        webpki::Error::CertExpired { .. }
        | webpki::Error::CertNotValidYet { .. }
        | webpki::Error::InvalidCertValidity => CertificateFault::AuthorityExpired,
        webpki::Error::CertRevoked => CertificateFault::Revoked,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateFault::WrongPurpose,
        // A CA of the right name but another key is no CA of ours either.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            CertificateFault::UnknownAuthority
        }
        error => CertificateFault::Unacceptable(error),
    }
}
