//! Consensus: the only room that names openraft.
//!
//! [`Node`] is what the rest of the program sees: propose a command or confirm a read at whoever leads ([`leader`]),
//! read the local replica and say how fresh it is ([`node`]), answer peers (`peer_side`), change the membership
//! ([`membership`]), notice that this node was itself removed ([`expelled`]). Below it are openraft with its storage over
//! the `store` room ([`log_store`], [`state_machine`]) and its network over the peer service (`network`, [`peers`]). What
//! members support decides in [`features`] which commands are allowed. `resealing` rotates the data key and seals what is
//! kept under the newest one.
//!
//! What is revealed without a quorum is decided and brought on record in [`journal`]. Whether kept secrets open is tried
//! over and over in [`opening`].
//!
//! A replica is compared with the others in `healing`, by the verdict in [`agreement`], and mended by `repair`; `fetch`
//! brings a snapshot from a peer, and `rescue` does that for a node that starts without a state. Clocks are compared at
//! the same time, and judged in [`clock`]; so is whether disks have room, in [`room`]. Where work runs that may have to wait
//! for the disk is decided in `pace`.

pub mod agreement;
pub mod clock;
mod compaction;
mod contacts;
mod error;
pub mod expelled;
pub mod features;
mod fetch;
mod groups;
mod healing;
pub mod journal;
mod keyring;
pub mod leader;
pub mod link;
pub mod log_store;
pub mod membership;
mod network;
pub mod node;
mod observe;
pub mod opening;
mod pace;
mod peer_side;
pub mod peers;
mod quorum;
mod read_index;
pub mod recovery;
mod repair;
pub mod reports;
mod rescue;
mod resealing;
pub mod room;
pub mod state_machine;
pub mod storage;
pub mod types;
mod usage;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::escrow::ids::Timestamp;

pub use crate::store::quarantine::Quarantine;
pub use agreement::Agreement;
pub use error::NodeError;
pub use node::{Committed, Freshness, Node, NodeOptions, Vitals};
pub use observe::PeerView;
pub use rescue::open_storage;
pub use resealing::RotationOrder;
pub use usage::Usage;

/// This process's clock, as it goes into commands.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Runs what reads the store for long, where it holds up nobody else. For a few rows there is [`Node::read_briefly`].
pub(crate) async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    pace::hand_over(work).await.map_err(NodeError::cut_off)?
}
