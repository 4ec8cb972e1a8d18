//! Changes under continuous load whose leader is killed in the middle: nothing acknowledged is lost, writes go on, and
//! what was left half-done is finished or undone without help.

use std::time::Duration;

use strongroom::escrow::ids::NodeId;
use strongroom::proto::StatusResponse;

use crate::common::*;
use crate::steps::*;

/// Longest that writes may stand still. An election takes less than two seconds; the rest is for a machine that runs
/// five nodes, their load and other tests on two cores.
const GAP_MAX: Duration = Duration::from_secs(5);
/// Between two writes of one client of the load.
const REST: Duration = Duration::from_millis(20);
const CLIENTS: u64 = 4;

/// Says how long writes were held up by what has just been done, and that it was no longer than an election.
fn assert_writes_went_on(load: &Load, what: &str) {
    let Pauses { longest_gap, slowest_write, .. } = load.pauses();
    eprintln!(
        "{what}: longest gap between acknowledgements {} ms, slowest write {} ms",
        longest_gap.as_millis(),
        slowest_write.as_millis()
    );
    assert!(longest_gap < GAP_MAX, "{what}: writes stood still for {longest_gap:?}");
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
    eprintln!("{} keys acknowledged, {failed} requests failed", acknowledged.len());
    assert!(acknowledged.len() > 100, "the load was a load");
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
    let load = Load::start_at(&test, &all, CLIENTS, REST);
    load.progress(50).await;

    for (node, step) in [(4, "catching-up"), (5, "changing")] {
        test.cluster.start(node).await.expect("starts");
        let change = add(&test, node, false);
        let killed = kill_leader_at(&mut test, &ALL, change, step).await;
        load.progress(20).await;
        bring_back(&mut test, killed, &ALL).await;
        let address = peer(&test, node);
        let result = repeat(&test, &ALL, &["add", &address]).await;
        assert!(ids(&result["after"]["voters"]).contains(&node), "{result}");
        assert_writes_went_on(&load, &format!("adding node {node}, the leader killed at {step}"));
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
    assert_writes_went_on(&load, &format!("removing node {gone}, the leader killed after it was noted"));

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
    assert_writes_went_on(&load, &format!("removing node {leader}, which led, its successor killed"));

    assert_nothing_lost(&test, load, &last).await;
}

/// P1, P9, P10: a member exchanged for another, the leader killed before and after the point of no return.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_whose_leader_dies_is_finished_or_undone_without_help() {
    let mut test = three_of(6, "").await;
    let all = [1, 2, 3, 4, 5, 6];
    removal_allowed(&test, &ALL).await;
    let load = Load::start_at(&test, &all, CLIENTS, REST);
    load.progress(50).await;

    let mut voters = ALL.to_vec();
    for (new, step) in [(4, "catching-up"), (5, "changing"), (6, "removed")] {
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
        assert_writes_went_on(
            &load,
            &format!("replacing node {old} by node {new}, the leader killed at {step}"),
        );
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
    let load = Load::start_at(&test, &all, CLIENTS, REST);
    load.progress(50).await;
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

/// P9: changes that nothing goes wrong with hold no write up and fail none.
#[tokio::test(flavor = "multi_thread")]
async fn changes_without_a_failure_fail_no_write() {
    let mut test = three_of(4, "").await;
    let all = [1, 2, 3, 4];
    removal_allowed(&test, &ALL).await;
    let load = Load::start_at(&test, &ALL, CLIENTS, REST);
    load.progress(50).await;
    assert_writes_went_on(&load, "no change");
    test.cluster.start(4).await.expect("starts");

    let leader = test.leader().await;
    let follower = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let changes = [
        ("add as a learner", add(&test, 4, true)),
        ("promote", promote(4)),
        ("demote", demote(4)),
        ("promote again", promote(4)),
        ("transfer", transfer(follower)),
        ("remove a follower", remove(4)),
    ];
    for (what, change) in changes {
        let nodes = if what == "remove a follower" { &ALL[..] } else { &all[..] };
        make(&test, nodes, change).await;
        load.progress(20).await;
        assert_writes_went_on(&load, what);
    }
    members_are(&test, &ALL, &ALL, &[]).await;

    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, 0, "of {} escrows", acknowledged.len());
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    for node in ALL {
        assert_all_held(&test, node, &acknowledged).await;
    }
}
