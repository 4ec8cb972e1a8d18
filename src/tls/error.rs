//! What can go wrong with credentials, handshakes and the built-in CA, and how a refusal by the other side reads.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use super::calendar;
use crate::escrow::ids::{ClusterName, Identity, Invalid, NodeId};

/// A failure of this room. Who is at fault: [`TlsError::Peer`], [`TlsError::NoPeerCertificate`] and
/// [`TlsError::HandshakeTimeout`] the other side; [`TlsError::RefusedByPeer`] our certificate in its eyes; the rest
/// our own files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file or directory that must be new is there already; nothing was overwritten.
    #[error("{} exists already and is left as it is", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Generate(#[source] rcgen::Error),
    /// The handshake broke off for a reason that is no verdict on a certificate.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// The other side did not finish the handshake in time.
    #[error("the TLS handshake did not finish within {} ms", after.as_millis())]
    HandshakeTimeout {
        /// The deadline it had.
        after: Duration,
    },
    /// The new certificate names somebody else: a running process does not change who it is.
    #[error(
        "the new certificate is for {to}, but this process runs as {from}: restart it to change its identity"
    )]
    IdentityChanged {
        /// Who the process is.
        from: Identity,
        /// Whom the new certificate names.
        to: Identity,
    },
    /// A line of the CA's index does not parse.
    #[error("{}, line {line}: {source}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A field of a request is not well formed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A private key may be read or written by others.
    #[error("{} has mode {mode:04o}, which lets others at this private key: run chmod 600 {}", path.display(), path.display())]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A private key and a certificate do not belong together.
    #[error("{} is not the private key of the certificate in {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// A client offered no certificate.
    #[error("the client offered no certificate")]
    NoPeerCertificate,
    /// The CA never issued what was named.
    #[error("this CA has issued no certificate {0}")]
    NotIssued(String),
    /// What should be renewed is revoked.
    #[error("every certificate {0} is revoked: issue a new one")]
    NotRenewable(String),
    /// A bundle does not hold the CA that should issue a certificate beside it.
    #[error(
        "{} does not hold this CA: first put it into every bundle, with strongroom cert trust --bundle {} --add {}",
        path.display(), path.display(), authority.display()
    )]
    NotTrusted {
        /// The bundle.
        path: PathBuf,
        /// The CA's certificate.
        authority: PathBuf,
    },
    /// Our own certificate cannot be used.
    #[error("the certificate in {} {fault}", path.display())]
    Own {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        fault: CertificateFault,
    },
    /// The other side's certificate is refused.
    #[error("the other side's certificate {0}")]
    Peer(#[source] CertificateFault),
    /// The other side refused our certificate: the reason as its alert gave it.
    #[error("the other side refused our certificate: {0}")]
    RefusedByPeer(&'static str),
    /// Something that was signed does not verify.
    #[error("the signature does not verify: {0}")]
    Signature(#[source] webpki::Error),
    /// The private key failed to sign.
    #[error("the private key could not sign: {0}")]
    Sign(#[source] rustls::Error),
    /// A bundle would lose the CA of a certificate that is used with it.
    #[error("{} was issued by the CA that would be taken out: first renew it from one that stays", path.display())]
    StillNeeded {
        /// The certificate file.
        path: PathBuf,
    },
    /// TLS could not be configured from these credentials.
    #[error("TLS cannot be set up with these credentials: {0}")]
    Unconfigurable(#[source] rustls::Error),
    /// A file is read but does not hold what it should.
    #[error("{}: {what}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
}

/// What is wrong with a certificate. Reads after "the certificate …". Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateFault {
    /// The CA above it is not valid at this time.
    #[error("was issued by a CA that has expired or is not yet valid")]
    AuthorityExpired,
    /// Its time is over.
    #[error("expired at {}", calendar(*since))]
    Expired {
        /// Its last valid second.
        since: u64,
    },
    /// It cannot be parsed.
    #[error("is malformed: {0}")]
    Malformed(String),
    /// It is not for a node.
    #[error("is for {found}, which is not a node")]
    NotANode {
        /// Whom it is for.
        found: Identity,
    },
    /// Its time has not come.
    #[error("is not valid before {} (is a clock wrong?)", calendar(*until))]
    NotYetValid {
        /// Its first valid second.
        until: u64,
    },
    /// It carries no usable SPIFFE URI.
    #[error("carries no identity: {0}")]
    NoIdentity(String),
    /// It belongs to another cluster.
    #[error("is for {found}, but this is cluster {expected}")]
    OtherCluster {
        /// Whom it is for.
        found: Identity,
        /// Our cluster.
        expected: ClusterName,
    },
    /// Another node answered than the one meant.
    #[error("is for {found}, but node {meant} was meant")]
    OtherNode {
        /// Whom it is for.
        found: Identity,
        /// Whom we meant to reach.
        meant: NodeId,
    },
    /// It was revoked.
    #[error("is revoked")]
    Revoked,
    /// No CA of ours issued it.
    #[error("was not issued by a CA that is trusted here")]
    UnknownAuthority,
    /// It fails another rule of RFC 5280.
    #[error("is not acceptable: {0}")]
    Unacceptable(#[source] webpki::Error),
    /// It may not be used for this side of a connection.
    #[error("may not be used for this purpose (extended key usage)")]
    WrongPurpose,
}

/// What a certificate alert says about the certificate it answers; `None` for alerts about anything else.
fn verdict(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::AccessDenied => "its identity may not connect",
        AlertDescription::BadCertificate => "it is malformed",
        // RFC 8446 §6.2 has one alert for both ends of the validity.
        AlertDescription::CertificateExpired => {
            "it has expired, or is not yet valid by the other side's clock"
        }
        AlertDescription::CertificateRequired => "none was offered, and one is required",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::CertificateUnknown => {
            "it carries no identity that is expected there (another cluster, another node than was meant, or not a node)"
        }
        AlertDescription::DecryptError => "its signature does not verify",
        AlertDescription::UnknownCA => "it was not issued by a CA that is trusted there",
        AlertDescription::UnsupportedCertificate => "it may not be used for this purpose",
        _ => return None,
    })
}

/// The alerts [`verdict`] knows, for errors of which only the text is left.
const CERTIFICATE_ALERTS: [AlertDescription; 9] = [
    AlertDescription::AccessDenied,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRequired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::DecryptError,
    AlertDescription::UnknownCA,
    AlertDescription::UnsupportedCertificate,
];

impl TlsError {
    /// Looks through an error and its sources for the other side's refusal of our certificate, and says it in a
    /// sentence. With TLS 1.3 a client's handshake is done before the server has judged its certificate, so the
    /// refusal comes with the first read, wrapped in whatever does the reading. `None`: it was something else.
    pub fn refusal_by_peer(error: &(dyn Error + 'static)) -> Option<String> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(reason) = refusal_in(error) {
                return Some(format!("the server refused our certificate: {reason}"));
            }
            next = error.source();
        }
        None
    }

    /// As [`TlsError::refusal_by_peer`], or that we refused the other side's certificate and why.
    pub fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
        Self::refusal_by_peer(error).or_else(|| {
            let mut next = Some(error);
            while let Some(error) = next {
                // An `io::Error` skips its inner error in `source()`.
                let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
                let ours = inner.map_or(error.downcast_ref::<Self>(), |inner| inner.downcast_ref::<Self>());
                if let Some(refused @ Self::Peer(_)) = ours {
                    return Some(format!("we refused the server: {refused}"));
                }
                next = error.source();
            }
            None
        })
    }

    /// Sorts what a handshake ended with.
    pub(super) fn from_handshake(error: io::Error) -> Self {
        let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Handshake(error);
        };
        match cause {
            rustls::Error::AlertReceived(alert) => match verdict(*alert) {
                Some(reason) => Self::RefusedByPeer(reason),
                None => Self::Handshake(error),
            },
            rustls::Error::InvalidCertificate(certificate) => {
                match CertificateFault::from_rustls(certificate) {
                    Some(fault) => Self::Peer(fault),
                    None => Self::Handshake(error),
                }
            }
            rustls::Error::NoCertificatesPresented => Self::NoPeerCertificate,
            _ => Self::Handshake(error),
        }
    }
}

/// The refusal this one error stands for, without its sources.
fn refusal_in(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(TlsError::RefusedByPeer(reason)) = error.downcast_ref::<TlsError>() {
        return Some(reason);
    }
    if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref::<rustls::Error>() {
        return verdict(*alert);
    }
    // An `io::Error` skips its inner error in `source()`.
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return refusal_in(inner);
    }
    // HTTP/2 keeps only kind and text of an `io::Error`, so the alert is known by rustls's own wording of it.
    let text = error.to_string();
    let said = |alert: &&AlertDescription| text.contains(&rustls::Error::AlertReceived(**alert).to_string());
    CERTIFICATE_ALERTS.iter().find(said).and_then(|alert| verdict(*alert))
}

impl CertificateFault {
    /// For rustls, which picks the alert by the variant. What rustls has no variant for travels inside `Other`.
    pub(super) fn to_rustls(&self, now: u64) -> rustls::Error {
        let at = |seconds| rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        rustls::Error::InvalidCertificate(match self {
            Self::Expired { since } => {
                CertificateError::ExpiredContext { time: at(now), not_after: at(*since) }
            }
            Self::NotYetValid { until } => {
                CertificateError::NotValidYetContext { time: at(now), not_before: at(*until) }
            }
            Self::Revoked => CertificateError::Revoked,
            Self::UnknownAuthority => CertificateError::UnknownIssuer,
            Self::WrongPurpose => CertificateError::InvalidPurpose,
            other => CertificateError::Other(rustls::OtherError(std::sync::Arc::new(other.clone()))),
        })
    }

    fn from_rustls(error: &CertificateError) -> Option<Self> {
        Some(match error {
            CertificateError::ExpiredContext { not_after, .. } => {
                Self::Expired { since: not_after.as_secs() }
            }
            CertificateError::InvalidPurpose => Self::WrongPurpose,
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid { until: not_before.as_secs() }
            }
            CertificateError::Other(other) => return other.0.downcast_ref::<Self>().cloned(),
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            _ => return None,
        })
    }
}
