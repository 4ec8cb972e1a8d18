//! The gRPC services: what comes in over the wire is checked, made domain values, and handed to the node.
//!
//! A request passes [`guard`] (who is it, may they), then [`wire`] (is it well formed), then the service of its
//! name; what goes wrong becomes a gRPC status in [`status`], and nowhere else.

pub mod cluster;
mod disclosure;
pub mod escrow;
pub mod guard;
pub mod health;
pub mod peer;
pub mod recovery;
mod rotation;
pub mod status;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::raft::Node;
pub use crate::raft::now;
use crate::tls::Tls;

/// Longest request a client may send: a secret of 64 KiB, a key package of 64 KiB, and room for names.
pub const API_MESSAGE_MAX_BYTES: usize = 256 * 1024;

/// What every service needs. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The node behind the services.
    pub node: Node,
    /// Its credentials: receipts are signed with them.
    pub tls: Tls,
    /// Longest a reveal waits for a quorum.
    pub reveal_timeout: Duration,
    /// Set when the node is stopping: new requests are sent to other nodes.
    pub draining: Arc<AtomicBool>,
}

impl Context {
    /// Whether this node is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
