//! Clients: they escrow, reveal and look up at whichever node comes, and ask again if they hear nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join;
use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::command::{Action, Command, Reply};
use strongroom::escrow::ids::NodeId;
use strongroom::raft::Committed;

use crate::sample;
use crate::world::World;

/// How often a request is sent altogether.
const ATTEMPTS: u64 = 3;

/// What the clients of a run share.
pub struct Clients {
    world: Arc<World>,
    /// Counts requests; the beginnings of their ids.
    requests: AtomicU64,
    /// Counts keys.
    keys: AtomicU64,
    /// Of the data key that secrets are sealed with.
    key_version: AtomicU32,
}

impl Clients {
    pub fn new(world: Arc<World>) -> Self {
        let (requests, keys) = (AtomicU64::new(1), AtomicU64::new(0));
        Self { world, requests, keys, key_version: AtomicU32::new(1) }
    }

    /// Goes on until `until`, by simulated time, or until something does not hold.
    pub async fn run(&self, until: Duration) {
        while World::elapsed() < until && self.world.broken().is_none() {
            SimRuntime::sleep(Duration::from_millis(2 + self.world.draw(80))).await;
            let nodes: Vec<NodeId> = self.world.in_use().iter().map(|host| host.id).collect();
            let Some(at) = self.world.one_of(&nodes) else { continue };
            match self.world.draw(10) {
                0..=3 => drop(self.escrow(at).await),
                4 => self.escrow_again(at).await,
                5..=6 => self.reveal(at).await,
                _ => self.look_up(at).await,
            }
        }
    }

    /// Escrows a new key. Says whether it was acknowledged.
    pub async fn escrow(&self, at: NodeId) -> bool {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        self.escrow_key(at, number).await
    }

    async fn escrow_again(&self, at: NodeId) {
        let number = self.world.draw(self.keys.load(Ordering::Relaxed) + 1);
        self.escrow_key(at, number).await;
    }

    /// Half of the time without naming an id: then one is drawn, and a key that is there answers for itself.
    async fn escrow_key(&self, at: NodeId, number: u64) -> bool {
        let request = self.request();
        let mut command = sample::escrow(request, number);
        let Action::Escrow(escrow) = &mut command.action else { unreachable!("it is one") };
        escrow.sealed.key_version = self.key_version.load(Ordering::Relaxed);
        if number % 2 == 1 {
            escrow.key_id_given = false;
            escrow.key_id = sample::key_id(1_000_000 + request);
        }
        let Some(committed) = self.send(at, command).await else { return false };
        match &committed.reply {
            Reply::Escrowed(escrowed) => {
                let told = self.world.oracle().escrowed(escrowed, &committed);
                told.unwrap_or_else(|broken| self.world.fail(broken));
                self.world.count("escrows");
                true
            }
            // A node has left: it is to be sealed with a key that one never had.
            Reply::OldDataKey { current } => {
                self.key_version.store(*current, Ordering::Relaxed);
                self.world.oracle().told_of(committed.position.index);
                false
            }
            other => {
                self.world.fail(format!("key {number} is not escrowed: {other:?}"));
                false
            }
        }
    }

    async fn reveal(&self, at: NodeId) {
        let request = self.request();
        let number = self.world.draw(self.keys.load(Ordering::Relaxed) + 1);
        let reason = format!("request {request}");
        let mut command = sample::reveal(request, number);
        let Action::Reveal(reveal) = &mut command.action else { unreachable!("it is one") };
        reveal.reason.clone_from(&reason);
        self.world.oracle().asked(&reason);
        let Some(committed) = self.send(at, command).await else { return };
        match &committed.reply {
            Reply::Revealed(revealed) => {
                let told = self.world.oracle().shown(&reason, revealed, &committed);
                told.unwrap_or_else(|broken| self.world.fail(broken));
                self.world.count("reveals");
            }
            // There is no such key yet, or it was one without an id of its own.
            Reply::Refused(_) => {
                self.world.oracle().told_of(committed.position.index);
                self.world.count("refused reveals");
            }
            other => self.world.fail(format!("{reason}: {other:?}")),
        }
    }

    /// A quorum read is never older than anything acknowledged before it was asked for.
    async fn look_up(&self, at: NodeId) {
        let (floor, kept) = {
            let oracle = self.world.oracle();
            (oracle.floor(), oracle.kept())
        };
        let Some(key) = self.world.one_of(&kept) else { return };
        let Some(seen) = self.world.quorum_read(at, key).await else {
            return self.world.count("unanswered reads");
        };
        self.world.count("quorum reads");
        self.world.event(|| format!("a client read {key} at node {at} at {}", seen.index));
        let mut oracle = self.world.oracle();
        let problem = if seen.index < floor {
            Some(format!("a quorum read at node {at} is as of {}, and {floor} was known before", seen.index))
        } else if !oracle.is_as_told(key, seen.key.as_ref()) {
            Some(format!("a quorum read at node {at} finds {:?} under {key}", seen.key))
        } else {
            None
        };
        oracle.told_of(seen.index);
        drop(oracle);
        if let Some(problem) = problem {
            self.world.fail(problem);
        }
    }

    /// Sends a command until it is answered, a few times, each time to another node, and now and then to two at once.
    pub async fn send(&self, mut at: NodeId, command: Command) -> Option<Committed> {
        let world = &self.world;
        for attempt in 0..ATTEMPTS {
            let other = world.one_of(&world.in_use().iter().map(|host| host.id).collect::<Vec<_>>())?;
            let answer = if world.draw(8) == 0 {
                let (there, here) = (self.stamped(&command, at), self.stamped(&command, other));
                let (one, two) = join(world.propose(at, &there), world.propose(other, &here)).await;
                one.or(two)
            } else {
                world.propose(at, &self.stamped(&command, at)).await
            };
            let (request, number) = (command.request, attempt + 1);
            world.event(|| format!("a client of node {at} hears of {request}, attempt {number}: {answer:?}"));
            if answer.is_some() {
                return answer;
            }
            at = other;
        }
        world.count("unanswered commands");
        None
    }

    /// As node `at` passes it on, by its clock.
    fn stamped(&self, command: &Command, at: NodeId) -> Command {
        let now = self.world.hosts().iter().find(|host| host.id == at).map(|host| host.now());
        let mut command = command.clone();
        command.at = now.unwrap_or(command.at);
        command.source.node = at;
        command
    }

    /// The number of a request that nobody else has.
    pub fn request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }
}
