//! Who is who: certificates with SPIFFE identities, mutual TLS, reload while in use, and a small CA.
//!
//! A process has one [`Tls`]. Servers [`accept`](Tls::accept) with it, callers [`connect`](Tls::connect) with it, nodes
//! sign receipts with it. Both ends of every connection show a certificate `spiffe://<cluster>/<role>/<name>`; host
//! names are not looked at. The files behind it may be replaced at any time: [`Tls::watch`] takes them over if they
//! are good as a whole, and keeps what it has if they are not. Connections that live longer than that are looked at
//! again by [`Tls::check`].

pub mod ca;
mod certificate;
mod credentials;
mod error;
mod files;
mod peer;
mod trust;
mod verifier;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

use crate::escrow::ids::{Identity, NodeId};
use credentials::{Credentials, Files};
use verifier::{Expected, PeerVerifier, client_config};

pub use certificate::CertificateFacts;
pub use error::{CertificateFault, TlsError};
pub use peer::PeerCertificate;
pub use trust::{AUTHORITIES_MAX, TrustAnchors};

/// How long a whole handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From when on it is warned, once a day, that the own certificate is about to expire.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two warnings of the same kind.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Most bytes read from a client after it was refused, so that it gets to read why.
const REFUSED_DRAIN_MAX_BYTES: usize = 256 * 1024;
/// Longest wait for a refused client to hang up.
const REFUSED_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a process finds its credentials, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// The CAs that are believed; several while one replaces another.
    pub ca: PathBuf,
    /// The own certificate, followed by intermediate ones if any.
    pub cert: PathBuf,
    /// Its private key (ECDSA P-256), readable by its owner only.
    pub key: PathBuf,
    /// Revocation lists, any number. Where it is given, the file must be there.
    pub crl: Option<PathBuf>,
}

impl TlsPaths {
    /// The files of a client's profile: `ca.crt`, `client.crt`, `client.key`, and `crl.pem` if there is one.
    pub fn profile(dir: &Path) -> Self {
        let crl = dir.join(ca::CRL_FILE);
        Self {
            ca: dir.join(ca::CA_CERTIFICATE_FILE),
            cert: dir.join(ca::FileNames::CLIENT.certificate),
            key: dir.join(ca::FileNames::CLIENT.key),
            crl: crl.exists().then_some(crl),
        }
    }
}

/// Whom a connection is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedPeer {
    /// Any node of our cluster.
    AnyNode,
    /// This node of our cluster and no other.
    Node(NodeId),
}

/// The credentials of this process, reloaded while in use. Clones share them.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
    handshake_timeout: Duration,
}

struct Shared {
    paths: TlsPaths,
    current: ArcSwap<Credentials>,
    /// One reload at a time: two would take the same generation number.
    reloading: Mutex<()>,
}

impl Tls {
    /// Reads and checks everything: the key is private and matches the certificate, the certificate carries an
    /// identity, is valid now, is not revoked and leads to a CA of the bundle.
    ///
    /// # Errors
    /// [`TlsError`], naming the file and what is wrong with it.
    pub fn load(paths: TlsPaths) -> Result<Self, TlsError> {
        let credentials = Credentials::build(&paths, &Files::read(&paths)?, None)?;
        let current = ArcSwap::from_pointee(credentials);
        let shared = Arc::new(Shared { paths, current, reloading: Mutex::new(()) });
        Ok(Self { shared, handshake_timeout: HANDSHAKE_TIMEOUT })
    }

    /// The same credentials with another deadline than [`HANDSHAKE_TIMEOUT`] for handshakes.
    pub fn with_handshake_timeout(self, handshake_timeout: Duration) -> Self {
        Self { handshake_timeout, ..self }
    }

    /// Who this process is.
    pub fn identity(&self) -> Identity {
        self.shared.current.load().identity.clone()
    }

    /// The last second (Unix) the own certificate and those above it are valid.
    pub fn expires_at(&self) -> u64 {
        self.shared.current.load().expires_at
    }

    /// The own certificate chain, DER, own first.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        self.shared.current.load().certificates()
    }

    /// Signs with the private key (ECDSA P-256 with SHA-256, ASN.1). See [`Tls::signer`] where the certificates
    /// are needed as well.
    ///
    /// # Errors
    /// [`TlsError::Sign`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        self.shared.current.load().sign(message)
    }

    /// Key and certificates of one moment, which a reload does not part.
    pub fn signer(&self) -> Signer {
        Signer(self.shared.current.load_full())
    }

    /// Takes over the files if any has changed and all of them are good; `true` if it did.
    ///
    /// # Errors
    /// As [`Tls::load`], or [`TlsError::IdentityChanged`]; what was in use stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let _one_at_a_time = self.shared.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.shared.current.load_full();
        let files = Files::read(&self.shared.paths)?;
        if files.digest() == previous.digest {
            return Ok(false);
        }
        let next = Credentials::build(&self.shared.paths, &files, Some(&previous))?;
        self.shared.current.store(Arc::new(next));
        Ok(true)
    }

    /// Looks at the files every so often until `stop`, and logs what came of it.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        let mut warnings = Warnings::default();
        self.warn(&mut warnings);
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let this = self.clone();
            let outcome = tokio::task::spawn_blocking(move || this.reload()).await;
            match outcome {
                Ok(Ok(true)) => {
                    warnings = Warnings::default();
                    tracing::info!(identity = %self.identity(), expires_at = calendar(self.expires_at()), "credentials reloaded");
                }
                Ok(Ok(false)) => warnings.failure = None,
                Ok(Err(error)) => warnings.reload_failed(&error),
                // The runtime is shutting down, or reload panicked: the next round says so again.
                Err(error) => tracing::error!(%error, "credentials could not be looked at"),
            }
            self.warn(&mut warnings);
        }
    }

    fn warn(&self, warnings: &mut Warnings) {
        let current = self.shared.current.load();
        let now = unix_now();
        let expires_soon = current.expires_at < now + EXPIRY_WARNING.as_secs();
        let mut stale = current.trust.stale_revocation_lists(now).peekable();
        if (!expires_soon && stale.peek().is_none() && current.own_fault.is_none()) || !warnings.are_due() {
            return;
        }
        if let Some(fault) = &current.own_fault {
            tracing::error!(%fault, "our own certificate is refused by others: renew it");
        } else if expires_soon {
            tracing::warn!(
                expires_at = calendar(current.expires_at),
                "our certificate is about to expire: renew it"
            );
        }
        for issuer in stale {
            tracing::warn!(
                issuer,
                "the revocation list is out of date; what it revokes stays revoked: replace it"
            );
        }
    }

    /// Serves a TLS handshake on a connection. The client must show a certificate of our cluster; what it may do is
    /// for the caller to decide. A client that is refused is told by a TLS alert.
    ///
    /// # Errors
    /// [`TlsError::Peer`], [`TlsError::NoPeerCertificate`], [`TlsError::HandshakeTimeout`] (the deadline covers all
    /// of it), [`TlsError::RefusedByPeer`] if the client refused us, [`TlsError::Handshake`] otherwise.
    pub async fn accept(
        &self,
        tcp: TcpStream,
    ) -> Result<(server::TlsStream<TcpStream>, PeerCertificate), TlsError> {
        let credentials = self.shared.current.load_full();
        let deadline = Instant::now() + self.handshake_timeout;
        let handshake = TlsAcceptor::from(credentials.server.clone()).accept(tcp).into_fallible();
        let stream = match timeout_at(deadline, handshake).await {
            Err(_) => return Err(TlsError::HandshakeTimeout { after: self.handshake_timeout }),
            Ok(Err((error, tcp))) => {
                hang_up(tcp, deadline).await;
                return Err(TlsError::from_handshake(error));
            }
            Ok(Ok(stream)) => stream,
        };
        let chain = stream.get_ref().1.peer_certificates().ok_or(TlsError::NoPeerCertificate)?;
        let peer = PeerCertificate::judged(chain, credentials.clients.clone(), credentials.generation)?;
        Ok((stream, peer))
    }

    /// Makes a TLS handshake on a connection, to a node of our cluster (HTTP/2). It is done before the server has
    /// judged our certificate: a refusal comes with the first read, see [`TlsError::refusal_by_peer`].
    ///
    /// # Errors
    /// As [`Tls::accept`].
    pub async fn connect(
        &self,
        tcp: TcpStream,
        expected: ExpectedPeer,
    ) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let credentials = self.shared.current.load_full();
        let verifier = Arc::new(node_verifier(&credentials, expected));
        let config = Arc::new(client_config(&credentials.certified, verifier)?);
        // Neither sent nor compared: rustls wants a name, we go by the SPIFFE id.
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let handshake = TlsConnector::from(config).connect(name, tcp);
        match tokio::time::timeout(self.handshake_timeout, handshake).await {
            Err(_) => Err(TlsError::HandshakeTimeout { after: self.handshake_timeout }),
            Ok(outcome) => outcome.map_err(TlsError::from_handshake),
        }
    }

    /// The node at the other end of a connection made with [`Tls::connect`], for [`Tls::check`].
    ///
    /// # Errors
    /// [`TlsError::Peer`] if it is no longer acceptable.
    pub fn server_certificate(
        &self,
        stream: &client::TlsStream<TcpStream>,
        expected: ExpectedPeer,
    ) -> Result<PeerCertificate, TlsError> {
        let credentials = self.shared.current.load_full();
        let chain = stream.get_ref().1.peer_certificates().ok_or(TlsError::NoPeerCertificate)?;
        let verifier = Arc::new(node_verifier(&credentials, expected));
        PeerCertificate::judged(chain, verifier, credentials.generation)
    }

    /// Looks again at the other end of a live connection: has its certificate expired, been revoked, or lost its
    /// CA since the handshake? Cheap enough for every request: unless the credentials were reloaded, it compares
    /// two numbers.
    ///
    /// # Errors
    /// [`TlsError::Peer`]: end the connection.
    pub fn check(&self, peer: &PeerCertificate) -> Result<(), TlsError> {
        let current = self.shared.current.load();
        peer.check(&current.trust, &current.identity.cluster, current.generation, unix_now())
    }
}

/// Key and certificates of one moment.
pub struct Signer(Arc<Credentials>);

impl Signer {
    /// Who signs.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The chain its signatures are verified with, DER, own first.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        self.0.certificates()
    }

    /// As [`Tls::sign`].
    ///
    /// # Errors
    /// [`TlsError::Sign`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        self.0.sign(message)
    }
}

/// What [`Tls::watch`] has said already.
#[derive(Default)]
struct Warnings {
    last: Option<Instant>,
    failure: Option<String>,
}

impl Warnings {
    fn are_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }

    /// Files that stay bad are reported once, not every round.
    fn reload_failed(&mut self, error: &TlsError) {
        let message = error.to_string();
        if self.failure.as_ref() != Some(&message) {
            tracing::error!(error = message, "new credentials are not usable, the old ones stay in use");
            self.failure = Some(message);
        }
    }
}

fn node_verifier(credentials: &Credentials, expected: ExpectedPeer) -> PeerVerifier {
    let cluster = credentials.identity.cluster.clone();
    PeerVerifier::new(credentials.trust.clone(), cluster, Expected::Server(expected))
}

/// Ends a connection that was refused. Closing it with unread bytes makes the kernel send a reset, which discards the
/// alert on its way to the client; so what the client still sends is read, within bounds, until it hangs up.
async fn hang_up(mut tcp: TcpStream, deadline: Instant) {
    let drain = async {
        if tcp.shutdown().await.is_err() {
            return;
        }
        let mut left = REFUSED_DRAIN_MAX_BYTES;
        let mut buffer = [0; 4096];
        while left > 0 {
            match tcp.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    let deadline = deadline.min(Instant::now() + REFUSED_DRAIN_TIMEOUT);
    // Whether it hung up in time makes no difference: it is refused.
    let _ = timeout_at(deadline, drain).await;
}

/// What the certificates of a PEM file say, in their order. Nothing is verified.
///
/// # Errors
/// [`TlsError::File`], or [`TlsError::Unusable`] if it holds no certificates.
pub fn certificates_in(path: &Path) -> Result<Vec<CertificateFacts>, TlsError> {
    let unusable = |fault: CertificateFault| TlsError::Unusable {
        path: path.to_owned(),
        what: format!("a certificate {fault}"),
    };
    let certificates = credentials::certificates(path, &files::read(path)?)?;
    certificates.iter().map(|der| CertificateFacts::parse(der).map_err(unusable)).collect()
}

/// Unix seconds. A clock before 1970 counts as 1970: then every certificate is not yet valid, and says so.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Unix seconds as RFC 3339.
pub(crate) fn calendar(seconds: u64) -> String {
    use time::format_description::well_known::Rfc3339;
    let at = i64::try_from(seconds).ok().and_then(|at| time::OffsetDateTime::from_unix_timestamp(at).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("@{seconds}"))
}

#[cfg(test)]
pub(crate) mod tests;
