//! What can go wrong between asking the cluster for something and having its answer.

use std::time::Duration;

use crate::escrow::command::Refusal;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Invalid, NodeId};
use crate::escrow::lookup::LookupError;
use crate::escrow::state::StateError;
use crate::seal::SealError;
use crate::store::StoreError;
use crate::store::journal::JournalError;
use crate::store::quarantine::Quarantine;

use super::clock::Skew;
use super::membership::Refused;
use super::storage::HeldLog;

/// A failure of the replicated service. A [`Refusal`] by the domain is an answer, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// This node waited for its own replica to reach an index, and it did not.
    #[error("this node has applied index {applied}, not yet {wanted}")]
    Behind {
        /// What it has.
        applied: u64,
        /// What was waited for.
        wanted: u64,
    },
    /// A membership change is not made.
    #[error(transparent)]
    Change(#[from] Refused),
    /// This node's clock is not one to stamp commands by.
    #[error("this node takes no commands: {0}")]
    Clock(Skew),
    /// A peer sent bytes that do not decode.
    #[error("decoding a peer's message: {0}")]
    Decode(#[from] crate::store::format::FormatError),
    /// There is a leader, and it does not take this. Nothing was written.
    #[error("the leader does not take what this node passes on: {0}")]
    Declined(String),
    /// The leader takes nothing from this node: it is no member (any more), or its certificate is revoked.
    #[error("the cluster refuses this node: {0}")]
    Excluded(String),
    /// The consensus core of this node has stopped; it must be restarted.
    #[error("this node has stopped taking part: {0}")]
    Fatal(String),
    /// The cluster allows commands that this node does not support, or says that it does not.
    #[error("{}", feature_level_text(*level, *supported))]
    FeatureLevel {
        /// The level of the cluster, as this node's replica has it.
        level: FeatureLevel,
        /// What this node supports.
        supported: FeatureLevel,
    },
    /// A message of an election or a leadership came from another node than it names.
    #[error("node {caller} speaks in the name of node {named}")]
    Imposter {
        /// Who sent it.
        caller: NodeId,
        /// Whom it names.
        named: NodeId,
    },
    /// The journal of reveals does not take one.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The keyring cannot be opened or used.
    #[error("keyring: {0}")]
    Keyring(#[from] SealError),
    /// The request only makes sense at the leader.
    #[error("not the leader (the leader is {})", .0.map_or_else(|| "unknown".to_owned(), |id| format!("node {id}")))]
    NotLeader(Option<NodeId>),
    /// This node belongs to no cluster yet.
    #[error("this node belongs to no cluster yet")]
    NoCluster,
    /// A committed entry cannot be applied to this node's state, and no other state was to be had.
    #[error(
        "the state of this node is wrong: entry {index} cannot be applied to it ({failure}), and no other member gave \
         one to go on from ({reason}); bring the others up and start it again, or replace it (`member replace`)"
    )]
    Inapplicable {
        /// Which entry.
        index: u64,
        /// Why it cannot be applied.
        failure: String,
        /// Why no other state was to be had.
        reason: String,
    },
    /// A question is not well formed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No majority of the voters has room on its disk, and this can wait for it. Nothing was begun.
    #[error("no majority of the voters has room on its disk for more ({} full)", full_text(.0))]
    NoRoom(Vec<NodeId>),
    /// No majority answered within the time allowed. Nothing was written.
    #[error("no quorum answered within {} ms", .0.as_millis())]
    NoQuorum(Duration),
    /// Too much is under way; nothing was started.
    #[error("too much is under way here: the limit of {limit} for {what} is reached")]
    Overloaded {
        /// Of what.
        what: &'static str,
        /// How much may be: readers, or KiB of requests.
        limit: usize,
    },
    /// The domain refused a command this node proposed on its own account.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This node has put itself aside: its state differs from that of the others.
    #[error("this node is quarantined: {0}")]
    Quarantined(Quarantine),
    /// This node is quarantined for so long that its log is more than it may keep.
    #[error(
        "this node is quarantined and could not be repaired, and the {} bytes of log that wait for the repair are more \
         than the {} it may keep: {}; bring the other voters back and raise raft.snapshot_log_bytes for the repair, or \
         replace it (`member replace`)",
        .0.bytes, .0.max_bytes, .0.quarantine
    )]
    Unrepaired(HeldLog),
    /// Reading this node's replica failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// This node's storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A forwarded command is larger than any that a node makes.
    #[error("a command of {bytes} bytes; at most {} are accepted", super::leader::COMMAND_MAX_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A snapshot did not arrive whole; the old state stays.
    #[error("receiving a snapshot: {0}")]
    Transfer(String),
    /// No majority confirmed a write within the time allowed. It may still take effect; repeating it with the same
    /// request id is safe.
    #[error("no quorum confirmed within {} ms", .0.as_millis())]
    Unconfirmed(Duration),
}

fn full_text(full: &[NodeId]) -> String {
    let of_each = full.iter().map(|node| format!("that of node {node}"));
    format!("{} {}", of_each.collect::<Vec<_>>().join(", "), if full.len() == 1 { "is" } else { "are" })
}

fn feature_level_text(level: FeatureLevel, supported: FeatureLevel) -> String {
    let release = FeatureLevel::SUPPORTED;
    if level > release {
        return format!(
            "this release ({}) supports feature levels up to {release}, and the data of this node is of a cluster at level {level}: install a release that supports level {level}",
            env!("CARGO_PKG_VERSION")
        );
    }
    format!(
        "upgrade.hold_feature_level keeps this node at feature level {supported}, but its cluster is at level {level} already, and a level never goes back: remove the setting (this release supports up to level {release})"
    )
}

impl NodeError {
    /// Of work over the store that panicked, or that a node which is stopping does not do any more.
    pub(super) fn cut_off(why: std::io::Error) -> Self {
        Self::Fatal(format!("a read was cut off: {why}"))
    }
}

impl From<LookupError> for NodeError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Invalid(invalid) => Self::Invalid(invalid),
            LookupError::State(error) => Self::State(error),
        }
    }
}
