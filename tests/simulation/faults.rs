//! What is done to a run: to its network, its disks, its clocks and its nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::ids::NodeId;

use crate::clients::Clients;
use crate::host::{Base, Host};
use crate::links::Links;
use crate::members;
use crate::mutation::Mutation;
use crate::world::World;

/// How far a clock is set, either way.
const CLOCK_JUMP_MAX_MS: u64 = 2 * 3_600_000;
/// Longest a node stays down.
const DOWN_MAX_MS: u64 = 1_500;

/// The network as it mostly is.
pub fn calm() -> Links {
    Links { late_us: 2_000, ..Links::default() }
}

/// Causes faults until `until`, by simulated time, or until something does not hold.
pub async fn cause(world: &Arc<World>, clients: &Arc<Clients>, until: Duration) {
    while World::elapsed() < until && world.broken().is_none() {
        SimRuntime::sleep(Duration::from_millis(20 + world.draw(350))).await;
        world.look_around();
        if let Some(life) = world.one_of(&nodes(world)).and_then(|id| world.life_of(id)) {
            world.look_at_replica(&life);
        }
        match world.draw(100) {
            0..=17 => cut(world),
            18..=27 => world.change_links(|links| links.cut.clear()),
            28..=45 => crash_one(world),
            46..=55 => snapshot(world).await,
            56..=60 => drain(world),
            61..=65 => set_clock(world),
            66..=73 => change_mood(world),
            74..=79 => slow_disk(world),
            80..=83 => power_cut(world),
            84..=89 => transfer(world).await,
            _ => members::change(world, clients),
        }
    }
}

/// Everything works again: nodes that are down start on what they have.
pub async fn heal(world: &Arc<World>) {
    world.change_links(|links| *links = calm());
    for host in world.in_use() {
        world.slow_disk(host.id, false);
        host.start(world).await;
    }
}

/// All nodes lose power at once.
pub fn power_cut(world: &Arc<World>) {
    for host in world.in_use() {
        crash(world, &host);
    }
}

fn nodes(world: &World) -> Vec<NodeId> {
    world.in_use().iter().map(|host| host.id).collect()
}

fn cut(world: &World) {
    let nodes = nodes(world);
    let Some(node) = world.one_of(&nodes) else { return };
    let others: Vec<_> = nodes.iter().copied().filter(|other| *other != node).collect();
    let Some(other) = world.one_of(&others) else { return };
    let there: BTreeSet<_> = others.iter().map(|other| (node, *other)).collect();
    let back: BTreeSet<_> = others.iter().map(|other| (*other, node)).collect();
    let cut = match world.draw(6) {
        0 | 1 => there.union(&back).copied().collect(),
        2 => there,
        3 => back,
        4 => BTreeSet::from([(node, other), (other, node)]),
        _ => {
            let sides: Vec<_> = nodes.iter().map(|node| (*node, world.draw(2))).collect();
            let across = |one: &(NodeId, u64)| {
                let one = *one;
                sides.iter().filter(move |other| other.1 != one.1).map(move |other| (one.0, other.0))
            };
            sides.iter().flat_map(across).collect()
        }
    };
    world.change_links(|links| links.cut = cut);
}

/// Late, lost and repeated messages, or few of them.
fn change_mood(world: &World) {
    let mood = match world.draw(4) {
        0 => Links { lost: 20 + world.draw(200), ..calm() },
        1 => Links { late_us: 10_000 + world.draw(300_000), ..calm() },
        2 => Links { twice: 100 + world.draw(400), late_us: 20_000, ..calm() },
        _ => calm(),
    };
    world.change_links(|links| *links = Links { cut: std::mem::take(&mut links.cut), ..mood });
}

/// A node that leads, half of the time, or any.
fn victim(world: &Arc<World>) -> Option<Arc<Host>> {
    let leader = if world.draw(2) == 0 { world.leader().map(|(leader, _)| leader) } else { None };
    let node = leader.or_else(|| world.one_of(&nodes(world)))?;
    world.in_use().into_iter().find(|host| host.id == node)
}

fn crash_one(world: &Arc<World>) {
    if let Some(host) = victim(world) {
        crash(world, &host);
    }
}

/// Crashes a node, and starts it after a while.
fn crash(world: &Arc<World>, host: &Arc<Host>) {
    let unsynced = host.disk().unsynced();
    // As likely none of it as some.
    let kept = if world.draw(2) == 0 { 0 } else { world.draw(unsynced + 1) };
    let base = if world.draw(4) == 0 { Base::Lost } else { Base::Kept };
    host.crash(world, kept, base);
    if world.is_mutated(Mutation::WipedVoterReturns) && world.draw(2) == 0 {
        host.wipe();
    }
    let (world, host, down) = (world.clone(), host.clone(), world.draw(DOWN_MAX_MS));
    SimRuntime::spawn(async move {
        SimRuntime::sleep(Duration::from_millis(down)).await;
        host.start(&world).await;
    });
}

async fn snapshot(world: &Arc<World>) {
    if let Some(raft) = victim(world).and_then(|host| host.life(world)?.raft()) {
        // It may be stopping.
        drop(raft.trigger().snapshot().await);
    }
}

/// Brings the base of a node up to where it has applied.
fn drain(world: &Arc<World>) {
    let storage = victim(world).and_then(|host| host.life(world)?.storage().ok());
    if let Some(storage) = storage {
        world.outside(storage.machine.drain()).expect("it drains");
    }
}

fn set_clock(world: &Arc<World>) {
    let Some(host) = victim(world) else { return };
    let by =
        i64::try_from(world.draw(2 * CLOCK_JUMP_MAX_MS)).expect("small") - CLOCK_JUMP_MAX_MS.cast_signed();
    world.event(|| format!("the clock of node {} is set {by} ms ahead", host.id));
    host.set_clock(by);
}

fn slow_disk(world: &Arc<World>) {
    if let Some(host) = victim(world) {
        world.slow_disk(host.id, world.draw(2) == 0);
    }
}

async fn transfer(world: &Arc<World>) {
    let Some((leader, raft)) = world.leader() else { return };
    if let Some(to) = world.one_of(&nodes(world)).filter(|to| *to != leader) {
        drop(raft.trigger().transfer_leader(to).await);
    }
}
