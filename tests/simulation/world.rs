//! One simulated run: its nodes, its network, its chance, and what is known of it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft_rt_sim::SimInstant;
use strongroom::escrow::ids::NodeId;
use strongroom::escrow::records::LogPosition;
use strongroom::raft::log_store::log_id;
use tempfile::TempDir;

use crate::host::{Host, Life};
use crate::ledger::{Halves, Ledger};
use crate::links::Links;
use crate::mutation::Mutation;
use crate::oracle::Oracle;
use crate::seeded::Seeded;
use crate::types::Raft;

/// Where the files of simulated nodes are kept if there is room: nothing is asked of a real disk.
const MEMORY_DISK: &str = "/dev/shm";
/// Room for the runs side by side, of which each node takes less than a megabyte, and the store wants some to spare.
const MEMORY_DISK_MIN_BYTES: u64 = 512 * 1024 * 1024;

/// See the module.
pub struct World {
    /// Entries kept behind a snapshot.
    pub keep_entries: u64,
    /// Whether appends go over streams, as in the product, or one by one.
    pub streams: bool,
    mutation: Option<Mutation>,
    chance: Mutex<Seeded>,
    links: Mutex<Links>,
    ledger: Mutex<Ledger>,
    oracle: Mutex<Oracle>,
    hosts: Mutex<BTreeMap<NodeId, Arc<Host>>>,
    retired: Mutex<BTreeSet<NodeId>>,
    slow_disks: Mutex<BTreeSet<NodeId>>,
    trace: Mutex<Trace>,
    counts: Mutex<Counts>,
    dir: TempDir,
    /// Where the product's own threads are waited for.
    outside: tokio::runtime::Runtime,
}

/// How often what happened.
pub type Counts = BTreeMap<&'static str, u64>;

/// What happened, as a number: equal for equal runs.
#[derive(Default)]
struct Trace {
    hasher: DefaultHasher,
    events: u64,
    is_told: bool,
}

impl World {
    /// Without any nodes. What happens is told on standard error if `is_told`.
    pub fn new(seed: u64, mutation: Option<Mutation>, is_told: bool) -> Arc<Self> {
        let mut chance = Seeded::of(seed);
        let room = rustix::fs::statvfs(MEMORY_DISK).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
        let in_memory = room >= MEMORY_DISK_MIN_BYTES;
        let dir = if in_memory { tempfile::tempdir_in(MEMORY_DISK) } else { tempfile::tempdir() };
        Arc::new(Self {
            keep_entries: chance.one_of(&[0, 0, 3, 20]),
            streams: chance.draw(2) == 0,
            mutation,
            chance: chance.into(),
            links: Mutex::default(),
            ledger: Mutex::default(),
            oracle: Mutex::default(),
            hosts: Mutex::default(),
            retired: Mutex::default(),
            slow_disks: Mutex::default(),
            counts: Mutex::default(),
            trace: Trace { is_told, ..Trace::default() }.into(),
            dir: dir.expect("a directory"),
            outside: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        })
    }

    /// Since the run began, by simulated time.
    pub fn elapsed() -> Duration {
        SimInstant::now().elapsed_since_start()
    }

    /// Waits for something of the product that runs on threads, within one step of simulated time.
    pub fn outside<T>(&self, work: impl Future<Output = T>) -> T {
        self.outside.block_on(work)
    }

    /// A number below `below`.
    pub fn draw(&self, below: u64) -> u64 {
        self.chance.lock().unwrap().draw(below)
    }

    /// One of `some`, if there are any.
    pub fn one_of<T: Copy>(&self, some: &[T]) -> Option<T> {
        (!some.is_empty()).then(|| self.chance.lock().unwrap().one_of(some))
    }

    pub fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub fn links(&self) -> Links {
        self.links.lock().unwrap().clone()
    }

    pub fn change_links(&self, change: impl FnOnce(&mut Links)) {
        let mut links = self.links.lock().unwrap();
        change(&mut links);
        let links = links.clone();
        self.event(|| format!("{links:?}"));
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    /// Notes that something does not hold.
    pub fn fail(&self, what: String) {
        self.ledger().fail(what);
    }

    /// What does not hold, if something does not.
    pub fn broken(&self) -> Option<String> {
        self.ledger().broken().cloned()
    }

    /// Notes what happens.
    pub fn event(&self, what: impl FnOnce() -> String) {
        let (at, what) = (Self::elapsed(), what());
        let mut trace = self.trace.lock().unwrap();
        (at, &what).hash(&mut trace.hasher);
        trace.events += 1;
        if trace.is_told {
            eprintln!("{:>10.3} ms  {what}", at.as_secs_f64() * 1_000.0);
        }
    }

    /// How much happened, and a hash of it.
    pub fn trace(&self) -> (u64, u64) {
        let trace = self.trace.lock().unwrap();
        (trace.events, trace.hasher.finish())
    }

    /// Counts something that happened.
    pub fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// How often what happened.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap().clone()
    }

    /// A new node, not started.
    pub fn add_host(&self, id: NodeId) -> Arc<Host> {
        let host = Arc::new(Host::new(id, self.dir.path().join(id.to_string())));
        self.hosts.lock().unwrap().insert(id, host.clone());
        host
    }

    /// All nodes there ever were.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.hosts.lock().unwrap().values().cloned().collect()
    }

    /// Those that have not left for good.
    pub fn in_use(&self) -> Vec<Arc<Host>> {
        let retired = self.retired.lock().unwrap();
        self.hosts().into_iter().filter(|host| !retired.contains(&host.id)).collect()
    }

    /// A node leaves for good.
    pub fn retire(&self, id: NodeId) {
        self.retired.lock().unwrap().insert(id);
    }

    /// The life that a node is in, if it runs.
    pub fn life_of(self: &Arc<Self>, id: NodeId) -> Option<Arc<Life>> {
        let host = self.hosts.lock().unwrap().get(&id).cloned();
        host.and_then(|host| host.life(self))
    }

    /// All nodes that run.
    pub fn lives(self: &Arc<Self>) -> Vec<Arc<Life>> {
        self.hosts().iter().filter_map(|host| host.life(self)).collect()
    }

    /// A node that takes itself for the leader.
    pub fn leader(self: &Arc<Self>) -> Option<(NodeId, Raft)> {
        let leads = |life: Arc<Life>| {
            let raft = life.raft()?;
            let leads = raft.server_metrics().borrow_watched().state.is_leader();
            leads.then_some((life.host.id, raft))
        };
        self.lives().into_iter().rev().find_map(leads)
    }

    /// Whether the syncs of a node take long.
    pub fn slow_disk(&self, id: NodeId, is_slow: bool) {
        let mut slow = self.slow_disks.lock().unwrap();
        if is_slow {
            slow.insert(id)
        } else {
            slow.remove(&id)
        };
    }

    pub fn sync_takes(&self, id: NodeId) -> Duration {
        let is_slow = self.slow_disks.lock().unwrap().contains(&id);
        Duration::from_micros(100 + self.draw(if is_slow { 150_000 } else { 3_000 }))
    }

    pub fn apply_pauses(&self) -> Option<Duration> {
        (self.draw(16) == 0).then(|| Duration::from_micros(self.draw(30_000)))
    }

    pub fn snapshot_takes(&self) -> Duration {
        Duration::from_micros(self.draw(60_000))
    }

    pub fn chunk_takes(&self) -> Duration {
        Duration::from_micros(self.draw(20_000))
    }

    /// P1: what is acknowledged is on the disks of a majority. Of whom, says the configuration that stands before the entry
    /// in the log, or one that stands behind it: a leader goes by the last it has appended, and to leave a joint
    /// configuration it needs the newer half alone.
    pub fn acknowledged(&self, position: LogPosition) {
        let id = log_id(position);
        let hosts = self.hosts.lock().unwrap();
        let in_force = self.ledger().voters_at(id);
        let behind = hosts.values().flat_map(|host| host.disk().written().memberships_behind(id));
        let lacks_one = |halves: &Halves| {
            let holds = |voter: &&NodeId| hosts[*voter].disk().durable().holds(id);
            halves.iter().any(|half| half.iter().filter(holds).count() * 2 <= half.len())
        };
        let configurations: Vec<_> = std::iter::once(in_force).chain(behind).collect();
        if configurations.iter().all(lacks_one) {
            let holding = hosts.values().filter(|host| host.disk().durable().holds(id)).map(|host| host.id);
            let holding: Vec<_> = holding.collect();
            self.fail(format!("{id} is acknowledged, and on the disks of {holding:?} of {configurations:?}"));
        }
    }

    /// Looks at everything a node holds.
    pub fn look_at_replica(self: &Arc<Self>, life: &Life) {
        let Ok(storage) = life.storage() else { return };
        self.ledger().look_at(life.host.id, life.host.disk().written(), &storage);
        let view = storage.machine.view().expect("it is open");
        let index = storage.machine.applied_index();
        if let Some(missing) = self.oracle().missing_at(&view, index) {
            self.fail(format!("node {}: {missing}", life.host.id));
        }
    }

    /// Nothing that happens to a node stops it by itself.
    pub fn look_at_core(&self, node: NodeId, raft: &Raft) {
        if let Err(fatal) = &raft.metrics().borrow_watched().running_state {
            self.fail(format!("node {node} has stopped by itself: {fatal}"));
        }
    }

    /// Looks at what is quickly looked at, at every node that runs.
    pub fn look_around(self: &Arc<Self>) {
        for life in self.lives() {
            let Some(raft) = life.raft() else { continue };
            self.look_at_core(life.host.id, &raft);
            if let Ok(storage) = life.storage()
                && storage.machine.applied().position.is_some()
            {
                self.ledger().stands(life.host.id, storage.machine.digest());
            }
        }
    }

    /// Lets go of all nodes, which hold on to this.
    pub fn end(&self) {
        for host in self.hosts() {
            host.crash(self, 0, crate::host::Base::Kept);
        }
        self.hosts.lock().unwrap().clear();
    }
}
