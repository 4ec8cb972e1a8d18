//! Members that join, are promoted and leave, step by step as `raft::membership` takes them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{AsyncRuntime as _, ChangeMembers};
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::command::{Action, AdmitNode, RemoveNode};
use strongroom::escrow::ids::{NodeId, Role};
use strongroom::escrow::lookup;
use strongroom::escrow::records::{KeyringRecord, NodeRecord};

use crate::clients::Clients;
use crate::host::Base;
use crate::sample;
use crate::types::{Raft, Simulated};
use crate::world::World;

/// Most nodes there ever are in a run.
const NODES_MAX: u64 = 7;
/// Fewest voters that stay.
const VOTERS_MIN: usize = 3;
/// Longest a step waits for a majority.
const STEP_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest a node that was taken out goes on as if it were not.
const ZOMBIE_MAX_MS: u64 = 1_500;

/// Begins a change of the membership at whoever leads.
pub fn change(world: &Arc<World>, clients: &Arc<Clients>) {
    let Some((leader, raft)) = world.leader() else { return };
    let (voters, learners) = {
        let metrics = raft.metrics();
        let config = &metrics.borrow_watched().membership_config;
        let voters: BTreeSet<NodeId> = config.voter_ids().collect();
        let learners: Vec<NodeId> = config.membership().learner_ids().collect();
        (voters, learners)
    };
    let change = Change { world: world.clone(), clients: clients.clone(), leader, raft };
    let (learner, voter) = (world.one_of(&learners), world.one_of(&Vec::from_iter(voters.clone())));
    match (world.draw(3), learner, voter) {
        (0, ..) if (world.hosts().len() as u64) < NODES_MAX => {
            SimRuntime::spawn(async move { change.join().await });
        }
        (0 | 1, Some(learner), _) => {
            SimRuntime::spawn(async move { change.promote(learner).await });
        }
        // Who leads hands over first, and is removed by another.
        (2, _, Some(voter)) if voter == leader => {
            let successor =
                world.one_of(&voters.iter().copied().filter(|id| *id != leader).collect::<Vec<_>>());
            SimRuntime::spawn(async move { change.hand_over(successor).await });
        }
        (2, _, Some(voter)) if voters.len() > VOTERS_MIN => {
            SimRuntime::spawn(async move { change.remove(voter).await });
        }
        _ => {}
    }
}

struct Change {
    world: Arc<World>,
    clients: Arc<Clients>,
    leader: NodeId,
    raft: Raft,
}

type Written<T> = Result<T, RaftError<Simulated, ClientWriteError<Simulated>>>;

impl Change {
    async fn join(self) {
        let id = self.world.hosts().len() as u64 + 1;
        let host = self.world.add_host(id);
        host.start(&self.world).await;
        let member = host.member();
        let node = NodeRecord {
            id,
            peer_address: member.peer_address.clone(),
            api_address: member.api_address.clone(),
            zone: String::new(),
            storage: member.storage,
            recipient: "age1node".to_owned(),
            admitted_at: host.now(),
        };
        let keyring = self.next_keyring(0);
        self.command(Action::AdmitNode(AdmitNode { node, keyring })).await;
        let raft = &self.raft;
        if self.step("nodes joined", id, async { raft.add_learner(id, member, false).await }).await {
            self.promote(id).await;
        }
    }

    async fn hand_over(self, successor: Option<NodeId>) {
        if let Some(successor) = successor {
            // It may be stopping.
            drop(self.raft.trigger().transfer_leader(successor).await);
        }
    }

    async fn promote(&self, id: NodeId) -> bool {
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.step("learners promoted", id, async { self.raft.change_membership(change, true).await }).await
    }

    /// First it is noted that it left, then it is taken out; what runs of it stays for a while.
    async fn remove(self, id: NodeId) {
        let keyring = self.next_keyring(1);
        self.command(Action::RemoveNode(RemoveNode { node: id, keyring })).await;
        let change = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
        if !self.step("voters removed", id, async { self.raft.change_membership(change, false).await }).await
        {
            return;
        }
        SimRuntime::sleep(Duration::from_millis(self.world.draw(ZOMBIE_MAX_MS))).await;
        self.world.retire(id);
        for host in self.world.hosts().iter().filter(|host| host.id == id) {
            host.crash(&self.world, 0, Base::Kept);
        }
    }

    async fn command(&self, action: Action) {
        let command = sample::command(self.clients.request(), Role::Operator, "ops", action);
        drop(self.clients.send(self.leader, command).await);
    }

    async fn step<T>(
        &self,
        what: &'static str,
        id: NodeId,
        step: impl Future<Output = Written<T>> + Send,
    ) -> bool {
        self.world.event(|| format!("{what} {id} begins"));
        let done = matches!(SimRuntime::timeout(STEP_TIMEOUT, step).await, Ok(Ok(_)));
        self.world.event(|| format!("{what} {id}: {done}"));
        if done {
            self.world.count(what);
        }
        done
    }

    /// The keyring that follows the one that is committed.
    fn next_keyring(&self, new_versions: u32) -> KeyringRecord {
        let ledger = self.world.ledger();
        let stored = lookup::keyring(ledger.state()).expect("memory does not fail");
        let (generation, version) =
            stored.map_or((0, 1), |stored| (stored.generation, stored.current_key_version));
        KeyringRecord {
            generation: generation + 1,
            current_key_version: version + new_versions,
            age_file: vec![1],
        }
    }
}
