use uuid::Uuid;

use super::*;
use crate::tls::ca::CA_CERTIFICATE_FILE;
use crate::tls::tests::TestCa;
use crate::tls::{CertificateFault, unix_now};

fn signed_by(tls: &Tls) -> Checkpoint {
    let head = ChainHead { sequence: 12, hash: [7; 32] };
    let position = LogPosition { term: 3, index: 42 };
    Checkpoint::sign(head, position, ClusterId(Uuid::from_u128(0xc1)), Timestamp(unix_now() * 1_000), tls)
        .unwrap()
}

fn trust(ca: &TestCa) -> TrustAnchors {
    TrustAnchors::from_pem_file(&ca.place("ca").join(CA_CERTIFICATE_FILE)).unwrap()
}

#[test]
fn a_checkpoint_verifies_with_the_ca_alone_and_says_who_signed_what() {
    let ca = TestCa::new("acme");
    let checkpoint = signed_by(&ca.tls(Role::Node, "2"));
    let back = Checkpoint::parse(&checkpoint.render()).unwrap();
    assert_eq!(back, checkpoint);
    let signed = back.verify(&trust(&ca)).unwrap();
    assert_eq!(signed, Signed { head: ChainHead { sequence: 12, hash: [7; 32] }, node: 2 });
}

#[test]
fn the_line_has_exactly_the_fields_of_the_contract() {
    let line = signed_by(&TestCa::new("acme").tls(Role::Node, "2")).render();
    let fields = r#"{"type":"checkpoint","seq":12,"hash":"0707"#;
    assert!(line.starts_with(fields), "{line}");
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    let mut names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = "at certificates cluster cluster_name hash index node seq signature term type";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn any_changed_field_breaks_it() {
    let ca = TestCa::new("acme");
    let (good, trust) = (signed_by(&ca.tls(Role::Node, "2")), trust(&ca));
    good.verify(&trust).unwrap();
    let changes: [fn(&mut Checkpoint); 11] = [
        |it| it.seq += 1,
        |it| it.hash[31] ^= 1,
        |it| it.cluster.0 = Uuid::from_u128(2),
        |it| it.cluster_name = "other".parse().unwrap(),
        |it| it.term += 1,
        |it| it.index += 1,
        |it| it.at.0 += 1,
        |it| it.node = "spiffe://acme/node/1".parse().unwrap(),
        |it| it.signature[9] ^= 1,
        |it| it.certificates[0][99] ^= 1,
        |it| it.certificates.push(vec![1]),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut changed = good.clone();
        change(&mut changed);
        assert!(changed.verify(&trust).is_err(), "change {number}");
    }
}

#[test]
fn only_a_node_of_a_ca_that_is_trusted_signs() {
    let (ours, theirs) = (TestCa::new("acme"), TestCa::new("acme"));
    let error = signed_by(&theirs.tls(Role::Node, "2")).verify(&trust(&ours)).unwrap_err();
    let unknown = TlsError::Peer(CertificateFault::UnknownAuthority).to_string();
    assert!(error.to_string().ends_with(&unknown), "{error}");
    let error = signed_by(&ours.tls(Role::Auditor, "eve")).verify(&trust(&ours)).unwrap_err();
    assert!(matches!(error, CheckpointError::OtherSigner { .. }), "{error}");
}

/// A receipt and a checkpoint sign under different labels: neither can be passed off as the other.
#[test]
fn what_was_signed_for_something_else_is_no_checkpoint() {
    let ca = TestCa::new("acme");
    let tls = ca.tls(Role::Node, "2");
    let mut checkpoint = signed_by(&tls);
    let message = checkpoint.signed_bytes();
    checkpoint.signature = tls.sign(&message[4 + DOMAIN.len()..]).unwrap();
    assert!(checkpoint.verify(&trust(&ca)).is_err());
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let line = signed_by(&TestCa::new("acme").tls(Role::Node, "2")).render();
    for bad in [
        "{}".to_owned(),
        line.replace("\"checkpoint\"", "\"record\""),
        line.replace("\"seq\":12", "\"seq\":12,\"owner\":1"),
        line.replace("\"seq\":12", "\"seq\":\"12\""),
        line.replace("\"hash\":\"07", "\"hash\":\""),
    ] {
        assert_ne!(bad, line);
        Checkpoint::parse(&bad).expect_err(&bad);
    }
}
