//! The promises that are about processes, kept by real ones: the built binary, real sockets, real TLS, real kill -9.

mod common;
#[path = "common/rows.rs"]
mod rows;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::*;
use rustix::process::{Pid, Signal, kill_process};
use strongroom::escrow::apply::apply;
use strongroom::escrow::ids::{NodeId, Role};
use strongroom::escrow::memory::Memory;
use strongroom::proto::escrow_service_client::EscrowServiceClient;
use strongroom::proto::recovery_service_client::RecoveryServiceClient;
use strongroom::proto::{Consistency, EscrowRequest, FindRequest, NodeStatus, RecoverRequest};
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::store::directory::DataDir;
use strongroom::store::format::{self, Payload};
use strongroom::tls::ca::{Authority, FileNames, IssueRequest};
use uuid::Uuid;

fn find_machine(machine: &str, consistency: Consistency) -> FindRequest {
    FindRequest { machine: machine.to_owned(), consistency: consistency.into(), ..FindRequest::default() }
}

/// Waits until `node` has noticed that no quorum is in contact.
async fn quorum_lost(test: &TestCluster, node: NodeId) {
    let client = test.client("auditor", &[node]);
    let deadline = Instant::now() + SOON;
    loop {
        let found = client.find(&find_machine("PC-00001", Consistency::Local)).await.expect("a local read");
        if found.freshness.expect("said").quorum_age_ms.is_none_or(|age| age > 1_000) {
            return;
        }
        assert!(Instant::now() < deadline, "the loss of the quorum is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn signal(cluster: &TestCluster, node: NodeId, signal: Signal) {
    let pid = cluster.cluster.pid(node).expect("the node runs");
    let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero");
    kill_process(pid, signal).expect("the node can be signalled");
}

/// P1, P7: kill -9 of the leader, then of a follower, while keys come in.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_keys_survive_kill_9_of_leader_and_follower_under_load() {
    let mut test = three_nodes().await;
    let load = Load::start(&test, 6);
    load.progress(60).await;

    let leader = test.leader().await;
    test.cluster.kill(leader).await.expect("killed");
    load.progress(60).await;
    test.cluster.start(leader).await.expect("comes back");
    // Under load applied indexes differ from moment to moment; that it votes and follows again is enough here.
    let back = test
        .cluster
        .wait_for("the node's return", SOON, &ALL, |status| status.nodes.iter().all(|node| node.reachable));
    back.await.expect("all reachable");

    let leader = test.leader().await;
    let follower = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    test.cluster.kill(follower).await.expect("killed");
    load.progress(60).await;
    test.cluster.start(follower).await.expect("comes back");

    let (acknowledged, _) = load.finish().await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests at equal index");
    for node in ALL {
        assert_all_readable(&test, node, &acknowledged).await;
    }
    test.cluster.wait_settled(&ALL).await.expect("equal digests after the reveals");
}

/// P1: every process killed at once, all started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_killed_whole_and_restarted_has_every_acknowledged_key() {
    let mut test = three_nodes().await;
    let load = Load::start(&test, 6);
    load.progress(100).await;
    for node in ALL {
        signal(&test, node, Signal::KILL);
    }
    for node in ALL {
        test.cluster.kill(node).await.expect("reaped");
    }
    for node in ALL {
        test.cluster.start(node).await.expect("comes back");
    }
    let (acknowledged, _) = load.finish().await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    for node in ALL {
        assert_all_readable(&test, node, &acknowledged).await;
    }
}

/// P2: two of three down.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_an_escrow_ends_with_75_within_its_deadline_and_stores_nothing() {
    let mut test = three_nodes().await;
    let survivor = test.leader().await;
    let known = deposit(1);
    test.client("importer", &ALL).escrow(&known).await.expect("kept");
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in ALL.into_iter().filter(|id| *id != survivor) {
        test.cluster.kill(node).await.expect("killed");
    }
    // What a leader took in the instant before it noticed may still be committed after the heal, as in any Raft: the
    // promise is about a cluster that is known to be without a quorum.
    quorum_lost(&test, survivor).await;

    let began = Instant::now();
    let secret = String::from_utf8(deposit(2).secret.expose().to_vec()).expect("digits");
    let arguments = ["escrow", "--machine", "PC-00002", "--volume", "C:", "--kind", "bitlocker-password"];
    let output = test.strongroom_with_input("importer", &[survivor], &arguments, &secret);
    let (code, error) = failure(&output);
    assert_eq!(code, 75, "{error}");
    assert_eq!(error["code"], "unavailable");
    assert!(began.elapsed() < Duration::from_secs(15), "bounded: {:?}", began.elapsed());

    // What it has, it still shows, and does not call it a quorum's.
    let client = test.client("helpdesk", &[survivor]);
    let found =
        client.find(&find_machine("PC-00002", Consistency::Local)).await.expect("a local read needs nobody");
    assert!(found.keys.is_empty(), "nothing was stored");
    let found = client.find(&find_machine("PC-00001", Consistency::Local)).await.expect("a local read");
    assert_eq!(found.keys.len(), 1);
    assert_eq!(found.freshness.expect("said").consistency, "local");
    let refused = client.find(&find_machine("PC-00001", Consistency::Quorum)).await;
    assert!(refused.is_err(), "no quorum read without a quorum");

    // And after the heal the refused escrow is still not there.
    for node in ALL.into_iter().filter(|id| *id != survivor) {
        test.cluster.start(node).await.expect("comes back");
    }
    test.cluster.wait_settled(&ALL).await.expect("healed");
    let client = test.client("helpdesk", &ALL);
    let found = client.find(&find_machine("PC-00002", Consistency::Quorum)).await.expect("healed");
    assert!(found.keys.is_empty(), "nothing was stored");
}

/// P1, P9: a node that was away while the log it needs was purged.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_down_past_the_purge_catches_up_by_snapshot() {
    let mut test = three_nodes_with("[raft]\nsnapshot_log_bytes = 1048576\nkeep_entries = 10\n").await;
    let leader = test.leader().await;
    let away = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let before = deposit(900_000);
    test.client("importer", &ALL).escrow(&before).await.expect("kept");
    let status = test.cluster.wait_settled(&ALL).await.expect("settled");
    let had = status.nodes.iter().find(|node| node.id == away).expect("a member").applied;
    test.cluster.kill(away).await.expect("killed");

    let load = Load::start(&test, 16);
    let purged_past = |status: &strongroom::proto::StatusResponse| {
        status.nodes.iter().filter(|node| node.id != away).all(|node| node.purged > had)
    };
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != away).collect();
    let purged = test.cluster.wait_for("the purge", Duration::from_secs(90), &others, purged_past).await;
    let (acknowledged, failed) = load.finish().await;
    purged.expect("the log is purged past what the absent node has");
    assert_eq!(failed, Failed::NONE, "a snapshot and a purge fail no request");

    test.cluster.start(away).await.expect("comes back");
    let status = test.cluster.wait_settled(&ALL).await.expect("caught up with an equal digest");
    let caught_up = status.nodes.iter().find(|node| node.id == away).expect("a member");
    assert!(caught_up.snapshot > had, "it came by snapshot");
    let sample: Vec<_> = acknowledged.into_iter().step_by(50).collect();
    assert_all_readable(&test, away, &sample).await;
}

/// P3: a follower takes an escrow and shows its own write, whichever node leads.
#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_any_request_and_a_quorum_read_anywhere_sees_what_was_acknowledged() {
    let test = three_nodes().await;
    for (n, node) in (100..).zip(ALL) {
        let receipt = test.client("importer", &[node]).escrow(&deposit(n)).await.expect("any node takes it");
        assert!(!receipt.already_escrowed);
        for reader in ALL {
            let request = find_machine(&format!("PC-{n:05}"), Consistency::Quorum);
            let found = test.client("auditor", &[reader]).find(&request).await.expect("a quorum read");
            assert_eq!(found.keys.len(), 1, "node {reader} sees what node {node} acknowledged");
            let freshness = found.freshness.expect("said");
            assert_eq!((freshness.consistency.as_str(), freshness.node), ("quorum", reader));
            assert!(freshness.applied >= receipt.index);
        }
    }
}

/// P2: the same request again is the same record; another secret under the same id is refused (P8).
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_makes_no_second_record_and_nothing_acknowledged_is_overwritten() {
    let test = three_nodes().await;
    let importer = test.client("importer", &ALL);
    let first = importer.escrow(&deposit(7)).await.expect("kept");
    let again = test.client("importer", &[2]).escrow(&deposit(7)).await.expect("the same key");
    assert!(again.already_escrowed);
    assert_eq!((first.index, &first.key_id), (again.index, &again.key_id));

    let mut other = deposit(8);
    other.key_id = deposit(7).key_id;
    other.machine = deposit(7).machine;
    assert!(importer.escrow(&other).await.is_err(), "another secret under the id of a stored key");
    let mut nameless = deposit(9);
    nameless.key_id = None;
    let named = importer.escrow(&nameless).await.expect("kept");
    let repeated = importer.escrow(&nameless).await.expect("the same secret is the same key");
    assert_eq!(named.key_id, repeated.key_id);

    let found = importer_view(&test).await;
    assert_eq!(found, 1, "one record of PC-00007");
    let recovered = test
        .client("helpdesk-advanced", &ALL)
        .recover(deposit(7).key_id.expect("given"), "locked out", None)
        .await;
    assert!(same(&recovered.expect("kept").secret, &deposit(7).secret));
}

async fn importer_view(test: &TestCluster) -> usize {
    let found = test.client("auditor", &ALL).find(&find_machine("PC-00007", Consistency::Quorum)).await;
    found.expect("found").keys.len()
}

/// A paused leader that was replaced must not call what it has a quorum's (etcd #20418, #16666).
#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_never_answers_a_quorum_read_with_old_state() {
    let test = three_nodes().await;
    let old = test.leader().await;
    signal(&test, old, Signal::STOP);
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != old).collect();
    let elected = test
        .cluster
        .wait_for("another leader", SOON, &others, |status| status.leader.is_some_and(|leader| leader != old))
        .await;
    let receipt = test.client("importer", &others).escrow(&deposit(500)).await;
    signal(&test, old, Signal::CONT);
    elected.expect("the others elect");
    let receipt = receipt.expect("the others write");

    let answer = test.client("auditor", &[old]).find(&find_machine("PC-00500", Consistency::Quorum)).await;
    if let Ok(found) = answer {
        assert_eq!(found.keys.len(), 1, "an answer labelled quorum has everything acknowledged before");
        assert!(found.freshness.expect("said").applied >= receipt.index);
    }
    test.cluster.wait_settled(&ALL).await.expect("it joins the others again");
}

/// A stopping leader hands over first, so that nobody's request fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_hands_over_and_no_request_fails() {
    let mut test = three_nodes().await;
    let load = Load::start(&test, 6).with_readers(&test, &ALL);
    load.progress(30).await;
    let leader = test.leader().await;
    assert!(test.cluster.stop(leader).await.expect("stopped"), "it ends by itself, with success");
    load.progress(60).await;
    test.cluster.start(leader).await.expect("comes back");
    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
}

/// A wiped voter that came back under its id could vote twice: the others refuse it, and go on without it (design §10).
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_voter_that_comes_back_under_its_id_is_refused() {
    let mut test = three_nodes().await;
    test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
    let leader = test.leader().await;
    let wiped = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    test.cluster.kill(wiped).await.expect("killed");
    let plan = test.cluster.layout().node(wiped).expect("a node").clone();
    std::fs::remove_dir_all(plan.data_path()).expect("its disk is replaced");
    test.cluster.start(wiped).await.expect("the process runs");

    // It is asked to follow all the time; that it still has nothing after the others went on is the refusal.
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != wiped).collect();
    for n in 2..20 {
        test.client("importer", &others).escrow(&deposit(n)).await.expect("two of three go on");
    }
    let client = test.client("operator", &[wiped]);
    let status = client.status().await.expect("it answers for itself");
    assert_eq!(status.cluster, "", "it belongs to no cluster");
    for (node, whose) in [(leader, "the leader's log"), (wiped, "its own log")] {
        assert!(test.log(node).contains("its disk was replaced or wiped"), "{whose} says why");
    }

    let add = test.strongroom("operator", &others, &["member", "add", &plan.peer_address()]);
    let (code, error) = failure(&add);
    assert_eq!(code, 5, "{error}");
    assert!(error["message"].as_str().expect("a message").contains("never used twice"), "{error}");
}

/// Where addresses belong to a place, such as a pod's, a node whose disk is lost is replaced by one with another id at the
/// same addresses, while the old certificate is still in nobody's revocation list.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_replaced_by_one_with_a_new_id_at_the_same_addresses() {
    let mut test = three_nodes().await;
    let deposited = deposit(1);
    let receipt = test.client("importer", &ALL).escrow(&deposited).await.expect("kept");
    let leader = test.leader().await;
    let lost = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    test.cluster.kill(lost).await.expect("killed");
    let plan = test.cluster.layout().node(lost).expect("a node").clone();
    let config = std::fs::read_to_string(plan.config_path()).expect("readable");
    let (old, new) = (format!("node_id = {lost}\n"), "node_id = 4\n");
    assert!(config.contains(&old), "{config}");
    std::fs::write(plan.config_path(), config.replace(&old, new)).expect("written");
    let authority = Authority::open(&test.cluster.layout().authority()).expect("the CA");
    let issued = authority.issue(IssueRequest::new(Role::Node, "4")).expect("issued");
    authority.replace(&plan.dir, &issued, FileNames::NODE).expect("written");

    // The volume turns up after all: it is another node's.
    let mut server = Command::new(program());
    server.args(["server", "--check", "--config"]).arg(plan.config_path());
    let output = run(server, "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("belongs to node {lost} of cluster")), "{said}");

    std::fs::remove_dir_all(plan.data_path()).expect("the disk is lost");
    test.cluster.start(lost).await.expect("the process runs");
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != lost).collect();
    let replace = ["member", "replace", &lost.to_string(), &plan.peer_address()];
    let output = test.strongroom("operator", &others, &replace);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let deadline = Instant::now() + SOON;
    loop {
        let status = test.client("operator", &others).status().await.expect("answered");
        let mut members: Vec<_> = status.nodes.iter().map(|node| node.id).collect();
        members.sort_unstable();
        assert_eq!(members, [others[0], others[1], 4]);
        let well = |node: &NodeStatus| node.voter && node.reachable && node.digest == status.nodes[0].digest;
        if status.nodes.iter().all(well) {
            break;
        }
        assert!(Instant::now() < deadline, "the new node agrees with the others: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_all_readable(&test, lost, &[(deposited, receipt)]).await;
}

/// A rolling restart under load: each node hands over, drains and comes back, and no request fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_restarted_one_by_one_keeps_serving_and_agrees() {
    let mut test = three_nodes().await;
    let load = Load::start(&test, 3).with_readers(&test, &ALL);
    for node in ALL {
        load.progress(20).await;
        assert!(test.cluster.stop(node).await.expect("stopped"), "it ends by itself");
        test.cluster.start(node).await.expect("comes back");
        let all_back = |status: &strongroom::proto::StatusResponse| {
            status.leader.is_some() && status.nodes.iter().all(|node| node.reachable && node.applied > 0)
        };
        test.cluster.wait_for("the node's return", SOON, &ALL, all_back).await.expect("back");
    }
    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    for node in ALL {
        assert_all_readable(&test, node, &acknowledged).await;
    }
}

/// Followers proxy, never redirect: whoever speaks to one node only, and never tries again, has its write done and its
/// answer from that node. A client that follows a redirect may make a lookup of a write (seen with Crypt and curl).
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_does_what_it_is_asked_itself_and_sends_nobody_elsewhere() {
    let test = three_nodes().await;
    for (n, node) in (1..).zip(ALL) {
        let importer = test.channel("importer", node).await;
        let kept = EscrowServiceClient::new(importer).escrow(escrow_request(n)).await;
        let receipt = kept.expect("any node takes it").into_inner().receipt.expect("a receipt");
        assert_eq!((receipt.key_id, receipt.already_escrowed), (key(n).to_string(), false));

        let desk = test.channel("helpdesk-advanced", node).await;
        let request = RecoverRequest {
            request_id: Uuid::new_v4().to_string(),
            key_id: key(n).to_string(),
            reason: "locked out".to_owned(),
            ..RecoverRequest::default()
        };
        let shown = RecoveryServiceClient::new(desk).recover(request).await.expect("shown").into_inner();
        assert!(deposit(n).secret.expose() == &shown.secret[..]);
        let freshness = shown.freshness.expect("said");
        assert_eq!((freshness.node, freshness.consistency.as_str()), (node, "quorum"), "by the node asked");
    }
}

fn escrow_request(n: u64) -> EscrowRequest {
    let deposit = deposit(n);
    EscrowRequest {
        request_id: Uuid::new_v4().to_string(),
        machine: deposit.machine.to_string(),
        volume: deposit.volume.to_string(),
        kind: deposit.kind.to_string(),
        key_id: key(n).to_string(),
        secret: deposit.secret.expose().to_vec(),
        ..EscrowRequest::default()
    }
}

/// etcd 3.5.0 to 3.5.2 kept how far it had applied apart from what it had applied. Here a node is killed with kill -9 under
/// load, and what is on its disk is, row by row, a replay of its log up to where its base says that it stands.
#[tokio::test(flavor = "multi_thread")]
async fn the_base_of_a_node_killed_under_load_is_a_replay_of_its_log() {
    let mut test = three_nodes().await;
    let load = Load::start(&test, 4).with_readers(&test, &ALL);
    let node = test.leader().await;
    for round in 1..=3 {
        load.progress(60).await;
        test.cluster.kill(node).await.expect("killed");
        let data = test.cluster.layout().node(node).expect("a node").data_path();
        let stands_at = assert_base_is_a_replay(&data).await;
        assert!(stands_at > 0, "round {round}: the base was written to");
        test.cluster.start(node).await.expect("comes back");
    }
    let (acknowledged, _) = load.finish().await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert_all_held(&test, node, &acknowledged).await;
}

/// Opens the storage of a stopped node up to where consensus would take over. Answers where its base stands.
async fn assert_base_is_a_replay(data: &Path) -> u64 {
    let data = DataDir::open_or_create(data).expect("nobody has it open");
    let storage = Storage::open(&data, StorageOptions::default()).await.expect("it opens");
    let applied = storage.machine.applied();
    let mut replay = Memory::new();
    let entries = storage.log.read(0, applied.index() + 1, usize::MAX).await.expect("read");
    assert_eq!(entries.len() as u64, applied.index() + 1, "nothing of the log is purged");
    for (position, record) in &entries {
        if let Payload::Commands(commands) = Payload::decode(record).expect("decodes") {
            for bytes in commands {
                apply(&mut replay, *position, &format::decode(bytes).expect("decodes")).expect("in memory");
            }
        }
    }
    let view = storage.machine.view().expect("it is open");
    assert_eq!(rows::differ(&view, &replay, applied.rows), None);
    applied.index()
}
