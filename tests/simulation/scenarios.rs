//! Single stories that seeds have told, or other systems' bugs, with little chance or none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;
use openraft::entry::EntryPayload;
use openraft::{AsyncRuntime as _, ChangeMembers, Membership};
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::ids::NodeId;
use strongroom::raft::log_store::log_id;
use strongroom::raft::types::Member;

use crate::faults;
use crate::host::Base;
use crate::links::Links;
use crate::mutation::Mutation;
use crate::run::{Outcome, Watched, run_as, settle};
use crate::sample;
use crate::world::World;

/// A run with three voters, which keep no entries behind a snapshot.
const SEED: u64 = 1;
/// A run with five of them.
const SEED_OF_FIVE: u64 = 12;
/// How many rounds of odd acknowledgements there are.
const ROUNDS: u64 = 30;
/// Keys that are escrowed at once in each of them.
const AT_ONCE: usize = 3;
/// Longest a story waits for its next turn, by simulated time.
const SOON: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A majority of followers commits what the leader has not on its own disk yet (Raft dissertation, §10.2.1). After a power
/// loss the leader must not go on in its old term: it would put other entries where the committed ones are.
#[test]
fn a_leader_that_lost_what_its_followers_committed_does_not_lead_its_old_term() {
    assert_eq!(lose_what_followers_committed(None).broken, None);
    assert!(lose_what_followers_committed(Some(Mutation::ResumeOldTerm)).broken.is_some());
}

fn lose_what_followers_committed(mutation: Option<Mutation>) -> Outcome {
    run_as(SEED, mutation, Watched::No, async |world, clients| {
        let (leader, _) = world.leader().expect("it has formed");
        world.slow_disk(leader, true);
        let follower = if leader == 1 { 2 } else { 1 };
        let host = world.hosts().into_iter().find(|host| host.id == leader).expect("it runs");
        for number in 0.. {
            let committed = clients.send(follower, sample::escrow(clients.request(), number)).await;
            let id = log_id(committed.expect("a quorum answers").position);
            if !host.disk().durable().holds(id) {
                break;
            }
        }
        for host in world.hosts() {
            host.crash(&world, 0, Base::Kept);
        }
        // The old leader is there first.
        host.start(&world).await;
        faults::heal(&world).await;
        settle(&world, &clients).await;
    })
}

/// Looks whether a seed has what a story needs: so many voters that keep no entries behind a snapshot.
fn begins_with(world: &World, voters: usize) {
    let found = (world.hosts().len(), world.keep_entries);
    if found != (voters, 0) {
        world.fail(format!("the seed has {found:?} voters and entries kept: take another"));
    }
}

/// Waits until it is so, or that is what does not hold.
async fn until(world: &World, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = World::elapsed() + SOON;
    while !is_so() && world.broken().is_none() {
        if World::elapsed() > end {
            world.fail(format!("it never comes to this: {what}"));
        }
        SimRuntime::sleep(LOOK).await;
    }
}

/// Cuts a node off from all others.
fn isolate(world: &World, node: NodeId) {
    let others = world.hosts().into_iter().map(|host| host.id).filter(|other| *other != node);
    let cut = others.flat_map(|other| [(node, other), (other, node)]).collect();
    world.change_links(|links| *links = Links { cut, ..faults::calm() });
}

/// openraft #1802: of five voters, some ahead of the others, acknowledgements came in an order in which two were taken for
/// a majority. Here they come in every order there is, out of joint configurations too, whose halves each need a majority.
#[test]
fn of_five_voters_nothing_is_acknowledged_by_fewer_than_a_majority_of_each_half() {
    let fair = acknowledge_oddly(None);
    assert_eq!(fair.broken, None);
    for what in ["escrows before it", "escrows in a joint configuration"] {
        assert!(fair.counts.get(what).is_some_and(|count| *count > ROUNDS / 3), "{what}: {:?}", fair.counts);
    }
    // It would have been noticed.
    let early = acknowledge_oddly(Some(Mutation::AcknowledgeBeforeFsync)).broken;
    assert!(
        early.as_ref().is_some_and(|why| why.contains("is acknowledged, and on the disks of")),
        "{early:?}"
    );
}

fn acknowledge_oddly(mutation: Option<Mutation>) -> Outcome {
    run_as(SEED_OF_FIVE, mutation, Watched::No, async |world, clients| {
        begins_with(&world, 5);
        let mut voters = vec![1, 2, 3, 4, 5];
        for round in 0..ROUNDS {
            if round == ROUNDS / 3 {
                faults::heal(&world).await;
                enter_joint(&world, &[6, 7]).await;
                voters.extend([6, 7]);
            }
            // Two are deaf or mute, which leaves a majority of each half, and some are slow. Next time it is others, so that
            // who is ahead changes all the time.
            let cut = (0..2).flat_map(|_| {
                let (one, deaf) = (world.one_of(&voters).expect("there are some"), world.draw(2) == 0);
                let others = voters.iter().filter(move |other| **other != one);
                others.map(move |other| if deaf { (*other, one) } else { (one, *other) }).collect::<Vec<_>>()
            });
            let cut = cut.collect();
            voters.iter().for_each(|node| world.slow_disk(*node, world.draw(3) == 0));
            let late_us = 200 + world.draw(20_000);
            world.change_links(|links| *links = Links { cut, late_us, ..Links::default() });
            let at = world.leader().map_or(1, |(leader, _)| leader);
            let kept = join_all((0..AT_ONCE).map(|_| clients.escrow(at))).await;
            let what =
                if voters.len() > 5 { "escrows in a joint configuration" } else { "escrows before it" };
            kept.into_iter().filter(|kept| *kept).for_each(|_| world.count(what));
        }
        faults::heal(&world).await;
        settle(&world, &clients).await;
    })
}

/// Has the leader go by a configuration of two halves from now on: the voters there are, and three of them with `others`.
async fn enter_joint(world: &Arc<World>, others: &[NodeId]) {
    let mut leader = None;
    until(world, "one node leads", || {
        leader = world.leader();
        leader.is_some()
    })
    .await;
    let (leader, raft) = leader.expect("it was waited for");
    for id in others {
        let host = world.add_host(*id);
        host.start(world).await;
        raft.add_learner(*id, host.member(), true).await.expect("nothing is in its way");
    }
    let config = raft.metrics().borrow_watched().membership_config.membership().clone();
    let old: BTreeSet<NodeId> = config.voter_ids().collect();
    let stay = old.iter().copied().filter(|id| *id != leader).take(2).chain([leader]);
    let halves = vec![old.clone(), stay.chain(others.iter().copied()).collect()];
    let nodes: BTreeMap<NodeId, Member> = config.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let joint = Membership::new(halves, nodes).expect("every voter is a node");
    raft.append_membership(joint, EntryPayload::Blank, []).await.expect("nothing is in its way");
}

/// openraft #1808: a deposed leader that had appended a change of the membership which nobody else has heard of gets a
/// snapshot that goes further than that. The change is gone, in its mind as well: else it could vote and be elected by a
/// quorum of its own.
#[test]
fn a_snapshot_over_an_uncommitted_membership_leaves_nothing_of_it() {
    let outcome = run_as(SEED, None, Watched::No, async |world, clients| {
        begins_with(&world, 3);
        let (old, raft) = world.leader().expect("it has formed");
        isolate(&world, old);
        let stale = raft.clone();
        SimRuntime::spawn(async move {
            // It is its own voter then, or so it thinks.
            drop(stale.change_membership(ChangeMembers::ReplaceAllVoters([old].into()), false).await);
        });
        let believed = || raft.metrics().borrow_watched().membership_config.membership().clone();
        until(&world, "the change is appended", || believed().get_joint_config().len() == 2).await;
        let at = world.life_of(old).map(|life| life.host.disk().written().last().map(|last| last.index));
        let at = at.flatten().expect("it has a log");
        let successor = elected_instead_of(&world, old).await;
        let others: Vec<NodeId> = [1, 2, 3].into_iter().filter(|id| *id != old).collect();
        while world.ledger().len() < at + 5 {
            clients.escrow(successor).await;
        }
        purge_all(&world, &others).await;
        world.change_links(|links| *links = faults::calm());
        settle(&world, &clients).await;
        let (_, leader) = world.leader().expect("it has settled");
        let theirs = leader.metrics().borrow_watched().membership_config.clone();
        let its = raft.metrics().borrow_watched().membership_config.clone();
        if *its != *theirs {
            world.fail(format!("node {old} goes by {its}, and the others by {theirs}"));
        }
        let by_snapshot = raft.metrics().borrow_watched().snapshot.is_some_and(|id| id.index > at);
        if !by_snapshot {
            world.fail("it did not come by a snapshot".to_owned());
        }
    });
    assert_eq!(outcome.broken, None);
}

/// openraft #1828: a leader that has purged all of its log, when nobody writes any more, has only its snapshot to give to
/// who lags behind, and gives it.
#[test]
fn who_lags_behind_a_log_that_is_purged_whole_catches_up_without_another_write() {
    let outcome = run_as(SEED, None, Watched::No, async |world, clients| {
        begins_with(&world, 3);
        let (leader, raft) = world.leader().expect("it has formed");
        let lags = if leader == 3 { 2 } else { 3 };
        let host = world.hosts().into_iter().find(|host| host.id == lags).expect("one of three");
        host.crash(&world, 0, Base::Kept);
        for _ in 0..5 {
            clients.escrow(leader).await;
        }
        // One that lags, and one of which the leader knows nothing at all yet.
        let newcomer = world.add_host(4);
        raft.add_learner(newcomer.id, newcomer.member(), false).await.expect("nothing is in its way");
        let others: Vec<NodeId> = [1, 2, 3].into_iter().filter(|id| *id != lags).collect();
        purge_all(&world, &others).await;
        let written = world.ledger().len();
        host.start(&world).await;
        newcomer.start(&world).await;
        for id in [lags, newcomer.id] {
            until(&world, "it has what the others have", || {
                let storage = world.life_of(id).and_then(|life| life.storage().ok());
                storage.is_some_and(|storage| storage.machine.applied_index() + 1 >= written)
            })
            .await;
        }
        if world.ledger().len() > written {
            world.fail("something was written that helped it".to_owned());
        }
        // And after a power cut, with nothing in any log, they go on.
        purge_all(&world, &[1, 2, 3, 4]).await;
        for host in world.hosts() {
            let all = host.disk().unsynced();
            host.crash(&world, all, Base::Lost);
            if !host.disk().durable().entries.is_empty() {
                world.fail(format!("node {} has a log", host.id));
            }
        }
        faults::heal(&world).await;
        settle(&world, &clients).await;
    });
    assert_eq!(outcome.broken, None);
}

/// Who leads once `old` is cut off.
async fn elected_instead_of(world: &Arc<World>, old: NodeId) -> NodeId {
    let mut elected = None;
    until(world, "another one leads", || {
        elected = world.lives().iter().find_map(|life| {
            let state = life.raft()?.server_metrics().borrow_watched().state;
            (state.is_leader() && life.host.id != old).then_some(life.host.id)
        });
        elected.is_some()
    })
    .await;
    elected.expect("it was waited for")
}

/// Has nodes take a snapshot of all they have, and purge all of their logs.
async fn purge_all(world: &Arc<World>, nodes: &[NodeId]) {
    for node in nodes {
        let raft = world.life_of(*node).and_then(|life| life.raft()).expect("it runs");
        let last = world.ledger().len() - 1;
        until(world, "it has applied everything", || {
            raft.metrics().borrow_watched().last_applied.is_some_and(|applied| applied.index >= last)
        })
        .await;
        raft.trigger().snapshot().await.expect("it runs");
        let host = world.hosts().into_iter().find(|host| host.id == *node).expect("a node");
        until(world, "its log is purged whole", || host.disk().written().entries.is_empty()).await;
    }
}
