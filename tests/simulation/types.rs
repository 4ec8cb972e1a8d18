//! openraft's parameters as the product fixes them, on simulated time. Votes, entries, log ids and snapshots are the very
//! types of `strongroom::raft::types`: only the runtime differs.

use openraft::impls::leader_id_std;
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::ids::NodeId;
use strongroom::raft::types::{Applied, EncodedCommands, Member};

use crate::replica::Replica;

openraft::declare_raft_types!(
    /// The group as `raft::types::TypeConfig` has it, run by [`SimRuntime`].
    pub Simulated:
        D = EncodedCommands,
        R = Applied,
        NodeId = NodeId,
        Node = Member,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, NodeId>,
        AsyncRuntime = SimRuntime,
);

/// The consensus core of a simulated node.
pub type Raft = openraft::Raft<Simulated, Replica>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<Simulated>;
