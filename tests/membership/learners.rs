//! A read replica for a branch office.

use serde_json::Value;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{Consistency, FindRequest};

use crate::common::*;
use crate::steps::*;

const WITH_LEARNER: [NodeId; 4] = [1, 2, 3, 4];

/// Who answers a `find` of a caller that stands in the learner's zone.
fn answered_by(test: &TestCluster) -> Value {
    let arguments = ["find", "--machine", "PC-00001", "--zone", "zone-4"];
    let output = test.strongroom("helpdesk", &WITH_LEARNER, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["keys"].as_array().map(Vec::len), Some(1), "{found}");
    found["freshness"]["node"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_in_another_zone_serves_its_zone_and_changes_no_quorum() {
    let mut test = three_of(5, "").await;
    escrow(&test, &ALL, 1, 20).await;
    for node in [4, 5] {
        test.cluster.start(node).await.expect("starts");
        let result = done(&member(&test, &ALL, &["add", &peer(&test, node), "--learner"]).await);
        assert_eq!((&result["change"], &result["step"]), (&"add".into(), &"done".into()), "{result}");
        assert_eq!(result["node"], node);
        assert_eq!(ids(&result["after"]["voters"]), ALL);
        assert!(ids(&result["after"]["learners"]).contains(&node), "{result}");
        assert_eq!(result["after"]["failure_tolerance"], 1);
    }
    let status = members_are(&test, &ALL, &ALL, &[4, 5]).await;
    assert_eq!(status.failure_tolerance, 1, "learners do not count");
    let status = test.cluster.wait_agreed(&[1, 2, 3, 4, 5]).await.expect("the learners have the same state");
    let learner = status.nodes.iter().find(|node| node.id == 4).expect("a member");
    assert_eq!((learner.role.as_str(), learner.zone.as_str(), learner.voter), ("learner", "zone-4", false));

    // It serves by itself, and its quorum reads are confirmed by the leader.
    let client = test.client("helpdesk", &[4]);
    let late = escrow(&test, &[4], 100, 1).await.remove(0).1;
    for (consistency, label) in [(Consistency::Local, "local"), (Consistency::Quorum, "quorum")] {
        let request = FindRequest {
            machine: "PC-00100".to_owned(),
            consistency: consistency.into(),
            min_index: late.index,
            ..FindRequest::default()
        };
        let found = client.find(&request).await.expect("a learner serves");
        assert_eq!(found.keys.len(), 1);
        let freshness = found.freshness.expect("said");
        assert_eq!((freshness.node, freshness.consistency.as_str()), (4, label));
        assert!(freshness.applied >= late.index);
    }
    // A reveal goes through it too: the keyring is sealed to it.
    let recovered = test.client("helpdesk-advanced", &[4]).recover(late.key_id, "locked out", None).await;
    assert!(same(&recovered.expect("recovered").secret, &deposit(100).secret));

    for _ in 0..5 {
        assert_eq!(answered_by(&test), 4, "the node of the caller's own zone is asked first");
    }
    test.cluster.kill(4).await.expect("killed");
    let instead = answered_by(&test).as_u64().expect("a node");
    assert!(ALL.contains(&instead), "another node answers: {instead}");

    // Two learners down or not: writes go on.
    test.cluster.kill(5).await.expect("killed");
    escrow(&test, &ALL, 200, 5).await;
}

/// Promotion is refused as long as the learner would hold the quorum up.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_lags_is_not_promoted_until_it_has_caught_up() {
    use rustix::process::Signal;

    let mut test = three_of(4, "").await;
    test.cluster.start(4).await.expect("starts");
    done(&member(&test, &ALL, &["add", &peer(&test, 4), "--learner"]).await);
    test.cluster.wait_agreed(&WITH_LEARNER).await.expect("caught up");
    signal(&test, 4, Signal::STOP);
    escrow_at_once(&test, &ALL, 1, LAGGING_KEYS, 1).await;
    refused(&member(&test, &ALL, &["promote", "4"]).await, 5, &["node 4", "lags", "wait"]);
    refused(&member(&test, &ALL, &["promote", "4", "--dry-run"]).await, 5, &["node 4", "lags", "wait"]);
    signal(&test, 4, Signal::CONT);
    test.cluster.wait_agreed(&WITH_LEARNER).await.expect("caught up");

    let result = done(&member(&test, &ALL, &["promote", "4"]).await);
    assert_eq!(ids(&result["before"]["voters"]), ALL);
    assert_eq!(ids(&result["after"]["voters"]), WITH_LEARNER);
    let warnings = result["warnings"].to_string();
    assert!(warnings.contains("odd"), "an even number of voters is worth a warning: {warnings}");

    let result = done(&member(&test, &ALL, &["demote", "4"]).await);
    assert_eq!((ids(&result["after"]["voters"]), ids(&result["after"]["learners"])), (ALL.to_vec(), vec![4]));
    test.cluster.kill(4).await.expect("killed");
    refused(&member(&test, &ALL, &["promote", "4"]).await, 5, &["node 4", "cannot be reached"]);
    members_are_but_for(&test, 4).await;
}

/// The learner is down: everything else is as it was.
async fn members_are_but_for(test: &TestCluster, learner: NodeId) {
    let status = test.client("operator", &ALL).status().await.expect("a status");
    assert_eq!((voters_of(&status), learners_of(&status)), (ALL.to_vec(), vec![learner]));
}
