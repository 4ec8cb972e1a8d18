//! A simulated node: its disks, its clock, and its lives, each of which a crash ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{NodeId, Timestamp};
use strongroom::metrics::Metrics;
use strongroom::raft::NodeOptions;
use strongroom::raft::storage::Storage;
use strongroom::raft::types::Member;
use strongroom::store::directory::DataDir;
use uuid::Uuid;

use crate::disk::Disk;
use crate::log::SimulatedLog;
use crate::mutation::Mutation;
use crate::opening;
use crate::replica::Replica;
use crate::types::Raft;
use crate::wire::Wires;
use crate::world::World;

/// When every run begins, by a clock that is right.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// See the module.
pub struct Host {
    pub id: NodeId,
    dir: PathBuf,
    disk: Mutex<Disk>,
    clock_ahead_ms: AtomicI64,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    /// Which life this is.
    life: u64,
    /// What it has open; `None` while the node is down.
    opened: Option<(Storage, DataDir)>,
    raft: Option<Raft>,
}

/// One life of a node. After the crash that ends it nothing comes of what it still does.
pub struct Life {
    pub world: Arc<World>,
    pub host: Arc<Host>,
    number: u64,
}

impl Life {
    /// Whether it goes on.
    pub fn is_on(&self) -> bool {
        let running = self.host.running();
        running.life == self.number && running.opened.is_some()
    }

    /// # Errors
    /// It has ended.
    pub fn check(&self) -> io::Result<()> {
        if self.is_on() { Ok(()) } else { Err(io::Error::other("it has crashed")) }
    }

    /// Its storage. Not to be held on to.
    pub fn storage(&self) -> io::Result<Storage> {
        let running = self.host.running();
        let opened = running.opened.as_ref().filter(|_| running.life == self.number);
        opened.map(|(storage, _)| storage.clone()).ok_or_else(|| io::Error::other("it has crashed"))
    }

    /// Its consensus core, once it runs.
    pub fn raft(&self) -> Option<Raft> {
        let running = self.host.running();
        running.raft.clone().filter(|_| running.life == self.number)
    }
}

/// What becomes of the base of a node that crashes: sled promises nothing, so anything may.
#[derive(Debug, Clone, Copy)]
pub enum Base {
    Kept,
    Lost,
}

impl Host {
    pub fn new(id: NodeId, dir: PathBuf) -> Self {
        Self { id, dir, disk: Mutex::default(), clock_ahead_ms: AtomicI64::new(0), running: Mutex::default() }
    }

    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap()
    }

    /// What its clock shows.
    pub fn now(&self) -> Timestamp {
        let ahead = self.clock_ahead_ms.load(Ordering::Relaxed);
        let right = EPOCH_MS + u64::try_from(World::elapsed().as_millis()).unwrap();
        Timestamp(right.saturating_add_signed(ahead))
    }

    /// Sets its clock.
    pub fn set_clock(&self, ahead_ms: i64) {
        self.clock_ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }

    /// Where it is reached.
    pub fn member(&self) -> Member {
        let (id, storage) = (self.id, Uuid::from_u128(self.id.into()));
        Member {
            peer_address: format!("node{id}:7421"),
            api_address: format!("node{id}:7420"),
            zone: String::new(),
            storage,
        }
    }

    /// The life it is in, if it runs.
    pub fn life(self: &Arc<Self>, world: &Arc<World>) -> Option<Arc<Life>> {
        let number = self.running().life;
        let life = Life { world: world.clone(), host: self.clone(), number };
        (life.is_on() && life.raft().is_some()).then(|| Arc::new(life))
    }

    /// Starts it on what its disks have. Does nothing if it runs.
    pub async fn start(self: &Arc<Self>, world: &Arc<World>) {
        if self.running().opened.is_some() {
            return;
        }
        let kept = self.disk().durable().clone();
        let (data, storage, content) = match world.outside(opening::open(&self.dir, kept)) {
            Ok(opened) => opened,
            Err(error) => return world.fail(format!("node {} does not open: {error}", self.id)),
        };
        self.disk().reopen(content);
        let number = {
            let mut running = self.running();
            running.life += 1;
            running.opened = Some((storage, data));
            running.life
        };
        world.event(|| format!("{} starts", self.id));
        let life = Arc::new(Life { world: world.clone(), host: self.clone(), number });
        let (log, replica) = (SimulatedLog::new(life.clone()), Replica::new(life.clone()));
        let mut config = self.options(world).consensus(&"acme".parse().unwrap()).unwrap();
        if world.is_mutated(Mutation::ResumeOldTerm) {
            config.enable_leader_restore = Some(true);
        }
        match Raft::new(self.id, Arc::new(config), Wires::new(life.clone()), log, replica).await {
            Ok(raft) if life.is_on() => self.running().raft = Some(raft),
            // It has crashed meanwhile.
            Ok(raft) => return drop(raft.shutdown().await),
            Err(_) if !life.is_on() => return,
            Err(error) => return world.fail(format!("node {} does not start: {error}", self.id)),
        }
        world.look_at_replica(&life);
    }

    /// Kills it. Of what was written and not synced the first `kept` writes are on its disk when it starts again.
    pub fn crash(&self, world: &World, kept: u64, base: Base) {
        let (opened, raft) = {
            let mut running = self.running();
            (running.opened.take(), running.raft.take())
        };
        let Some(opened) = opened else { return };
        if let Some(raft) = &raft {
            world.look_at_core(self.id, raft);
        }
        world.event(|| format!("{} crashes, {kept} unsynced writes kept, base {base:?}", self.id));
        drop(opened);
        world.count("crashes");
        if self.disk().unsynced() > kept {
            world.count("crashes that took what was not synced");
        }
        self.disk().crash(kept);
        if let Base::Lost = base {
            remove(&self.dir.join("base"));
        }
        if let Some(raft) = raft {
            SimRuntime::spawn(async move { drop(raft.shutdown().await) });
        }
    }

    /// Takes everything from the disks of a node that is down.
    pub fn wipe(&self) {
        *self.disk() = Disk::default();
        remove(&self.dir);
    }

    fn options(&self, world: &World) -> NodeOptions {
        NodeOptions {
            id: self.id,
            member: self.member(),
            heartbeat_ms: 100,
            election_min_ms: 400,
            election_max_ms: 800,
            keep_entries: world.keep_entries,
            feature_level: FeatureLevel::SUPPORTED,
            metrics: Metrics::default(),
        }
    }
}

/// Removes a directory, though a thread of sled, which outlives it for a moment, may put something in.
fn remove(dir: &Path) {
    while let Err(error) = fs::remove_dir_all(dir) {
        match error.kind() {
            io::ErrorKind::NotFound => return,
            io::ErrorKind::DirectoryNotEmpty => {}
            _ => panic!("{}: {error}", dir.display()),
        }
    }
}
