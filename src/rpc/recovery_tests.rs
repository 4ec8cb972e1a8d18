//! Reveals through nodes of this process, where a test can put into the state what no caller can.

use uuid::Uuid;

use super::*;
use crate::client::{ClientError, Deposit};
use crate::escrow::command::Escrow;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{RequestId, Role};
use crate::escrow::records::{AuditEvent, Fingerprint, Sealed, Source};
use crate::escrow::secrets::SecretKind;
use crate::raft::Node;
use crate::raft::membership::in_process::{Fixture, until};

const DAMAGED: KeyId = KeyId(Uuid::from_u128(0xda));

/// Keeps a key that no node can open.
async fn escrow_damaged(node: &Node) {
    let escrow = Escrow {
        key_id: DAMAGED,
        key_id_given: true,
        machine: "PC-0001".parse().unwrap(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::BitlockerPassword,
        sealed: Sealed { key_version: 1, nonce: [7; 12], ciphertext: vec![7; 71] },
        sealed_package: None,
        fingerprint: Fingerprint([7; 32]),
        user: Some(r"CORP\user1".parse().unwrap()),
    };
    let command = Command {
        request: RequestId(Uuid::new_v4()),
        at: now(),
        by: "spiffe://test/importer/import".parse().unwrap(),
        source: Source { node: node.options().id, address: "192.0.2.1:1".to_owned() },
        action: Action::Escrow(escrow),
    };
    let reply = node.propose(&command).await.unwrap().reply;
    assert!(matches!(reply, Reply::Escrowed(_)), "{reply:?}");
}

/// Of each reveal on record, whether it was denied.
fn denied(node: &Node) -> Vec<bool> {
    let records = lookup::audit(&node.view().unwrap(), 0, usize::MAX).unwrap();
    let denied = |event| match event {
        AuditEvent::Reveal { denied, .. } => Some(denied.is_some()),
        _ => None,
    };
    records.into_iter().filter_map(|record| denied(record.event)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_does_not_open_is_not_put_on_record_as_shown() {
    let fixture = Fixture::new(1);
    fixture.initialize(1).await;
    let running = fixture.serve(1).await;
    let node = &running.node;
    until("it leads", || node.leader_in_contact() == Some(1)).await;
    escrow_damaged(node).await;

    let error = fixture.client("helpdesk-advanced", &[1]).recover(DAMAGED, "lost PIN", None).await;
    assert!(matches!(error, Err(ClientError::Failed(_))), "{error:?}");
    assert!(denied(node).is_empty(), "nobody has seen it");
    // Who may not see it is told so, as of any other.
    let desk = fixture.client("helpdesk", &[1]);
    let error = desk.recover(DAMAGED, "curious", Some(&r"CORP\user2".parse().unwrap())).await;
    assert!(matches!(error, Err(ClientError::Denied(_))), "{error:?}");
    assert_eq!(denied(node), [true]);

    let deposit = Deposit {
        machine: "PC-0002".parse().unwrap(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::Generic,
        key_id: None,
        secret: "open sesame".to_owned().into(),
        package: None,
        user: None,
        pending: false,
    };
    let receipt = fixture.client("importer", &[1]).escrow(&deposit).await.unwrap();
    let advanced = fixture.client("helpdesk-advanced", &[1]);
    advanced.recover(receipt.key_id, "lost PIN", None).await.unwrap();
    assert_eq!(denied(node), [true, false]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reason_that_is_refused_without_a_quorum_may_be_good_elsewhere() {
    let fixture = Fixture::new(3);
    let [first, second, third] = fixture.three().await;
    let officer = fixture.client("officer", &[1]);
    officer.set_policy(r#"{"reasons": {"min_chars": 10}}"#, 0).await.unwrap();
    let applied = first.node.applied();
    until("node 3 has the policy", || third.node.applied() >= applied).await;
    first.stop().await;
    second.stop().await;

    let answer = fixture.client("helpdesk-advanced", &[3]).recover(DAMAGED, "short", None).await;
    let Err(ClientError::Invalid(answer)) = &answer else { panic!("{answer:?}") };
    assert_eq!(answer.field.as_deref(), Some("reason"));
    let told = answer.status.metadata();
    assert!(told.contains_key(status::DEGRADED_KEY), "a client asks the others as well: {told:?}");
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_recover_or_approve_and_tries_is_on_record() {
    let fixture = Fixture::new(1);
    fixture.initialize(1).await;
    let running = fixture.serve(1).await;
    let node = &running.node;
    until("it leads", || node.leader_in_contact() == Some(1)).await;
    let desk = || lookup::feature_level(&node.view().unwrap()).unwrap() >= FeatureLevel::DESK;
    until("it has a desk", desk).await;
    let before = lookup::heads(&node.view().unwrap()).unwrap().audit.sequence;

    let auditor = fixture.client("auditor", &[1]);
    let error = auditor.recover(DAMAGED, "curious", None).await;
    assert!(
        matches!(&error, Err(ClientError::Denied(why)) if why.to_string().contains("may not recover keys")),
        "{error:?}"
    );
    let error = auditor.decide_approval(Uuid::from_u128(7), true).await;
    assert!(matches!(error, Err(ClientError::Denied(_))), "{error:?}");

    let records = lookup::audit(&node.view().unwrap(), before, 9).unwrap();
    let [tried, decided] = &records[..] else { panic!("{records:?}") };
    assert!(
        matches!(&tried.event, AuditEvent::Reveal { denied: Some(_), reason, .. } if reason == "curious")
    );
    assert!(matches!(&decided.event, AuditEvent::ApprovalRefused { granted: true, .. }), "{decided:?}");
    assert!(records.iter().all(|record| record.by.role == Role::Auditor));
    running.stop().await;
}
