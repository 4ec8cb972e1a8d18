use super::*;
use crate::escrow::ids::Timestamp;
use crate::proto::NodeStatus;
use crate::seal::offline_identity;

const CLUSTER: Uuid = Uuid::from_u128(0xc1);

fn storage(id: NodeId) -> Uuid {
    Uuid::from_u128(u128::from(id))
}

fn record(id: NodeId) -> NodeRecord {
    NodeRecord {
        id,
        peer_address: format!("n{id}:7421"),
        api_address: format!("n{id}:7420"),
        zone: String::new(),
        storage: storage(id),
        recipient: "age1".to_owned(),
        admitted_at: Timestamp(1),
    }
}

/// Nodes 1 to 4 were admitted, 4 left.
fn register() -> Register {
    Register {
        cluster: ClusterId(CLUSTER),
        level: FeatureLevel(2),
        nodes: (1..=4).map(record).collect(),
        departed: vec![DepartedNode { id: 4, at: Timestamp(2) }],
    }
}

/// A new node that waits.
fn waiting(id: NodeId) -> DescribeResponse {
    let status = NodeStatus {
        id,
        peer_address: format!("n{id}:7421"),
        api_address: format!("n{id}:7420"),
        feature_level: 2,
        ..NodeStatus::default()
    };
    DescribeResponse {
        status: Some(status),
        storage: storage(id).to_string(),
        recipient: offline_identity().1,
        ..DescribeResponse::default()
    }
}

fn with_status(described: DescribeResponse, change: impl FnOnce(&mut NodeStatus)) -> DescribeResponse {
    let mut status = described.status.clone().expect("set");
    change(&mut status);
    DescribeResponse { status: Some(status), ..described }
}

#[track_caller]
fn refused(described: &DescribeResponse, why: &str) {
    let refused = judge(described, &register()).expect_err(why);
    assert!(refused.reason.contains(why), "{} does not say {why:?}", refused.reason);
    assert!(!refused.instead.is_empty());
}

#[test]
fn a_new_node_that_waits_may_join() {
    let candidate = judge(&waiting(5), &register()).expect("may join");
    assert_eq!((candidate.id, candidate.member.storage), (5, storage(5)));
    assert_eq!(candidate.member.peer_address, "n5:7421");
}

#[test]
fn a_node_that_was_admitted_may_join_again_with_its_log_and_at_another_address() {
    let member = DescribeResponse { cluster: CLUSTER.to_string(), ..waiting(2) };
    let moved = with_status(member, |status| {
        status.last_log = 77;
        status.peer_address = "elsewhere:7421".to_owned();
    });
    assert_eq!(judge(&moved, &register()).expect("may join").member.peer_address, "elsewhere:7421");
}

#[test]
fn an_id_that_was_ever_used_is_not_used_again() {
    refused(&waiting(4), "ids are never used twice");
    let wiped = DescribeResponse { storage: storage(99).to_string(), ..waiting(2) };
    refused(&wiped, "never used twice");
}

#[test]
fn a_copied_disk_is_refused_under_another_id() {
    refused(&DescribeResponse { storage: storage(2).to_string(), ..waiting(5) }, "that of node 2");
}

#[test]
fn a_node_of_another_cluster_or_with_a_log_of_its_own_is_refused() {
    let foreign = DescribeResponse { cluster: Uuid::from_u128(0xc2).to_string(), ..waiting(5) };
    refused(&foreign, "belongs to another cluster");
    refused(&with_status(waiting(5), |status| status.last_log = 1), "a log of its own");
    // A disk image of a member that nobody admitted under this id.
    let stray = DescribeResponse { cluster: CLUSTER.to_string(), ..waiting(5) };
    refused(&with_status(stray, |status| status.last_log = 9), "a log of its own");
}

#[test]
fn a_release_that_could_not_apply_what_the_cluster_allows_is_refused() {
    refused(&with_status(waiting(5), |status| status.feature_level = 1), "feature level 1");
    refused(&with_status(waiting(5), |status| status.feature_level = 0), "feature level 1");
}

#[test]
fn a_node_that_does_not_say_who_it_is_is_refused() {
    refused(&with_status(waiting(5), |status| status.id = 0), "its id");
    refused(&DescribeResponse { storage: "none".to_owned(), ..waiting(5) }, "data directory");
    refused(&DescribeResponse { recipient: "age1nonsense".to_owned(), ..waiting(5) }, "seal the keyring to");
    refused(&DescribeResponse::default(), "its id");
}
