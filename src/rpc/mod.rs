//! The gRPC services: what comes in over the wire is checked, made domain values, and handed to the node.
//!
//! A request passes [`guard`] (who is it, may they), then [`wire`] (is it well formed), then the service of its
//! name; what goes wrong becomes a gRPC status in [`status`], and nowhere else.

pub mod audit;
pub mod cluster;
pub mod compliance;
pub mod custody;
mod disclosure;
pub mod escrow;
mod escrow_many;
pub mod guard;
pub mod health;
mod machines;
pub mod peer;
pub mod policy;
pub mod recovery;
pub mod report;
mod rotation;
mod serving;
pub mod status;
pub mod wire;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::mutation::Mutation;
use crate::raft::Node;
pub use crate::raft::now;
use crate::tls::Tls;
pub use escrow_many::IMPORTS_MAX;
pub use serving::Places;

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
    /// Cancelled when the node is stopping: new requests are sent to other nodes.
    pub draining: CancellationToken,
    /// Secrets that were compared with kept ones and were not the same.
    pub guesses: custody::Guesses,
    /// Room for [`IMPORTS_MAX`] importers.
    pub imports: Places,
}

impl Context {
    /// Waits as long as the consistency that is asked for takes, and says how fresh an answer is from then on.
    pub(crate) async fn fresh(&self, consistency: i32) -> Result<crate::proto::Freshness, tonic::Status> {
        let quorum = wire::wants_quorum(consistency)?;
        if quorum {
            let index = self.node.read_index().await.map_err(status::shared)?;
            self.node.wait_applied(index).await?;
        }
        self.node.cluster()?.ok_or(crate::raft::NodeError::NoCluster)?;
        let is_labelled_quorum = quorum || Mutation::LabelLocalQuorum.is_active();
        Ok(wire::freshness(&self.node, if is_labelled_quorum { "quorum" } else { "local" }))
    }

    /// Whether this node is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}
