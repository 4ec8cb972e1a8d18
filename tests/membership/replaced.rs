//! Taking dead nodes, leaders and slow ones out, and new ones in.

use std::time::{Duration, Instant};

use strongroom::escrow::ids::NodeId;
use strongroom::proto::StatusResponse;

use crate::common::*;
use crate::steps::*;

/// Every member proves that it holds and can open each of these keys.
fn assert_custody(test: &TestCluster, members: &[NodeId], keys: &[Kept]) {
    for (_, receipt) in keys {
        let output = test.strongroom("auditor", members, &["custody", &receipt.key_id.to_string()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let answers = report["nodes"].as_array().expect("nodes");
        let proven = |answer: &serde_json::Value| {
            (answer["id"].as_u64(), answer["outcome"].as_str() == Some("proven"))
        };
        let answers: Vec<_> = answers.iter().map(proven).collect();
        let expected: Vec<_> = members.iter().map(|node| (Some(*node), true)).collect();
        assert_eq!(answers, expected, "{report}");
    }
}

/// The log that the newcomer would need is purged: it comes by snapshot. Then the member whose disk burnt is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_by_one_that_catches_up_by_snapshot_and_the_data_key_is_rotated() {
    let mut test = three_of(4, "[raft]\nsnapshot_log_bytes = 1048576\nkeep_entries = 10\n").await;
    removal_allowed(&test, &ALL).await;
    let load = Load::start(&test, 16);
    let purged = |status: &StatusResponse| status.nodes.iter().all(|node| node.purged > 100);
    let purged = test.cluster.wait_for("the purge", Duration::from_secs(90), &ALL, purged).await;
    let (acknowledged, _) = load.finish().await;
    purged.expect("every log is purged");

    let leader = test.leader().await;
    let dead = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    test.cluster.kill(dead).await.expect("killed");
    test.cluster.start(4).await.expect("starts");
    let up: Vec<NodeId> = ALL.into_iter().filter(|id| *id != dead).collect();
    let after: Vec<NodeId> = up.iter().copied().chain([4]).collect();
    let began = Instant::now();
    let result = done(&member(&test, &up, &["replace", &dead.to_string(), &peer(&test, 4)]).await);
    eprintln!("replacing a node, {} keys: {} ms", acknowledged.len(), began.elapsed().as_millis());
    assert_eq!((&result["change"], &result["step"]), (&"replace".into(), &"done".into()), "{result}");
    assert_eq!(ids(&result["after"]["voters"]), after);
    let status = test.cluster.wait_settled(&after).await.expect("equal digests at equal index");
    let newcomer = status.nodes.iter().find(|node| node.id == 4).expect("a member");
    assert!(newcomer.snapshot > 100, "it came by snapshot, not by a log that is purged");
    assert_eq!(voters_of(&status), after);

    // What was sealed before the data key was rotated, and what is sealed since, opens on every member.
    let later = escrow(&test, &after, 900_000, 3).await;
    assert_all_held(&test, 4, &acknowledged).await;
    let sample: Vec<_> = acknowledged.into_iter().step_by(200).collect();
    for node in &after {
        assert_all_readable(&test, *node, &sample).await;
        assert_all_readable(&test, *node, &later).await;
    }
    assert_custody(&test, &after, &later[..1]);
    assert_custody(&test, &after, &sample[..1]);

    // The replaced node comes back from the dead and is told.
    test.cluster.start(dead).await.expect("the process runs");
    let found = test.strongroom("helpdesk", &[dead], &["find", "--machine", "PC-00001", "--timeout", "2"]);
    refused(&found, 75, &["was removed from the cluster"]);
    let (_, reasons) = test.page(dead, "/readyz").await;
    assert!(reasons.contains("was removed from the cluster"), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_moved_and_removed_and_the_others_go_on() {
    let mut test = three_of(5, "").await;
    removal_allowed(&test, &ALL).await;
    let before = escrow(&test, &ALL, 1, 5).await;
    let leader = test.leader().await;

    // To whoever is nearest to it, then to a named one, then to where it is already.
    let result = done(&member(&test, &ALL, &["transfer"]).await);
    let second = result["after"]["leader"].as_u64().expect("a leader");
    assert_eq!(
        (&result["change"], &result["before"]["leader"]),
        (&"transfer".into(), &leader.into()),
        "{result}"
    );
    assert_ne!(second, leader);
    let named = ALL.into_iter().find(|id| ![leader, second].contains(id)).expect("three nodes");
    for _ in 0..2 {
        let result = done(&member(&test, &ALL, &["transfer", &named.to_string()]).await);
        assert_eq!(result["after"]["leader"], named, "{result}");
        let leads = |status: &StatusResponse| status.leader == Some(named);
        test.cluster.wait_for("the leadership to move", SOON, &ALL, leads).await.expect("moved");
    }
    for node in [4, 5] {
        test.cluster.start(node).await.expect("starts");
    }
    done(&member(&test, &ALL, &["add", &peer(&test, 5), "--learner"]).await);
    refused(&member(&test, &ALL, &["transfer", "5"]).await, 5, &["node 5 is a learner", "member promote 5"]);

    // Adding makes four, of which the leader is removed: it hands over first, and the answer still reaches the operator.
    done(&member(&test, &ALL, &["add", &peer(&test, 4)]).await);
    let result = done(&member(&test, &[named], &["remove", &named.to_string()]).await);
    let after: Vec<NodeId> = [1, 2, 3, 4].into_iter().filter(|id| *id != named).collect();
    assert_eq!(ids(&result["after"]["voters"]), after, "{result}");
    let all: Vec<NodeId> = after.iter().copied().chain([5]).collect();
    members_are(&test, &after, &after, &[5]).await;

    let later = escrow(&test, &after, 100, 3).await;
    test.cluster.wait_agreed(&all).await.expect("equal digests");
    assert_custody(&test, &all, &[before[0].clone(), later[0].clone()]);
    for node in &all {
        assert_all_readable(&test, *node, &before).await;
        assert_all_readable(&test, *node, &later).await;
    }
    // A learner is exchanged for a voter without a detour: it is the new one of `replace`.
    let old = after[0].to_string();
    let result = done(&member(&test, &after[1..], &["replace", &old, "5"]).await);
    assert_eq!(ids(&result["after"]["voters"]), [&after[1..], &[5]].concat(), "{result}");
}
