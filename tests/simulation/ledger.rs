//! What must hold of the nodes, looked at whenever one of them takes a step.
//!
//! The ledger is the committed log as the first replica that applied each entry had it, and a second implementation of
//! the state over it: the product's `apply` on rows in an ordered map. Whatever a node applies, answers and holds is
//! compared with that.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use strongroom::escrow::apply::apply;
use strongroom::escrow::audit::{self, ChainHead};
use strongroom::escrow::command::Command;
use strongroom::escrow::ids::NodeId;
use strongroom::escrow::lookup;
use strongroom::escrow::memory::Memory;
use strongroom::escrow::records::AuditRecord;
use strongroom::raft::log_store::{log_id, position};
use strongroom::raft::storage::Storage;
use strongroom::raft::types::{Applied, LogId, Vote};
use strongroom::store::digest::Digest;
use strongroom::store::format;

use crate::disk::Content;
use crate::rows;
use crate::types::Entry;

/// One committed entry and what came of it.
struct Committed {
    entry: Entry,
    applied: Applied,
    digest: Digest,
}

/// The voters, of each half of a joint configuration.
pub type Halves = Vec<BTreeSet<NodeId>>;

/// See the module.
#[derive(Default)]
pub struct Ledger {
    broken: Option<String>,
    /// By index, from 0 on.
    committed: Vec<Committed>,
    reference: Memory,
    /// By term.
    leaders: BTreeMap<u64, NodeId>,
    /// By voter and term.
    votes: BTreeMap<(NodeId, u64), NodeId>,
    /// With the index of the entry that set it.
    memberships: Vec<(u64, Halves)>,
}

impl Ledger {
    /// What does not hold, if something does not: the first thing.
    pub fn broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    pub fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// How many entries are committed.
    pub fn len(&self) -> u64 {
        self.committed.len() as u64
    }

    /// Election safety: at most one leader a term.
    pub fn leads(&mut self, term: u64, leader: NodeId) {
        let known = *self.leaders.entry(term).or_insert(leader);
        if known != leader {
            self.fail(format!("nodes {known} and {leader} both lead term {term}"));
        }
    }

    /// A voter gives one vote a term.
    pub fn votes(&mut self, voter: NodeId, vote: &Vote) {
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        let known = *self.votes.entry((voter, term)).or_insert(candidate);
        if known != candidate {
            self.fail(format!("node {voter} votes for {known} and for {candidate} in term {term}"));
        }
    }

    /// State machine safety, and that replicas are identical: all apply the same entries to the same effect.
    pub fn applied(&mut self, node: NodeId, entry: &Entry, applied: &Applied, digest: Digest) {
        let index = entry.log_id.index;
        if index == self.len() {
            return self.extend(node, entry, applied, digest);
        }
        let problem = match usize::try_from(index).ok().and_then(|index| self.committed.get(index)) {
            None => Some(format!("it is ahead of all that is committed, {}", self.len())),
            Some(known) if known.entry != *entry => {
                Some(format!("committed is {} there, another entry", known.entry.log_id))
            }
            Some(known) if known.applied != *applied => {
                Some(format!("it answers {applied:?}, and another replica {:?}", known.applied))
            }
            Some(known) if known.digest != digest => Some("its state differs from another's".to_owned()),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            self.fail(format!("node {node} applies {}: {problem}", entry.log_id));
        }
    }

    fn extend(&mut self, node: NodeId, entry: &Entry, applied: &Applied, digest: Digest) {
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                self.memberships.push((entry.log_id.index, membership.get_joint_config().clone()));
            }
            EntryPayload::Normal(commands) => {
                let mut apply = |command: &Bytes| {
                    let command: Command = format::decode(command).expect("the harness proposed it");
                    apply(&mut self.reference, position(&entry.log_id), &command)
                        .expect("memory does not fail")
                };
                let expected: Vec<_> = commands.0.iter().map(&mut apply).collect();
                if applied.0 != expected {
                    let told = &applied.0;
                    self.fail(format!(
                        "node {node} answers {told:?} to {}, by a replay it is {expected:?}",
                        entry.log_id
                    ));
                }
            }
        }
        self.committed.push(Committed { entry: entry.clone(), applied: applied.clone(), digest });
    }

    /// Equal digests at equal index.
    pub fn stands(&mut self, node: NodeId, digest: Digest) {
        let known = usize::try_from(digest.index).ok().and_then(|index| self.committed.get(index));
        match known {
            _ if self.committed.is_empty() && digest.index == 0 => {}
            Some(known) if known.digest == digest => {}
            Some(_) => self.fail(format!("node {node} differs from the others at index {}", digest.index)),
            None => self.fail(format!("node {node} stands at {}, ahead of all", digest.index)),
        }
    }

    /// Everything a node holds: its log up to what it applied, and, if it is not behind, each row of its state and the
    /// whole audit chain.
    pub fn look_at(&mut self, node: NodeId, log: &Content, storage: &Storage) {
        let applied = storage.machine.applied();
        if applied.position.is_none() {
            return;
        }
        self.stands(node, applied.digest());
        // A snapshot that was just installed is in its place before the log yields to it.
        let yields = applied.position.is_some_and(|position| !log.holds(log_id(position)));
        let of_log = log.entries.values().filter(|entry| entry.log_id.index <= applied.index() && !yields);
        for entry in of_log {
            let at = usize::try_from(entry.log_id.index).unwrap();
            if self.committed.get(at).is_none_or(|known| known.entry != *entry) {
                return self
                    .fail(format!("node {node} has {} in its log, which was never committed", entry.log_id));
            }
        }
        let view = storage.machine.view().expect("it is open");
        if applied.index() + 1 == self.len()
            && let Some(difference) = rows::differ(&view, &self.reference, applied.rows)
        {
            self.fail(format!("node {node} is not what a replay gives: {difference}"));
        }
        let heads = lookup::heads(&view).expect("read");
        let records: Vec<AuditRecord> = lookup::audit(&view, 0, usize::MAX).expect("read");
        if let Err(broken) = audit::verify(&records, ChainHead::default(), heads.audit) {
            self.fail(format!("node {node}: {broken}"));
        }
    }

    /// Who voted when this entry was committed.
    pub fn voters_at(&self, id: LogId) -> Halves {
        let before = self.memberships.iter().rev().find(|(index, _)| *index <= id.index);
        before.map(|(_, halves)| halves.clone()).unwrap_or_default()
    }

    /// The state after all that is committed.
    pub fn state(&self) -> &Memory {
        &self.reference
    }
}
