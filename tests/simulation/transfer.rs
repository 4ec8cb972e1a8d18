//! A snapshot on its way from one node to another, in chunks that the product's own receiver takes.

use std::sync::Arc;

use openraft::AsyncRuntime as _;
use openraft::raft::SnapshotResponse;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::ids::NodeId;
use strongroom::raft::state_machine::snapshot_of;
use strongroom::raft::types::{Snapshot, Vote};

use crate::types::{Raft, Simulated};
use crate::world::World;

const CHUNK_BYTES: usize = 4 * 1024;

/// What the wire carries of a snapshot.
#[derive(Clone)]
pub struct Sent {
    bytes: Vec<u8>,
    announced: u64,
    sha256: [u8; 32],
}

impl Sent {
    /// Reads a snapshot to send. The wire may cut it short, or flip a bit of it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(world: &World, snapshot: &Snapshot) -> Result<Self, std::io::Error> {
        let file = &snapshot.snapshot;
        let mut bytes = std::fs::read(file.path())?;
        let at = usize::try_from(world.draw(bytes.len() as u64)).unwrap();
        match world.draw(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1,
            _ => {}
        }
        Ok(Self { bytes, announced: file.bytes(), sha256: file.sha256() })
    }
}

/// Receives a snapshot at node `to` and installs it, as `raft::Node` does for a peer.
///
/// # Errors
/// It did not come whole, or the node has crashed.
pub async fn receive(
    world: &Arc<World>,
    to: NodeId,
    raft: &Raft,
    vote: Vote,
    sent: Sent,
) -> Result<SnapshotResponse<Simulated>, String> {
    let life = world.life_of(to).ok_or("it has crashed")?;
    let storage = life.storage().map_err(|error| error.to_string())?;
    let mut receiver = world
        .outside(storage.machine.snapshots().receive(sent.announced, sent.sha256))
        .map_err(|error| error.to_string())?;
    // Not over the pauses: a crash must find the base free.
    drop(storage);
    for chunk in sent.bytes.chunks(CHUNK_BYTES) {
        SimRuntime::sleep(world.chunk_takes()).await;
        life.check().map_err(|error| error.to_string())?;
        world.outside(receiver.write(chunk)).map_err(|error| error.to_string())?;
    }
    let file = world.outside(receiver.finish()).map_err(|error| {
        world.count("snapshots damaged on the way");
        error.to_string()
    })?;
    let snapshot = snapshot_of(file).map_err(|error| error.to_string())?;
    raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())
}
