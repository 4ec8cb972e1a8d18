//! Connections to other nodes: dialled when first needed, kept, and redialled when they break.
//!
//! Each connection is mutual TLS to exactly the node meant: a peer that answers at the right address with another
//! node's certificate is refused by us, and one that has our node's name but another data directory or cluster
//! refuses us, because every call says whom it is for.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::escrow::ids::{ClusterId, Identity, NodeId};
use crate::proto::peer::peer_service_client::PeerServiceClient;
use crate::store::format::VALUE_MAX_BYTES;
use crate::tls::{ExpectedPeer, Tls};

use super::types::Member;

/// Names the cluster a call is for; a node of another one refuses it.
pub const CLUSTER_HEADER: &str = "strongroom-cluster";
/// Names the data directory a call is for; a node with another one under its id refuses it.
pub const STORAGE_HEADER: &str = "strongroom-storage";

/// Longest message a peer may send: an append of [`READ_MAX_BYTES`](super::log_store::READ_MAX_BYTES) and the entry that
/// went past them. No longer than what decodes.
pub const PEER_MESSAGE_MAX_BYTES: usize = VALUE_MAX_BYTES;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that does not answer a ping this long has its connection dropped, so that a stopped process or a cut
/// cable is noticed although TCP would wait for minutes.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// A client of one peer, its calls addressed to that very node, directory and cluster.
pub type PeerClient = PeerServiceClient<InterceptedService<Channel, Addressee>>;

/// What every node needs to reach the others.
#[derive(Clone)]
pub struct Peers {
    tls: Tls,
    cluster: Arc<OnceLock<ClusterId>>,
    control: Arc<Mutex<BTreeMap<NodeId, (Member, PeerClient)>>>,
    sent: Arc<Mutex<BTreeMap<NodeId, Sent>>>,
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
        Self { tls, cluster, control: Arc::default(), sent: Arc::default() }
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
        let addressee = Addressee { cluster: self.cluster.clone(), storage: Some(member.storage) };
        self.client(&member.peer_address, ExpectedPeer::Node(id), addressee)
    }

    /// A client of whatever node answers at `address`, to ask who it is.
    pub fn stranger(&self, address: &str, expected: ExpectedPeer) -> PeerClient {
        let addressee = Addressee { cluster: Arc::default(), storage: None };
        self.client(address, expected, addressee)
    }

    fn client(&self, address: &str, expected: ExpectedPeer, addressee: Addressee) -> PeerClient {
        let (tls, address) = (self.tls.clone(), address.to_owned());
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(&address).await?;
                tcp.set_nodelay(true)?;
                let stream = tls.connect(tcp, expected).await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The connector dials `address` itself; this only fills the HTTP/2 authority.
        let channel = Endpoint::from_static("http://peer.strongroom")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector);
        PeerServiceClient::with_interceptor(channel, addressee)
            .max_decoding_message_size(PEER_MESSAGE_MAX_BYTES)
            .max_encoding_message_size(PEER_MESSAGE_MAX_BYTES)
    }
}

/// Adds to each call whom it is for.
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
        Ok(request)
    }
}

fn ascii(id: Uuid) -> MetadataValue<Ascii> {
    id.to_string().parse().expect("a UUID is ASCII")
}
