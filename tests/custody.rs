//! Whether every node holds what was acknowledged and can open it: asked with `custody`, and tried by every node by itself.

mod common;

use common::peers::caller_as;
use common::*;
use futures_util::StreamExt as _;
use serde_json::Value;
use strongroom::client::Deposit;
use strongroom::escrow::command::{Action, Command, Escrow, Reply};
use strongroom::escrow::ids::{KeyId, NodeId, RequestId, Timestamp};
use strongroom::escrow::records::{Fingerprint, Sealed, Source};
use strongroom::proto::NodeStatus;
use strongroom::proto::peer::Envelope;
use strongroom::raft::Committed;
use strongroom::store::format;
use uuid::Uuid;

/// Requests under way at once.
const AT_ONCE: usize = 8;

/// By node, what the command says.
fn outcomes(output: &std::process::Output) -> Vec<(u64, String)> {
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = report["nodes"].as_array().expect("nodes").iter();
    nodes
        .map(|node| (node["id"].as_u64().expect("an id"), node["outcome"].as_str().expect("one").into()))
        .collect()
}

/// Challenges all members about every key, through each of `nodes` in turns; `proven` must prove it.
async fn assert_all_proven(test: &TestCluster, nodes: &[NodeId], kept: &[Kept], proven: &[NodeId]) {
    let asked = kept.iter().zip(nodes.iter().cycle()).map(|((_, receipt), node)| async move {
        let custody = test.client("auditor", &[*node]).custody(receipt.key_id, None).await.expect("answered");
        let held = custody.nodes.iter().filter(|answer| answer.outcome == "proven").map(|answer| answer.node);
        assert_eq!(held.collect::<Vec<_>>(), proven, "{custody:?}");
    });
    futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// P1 as every voter can be asked about it, at once and after a leader was killed under load.
#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_escrow_is_proven_by_every_voter() {
    let mut test = three_nodes().await;
    // Nobody waits until the others have applied it: those that are asked do.
    let importer = test.client("importer", &ALL);
    for n in 100_000..100_010 {
        let receipt = importer.escrow(&deposit(n)).await.expect("kept");
        assert_all_proven(&test, &[ALL[(n % 3) as usize]], &[(deposit(n), receipt)], &ALL).await;
    }

    let load = Load::start(&test, 4);
    load.progress(40).await;
    let leader = test.leader().await;
    test.cluster.kill(leader).await.expect("killed");
    load.progress(40).await;
    let (kept, _) = load.finish().await;
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != leader).collect();
    assert_all_proven(&test, &others, &kept, &others).await;
    test.cluster.start(leader).await.expect("comes back");
    test.cluster.wait_settled(&ALL).await.expect("it has caught up");
    assert_all_proven(&test, &ALL, &kept, &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_a_key_and_one_that_never_heard_of_it_are_told_apart_without_a_quorum() {
    let mut test = three_nodes().await;
    test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    test.cluster.kill(3).await.expect("killed");
    test.client("importer", &[1, 2]).escrow(&deposit(2)).await.expect("kept by two");
    for node in [1, 2] {
        test.cluster.kill(node).await.expect("killed");
    }
    for (alone, n, code, outcome) in [(3, 1, 0, "proven"), (3, 2, 3, "absent"), (1, 2, 0, "proven")] {
        if test.cluster.pid(alone).is_none() {
            test.cluster.start(alone).await.expect("alone");
        }
        let output = test.strongroom("auditor", &[alone], &["custody", &key(n).to_string()]);
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        let expected = ALL.map(|id| (id, if id == alone { outcome } else { "unreachable" }.to_owned()));
        assert_eq!(outcomes(&output), expected);
        if n == 2 {
            test.cluster.kill(alone).await.expect("killed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_compared_with_the_kept_one_at_every_node_and_few_wrong_ones_are() {
    let test = three_nodes().await;
    test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
    let id = key(1).to_string();
    let text = |n: u64| deposit(n).secret.expose_text().expect("text").to_owned();
    let custody = |input: &str, profile: &str| {
        test.strongroom_with_input(profile, &[1], &["custody", &id, "--secret-file", "-"], input)
    };
    let all = |outcome: &str| ALL.map(|id| (id, outcome.to_owned()));

    // As it may be typed: spaces between the groups, a line end.
    let spaced = format!("{}\n", text(1).replace('-', " "));
    let file = test.dir.path().join("secret");
    std::fs::write(&file, &spaced).expect("written");
    let output =
        test.strongroom("helpdesk", &[2], &["custody", &id, "--secret-file", file.to_str().expect("a path")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(outcomes(&output), all("proven"));

    let (code, error) = failure(&custody("000000-000011-000022", "auditor"));
    assert_eq!((code, &error["code"]), (2, &"invalid".into()), "{error}");
    assert!(error["message"].as_str().expect("words").contains("secret"), "{error}");

    // Ten are compared, the right ones in between do not count; then none for this person, and still for others.
    for attempt in 0..10 {
        let output = custody(&text(2), "auditor");
        let (code, error) = failure(&output);
        assert_eq!(code, 5, "{error}");
        assert_eq!(outcomes(&output), all("mismatch"));
        if attempt % 4 == 0 {
            assert!(custody(&text(1), "auditor").status.success(), "the right one is no guess");
        }
    }
    let (code, error) = failure(&custody(&text(1), "auditor"));
    assert_eq!(code, 4, "{error}");
    assert!(custody(&text(1), "helpdesk").status.success(), "others are not held up");
    for node in ALL {
        let log = test.log(node);
        assert!(!log.contains(&text(1)) && !log.contains(&text(2)), "no secret in the log of node {node}");
    }
}

/// What a node that seals wrongly would leave: nobody can open it, and every replica has it alike, so no digest differs.
async fn keep_what_does_not_open(test: &TestCluster) -> KeyId {
    let Deposit { machine, volume, kind, .. } = deposit(7);
    let sealed = Sealed { key_version: 1, nonce: [7; 12], ciphertext: vec![7; 71] };
    let escrow = Escrow {
        key_id: key(7),
        key_id_given: true,
        machine,
        volume,
        kind,
        sealed,
        sealed_package: None,
        fingerprint: Fingerprint([7; 32]),
        user: None,
    };
    let leader = test.leader().await;
    let from = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let command = Command {
        request: RequestId(Uuid::new_v4()),
        at: Timestamp(1),
        by: "spiffe://test/importer/migration".parse().expect("an identity"),
        source: Source { node: from, address: String::new() },
        action: Action::Escrow(escrow),
    };
    let mut caller = caller_as(test, from, leader, true).await;
    let body = format::encode(&command).into();
    let answer = caller.propose(Envelope { body, quorum_age_ms: None }).await.expect("taken").into_inner();
    let committed: Committed = format::decode(&answer.body).expect("an answer");
    assert!(matches!(committed.reply, Reply::Escrowed(_)), "{committed:?}");
    key(7)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_tries_to_open_all_it_keeps_and_raises_an_alarm_over_what_does_not() {
    let mut test = three_nodes().await;
    let importer = test.client("importer", &ALL);
    for n in 1..=5 {
        importer.escrow(&deposit(n)).await.expect("kept");
    }
    let broken = keep_what_does_not_open(&test).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it, and no digest differs");
    // A pass begins with the node.
    for node in ALL {
        test.cluster.kill(node).await.expect("killed");
    }
    for node in ALL {
        test.cluster.start(node).await.expect("comes back");
    }
    for node in ALL {
        test.logs(node, "a kept key cannot be opened").await;
        assert!(test.log(node).contains(&broken.to_string()), "it is named");
    }
    // A leader is elected anew meanwhile; there is no quorum until then.
    let alarmed = test.cluster.wait_for("the alarm of all", SOON, &ALL, |status| {
        let is_told = |node: &NodeStatus| {
            node.keys_not_opened == 1 && node.not_opened == [broken.to_string()] && node.keys_opened == 5
        };
        status.health == "degraded" && status.nodes.iter().all(is_told)
    });
    let status = alarmed.await.expect("every node tells");
    for node in ALL {
        let warning = format!("1 of the kept keys cannot be opened at node {node}: {broken}");
        assert!(status.warnings.contains(&warning), "{:?}", status.warnings);
        let (_, metrics) = test.page(node, "/metrics").await;
        assert!(metrics.contains("strongroom_keys_not_opened 1.0\n"), "{metrics}");
        assert!(metrics.contains("strongroom_keys_opened 5.0\n"), "{metrics}");
    }
    let output = test.strongroom("auditor", &ALL, &["custody", &broken.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(outcomes(&output), ALL.map(|id| (id, "cannot-open".to_owned())));
    // The others are as they were.
    let recovered =
        test.client("helpdesk-advanced", &ALL).recover(key(1), "locked out", None).await.expect("shown");
    assert!(same(&recovered.secret, &deposit(1).secret));
}
