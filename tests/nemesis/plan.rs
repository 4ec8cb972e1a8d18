//! What happens to the nodes in a run, and when.

use std::fmt;
use std::time::Duration;

use strongroom::escrow::ids::NodeId;

use crate::common::Seeded;
use crate::common::network::Cut;

/// Faults begin within this time.
const BEGIN_MS: u64 = 2_000;
/// The shortest time between a fault and its end, and by how much it may be longer.
const LEAST_MS: u64 = 400;
const MORE_MS: u64 = 2_200;
/// The longest that words are late on a slow link: less than an election's time, more than a heartbeat's.
const DELAY_MAX_MS: u64 = 150;
/// How long a flapping link stays as it is, at least; up to three times as much.
const FLAP_MS: u64 = 80;

/// By how much a clock jumps, forward or back: hours or days.
const JUMPS_SECONDS: [i64; 4] = [3_600, 7 * 3_600, 24 * 3_600, 20 * 24 * 3_600];

/// What is said by the first to the second.
pub type Link = (NodeId, NodeId);

/// Something that is done to the nodes or the network.
#[derive(Debug, Clone)]
pub enum Event {
    Change(Change),
    /// Its clock shows a time that is ahead by as many seconds from now on; behind if negative, and right if zero.
    Clock(NodeId, i64),
    Cut(Vec<Link>, Cut),
    Delay(Vec<Link>, Duration),
    /// The next fsync of its log fails.
    FailSync(NodeId),
    /// Its disk is full from now on.
    Fill(NodeId),
    Kill(NodeId),
    Mend(Vec<Link>),
    Pause(NodeId),
    /// The power of these nodes fails at the same time.
    PowerCut(Vec<NodeId>),
    Resume(NodeId),
    /// Its disk has room again, and syncs.
    Room(NodeId),
    Start(NodeId),
}

/// A change of the membership, made while all this happens. Half-made or refused, it is settled after the heal.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// A new node is added, and then this one removed.
    AddAndRemove(NodeId),
    /// It is made a learner, and a voter again.
    Demote(NodeId),
    /// A new node takes its place.
    Replace(NodeId),
    Transfer(NodeId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Change,
    Clock,
    FailedSync,
    Flapping,
    FullDisk,
    Kill,
    Partition,
    Pause,
    PowerCut,
    PowerCutOfAll,
    Slow,
}

/// Each of them is in the plan of one of as many seeds that follow each other; others come by chance.
const FAULTS: [Fault; 11] = [
    Fault::PowerCutOfAll,
    Fault::Change,
    Fault::Pause,
    Fault::FullDisk,
    Fault::Partition,
    Fault::PowerCut,
    Fault::Kill,
    Fault::Flapping,
    Fault::Slow,
    Fault::Clock,
    Fault::FailedSync,
];

/// Several faults at once.
pub struct Plan {
    pub seed: u64,
    /// Who leads when it begins.
    pub leader: NodeId,
    /// In order, each by the time since the beginning.
    pub events: Vec<(Duration, Event)>,
}

/// What is needed to draw one fault after the other.
struct Drawing<'a> {
    seeded: Seeded,
    members: &'a [NodeId],
    leader: NodeId,
    events: Vec<(u64, Event)>,
}

impl Plan {
    /// What `seed` stands for in a cluster of these members.
    pub fn of(seed: u64, members: &[NodeId]) -> Self {
        let mut seeded = Seeded::of(seed);
        let leader = seeded.one_of(members);
        let mut drawing = Drawing { seeded, members, leader, events: Vec::new() };
        let first = FAULTS[(seed % FAULTS.len() as u64) as usize];
        drawing.add(first);
        let more = 2 + drawing.seeded.draw(2);
        for _ in 0..more {
            let fault = drawing.seeded.one_of(&FAULTS);
            // One change at a time is made, and what all disks lose at once, they lose once.
            if fault != first {
                drawing.add(fault);
            }
        }
        let mut events = drawing.events;
        events.sort_by_key(|(at, _)| *at);
        let events = events.into_iter().map(|(at, event)| (Duration::from_millis(at), event)).collect();
        Self { seed, leader, events }
    }
}

impl Drawing<'_> {
    fn add(&mut self, fault: Fault) {
        let begin = self.seeded.draw(BEGIN_MS);
        let end = begin + LEAST_MS + self.seeded.draw(MORE_MS);
        let node = self.target();
        let mut at = |at: u64, event: Event| self.events.push((at, event));
        match fault {
            Fault::Change => {
                let change = self.change(node);
                self.events.push((begin, Event::Change(change)));
            }
            Fault::Clock => {
                let ahead = self.seeded.one_of(&JUMPS_SECONDS);
                let ahead = if self.seeded.draw(2) == 0 { ahead } else { -ahead };
                self.events.extend([(begin, Event::Clock(node, ahead)), (end, Event::Clock(node, 0))]);
            }
            Fault::FailedSync => {
                at(begin, Event::FailSync(node));
                at(end, Event::Room(node));
            }
            Fault::Flapping => self.flapping(begin, end),
            Fault::FullDisk => {
                at(begin, Event::Fill(node));
                at(end, Event::Room(node));
            }
            Fault::Kill => {
                at(begin, Event::Kill(node));
                at(end, Event::Start(node));
            }
            Fault::Partition => {
                let (links, how) = (self.links(node), self.how());
                self.events.extend([(begin, Event::Cut(links.clone(), how)), (end, Event::Mend(links))]);
            }
            Fault::Pause => {
                at(begin, Event::Pause(node));
                at(end, Event::Resume(node));
            }
            Fault::PowerCut => {
                at(begin, Event::PowerCut(vec![node]));
                at(end, Event::Start(node));
            }
            Fault::PowerCutOfAll => {
                at(begin, Event::PowerCut(self.members.to_vec()));
                // One after the other: who is first waits for the rest.
                for (node, later) in self.members.iter().zip(0..) {
                    let pause = self.seeded.draw(MORE_MS) / (later + 1);
                    self.events.push((begin + pause, Event::Start(*node)));
                }
            }
            Fault::Slow => {
                let links = self.all_of(node);
                let delay = Duration::from_millis(1 + self.seeded.draw(DELAY_MAX_MS));
                self.events.push((begin, Event::Delay(links.clone(), delay)));
                self.events.push((end, Event::Delay(links, Duration::ZERO)));
            }
        }
    }

    /// Half the time it is the leader.
    fn target(&mut self) -> NodeId {
        if self.seeded.draw(2) == 0 { self.leader } else { self.seeded.one_of(self.members) }
    }

    fn how(&mut self) -> Cut {
        if self.seeded.draw(3) == 0 { Cut::Reset } else { Cut::Silent }
    }

    fn change(&mut self, node: NodeId) -> Change {
        match self.seeded.draw(4) {
            0 => Change::AddAndRemove(node),
            1 => Change::Demote(node),
            2 => Change::Replace(node),
            _ => Change::Transfer(node),
        }
    }

    fn flapping(&mut self, begin: u64, end: u64) {
        let node = self.target();
        let (links, how) = (self.links(node), self.how());
        let mut at = begin;
        while at < end {
            self.events.push((at, Event::Cut(links.clone(), how)));
            at += FLAP_MS + self.seeded.draw(2 * FLAP_MS);
            self.events.push((at, Event::Mend(links.clone())));
            at += FLAP_MS + self.seeded.draw(2 * FLAP_MS);
        }
    }

    /// Every link of `node`.
    fn all_of(&self, node: NodeId) -> Vec<Link> {
        let others = self.members.iter().filter(|other| **other != node);
        others.flat_map(|other| [(node, *other), (*other, node)]).collect()
    }

    /// Links that are cut: of `node` in both directions or in one, or to one other.
    fn links(&mut self, node: NodeId) -> Vec<Link> {
        let all = self.all_of(node);
        match self.seeded.draw(6) {
            0 => all.into_iter().filter(|(from, _)| *from == node).collect(),
            1 => all.into_iter().filter(|(_, to)| *to == node).collect(),
            2 => all.into_iter().take(2).collect(),
            _ => all,
        }
    }
}

impl Event {
    /// Its kind, as it is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Change(Change::AddAndRemove(_)) => "nodes added and removed",
            Self::Change(Change::Demote(_)) => "voters demoted",
            Self::Change(Change::Replace(_)) => "nodes replaced",
            Self::Change(Change::Transfer(_)) => "leaderships handed over",
            Self::Clock(_, 0) => "clocks set right",
            Self::Clock(..) => "clock jumps",
            Self::Cut(..) => "cuts",
            Self::Delay(..) => "slow links",
            Self::FailSync(_) => "failed syncs",
            Self::Fill(_) => "full disks",
            Self::Kill(_) => "kills",
            Self::Mend(_) => "mended links",
            Self::Pause(_) => "pauses",
            Self::PowerCut(nodes) if nodes.len() > 1 => "power cuts of all nodes",
            Self::PowerCut(_) => "power cuts of one node",
            Self::Resume(_) => "resumed nodes",
            Self::Room(_) => "disks that are well again",
            Self::Start(_) => "starts",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, leader, events } = self;
        write!(f, "seed {seed}: node {leader} leads")?;
        events.iter().try_for_each(|(at, event)| write!(f, "; at {} {event:?}", at.as_millis()))
    }
}
