//! Noticing that this node was removed from its cluster.
//!
//! A node that is removed while it is down, or that does not get the last entries, still has everything it had. It
//! must not go on showing that as if it were a replica. So a node that is in contact with no quorum asks the nodes it
//! knows, before it serves clients and from then on, and those that have its removal in their replica say so.
//!
//! What they go by is the committed record that the node left. That record is never taken back, so nobody who lags or is
//! cut off can silence a member by mistake, and one that knows is enough. A node that reaches nobody is not silenced:
//! a lone survivor serves what it has. What a node has learnt it keeps in its data directory, and does not ask again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Status;

use crate::escrow::ids::NodeId;
use crate::escrow::lookup;
use crate::escrow::records::NodeRecord;
use crate::store::directory::RemovalMark;

use super::error::NodeError;
use super::node::Node;
use super::peers::{PeerClient, describe};
use super::types::Member;

/// Metadata key of an answer to a node that was removed.
pub const REMOVED_KEY: &str = "strongroom-removed";
/// Longest one round of asking takes: by so much the start of a node is held up whose peers do not answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at whether there is a reason to ask.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Whether this node was removed, and who was told that they were.
pub(super) struct Expulsion {
    mark: RemovalMark,
    why: watch::Sender<Option<Arc<str>>>,
    told: Mutex<BTreeSet<NodeId>>,
}

impl Expulsion {
    /// As the data directory has it.
    ///
    /// # Errors
    /// [`NodeError::Store`] if it cannot be read: it might say that the node was removed.
    pub(super) fn load(mark: RemovalMark) -> Result<Self, NodeError> {
        let why = mark.read()?.map(Arc::from);
        if let Some(why) = &why {
            tracing::error!("this node serves nobody: {why}");
        }
        Ok(Self { mark, why: watch::Sender::new(why), told: Mutex::default() })
    }

    fn set(&self, why: &str) {
        let news = self.why.send_if_modified(|known| {
            let news = known.is_none();
            known.get_or_insert_with(|| why.into());
            news
        });
        if !news {
            return;
        }
        tracing::error!("this node serves nobody from now on: {why}");
        if let Err(error) = self.mark.write(why) {
            // It will have to ask again after a restart.
            tracing::warn!(%error, "noting that this node was removed");
        }
    }
}

/// What a node that was removed is told.
pub fn sentence(node: NodeId) -> String {
    format!(
        "node {node} was removed from the cluster; it comes back only under a new id and with an empty data directory"
    )
}

impl Node {
    /// Why this node serves nobody, if it was removed.
    pub fn expelled(&self) -> Option<Arc<str>> {
        self.inner.expulsion.why.borrow().clone()
    }

    /// Resolves once this node knows that it was removed.
    pub async fn expulsion(&self) {
        let mut why = self.inner.expulsion.why.subscribe();
        if why.wait_for(Option::is_some).await.is_err() {
            // Nobody is left who could say so.
            std::future::pending::<()>().await;
        }
    }

    /// Whether `id` left the cluster for ever, as this replica has it, and is no member any more. While it still is
    /// one, its vote may be needed to take it out.
    ///
    /// # Errors
    /// [`NodeError::State`] if the replica cannot be read.
    pub fn has_left(&self, id: NodeId) -> Result<bool, NodeError> {
        Ok(!self.is_member(id) && lookup::has_departed(&self.view()?, id)?)
    }

    /// Whether this is the first time that `id` is told of its removal by this process.
    pub fn tells_first(&self, id: NodeId) -> bool {
        self.inner.expulsion.told.lock().unwrap_or_else(PoisonError::into_inner).insert(id)
    }

    /// Takes note if a peer's answer says that this node was removed.
    pub(super) fn heed(&self, answer: &Status) {
        if answer.metadata().contains_key(REMOVED_KEY) {
            self.inner.expulsion.set(answer.message());
        }
    }

    /// Looks for this node's removal in its own replica, and asks every other node it knows; takes note of what it
    /// learns. Takes no longer than two seconds.
    pub async fn ask_whether_expelled(&self) {
        if self.expelled().is_some() {
            return;
        }
        match self.others() {
            Ok(Some(others)) => {
                let asked = others.into_iter().map(|mut other: PeerClient| async move {
                    if let Err(status) = describe(&mut other, ASK_TIMEOUT).await {
                        self.heed(&status);
                    }
                });
                join_all(asked).await;
            }
            Ok(None) => self.inner.expulsion.set(&sentence(self.options().id)),
            Err(error) => tracing::warn!(%error, "looking for the other nodes in the replica"),
        }
    }

    /// The other nodes of this replica's register that have not left; `None` if this one has.
    ///
    /// Of the register and not of the membership: just after a start, the consensus core has not told it yet.
    fn others(&self) -> Result<Option<Vec<PeerClient>>, NodeError> {
        let others = self.registered_others()?;
        if lookup::has_departed(&self.view()?, self.options().id)? {
            return Ok(None);
        }
        Ok(Some(others.into_iter().map(|(_, client)| client).collect()))
    }

    /// The other nodes of this replica's register that have not left.
    ///
    /// # Errors
    /// [`NodeError::State`] if the replica cannot be read.
    pub(super) fn registered_others(&self) -> Result<Vec<(NodeId, PeerClient)>, NodeError> {
        // Fills in the cluster that calls are addressed to.
        if self.cluster()?.is_none() {
            return Ok(Vec::new());
        }
        let (view, this) = (self.view()?, self.options().id);
        let departed: BTreeSet<NodeId> = lookup::departed(&view)?.iter().map(|node| node.id).collect();
        let others =
            lookup::nodes(&view)?.into_iter().filter(|node| node.id != this && !departed.contains(&node.id));
        let client = |node: NodeRecord| {
            let NodeRecord { id, peer_address, api_address, zone, storage, .. } = node;
            (id, self.inner.peers.control(id, &Member { peer_address, api_address, zone, storage }))
        };
        Ok(others.map(client).collect())
    }

    /// Asks now and then, for as long as no quorum is in contact.
    pub(super) fn watch_expulsion(&self) {
        let (weak, stop) = (Arc::downgrade(&self.inner), self.inner.stop.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sleep(LOOK_INTERVAL) => {}
                    () = stop.cancelled() => return,
                }
                let Some(inner) = weak.upgrade() else { return };
                let node = Self { inner };
                if node.expelled().is_some() {
                    return;
                }
                if node.leader_in_contact().is_none() || node.has_departed() {
                    tokio::select! {
                        () = node.ask_whether_expelled() => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        });
    }

    /// Whether its own replica says that this node left.
    fn has_departed(&self) -> bool {
        let departed = self.view().map(|view| lookup::has_departed(&view, self.options().id));
        matches!(departed, Ok(Ok(true)))
    }
}
