//! Receipts: what a device keeps as proof that its key is escrowed, verifiable offline with the CA alone.
//!
//! A node signs with its certificate's key. Signed are all fields and the certificates, each with its length before
//! it, under a label that no other signature of this product uses; so no field can be changed, moved into another,
//! or taken from another kind of message.

pub mod disclosure;

use serde::{Deserialize, Serialize};

use super::signed::{CERTIFICATES_MAX, Message, base64, base64_list, rfc3339};
use crate::escrow::command::Escrowed;
use crate::escrow::ids::{ClusterId, ClusterName, Identity, KeyId, MachineId, Role, Timestamp, VolumeId};
use crate::escrow::records::{Fingerprint, LogPosition};
use crate::tls::{Tls, TlsError, TrustAnchors};

/// What a receipt's signature is about, and the version of its form.
const DOMAIN: &[u8] = b"strongroom receipt v1";

/// Proof that a key is kept. The JSON form has exactly these fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The history that keeps it.
    pub cluster: ClusterId,
    /// The trust domain of the node that signed.
    pub cluster_name: ClusterName,
    /// Term of the entry that first kept it.
    pub term: u64,
    /// Index of the entry that first kept it.
    pub index: u64,
    /// Its machine.
    pub machine: MachineId,
    /// Its volume.
    pub volume: VolumeId,
    /// Its id.
    pub key_id: KeyId,
    /// Keyed hash of the secret; hexadecimal in JSON.
    #[serde(with = "fingerprint")]
    pub fingerprint: Fingerprint,
    /// When it was first kept; RFC 3339 in JSON.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// It had been kept before the request this receipt answers.
    pub already_escrowed: bool,
    /// The node that signed.
    pub node: Identity,
    /// ECDSA P-256 with SHA-256, ASN.1; base64 in JSON.
    #[serde(with = "base64")]
    pub signature: Vec<u8>,
    /// The signer's chain, DER, own first; base64 in JSON.
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
}

/// Why a receipt proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It was signed by somebody else than it says.
    #[error("the receipt names {named} as its signer, but it was signed by {signer}")]
    OtherSigner {
        /// Who it says signed it.
        named: Identity,
        /// Who did.
        signer: Identity,
    },
    /// It was not signed by a node of its cluster.
    #[error("the receipt was signed by {signer}, which is not a node of cluster {cluster}")]
    SignerNotANode {
        /// Who signed.
        signer: Identity,
        /// The cluster it names.
        cluster: ClusterName,
    },
    /// It carries too many certificates to be one of ours.
    #[error("the receipt carries {found} certificates; at most {CERTIFICATES_MAX} are accepted")]
    TooManyCertificates {
        /// How many.
        found: usize,
    },
    /// Its signature or its signer's certificate does not hold.
    #[error("the receipt does not verify: {0}")]
    Unverified(#[source] TlsError),
}

impl Receipt {
    /// The receipt of this node for a key that `cluster` keeps.
    ///
    /// # Errors
    /// [`TlsError::Sign`].
    pub fn sign(escrowed: &Escrowed, cluster: ClusterId, tls: &Tls) -> Result<Self, TlsError> {
        let signer = tls.signer();
        let mut receipt = Self {
            cluster,
            cluster_name: signer.identity().cluster.clone(),
            term: escrowed.position.term,
            index: escrowed.position.index,
            machine: escrowed.machine.clone(),
            volume: escrowed.volume.clone(),
            key_id: escrowed.key_id,
            fingerprint: escrowed.fingerprint,
            at: escrowed.at,
            already_escrowed: escrowed.already_escrowed,
            node: signer.identity().clone(),
            signature: Vec::new(),
            certificates: signer.certificates(),
        };
        receipt.signature = signer.sign(&receipt.signed_bytes())?;
        Ok(receipt)
    }

    /// Where the key stands in the log.
    pub fn position(&self) -> LogPosition {
        LogPosition { term: self.term, index: self.index }
    }

    /// Holds the receipt against the CAs: the signature covers every field, the signer is the node it names, a node
    /// of the cluster it names, and its certificate was valid when the key was kept. A receipt for a key that had
    /// been kept before was signed later than that, by a certificate that may be younger, so there the certificate
    /// must only not have ended before.
    ///
    /// # Errors
    /// [`ReceiptError`], saying what does not hold.
    pub fn verify(&self, trust: &TrustAnchors) -> Result<(), ReceiptError> {
        if self.certificates.len() > CERTIFICATES_MAX {
            return Err(ReceiptError::TooManyCertificates { found: self.certificates.len() });
        }
        let (message, at) = (self.signed_bytes(), self.at.0 / 1_000);
        let signer = if self.already_escrowed {
            trust.verify_signed_since(&self.certificates, &message, &self.signature, at)
        } else {
            trust.verify_signed(&self.certificates, &message, &self.signature, Some(at))
        };
        let signer = signer.map_err(ReceiptError::Unverified)?;
        if signer != self.node {
            return Err(ReceiptError::OtherSigner { named: self.node.clone(), signer });
        }
        if signer.role != Role::Node || signer.cluster != self.cluster_name {
            return Err(ReceiptError::SignerNotANode { signer, cluster: self.cluster_name.clone() });
        }
        Ok(())
    }

    /// What is signed: the domain label, then every field in the order of the struct but the signature.
    fn signed_bytes(&self) -> Vec<u8> {
        // Taken apart, so that a field that is added cannot be forgotten here.
        let Self {
            cluster,
            cluster_name,
            term,
            index,
            machine,
            volume,
            key_id,
            fingerprint,
            at,
            already_escrowed,
            node,
            signature: _,
            certificates,
        } = self;
        let mut message = Message::about(DOMAIN);
        message.put(cluster.0.as_bytes());
        message.put(cluster_name.as_str().as_bytes());
        message.put(&term.to_be_bytes());
        message.put(&index.to_be_bytes());
        message.put(machine.as_str().as_bytes());
        message.put(volume.as_str().as_bytes());
        message.put(key_id.0.as_bytes());
        message.put(&fingerprint.0);
        message.put(&at.0.to_be_bytes());
        message.put(&[u8::from(*already_escrowed)]);
        message.put(node.to_string().as_bytes());
        message.put_all(certificates);
        message.into_bytes()
    }
}

/// [`Fingerprint`] as lower-case hexadecimal.
mod fingerprint {
    use data_encoding::HEXLOWER_PERMISSIVE;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Fingerprint;

    pub(super) fn serialize<S: Serializer>(value: &Fingerprint, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let bytes =
            bytes.try_into().map_err(|_| D::Error::custom("a fingerprint has 64 hexadecimal digits"))?;
        Ok(Fingerprint(bytes))
    }
}

#[cfg(test)]
mod tests;
