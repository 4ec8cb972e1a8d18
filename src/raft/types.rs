//! openraft's type parameters, fixed once. Everything outside this room uses the domain's own types.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::escrow::command::{Command, Reply};
use crate::escrow::ids::NodeId;
use crate::store::format::{self, Payload};

/// The [`Command`]s of an entry as they travel and rest: each encoded once by the node
/// that received it (see `store::format`), decoded where they are applied.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedCommands(pub Vec<Bytes>);

impl EncodedCommands {
    /// One alone.
    pub fn one(command: &Command) -> Self {
        Self(vec![format::encode(command).into()])
    }

    /// As the entry holds them.
    pub(super) fn payload(&self) -> Payload<'_> {
        Payload::Commands(self.0.iter().map(|command| &command[..]).collect())
    }
}

impl fmt::Debug for EncodedCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.0.iter().map(Bytes::len).sum();
        write!(f, "EncodedCommands({} of {bytes} bytes)", self.0.len())
    }
}

impl fmt::Display for EncodedCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answered to each of its commands, in their order: nothing for blank entries and membership
/// changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied(pub Vec<Reply>);

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
        D = EncodedCommands,
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
