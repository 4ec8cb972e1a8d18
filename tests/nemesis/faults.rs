//! Doing to a cluster what a plan says, and undoing all of it.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rustix::process::{Pid, Signal, kill_process};
use strongroom::cli::local_cluster::LocalClusterError;
use strongroom::escrow::ids::NodeId;

use crate::changes;
use crate::clients::{At, Clients};
use crate::plan::{Change, Event, Link};
use crate::shim::{Fails, Times};
use crate::trial::Trial;

/// What a node says of a disk that is full, or fails.
const DISK_ERRORS: [&str; 2] = ["No space left on device", "Input/output error"];

/// Longest it takes until a node whose disk has failed has ended.
const ENDS: Duration = Duration::from_secs(30);
/// Between two looks at whether it has.
const POLL: Duration = Duration::from_millis(10);

impl Trial {
    /// Has it happen, as far as it can: who is down is not killed.
    pub async fn cause(&mut self, event: Event, clients: &Clients) {
        *self.tally.entry(event.kind()).or_default() += 1;
        self.bury();
        match event {
            Event::Change(change) => self.change(change).await,
            Event::Clock(node, ahead) => self.shims[&node].set_clock(ahead),
            Event::Cut(links, how) => {
                links.iter().for_each(|(from, to)| self.wires.cut(*from, *to, how));
                if let Some(node) = self.cut_off_by(&links) {
                    clients.cut_off().insert(node, Instant::now());
                }
            }
            Event::Delay(links, delay) => {
                links.iter().for_each(|(from, to)| self.wires.delay(*from, *to, delay));
            }
            Event::FailSync(node) => {
                self.excused.insert(node);
                self.shims[&node].fail(Fails::Syncs, &self.data(node).join("log"), Times::Once);
            }
            Event::Fill(node) => {
                if let Some(disk) = self.disks.get(&node) {
                    self.excused.insert(node);
                    disk.fill();
                }
            }
            Event::Kill(node) => self.kill(node).await,
            Event::Mend(links) => {
                clients.cut_off().clear();
                links.iter().for_each(|(from, to)| self.wires.mend(*from, *to));
            }
            Event::Pause(node) => {
                // What waits for it in its sockets is old when it goes on, and passes for new.
                clients.cut_off().remove(&node);
                if self.signal(node, Signal::STOP) {
                    self.paused.insert(node);
                }
            }
            Event::PowerCut(nodes) => self.cut_power(&nodes).await,
            Event::Resume(node) => {
                clients.cut_off().remove(&node);
                if self.resume(node) {
                    clients.ask_at_once(&At::of(&self.test, &[node])).await;
                }
            }
            Event::Room(node) => {
                self.make_room(node);
                self.ends_if_struck(node).await;
                self.start(node).await;
            }
            Event::Start(node) => self.start(node).await,
        }
    }

    /// Ends every fault, and has every member run.
    pub async fn heal(&mut self) {
        self.wires.heal();
        let nodes: Vec<NodeId> = self.test.cluster.layout().nodes.iter().map(|node| node.id).collect();
        for from in &nodes {
            nodes.iter().for_each(|to| self.wires.delay(*from, *to, Duration::ZERO));
        }
        for node in nodes {
            self.resume(node);
            self.make_room(node);
            self.shims[&node].set_clock(0);
        }
        for node in self.members.clone() {
            self.ends_if_struck(node).await;
            self.start(node).await;
        }
        self.bury();
    }

    /// Starts members again whose disks were full or failed, and that have ended only now.
    pub async fn supervise(&mut self) {
        self.bury();
        for node in self.members.clone() {
            if self.excused.contains(&node) {
                self.start(node).await;
            }
        }
    }

    /// Takes note of nodes that have ended by themselves. Only a disk that is full or fails is a reason to.
    fn bury(&mut self) {
        while let Some((node, how)) = self.test.cluster.ended().now_or_never() {
            let log = self.test.log(node);
            let said = log.lines().rev().take(5).collect::<Vec<_>>().join("\n");
            let is_of_the_disk = DISK_ERRORS.iter().any(|error| said.contains(error));
            let is_excused = is_of_the_disk && self.excused.contains(&node);
            assert!(is_excused, "node {node} ended by itself, {how}: {said}");
            *self.tally.entry("nodes that ended for their disks").or_default() += 1;
        }
    }

    /// A node whose log could not be synced has ended, or is about to. One that is paused does so later.
    async fn ends_if_struck(&mut self, node: NodeId) {
        let deadline = Instant::now() + ENDS;
        let is_about_to = self.shims[&node].struck() > 0 && !self.paused.contains(&node);
        while is_about_to && self.test.cluster.pid(node).is_some() {
            self.bury();
            assert!(Instant::now() < deadline, "node {node} goes on with a log that could not be synced");
            tokio::time::sleep(POLL).await;
        }
        self.bury();
    }

    /// Starts a node that does not run, as its service manager would. On a full disk it may end again.
    async fn start(&mut self, node: NodeId) {
        if self.test.cluster.pid(node).is_some() {
            return;
        }
        self.shims[&node].forget();
        match self.test.cluster.start(node).await {
            Ok(()) => {}
            Err(LocalClusterError::NodeEnded { .. }) if self.excused.contains(&node) => self.bury(),
            Err(error) => panic!("node {node} does not come back: {error}"),
        }
    }

    async fn kill(&mut self, node: NodeId) {
        self.paused.remove(&node);
        self.test.cluster.kill(node).await.expect("killed");
    }

    /// Whether it runs, and was told.
    fn signal(&self, node: NodeId, signal: Signal) -> bool {
        let Some(pid) = self.test.cluster.pid(node) else { return false };
        let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero");
        kill_process(pid, signal).is_ok()
    }

    fn resume(&mut self, node: NodeId) -> bool {
        self.paused.remove(&node) && self.signal(node, Signal::CONT)
    }

    fn make_room(&self, node: NodeId) {
        self.shims[&node].mend();
        if let Some(disk) = self.disks.get(&node) {
            disk.make_room();
        }
    }

    /// The power of `nodes` fails: they are gone, and with them what is not on their disks. Without disks of their own they
    /// are only killed.
    pub(crate) async fn cut_power(&mut self, nodes: &[NodeId]) {
        for node in nodes {
            self.signal(*node, Signal::STOP);
        }
        let disks: Vec<_> = nodes.iter().filter_map(|node| self.disks.get(node)).collect();
        disks.iter().for_each(|disk| disk.copy());
        for node in nodes {
            self.paused.remove(node);
            self.test.cluster.kill(*node).await.expect("killed");
        }
        disks.iter().for_each(|disk| disk.put_copy_in_place());
    }

    /// Begins a change, with a node that is no member yet if it needs one.
    async fn change(&mut self, change: Change) {
        let needs_newcomer = matches!(change, Change::AddAndRemove(_) | Change::Replace(_));
        let newcomer = if needs_newcomer { self.spare.pop() } else { None };
        if let Some(node) = newcomer {
            self.test.cluster.start(node).await.expect("a new node starts");
        }
        let layout = self.test.cluster.layout();
        let address = newcomer.map(|node| layout.node(node).expect("a node").peer_address());
        let operator = self.test.client("operator", &self.members);
        self.change = Some(tokio::spawn(changes::attempt(operator, change, address)));
    }

    /// The node that is cut off from all other members when these links are, in both directions.
    fn cut_off_by(&self, links: &[Link]) -> Option<NodeId> {
        let is_cut = |from: NodeId, to: NodeId| links.contains(&(from, to));
        self.members.iter().copied().find(|node| {
            let mut others = self.members.iter().filter(|other| *other != node);
            others.all(|other| is_cut(*node, *other) && is_cut(*other, *node))
        })
    }
}
