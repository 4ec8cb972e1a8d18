//! The rules of a handshake, as rustls asks for them.
//!
//! TLS 1.3 only: every client of ours speaks it, and it hides the client's certificate. No tickets, no stored
//! sessions, no early data: a resumed session would skip the certificates, and with them reload and revocation.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};

use super::ExpectedPeer;
use super::error::{CertificateFault, TlsError};
use super::trust::{Side, TrustAnchors, Verified, supported_algorithms};
use crate::escrow::ids::{ClusterName, Role};

/// Protocols a server offers, the preferred first.
const SERVER_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// What our own client speaks.
const CLIENT_PROTOCOL: &[u8] = b"h2";

/// Whom a connection is accepted from, or made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// A client of our cluster, whatever its role: what it may do is decided per request.
    Client,
    /// A client of our cluster that is a node.
    Node,
    /// A node of our cluster.
    Server(ExpectedPeer),
}

/// Judges the other side's certificates.
pub(super) struct PeerVerifier {
    trust: Arc<TrustAnchors>,
    cluster: ClusterName,
    expected: Expected,
    hints: Vec<DistinguishedName>,
}

impl PeerVerifier {
    pub(super) fn new(trust: Arc<TrustAnchors>, cluster: ClusterName, expected: Expected) -> Self {
        let hints = trust.subjects();
        Self { trust, cluster, expected, hints }
    }

    /// The same expectation under other credentials.
    pub(super) fn under(&self, trust: Arc<TrustAnchors>, cluster: ClusterName) -> Self {
        Self::new(trust, cluster, self.expected)
    }

    /// Chain, revocation, cluster, and that it is whom we mean.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], now: u64) -> Result<Verified, CertificateFault> {
        let side = match self.expected {
            Expected::Client | Expected::Node => Side::Client,
            Expected::Server(_) => Side::Server,
        };
        let verified = self.trust.verify(chain, side, now)?;
        let found = &verified.identity;
        if found.cluster != self.cluster {
            return Err(CertificateFault::OtherCluster {
                found: found.clone(),
                expected: self.cluster.clone(),
            });
        }
        if self.expected != Expected::Client && found.role != Role::Node {
            return Err(CertificateFault::NotANode { found: found.clone() });
        }
        if let Expected::Server(ExpectedPeer::Node(meant)) = self.expected
            && found.node_id() != Some(meant)
        {
            return Err(CertificateFault::OtherNode { found: found.clone(), meant });
        }
        Ok(verified)
    }

    fn judge_for_rustls(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(own).chain(others).cloned().collect();
        self.judge(&chain, now.as_secs()).map(drop).map_err(|fault| fault.to_rustls(now.as_secs()))
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerVerifier({}, {:?})", self.cluster, self.expected)
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge_for_rustls(own, others, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &supported_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        supported_algorithms().supported_schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    /// The host name is not looked at: a node is who its SPIFFE id says, wherever it is reached.
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge_for_rustls(own, others, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &supported_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        supported_algorithms().supported_schemes()
    }
}

/// The cryptography of every connection: aws-lc-rs.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

pub(super) fn server_config(
    own: &Arc<CertifiedKey>,
    verifier: Arc<PeerVerifier>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Unconfigurable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone())));
    config.alpn_protocols = SERVER_PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

pub(super) fn client_config(
    own: &Arc<CertifiedKey>,
    verifier: Arc<PeerVerifier>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Unconfigurable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone())));
    config.alpn_protocols = vec![CLIENT_PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // There is no host name to indicate: peers are known by their SPIFFE ids.
    config.enable_sni = false;
    Ok(config)
}
