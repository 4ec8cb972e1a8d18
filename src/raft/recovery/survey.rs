//! What is known of a cluster that lost its quorum, and what follows from it. Nothing here asks or writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use uuid::Uuid;

use crate::escrow::ids::{ClusterId, NodeId};
use crate::escrow::records::LogPosition;
use crate::raft::types::Member;

/// What one node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// Identity of its data directory.
    pub storage: Uuid,
    /// The cluster it belongs to, if any.
    pub cluster: Option<ClusterId>,
    /// Its last log entry.
    pub last: LogPosition,
    /// Index it knows to be committed.
    pub committed: u64,
    /// Index it has applied.
    pub applied: u64,
    /// The leader it is in contact with.
    pub leader: Option<NodeId>,
    /// Milliseconds since it knew a quorum to be in contact, if it did since it started.
    pub quorum_age_ms: Option<u64>,
    /// Why its state is nothing to go on from, if it is known to be: it has put itself aside, or was removed.
    pub unfit: Option<String>,
    /// Who the members are, as its log has it.
    pub membership: KnownMembership,
}

/// A membership as some node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownMembership {
    /// The voters; two sets while a change is under way.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All members, with where they are reached.
    pub members: BTreeMap<NodeId, Member>,
}

impl KnownMembership {
    /// Whether `id` votes.
    pub fn votes(&self, id: NodeId) -> bool {
        self.voters.iter().any(|half| half.contains(&id))
    }

    /// Whether `present` are a quorum: of both halves of a joint configuration.
    fn is_quorum(&self, present: &BTreeSet<NodeId>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|half| half.intersection(present).count() >= majority(half.len()))
    }

    /// Whether whatever a quorum has agreed on, one at least of `present` has: less than a majority of one half is gone.
    fn none_is_lost(&self, present: &BTreeSet<NodeId>) -> bool {
        self.voters.iter().any(|half| half.difference(present).count() < majority(half.len()))
    }

    /// All voters, of both halves.
    fn all_voters(&self) -> BTreeSet<NodeId> {
        self.voters.iter().flatten().copied().collect()
    }
}

/// How many of `voters` make a majority.
fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Another member, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Where it was asked.
    pub member: Member,
    /// What it has, or why it did not say.
    pub found: Result<Survivor, String>,
}

/// What this node has, and what the others say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// This node.
    pub node: NodeId,
    /// Whether it runs.
    pub running: bool,
    /// What it has.
    pub local: Survivor,
    /// The other members.
    pub asked: BTreeMap<NodeId, Asked>,
}

/// What of the acknowledged entries may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// None: fewer voters than a majority are gone, so one that answers has each of them, and the one that has most of
    /// the log has all.
    Nothing,
    /// A majority that is gone may have agreed on entries behind this index.
    After(u64),
}

/// What the operator takes upon themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Survivors whose further entries may be lost.
    pub losing_entries_of: BTreeSet<NodeId>,
    /// This node may go on although it does not vote.
    pub from_learner: bool,
}

/// Why the new history must not be begun here and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    /// A survivor has more of the log.
    Ahead {
        /// Which.
        node: NodeId,
        /// Its last entry.
        last: LogPosition,
        /// This node's.
        own: LogPosition,
    },
    /// This node only learns.
    Learner {
        /// A voter that answers and should go on instead, if there is one.
        voter: Option<NodeId>,
    },
    /// Somebody was in contact with a quorum just now.
    Live {
        /// Who says so.
        node: NodeId,
        /// The leader it knows, if any.
        leader: Option<NodeId>,
        /// Milliseconds since it knew of a quorum.
        quorum_age_ms: u64,
    },
    /// This node belongs to no cluster, or is no member of it any more.
    NoMember,
    /// Enough voters are there to go on as before.
    Quorum(BTreeSet<NodeId>),
    /// A member belongs to another history, which was begun on what it had.
    Recovered {
        /// Which.
        node: NodeId,
        /// That history.
        cluster: ClusterId,
    },
    /// This node runs.
    Running,
    /// This node's state is known to be wrong, or it was removed.
    Unfit(String),
}

impl Survey {
    /// The nodes whose data is there: this one, and those that answer from the data directory the cluster knows them by.
    pub fn survivors(&self) -> BTreeMap<NodeId, &Survivor> {
        let answered = self.asked.iter().filter_map(|(id, asked)| {
            let found = asked.found.as_ref().ok()?;
            let same = found.storage == asked.member.storage && found.cluster == self.local.cluster;
            same.then_some((*id, found))
        });
        std::iter::once((self.node, &self.local)).chain(answered).collect()
    }

    /// All voters that this node knows of.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.local.membership.all_voters()
    }

    /// How many voters make a quorum; of a joint configuration, the larger of both.
    pub fn quorum(&self) -> usize {
        self.local.membership.voters.iter().map(|half| majority(half.len())).max().unwrap_or(0)
    }

    /// Who has most of the log, as an election compares: by the last entry's term, then its index. This node, if
    /// nobody has more.
    pub fn most(&self) -> NodeId {
        let mut most = (self.node, self.local.last);
        for (id, survivor) in self.survivors() {
            if survivor.last > most.1 {
                most = (id, survivor.last);
            }
        }
        most.0
    }

    /// What may be lost if `of`, a survivor, goes on.
    pub fn loss(&self, of: NodeId) -> Loss {
        let survivors = self.survivors();
        let present = survivors.keys().copied().collect();
        let Some(chosen) = survivors.get(&of) else { return Loss::After(0) };
        let has_most = survivors.values().all(|survivor| survivor.last <= chosen.last);
        if has_most && survivors.values().all(|survivor| survivor.membership.none_is_lost(&present)) {
            Loss::Nothing
        } else {
            Loss::After(chosen.last.index)
        }
    }

    /// Everything that speaks against beginning a new history on this node, but for what is `allowed`. A quorum seen
    /// at most `live_ms` milliseconds ago counts as there.
    pub fn objections(&self, allowed: &Allowed, live_ms: u64) -> Vec<Objection> {
        let survivors = self.survivors();
        let present: BTreeSet<NodeId> = survivors.keys().copied().collect();
        let mut objections = Vec::new();
        if self.running {
            objections.push(Objection::Running);
        }
        let membership = &self.local.membership;
        if self.local.cluster.is_none() || !membership.members.contains_key(&self.node) {
            objections.push(Objection::NoMember);
        }
        if let Some(why) = &self.local.unfit {
            objections.push(Objection::Unfit(why.clone()));
        }
        for (node, asked) in &self.asked {
            let Ok(found) = &asked.found else { continue };
            if let Some(cluster) = found.cluster.filter(|cluster| Some(*cluster) != self.local.cluster) {
                objections.push(Objection::Recovered { node: *node, cluster });
            }
        }
        for (node, survivor) in &survivors {
            let age = survivor.quorum_age_ms.filter(|age| *age <= live_ms);
            if survivor.leader.is_some() || age.is_some() {
                let (node, leader) = (*node, survivor.leader);
                let quorum_age_ms = survivor.quorum_age_ms.unwrap_or(0);
                objections.push(Objection::Live { node, leader, quorum_age_ms });
            }
        }
        // By what any of them takes for the membership: a change may have reached some only.
        if let Some(by) = survivors.values().find(|survivor| survivor.membership.is_quorum(&present)) {
            let voters = by.membership.all_voters();
            objections.push(Objection::Quorum(voters.intersection(&present).copied().collect()));
        }
        if !membership.votes(self.node) {
            let voter = present.iter().copied().find(|id| membership.votes(*id));
            if voter.is_some() || !allowed.from_learner {
                objections.push(Objection::Learner { voter });
            }
        }
        for (node, survivor) in survivors {
            if survivor.last > self.local.last && !allowed.losing_entries_of.contains(&node) {
                objections.push(Objection::Ahead { node, last: survivor.last, own: self.local.last });
            }
        }
        objections
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ahead { node, last, own } => write!(
                f,
                "node {node} has more of the log (up to {} of term {}, this node to {} of term {}): recover there, or \
                 name it with --allow-losing-entries-of {node}",
                last.index, last.term, own.index, own.term
            ),
            Self::Learner { voter: Some(voter) } => {
                write!(f, "this node is a learner, and node {voter}, a voter, survives: recover there")
            }
            Self::Learner { voter: None } => f.write_str(
                "this node is a learner: it may lack more than a voter would; if no voter's disk is left, say \
                 --from-learner",
            ),
            Self::Live { node, leader: Some(leader), .. } => {
                write!(f, "node {node} is in contact with leader {leader}: the cluster is alive")
            }
            Self::Live { node, leader: None, quorum_age_ms } => write!(
                f,
                "node {node} was in contact with a quorum {quorum_age_ms} ms ago: if it is gone for good, try again in a \
                 few seconds"
            ),
            Self::NoMember => f.write_str("this node is a member of no cluster: there is nothing to go on from"),
            Self::Quorum(present) => {
                let ids: Vec<_> = present.iter().map(ToString::to_string).collect();
                write!(f, "voters {} are there, which is a quorum: start them, nothing is lost", ids.join(", "))
            }
            Self::Recovered { node, cluster } => write!(
                f,
                "node {node} belongs to cluster {cluster} now: a new history was begun there; give this node a new id \
                 and an empty data directory, and add it there"
            ),
            Self::Unfit(why) => write!(f, "this node is not fit to go on from ({why}): recover on another one"),
            Self::Running => f.write_str("this node is running: stop it first"),
        }
    }
}

#[cfg(test)]
mod tests;
