//! Checkpoints: what a node has signed about the head of the audit trail, verifiable offline with the CA alone.
//!
//! The chain makes the newest hash speak for every record; the signature makes a node answer for that hash. Signed as a
//! [receipt](super::receipt) is, under a label of its own.

use serde::{Deserialize, Serialize};

use super::signed::{CERTIFICATES_MAX, Message, base64, base64_list, hash, rfc3339};
use crate::escrow::audit::ChainHead;
use crate::escrow::audit::check::Signed;
use crate::escrow::ids::{ClusterId, ClusterName, Identity, Invalid, NodeId, Role, Timestamp};
use crate::escrow::records::LogPosition;
use crate::tls::{Tls, TlsError, TrustAnchors};

/// What a checkpoint's signature is about, and the version of its form.
const DOMAIN: &[u8] = b"strongroom audit checkpoint v1";
/// The `type` of a checkpoint among the lines of an export.
pub const CHECKPOINT_TYPE: &str = "checkpoint";

/// Where the audit trail stands at a node. One line of an export, with exactly these fields in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Always [`CHECKPOINT_TYPE`].
    r#type: String,
    /// The newest record.
    pub seq: u64,
    /// Its hash; hexadecimal in JSON.
    #[serde(with = "hash")]
    pub hash: [u8; 32],
    /// The history it belongs to.
    pub cluster: ClusterId,
    /// The trust domain of the node that signed.
    pub cluster_name: ClusterName,
    /// Term of the entry the node had applied last.
    pub term: u64,
    /// Index of that entry.
    pub index: u64,
    /// When it was signed, by the node's clock; RFC 3339 in JSON.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// The node that signed.
    pub node: Identity,
    /// ECDSA P-256 with SHA-256, ASN.1; base64 in JSON.
    #[serde(with = "base64")]
    pub signature: Vec<u8>,
    /// The signer's chain, DER, own first; base64 in JSON.
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
}

/// Why a checkpoint proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It was signed by somebody else than it says, or by no node of its cluster.
    #[error("it names {named} as its signer, but it was signed by {signer}")]
    OtherSigner {
        /// Who it says signed it.
        named: Identity,
        /// Who did.
        signer: Identity,
    },
    /// It carries too many certificates to be one of ours.
    #[error("it carries {found} certificates; at most {CERTIFICATES_MAX} are accepted")]
    TooManyCertificates {
        /// How many.
        found: usize,
    },
    /// Its signature or its signer's certificate does not hold.
    #[error("it does not verify: {0}")]
    Unverified(#[source] TlsError),
}

impl Checkpoint {
    /// This node's word that the trail of `cluster` stands at `head` once it has applied the entry at `position`.
    ///
    /// # Errors
    /// [`TlsError::Sign`].
    pub fn sign(
        head: ChainHead,
        position: LogPosition,
        cluster: ClusterId,
        at: Timestamp,
        tls: &Tls,
    ) -> Result<Self, TlsError> {
        let signer = tls.signer();
        let mut checkpoint = Self {
            r#type: CHECKPOINT_TYPE.to_owned(),
            seq: head.sequence,
            hash: head.hash,
            cluster,
            cluster_name: signer.identity().cluster.clone(),
            term: position.term,
            index: position.index,
            at,
            node: signer.identity().clone(),
            signature: Vec::new(),
            certificates: signer.certificates(),
        };
        checkpoint.signature = signer.sign(&checkpoint.signed_bytes())?;
        Ok(checkpoint)
    }

    /// The line of an export, without the line end.
    pub fn render(&self) -> String {
        serde_json::to_string(self).expect("text and numbers, and no I/O")
    }

    /// The checkpoint that `line` states. Nothing of it is believed before it is [verified](Self::verify).
    ///
    /// # Errors
    /// [`Invalid`] if it states none.
    pub fn parse(line: &str) -> Result<Self, Invalid> {
        let not_one = |what: String| Invalid::new("checkpoint", what);
        let checkpoint: Self = serde_json::from_str(line).map_err(|error| not_one(error.to_string()))?;
        if checkpoint.r#type != CHECKPOINT_TYPE {
            return Err(not_one(format!("a line of type {CHECKPOINT_TYPE}")));
        }
        Ok(checkpoint)
    }

    /// Holds the checkpoint against the CAs: the signature covers every field, the signer is the node it names, a node
    /// of the cluster it names, and its certificate was valid then. Answers what was signed.
    ///
    /// # Errors
    /// [`CheckpointError`], saying what does not hold.
    pub fn verify(&self, trust: &TrustAnchors) -> Result<Signed, CheckpointError> {
        if self.certificates.len() > CERTIFICATES_MAX {
            return Err(CheckpointError::TooManyCertificates { found: self.certificates.len() });
        }
        let message = self.signed_bytes();
        let signer = trust
            .verify_signed(&self.certificates, &message, &self.signature, Some(self.at.0 / 1_000))
            .map_err(CheckpointError::Unverified)?;
        match node_of(&signer) {
            Some(node) if signer == self.node && signer.cluster == self.cluster_name => {
                Ok(Signed { head: ChainHead { sequence: self.seq, hash: self.hash }, node })
            }
            _ => Err(CheckpointError::OtherSigner { named: self.node.clone(), signer }),
        }
    }

    /// What is signed: the label, then every field in the order of the struct but `type` and the signature.
    fn signed_bytes(&self) -> Vec<u8> {
        // Taken apart, so that a field that is added cannot be forgotten here.
        let Self {
            r#type: _,
            seq,
            hash,
            cluster,
            cluster_name,
            term,
            index,
            at,
            node,
            signature: _,
            certificates,
        } = self;
        let mut message = Message::about(DOMAIN);
        message.put(&seq.to_be_bytes());
        message.put(hash);
        message.put(cluster.0.as_bytes());
        message.put(cluster_name.as_str().as_bytes());
        message.put(&term.to_be_bytes());
        message.put(&index.to_be_bytes());
        message.put(&at.0.to_be_bytes());
        message.put(node.to_string().as_bytes());
        message.put_all(certificates);
        message.into_bytes()
    }
}

fn node_of(identity: &Identity) -> Option<NodeId> {
    if identity.role == Role::Node { identity.node_id() } else { None }
}

#[cfg(test)]
mod tests;
