//! Changes under continuous load whose leader is killed in the middle: nothing acknowledged is lost, reads and writes go
//! on, and what was left half-done is finished or undone without help.

use std::time::Duration;

use strongroom::escrow::ids::NodeId;
use strongroom::proto::StatusResponse;
use strongroom::proto::membership_change::Change;

use crate::common::*;
use crate::steps::*;

/// Longest that requests of one kind may stand still. A dead leader is given up after 0.8 s, and an election is held within
/// 0.8 s of that; where the votes are split, as they are when several members notice at once, another follows. As much again
/// is for a machine that runs six nodes, their load and other tests on two cores.
const GAP_MAX: Duration = Duration::from_secs(4);
/// Between two writes of one client of the load.
const REST: Duration = Duration::from_millis(20);
const CLIENTS: u64 = 4;

/// Says how long requests of each kind were held up by what has just been done, and that it was no longer than an
/// election.
fn assert_went_on(load: &Load, what: &str) {
    let Each { escrows, lookups, reveals } = load.pauses();
    for (kind, Pause { longest_gap, slowest }) in
        [("escrows", escrows), ("lookups", lookups), ("reveals", reveals)]
    {
        let (gap, slow) = (longest_gap.as_millis(), slowest.as_millis());
        eprintln!("{what}: {kind}: longest gap between answers {gap} ms, slowest {slow} ms");
        assert!(longest_gap < GAP_MAX, "{what}: {kind} stood still for {longest_gap:?}");
    }
}

/// Clients that escrow, look up and reveal at `nodes`, and have begun.
async fn load_at(test: &TestCluster, nodes: &[NodeId]) -> Load {
    let load = Load::start_at(test, nodes, CLIENTS, REST).with_readers(test, nodes);
    load.progress(50).await;
    load
}

/// Starts a node that was killed, and waits until it follows again.
async fn bring_back(test: &mut TestCluster, node: NodeId, nodes: &[NodeId]) {
    test.cluster.start(node).await.expect("comes back");
    let all_back = |status: &StatusResponse| {
        status.leader.is_some() && status.nodes.iter().all(|node| node.reachable && node.applied > 0)
    };
    test.cluster.wait_for("the node's return", SOON, nodes, all_back).await.expect("back");
}

/// Ends the load, and checks that every member has everything that was acknowledged.
async fn assert_nothing_lost(test: &TestCluster, load: Load, members: &[NodeId]) {
    let (acknowledged, failed) = load.finish().await;
    assert!(acknowledged.len() > 100, "the load was a load");
    assert_eq!(failed, Failed::NONE, "of {} escrows: a client outlasts an election", acknowledged.len());
    test.cluster.wait_settled(members).await.expect("equal digests at equal index");
    for node in members {
        assert_all_held(test, *node, &acknowledged).await;
    }
    let sample: Vec<_> = acknowledged.into_iter().step_by(100).collect();
    for node in members {
        assert_all_readable(test, *node, &sample).await;
    }
    test.cluster.wait_settled(members).await.expect("equal digests after the reveals");
}

/// P1, P9, P10: 3 -> 5 -> 3.
#[tokio::test(flavor = "multi_thread")]
async fn growing_to_five_and_shrinking_to_three_with_leaders_killed_loses_nothing() {
    let mut test = three_of(5, "").await;
    let all = [1, 2, 3, 4, 5];
    removal_allowed(&test, &ALL).await;
    let load = load_at(&test, &all).await;

    for (node, step) in [(4, "catching-up"), (5, "changing")] {
        test.cluster.start(node).await.expect("starts");
        let change = add(&test, node, false);
        let killed = kill_leader_at(&mut test, &ALL, change, step).await;
        load.progress(20).await;
        bring_back(&mut test, killed, &ALL).await;
        let address = peer(&test, node);
        let result = repeat(&test, &ALL, &["add", &address]).await;
        assert!(ids(&result["after"]["voters"]).contains(&node), "{result}");
        assert_went_on(&load, &format!("adding node {node}, the leader killed at {step}"));
    }
    members_are(&test, &all, &all, &[]).await;

    // A follower goes; the leader dies after it is noted that it left. The next one takes it out without being told.
    let leader = test.leader().await;
    let gone = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let killed = kill_leader_at(&mut test, &all, remove(gone), "removed").await;
    let rest: Vec<NodeId> = all.into_iter().filter(|id| *id != gone).collect();
    let survivors: Vec<NodeId> = rest.iter().copied().filter(|id| *id != killed).collect();
    let out = |status: &StatusResponse| status.leader.is_some() && voters_of(status) == rest;
    let settled =
        test.cluster.wait_for("the removal completed by the next leader", SOON, &survivors, out).await;
    settled.expect("nobody repeated it, and it is done");
    bring_back(&mut test, killed, &survivors).await;
    assert_went_on(&load, &format!("removing node {gone}, the leader killed after it was noted"));

    // The leader itself goes: it hands over, and the one that then makes the change dies at once.
    let leader = test.cluster.wait_for("a leader", SOON, &rest, |status| status.leader.is_some()).await;
    let leader = leader.expect("a leader").leader.expect("just seen");
    let killed = kill_leader_at(&mut test, &rest, remove(leader), "planned").await;
    assert_ne!(killed, leader, "the leader that is to go has handed over");
    let last: Vec<NodeId> = rest.iter().copied().filter(|id| *id != leader).collect();
    load.progress(20).await;
    bring_back(&mut test, killed, &last).await;
    repeat(&test, &last, &["remove", &leader.to_string()]).await;
    members_are(&test, &last, &last, &[]).await;
    assert_went_on(&load, &format!("removing node {leader}, which led, its successor killed"));

    assert_nothing_lost(&test, load, &last).await;
}

/// P1, P9, P10: a member exchanged for another, the leader killed before and after the point of no return.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_whose_leader_dies_is_finished_or_undone_without_help() {
    let mut test = three_of(7, "").await;
    let all = [1, 2, 3, 4, 5, 6, 7];
    removal_allowed(&test, &ALL).await;
    let load = load_at(&test, &all).await;

    let mut voters = ALL.to_vec();
    for (new, step) in [(4, "planned"), (5, "catching-up"), (6, "changing"), (7, "removed")] {
        test.cluster.start(new).await.expect("starts");
        let leader = test.cluster.wait_for("a leader", SOON, &voters, |status| status.leader.is_some()).await;
        let leader = leader.expect("a leader").leader.expect("just seen");
        let old = voters.iter().copied().find(|id| *id != leader).expect("three voters");
        let before = voters.clone();
        let mut after: Vec<NodeId> = before.iter().copied().filter(|id| *id != old).chain([new]).collect();
        after.sort_unstable();

        let change = replace(&test, old, new);
        let killed = kill_leader_at(&mut test, &before, change, step).await;
        // The union of both halves is neither: who sees one of these sees no joint configuration.
        let survivors: Vec<NodeId> =
            before.iter().copied().filter(|id| ![killed, old].contains(id)).collect();
        let one_of_both = |status: &StatusResponse| {
            let voters = voters_of(status);
            status.leader.is_some() && (voters == before || voters == after)
        };
        let settled =
            test.cluster.wait_for("a configuration that is not joint", SOON, &survivors, one_of_both);
        let settled = voters_of(&settled.await.expect("settled by the next leader"));
        eprintln!("replacing node {old} by node {new}, the leader killed at {step}: voters {settled:?}");
        if step == "removed" {
            assert_eq!(settled, after, "what was decided is carried through");
        }
        load.progress(20).await;
        let back: Vec<NodeId> = after.iter().copied().filter(|id| *id != killed).collect();
        bring_back(&mut test, killed, &back).await;
        let (old, address) = (old.to_string(), peer(&test, new));
        repeat(&test, &after, &["replace", &old, &address]).await;
        members_are(&test, &after, &after, &[]).await;
        assert_went_on(&load, &format!("replacing node {old} by node {new}, the leader killed at {step}"));
        voters = after;
    }
    assert_nothing_lost(&test, load, &voters).await;
}

/// The next leader has its hands full when the command comes again; once is enough all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_add_has_to_be_repeated_only_once() {
    let mut test = three_of(5, "").await;
    let all = [1, 2, 3, 4, 5];
    removal_allowed(&test, &ALL).await;
    let load = load_at(&test, &all).await;
    for (node, step) in [(4, "admitted"), (5, "changing")] {
        test.cluster.start(node).await.expect("starts");
        let members: Vec<NodeId> = (1..node).collect();
        let change = add(&test, node, false);
        let killed = kill_leader_at(&mut test, &members, change, step).await;
        let result = done(&member(&test, &members, &["add", &peer(&test, node)]).await);
        assert!(ids(&result["after"]["voters"]).contains(&node), "{result}");
        bring_back(&mut test, killed, &members).await;
    }
    members_are(&test, &all, &all, &[]).await;
    assert_nothing_lost(&test, load, &all).await;
}

/// P1, P9, P10: the steps of the smaller changes. What came of each is the same, whether the dead leader, the next one or
/// the operator's second attempt brought it about.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_leader_dies_at_any_step_comes_through_when_it_is_repeated() {
    let mut test = three_of(5, "").await;
    let all = [1, 2, 3, 4, 5];
    removal_allowed(&test, &ALL).await;
    for node in [4, 5] {
        test.cluster.start(node).await.expect("starts");
    }
    let load = load_at(&test, &all).await;

    let (four, five) = (peer(&test, 4), peer(&test, 5));
    let with_four = [1, 2, 3, 4];
    // Whom to ask, what for, the step, and what it comes to: the command that says the same, voters and learners.
    type Case<'a> = (&'a [NodeId], Change, &'a str, &'a [&'a str], &'a [NodeId], &'a [NodeId]);
    let cases: [Case<'_>; 7] = [
        (&ALL, add(&test, 4, false), "planned", &["add", &four], &with_four, &[]),
        (&with_four, demote(4), "changing", &["demote", "4"], &ALL, &[4]),
        (&with_four, promote(4), "changing", &["promote", "4"], &with_four, &[]),
        (&with_four, remove(4), "planned", &["remove", "4"], &ALL, &[]),
        (&ALL, add(&test, 5, true), "admitted", &["add", &five, "--learner"], &ALL, &[5]),
        (&ALL, promote(5), "planned", &["promote", "5"], &[1, 2, 3, 5], &[]),
        (&[1, 2, 3, 5], demote(5), "planned", &["demote", "5"], &ALL, &[5]),
    ];
    for (nodes, change, step, again, voters, learners) in cases {
        let what = format!("{again:?}, the leader killed at {step}");
        let killed = kill_leader_at(&mut test, nodes, change, step).await;
        load.progress(20).await;
        bring_back(&mut test, killed, &ALL).await;
        repeat(&test, &ALL, again).await;
        members_are(&test, &ALL, voters, learners).await;
        assert_went_on(&load, &what);
    }
    // The learner is a member as any other.
    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    let members = [1, 2, 3, 5];
    test.cluster.wait_agreed(&members).await.expect("equal digests at equal index");
    for node in members {
        assert_all_held(&test, node, &acknowledged).await;
    }
}

/// P9: changes that nothing goes wrong with, 3 -> 5 -> 3, hold nothing up and fail no request.
#[tokio::test(flavor = "multi_thread")]
async fn changes_without_a_failure_fail_no_request() {
    let mut test = three_of(6, "").await;
    let all = [1, 2, 3, 4, 5, 6];
    removal_allowed(&test, &ALL).await;
    let load = load_at(&test, &all).await;
    assert_went_on(&load, "no change");
    for node in [4, 5, 6] {
        test.cluster.start(node).await.expect("starts");
    }

    let leader = test.leader().await;
    let follower = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let changes = [
        ("add as a learner", add(&test, 4, true)),
        ("promote", promote(4)),
        ("add", add(&test, 5, false)),
        ("demote", demote(4)),
        ("promote again", promote(4)),
        ("transfer", transfer(follower)),
        ("replace", replace(&test, 4, 6)),
        ("remove one", remove(5)),
        ("remove another", remove(6)),
    ];
    for (what, change) in changes {
        make(&test, &ALL, change).await;
        load.progress(20).await;
        assert_went_on(&load, what);
    }
    members_are(&test, &ALL, &ALL, &[]).await;

    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    for node in ALL {
        assert_all_held(&test, node, &acknowledged).await;
    }
}
