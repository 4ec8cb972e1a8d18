//! Rotation after a reveal, and what the desk is shown, over the real ports: nodes are killed between the steps, and at
//! none of them is there a device whose working key is not kept.

mod common;

use std::path::PathBuf;

use common::*;
use strongroom::client::{ClientError, Deposit};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{KeyId, MachineId, NodeId, Role};
use strongroom::escrow::secrets::bitlocker;
use strongroom::proto::{FindRequest, Key};
use strongroom::secret::Secret;
use strongroom::tls::ca::{Authority, IssueRequest};

/// The machine of the agent's profile that every test cluster has.
const MACHINE: &str = "PC-0001";

fn machine() -> MachineId {
    MACHINE.parse().expect("a machine id")
}

/// The `n`th recovery password of the device.
fn password(n: u16, pending: bool) -> Deposit {
    Deposit {
        machine: machine(),
        key_id: None,
        secret: bitlocker::from_halves(std::array::from_fn(|group| {
            n * 8 + u16::try_from(group).expect("few")
        })),
        user: Some(r"CORP\user1".parse().expect("a user")),
        pending,
        ..deposit(1)
    }
}

async fn desk_cluster() -> TestCluster {
    let test = three_nodes().await;
    let allowed = |status: &strongroom::proto::StatusResponse| {
        status.feature_level >= FeatureLevel::DESK.0 && status.leader.is_some()
    };
    test.cluster.wait_for("the feature level", SOON, &ALL, allowed).await.expect("raised by itself");
    test
}

/// What `node` has of the device, in its own replica, once it has applied `index`.
async fn keys_at(test: &TestCluster, node: NodeId, index: u64) -> Vec<Key> {
    let request = FindRequest { machine: MACHINE.to_owned(), min_index: index, ..FindRequest::default() };
    test.client("auditor", &[node]).find(&request).await.expect("a local read").keys
}

fn states(keys: &[Key]) -> Vec<&str> {
    keys.iter().map(|key| key.state.as_str()).collect()
}

async fn kill_leader(test: &mut TestCluster) -> (NodeId, Vec<NodeId>) {
    let leader = test.leader().await;
    test.cluster.kill(leader).await.expect("killed");
    (leader, ALL.into_iter().filter(|id| *id != leader).collect())
}

/// The whole of a rotation, with a kill -9 before each step of the device; P8.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_survives_kill_9_of_nodes_between_its_steps() {
    let mut test = desk_cluster().await;
    let (old, new) = (password(1, false), password(2, true));
    let first = test.client("agent-PC-0001", &ALL).escrow(&old).await.expect("kept");
    let shown = test.client("helpdesk-advanced", &ALL).recover(first.key_id, "locked out", None).await;
    let shown = shown.expect("shown");
    let seen_at = shown.receipt.expect("a receipt").index;

    // The next contact, whichever node it is with, tells of the debt.
    let (away, others) = kill_leader(&mut test).await;
    for node in &others {
        let owed = test.client("agent-PC-0001", &[*node]).rotation(&machine(), seen_at).await.expect("told");
        assert!(owed.owed_since_ms.is_some(), "node {node} knows");
        assert_eq!(owed.keys.len(), 1);
        assert!(owed.keys[0].owes_since_ms.is_some());
        assert_eq!(owed.freshness.expect("said").node, *node);
    }

    // The new key is kept beside the old one before the device uses it.
    let pending = test.client("agent-PC-0001", &others).escrow(&new).await.expect("two of three keep it");
    let again = test.client("agent-PC-0001", &others).escrow(&new).await.expect("its answer was lost");
    assert_eq!((again.key_id, again.already_escrowed), (pending.key_id, true));
    test.cluster.start(away).await.expect("comes back");
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in ALL {
        assert_eq!(
            states(&keys_at(&test, node, pending.index).await),
            ["pending", "disclosed"],
            "node {node}"
        );
    }

    // The device uses the new key now. Power fails everywhere before it can say so.
    for node in ALL {
        test.cluster.kill(node).await.expect("killed");
    }
    for node in ALL {
        test.cluster.start(node).await.expect("comes back");
    }
    let (away, others) = kill_leader(&mut test).await;
    let confirmed = test
        .client("agent-PC-0001", &others)
        .confirm_key(&machine(), pending.key_id)
        .await
        .expect("on record");
    assert_eq!((confirmed.state.as_str(), confirmed.owed_since_ms), ("active", None));
    assert_eq!(confirmed.replaced, [first.key_id.to_string()]);
    // Said again, through the other node: nothing more happens.
    let again = test.client("agent-PC-0001", &others[..1]).confirm_key(&machine(), pending.key_id).await;
    assert!(again.expect("safe to repeat").replaced.is_empty());
    test.cluster.start(away).await.expect("comes back");
    test.cluster.wait_settled(&ALL).await.expect("equal digests");

    for node in ALL {
        let keys = keys_at(&test, node, confirmed.index).await;
        assert_eq!(states(&keys), ["active", "retired"], "node {node}: the newest first");
        assert_eq!(keys[1].replaced_by, pending.key_id.to_string());
        assert!(keys.iter().all(|key| key.rotation_owed_since_ms.is_none()));
        let owed = test.client("agent-PC-0001", &[node]).rotation(&machine(), confirmed.index).await;
        let owed = owed.expect("told");
        assert!(owed.owed_since_ms.is_none() && owed.keys.is_empty(), "node {node}");
    }
    // Both are still given back, the old one for old disks.
    for (key_id, deposit) in [(first.key_id, &old), (pending.key_id, &new)] {
        let back = test.client("helpdesk-advanced", &ALL).recover(key_id, "old image", None).await;
        assert!(same(&back.expect("shown").secret, &deposit.secret), "{key_id}");
    }
    only_its_own_machine(&test, pending.key_id).await;
}

async fn only_its_own_machine(test: &TestCluster, key_id: KeyId) {
    let other: MachineId = "PC-0002".parse().expect("a machine id");
    let agent = test.client("agent-PC-0001", &ALL);
    assert!(matches!(agent.rotation(&other, 0).await, Err(ClientError::Denied(_))));
    assert!(matches!(agent.confirm_key(&other, key_id).await, Err(ClientError::Denied(_))));
    let desk = test.client("helpdesk-advanced", &ALL);
    assert!(matches!(desk.rotation(&machine(), 0).await, Err(ClientError::Denied(_))));
    assert!(matches!(desk.confirm_key(&machine(), key_id).await, Err(ClientError::Denied(_))));
    let importer = test.client("importer", &ALL);
    assert!(matches!(importer.confirm_key(&other, key_id).await, Err(ClientError::NotFound(_))));
    importer.rotation(&machine(), 0).await.expect("an importer may ask for any");
}

fn json(output: &std::process::Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Looking up and showing, as the desk does it with the command line.
#[tokio::test(flavor = "multi_thread")]
async fn the_desk_finds_by_the_first_digits_and_gets_key_package_and_receipt() {
    let test = desk_cluster().await;
    let importer = test.client("importer", &ALL);
    let package = vec![7, 0, 255, 13, 10];
    let known = Deposit { package: Some(Secret::new(package.clone())), ..deposit(1) };
    importer.escrow(&known).await.expect("kept");
    importer.escrow(&deposit(2)).await.expect("kept");
    let whole = known.key_id.expect("given").to_string();
    let secret = known.secret.expose_text().expect("digits").to_owned();

    // By the beginning of an id, which both have in common: listed, and nothing shown or put on record.
    let recover = |key: &str, more: &[&str]| {
        let mut arguments = vec!["recover", key, "--reason", "locked out"];
        arguments.extend(more);
        test.strongroom("helpdesk-advanced", &ALL, &arguments)
    };
    let listed = recover(&whole[..8], &[]);
    assert_eq!(failure(&listed).0, 2);
    assert!(failure(&listed).1["hint"].as_str().expect("a hint").contains("whole id"));
    let document: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(document["keys"].as_array().expect("keys").len(), 2);
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(&secret));
    assert_eq!(document["keys"][0]["state"], "active", "not disclosed by it");
    assert_eq!(failure(&recover("ffffffff", &[])).0, 3);

    let dir = test.dir.path();
    let (package_out, receipt_out) = (dir.join("package.bin"), dir.join("reveal.json"));
    let files = [
        "--package-out",
        package_out.to_str().expect("text"),
        "--receipt-out",
        receipt_out.to_str().expect("text"),
    ];
    let shown = recover(&whole, &files);
    let document = json(&shown);
    assert_eq!(
        (document["secret"].as_str(), document["state"].as_str()),
        (Some(&*secret), Some("disclosed"))
    );
    assert_eq!(document["users"], serde_json::json!([r"CORP\user1"]));
    assert_eq!(document["package_written"], true);
    assert_eq!(std::fs::read(&package_out).expect("written"), package);
    let ca = test.cluster.layout().profile("auditor").join("ca.crt");
    let verify = |file: &PathBuf| {
        let arguments =
            ["receipt", "verify", file.to_str().expect("text"), "--ca", ca.to_str().expect("text")];
        test.strongroom("auditor", &ALL, &arguments)
    };
    let verified = json(&verify(&receipt_out));
    assert_eq!(verified["receipt"], document["receipt"]);
    assert_eq!(verified["receipt"]["to"], "spiffe://test/helpdesk-advanced/helpdesk-advanced");
    assert_eq!(verified["receipt"]["audit_sequence"], document["audit_sequence"]);
    let forged = std::fs::read_to_string(&receipt_out).expect("JSON").replace("locked out", "asked nicely");
    let forgery = dir.join("forged.json");
    std::fs::write(&forgery, forged).expect("written");
    assert_eq!(failure(&verify(&forgery)).0, 1);

    // Nothing is written over, and that is found out before anything is shown.
    let again = recover(&whole, &files);
    assert_eq!(failure(&again).0, 5);
    assert!(again.stdout.is_empty());
    // A key without a package is shown all the same.
    let other = dir.join("other.bin");
    let without = recover(
        &deposit(2).key_id.expect("given").to_string(),
        &["--package-out", other.to_str().expect("text")],
    );
    assert_eq!(failure(&without).0, 3);
    assert!(
        String::from_utf8_lossy(&without.stdout).contains(deposit(2).secret.expose_text().expect("digits"))
    );
    assert!(!other.exists());
    end_users(&test).await;
}

/// An end user finds own machines only.
async fn end_users(test: &TestCluster) {
    let authority = Authority::open(&test.cluster.layout().authority()).expect("the cluster's CA");
    let profile = test.dir.path().join("end-user");
    let issued = authority.issue(IssueRequest::new(Role::SelfService, "CORP/user1")).expect("issued");
    authority.write_profile(&profile, &issued).expect("written");
    let find = |arguments: &[&str]| {
        let mut command = vec!["find"];
        command.extend(arguments);
        json(&test.run_as(&profile, &ALL, &command, ""))["keys"].as_array().expect("keys").len()
    };
    assert_eq!(find(&["--user", r"CORP\user1"]), 1);
    assert_eq!(find(&["--user", r"CORP\user2"]), 0);
    assert_eq!(find(&["--machine", "PC-00001"]), 1);
    assert_eq!(find(&["--machine", "PC-00002"]), 0);
    assert_eq!(find(&["--key-id", "57420000"]), 1, "of two keys whose ids begin so");
}

/// The same by command line, as scripts and importers do it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_by_command_line() {
    let test = desk_cluster().await;
    let escrow = |n: u16, more: &[&str]| {
        let mut arguments =
            vec!["escrow", "--machine", MACHINE, "--volume", "C:", "--kind", "bitlocker-password"];
        arguments.extend(more);
        let secret = password(n, false).secret;
        let output = test.strongroom_with_input(
            "agent-PC-0001",
            &ALL,
            &arguments,
            secret.expose_text().expect("digits"),
        );
        json(&output)["key_id"].as_str().expect("an id").to_owned()
    };
    let agent = |arguments: &[&str]| json(&test.strongroom("agent-PC-0001", &ALL, arguments));
    let first = escrow(1, &["--user", r"CORP\user1"]);
    let recover = ["recover", &first, "--reason", "locked out", "--user", r"CORP\user1"];
    let index = json(&test.strongroom("helpdesk", &ALL, &recover))["freshness"]["applied"].to_string();
    let owed = agent(&["rotation", "owed", "--machine", MACHINE, "--min-index", &index]);
    assert!(owed["owed_since"].is_string(), "{owed}");
    assert_eq!(owed["keys"][0]["key_id"], *first);
    let second = escrow(2, &["--pending"]);
    let confirmed = agent(&["rotation", "confirm", &second, "--machine", MACHINE]);
    assert_eq!(confirmed["replaced"], serde_json::json!([first]));
    assert!(confirmed["owed_since"].is_null());
    // The old one cannot be called current again by mistake.
    let late = test.strongroom("agent-PC-0001", &ALL, &["rotation", "confirm", &first, "--machine", MACHINE]);
    let (code, error) = failure(&late);
    assert_eq!(code, 5, "{error}");
    assert!(error["message"].as_str().expect("words").contains(&second), "{error}");
}

/// P5 and P8 for every state a key can be in, sealed anew meanwhile: what a lone survivor shows is what was escrowed, and its
/// receipts name the entries of the journal that come on record later.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_keys_of_every_state_are_shown_and_their_receipts_name_what_comes_on_record() {
    let mut test = desk_cluster().await;
    let agent = test.client("agent-PC-0001", &ALL);
    let first = agent.escrow(&password(1, false)).await.expect("kept").key_id;
    let second = agent.escrow(&password(2, true)).await.expect("kept").key_id;
    agent.confirm_key(&machine(), second).await.expect("confirmed");
    let third = agent.escrow(&password(3, true)).await.expect("kept").key_id;
    test.client("officer", &ALL).rotate_keyring().await.expect("rotated");
    let resealed = |status: &strongroom::proto::StatusResponse| {
        status.keyring.as_ref().is_some_and(|keyring| !keyring.has_old_data_keys)
    };
    test.cluster.wait_for("all sealed anew", SOON, &ALL, resealed).await.expect("in the background");
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    // One that does not lead: what a leader has proposed may be committed later, and is on record by that.
    let leader = test.leader().await;
    let alone = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != alone).collect();
    for node in &others {
        test.cluster.kill(*node).await.expect("killed");
    }

    let ca = test.cluster.layout().profile("auditor").join("ca.crt");
    let mut noted = Vec::new();
    for (n, key, state) in [(1, first, "retired"), (2, second, "active"), (3, third, "pending")] {
        let file = test.dir.path().join(format!("{state}.json"));
        let file = file.to_str().expect("text");
        let arguments = ["recover", &key.to_string(), "--reason", state, "--receipt-out", file];
        let shown = json(&test.strongroom("helpdesk-advanced", &[alone], &arguments));
        assert_eq!(shown["freshness"]["consistency"], "degraded");
        assert_eq!(shown["secret"].as_str(), password(n, false).secret.expose_text());
        let arguments = ["receipt", "verify", file, "--ca", ca.to_str().expect("text")];
        let verified = json(&test.strongroom("auditor", &[alone], &arguments));
        let receipt = &verified["receipt"];
        assert_eq!((&verified["degraded"], &receipt["state"]), (&true.into(), &state.into()), "{verified}");
        assert_eq!(receipt["audit_sequence"], serde_json::Value::Null);
        assert_eq!(receipt["journal"]["journal"], shown["journal"]["id"]);
        assert_eq!(receipt["journal"]["sequence"], shown["journal"]["sequence"]);
        noted.push((receipt["journal"].clone(), state));
    }

    for node in &others {
        test.cluster.start(*node).await.expect("comes back");
    }
    let empty = |status: &strongroom::proto::StatusResponse| {
        status.leader.is_some()
            && status.nodes.iter().all(|node| node.reachable && node.journal_own + node.journal_told == 0)
    };
    test.cluster.wait_for("all on record", SOON, &ALL, empty).await.expect("on record");
    test.cluster.wait_settled(&ALL).await.expect("settled");
    let export = test.strongroom("auditor", &[leader], &["audit", "export"]);
    let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&export.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for (place, state) in noted {
        let of_it = lines.iter().filter(|line| line["details"]["place"] == place);
        let reasons: Vec<_> = of_it.map(|line| line["details"]["reveal"]["reason"].clone()).collect();
        assert_eq!(reasons, [state], "{lines:#?}");
    }
    // What was seen while it was pending owes a rotation once it is in use.
    agent.confirm_key(&machine(), third).await.expect("confirmed");
    test.cluster.wait_settled(&ALL).await.expect("settled");
    let keys = keys_at(&test, alone, 0).await;
    assert_eq!(states(&keys), ["disclosed", "retired", "retired"]);
    assert!(keys[0].owes_since_ms.is_some());
}
