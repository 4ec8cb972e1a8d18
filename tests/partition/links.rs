//! The network itself, and what a cut that is no partition looks like from either side.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use strongroom::client::ClientError;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::recovery_service_client::RecoveryServiceClient;
use strongroom::proto::{Consistency, FindRequest, FindResponse, RecoverRequest};
use strongroom::rpc::status::DEGRADED_KEY;
use tonic::Code;

use crate::common::network::{Cut, three_nodes_on_a_network};
use crate::common::trail::{all_on_record, of};
use crate::common::*;

/// Long enough to be told from a machine that is busy.
const DELAY: Duration = Duration::from_millis(300);
/// A leader that hears its followers late takes them for gone after three heartbeats, and they it after an election's
/// time.
const PATIENT: &str = "[raft]\nheartbeat_ms = 1000\nelection_min_ms = 5000\nelection_max_ms = 6000\n";
/// Longer than a node waits for a quorum, before it says that there is none.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits until the nodes that `node` reaches, itself among them, are these.
async fn reaches(test: &TestCluster, node: NodeId, expected: &[NodeId]) {
    let (expected, asked): (BTreeSet<_>, _) = (expected.iter().copied().collect(), [node]);
    let seen = test.cluster.wait_for("another reach", SOON, &asked, |status| {
        let reached = status.nodes.iter().filter(|node| node.reachable).map(|node| node.id);
        reached.collect::<BTreeSet<_>>() == expected
    });
    seen.await.unwrap_or_else(|error| panic!("node {node} should reach {expected:?}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stops_what_it_is_of_and_nothing_else_and_a_heal_ends_it() {
    let (test, network) = three_nodes_on_a_network("").await;
    for how in [Cut::Silent, Cut::Reset] {
        network.isolate(1, how);
        reaches(&test, 1, &[1]).await;
        reaches(&test, 2, &[2, 3]).await;
        network.heal();
        for node in ALL {
            reaches(&test, node, &ALL).await;
        }
        // Neither a question nor an answer gets from 2 to 3, so that neither reaches the other; node 1 reaches both.
        network.cut(2, 3, how);
        reaches(&test, 2, &[1, 2]).await;
        reaches(&test, 3, &[1, 3]).await;
        reaches(&test, 1, &ALL).await;
        network.heal();
        test.cluster.wait_settled(&ALL).await.expect("settled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_holds_up_what_a_quorum_needs() {
    let (test, network) = three_nodes_on_a_network(PATIENT).await;
    let leader = test.leader().await;
    let importer = test.client("importer", &[leader]);
    importer.escrow(&deposit(1)).await.expect("kept");
    for follower in others(leader) {
        network.delay(leader, follower, DELAY);
        network.delay(follower, leader, DELAY);
    }
    let began = Instant::now();
    importer.escrow(&deposit(2)).await.expect("kept");
    let took = began.elapsed();
    assert!(took >= 2 * DELAY, "there and back in {took:?}");
    // One follower that is near makes a quorum.
    let near = others(leader)[0];
    network.delay(leader, near, Duration::ZERO);
    network.delay(near, leader, Duration::ZERO);
    // The quickest of some: a busy machine has delays of its own.
    let mut quickest = Duration::MAX;
    for n in 3..23 {
        let began = Instant::now();
        importer.escrow(&deposit(n)).await.expect("kept");
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < 2 * DELAY, "no delay there, and yet {quickest:?}");
}

async fn find(
    test: &TestCluster,
    node: NodeId,
    n: u64,
    how: Consistency,
) -> Result<FindResponse, ClientError> {
    let request =
        FindRequest { key_id_prefix: key(n).to_string(), consistency: how.into(), ..FindRequest::default() };
    let client = test.cluster.client_within("auditor", &[node], QUORUM_TIMEOUT).expect("a client");
    client.find(&request).await
}

/// An old leader that runs on but is cut off must not call what it has a quorum's (etcd #20418, #16666): neither while
/// it may still take itself for the leader, nor later, nor after the heal.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_never_answers_a_quorum_read_with_old_state() {
    let (test, network) = three_nodes_on_a_network("").await;
    for (n, how) in [(1, Cut::Silent), (2, Cut::Reset)] {
        let old = test.leader().await;
        network.isolate(old, how);
        // The moment it is acknowledged elsewhere, which needs another leader, the old one is asked.
        let others = others(old);
        let receipt = test.client("importer", &others).escrow(&deposit(n)).await.expect("the others write");
        let asked = find(&test, old, n, Consistency::Quorum).await;
        let error = asked.expect_err("cut off, it has no quorum to ask");
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error:?}");
        let old_state = find(&test, old, n, Consistency::Local).await.expect("its own replica");
        let freshness = old_state.freshness.expect("said");
        assert_eq!((old_state.keys.len(), &*freshness.consistency), (0, "local"));
        assert!(freshness.applied < receipt.index);

        network.heal();
        let deadline = Instant::now() + SOON;
        loop {
            match find(&test, old, n, Consistency::Quorum).await {
                Ok(found) => {
                    assert_eq!(found.keys.len(), 1, "an answer labelled quorum has what was acknowledged");
                    let freshness = found.freshness.expect("said");
                    assert!(freshness.consistency == "quorum" && freshness.applied >= receipt.index);
                    break;
                }
                Err(error) => assert!(Instant::now() < deadline, "no quorum after the heal: {error}"),
            }
        }
    }
}

/// A node that was told of a reveal and does not have its key yet, because it lags behind, cannot show it to the caller
/// who asks again there: it says so, so that the caller asks on, and does not fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_told_of_a_reveal_but_lacks_its_key_sends_the_caller_on() {
    let (test, network) = three_nodes_on_a_network("").await;
    let leader = test.leader().await;
    let [has_it, lags] = others(leader).try_into().expect("two followers");
    // They have talked to each other before, as ever.
    reaches(&test, has_it, &ALL).await;
    network.cut(leader, lags, Cut::Silent);
    network.cut(lags, leader, Cut::Silent);
    test.client("importer", &[leader]).escrow(&deposit(1)).await.expect("two of three keep it");
    let request = FindRequest { key_id_prefix: key(1).to_string(), ..FindRequest::default() };
    let applied = Instant::now() + SOON;
    while test.client("auditor", &[has_it]).find(&request).await.expect("a local read").keys.is_empty() {
        assert!(Instant::now() < applied, "node {has_it} applies it");
    }
    // Whoever has it tells the other, whose answers do not come back: nobody is elected.
    network.isolate(leader, Cut::Silent);
    network.cut(lags, has_it, Cut::Silent);

    let request = RecoverRequest {
        request_id: uuid::Uuid::new_v4().to_string(),
        key_id: key(1).to_string(),
        reason: "locked out".to_owned(),
        ..RecoverRequest::default()
    };
    let mut desk = RecoveryServiceClient::new(test.channel("helpdesk-advanced", has_it).await);
    let shown = desk.recover(request.clone()).await.expect("shown").into_inner();
    assert_eq!(shown.freshness.expect("said").consistency, "degraded");
    let mut desk = RecoveryServiceClient::new(test.channel("helpdesk-advanced", lags).await);
    let refused = desk.recover(request).await.expect_err("it does not have it");
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    assert!(refused.metadata().contains_key(DEGRADED_KEY), "another node may know better: {refused:?}");
    let told = test.client("operator", &[lags]).status().await.expect("status");
    assert_eq!(
        (of(&told, lags).journal_own, of(&told, lags).journal_told),
        (0, 1),
        "the request is on record once"
    );

    network.heal();
    all_on_record(&test, &ALL).await;
}
