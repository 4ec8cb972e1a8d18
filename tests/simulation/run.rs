//! One run, from a cluster that forms to one that has healed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::command::{Action, RaiseFeatureLevel};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{NodeId, Role};

use crate::clients::Clients;
use crate::faults;
use crate::mutation::Mutation;
use crate::sample;
use crate::world::{Counts, World};

/// Clients at the same time.
const CLIENTS: usize = 3;
/// Between two looks at whether nodes have settled.
const LOOK: Duration = Duration::from_millis(50);
/// Longest a cluster takes to form.
const FORMING: Duration = Duration::from_secs(10);
/// Longest a healed cluster takes to go on. A node that was away may have to wait for its elections, and for a snapshot.
const HEALING: Duration = Duration::from_secs(30);
/// How long faults are caused, at least and at most.
const CHAOS_MS: (u64, u64) = (2_000, 8_000);

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What did not hold, if something did not.
    pub broken: Option<String>,
    /// How many things happened, and a hash of all of them with their times.
    pub trace: (u64, u64),
    /// What the runtime did: each task that ran, each timer, each number drawn. Empty unless recorded.
    pub schedule: Vec<String>,
    /// How often what happened.
    pub counts: Counts,
}

/// How a run is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    No,
    /// What happens is told on standard error.
    Told,
    /// What the runtime does is recorded.
    Recorded,
}

/// Runs `seed`, with a rule broken if one is given.
pub fn run(seed: u64, mutation: Option<Mutation>, watched: Watched) -> Outcome {
    run_as(seed, mutation, watched, async |world, clients| whole(&world, &clients).await)
}

/// As [`run`], with something else happening once the cluster has formed.
pub fn run_as(
    seed: u64,
    mutation: Option<Mutation>,
    watched: Watched,
    play: impl AsyncFnOnce(Arc<World>, Arc<Clients>),
) -> Outcome {
    let world = World::new(seed, mutation, watched == Watched::Told);
    let mut runtime = SimRuntime::with_seed(seed);
    runtime.record_trace(watched == Watched::Recorded);
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(form_and(&world, play))));
    if let Err(panic) = ran {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()));
        world.fail(format!("panicked: {}", said.unwrap_or_default()));
    }
    let outcome = Outcome {
        broken: world.broken(),
        trace: world.trace(),
        schedule: runtime.take_trace(),
        counts: world.counts(),
    };
    // Tasks hold on to the world, and the world to tasks.
    runtime.block_on(async { world.end() });
    outcome
}

async fn form_and(world: &Arc<World>, play: impl AsyncFnOnce(Arc<World>, Arc<Clients>)) {
    let clients = Arc::new(Clients::new(world.clone()));
    form(world, &clients).await;
    play(world.clone(), clients).await;
}

/// Faults for a while, and then none.
async fn whole(world: &Arc<World>, clients: &Arc<Clients>) {
    let (least, most) = CHAOS_MS;
    let until = World::elapsed() + Duration::from_millis(least + world.draw(most - least));
    let asking = join_all((0..CLIENTS).map(|_| clients.run(until)));
    join(asking, faults::cause(world, clients, until)).await;
    faults::heal(world).await;
    settle(world, clients).await;
    if world.broken().is_none() && world.draw(3) == 0 {
        faults::power_cut(world);
        faults::heal(world).await;
        settle(world, clients).await;
    }
}

/// A group of its first voters, and the first entries of a cluster.
async fn form(world: &Arc<World>, clients: &Clients) {
    world.change_links(|links| *links = faults::calm());
    let voters = if world.draw(4) == 0 { 5 } else { 3 };
    let hosts: Vec<_> = (1..=voters).map(|id| world.add_host(id)).collect();
    for host in &hosts {
        host.start(world).await;
    }
    let members = hosts.iter().map(|host| (host.id, host.member()));
    let first = world.life_of(1).and_then(|life| life.raft()).expect("it runs");
    first.initialize(std::collections::BTreeMap::from_iter(members)).await.expect("it is new");
    let until = World::elapsed() + FORMING;
    while clients.send(1, sample::initialize()).await.is_none() {
        if World::elapsed() > until {
            return world.fail("no cluster forms".to_owned());
        }
    }
    if world.draw(2) == 0 {
        let raise = Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::SUPPORTED });
        clients.send(1, sample::command(clients.request(), Role::Node, "1", raise)).await;
    }
}

/// All members have the same, and take new keys; or that is what does not hold.
pub async fn settle(world: &Arc<World>, clients: &Clients) {
    let until = World::elapsed() + HEALING;
    let mut escrowed = Vec::<NodeId>::new();
    while world.broken().is_none() {
        SimRuntime::sleep(LOOK).await;
        world.look_around();
        let members = members(world);
        let waiting: Vec<_> = members.iter().copied().filter(|id| !escrowed.contains(id)).collect();
        if let Some(at) = waiting.first() {
            if clients.escrow(*at).await {
                escrowed.push(*at);
            }
        } else if !members.is_empty() && are_level(world, &members) {
            members.iter().filter_map(|id| world.life_of(*id)).for_each(|life| world.look_at_replica(&life));
            return;
        }
        if World::elapsed() > until {
            let stand = world.lives().iter().map(|life| standing(life)).collect::<Vec<_>>();
            world.fail(format!("it does not heal: {members:?}, of which {waiting:?} take no key: {stand:?}"));
        }
    }
}

/// Who belongs to the cluster, as its leader has it; nobody if there is none.
fn members(world: &Arc<World>) -> Vec<NodeId> {
    let Some((_, raft)) = world.leader() else { return Vec::new() };
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.committed_membership_config.nodes().map(|(id, _)| *id).collect()
}

fn are_level(world: &Arc<World>, members: &[NodeId]) -> bool {
    let all = world.ledger().len();
    members.iter().all(|id| {
        let storage = world.life_of(*id).and_then(|life| life.storage().ok());
        storage.is_some_and(|storage| storage.machine.applied_index() + 1 == all)
    })
}

fn standing(life: &crate::host::Life) -> String {
    let Some(raft) = life.raft() else { return "down".to_owned() };
    raft.metrics().borrow_watched().to_string()
}
