//! Everything that the clients of one plan did and were told, and whether it goes together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::proto::{FindResponse, Freshness};

use crate::common::{Kept, key};
use crate::history::{Operation, Seen, Told, in_words, is_linearizable};

/// By how much a node may take a quorum for younger than it is: what had arrived when the node was cut off may still have
/// waited for the processor.
const AGE_SLACK: Duration = Duration::from_secs(1);

/// What a node's own replica said of a key.
#[derive(Debug, Clone)]
pub struct LocalRead {
    pub key: KeyId,
    pub answered: Instant,
    /// The index that the answer had to be as fresh as; 0 for none.
    pub min_index: u64,
    /// How long the node had been cut off from every other one when it was asked, if it was so all the while.
    pub cut_off: Option<Duration>,
    pub seen: Seen,
    pub freshness: Freshness,
}

/// How a reveal ended, as its caller was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveal {
    /// With the key: it is on record.
    Shown,
    /// With the key, from one node alone: it comes on record.
    ShownAlone,
    /// Without it: it may be on record, as far as the caller knows.
    Unknown,
    /// Without it, by a quorum.
    Denied,
}

/// What was done, by key.
#[derive(Debug, Default)]
pub struct Record {
    history: BTreeMap<KeyId, Vec<Operation>>,
    /// Numbers of keys that somebody has begun to escrow, in order.
    begun: Vec<(u64, Instant)>,
    /// Keys that were acknowledged, in order.
    kept: Vec<Kept>,
    /// Fingerprints that any node gave for a key.
    fingerprints: BTreeMap<KeyId, BTreeSet<String>>,
    /// The first entry that is known to have put a reveal of a key on record.
    disclosed: BTreeMap<KeyId, u64>,
    locals: Vec<LocalRead>,
    reveals: BTreeMap<String, Reveal>,
    /// Index of the last entry that a client knows to be committed.
    known: u64,
}

impl Record {
    /// Somebody is about to escrow this key. Whether it is the first who does.
    pub fn begin(&mut self, n: u64) -> bool {
        let is_first = !self.begun.iter().any(|(begun, _)| *begun == n);
        if is_first {
            self.begun.push((n, Instant::now()));
        }
        is_first
    }

    pub fn add(&mut self, key: KeyId, called: Instant, told: Told) {
        let answered = (!matches!(told, Told::MaybeKept | Told::MaybeShown)).then(Instant::now);
        self.history.entry(key).or_default().push(Operation { called, answered, told });
    }

    pub fn keep(&mut self, kept: Kept) {
        self.found(kept.1.key_id, kept.1.fingerprint.to_string());
        self.known = self.known.max(kept.1.index);
        if !self.kept.iter().any(|(_, receipt)| receipt.key_id == kept.1.key_id) {
            self.kept.push(kept);
        }
    }

    /// A reveal is asked for, for a reason that is given once.
    pub fn ask(&mut self, reason: &str) {
        let before = self.reveals.insert(reason.to_owned(), Reveal::Unknown);
        assert!(before.is_none(), "{reason} is given once");
    }

    pub fn end(&mut self, reason: &str, how: Reveal) {
        *self.reveals.get_mut(reason).expect("asked for") = how;
    }

    /// A reveal of `key` was put on record by the entry at `index`.
    pub fn disclose(&mut self, key: KeyId, index: u64) {
        self.known = self.known.max(index);
        let first = self.disclosed.entry(key).or_insert(index);
        *first = index.min(*first);
    }

    pub fn read_locally(&mut self, read: LocalRead) {
        self.locals.push(read);
    }

    /// What an answer says of a key that was asked for by its whole id.
    pub fn seen(&mut self, key: KeyId, found: &FindResponse) -> Seen {
        let [found] = &*found.keys else {
            assert!(found.keys.is_empty(), "key {key} is there more than once");
            return Seen::Absent;
        };
        self.found(key, found.fingerprint.clone());
        match &*found.state {
            "active" => Seen::Active,
            "disclosed" => Seen::Disclosed,
            state => panic!("key {key} is {state}: nobody made it so"),
        }
    }

    fn found(&mut self, key: KeyId, fingerprint: String) {
        self.fingerprints.entry(key).or_default().insert(fingerprint);
    }

    pub fn begun(&self) -> &[(u64, Instant)] {
        &self.begun
    }

    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Index of the last entry that a client knows to be committed.
    pub fn known(&self) -> u64 {
        self.known
    }

    pub fn reveals(&self) -> &BTreeMap<String, Reveal> {
        &self.reveals
    }

    /// Keys of which nobody was told that they are kept.
    pub fn not_acknowledged(&self) -> Vec<u64> {
        let kept: BTreeSet<KeyId> = self.kept.iter().map(|(_, receipt)| receipt.key_id).collect();
        self.begun.iter().map(|(n, _)| *n).filter(|n| !kept.contains(&key(*n))).collect()
    }

    /// Checks all of it, once every key was acknowledged.
    pub fn check(&self) {
        for (key, operations) in &self.history {
            assert!(
                is_linearizable(operations),
                "what was told of key {key} is not linearizable: {}",
                in_words(operations)
            );
        }
        for (key, fingerprints) in &self.fingerprints {
            assert_eq!(fingerprints.len(), 1, "key {key} is two secrets: {fingerprints:?}");
        }
        let begun: BTreeMap<KeyId, Instant> = self.begun.iter().map(|(n, at)| (key(*n), *at)).collect();
        let index: BTreeMap<KeyId, u64> =
            self.kept.iter().map(|(_, receipt)| (receipt.key_id, receipt.index)).collect();
        for read in &self.locals {
            self.check_local(read, begun.get(&read.key), index.get(&read.key));
        }
    }

    /// A local read may be old, but it is as fresh as it says, and nothing in it is of the future.
    fn check_local(&self, read: &LocalRead, begun: Option<&Instant>, kept: Option<&u64>) {
        let applied = read.freshness.applied;
        let holds = |entry: Option<&u64>| entry.is_some_and(|index| *index <= applied);
        assert!(!holds(kept) || read.seen != Seen::Absent, "kept by entry {kept:?}, and not there: {read:?}");
        let disclosed = self.disclosed.get(&read.key);
        assert!(
            !holds(disclosed) || read.seen == Seen::Disclosed,
            "shown by entry {disclosed:?}, and not disclosed: {read:?}"
        );
        assert!(applied >= read.min_index, "older than was asked for: {read:?}");
        if read.seen != Seen::Absent {
            assert!(begun.is_some_and(|begun| *begun <= read.answered), "nobody has escrowed this: {read:?}");
        }
        if read.seen == Seen::Disclosed {
            let is_reveal = |one: &&Operation| matches!(one.told, Told::Shown | Told::MaybeShown);
            let mut reveals = self.history.get(&read.key).into_iter().flatten().filter(is_reveal);
            assert!(reveals.any(|one| one.called <= read.answered), "nobody has revealed this: {read:?}");
        }
        if let (Some(cut_off), Some(age)) = (read.cut_off, read.freshness.quorum_age_ms) {
            let age = Duration::from_millis(age);
            assert!(age + AGE_SLACK >= cut_off, "there was no quorum in contact so lately: {read:?}");
        }
    }

    /// How many operations there are, by what was told.
    pub fn count(&self, mut count: impl FnMut(&'static str)) {
        for one in self.history.values().flatten() {
            count(match one.told {
                Told::Found(_) => "quorum reads",
                Told::Kept { before: false } => "keys kept",
                Told::Kept { before: true } => "keys kept before",
                Told::MaybeKept => "escrows without an answer",
                Told::MaybeShown => "reveals whose record was to come, or without an answer",
                Told::NotThere => "reveals denied",
                Told::Shown => "reveals",
            });
        }
        self.reveals
            .values()
            .filter(|how| **how == Reveal::ShownAlone)
            .for_each(|_| count("reveals without a quorum"));
        self.locals.iter().for_each(|_| count("local reads"));
        self.locals
            .iter()
            .filter(|read| read.cut_off.is_some())
            .for_each(|_| count("local reads of a node cut off"));
    }
}

/// Nodes that are cut off from every other one, and since when.
pub type CutOff = BTreeMap<NodeId, Instant>;
