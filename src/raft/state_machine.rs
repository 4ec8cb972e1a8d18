//! openraft's state machine over [`store::machine`](crate::store::machine).

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::alias::{EntryOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{OptionalSend, Snapshot, SnapshotMeta, StoredMembership};
use tokio::time::{Instant, sleep};

use super::log_store::{decode_membership, encode_membership, log_id, position};
use super::pace::{Pace, hand_over};
use super::types::{Applied, LogId, TypeConfig};
use crate::store::StoreError;
use crate::store::applied;
use crate::store::format::Payload;
use crate::store::machine::Machine;
use crate::store::quarantine::QuarantineNote;
use crate::store::snapshot::SnapshotFile;

/// Most entries applied in one go before their callers are answered.
pub const APPLY_BATCH_MAX: usize = 256;

/// Most bytes of commands that are applied in one go on a thread of the runtime: some eight escrows, or contacts of some eighty
/// machines, half a millisecond.
const APPLIED_AT_ONCE_MAX_BYTES: usize = 4 * 1024;

/// How long the installation of a snapshot is tried while the disk does not take it. Nothing is applied meanwhile.
const INSTALL_PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts at it.
const INSTALL_RETRY: Duration = Duration::from_secs(1);

/// The state as openraft sees it.
#[derive(Clone)]
pub struct StateMachine {
    machine: Machine,
    pace: Pace,
    quarantine: QuarantineNote,
}

impl StateMachine {
    /// Over an open machine, where short work is done at `pace`, and of which no snapshot is made while it is in `quarantine`.
    pub(super) fn new(machine: Machine, pace: Pace, quarantine: QuarantineNote) -> Self {
        Self { machine, pace, quarantine }
    }

    fn snapshot_builder(&self) -> SnapshotBuilder {
        SnapshotBuilder { machine: self.machine.clone(), quarantine: self.quarantine.clone() }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<TypeConfig>)> {
        let applied = self.machine.applied();
        Ok((applied.position.map(log_id), stored_membership(&applied)?))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        // What is ready is applied in one go; what is not ready is not waited for.
        let mut batches = entries.ready_chunks(APPLY_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<io::Result<Vec<_>>>()?;
            let bytes = batch.iter().map(|(entry, _)| command_bytes(entry)).sum::<usize>();
            let is_short = bytes <= APPLIED_AT_ONCE_MAX_BYTES && self.machine.applies_at_once();
            let machine = self.machine.clone();
            let apply =
                move || batch.into_iter().try_for_each(|(entry, caller)| apply_one(&machine, &entry, caller));
            if is_short { self.pace.run(apply).await?? } else { hand_over(apply).await?? }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.snapshot_builder())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.snapshot_builder()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        if snapshot_meta(&snapshot)? != *meta {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the snapshot file is not the one announced: {meta}"),
            ));
        }
        // openraft takes any error of this for fatal. A full disk is no reason to stop voting: the old state stays, and
        // what came is installed when there is room, or the node stops after all.
        let deadline = Instant::now() + INSTALL_PATIENCE;
        loop {
            match self.machine.install(snapshot.clone()).await {
                Err(error @ StoreError::Io { .. }) if Instant::now() < deadline => {
                    tracing::error!(%error, "a snapshot cannot be installed: tried again");
                    sleep(INSTALL_RETRY).await;
                }
                installed => return Ok(installed.map(drop)?),
            }
        }
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        self.machine.snapshots().newest().map(snapshot_of).transpose()
    }
}

fn command_bytes(entry: &EntryOf<TypeConfig>) -> usize {
    match &entry.payload {
        EntryPayload::Normal(commands) => commands.0.iter().map(|command| command.len()).sum(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Applies one entry and answers who proposed it, if that was here. Any error is fatal to this replica: openraft stops.
fn apply_one(
    machine: &Machine,
    entry: &EntryOf<TypeConfig>,
    caller: Option<ApplyResponder<TypeConfig>>,
) -> io::Result<()> {
    let applied = apply_entry(machine, entry).inspect_err(|error| {
        tracing::error!(%error, index = entry.log_id.index, "this replica stops applying");
    })?;
    if let Some(caller) = caller {
        caller.send(applied);
    }
    Ok(())
}

/// Applies one entry of the log, whatever it is. Blocks.
///
/// # Errors
/// As [`Machine::apply`].
pub fn apply_entry(machine: &Machine, entry: &EntryOf<TypeConfig>) -> io::Result<Applied> {
    let at = position(&entry.log_id);
    let replies = match &entry.payload {
        EntryPayload::Blank => machine.apply(at, Payload::Blank),
        EntryPayload::Normal(commands) => machine.apply(at, commands.payload()),
        EntryPayload::Membership(membership) => {
            machine.apply(at, Payload::Membership(&encode_membership(membership)))
        }
    };
    Ok(Applied(replies?))
}

/// Writes snapshots while entries go on being applied.
pub struct SnapshotBuilder {
    machine: Machine,
    quarantine: QuarantineNote,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    /// openraft takes any error of this for fatal, so a slow reader and a full disk must not become one: neither touches
    /// the state. A snapshot that is not newer than the last one is ignored by openraft, and the next trigger asks again.
    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        loop {
            // A snapshot of a wrong state would let the log be purged that the right one is to be made with. openraft
            // builds in a task of its own and asks for no other meanwhile, so nothing but the purge waits. One that a
            // repair put in place stands in: else the log of a node that differs again and again would never be cut.
            tokio::select! {
                biased;
                () = self.quarantine.lifted() => {}
                peers = self.machine.snapshots().replacement() => return snapshot_of(peers),
            }
            match (self.machine.snapshot().await, self.machine.snapshots().newest()) {
                // What was found out while it was written counts too.
                (Ok(_), _) if self.quarantine.current().is_some() => {}
                (Ok(file), _) => return snapshot_of(file),
                (Err(StoreError::Busy), _) => {
                    tracing::warn!("a snapshot waits for a reader that holds on to an old state");
                }
                (Err(error @ StoreError::Io { .. }), Some(newest)) => {
                    tracing::error!(%error, "no snapshot could be written: the one before stays the newest");
                    return snapshot_of(newest);
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
    }
}

/// A snapshot file with what openraft knows of it: for handing a received one to openraft.
///
/// # Errors
/// Its membership does not decode.
pub fn snapshot_of(file: SnapshotFile) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
    Ok(Snapshot { meta: snapshot_meta(&file)?, snapshot: file })
}

/// What openraft knows of a snapshot file.
///
/// # Errors
/// Its membership does not decode.
pub fn snapshot_meta(file: &SnapshotFile) -> io::Result<SnapshotMetaOf<TypeConfig>> {
    Ok(SnapshotMeta {
        last_log_id: file.position().map(log_id),
        last_membership: stored_membership(file.applied())?,
    })
}

fn stored_membership(applied: &applied::Applied) -> io::Result<StoredMembershipOf<TypeConfig>> {
    match &applied.membership {
        None => Ok(StoredMembership::default()),
        Some((position, bytes)) => {
            Ok(StoredMembership::new(Some(log_id(*position)), decode_membership(bytes)?))
        }
    }
}
