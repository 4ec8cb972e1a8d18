//! What nodes say to each other goes through one of two: a proxy, which needs no rights and can be slow, or cables between
//! namespaces, which lose packets.

use std::time::Duration;

use strongroom::escrow::ids::NodeId;

use crate::common::network::{Cut, Network};
use crate::namespaces::Namespaces;

/// Links between nodes that can be cut.
pub enum Wires {
    Proxy(Network),
    Cables(Namespaces),
}

impl Wires {
    /// Cuts what `from` says to `to`.
    pub fn cut(&self, from: NodeId, to: NodeId, how: Cut) {
        match self {
            Self::Proxy(network) => network.cut(from, to, how),
            Self::Cables(namespaces) => namespaces.cut(from, to, how),
        }
    }

    /// Ends the cut of what `from` says to `to`.
    pub fn mend(&self, from: NodeId, to: NodeId) {
        match self {
            Self::Proxy(network) => network.mend(from, to),
            Self::Cables(namespaces) => namespaces.mend(from, to),
        }
    }

    /// Ends every cut.
    pub fn heal(&self) {
        match self {
            Self::Proxy(network) => network.heal(),
            Self::Cables(namespaces) => namespaces.heal(),
        }
    }

    /// Holds up what `from` says to `to` from now on; zero for not at all.
    pub fn delay(&self, from: NodeId, to: NodeId, delay: Duration) {
        match self {
            Self::Proxy(network) => network.delay(from, to, delay),
            Self::Cables(_) => assert!(delay.is_zero(), "cables are never slow"),
        }
    }

    /// How many packets were lost so far.
    pub fn lost(&self) -> u64 {
        match self {
            Self::Proxy(_) => 0,
            Self::Cables(namespaces) => namespaces.lost(),
        }
    }
}
