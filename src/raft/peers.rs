//! Clients of other nodes, each over a [`Link`].
//!
//! Each connection is mutual TLS to exactly the node meant: a peer that answers at the right address with another
//! node's certificate is refused by us, and one that has our node's name but another data directory or cluster
//! refuses us, because every call says whom it is for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::escrow::ids::{ClusterId, Identity, NodeId};
use crate::proto::peer::peer_service_client::PeerServiceClient;
use crate::proto::peer::{DescribeRequest, DescribeResponse};
use crate::request_id::{REQUEST_ID_KEY, TraceId};
use crate::store::format::VALUE_MAX_BYTES;
use crate::tls::{ExpectedPeer, Tls};

use super::link::{Failures, Link};
use super::types::Member;

/// Names the cluster a call is for; a node of another one refuses it.
pub const CLUSTER_HEADER: &str = "strongroom-cluster";
/// Names the data directory a call is for; a node with another one under its id refuses it, and without it answers
/// nothing but who it is.
pub const STORAGE_HEADER: &str = "strongroom-storage";

/// Longest message a peer may send: an append of [`READ_MAX_BYTES`](super::log_store::READ_MAX_BYTES) and the entry that
/// went past them. No longer than what decodes.
pub const PEER_MESSAGE_MAX_BYTES: usize = VALUE_MAX_BYTES;
/// A client of one peer, its calls addressed to that very node, directory and cluster.
pub type PeerClient = PeerServiceClient<InterceptedService<Link, Addressee>>;

/// What every node needs to reach the others.
#[derive(Clone)]
pub struct Peers {
    tls: Tls,
    cluster: Arc<OnceLock<ClusterId>>,
    control: Arc<Mutex<BTreeMap<NodeId, (Member, PeerClient)>>>,
    sent: Arc<Mutex<BTreeMap<NodeId, Sent>>>,
    failures: Failures,
}

/// Bytes of log and snapshots sent to one member since this process started. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicU64>);

impl Sent {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Peers {
    /// Connections made with `tls`. `cluster` is filled once this node knows which it belongs to.
    pub fn new(tls: Tls, cluster: Arc<OnceLock<ClusterId>>) -> Self {
        Self { tls, cluster, control: Arc::default(), sent: Arc::default(), failures: Failures::default() }
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.tls.identity()
    }

    /// The client of member `id` that is kept for whatever is short: votes, forwarded commands, questions.
    pub fn control(&self, id: NodeId, member: &Member) -> PeerClient {
        let mut kept = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.get(&id) {
            Some((known, client)) if known == member => client.clone(),
            _ => {
                let client = self.member(id, member);
                kept.insert(id, (member.clone(), client.clone()));
                client
            }
        }
    }

    /// The count of what is sent to member `id`.
    pub fn sent(&self, id: NodeId) -> Sent {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    /// A client of member `id` with a connection of its own. Does not connect yet.
    pub fn member(&self, id: NodeId, member: &Member) -> PeerClient {
        self.member_link(id, member).1
    }

    /// As [`Peers::member`], with the way its calls take.
    pub(super) fn member_link(&self, id: NodeId, member: &Member) -> (Link, PeerClient) {
        let addressee = Addressee { cluster: self.cluster.clone(), storage: Some(member.storage) };
        let link = self.link(&member.peer_address, ExpectedPeer::Node(id));
        (link.clone(), over(link, addressee))
    }

    /// A client of whatever node answers at `address`, to ask who it is: anything else it refuses.
    pub fn stranger(&self, address: &str, expected: ExpectedPeer) -> PeerClient {
        let addressee = Addressee { cluster: Arc::default(), storage: None };
        over(self.link(address, expected), addressee)
    }

    fn link(&self, address: &str, expected: ExpectedPeer) -> Link {
        Link::new(self.tls.clone(), address, expected, self.failures.clone())
    }
}

/// What the node behind `client` says of itself, within `limit`.
///
/// # Errors
/// What it answered instead, or why it could not be asked; `DEADLINE_EXCEEDED` if it did not answer.
pub async fn describe(client: &mut PeerClient, limit: Duration) -> Result<DescribeResponse, Status> {
    match timeout(limit, client.describe(DescribeRequest {})).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()))),
    }
}

fn over(link: Link, addressee: Addressee) -> PeerClient {
    PeerServiceClient::with_interceptor(link, addressee)
        .max_decoding_message_size(PEER_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(PEER_MESSAGE_MAX_BYTES)
}

/// Adds to each call whom it is for, and for which request it is made.
#[derive(Clone)]
pub struct Addressee {
    cluster: Arc<OnceLock<ClusterId>>,
    storage: Option<Uuid>,
}

impl Interceptor for Addressee {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(cluster) = self.cluster.get() {
            request.metadata_mut().insert(CLUSTER_HEADER, ascii(cluster.0));
        }
        if let Some(storage) = self.storage {
            request.metadata_mut().insert(STORAGE_HEADER, ascii(storage));
        }
        if let Some(id) = TraceId::current().and_then(|id| id.as_str().parse().ok()) {
            request.metadata_mut().insert(REQUEST_ID_KEY, id);
        }
        Ok(request)
    }
}

fn ascii(id: Uuid) -> MetadataValue<Ascii> {
    id.to_string().parse().expect("a UUID is ASCII")
}
