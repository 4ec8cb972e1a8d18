//! The other end of a live connection.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::CertificateDer;

use super::error::{CertificateFault, TlsError};
use super::trust::TrustAnchors;
use super::unix_now;
use super::verifier::PeerVerifier;
use crate::escrow::ids::{ClusterName, Identity};

/// Who is at the other end of a connection, as its certificate proved. Clones are the same peer.
#[derive(Clone)]
pub struct PeerCertificate {
    /// Who it is.
    pub identity: Identity,
    /// Serial number of its certificate, lower-case hexadecimal.
    pub serial: String,
    /// Last valid second of its certificate (Unix).
    pub not_after: u64,
    shared: Arc<Shared>,
}

struct Shared {
    chain: Vec<CertificateDer<'static>>,
    verifier: Arc<PeerVerifier>,
    /// Last valid second of the whole path as last judged, and the generation of credentials that judged it.
    expires_at: AtomicU64,
    generation: AtomicU64,
}

impl PeerCertificate {
    pub(super) fn judged(
        chain: &[CertificateDer<'_>],
        verifier: Arc<PeerVerifier>,
        generation: u64,
    ) -> Result<Self, TlsError> {
        let verified = verifier.judge(chain, unix_now()).map_err(TlsError::Peer)?;
        let shared = Shared {
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            verifier,
            expires_at: AtomicU64::new(verified.expires_at),
            generation: AtomicU64::new(generation),
        };
        Ok(Self {
            identity: verified.identity,
            serial: verified.serial,
            not_after: verified.not_after,
            shared: Arc::new(shared),
        })
    }

    pub(super) fn check(
        &self,
        trust: &Arc<TrustAnchors>,
        cluster: &ClusterName,
        generation: u64,
        now: u64,
    ) -> Result<(), TlsError> {
        let shared = &self.shared;
        if shared.generation.load(Ordering::Acquire) == generation {
            let expires_at = shared.expires_at.load(Ordering::Acquire);
            return match now > expires_at {
                true => Err(TlsError::Peer(CertificateFault::Expired { since: expires_at })),
                false => Ok(()),
            };
        }
        let verifier = shared.verifier.under(trust.clone(), cluster.clone());
        let verified = verifier.judge(&shared.chain, now).map_err(TlsError::Peer)?;
        // In this order: who sees the new generation sees its end as well.
        shared.expires_at.store(verified.expires_at, Ordering::Release);
        shared.generation.store(generation, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerCertificate({}, serial {})", self.identity, self.serial)
    }
}
