//! A node that was removed is told so, serves nobody, and says why.

use std::time::Instant;

use strongroom::client::ClientError;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{Consistency, FindRequest};
use tonic::Code;

use crate::common::peers::caller_as;
use crate::common::*;
use crate::steps::*;

fn first_machine(consistency: Consistency) -> FindRequest {
    FindRequest { machine: "PC-00001".to_owned(), consistency: consistency.into(), ..FindRequest::default() }
}

/// Whatever is asked of `node`, it answers that it was removed.
async fn assert_serves_nobody(test: &TestCluster, node: NodeId) {
    let key_id = deposit(1).key_id.expect("given");
    let removed = |what: &str, error: ClientError| assert!(says_removed(&error), "{what}: {error}");
    let within = std::time::Duration::from_secs(2);
    let client = |profile| test.cluster.client_within(profile, &[node], within).expect("a client");
    for consistency in [Consistency::Local, Consistency::Quorum] {
        let found = client("helpdesk").find(&first_machine(consistency)).await;
        removed("find", found.expect_err("a removed node finds nothing"));
    }
    let recovered = client("helpdesk-advanced").recover(key_id, "locked out", None).await;
    removed("recover", recovered.expect_err("a removed node shows nothing"));
    let kept = client("importer").escrow(&deposit(77)).await;
    removed("escrow", kept.expect_err("a removed node keeps nothing"));
    removed(
        "custody",
        client("auditor").custody(key_id, None).await.expect_err("a removed node proves nothing"),
    );
    removed("status", client("operator").status().await.expect_err("it is no part of a cluster"));

    let output = test.strongroom("helpdesk", &[node], &["find", "--machine", "PC-00001", "--timeout", "2"]);
    refused(&output, 75, &[&format!("node {node} was removed from the cluster"), "new id"]);
    let (code, reasons) = test.page(node, "/readyz").await;
    assert!(code == 503 && reasons.contains("was removed from the cluster"), "{code} {reasons}");
    assert_eq!(test.page(node, "/livez").await.0, 200, "it lives, so that it can say so");
    let why = format!("node {node} was removed from the cluster");
    assert!(test.log(node).contains(&why), "its log says why");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_removed_while_it_runs_notices_and_its_clients_go_elsewhere() {
    let mut test = three_of(5, "").await;
    let kept = escrow(&test, &ALL, 1, 5).await;
    for (node, learner) in [(4, false), (5, true)] {
        test.cluster.start(node).await.expect("starts");
        make(&test, &ALL, add(&test, node, learner)).await;
    }
    test.cluster.wait_agreed(&[1, 2, 3, 4, 5]).await.expect("caught up");
    for node in [4, 5] {
        let began = Instant::now();
        let result = done(&member(&test, &ALL, &["remove", &node.to_string()]).await);
        assert!(!ids(&result["after"]["voters"]).contains(&node), "{result}");
        let removed = |_, reasons: &str| reasons.contains("was removed from the cluster");
        test.wait_for_page(node, "/readyz", removed).await;
        eprintln!("node {node} noticed {} ms after its removal was asked for", began.elapsed().as_millis());
    }
    members_are(&test, &ALL, &ALL, &[]).await;
    for node in [4, 5] {
        assert_serves_nobody(&test, node).await;
    }
    // A client that still has it among its endpoints loses nothing but the way there.
    let found = test.client("helpdesk", &[4, 5, 1]).find(&first_machine(Consistency::Quorum)).await;
    assert_eq!(found.expect("another node answers").freshness.expect("said").node, 1);
    escrow(&test, &[4, 5, 1], 50, 3).await;
    for node in ALL {
        assert_all_readable(&test, node, &kept).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_removed_while_it_was_down_is_told_before_it_serves_and_remembers_it() {
    let mut test = three_of(4, "").await;
    escrow(&test, &ALL, 1, 5).await;
    test.cluster.start(4).await.expect("starts");
    make(&test, &ALL, add(&test, 4, false)).await;
    test.cluster.wait_settled(&[1, 2, 3, 4]).await.expect("caught up");
    let found = test.client("helpdesk", &[4]).find(&first_machine(Consistency::Local)).await;
    assert_eq!(found.expect("it is a replica").keys.len(), 1);

    test.cluster.kill(4).await.expect("killed");
    done(&member(&test, &ALL, &["remove", "4"]).await);
    test.cluster.start(4).await.expect("the process runs");
    // The very first answer: what it still has is not shown for a moment.
    let first = test.client("helpdesk", &[4]).find(&first_machine(Consistency::Local)).await;
    assert!(says_removed(first.as_ref().expect_err("nothing is shown")), "{first:?}");
    assert_serves_nobody(&test, 4).await;
    assert!(ALL.iter().any(|node| test.log(*node).contains("a node that was removed calls")), "who told it");

    // Its certificate is good for years to come. Whatever it says with it is refused before consensus hears of it,
    // whether it says whom it means, as its release does, or leaves that out.
    for known in [true, false] {
        for (call, answer) in peers::every_peer_call(&mut caller_as(&test, 4, 1, known).await).await {
            let status = answer.expect_err(call);
            let (code, why) = match known {
                true => (Code::PermissionDenied, "node 4 was removed from the cluster"),
                false => (Code::FailedPrecondition, "which data directory"),
            };
            assert_eq!(status.code(), code, "{call}: {status}");
            assert!(status.message().contains(why), "{call}: {status}");
        }
    }

    // Where it reaches nobody who could tell it, it still knows.
    for node in ALL.into_iter().chain([4]) {
        test.cluster.kill(node).await.expect("killed");
    }
    test.cluster.start(4).await.expect("the process runs");
    assert_serves_nobody(&test, 4).await;

    // A member in the same place is not silenced: it serves what it has (P4).
    test.cluster.start(1).await.expect("comes back alone");
    let found =
        test.client("helpdesk", &[1]).find(&first_machine(Consistency::Local)).await.expect("it serves");
    assert_eq!((found.keys.len(), found.freshness.expect("said").leader_known), (1, false));
    for node in [2, 3] {
        test.cluster.start(node).await.expect("comes back");
    }
    test.cluster.wait_settled(&ALL).await.expect("the others go on without it");
    escrow(&test, &ALL, 50, 3).await;
}
