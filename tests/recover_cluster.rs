//! Going on after the quorum is lost for ever: real processes, real kill -9, and the dead that come back.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::*;
use serde_json::Value;
use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::client::Deposit;
use strongroom::escrow::audit;
use strongroom::escrow::ids::{ClusterId, NodeId};
use strongroom::escrow::lookup;
use strongroom::escrow::records::AuditEvent;
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::seal::receipt::Receipt;
use strongroom::store::directory::DataDir;

/// A cluster of `members`, the first of `machines` that have a configuration and a certificate.
async fn cluster_of(members: &[NodeId], machines: u64) -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let plan = ClusterPlan { nodes: machines, members: 1, ..plan("") };
    let mut cluster = LocalCluster::open_or_create(dir.path(), &plan, program()).expect("a layout");
    let layout = cluster.layout().clone();
    let mut init = Command::new(program());
    init.args(["init", "--config"]).arg(layout.node(1).expect("a node").config_path());
    init.arg("--offline-identity-out").arg(layout.offline_identity());
    assert!(run(init, "").status.success(), "the first node makes the cluster");
    for id in members {
        cluster.start(*id).await.expect("starts");
    }
    let mut test = TestCluster { cluster, dir };
    test.cluster.wait_for("a leader", SOON, &[1], |status| status.leader.is_some()).await.expect("led");
    for id in &members[1..] {
        add(&mut test, &[1], *id).await;
    }
    test.cluster.wait_settled(members).await.expect("settled");
    test
}

async fn add(test: &mut TestCluster, through: &[NodeId], id: NodeId) {
    let address = test.cluster.layout().node(id).expect("a node").peer_address();
    let operator = test.client("operator", through);
    let mut change = operator.add_member(&address, false).await.expect("it is added");
    while change.next().await.expect("it becomes a voter").is_some() {}
}

/// Escrows `count` keys from number `from` on.
async fn escrow(test: &TestCluster, nodes: &[NodeId], from: u64, count: u64) -> Vec<(Deposit, Receipt)> {
    let importer = test.client("importer", nodes);
    let mut acknowledged = Vec::new();
    for n in from..from + count {
        let deposit = deposit(n);
        let receipt = importer.escrow(&deposit).await.expect("kept");
        acknowledged.push((deposit, receipt));
    }
    acknowledged
}

fn config_of(test: &TestCluster, node: NodeId) -> PathBuf {
    test.cluster.layout().node(node).expect("a node").config_path()
}

fn recover_command(test: &TestCluster, node: NodeId, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("recover-cluster").args(arguments).arg("--config").arg(config_of(test, node));
    command.env("STRONGROOM_OUTPUT", "json");
    command
}

fn recover_cluster(test: &TestCluster, node: NodeId, arguments: &[&str]) -> Output {
    run(recover_command(test, node, arguments), "")
}

fn document(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no document; it said: {stderr}"))
}

/// The plan as `node` makes it.
fn plan_of(test: &TestCluster, node: NodeId) -> Value {
    let output = recover_cluster(test, node, &["--plan"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    document(&output)
}

/// Asserts that `--apply` on `node` is refused with a conflict that says `why`.
#[track_caller]
fn assert_refused(test: &TestCluster, node: NodeId, arguments: &[&str], why: &str) {
    let output = recover_cluster(test, node, &[&["--apply"], arguments].concat());
    let (code, error) = failure(&output);
    let message = error["message"].as_str().expect("a message");
    assert_eq!(code, 5, "{error}");
    assert!(message.contains(why), "{message:?} does not say {why:?}");
}

/// Waits until nothing speaks against recovering on `node`: whoever saw the quorum last has given it up.
async fn quorum_given_up(test: &TestCluster, node: NodeId, expected: &[&str]) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let plan = plan_of(test, node);
        let objections = plan["objections"].as_array().expect("a list").clone();
        if objections.len() == expected.len()
            && objections
                .iter()
                .zip(expected)
                .all(|(objection, why)| objection.as_str().is_some_and(|objection| objection.contains(why)))
        {
            return plan;
        }
        assert!(Instant::now() < deadline, "still: {objections:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The audit trail and the cluster of a stopped node.
async fn audit_of(test: &TestCluster, node: NodeId) -> (ClusterId, Vec<AuditEvent>) {
    let data = DataDir::open_or_create(test.cluster.layout().node(node).expect("a node").data_path());
    let data = data.expect("the node is stopped");
    let storage = Storage::open(&data, StorageOptions::default()).await.expect("its storage opens");
    storage.replay_committed().await.expect("what is committed applies");
    let (cluster, records, heads) = {
        let view = storage.machine.view().expect("a view");
        let records = lookup::audit(&view, 0, usize::MAX).expect("the trail");
        let cluster = lookup::cluster(&view).expect("read").expect("a cluster").id;
        (cluster, records, lookup::heads(&view).expect("read"))
    };
    audit::verify(&records, audit::ChainHead::default(), heads.audit).expect("the chain is whole");
    storage.close().await.expect("closed");
    (cluster, records.into_iter().map(|record| record.event).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_survivor_of_three_goes_on_as_a_new_cluster_and_the_dead_cannot_return() {
    let mut test = cluster_of(&[1, 2, 3], 5).await;
    let acknowledged = escrow(&test, &ALL, 1, 20).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    let before = test.client("operator", &[1]).status().await.expect("status").cluster;
    for node in [2, 3] {
        test.cluster.kill(node).await.expect("killed");
    }

    // The plan needs no stop, and --apply does.
    let plan = quorum_given_up(&test, 1, &["this node is running"]).await;
    assert_eq!((&plan["running"], &plan["most"]), (&true.into(), &1.into()));
    assert_eq!((&plan["survivors"], &plan["quorum"]), (&serde_json::json!([1]), &2.into()));
    assert_eq!(plan["may_lose_after"], plan["members"][0]["last_log"], "{plan}");
    assert!(plan["loss"].as_str().expect("words").contains("1 of 3 voters survive"), "{plan}");
    assert_refused(&test, 1, &["--confirm", &before], "in use by another process");
    assert!(test.cluster.stop(1).await.expect("stopped"), "by itself");

    // Another survivor, started again, makes a quorum with this one.
    test.cluster.start(2).await.expect("comes back");
    assert_refused(&test, 1, &["--confirm", &before], "which is a quorum: start them");
    test.cluster.kill(2).await.expect("killed for good");

    // It is said what would be done; nothing is done without the id of the cluster that ends.
    let plan = plan_of(&test, 1);
    assert_eq!((&plan["running"], &plan["objections"]), (&false.into(), &serde_json::json!([])));
    let other = uuid::Uuid::new_v4().to_string();
    for confirm in [&[][..], &["--confirm", other.as_str()]] {
        let output = recover_cluster(&test, 1, &[&["--apply"], confirm].concat());
        let (code, error) = failure(&output);
        assert_eq!(code, 2, "{error}");
        assert!(error["hint"].as_str().expect("a hint").contains(&before), "{error}");
        assert_eq!(document(&output)["most"], 1);
    }
    let (unchanged, _) = audit_of(&test, 1).await;
    assert_eq!(unchanged.to_string(), before);

    let after = apply_through_a_crash(&mut test, &before).await;
    let (cluster, events) = audit_of(&test, 1).await;
    assert_eq!(cluster.to_string(), after);
    let recovered: Vec<_> =
        events.iter().filter(|event| matches!(event, AuditEvent::ClusterRecovered { .. })).collect();
    let previous = ClusterId(before.parse().expect("an id"));
    assert_eq!(recovered, [&AuditEvent::ClusterRecovered { survivor: 1, lost: vec![2, 3], previous }]);

    test.cluster.start(1).await.expect("serves");
    test.cluster.wait_settled(&[1]).await.expect("alone");
    assert_refused(&test, 1, &["--confirm", &after], "in use by another process");
    let mut acknowledged = acknowledged;
    assert_all_readable(&test, 1, &acknowledged).await;
    assert_verifies(&test, &acknowledged[0].1);
    acknowledged.extend(escrow(&test, &[1], 100, 3).await);

    for node in [4, 5] {
        test.cluster.start(node).await.expect("a new node");
        add(&mut test, &[1], node).await;
    }
    let grown = [1, 4, 5];
    let status = test.cluster.wait_settled(&grown).await.expect("three again");
    assert_eq!(status.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), grown);
    for node in grown {
        assert_all_readable(&test, node, &acknowledged).await;
    }

    // The dead come back, one alone and then both, who are a quorum of a cluster that has ended.
    for node in [2, 3] {
        test.cluster.start(node).await.expect("the process runs");
        test.logs(node, "was removed from the cluster").await;
        test.cluster.kill(node).await.expect("killed");
    }
    for node in [2, 3] {
        test.cluster.start(node).await.expect("the process runs");
    }
    escrow(&test, &grown, 200, 3).await;
    let status = test.cluster.wait_settled(&grown).await.expect("undisturbed");
    assert_eq!(status.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), grown);
    assert_eq!(status.cluster, after);
}

/// Begins, is killed in the middle, is not served in between, and goes on; answers the id of the new cluster.
async fn apply_through_a_crash(test: &mut TestCluster, before: &str) -> String {
    let note = test.cluster.layout().node(1).expect("a node").data_path().join("recovery.json");
    let before_it = memberships_in_the_log(test);
    let mut command = recover_command(test, 1, &["--apply", "--confirm", before]);
    let mut begun = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    // Behind that entry it waits for an election, which takes longer than a look at the log.
    let deadline = Instant::now() + SOON;
    while !note.exists() || memberships_in_the_log(test) <= before_it {
        assert!(Instant::now() < deadline, "it does not begin");
        assert!(begun.try_wait().expect("waited").is_none(), "it was not caught in the middle");
    }
    begun.kill().expect("killed");
    begun.wait().expect("gone");
    let text = std::fs::read_to_string(&note).expect("the note is still there");
    let promised: Value = serde_json::from_str(&text).expect("JSON");

    let error = test.cluster.start(1).await.expect_err("it is not served half done").to_string();
    assert!(error.contains("is not complete: run it again"), "{error}");
    let plan = plan_of(test, 1);
    assert_eq!(plan["begun"], promised["cluster"], "{plan}");

    let output = recover_cluster(test, 1, &["--apply", "--confirm", before]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let done = document(&output);
    assert_eq!(done["cluster"], promised["cluster"], "the identity of the first attempt");
    assert_eq!(done["lost"], serde_json::json!([2, 3]));
    assert!(!note.exists());
    assert_refused(test, 1, &["--confirm", before], "which is a quorum: start them");
    done["cluster"].as_str().expect("an id").to_owned()
}

/// How often the address of node 1 stands in its log: once for each membership.
fn memberships_in_the_log(test: &TestCluster) -> usize {
    let plan = test.cluster.layout().node(1).expect("a node");
    let address = plan.peer_address().into_bytes();
    let files = std::fs::read_dir(plan.data_path().join("log")).expect("the log").flatten();
    let logs = files.filter(|file| file.file_name().to_string_lossy().ends_with(".wal"));
    // A file may be renamed between the listing and the reading.
    let logs = logs.filter_map(|file| std::fs::read(file.path()).ok());
    logs.map(|log| log.windows(address.len()).filter(|at| *at == address).count()).sum()
}

/// A receipt from before names the cluster that ended, and is as good as it was.
fn assert_verifies(test: &TestCluster, receipt: &Receipt) {
    let path = test.dir.path().join("receipt.json");
    std::fs::write(&path, serde_json::to_vec(receipt).expect("JSON")).expect("written");
    let path = path.display().to_string();
    let output = test.strongroom("importer", &[1], &["receipt", "verify", &path]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_survivors_of_five_the_one_with_more_of_the_log_goes_on() {
    let all = [1, 2, 3, 4, 5];
    let mut test = cluster_of(&all, 5).await;
    let leader = test.leader().await;
    let mut others = all.into_iter().filter(|id| *id != leader);
    let (lesser, greater) = (others.next().expect("five"), others.next().expect("five"));
    let early = escrow(&test, &all, 1, 5).await;
    test.cluster.wait_settled(&all).await.expect("all have it");
    test.cluster.kill(lesser).await.expect("killed");
    let majority: Vec<_> = all.into_iter().filter(|id| *id != lesser).collect();
    let late = escrow(&test, &majority, 50, 5).await;
    test.cluster.wait_settled(&majority).await.expect("four have it");
    for node in majority.iter().filter(|id| **id != greater) {
        test.cluster.kill(*node).await.expect("killed");
    }

    // The lesser one sees who has more, whether that one runs or not; it must not go on without it unnoticed.
    let ahead = format!("node {greater} has more of the log");
    let plan = quorum_given_up(&test, lesser, &[&ahead]).await;
    assert_eq!((&plan["most"], &plan["quorum"]), (&greater.into(), &3.into()), "{plan}");
    let before = plan["cluster"].as_str().expect("an id").to_owned();
    assert_refused(&test, lesser, &["--confirm", &before], &ahead);
    let (unchanged, _) = audit_of(&test, lesser).await;
    assert_eq!(unchanged.to_string(), before);

    test.cluster.start(lesser).await.expect("it still starts");
    assert!(test.cluster.stop(greater).await.expect("stopped"), "by itself");
    quorum_given_up(&test, greater, &[]).await;
    let output = recover_cluster(&test, greater, &["--apply", "--confirm", &before]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let after = document(&output)["cluster"].as_str().expect("an id").to_owned();
    test.cluster.start(greater).await.expect("serves");
    test.cluster.wait_settled(&[greater]).await.expect("alone");
    assert_all_readable(&test, greater, &early).await;
    assert_all_readable(&test, greater, &late).await;

    // The other one must not begin a history of its own beside it.
    assert!(test.cluster.stop(lesser).await.expect("stopped"), "by itself");
    assert_refused(&test, lesser, &["--confirm", &before], &format!("belongs to cluster {after} now"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_directory_is_not_made_into_a_node() {
    let test = cluster_of(&[1], 2).await;
    let (code, error) = failure(&recover_cluster(&test, 2, &["--plan"]));
    assert_eq!(code, 1, "{error}");
    assert!(error["message"].as_str().expect("a message").contains("holds no data"), "{error}");
    assert!(!test.cluster.layout().node(2).expect("a node").data_path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_put_itself_aside_or_was_removed_is_nothing_to_go_on_from() {
    let mut test = cluster_of(&[1], 1).await;
    let cluster = test.client("operator", &[1]).status().await.expect("status").cluster;
    assert!(test.cluster.stop(1).await.expect("stopped"), "by itself");
    let data = test.cluster.layout().node(1).expect("a node").data_path();
    for (note, content, why) in [
        ("quarantine.json", "{", "a note of an earlier quarantine cannot be read"),
        ("removed", "node 1 was removed", "node 1 was removed"),
    ] {
        std::fs::write(data.join(note), content).expect("written");
        let why = format!("this node is not fit to go on from ({why}");
        assert_refused(&test, 1, &["--confirm", &cluster], &why);
        std::fs::remove_file(data.join(note)).expect("removed");
    }
}
