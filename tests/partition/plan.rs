//! What happens in a run, and when.

use std::fmt;
use std::time::Duration;

use strongroom::escrow::ids::NodeId;

use crate::common::network::Cut;
use crate::common::{ALL, Seeded, others};

/// The longest that words are late in a run with a slow link: less than makes a leader doubt its followers.
const DELAY_MAX_MS: u64 = 60;

/// Something that is done to the nodes or the network.
#[derive(Debug, Clone)]
pub enum Event {
    /// These links are cut, by who speaks and to whom, and no others any more.
    Cut(Vec<(NodeId, NodeId)>, Cut),
    Heal,
    Kill(NodeId),
    Start(NodeId),
}

/// One partition, and whatever happens meanwhile.
pub struct Plan {
    seed: u64,
    /// Who leads when it begins.
    pub leader: NodeId,
    /// In order, each by the time since the beginning.
    pub events: Vec<(Duration, Event)>,
    /// What is said on this link is late by as much, all the time.
    pub slow: Option<(NodeId, NodeId, Duration)>,
}

impl Plan {
    /// The partition that `seed` stands for.
    pub fn of(seed: u64) -> Self {
        let mut seeded = Seeded::of(seed);
        let leader = seeded.one_of(&ALL);
        let cut = 300 + seeded.draw(400);
        let heal = cut + 1_000 + seeded.draw(3_000);
        let mut events = vec![(cut, cuts(&mut seeded, leader)), (heal, Event::Heal)];
        if seeded.draw(3) == 0 {
            // It moves: who was cut off is heard again, and somebody else is not.
            events.push((cut + 500 + seeded.draw(heal - cut - 500), cuts(&mut seeded, leader)));
        }
        for _ in 0..seeded.draw(4) {
            let node = if seeded.draw(3) == 0 { leader } else { seeded.one_of(&ALL) };
            // As likely before or in the cut as in the heal, when journals are brought on record.
            let killed = if seeded.draw(2) == 0 {
                cut - 200 + seeded.draw(heal - cut)
            } else {
                heal + seeded.draw(1_000)
            };
            events.extend([
                (killed, Event::Kill(node)),
                (killed + 100 + seeded.draw(1_500), Event::Start(node)),
            ]);
        }
        events.sort_by_key(|(at, _)| *at);
        let events = events.into_iter().map(|(at, event)| (Duration::from_millis(at), event)).collect();
        let slow = (seeded.draw(3) == 0).then(|| {
            let node = seeded.one_of(&ALL);
            (node, seeded.one_of(&others(node)), Duration::from_millis(1 + seeded.draw(DELAY_MAX_MS)))
        });
        Self { seed, leader, events, slow }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, leader, events, slow } = self;
        write!(f, "seed {seed}: node {leader} leads")?;
        slow.iter().try_for_each(|(from, to, late)| write!(f, ", {from} to {to} is late by {late:?}"))?;
        events.iter().try_for_each(|(at, event)| write!(f, "; at {} {event:?}", at.as_millis()))
    }
}

/// Links that are cut: of one node in both directions or in one, of a pair, or all. Half the time it is the leader's.
fn cuts(seeded: &mut Seeded, leader: NodeId) -> Event {
    let node = if seeded.draw(2) == 0 { leader } else { seeded.one_of(&ALL) };
    let other = seeded.one_of(&others(node));
    let from = |node: NodeId| others(node).into_iter().map(move |other| (node, other)).collect::<Vec<_>>();
    let (there, back) = (from(node), from(node).into_iter().map(|(node, other)| (other, node)).collect());
    let cuts = match seeded.draw(8) {
        0..=2 => [there, back].concat(),
        3 => there,
        4 => back,
        5 => vec![(node, other)],
        6 => vec![(node, other), (other, node)],
        _ => ALL.into_iter().flat_map(from).collect(),
    };
    Event::Cut(cuts, if seeded.draw(4) == 0 { Cut::Reset } else { Cut::Silent })
}
