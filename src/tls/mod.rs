//! Who is who: certificates with SPIFFE identities, mutual TLS, reload while in use, and a small CA.
//!
//! A process has one [`Tls`]. Servers [`accept`](Tls::accept) with it, callers [`connect`](Tls::connect) with it, nodes
//! sign receipts with it. Both ends of every connection show a certificate `spiffe://<cluster>/<role>/<name>`; host
//! names are not looked at. The files behind it may be replaced at any time: [`Tls::watch`] takes them over if they
//! are good as a whole, and keeps what it has if they are not. Connections that live longer than that are looked at
//! again by [`Tls::check`].

mod bundle;
pub mod ca;
mod certificate;
mod credentials;
mod error;
mod expiry;
mod files;
mod peer;
mod preflight;
mod revocation;
mod trust;
mod verifier;
mod watch;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use rustls::server::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::escrow::ids::{Identity, NodeId};
use credentials::{Credentials, Files};
use verifier::{Expected, PeerVerifier, client_config};

pub use bundle::{BundleChange, change_bundle};
pub use certificate::CertificateFacts;
pub use error::{CertificateFault, TlsError};
pub use expiry::{
    AUTHORITY_EXPIRY_URGENT, AUTHORITY_EXPIRY_WARNING, CertificateExpiry, CertificateKind, EXPIRY_URGENT,
    EXPIRY_URGENT_SHARE, EXPIRY_WARNING, EXPIRY_WARNING_SHARE, Urgency,
};
pub use peer::PeerCertificate;
pub use preflight::CredentialFile;
pub use trust::{AUTHORITIES_MAX, TrustAnchors};
pub use watch::{CredentialsProblem, ReloadFailure};

/// How long a whole handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes read from a client after it was refused, so that it gets to read why.
const REFUSED_DRAIN_MAX_BYTES: u64 = 256 * 1024;
/// Longest wait for a refused client to hang up.
const REFUSED_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a process finds its credentials, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// The CAs that are believed; several while one replaces another.
    pub ca: PathBuf,
    /// The own certificate, followed by intermediate ones if any.
    pub cert: PathBuf,
    /// Its private key (ECDSA P-256), private as [`private_file`](crate::private_file) has it.
    pub key: PathBuf,
    /// Revocation lists, any number in one file.
    pub crl: RevocationFile,
}

/// Where revocation lists are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevocationFile {
    /// Nowhere: nothing is known to be revoked.
    None,
    /// In this file, which may be missing and may come later.
    Optional(PathBuf),
    /// In this file, which must be there.
    Required(PathBuf),
}

impl RevocationFile {
    /// The file, if there is one to look for.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::None => None,
            Self::Optional(path) | Self::Required(path) => Some(path),
        }
    }
}

impl From<Option<PathBuf>> for RevocationFile {
    /// A file that was named must be there.
    fn from(path: Option<PathBuf>) -> Self {
        path.map_or(Self::None, Self::Required)
    }
}

impl TlsPaths {
    /// The files of a client's profile: `ca.crt`, `client.crt`, `client.key`, and `crl.pem` once there is one.
    pub fn profile(dir: &Path) -> Self {
        Self::in_directory(dir, ca::FileNames::CLIENT)
    }

    /// The files that `strongroom cert issue` writes to a directory, and `crl.pem` once there is one.
    pub fn in_directory(dir: &Path, names: ca::FileNames) -> Self {
        Self {
            ca: dir.join(ca::CA_CERTIFICATE_FILE),
            cert: dir.join(names.certificate),
            key: dir.join(names.key),
            crl: RevocationFile::Optional(dir.join(ca::CRL_FILE)),
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
    /// Why the files that lie there are not in use.
    failure: Mutex<Option<ReloadFailure>>,
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
        let shared =
            Arc::new(Shared { paths, current, reloading: Mutex::default(), failure: Mutex::default() });
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

    /// The first second (Unix) in which the own certificate is valid.
    pub fn not_before(&self) -> u64 {
        self.shared.current.load().not_before
    }

    /// The own certificate's serial number, lower-case hexadecimal.
    pub fn serial(&self) -> String {
        self.shared.current.load().serial.clone()
    }

    /// Counts how often other files were taken over. What was judged or shown under an earlier generation may be judged
    /// otherwise now.
    pub fn generation(&self) -> u64 {
        self.shared.current.load().generation
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

    /// Takes over the files now if any has changed and all of them are good; `true` if it did.
    ///
    /// # Errors
    /// As [`Tls::load`], or [`TlsError::IdentityChanged`]; what was in use stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let _one_at_a_time = lock(&self.shared.reloading);
        let files = Files::read(&self.shared.paths).inspect_err(|error| self.note_reload(Err(error)))?;
        if files.digest() == self.shared.current.load().digest {
            self.note_reload(Ok(()));
            return Ok(false);
        }
        self.take_over(&files).map(|()| true)
    }

    /// Takes over `files` if they are good. The caller holds the lock on reloading.
    fn take_over(&self, files: &Files) -> Result<(), TlsError> {
        let previous = self.shared.current.load_full();
        let next = Credentials::build(&self.shared.paths, files, Some(&previous));
        self.note_reload(next.as_ref().map(drop));
        self.shared.current.store(Arc::new(next?));
        Ok(())
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
        let (server, verifier) = (credentials.server.clone(), credentials.clients.clone());
        self.accept_as(tcp, server, verifier, credentials.generation).await
    }

    /// As [`Tls::accept`], for nodes alone.
    ///
    /// # Errors
    /// As [`Tls::accept`]; a client of another role is refused with [`CertificateFault::NotANode`].
    pub async fn accept_node(
        &self,
        tcp: TcpStream,
    ) -> Result<(server::TlsStream<TcpStream>, PeerCertificate), TlsError> {
        let credentials = self.shared.current.load_full();
        let (server, verifier) = (credentials.node_server.clone(), credentials.nodes.clone());
        self.accept_as(tcp, server, verifier, credentials.generation).await
    }

    async fn accept_as(
        &self,
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        verifier: Arc<PeerVerifier>,
        generation: u64,
    ) -> Result<(server::TlsStream<TcpStream>, PeerCertificate), TlsError> {
        let deadline = Instant::now() + self.handshake_timeout;
        // Boxed: a handshake's state is large, and this future is part of its callers'.
        let handshake = Box::pin(TlsAcceptor::from(config).accept(tcp).into_fallible());
        let stream = match timeout_at(deadline, handshake).await {
            Err(_) => return Err(TlsError::HandshakeTimeout { after: self.handshake_timeout }),
            Ok(Err((error, tcp))) => {
                hang_up(tcp, deadline).await;
                return Err(TlsError::from_handshake(error));
            }
            Ok(Ok(stream)) => stream,
        };
        let chain = stream.get_ref().1.peer_certificates().ok_or(TlsError::NoPeerCertificate)?;
        let peer = PeerCertificate::judged(chain, verifier, generation)?;
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
        let handshake = Box::pin(TlsConnector::from(config).connect(name, tcp));
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

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.identity())
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

fn node_verifier(credentials: &Credentials, expected: ExpectedPeer) -> PeerVerifier {
    let cluster = credentials.identity.cluster.clone();
    PeerVerifier::new(credentials.trust.clone(), cluster, Expected::Server(expected))
}

/// Ends a connection that was refused. Closing it with unread bytes makes the kernel send a reset, which may overtake
/// the alert or make the client's kernel discard it; so what the client still sends is read, within bounds, until it
/// hangs up.
async fn hang_up(mut tcp: TcpStream, deadline: Instant) {
    let drain = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(REFUSED_DRAIN_MAX_BYTES), &mut tokio::io::sink()).await
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

/// What is behind these locks is replaced whole: a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
