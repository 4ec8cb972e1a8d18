//! Receipts as they come in.

use uuid::Uuid;

use super::ClientError;
use crate::escrow::ids::{ClusterId, Timestamp};
use crate::escrow::journal::JournalPlace;
use crate::escrow::records::Fingerprint;
use crate::proto;
use crate::seal::receipt::Receipt;
use crate::seal::receipt::disclosure::{DisclosureReceipt, DisclosureTag};

/// The receipt in `message`.
pub(super) fn receipt(message: proto::Receipt) -> Result<Receipt, ClientError> {
    parse(message).ok_or(ClientError::Malformed { what: "the node's receipt is not well formed" })
}

/// A fingerprint as it comes in: hexadecimal.
pub(super) fn parse_fingerprint(text: &str) -> Option<Fingerprint> {
    let digits = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
    digits.try_into().ok().map(Fingerprint)
}

/// The receipt of a reveal in `message`, if it is well formed. If not, that is no reason to keep back what was revealed.
pub(super) fn disclosure(message: proto::DisclosureReceipt) -> Option<DisclosureReceipt> {
    let user = match message.user.as_str() {
        "" => None,
        user => Some(user.parse().ok()?),
    };
    let journal = match message.journal.as_str() {
        "" => None,
        journal => {
            let journal = Uuid::try_parse(journal).ok()?;
            Some(JournalPlace { journal, sequence: message.journal_sequence })
        }
    };
    Some(DisclosureReceipt {
        receipt: DisclosureTag::Disclosure,
        cluster: ClusterId(Uuid::try_parse(&message.cluster).ok()?),
        cluster_name: message.cluster_name.parse().ok()?,
        term: message.term,
        index: message.index,
        audit_sequence: message.audit_sequence,
        key_id: message.key_id.parse().ok()?,
        machine: message.machine.parse().ok()?,
        volume: message.volume.parse().ok()?,
        fingerprint: parse_fingerprint(&message.fingerprint)?,
        to: message.to.parse().ok()?,
        user,
        reason: message.reason,
        at: Timestamp(message.at_ms),
        state: message.state.parse().ok()?,
        journal,
        node: message.node.parse().ok()?,
        signature: message.signature,
        certificates: message.certificates,
    })
}

fn parse(message: proto::Receipt) -> Option<Receipt> {
    Some(Receipt {
        cluster: ClusterId(Uuid::try_parse(&message.cluster).ok()?),
        cluster_name: message.cluster_name.parse().ok()?,
        term: message.term,
        index: message.index,
        machine: message.machine.parse().ok()?,
        volume: message.volume.parse().ok()?,
        key_id: message.key_id.parse().ok()?,
        fingerprint: parse_fingerprint(&message.fingerprint)?,
        at: Timestamp(message.at_ms),
        already_escrowed: message.already_escrowed,
        node: message.node.parse().ok()?,
        signature: message.signature,
        certificates: message.certificates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> proto::Receipt {
        proto::Receipt {
            cluster: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            cluster_name: "demo".into(),
            term: 3,
            index: 7,
            machine: "PC-0001".into(),
            volume: "C:".into(),
            key_id: "b0b1c2d3-0000-4000-8000-000000000002".into(),
            fingerprint: "ab".repeat(32),
            at_ms: 5,
            already_escrowed: true,
            node: "spiffe://demo/node/2".into(),
            signature: vec![1],
            certificates: vec![vec![2]],
        }
    }

    #[test]
    fn a_receipt_arrives_with_every_field() {
        let receipt = receipt(message()).unwrap();
        assert_eq!((receipt.term, receipt.index, receipt.at.0, receipt.already_escrowed), (3, 7, 5, true));
        assert_eq!(receipt.fingerprint, Fingerprint([0xab; 32]));
        assert_eq!(receipt.node.to_string(), "spiffe://demo/node/2");
    }

    #[test]
    fn a_receipt_that_is_not_well_formed_is_refused() {
        let spoilt: [fn(&mut proto::Receipt); 4] = [
            |message| message.fingerprint = "ab".into(),
            |message| message.cluster.clear(),
            |message| message.machine = "no such".into(),
            |message| message.node = "node 2".into(),
        ];
        for spoil in spoilt {
            let mut message = message();
            spoil(&mut message);
            assert!(matches!(receipt(message), Err(ClientError::Malformed { .. })));
        }
    }
}
