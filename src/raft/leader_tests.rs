use std::time::Instant;

use uuid::Uuid;

use super::*;
use crate::escrow::command::{Action, Reveal};
use crate::escrow::ids::{Identity, KeyId, RequestId};
use crate::escrow::records::Source;
use crate::raft::membership::in_process::{Fixture, until};

fn reveal(through: &Node, by: &str) -> Command {
    let by: Identity = by.parse().unwrap();
    let reveal = Reveal { key_id: KeyId(Uuid::new_v4()), user: None, reason: "lost PIN".to_owned() };
    Command {
        request: RequestId(Uuid::new_v4()),
        at: crate::raft::now(),
        by,
        source: Source { node: through.options().id, address: "192.0.2.1:1".to_owned() },
        action: Action::Reveal(reveal),
    }
}

/// A node that cannot tell the leader's no from no answer would go on to reveal by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_says_against_a_command_is_not_taken_for_the_lack_of_a_quorum() {
    let fixture = Fixture::configured(3, "[upgrade]\nhold_feature_level = 2\n");
    let [first, second, third] = fixture.three().await;
    until("node 2 knows the leader", || second.node.leader_in_contact() == Some(1)).await;

    let began = Instant::now();
    let end_user = reveal(&second.node, "spiffe://test/self-service/CORP/dora");
    let answer = second.node.propose(&end_user).await;
    let Err(NodeError::Refused(Refusal::Conflict(why))) = &answer else { panic!("{answer:?}") };
    assert!(why.contains("feature level 3"), "{why}");
    assert!(began.elapsed() < PROPOSE_TIMEOUT, "at once");

    // All of the leader's room is taken.
    let taken = first.node.inner.proposals.acquire_many(u32::try_from(PROPOSALS_MAX_KIB).unwrap()).await;
    let desk = reveal(&second.node, "spiffe://test/helpdesk-advanced/desk2");
    let answer = second.node.propose_within(&desk, Duration::from_millis(500)).await;
    assert!(matches!(&answer, Err(NodeError::Declined(why)) if why.contains("too much")), "{answer:?}");
    drop(taken);
    second.node.propose(&desk).await.unwrap();
    for running in [first, second, third] {
        running.stop().await;
    }
}
