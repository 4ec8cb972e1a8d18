//! A member that has not heard of a removal yet seals with a key that the removed node has.

use std::time::Duration;

use rustix::process::Signal;
use strongroom::client::{Client, Deposit};
use strongroom::escrow::ids::NodeId;
use strongroom::seal::{Part, SealError};

use crate::common::*;
use crate::steps::*;
use crate::stored::{open, stored};

/// Enough at once for some of them to be sealed before the member that wakes up has caught up.
const AT_ONCE: u64 = 32;

/// How many secrets `node` has sealed again.
async fn sealed_again(test: &TestCluster, node: NodeId) -> u64 {
    let (_, page) = test.page(node, "/metrics").await;
    let lines = page.lines().filter_map(|line| line.strip_prefix("strongroom_escrows_sealed_again_total "));
    lines.map(|value| value.parse::<f64>().expect("a number") as u64).next().expect("it is counted")
}

/// Removes `leaver` while `lagging` is held still with escrows waiting in it, and lets it go on: what they were
/// acknowledged with.
async fn removed_behind_its_back(
    test: &TestCluster,
    lagging: NodeId,
    leaver: NodeId,
    from: u64,
) -> Vec<Kept> {
    let within = Duration::from_secs(60);
    let client = || test.cluster.client_within("importer", &[lagging], within).expect("a client");
    let clients: Vec<Client> = (0..AT_ONCE).map(|_| client()).collect();
    // A connection of its own for each, which stands before the node stops answering.
    for (n, client) in (from..).zip(&clients) {
        client.escrow(&deposit(n)).await.expect("kept");
    }
    let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != lagging).collect();
    signal(test, lagging, Signal::STOP);
    let wanted: Vec<Deposit> = (from + AT_ONCE..).take(clients.len()).map(deposit).collect();
    let asked = clients.into_iter().zip(wanted).map(|(client, deposit)| {
        tokio::spawn(async move {
            let receipt = client.escrow(&deposit).await.expect("kept, whatever became of the data key");
            (deposit, receipt)
        })
    });
    let asked: Vec<_> = asked.collect();
    done(&member(test, &others, &["remove", &leaver.to_string()]).await);
    signal(test, lagging, Signal::CONT);
    let mut kept = Vec::new();
    for asked in asked {
        kept.push(asked.await.expect("no panic"));
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lagging_member_seals_after_a_removal_the_removed_node_cannot_open() {
    let leavers: [NodeId; 3] = [4, 5, 6];
    let mut test = three_of(6, "").await;
    removal_allowed(&test, &ALL).await;
    for leaver in leavers {
        test.cluster.start(leaver).await.expect("starts");
        make(&test, &ALL, add(&test, leaver, true)).await;
    }
    test.cluster.wait_agreed(&[1, 2, 3, 4, 5, 6]).await.expect("caught up");
    // What they take with them when they go.
    for leaver in leavers {
        assert!(test.cluster.stop(leaver).await.expect("stopped"), "it ends by itself");
    }
    let past = stored(&test, leavers[0]).keyring;
    let leader = test.leader().await;
    let lagging = ALL.into_iter().find(|id| *id != leader).expect("three nodes");

    // Which of two comes first when it wakes up is up to chance, so there is more than one removal.
    let mut kept = Vec::new();
    for (leaver, from) in leavers.into_iter().zip([1_000, 2_000, 3_000]) {
        kept = removed_behind_its_back(&test, lagging, leaver, from).await;
        if sealed_again(&test, lagging).await > 0 {
            break;
        }
    }
    assert!(sealed_again(&test, lagging).await > 0, "it never sealed with the old key: nothing was tested");

    assert_all_readable(&test, lagging, &kept).await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert!(test.cluster.stop(lagging).await.expect("stopped"), "it ends by itself");
    let present = stored(&test, lagging);
    assert!(past.current_version() < present.keyring.current_version());
    for (deposit, receipt) in &kept {
        let key = present.key(receipt.key_id);
        assert_eq!(key.sealed.key_version, present.record.current_key_version);
        let opened = open(&present.keyring, key, &key.sealed, Part::Secret).expect("a member opens it");
        assert!(same(&opened, &deposit.secret));
        let refused = open(&past, key, &key.sealed, Part::Secret).expect_err("a removed node does not");
        assert!(matches!(refused, SealError::UnknownKeyVersion { .. }), "{refused}");
    }
}
