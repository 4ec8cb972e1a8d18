//! Single stories that seeds have told, without the chance.

use strongroom::raft::log_store::log_id;

use crate::faults;
use crate::host::Base;
use crate::mutation::Mutation;
use crate::run::{Outcome, Watched, run_as, settle};
use crate::sample;

/// A run with three voters.
const SEED: u64 = 1;

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
