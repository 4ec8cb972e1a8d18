//! Simulation: the product's domain, its store and openraft, over a network, disks and clocks that are simulated, so that
//! what happens is told by a seed alone.
//!
//! # What runs
//!
//! | real | simulated |
//! |---|---|
//! | `escrow::apply`, lookups, the audit chain | clients, and what they hold against what they were told ([`oracle`]) |
//! | `store::machine` with base, snapshots and keeper, in a temporary directory; `raft::storage` opens it after a crash | the disk under the log, with what is written and not synced ([`disk`]) |
//! | `raft::state_machine`, `raft::log_store`'s formats, openraft as `raft::node` sets it up | the network ([`links`], [`wire`]) and time ([`openraft_rt_sim`]) |
//!
//! What cannot be simulated is what is bound to sockets and to tokio's clock: `raft::Node` with its peers, journal,
//! healing and reads. [`asking`] stands in for its way of asking the leader. openraft is named here as in `raft`: a test
//! needs the seams that the product has there.
//!
//! # What must hold
//!
//! After each step ([`ledger`]): one leader a term, one vote a voter and term; every replica applies the same entries, with
//! the same answers and digests as a replay of the committed log in memory; logs hold nothing else below what is applied;
//! acknowledged entries are on the disks of a majority ([`world::World::acknowledged`]). After each start, between faults
//! and at the end: every row and the whole audit chain. What clients were told ([`oracle`]): nothing acknowledged is missing
//! or changed, no request is done twice, no quorum read is older than what was known before it. In the end everything
//! heals, all members are level, and each takes a new key.
//!
//! # Determinism
//!
//! One thread runs all tasks of a run in the order in which they became ready, on openraft's simulated runtime; every chance
//! is drawn from the seed. The store's own threads are waited for within one step and do nothing unasked, so nothing rests
//! on how long they take. A test compares two runs of a seed, step by step as the runtime took them.
//!
//! # Broken rules
//!
//! A test breaks one rule at a time ([`mutation`]) and wants some seed to find it:
//!
//! | broken | found by |
//! |---|---|
//! | acknowledged before it is synced | acknowledged entries are on the disks of a majority |
//! | apply reads the clock | digests and answers equal those of a replay |
//! | a vote is not persisted; a voter with a wiped disk returns | one vote a voter and term; one leader a term; the same entries everywhere |
//! | a snapshot is said to be installed and is not | the store refuses an entry that does not follow; answers part |
//! | a quorum read without ReadIndex | no quorum read is older than what was known |
//! | a leader that restarts goes on in its old term | the same entries everywhere; found by these seeds in openraft's default |
//! | a request that comes again has another id | no request is on record twice |
//!
//! # Running it
//!
//! - `STRONGROOM_SIMULATION_SEEDS=10000` runs the seeds from 1 to that, instead of [`SEEDS`] of them;
//! - `STRONGROOM_SIMULATION_SEED=17` runs this one alone and tells what happens in it.

#![allow(clippy::unwrap_used)]

mod asking;
mod clients;
mod disk;
mod faults;
mod host;
mod ledger;
mod links;
mod log;
mod members;
mod mutation;
mod opening;
mod oracle;
mod replica;
#[path = "../common/rows.rs"]
mod rows;
mod run;
#[path = "../storage/sample.rs"]
mod sample;
mod scenarios;
#[path = "../common/seeded.rs"]
mod seeded;
mod skewed;
mod transfer;
mod types;
mod wire;
mod world;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use mutation::Mutation;
use run::{Outcome, Watched, run};
use world::Counts;

/// How many seeds a normal run has: a minute's worth on two cores, unoptimised.
const SEEDS: u64 = 200;
/// What some seed or other must have seen: a simulation in which nothing happens finds nothing.
const HAPPENS: [&str; 18] = [
    "crashes",
    "crashes that took what was not synced",
    "escrows",
    "leaderships handed over",
    "learners promoted",
    "logs purged",
    "logs truncated",
    "messages delivered twice",
    "messages lost",
    "nodes joined",
    "quorum reads",
    "refused reveals",
    "reveals",
    "snapshots damaged on the way",
    "snapshots installed",
    "snapshots taken",
    "unanswered commands",
    "voters removed",
];
/// Within how many seeds a broken rule must be found.
const MUTATED_SEEDS: u64 = 60;
/// How many seeds are run twice.
const REPEATED_SEEDS: u64 = 4;
/// Runs side by side.
const THREADS: u64 = 2;

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_and_everything_heals() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (from, to, watched) = match number("STRONGROOM_SIMULATION_SEED") {
        Some(seed) => (seed, seed, Watched::Told),
        None => (1, number("STRONGROOM_SIMULATION_SEEDS").unwrap_or(SEEDS), Watched::No),
    };
    let outcomes = run_all(from, to, watched);
    let failed = outcomes.iter().filter(|outcome| outcome.broken.is_some()).count();
    let mut counts = Counts::new();
    for (what, count) in outcomes.iter().flat_map(|outcome| &outcome.counts) {
        *counts.entry(*what).or_default() += count;
    }
    eprintln!("{} seeds: {counts:?}", outcomes.len());
    assert_eq!(failed, 0, "of {} seeds", outcomes.len());
    if to + 1 - from >= SEEDS {
        let missing: Vec<_> = HAPPENS.iter().filter(|what| !counts.contains_key(**what)).collect();
        assert!(missing.is_empty(), "nothing was seen of {missing:?}: {counts:?}");
    }
}

#[test]
fn a_seed_tells_everything_that_happens() {
    for seed in 1..=REPEATED_SEEDS {
        let once = run(seed, None, Watched::Recorded);
        let twice = run(seed, None, Watched::Recorded);
        let parted = once.schedule.iter().zip(&twice.schedule).position(|(one, other)| one != other);
        if let Some(at) = parted {
            let (one, other) = (&once.schedule[at], &twice.schedule[at]);
            panic!("seed {seed}: step {at} is {one} and then {other}");
        }
        assert!(once == twice, "seed {seed}: {:?} and then {:?}", once.trace, twice.trace);
        assert_ne!(once.trace, run(seed + 1, None, Watched::No).trace, "seed {seed}");
    }
}

#[test]
fn a_rule_that_is_broken_is_found_by_some_seed() {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(mutation) = Mutation::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = (1..=MUTATED_SEEDS).find_map(|seed| {
                let broken = run(seed, Some(*mutation), Watched::No).broken;
                broken.map(|broken| (seed, broken))
            });
            let (seed, broken) = found.unwrap_or_else(|| panic!("{mutation:?} is not found"));
            eprintln!("{mutation:?}: found by seed {seed}: {broken}");
            let is_meant = mutation.signs().iter().any(|sign| broken.contains(sign));
            assert!(is_meant, "{mutation:?}: seed {seed} fails for another reason: {broken}");
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Runs seeds side by side, each by itself. One that fails is told at once.
fn run_all(from: u64, to: u64, watched: Watched) -> Vec<Outcome> {
    let next = AtomicU64::new(from);
    let work = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > to {
                return outcomes;
            }
            let outcome = run(seed, None, watched);
            if let Some(broken) = &outcome.broken {
                eprintln!("seed {seed} failed: {broken}\n  STRONGROOM_SIMULATION_SEED={seed} repeats it");
            }
            outcomes.push(outcome);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}
