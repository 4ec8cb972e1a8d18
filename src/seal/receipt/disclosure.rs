//! Receipts of reveals: who was shown which key, for whom and why, signed by the node that showed it. It verifies offline
//! with the CA alone. Of a reveal by a quorum it names the audit record. Of one without, it names the entry of the node's
//! journal: the record that comes of it names the same one, if it comes, which the disk of that node may take with it.

use serde::{Deserialize, Serialize};

use super::{ReceiptError, fingerprint};
use crate::escrow::ids::{
    ClusterId, ClusterName, Identity, KeyId, MachineId, Role, Timestamp, UserName, VolumeId,
};
use crate::escrow::journal::JournalPlace;
use crate::escrow::records::{Fingerprint, KeyState, LogPosition};
use crate::seal::signed::{CERTIFICATES_MAX, Message, base64, base64_list, rfc3339};
use crate::tls::{Tls, TlsError, TrustAnchors};

/// What the signature is about, and the version of its form.
const DOMAIN: &[u8] = b"strongroom disclosure receipt v1";

/// A reveal, as a receipt certifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disclosed {
    /// The key that was shown.
    pub key_id: KeyId,
    /// Its machine.
    pub machine: MachineId,
    /// Its volume.
    pub volume: VolumeId,
    /// Keyed hash of the secret.
    pub fingerprint: Fingerprint,
    /// To whom it was shown.
    pub to: Identity,
    /// For which user, if one was named.
    pub user: Option<UserName>,
    /// The reason given.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// The entry that put it on record. Of a reveal without a quorum, the last one that the node had applied.
    pub position: LogPosition,
    /// What state the key was in, as the node had it when it was shown.
    pub state: KeyState,
    /// Where it is noted.
    pub on_record: OnRecord,
}

/// Where a reveal is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRecord {
    /// In the audit trail, as this record.
    Audit(u64),
    /// Without a quorum, in the journal of the node, as this entry.
    Journal(JournalPlace),
}

/// Tells this receipt from one of an escrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DisclosureTag {
    /// What `receipt` says in the JSON form.
    Disclosure,
}

/// Proof that a key was shown. The JSON form has exactly these fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisclosureReceipt {
    /// What kind of receipt it is.
    pub receipt: DisclosureTag,
    /// The history that holds the key.
    pub cluster: ClusterId,
    /// The trust domain of the node that signed.
    pub cluster_name: ClusterName,
    /// Term of the entry that put it on record.
    pub term: u64,
    /// Index of that entry. Of a reveal without a quorum, of the last one that the node had applied.
    pub index: u64,
    /// The audit record of it; `null` for a reveal without a quorum, which had none when this was signed.
    pub audit_sequence: Option<u64>,
    /// Of a reveal without a quorum, the entry of the node's journal; `null` otherwise.
    pub journal: Option<JournalPlace>,
    /// The key that was shown.
    pub key_id: KeyId,
    /// Its machine.
    pub machine: MachineId,
    /// Its volume.
    pub volume: VolumeId,
    /// Keyed hash of the secret; hexadecimal in JSON.
    #[serde(with = "fingerprint")]
    pub fingerprint: Fingerprint,
    /// What state the key was in, as the node had it when it was shown.
    pub state: KeyState,
    /// To whom it was shown.
    pub to: Identity,
    /// For which user, if one was named.
    pub user: Option<UserName>,
    /// The reason given.
    pub reason: String,
    /// When; RFC 3339 in JSON.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// The node that showed it and signed.
    pub node: Identity,
    /// ECDSA P-256 with SHA-256, ASN.1; base64 in JSON.
    #[serde(with = "base64")]
    pub signature: Vec<u8>,
    /// The signer's chain, DER, own first; base64 in JSON.
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
}

impl DisclosureReceipt {
    /// The receipt of this node for a key that it shows.
    ///
    /// # Errors
    /// [`TlsError::Sign`].
    pub fn sign(disclosed: Disclosed, cluster: ClusterId, tls: &Tls) -> Result<Self, TlsError> {
        let signer = tls.signer();
        let (audit_sequence, journal) = match disclosed.on_record {
            OnRecord::Audit(sequence) => (Some(sequence), None),
            OnRecord::Journal(place) => (None, Some(place)),
        };
        let mut receipt = Self {
            receipt: DisclosureTag::Disclosure,
            cluster,
            cluster_name: signer.identity().cluster.clone(),
            term: disclosed.position.term,
            index: disclosed.position.index,
            audit_sequence,
            journal,
            key_id: disclosed.key_id,
            machine: disclosed.machine,
            volume: disclosed.volume,
            fingerprint: disclosed.fingerprint,
            state: disclosed.state,
            to: disclosed.to,
            user: disclosed.user,
            reason: disclosed.reason,
            at: disclosed.at,
            node: signer.identity().clone(),
            signature: Vec::new(),
            certificates: signer.certificates(),
        };
        receipt.signature = signer.sign(&receipt.signed_bytes())?;
        Ok(receipt)
    }

    /// Holds the receipt against the CAs: the signature covers every field, the signer is the node it names, a node of
    /// the cluster it names, and its certificate had not ended when the key was shown. It may be younger: a reveal that is
    /// repeated is answered as it was first decided.
    ///
    /// # Errors
    /// [`ReceiptError`], saying what does not hold.
    pub fn verify(&self, trust: &TrustAnchors) -> Result<(), ReceiptError> {
        if self.certificates.len() > CERTIFICATES_MAX {
            return Err(ReceiptError::TooManyCertificates { found: self.certificates.len() });
        }
        let (message, at) = (self.signed_bytes(), self.at.0 / 1_000);
        let signer = trust.verify_signed_since(&self.certificates, &message, &self.signature, at);
        let signer = signer.map_err(ReceiptError::Unverified)?;
        if signer != self.node {
            return Err(ReceiptError::OtherSigner { named: self.node.clone(), signer });
        }
        if signer.role != Role::Node || signer.cluster != self.cluster_name {
            return Err(ReceiptError::SignerNotANode { signer, cluster: self.cluster_name.clone() });
        }
        Ok(())
    }

    /// What is signed: every field in the order of the struct but the tag, for which the label stands, and the signature.
    /// Before a field that may be absent stands one that says whether it is there.
    fn signed_bytes(&self) -> Vec<u8> {
        // Taken apart, so that a field that is added cannot be forgotten here.
        let Self {
            receipt: DisclosureTag::Disclosure,
            cluster,
            cluster_name,
            term,
            index,
            audit_sequence,
            journal,
            key_id,
            machine,
            volume,
            fingerprint,
            state,
            to,
            user,
            reason,
            at,
            node,
            signature: _,
            certificates,
        } = self;
        let mut message = Message::about(DOMAIN);
        message.put(cluster.0.as_bytes());
        message.put(cluster_name.as_str().as_bytes());
        message.put(&term.to_be_bytes());
        message.put(&index.to_be_bytes());
        message.put(&[u8::from(audit_sequence.is_some())]);
        message.put(&audit_sequence.unwrap_or_default().to_be_bytes());
        message.put(&[u8::from(journal.is_some())]);
        message.put(&journal.map(|place| place.row_key()).unwrap_or_default());
        message.put(key_id.0.as_bytes());
        message.put(machine.as_str().as_bytes());
        message.put(volume.as_str().as_bytes());
        message.put(&fingerprint.0);
        message.put(state.to_string().as_bytes());
        message.put(to.to_string().as_bytes());
        message.put(&[u8::from(user.is_some())]);
        message.put(user.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes());
        message.put(reason.as_bytes());
        message.put(&at.0.to_be_bytes());
        message.put(node.to_string().as_bytes());
        message.put_all(certificates);
        message.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::seal::receipt::Receipt;
    use crate::tls::ca::CA_CERTIFICATE_FILE;
    use crate::tls::tests::TestCa;
    use crate::tls::unix_now;

    fn disclosed() -> Disclosed {
        Disclosed {
            key_id: KeyId(Uuid::from_u128(0x1234)),
            machine: "PC-0001".parse().unwrap(),
            volume: "C:".parse().unwrap(),
            fingerprint: Fingerprint([7; 32]),
            to: "spiffe://acme/helpdesk/desk1".parse().unwrap(),
            user: Some(r"CORP\user1".parse().unwrap()),
            reason: "lost PIN".to_owned(),
            at: Timestamp(unix_now() * 1_000 + 123),
            position: LogPosition { term: 3, index: 42 },
            state: KeyState::Disclosed,
            on_record: OnRecord::Audit(9),
        }
    }

    fn place() -> JournalPlace {
        JournalPlace { journal: Uuid::from_u128(0x30a), sequence: 4 }
    }

    fn sign(ca: &TestCa, disclosed: Disclosed, role: Role) -> DisclosureReceipt {
        let cluster = ClusterId(Uuid::from_u128(0xc1));
        let name = if role == Role::Node { "1" } else { "somebody" };
        DisclosureReceipt::sign(disclosed, cluster, &ca.tls(role, name)).unwrap()
    }

    fn trust(ca: &TestCa) -> TrustAnchors {
        TrustAnchors::from_pem_file(&ca.place("ca").join(CA_CERTIFICATE_FILE)).unwrap()
    }

    #[test]
    fn it_verifies_with_the_ca_alone_and_comes_back_from_json_the_same() {
        let ca = TestCa::new("acme");
        for on_record in [OnRecord::Audit(9), OnRecord::Journal(place())] {
            let receipt = sign(&ca, Disclosed { on_record, ..disclosed() }, Role::Node);
            receipt.verify(&trust(&ca)).unwrap();
            let json = serde_json::to_value(&receipt).unwrap();
            assert_eq!(json["receipt"], "disclosure");
            assert_eq!(json["to"], "spiffe://acme/helpdesk/desk1");
            let back: DisclosureReceipt = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(back, receipt);
            back.verify(&trust(&ca)).unwrap();
            serde_json::from_value::<Receipt>(json).expect_err("not one of an escrow");
        }
    }

    #[test]
    fn what_is_signed_never_changes() {
        let receipt = DisclosureReceipt {
            receipt: DisclosureTag::Disclosure,
            cluster: ClusterId(Uuid::from_u128(0xc1)),
            cluster_name: "acme".parse().unwrap(),
            term: 3,
            index: 42,
            audit_sequence: Some(9),
            journal: None,
            key_id: KeyId(Uuid::from_u128(0x1234)),
            machine: "PC-0001".parse().unwrap(),
            volume: "C:".parse().unwrap(),
            fingerprint: Fingerprint([7; 32]),
            state: KeyState::Disclosed,
            to: "spiffe://acme/helpdesk/desk1".parse().unwrap(),
            user: Some(r"CORP\user1".parse().unwrap()),
            reason: "lost PIN".to_owned(),
            at: Timestamp(1_700_000_000_123),
            node: "spiffe://acme/node/1".parse().unwrap(),
            signature: vec![1],
            certificates: vec![vec![1, 2], vec![3]],
        };
        let hash = |receipt: &DisclosureReceipt| {
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &receipt.signed_bytes());
            data_encoding::HEXLOWER.encode(hash.as_ref())
        };
        assert_eq!(hash(&receipt), "963b0ac4cf83b79b9490413bcd7b38d36d2cd0a0eb5ed82459a8c319fa0a0694");
        let degraded =
            DisclosureReceipt { audit_sequence: None, journal: Some(place()), user: None, ..receipt };
        assert_eq!(hash(&degraded), "958596fcc54bac1f9f8229f64ae5bc2c8894c284b98c41dd4fa744b2a7368d45");
    }

    #[test]
    fn a_receipt_with_any_other_field_proves_nothing() {
        let ca = TestCa::new("acme");
        let (good, trust) = (sign(&ca, disclosed(), Role::Node), trust(&ca));
        let changes: [fn(&mut DisclosureReceipt); 20] = [
            |receipt| receipt.cluster = ClusterId(Uuid::from_u128(0xc2)),
            |receipt| receipt.cluster_name = "other".parse().unwrap(),
            |receipt| receipt.term += 1,
            |receipt| receipt.index += 1,
            |receipt| receipt.audit_sequence = None,
            |receipt| receipt.audit_sequence = Some(10),
            |receipt| receipt.journal = Some(place()),
            |receipt| receipt.state = KeyState::Retired,
            |receipt| receipt.key_id = KeyId(Uuid::from_u128(0x1235)),
            |receipt| receipt.machine = "PC-0002".parse().unwrap(),
            |receipt| receipt.volume = "D:".parse().unwrap(),
            |receipt| receipt.fingerprint.0[31] ^= 1,
            |receipt| receipt.to = "spiffe://acme/helpdesk/desk2".parse().unwrap(),
            |receipt| receipt.user = None,
            |receipt| receipt.user = Some(r"CORP\user2".parse().unwrap()),
            |receipt| receipt.reason.push('!'),
            |receipt| receipt.at.0 += 1,
            |receipt| receipt.node = "spiffe://acme/node/2".parse().unwrap(),
            |receipt| receipt.signature[8] ^= 1,
            |receipt| receipt.certificates.push(vec![1]),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = good.clone();
            change(&mut changed);
            assert_ne!(changed, good);
            changed.verify(&trust).expect_err(&format!("change {number}"));
        }
        good.verify(&trust).unwrap();
    }

    #[test]
    fn nobody_but_a_node_of_the_same_authority_signs_one() {
        let (ours, theirs) = (TestCa::new("acme"), TestCa::new("acme"));
        sign(&theirs, disclosed(), Role::Node).verify(&trust(&ours)).expect_err("another authority");
        let error = sign(&ours, disclosed(), Role::Helpdesk).verify(&trust(&ours)).unwrap_err();
        assert!(matches!(error, ReceiptError::SignerNotANode { .. }), "{error}");
    }
}
