//! What can go wrong between asking the cluster for something and having its answer.

use std::time::Duration;

use crate::escrow::command::Refusal;
use crate::escrow::ids::NodeId;
use crate::escrow::state::StateError;
use crate::seal::SealError;
use crate::store::StoreError;

/// A failure of the replicated service. A [`Refusal`] by the domain is an answer, not one of these.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A node to be admitted cannot be.
    #[error("{0}")]
    Admission(String),
    /// This node waited for its own replica to reach an index, and it did not.
    #[error("this node has applied index {applied}, not yet {wanted}")]
    Behind {
        /// What it has.
        applied: u64,
        /// What was waited for.
        wanted: u64,
    },
    /// A peer sent bytes that do not decode.
    #[error("decoding a peer's message: {0}")]
    Decode(#[from] crate::store::format::FormatError),
    /// The consensus core of this node has stopped; it must be restarted.
    #[error("this node has stopped taking part: {0}")]
    Fatal(String),
    /// The keyring cannot be opened or used.
    #[error("keyring: {0}")]
    Keyring(#[from] SealError),
    /// The request only makes sense at the leader.
    #[error("not the leader (the leader is {})", .0.map_or_else(|| "unknown".to_owned(), |id| format!("node {id}")))]
    NotLeader(Option<NodeId>),
    /// This node belongs to no cluster yet.
    #[error("this node belongs to no cluster yet")]
    NoCluster,
    /// No majority confirmed within the time allowed. A write so answered may still take effect later; repeating
    /// it with the same request id is safe.
    #[error("no quorum answered within {} ms", .0.as_millis())]
    NoQuorum(Duration),
    /// Too much is under way; nothing was started.
    #[error("{limit} requests are under way here already")]
    Overloaded {
        /// How many may be.
        limit: usize,
    },
    /// The domain refused a command this node proposed on its own account.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Reading this node's replica failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// This node's storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
