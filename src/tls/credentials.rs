//! One generation of this process's credentials: read, checked as a whole, then only replaced as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use zeroize::Zeroizing;

use super::certificate::leaf_facts;
use super::error::{CertificateFault, TlsError};
use super::trust::{Side, TrustAnchors, Verified};
use super::verifier::{Expected, PeerVerifier, provider, server_config};
use super::{RevocationFile, TlsPaths, files, unix_now};
use crate::escrow::ids::{Identity, Role};

/// Most certificates in our own chain.
const CHAIN_MAX: usize = 8;
/// What the private key signs with, in TLS and on receipts.
pub(super) const SIGNATURE_SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// The files as they were read.
pub(super) struct Files {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    revocation_lists: Option<Vec<u8>>,
}

/// Credentials that belong together.
pub(super) struct Credentials {
    pub(super) identity: Identity,
    /// The own certificate's serial number, hexadecimal.
    pub(super) serial: String,
    /// Unix seconds.
    pub(super) not_before: u64,
    /// Unix seconds; of the whole path.
    pub(super) expires_at: u64,
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) trust: Arc<TrustAnchors>,
    pub(super) server: Arc<ServerConfig>,
    /// Judges clients; nodes are judged by a verifier of their own, which knows who is meant.
    pub(super) clients: Arc<PeerVerifier>,
    /// As `server`, for nodes alone.
    pub(super) node_server: Arc<ServerConfig>,
    /// Judges nodes that call.
    pub(super) nodes: Arc<PeerVerifier>,
    /// Tells whether the files changed.
    pub(super) digest: [u8; 32],
    /// Counts reloads.
    pub(super) generation: u64,
    /// What is wrong with our own certificate, of those faults that must not stop a new CA bundle or revocation
    /// list from taking effect.
    pub(super) own_fault: Option<CertificateFault>,
}

impl Files {
    pub(super) fn read(paths: &TlsPaths) -> Result<Self, TlsError> {
        Ok(Self {
            ca: files::read(&paths.ca)?,
            certificate: files::read(&paths.cert)?,
            key: files::read_private(&paths.key)?,
            revocation_lists: match &paths.crl {
                RevocationFile::None => None,
                RevocationFile::Required(path) => Some(files::read(path)?),
                RevocationFile::Optional(path) => files::read_if_present(path)?,
            },
        })
    }

    /// Equal for equal contents. Contents are compared, not times: a restored or linked file may look old.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        let lists = self.revocation_lists.as_deref();
        // No file and an empty one are not the same.
        context.update(&[u8::from(lists.is_some())]);
        for content in [self.ca.as_slice(), &self.certificate, &self.key, lists.unwrap_or_default()] {
            context.update(&(content.len() as u64).to_be_bytes());
            context.update(content);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

impl Credentials {
    /// Checks everything. With a `previous` generation whose certificate is unchanged, that certificate may have
    /// expired or been revoked meanwhile: refusing the files for it would keep an old revocation list in force.
    pub(super) fn build(paths: &TlsPaths, files: &Files, previous: Option<&Self>) -> Result<Self, TlsError> {
        let mut trust = TrustAnchors::from_pem(&paths.ca, &files.ca)?;
        let certified = Arc::new(certified_key(paths, files)?);
        if let (Some(path), Some(pem)) = (paths.crl.path(), &files.revocation_lists) {
            trust = trust.with_revocation_lists(path, pem, &certified.cert)?;
        }
        if let Some(previous) = previous {
            trust = trust.keeping_lists_of(&previous.trust);
        }
        let trust = Arc::new(trust);

        let unchanged = previous.filter(|previous| previous.certified.cert == certified.cert);
        let (own, own_fault) = match (verify_own(&trust, &certified), unchanged) {
            (Ok(own), _) => (own, None),
            (Err(fault @ (CertificateFault::Expired { .. } | CertificateFault::Revoked)), Some(previous)) => {
                (previous.own(), Some(fault))
            }
            (Err(fault), _) => return Err(TlsError::Own { path: paths.cert.clone(), fault }),
        };
        let Verified { identity, serial, not_before, expires_at, .. } = own;
        if let Some(previous) = previous
            && previous.identity != identity
        {
            return Err(TlsError::IdentityChanged { from: previous.identity.clone(), to: identity });
        }

        let judge = |expected| Arc::new(PeerVerifier::new(trust.clone(), identity.cluster.clone(), expected));
        let (clients, nodes) = (judge(Expected::Client), judge(Expected::Node));
        Ok(Self {
            server: Arc::new(server_config(&certified, clients.clone())?),
            node_server: Arc::new(server_config(&certified, nodes.clone())?),
            generation: previous.map_or(0, |previous| previous.generation + 1),
            digest: files.digest(),
            identity,
            serial,
            not_before,
            expires_at,
            certified,
            trust,
            clients,
            nodes,
            own_fault,
        })
    }

    /// The own certificate as it was last verified.
    fn own(&self) -> Verified {
        Verified {
            identity: self.identity.clone(),
            serial: self.serial.clone(),
            not_before: self.not_before,
            not_after: self.expires_at,
            expires_at: self.expires_at,
        }
    }

    /// Signs with the private key: ECDSA P-256 with SHA-256, ASN.1.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        let unfit = || rustls::Error::General("the key does not sign with ECDSA P-256".to_owned());
        let signer = self.certified.key.choose_scheme(&[SIGNATURE_SCHEME]).ok_or_else(unfit);
        signer.and_then(|signer| signer.sign(message)).map_err(TlsError::Sign)
    }

    pub(super) fn certificates(&self) -> Vec<Vec<u8>> {
        self.certified.cert.iter().map(|der| der.to_vec()).collect()
    }
}

fn certified_key(paths: &TlsPaths, files: &Files) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&paths.cert, &files.certificate)?;
    let unusable = |what: String| TlsError::Unusable { path: paths.key.clone(), what };
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|error| unusable(format!("holds no private key (PEM, PKCS#8): {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::KeyMismatch { key: paths.key.clone(), certificate: paths.cert.clone() }
        }
        error => unusable(format!("the private key is not usable: {error}")),
    })?;
    // Receipts are verified with this one algorithm.
    if certified.key.choose_scheme(&[SIGNATURE_SCHEME]).is_none() {
        return Err(unusable("the private key is not an ECDSA key on the curve P-256".to_owned()));
    }
    Ok(certified)
}

/// The certificates of a PEM file, own first.
pub(super) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |what: String| TlsError::Unusable { path: PathBuf::from(path), what };
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(format!("not PEM: {error}")))?;
    match chain.len() {
        0 => Err(unusable("holds no certificate (PEM, BEGIN CERTIFICATE)".to_owned())),
        1..=CHAIN_MAX => Ok(chain),
        more => {
            Err(unusable(format!("holds {more} certificates; a chain of at most {CHAIN_MAX} is accepted")))
        }
    }
}

/// Everybody is a client; a node is a server as well.
fn verify_own(trust: &TrustAnchors, certified: &CertifiedKey) -> Result<Verified, CertificateFault> {
    // Named first: without an identity the rest says little.
    let identity = leaf_facts(&certified.cert)?.identity;
    let identity = identity.map_err(|invalid| CertificateFault::NoIdentity(invalid.expected))?;
    let now = unix_now();
    if identity.role == Role::Node {
        trust.verify(&certified.cert, Side::Server, now)?;
    }
    trust.verify(&certified.cert, Side::Client, now)
}
