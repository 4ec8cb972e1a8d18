//! Whom this process believes: the CAs, their revocation lists, and the one function that judges a chain.
//!
//! Revocation: every certificate of a chain is looked up in the list of its issuer, if one is loaded; an issuer
//! without a list is not checked, and warned about if there are lists of others. A list counts only if a CA that is
//! believed here signed it; one of an issuer that nobody knows is left out and warned about. A list past its `nextUpdate`
//! stays in force and is warned about: what it revokes stays revoked, and a forgotten file does not lock everybody out of
//! their disks. While a process runs, a list is only ever replaced by a newer one of the same issuer: a file that was cut
//! short, restored from a backup or overwritten with another CA's list makes nobody's certificate valid again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::{CertificateFacts, leaf_facts};
use super::error::{CertificateFault, TlsError};
use super::revocation::{Parsed, Retained, RevocationList, intermediates};
use super::{files, unix_now};
use crate::escrow::ids::Identity;

/// Most CAs in one bundle.
pub const AUTHORITIES_MAX: usize = 64;

/// The CAs that are believed, with their revocation lists.
pub struct TrustAnchors {
    authorities: Vec<Authority>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Of each issuer the newest first: webpki takes the first list that speaks for an issuer.
    revocation_lists: Vec<Arc<RevocationList>>,
    /// Lists in force that are not those in the file.
    retained: Vec<Retained>,
    /// Issuers of lists in the file that nobody here can vouch for.
    foreign: Vec<String>,
}

/// A CA of the bundle, beside its trust anchor (webpki drops an anchor's validity).
struct Authority {
    certificate: CertificateDer<'static>,
    facts: CertificateFacts,
    /// Its subject as revocation lists name it, DER.
    subject: Vec<u8>,
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
            foreign: Vec::new(),
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

    /// Adds the revocation lists of a PEM file. Each must carry the signature of the CA it names: one of the bundle, or
    /// an intermediate one of `own_chain` (own certificate first). One of an issuer that is neither is left out.
    pub(super) fn with_revocation_lists(
        mut self,
        path: &Path,
        pem: &[u8],
        own_chain: &[CertificateDer<'_>],
    ) -> Result<Self, TlsError> {
        let unusable = |what: String| TlsError::Unusable { path: path.to_owned(), what };
        let authorities: Vec<CertificateDer<'_>> = self.certificates().cloned().collect();
        let issuers = [intermediates(own_chain, &authorities), authorities].concat();
        for der in CertificateRevocationListDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| unusable(format!("not PEM: {error}")))?;
            match RevocationList::parse(&der, &issuers).map_err(unusable)? {
                Parsed::Signed(list) => self.revocation_lists.push(list),
                Parsed::Foreign(issuer) => self.foreign.push(issuer),
            }
        }
        if self.revocation_lists.is_empty() && self.foreign.is_empty() {
            return Err(unusable("holds no revocation list (PEM, BEGIN X509 CRL)".to_owned()));
        }
        self.sort_revocation_lists();
        Ok(self)
    }

    /// Keeps in force each list of `previous` that these CAs still speak for and that nothing newer replaces.
    pub(super) fn keeping_lists_of(mut self, previous: &Self) -> Self {
        for list in &previous.revocation_lists {
            // The newest of its issuer comes first.
            let in_file = self.revocation_lists.iter().find(|other| other.issuer_name == list.issuer_name);
            let replaced = in_file.is_some_and(|other| other.age_order(list).is_ge());
            if previous.speaks_for(list, &self) && !replaced {
                self.retained.push(Retained {
                    issuer: list.issuer.clone(),
                    in_force: list.describe(),
                    in_file: in_file.map(|other| other.describe()),
                });
                self.revocation_lists.push(list.clone());
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

    /// Brings the newest list of each issuer before its others.
    fn sort_revocation_lists(&mut self) {
        // One by one: where some have a number and others do not, "newer" is no order that a sort could rely on.
        let mut ordered: Vec<Arc<RevocationList>> = Vec::with_capacity(self.revocation_lists.len());
        for list in self.revocation_lists.drain(..) {
            let older = |other: &Arc<RevocationList>| {
                other.issuer_name == list.issuer_name && other.age_order(&list).is_lt()
            };
            let place = ordered.iter().position(older).unwrap_or(ordered.len());
            ordered.insert(place, list);
        }
        self.revocation_lists = ordered;
    }

    /// The newest list of the CA whose certificate is `certificate`, if there is one.
    pub(super) fn newest_list_of(&self, certificate: &CertificateDer<'_>) -> Option<&RevocationList> {
        let authority = self.authorities.iter().find(|authority| authority.certificate == *certificate)?;
        let list = self.revocation_lists.iter().find(|list| list.issuer_name == authority.subject)?;
        Some(list)
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

    /// CAs without a revocation list, if there are lists of others, known or not.
    pub(super) fn authorities_without_list(&self) -> impl Iterator<Item = &str> {
        let listed = |authority: &Authority| {
            self.revocation_lists.iter().any(|list| list.issuer_name == authority.subject)
        };
        let any = !self.revocation_lists.is_empty() || !self.foreign.is_empty();
        let without = move |authority: &&Authority| any && !listed(authority);
        self.authorities.iter().filter(without).map(|authority| authority.facts.subject.as_str())
    }

    /// Lists in force that are missing from the file, or older there.
    pub(super) fn retained_revocation_lists(&self) -> &[Retained] {
        &self.retained
    }

    /// Issuers of lists in the file that are not used: no CA that is believed here signed them.
    pub(super) fn foreign_revocation_lists(&self) -> &[String] {
        &self.foreign
    }

    /// Issuers whose revocation list is past its `nextUpdate` at `now` (Unix seconds).
    pub(super) fn stale_revocation_lists(&self, now: u64) -> impl Iterator<Item = &str> {
        self.revocation_lists.iter().filter(move |list| list.is_stale(now)).map(|list| list.issuer.as_str())
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
