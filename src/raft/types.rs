//! openraft's type parameters, fixed once. Everything outside this room uses the domain's own types.

use std::fmt;

use openraft::impls::leader_id_std;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::escrow::command::Reply;
use crate::escrow::ids::NodeId;

/// A [`Command`](crate::escrow::command::Command) as it travels and rests: encoded once by the node that received
/// it (see `store::format`), decoded where it is applied.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedCommand(pub Vec<u8>);

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedCommand({} bytes)", self.0.len())
    }
}

impl fmt::Display for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answered: nothing for blank entries and membership changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied(pub Option<Reply>);

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a member is reached; part of the membership configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Host and port of its peer service.
    pub peer_address: String,
    /// Host and port of its API.
    pub api_address: String,
    /// Its site or availability zone.
    pub zone: String,
    /// Identity of its data directory. A node that comes back under its id on another disk has forgotten its vote
    /// and must not be spoken to as if it had not.
    pub storage: Uuid,
}

openraft::declare_raft_types!(
    /// The types of Strongroom's one Raft group. One leader a term, as in the Raft paper, so that a log id is
    /// `(term, index)`.
    pub TypeConfig:
        D = EncodedCommand,
        R = Applied,
        NodeId = NodeId,
        Node = Member,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, NodeId>,
);

/// `(term, index)`.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;

/// A vote of this group.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;

/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A snapshot and the file that holds it.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, crate::store::snapshot::SnapshotFile>;

/// The consensus core of this group.
pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
