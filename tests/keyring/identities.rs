//! What the loss of a private identity costs.

use std::path::Path;
use std::process::{Command, Output};

use strongroom::escrow::ids::NodeId;

use strongroom::seal::NodeKey;
use strongroom::secret::Secret;

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
    let told = |status: &strongroom::proto::StatusResponse| {
        let warning = format!("node {lost} can open no key: ");
        status.warnings.iter().any(|told| told.starts_with(&warning))
    };
    test.cluster.wait_for("its alarm", SOON, &others, told).await.expect("it says so by itself");
    assert!(test.page(lost, "/metrics").await.1.contains("strongroom_keyring_usable 0.0\n"));

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

/// `strongroom keyring open` on the disk of `node`: no endpoints, no profile.
fn open(test: &TestCluster, node: NodeId, identity: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(["--output", "json", "keyring", "open", "--data"]).arg(data(test, node));
    command.arg("--identity").arg(identity).args(more);
    run(command, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_offline_identity_alone_opens_what_the_disk_of_any_node_holds() {
    let mut test = three_nodes().await;
    let mut kept = escrow(&test, &ALL, 1, 20).await;
    let mut with_package = deposit(50);
    with_package.package = Some(Secret::new(vec![1, 2, 3, 0xff]));
    let receipt = test.client("importer", &ALL).escrow(&with_package).await.expect("kept");
    kept.push((with_package, receipt));
    test.cluster.wait_settled(&ALL).await.expect("everybody has everything");
    let offline = test.cluster.layout().offline_identity();
    refused(&open(&test, 1, &offline, &[]), 5, &["in use by another process"]);
    for node in ALL {
        test.cluster.kill(node).await.expect("killed");
    }
    for node in ALL {
        // All it takes is the disk and the offline identity.
        let open = |identity: &Path, more: &[&str]| open(&test, node, identity, more);
        let mine = data(&test, node).join("node.key");
        std::fs::rename(&mine, test.dir.path().join(format!("node-{node}.key"))).expect("taken away");
        let report = done(&open(&offline, &[]));
        assert_eq!(
            (report["opened"].as_u64(), &report["not_opened"]),
            (Some(kept.len() as u64), &[(); 0].into())
        );

        let export = test.dir.path().join(format!("export-{node}"));
        done(&open(&offline, &["--export", export.to_str().expect("text")]));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&export.metadata().expect("written").permissions());
        assert_eq!(mode & 0o777, 0o600);
        let exported = std::fs::read_to_string(&export).expect("text");
        assert_eq!(exported.lines().count(), kept.len());
        for line in exported.lines() {
            let key: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let (deposit, _) =
                kept.iter().find(|(_, receipt)| key["key_id"] == receipt.key_id.to_string()).expect("kept");
            assert!(key["secret"].as_str() == deposit.secret.expose_text(), "key {}", key["key_id"]);
            let package = deposit.package.as_ref().map(|_| "AQID/w==");
            assert_eq!(key["package"].as_str(), package, "key {}", key["key_id"]);
        }
        refused(&open(&offline, &["--export", export.to_str().expect("text")]), 2, &["export", "exists"]);

        let (deposit, receipt) = &kept[3];
        let shown = done(&open(&offline, &["--key-id", &receipt.key_id.to_string()]));
        assert_eq!(shown["keys"].as_array().map(Vec::len), Some(1));
        assert!(shown["keys"][0]["secret"].as_str() == deposit.secret.expose_text(), "the secret itself");
        refused(&open(&offline, &["--machine", "PC-none"]), 3, &["no such key"]);

        // Anybody else's identity opens nothing.
        let stranger = test.dir.path().join(format!("stranger-{node}"));
        NodeKey::load_or_create(&stranger).expect("drawn");
        refused(&open(&stranger, &[]), 2, &["not sealed to this identity"]);
        std::fs::rename(test.dir.path().join(format!("node-{node}.key")), &mine).expect("brought back");
    }
    // Looking changed nothing that matters: the cluster goes on.
    for node in ALL {
        test.cluster.start(node).await.expect("starts");
    }
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert_all_readable(&test, 2, &kept).await;
}
