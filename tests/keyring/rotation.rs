//! Rotating the data key, and sealing everything under it, while clients go on.

use std::time::Duration;

use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{KeyringStatus, StatusResponse};
use strongroom::seal::{Part, SealError};

use crate::common::*;
use crate::steps::*;
use crate::stored::{Stored, open, stored};

/// Sealing some thousand keys anew, on a busy machine.
const SEALED: Duration = Duration::from_secs(120);
/// Enough that sealing them anew takes seconds.
const MANY: u64 = 2_000;

fn keyring(status: &StatusResponse) -> KeyringStatus {
    status.keyring.expect("it belongs to a cluster")
}

/// Waits until every member supports it.
async fn rotation_allowed(test: &TestCluster) {
    let allowed = |status: &StatusResponse| status.feature_level >= FeatureLevel::RESEALING.0;
    test.cluster.wait_for("the feature level", SOON, &ALL, allowed).await.expect("raised");
}

/// `strongroom keyring rotate` as the operator; the version of the new data key.
async fn rotate(test: &TestCluster, nodes: &[NodeId]) -> u32 {
    let command = test.command(&test.cluster.layout().profile("operator"), nodes, &["keyring", "rotate"]);
    let output = tokio::task::spawn_blocking(move || run(command, "")).await.expect("the command ran");
    let version = done(&output)["key_version"].as_u64().expect("a version");
    u32::try_from(version).expect("small")
}

/// Waits until some keys are sealed under the data key `version` and others are not.
async fn half_way(test: &TestCluster, nodes: &[NodeId], version: u32) -> StatusResponse {
    let half_way = |status: &StatusResponse| {
        let keyring = keyring(status);
        let old = keyring.keys_under_old_data_keys;
        keyring.key_version == version && old.is_some_and(|old| (1..MANY - 100).contains(&old))
    };
    test.cluster.wait_for("sealing anew to be under way", SEALED, nodes, half_way).await.expect("under way")
}

/// Waits until each of `nodes` has dropped what is older than the data key `version`.
async fn completed(test: &TestCluster, nodes: &[NodeId], version: u32) {
    for node in nodes {
        let complete = |status: &StatusResponse| {
            let keyring = keyring(status);
            assert_eq!(keyring.keys_not_resealed, 0, "{keyring:?}");
            keyring.key_version == version
                && !keyring.has_old_data_keys
                && keyring.keys_under_old_data_keys == Some(0)
        };
        test.cluster.wait_for("sealing anew to end", SEALED, &[*node], complete).await.expect("complete");
    }
}

/// What a node holds after everything was sealed under the data key `version`: all of `kept`, and nothing older.
async fn assert_sealed_under(test: &mut TestCluster, node: NodeId, version: u32, kept: &[Kept]) -> Stored {
    assert!(test.cluster.stop(node).await.expect("stopped"), "it ends by itself");
    let stored = stored(test, node);
    assert_eq!((stored.record.current_key_version, stored.keyring.has_old_data_keys()), (version, false));
    for key in &stored.keys {
        assert!(key.is_sealed_under(version), "{}: {:?}", key.id, key.sealed);
    }
    for (deposit, receipt) in kept {
        let key = stored.key(receipt.key_id);
        let opened = open(&stored.keyring, key, &key.sealed, Part::Secret).expect("it opens");
        assert!(same(&opened, &deposit.secret), "key {} is another secret", key.id);
    }
    stored
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_stays_readable_while_it_is_sealed_anew_and_what_a_removed_node_took_opens_nothing() {
    let mut test = three_of(4, "").await;
    test.cluster.start(4).await.expect("starts");
    make(&test, &ALL, add(&test, 4, true)).await;
    rotation_allowed(&test).await;
    let mut kept = escrow(&test, &ALL, 100_000, MANY).await;
    test.cluster.wait_agreed(&[1, 2, 3, 4]).await.expect("caught up");
    assert!(test.cluster.stop(4).await.expect("stopped"), "it ends by itself");
    let past = stored(&test, 4);
    let key = past.key(kept[0].1.key_id);
    assert!(
        open(&past.keyring, key, &key.sealed, Part::Secret).is_ok(),
        "what it took with it opens what it has"
    );

    let load = Load::start_at(&test, &ALL, 6, Duration::from_millis(5));
    load.progress(20).await;
    let sample: Vec<Kept> = kept.iter().step_by(100).cloned().collect();
    assert_all_readable(&test, 1, &sample).await;
    // Removal rotates the data key; then it is rotated again, at a node that need not lead, in the middle.
    done(&member(&test, &ALL, &["remove", "4"]).await);
    half_way(&test, &ALL, 2).await;
    let version = rotate(&test, &[3, 2, 1]).await;
    assert_eq!(version, 3);
    half_way(&test, &ALL, version).await;
    for node in ALL {
        assert_all_readable(&test, node, &sample).await;
    }
    load.progress(20).await;
    completed(&test, &ALL, version).await;
    load.progress(20).await;
    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    kept.extend(acknowledged);
    let status = test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert!(!status.warnings.iter().any(|warning| warning.contains("data key")), "{:?}", status.warnings);
    for node in ALL {
        assert_all_readable(&test, node, &sample).await;
        assert_all_held(&test, node, &kept).await;
    }
    let text = test.command(
        &test.cluster.layout().profile("auditor"),
        &ALL,
        &["keyring", "status", "--output", "table"],
    );
    assert_eq!(String::from_utf8_lossy(&run(text, "").stdout), "data key 3: the only one\n");
    let (_, metrics) = test.page(1, "/metrics").await;
    for line in ["strongroom_data_key_version 3", "strongroom_keys_under_old_data_keys 0"] {
        assert!(metrics.lines().any(|shown| shown == line || shown == format!("{line}.0")), "{line}");
    }

    let present = assert_sealed_under(&mut test, 2, version, &kept).await;
    for key in &present.keys {
        let refused = open(&past.keyring, key, &key.sealed, Part::Secret).expect_err("it was never its own");
        assert!(matches!(refused, SealError::UnknownKeyVersion { .. }), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_killed_in_the_middle_leaves_the_next_one_seals() {
    let mut test = three_nodes().await;
    rotation_allowed(&test).await;
    let kept = escrow(&test, &ALL, 1, MANY).await;
    let version = rotate(&test, &ALL).await;
    assert_eq!(version, 2);
    let status = half_way(&test, &ALL, version).await;
    let (leader, before) = (status.leader.expect("a leader"), keyring(&status));
    test.cluster.kill(leader).await.expect("killed");
    let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != leader).collect();
    let status = test.client("auditor", &others).status().await.expect("the others answer");
    let left = keyring(&status).keys_under_old_data_keys.expect("counted");
    assert!((1..=before.keys_under_old_data_keys.expect("counted")).contains(&left), "it died in the middle");
    completed(&test, &others, version).await;
    // It was away when the older data key was dropped, and holds some of what it opens: it catches up with both.
    test.cluster.start(leader).await.expect("comes back");
    completed(&test, &[leader], version).await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    let sample: Vec<Kept> = kept.iter().step_by(100).cloned().collect();
    for node in ALL {
        assert_all_readable(&test, node, &sample).await;
    }
    for node in ALL {
        assert_sealed_under(&mut test, node, version, &kept).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_operators_and_officers_rotate_and_what_comes_back_from_before_is_brought_up_to_date() {
    let mut test = three_nodes().await;
    rotation_allowed(&test).await;
    let kept = escrow(&test, &ALL, 1, 20).await;
    for profile in ["auditor", "helpdesk-advanced", "importer"] {
        refused(&test.strongroom(profile, &ALL, &["keyring", "rotate"]), 4, &["rotate the data key"]);
    }
    let leader = test.leader().await;
    let away = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    test.cluster.kill(away).await.expect("killed");
    let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != away).collect();
    for version in 2..=4 {
        assert_eq!(rotate(&test, &others).await, version);
    }
    completed(&test, &others, 4).await;
    test.cluster.start(away).await.expect("comes back");
    completed(&test, &[away], 4).await;
    assert_all_readable(&test, away, &kept).await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert_sealed_under(&mut test, away, 4, &kept).await;
}
