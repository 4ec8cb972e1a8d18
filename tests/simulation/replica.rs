//! openraft's state machine of a simulated node: the product's own, over its own store on a real (temporary) disk.
//!
//! The store's threads know nothing of simulated time. They are waited for within one step of it, so that whatever they
//! take, it is nothing; and they do nothing by themselves (see [`opening`](crate::opening)), so that a crash finds the
//! base where the seed has put it. How long applying and snapshots take is drawn.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::AsyncRuntime as _;
use openraft::OptionalSend;
use openraft::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft_rt_sim::SimRuntime;
use strongroom::raft::state_machine::{StateMachine, apply_entry};
use strongroom::raft::types::{Applied, LogId, TypeConfig};
use strongroom::store::snapshot::SnapshotFile;

use crate::host::Life;
use crate::mutation::Mutation;
use crate::skewed;
use crate::types::{Entry, Simulated};

/// The state of one life of a node.
#[derive(Clone)]
pub struct Replica {
    life: Arc<Life>,
}

impl Replica {
    pub fn new(life: Arc<Life>) -> Self {
        Self { life }
    }

    fn real(&self) -> io::Result<StateMachine> {
        Ok(self.life.storage()?.state_machine())
    }

    fn apply_one(&self, entry: &Entry) -> io::Result<Applied> {
        let storage = self.life.storage()?;
        let world = &self.life.world;
        let applied = if world.is_mutated(Mutation::ApplyByOwnClock) {
            apply_entry(&storage.machine, &skewed::stamped(entry, self.life.host.now()))
        } else {
            apply_entry(&storage.machine, entry)
        };
        let applied = applied.inspect_err(|error| {
            world.fail(format!("node {} cannot apply {}: {error}", self.life.host.id, entry.log_id));
        })?;
        let digest = storage.machine.digest();
        world.event(|| format!("{} applies {} -> {digest:?}", self.life.host.id, entry.log_id));
        world.ledger().applied(self.life.host.id, entry, &applied, digest);
        Ok(applied)
    }
}

impl RaftStateMachine<Simulated> for Replica {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<Simulated>)> {
        let mut real = self.real()?;
        self.life.world.outside(RaftStateMachine::<TypeConfig>::applied_state(&mut real))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Simulated>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, caller) = next?;
            if let Some(pause) = self.life.world.apply_pauses() {
                SimRuntime::sleep(pause).await;
            }
            let applied = self.apply_one(&entry)?;
            if let Some(caller) = caller {
                caller.send(applied);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Simulated>,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        SimRuntime::sleep(self.life.world.snapshot_takes()).await;
        let (mut real, world, id) = (self.real()?, &self.life.world, self.life.host.id);
        world.event(|| format!("{id} installs {meta}"));
        if world.is_mutated(Mutation::InstallNothing) {
            return Ok(());
        }
        world.outside(RaftStateMachine::<TypeConfig>::install_snapshot(&mut real, meta, snapshot))?;
        world.count("snapshots installed");
        world.ledger().stands(id, self.life.storage()?.machine.digest());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Simulated, SnapshotFile>>> {
        let mut real = self.real()?;
        self.life.world.outside(RaftStateMachine::<TypeConfig>::get_current_snapshot(&mut real))
    }
}

impl RaftSnapshotBuilder<Simulated> for Replica {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Simulated, SnapshotFile>> {
        SimRuntime::sleep(self.life.world.snapshot_takes()).await;
        let world = &self.life.world;
        let snapshot = {
            // Not over the pause that follows: a crash must find the base free.
            let mut real = self.real()?;
            world.outside(async {
                let mut builder = RaftStateMachine::<TypeConfig>::get_snapshot_builder(&mut real).await;
                RaftSnapshotBuilder::<TypeConfig>::build_snapshot(&mut builder).await
            })?
        };
        world.event(|| format!("{} has snapshot {}", self.life.host.id, snapshot.meta));
        world.count("snapshots taken");
        // It has taken its time to be written: what was applied meanwhile is not in it.
        SimRuntime::sleep(world.snapshot_takes()).await;
        self.life.check()?;
        Ok(snapshot)
    }
}
