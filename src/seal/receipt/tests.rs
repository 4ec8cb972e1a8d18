use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::tls::ca::{CA_CERTIFICATE_FILE, IssueRequest, Validity};
use crate::tls::tests::TestCa;
use crate::tls::{CertificateFault, unix_now};

fn escrowed(at: Timestamp) -> Escrowed {
    Escrowed {
        key_id: KeyId(Uuid::from_u128(0x1234)),
        machine: "PC-0001".parse().unwrap(),
        volume: "C:".parse().unwrap(),
        fingerprint: Fingerprint([7; 32]),
        at,
        position: LogPosition { term: 3, index: 42 },
        already_escrowed: false,
        keys_left: Some(7),
    }
}

fn now() -> Timestamp {
    Timestamp(unix_now() * 1_000 + 123)
}

fn trust(ca: &TestCa) -> TrustAnchors {
    TrustAnchors::from_pem_file(&ca.place("ca").join(CA_CERTIFICATE_FILE)).unwrap()
}

fn cluster() -> ClusterId {
    ClusterId(Uuid::from_u128(0xc1))
}

fn receipt(ca: &TestCa) -> Receipt {
    Receipt::sign(&escrowed(now()), cluster(), &ca.tls(Role::Node, "1")).unwrap()
}

#[test]
fn a_receipt_verifies_with_the_ca_alone() {
    let ca = TestCa::new("acme");
    let receipt = receipt(&ca);
    receipt.verify(&trust(&ca)).unwrap();
    assert_eq!(receipt.node.to_string(), "spiffe://acme/node/1");
    assert_eq!(receipt.position(), LogPosition { term: 3, index: 42 });
}

#[test]
fn the_json_form_has_exactly_the_fields_of_the_contract_and_comes_back_the_same() {
    let ca = TestCa::new("acme");
    let receipt = receipt(&ca);
    let json = serde_json::to_value(&receipt).unwrap();
    let mut fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let expected = "already_escrowed at certificates cluster cluster_name fingerprint index key_id machine node \
                    signature term volume";
    assert_eq!(fields, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(json["fingerprint"], "07".repeat(32));
    assert!(json["at"].as_str().unwrap().ends_with(".123Z"), "{}", json["at"]);
    assert!(json["certificates"][0].as_str().unwrap().starts_with("MII"), "DER in base64");

    let back: Receipt = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(back, receipt);
    back.verify(&trust(&ca)).unwrap();

    let mut more = json;
    more["owner"] = "stranger".into();
    assert!(serde_json::from_value::<Receipt>(more).is_err(), "a field that is not signed is not accepted");
}

#[test]
fn malformed_json_fields_are_refused() {
    let json = serde_json::to_value(receipt(&TestCa::new("acme"))).unwrap();
    for (field, value) in [
        ("at", "yesterday"),
        ("at", "1969-12-31T23:59:59Z"),
        ("fingerprint", "07"),
        ("fingerprint", "not hex"),
        ("signature", "%"),
        ("node", "spiffe://acme/king/1"),
    ] {
        let mut json = json.clone();
        json[field] = value.into();
        serde_json::from_value::<Receipt>(json).expect_err(field);
    }
}

#[test]
fn a_receipt_of_another_ca_proves_nothing() {
    let (ours, theirs) = (TestCa::new("acme"), TestCa::new("acme"));
    let error = receipt(&theirs).verify(&trust(&ours)).unwrap_err();
    let unknown = TlsError::Peer(CertificateFault::UnknownAuthority).to_string();
    assert!(error.to_string().ends_with(&unknown), "{error}");
}

#[test]
fn only_a_node_signs_receipts() {
    let ca = TestCa::new("acme");
    let forged = Receipt::sign(&escrowed(now()), cluster(), &ca.tls(Role::Agent, "PC-0001")).unwrap();
    let error = forged.verify(&trust(&ca)).unwrap_err();
    assert!(matches!(error, ReceiptError::SignerNotANode { .. }), "{error}");
}

#[test]
fn a_node_does_not_sign_for_another_cluster_or_node() {
    let ca = TestCa::new("acme");
    let tls = ca.tls(Role::Node, "1");
    let forge = |change: fn(&mut Receipt)| {
        let mut receipt = Receipt::sign(&escrowed(now()), cluster(), &tls).unwrap();
        change(&mut receipt);
        receipt.signature = tls.sign(&receipt.signed_bytes()).unwrap();
        receipt.verify(&trust(&ca)).unwrap_err()
    };
    let error = forge(|receipt| receipt.cluster_name = "other".parse().unwrap());
    assert!(matches!(error, ReceiptError::SignerNotANode { .. }), "{error}");
    let error = forge(|receipt| receipt.node = "spiffe://acme/node/2".parse().unwrap());
    assert!(matches!(error, ReceiptError::OtherSigner { .. }), "{error}");
}

#[test]
fn a_receipt_outlives_its_signer_s_certificate_but_not_the_other_way_round() {
    let ca = TestCa::new("acme");
    let now = unix_now();
    let tls = ca.tls(Role::Node, "1");
    let sign = |at: u64, already_escrowed: bool| {
        let escrowed = Escrowed { already_escrowed, ..escrowed(Timestamp(at * 1_000)) };
        Receipt::sign(&escrowed, cluster(), &tls).unwrap().verify(&trust(&ca))
    };
    sign(now, false).unwrap();
    // Kept before the certificate was made: only a repeated escrow can say so.
    let year = 365 * 24 * 3600;
    let error = sign(now - year, false).unwrap_err().to_string();
    assert!(error.contains("is not valid before"), "{error}");
    sign(now - year, true).unwrap();
    // Kept after the certificate ended: nobody can have signed that.
    for already_escrowed in [false, true] {
        let error = sign(tls.expires_at() + 1, already_escrowed).unwrap_err().to_string();
        assert!(error.contains("expired at"), "{error}");
    }
}

#[test]
fn a_receipt_of_a_certificate_that_has_expired_since_still_verifies() {
    let ca = TestCa::new("acme");
    let now = unix_now();
    let validity = Some(Validity::Between { not_before: now - 100, not_after: now - 50 });
    let expired =
        ca.authority.issue(IssueRequest { validity, ..IssueRequest::new(Role::Node, "1") }).unwrap();
    let receipt = signed_with(&expired, Timestamp((now - 60) * 1_000));
    receipt.verify(&trust(&ca)).unwrap();
    assert!(signed_with(&expired, Timestamp((now - 40) * 1_000)).verify(&trust(&ca)).is_err());
}

/// A receipt signed with a certificate that a running node could not have loaded.
fn signed_with(issued: &crate::tls::ca::Issued, at: Timestamp) -> Receipt {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    let pem = |text: &str| x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1.contents;
    let key = pem(issued.key_pem.expose_text().unwrap());
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key).unwrap();
    let escrowed = escrowed(at);
    let mut receipt = Receipt {
        cluster: cluster(),
        cluster_name: issued.record.identity.cluster.clone(),
        term: 3,
        index: 42,
        machine: escrowed.machine,
        volume: escrowed.volume,
        key_id: escrowed.key_id,
        fingerprint: escrowed.fingerprint,
        at,
        already_escrowed: false,
        node: issued.record.identity.clone(),
        signature: Vec::new(),
        certificates: vec![pem(&issued.cert_pem)],
    };
    let signature = key.sign(&SystemRandom::new(), &receipt.signed_bytes()).unwrap();
    receipt.signature = signature.as_ref().to_vec();
    receipt
}

/// One way to change one field.
fn change(receipt: &mut Receipt, field: usize, by: u64, at: prop::sample::Index) {
    match field {
        0 => receipt.cluster.0 = Uuid::from_u128(receipt.cluster.0.as_u128() ^ u128::from(by)),
        1 => receipt.cluster_name = format!("acme-{by}").parse().unwrap(),
        2 => receipt.term ^= by,
        3 => receipt.index ^= by,
        4 => receipt.machine = format!("PC-{by}").parse().unwrap(),
        5 => receipt.volume = format!("D{by}:").parse().unwrap(),
        6 => receipt.key_id.0 = Uuid::from_u128(receipt.key_id.0.as_u128() ^ u128::from(by)),
        7 => receipt.fingerprint.0[at.index(32)] ^= nonzero_byte(by),
        8 => receipt.at.0 ^= by,
        9 => receipt.already_escrowed ^= true,
        10 => receipt.node = format!("spiffe://acme/node/{}", by.max(2)).parse().unwrap(),
        11 => {
            let place = at.index(receipt.signature.len());
            receipt.signature[place] ^= nonzero_byte(by);
        }
        12 => {
            let place = at.index(receipt.certificates[0].len());
            receipt.certificates[0][place] ^= nonzero_byte(by);
        }
        13 => receipt.certificates.push(vec![nonzero_byte(by)]),
        _ => receipt.certificates.clear(),
    }
}

fn nonzero_byte(by: u64) -> u8 {
    (by % 255) as u8 + 1
}

#[test]
fn any_changed_field_breaks_a_receipt() {
    let ca = TestCa::new("acme");
    let (good, trust) = (receipt(&ca), trust(&ca));
    good.verify(&trust).unwrap();
    let mut runner = proptest::test_runner::TestRunner::default();
    let ways = (0..15_usize, 1..u64::MAX, any::<prop::sample::Index>());
    let outcome = runner.run(&ways, |(field, by, at)| {
        let mut changed = good.clone();
        change(&mut changed, field, by, at);
        prop_assert!(changed.verify(&trust).is_err(), "field {} changed by {}", field, by);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn two_fields_cannot_lend_each_other_bytes() {
    let ca = TestCa::new("acme");
    let mut receipt = receipt(&ca);
    receipt.machine = "PC-0001C".parse().unwrap();
    receipt.volume = ":".parse().unwrap();
    assert!(receipt.verify(&trust(&ca)).is_err());
}

/// A receipt of version 1 and the CA it is verified with, made once (its private keys were never kept): what devices
/// keep must verify for as long as there are devices.
#[test]
fn a_receipt_of_the_first_version_still_verifies() {
    let receipt: Receipt = serde_json::from_str(include_str!("testdata/v1.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join(CA_CERTIFICATE_FILE);
    std::fs::write(&bundle, include_str!("testdata/ca.crt")).unwrap();
    let trust = TrustAnchors::from_pem_file(&bundle).unwrap();
    receipt.verify(&trust).unwrap();
    assert_eq!(serde_json::to_string_pretty(&receipt).unwrap() + "\n", include_str!("testdata/v1.json"));
}
