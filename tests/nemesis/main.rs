//! A nemesis on real processes: three nodes, or five, over mutual TLS, with clients at each of them, and plans of faults of
//! which several strike at once, a change of the membership among them. Then everything heals, and what clients were
//! told meanwhile must go together with what there is.
//!
//! # Faults
//!
//! | fault | how it is made |
//! |---|---|
//! | kill | SIGKILL, and started again later |
//! | pause | SIGSTOP and SIGCONT, half the time of the leader; the moment it goes on it is asked by a quorum what others may have changed |
//! | partition | a proxy between all nodes (`common/network.rs`) lets nothing through, or breaks connections: of one node, one direction of it, or one pair |
//! | flapping links | the same, on and off every few heartbeats |
//! | slow links | the proxy holds up what one node says and hears |
//! | lost packets | in a test of its own ([`namespaces`]): each node in a network namespace, and rules of nftables between them |
//! | full disk | the node's ext4 in a file on a loop device ([`disks`]) is filled to the last block, and emptied again. The node ends by itself, and is started again as its service manager would |
//! | power cut of a node, or of all at once | the file under the running node's file system is copied while the node is under load, the node is killed, and the copy takes the place of the disk: what was not synced is not in it |
//! | failed sync | an fsync of the log fails once ([`shim`]): the node ends by itself, and is started again. Everything else that may fail in a disk: [`failing_disk`] |
//! | clock jump | the node's wall clock is hours or days ahead, or behind, until it is set right ([`shim`]) |
//! | change of the membership | a leader that hands over; a voter demoted and promoted; a new node in the place of a member, or added before one is removed |
//!
//! The proxy needs no rights, and can be slow; it cannot lose what it has taken. Where this process may not mount, full disks and
//! power cuts are `SKIPPED` in the output, and so is what needs network namespaces where it may not make them.
//!
//! # What is checked
//!
//! | of | what |
//! |---|---|
//! | each key | escrows, quorum reads and reveals are linearizable ([`history`], by `todc-utils`); one secret, wherever it is seen |
//! | all keys | a quorum read is not older than any entry that a client knew to be committed when it asked |
//! | a node's own replica | a read is at least as fresh as it says and as was asked for, shows nothing that nobody has begun, and names no quorum that the node cannot have heard of ([`record`]) |
//! | the heal | within a bound each member takes a new key, half-made changes are settled, who got no answer gets one |
//! | every member | every key ever acknowledged, opened for some of them; equal digests at the equal index |
//! | the audit trail | the same everywhere, its chain whole, every reveal that was shown in it once, and none that nobody asked for |
//! | processes | none ends by itself, but for a disk that is full or fails, and then it says so |
//!
//! That what this rests on can fail is tested beside it: histories that no single copy could have had are refused, and a
//! power cut takes what was not synced. Run with a preloaded `fdatasync` that does nothing, the power cuts of all nodes are
//! found by a quorum read that is older than what was acknowledged.
//!
//! # Running it
//!
//! A plan is told by its seed, but for what the machine does with the time. A seed that fails is named, and its nodes'
//! directories are left where it says.
//!
//! - `STRONGROOM_NEMESIS_SEEDS=100` runs the seeds from 1 to that, instead of [`SEEDS`] of them;
//! - `STRONGROOM_NEMESIS_SEED=17` runs this one alone, in a cluster of its own.

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod clients;
mod clocks;
mod disks;
mod failing_disk;
mod faults;
mod full_disk;
mod history;
mod namespaces;
mod plan;
mod power_cut;
mod record;
mod shim;
mod trial;
mod wires;

use std::cell::RefCell;

use futures_util::future::join_all;

use self::trial::{Tally, Trial};

/// How many seeds a normal run has: about a minute's worth.
const SEEDS: u64 = 12;
/// One seed in so many is of five voters.
const FIVE_EVERY: u64 = 5;
/// How many plans one cluster goes through: new nodes are used up.
const SEEDS_PER_CLUSTER: usize = 7;
/// How many clusters run side by side: most of the time is waiting.
const CLUSTERS: usize = 2;
/// What must have happened in a normal run: a nemesis that does nothing finds nothing.
const HAPPENS: [&str; 14] = [
    "clock jumps",
    "cuts",
    "failed syncs",
    "keys kept",
    "keys kept before",
    "kills",
    "local reads",
    "pauses",
    "power cuts of all nodes",
    "power cuts of one node",
    "quorum reads",
    "reveals",
    "reveals without a quorum",
    "slow links",
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_strikes_at_once_what_clients_were_told_goes_together() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (from, to) = match number("STRONGROOM_NEMESIS_SEED") {
        Some(seed) => (seed, seed),
        None => (1, number("STRONGROOM_NEMESIS_SEEDS").unwrap_or(SEEDS)),
    };
    let (fives, threes): (Vec<u64>, Vec<u64>) = (from..=to).partition(|seed| seed % FIVE_EVERY == 0);
    let batches = |voters: u64, seeds: Vec<u64>| {
        let batches: Vec<Vec<u64>> = seeds.chunks(SEEDS_PER_CLUSTER).map(<[u64]>::to_vec).collect();
        batches.into_iter().map(move |seeds| (voters, seeds))
    };
    let batches = RefCell::new(batches(5, fives).chain(batches(3, threes)));
    let total = RefCell::new(Tally::new());
    let clusters = (0..CLUSTERS).map(|_| async {
        let next = || batches.borrow_mut().next();
        while let Some((voters, seeds)) = next() {
            let mut trial = Trial::begin(voters).await;
            for seed in seeds {
                trial.run_or_tell(seed).await;
            }
            for (what, count) in trial.tally {
                *total.borrow_mut().entry(what).or_default() += count;
            }
        }
    });
    join_all(clusters).await;
    let total = total.into_inner();
    eprintln!("{} seeds: {total:?}", to + 1 - from);
    if to + 1 - from >= SEEDS {
        let missing: Vec<_> = HAPPENS.iter().filter(|what| !total.contains_key(**what)).collect();
        assert!(missing.is_empty(), "nothing was seen of {missing:?}: {total:?}");
    }
}
