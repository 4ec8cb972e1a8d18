//! What is refused before anything starts, by real processes: exit code, reason, and what to do instead.

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::MembershipChange;

use crate::common::*;
use crate::steps::*;

/// Members and the index applied everywhere: what must not change.
async fn standing(test: &TestCluster, nodes: &[NodeId]) -> (Vec<NodeId>, Vec<NodeId>, u64) {
    let status = test.cluster.wait_agreed(nodes).await.expect("agreement");
    (voters_of(&status), learners_of(&status), status.nodes[0].applied)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_would_lose_the_quorum_is_refused_and_says_what_to_do() {
    let mut test = three_nodes().await;
    removal_allowed(&test, &ALL).await;
    let leader = test.leader().await;
    let mut others = ALL.into_iter().filter(|id| *id != leader);
    let (dead, alive) = (others.next().expect("three"), others.next().expect("three").to_string());
    test.cluster.kill(dead).await.expect("killed");
    let up: Vec<NodeId> = ALL.into_iter().filter(|id| *id != dead).collect();

    let why = ["quorum", &format!("node {dead} cannot be reached"), "bring back", "member replace"];
    for arguments in [
        &["remove", &alive, "--any-voter-count"][..],
        &["remove", &alive, "--any-voter-count", "--dry-run"],
        &["demote", &alive, "--any-voter-count"],
    ] {
        refused(&member(&test, &up, arguments).await, 5, &why);
    }
    let status = test.client("operator", &up).status().await.expect("a status");
    assert_eq!(voters_of(&status), ALL, "nothing was begun");
    escrow(&test, &up, 1, 5).await;

    // The dead one may go: who is left is a majority of before and after.
    let result = done(&member(&test, &up, &["remove", &dead.to_string(), "--any-voter-count"]).await);
    assert_eq!(ids(&result["after"]["voters"]), up);
    assert_eq!(result["after"]["failure_tolerance"], 0);
    escrow(&test, &up, 10, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_to_five_voters_unless_another_number_is_said_to_be_meant() {
    let mut test = three_of(6, "").await;
    removal_allowed(&test, &ALL).await;
    let fewer = ["fewer than 3", "--any-voter-count", "member replace"];
    refused(&member(&test, &ALL, &["remove", "3"]).await, 5, &fewer);
    refused(&member(&test, &ALL, &["demote", "3"]).await, 5, &fewer);
    refused(&member(&test, &ALL, &["remove", "3", "--dry-run"]).await, 5, &fewer);
    let planned = done(&member(&test, &ALL, &["remove", "3", "--dry-run", "--any-voter-count"]).await);
    assert_eq!(planned["step"], "planned", "{planned}");
    assert_eq!((ids(&planned["after"]["voters"]), &planned["dry_run"]), (vec![1, 2], &true.into()));

    for node in [4, 5, 6] {
        test.cluster.start(node).await.expect("starts");
    }
    let result = done(&member(&test, &ALL, &["add", &peer(&test, 4)]).await);
    assert!(result["warnings"].to_string().contains("odd"), "an even number of voters: {result}");
    let result = done(&member(&test, &ALL, &["add", &peer(&test, 5)]).await);
    assert_eq!(result["warnings"].as_array().map(Vec::len), Some(0), "{result}");
    assert_eq!((&result["after"]["quorum"], &result["after"]["failure_tolerance"]), (&3.into(), &2.into()));

    let sixth = peer(&test, 6);
    let more = ["more than 5", "--learner", "--any-voter-count"];
    refused(&member(&test, &ALL, &["add", &sixth]).await, 5, &more);
    members_are(&test, &ALL, &[1, 2, 3, 4, 5], &[]).await;
    let result = done(&member(&test, &ALL, &["add", &sixth, "--any-voter-count"]).await);
    assert_eq!(ids(&result["after"]["voters"]), [1, 2, 3, 4, 5, 6]);
    test.cluster.wait_settled(&[1, 2, 3, 4, 5, 6]).await.expect("equal digests");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found_and_who_may_not_is_denied_and_a_dry_run_changes_nothing() {
    let mut test = three_of(4, "").await;
    removal_allowed(&test, &ALL).await;
    test.cluster.start(4).await.expect("starts");
    let newcomer = peer(&test, 4);
    let before = standing(&test, &ALL).await;

    for arguments in [
        &["promote", "99"][..],
        &["demote", "99"],
        &["remove", "99"],
        &["replace", "99", &newcomer],
        &["replace", "1", "99"],
        &["transfer", "99"],
    ] {
        refused(&member(&test, &ALL, arguments).await, 3, &["node 99", "member list"]);
    }
    for arguments in [&["add", "nowhere"][..], &["remove", "three"], &["replace", "1", "not an address"]] {
        refused(&member(&test, &ALL, arguments).await, 2, &[]);
    }
    for profile in ["helpdesk-advanced", "auditor", "importer", "officer"] {
        let output = member_as(&test, profile, &ALL, &["add", &newcomer]).await;
        refused(&output, 4, &[&format!("role {profile}")]);
        refused(&member_as(&test, profile, &ALL, &["transfer", "--dry-run"]).await, 4, &[]);
    }
    let nobody = "127.0.0.1:1";
    refused(&member(&test, &ALL, &["add", nobody]).await, 75, &[nobody, "cannot be reached", "start it"]);

    for (arguments, voters) in [
        (&["add", &newcomer, "--dry-run"][..], &[1, 2, 3, 4][..]),
        (&["add", &newcomer, "--learner", "--dry-run"], &ALL),
        (&["replace", "1", &newcomer, "--dry-run"], &[2, 3, 4]),
        (&["remove", "2", "--any-voter-count", "--dry-run"], &[1, 3]),
        (&["demote", "3", "--any-voter-count", "--dry-run"], &[1, 2]),
        (&["transfer", "--dry-run"], &ALL),
    ] {
        let planned = done(&member(&test, &ALL, arguments).await);
        assert_eq!((&planned["step"], &planned["dry_run"]), (&"planned".into(), &true.into()), "{planned}");
        assert_eq!(ids(&planned["before"]["voters"]), ALL, "{planned}");
        assert_eq!(ids(&planned["after"]["voters"]), voters, "{planned}");
        for (when, count) in [("before", ALL.len()), ("after", voters.len())] {
            let members = &planned[when];
            assert_eq!(members["quorum"], count / 2 + 1, "{planned}");
            assert_eq!(members["failure_tolerance"], count - (count / 2 + 1), "{planned}");
        }
    }
    assert_eq!(standing(&test, &ALL).await, before, "no member and no entry of the log more");
    let status = test.client("operator", &[4]).status().await.expect("it answers for itself");
    assert_eq!(status.cluster, "", "the newcomer was not touched");
}

/// An id names one node on one disk, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_never_used_twice_whatever_disk_it_comes_back_with() {
    let mut test = three_of(4, "").await;
    removal_allowed(&test, &ALL).await;
    test.cluster.start(4).await.expect("starts");
    let address = peer(&test, 4);
    done(&member(&test, &ALL, &["add", &address]).await);
    done(&member(&test, &ALL, &["remove", "4"]).await);
    let twice = ["node 4", "never used twice", "id never used before", "empty data directory"];
    refused(&member(&test, &ALL, &["add", &address]).await, 5, &twice);
    refused(&member(&test, &ALL, &["add", &address, "--learner", "--dry-run"]).await, 5, &twice);
    refused(&member(&test, &ALL, &["replace", "1", &address]).await, 5, &twice);

    // With a new disk it is as little welcome.
    wipe(&mut test, 4).await;
    refused(&member(&test, &ALL, &["add", &address]).await, 5, &twice);

    // A member whose disk was wiped is told the same, and stays the member it was.
    let leader = test.leader().await;
    let wiped = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    wipe(&mut test, wiped).await;
    let up: Vec<NodeId> = ALL.into_iter().filter(|id| *id != wiped).collect();
    let address = peer(&test, wiped);
    let words = [&format!("node id {wiped}") as &str, "another data directory", "never used twice"];
    refused(&member(&test, &up, &["add", &address]).await, 5, &words);
    let status = test.client("operator", &up).status().await.expect("a status");
    assert_eq!(voters_of(&status), ALL);
    escrow(&test, &up, 1, 5).await;
}

/// Kills a node, empties its disk and starts it again.
async fn wipe(test: &mut TestCluster, node: NodeId) {
    test.cluster.kill(node).await.expect("killed");
    let data = test.cluster.layout().node(node).expect("a node").data_path();
    fs::remove_dir_all(data).expect("its disk is replaced");
    test.cluster.start(node).await.expect("the process runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_not_taken_in() {
    let mut test = three_of(4, "").await;
    let plan = test.cluster.layout().node(4).expect("a node").clone();
    let mut init = Command::new(program());
    init.args(["init", "--config"]).arg(plan.config_path());
    init.arg("--offline-identity-out").arg(test.dir.path().join("other-identity.txt"));
    let output = run(init, "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    test.cluster.start(4).await.expect("starts");
    let alone = |status: &strongroom::proto::StatusResponse| status.leader == Some(4);
    test.cluster.wait_for("the other cluster", SOON, &[4], alone).await.expect("it leads itself");

    let why = ["node 4", "another cluster", "empty data directory"];
    refused(&member(&test, &ALL, &["add", &plan.peer_address()]).await, 5, &why);
    refused(&member(&test, &ALL, &["add", &plan.peer_address(), "--dry-run"]).await, 5, &why);
    members_are(&test, &ALL, &ALL, &[]).await;
    let theirs = test.client("operator", &[4]).status().await.expect("it answers for itself");
    assert_eq!(voters_of(&theirs), [4], "nor was the other one touched");
}

/// A newcomer that is stopped while it is to catch up holds its own change up, and any other is told so.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_change_while_one_is_under_way_is_refused() {
    let mut test = three_of(6, "").await;
    test.cluster.start(4).await.expect("starts");
    // A newcomer stopped too late has caught up already; then the next one tries.
    for newcomer in [5, 6] {
        test.cluster.start(newcomer).await.expect("starts");
        let change =
            MembershipChange { change: Some(add(&test, newcomer, false)), ..MembershipChange::default() };
        let mut steps = test.client("operator", &ALL).change_membership(&change).await.expect("begun");
        let first = steps.next().await.expect("possible").expect("a step");
        assert_eq!(first.step, "planned");
        signal(&test, newcomer, Signal::STOP);
        let mut step = first.step;
        while step != "catching-up" && step != "changing" {
            step = steps.next().await.expect("it goes on").expect("a step").step;
        }
        if step == "changing" {
            signal(&test, newcomer, Signal::CONT);
            while steps.next().await.is_ok_and(|step| step.is_some()) {}
            continue;
        }
        let address = peer(&test, 4);
        let busy = ["another membership change is under way", "try again when it is done"];
        refused(&member(&test, &ALL, &["add", &address]).await, 5, &busy);
        refused(&member(&test, &ALL, &["transfer"]).await, 5, &busy);
        signal(&test, newcomer, Signal::CONT);
        let mut last = step;
        while let Some(step) = steps.next().await.expect("it goes on") {
            last = step.step;
        }
        assert_eq!(last, "done", "the first change was not disturbed");
        done(&member(&test, &ALL, &["add", &address]).await);
        return;
    }
    panic!("no newcomer could be stopped before it had caught up");
}
