//! Consensus: the only room that names openraft.
//!
//! [`Node`] is what the rest of the program sees: propose a command or confirm a read at whoever leads ([`leader`]),
//! read the local replica and say how fresh it is ([`node`]), answer peers (`peer_side`), change the membership
//! ([`membership`]), notice that it was itself removed ([`expelled`]). Below it are openraft with its storage over the `store` room ([`log_store`], [`state_machine`]) and
//! its network over the peer service (`network`, [`peers`]).

mod compaction;
mod error;
pub mod expelled;
mod keyring;
pub mod leader;
pub mod log_store;
pub mod membership;
mod network;
pub mod node;
mod peer_side;
pub mod peers;
mod quorum;
mod read_index;
pub mod state_machine;
pub mod storage;
pub mod types;

pub use error::NodeError;
pub use node::{Committed, Freshness, Node, NodeOptions, Vitals};
