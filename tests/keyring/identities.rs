//! What the loss of a private identity costs.

use strongroom::escrow::ids::NodeId;

use strongroom::seal::NodeKey;

use crate::common::*;
use crate::steps::*;
use crate::stored::data;

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_one_node_s_identity_costs_that_node_and_nothing_else() {
    let mut test = three_of(4, "").await;
    removal_allowed(&test, &ALL).await;
    let kept = escrow(&test, &ALL, 1, 10).await;
    let leader = test.leader().await;
    let lost = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != lost).collect();

    assert!(test.cluster.stop(lost).await.expect("stopped"), "it ends by itself");
    let path = data(&test, lost).join("node.key");
    std::fs::remove_file(&path).expect("its identity is gone");
    let refusal = test.cluster.start(lost).await.expect_err("it is told before it serves").to_string();
    assert!(refusal.contains("node.key is missing") && refusal.contains("bring it back"), "{refusal}");
    // With another one it votes and replicates, and opens nothing.
    assert_ne!(NodeKey::load_or_create(&path).expect("drawn").recipient(), "");
    test.cluster.start(lost).await.expect("starts");
    let back = |status: &strongroom::proto::StatusResponse| status.nodes.iter().all(|node| node.reachable);
    test.cluster.wait_for("its return", SOON, &others, back).await.expect("back");

    // It opens and seals nothing, and says why; whoever asks it goes on to another.
    let alone = |profile: &str, arguments: &[&str], input: &str| {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--timeout", "2"]).collect();
        test.strongroom_with_input(profile, &[lost], &arguments, input)
    };
    let key_id = kept[0].1.key_id.to_string();
    let output = alone("helpdesk-advanced", &["recover", &key_id, "--reason", "locked out"], "");
    refused(&output, 75, &["the keyring is not sealed to it"]);
    let output =
        alone("importer", &["escrow", "--machine", "PC-7", "--volume", "C:", "--kind", "generic"], "s3cret");
    refused(&output, 75, &["the keyring is not sealed to it"]);
    let custody = test.strongroom("auditor", &others, &["custody", &key_id]);
    let report: serde_json::Value = serde_json::from_slice(&custody.stdout).expect("JSON");
    for answer in report["nodes"].as_array().expect("nodes") {
        let expected = if answer["id"] == lost { "cannot-open" } else { "proven" };
        assert_eq!(answer["outcome"], expected, "{report}");
    }
    let later = escrow(&test, &[lost, others[0], others[1]], 100, 5).await;
    for node in &others {
        assert_all_readable(&test, *node, &kept).await;
        assert_all_readable(&test, *node, &later).await;
    }

    // It is replaced like any other.
    test.cluster.start(4).await.expect("starts");
    done(&member(&test, &others, &["replace", &lost.to_string(), &peer(&test, 4)]).await);
    let members: Vec<NodeId> = others.iter().copied().chain([4]).collect();
    test.cluster.wait_settled(&members).await.expect("equal digests");
    assert_all_readable(&test, 4, &kept).await;
    assert_all_readable(&test, 4, &later).await;
}
