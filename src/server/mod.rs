//! A node as a process: built from its configuration, served on three ports, drained when it stops.

mod admin;
mod api;
mod port;
pub mod recover;
mod shares;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::admin::AdminView;
use self::port::{Bounds, Entry, Port};
use crate::config::Config;
use crate::escrow::command::{Action, Command, Initialize, Reply};
use crate::escrow::ids::{ClusterId, Identity, RequestId, Role};
use crate::escrow::records::{KeyringRecord, NodeRecord, Source};
use crate::http;
use crate::raft::storage::{Storage, StorageOptions};
use crate::raft::types::Member;
use crate::raft::{Node, NodeError, NodeOptions};
use crate::rpc::{Context, now};
use crate::seal::{Keyring, NodeKey, SealError};
use crate::store::StoreError;
use crate::store::directory::DataDir;
use crate::store::policy::SnapshotPolicy;
use crate::tls::{Tls, TlsError, TlsPaths};

/// Between two looks at whether certificate files have changed.
const CERTIFICATE_POLL: Duration = Duration::from_secs(2);
/// Longest a stopping node waits for requests under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest a stopped node waits for the last of its tasks: what they wait for answers or fails within this.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);
/// Between two looks at whether they are gone.
const RELEASE_POLL: Duration = Duration::from_millis(5);

/// Why a node does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory already holds a cluster.
    #[error("the data directory {0} already belongs to a cluster")]
    AlreadyInitialized(String),
    /// The certificate is not this node's.
    #[error("the certificate is for {certificate}, but the configuration says {expected}")]
    Identity {
        /// Who the certificate names.
        certificate: Identity,
        /// Who the configuration names.
        expected: String,
    },
    /// A port cannot be listened on.
    #[error("listening on {address} for {port}: {source}")]
    Listen {
        /// Which port.
        port: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Consensus failed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The keyring or the node's private key cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A new history was begun on the data of this node, and not completed.
    #[error(
        "`recover-cluster --apply` was begun on the data of this node and is not complete: run it again with --confirm {0}"
    )]
    RecoveryUnfinished(ClusterId),
    /// Storage cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Credentials cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A node that is built but does not serve yet.
struct Assembly {
    node: Node,
    tls: Tls,
}

/// A node whose storage is open and that takes no part yet.
struct Opened {
    tls: Tls,
    directory: DataDir,
    key: NodeKey,
    options: NodeOptions,
    storage: Storage,
}

/// Opens the data directory and starts consensus, for `server` and `init` alike.
async fn assemble(config: &Config) -> Result<Assembly, ServerError> {
    let Opened { tls, directory, key, options, storage } = open(config).await?;
    recover::refuse_unfinished(&directory, &storage)?;
    let node = Node::start(options, directory, storage, tls.clone(), key).await?;
    Ok(Assembly { node, tls })
}

/// The node's credentials, if they are this node's.
fn load_tls(config: &Config) -> Result<Tls, ServerError> {
    let tls = Tls::load(TlsPaths {
        ca: config.tls.ca.clone(),
        cert: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        crl: config.tls.crl.clone(),
    })?;
    let identity = tls.identity();
    if identity.cluster != config.cluster || identity.node_id() != Some(config.node_id) {
        let expected = format!("spiffe://{}/{}/{}", config.cluster, Role::Node, config.node_id);
        return Err(ServerError::Identity { certificate: identity, expected });
    }
    Ok(tls)
}

/// Opens what the node has.
async fn open(config: &Config) -> Result<Opened, ServerError> {
    let tls = load_tls(config)?;
    let directory = DataDir::open_or_create(&config.data_dir)?;
    let key = NodeKey::load_or_create(&config.identity.node_key)?;
    let options = NodeOptions {
        id: config.node_id,
        member: Member {
            peer_address: config.advertise.peer.clone(),
            api_address: config.advertise.api.clone(),
            zone: config.zone.clone(),
            storage: directory.storage(),
        },
        heartbeat_ms: config.raft.heartbeat_ms,
        election_min_ms: config.raft.election_min_ms,
        election_max_ms: config.raft.election_max_ms,
        keep_entries: config.raft.keep_entries,
        feature_level: config.upgrade.feature_level(),
    };
    let policy = SnapshotPolicy { floor_bytes: config.raft.snapshot_log_bytes, ..SnapshotPolicy::default() };
    let storage =
        Storage::open(&directory, StorageOptions { snapshots: policy, ..StorageOptions::default() }).await?;
    Ok(Opened { tls, directory, key, options, storage })
}

/// Makes a new cluster with this node as its only member, and stops again.
///
/// # Errors
/// [`ServerError::AlreadyInitialized`] if the data directory belongs to a cluster; otherwise whatever kept the node
/// from starting or the first entry from being written.
pub async fn initialize(config: &Config, offline_recipient: String) -> Result<ClusterId, ServerError> {
    let Assembly { node, tls } = assemble(config).await?;
    let outcome = initialize_node(&node, &tls, config, offline_recipient).await;
    node.stop().await;
    outcome
}

async fn initialize_node(
    node: &Node,
    tls: &Tls,
    config: &Config,
    offline_recipient: String,
) -> Result<ClusterId, ServerError> {
    if node.cluster()?.is_some() {
        return Err(ServerError::AlreadyInitialized(config.data_dir.display().to_string()));
    }
    let keyring = Keyring::generate()?;
    let age_file = keyring.seal_to(&[node.recipient(), offline_recipient.clone()])?;
    let (options, at, cluster) = (node.options(), now(), ClusterId(Uuid::new_v4()));
    let initialize = Initialize {
        cluster,
        name: config.cluster.clone(),
        offline_recipient,
        node: NodeRecord {
            id: options.id,
            peer_address: options.member.peer_address.clone(),
            api_address: options.member.api_address.clone(),
            zone: options.member.zone.clone(),
            storage: options.member.storage,
            recipient: node.recipient(),
            admitted_at: at,
        },
        keyring: KeyringRecord { generation: 1, current_key_version: keyring.current_version(), age_file },
    };
    let command = Command {
        request: RequestId(Uuid::new_v4()),
        at,
        by: tls.identity(),
        source: Source { node: options.id, address: String::new() },
        action: Action::Initialize(initialize),
    };
    node.form_cluster().await?;
    match node.propose(&command).await?.reply {
        Reply::Initialized => Ok(cluster),
        Reply::Refused(refusal) => Err(NodeError::from(refusal).into()),
        other => Err(NodeError::Fatal(format!("unexpected answer {other:?}")).into()),
    }
}

/// A node that serves.
pub struct Server {
    context: Context,
    api: TcpListener,
    peer: TcpListener,
    admin: TcpListener,
    connections: usize,
    in_flight: usize,
}

impl Server {
    /// Starts the node and binds its ports; serves nothing yet.
    ///
    /// # Errors
    /// [`ServerError`], naming what is wrong.
    pub async fn start(config: &Config) -> Result<Self, ServerError> {
        // Ports first: a clash is found before the data directory is touched.
        let api = listen("api", config.listen.api).await?;
        let peer = listen("peer", config.listen.peer).await?;
        let admin = listen("admin", config.listen.admin).await?;
        let Assembly { node, tls } = assemble(config).await?;
        let context = Context {
            node,
            tls,
            reveal_timeout: config.recovery.quorum_timeout(),
            draining: Arc::new(AtomicBool::new(false)),
        };
        let bound = |limit: u64| usize::try_from(limit).unwrap_or(Semaphore::MAX_PERMITS);
        let connections = bound(config.limits.max_connections);
        Ok(Self { context, api, peer, admin, connections, in_flight: bound(config.limits.max_in_flight) })
    }

    /// Serves until `stop` is cancelled, then hands the leadership over, lets requests under way finish, and ends.
    /// When it returns, nothing of the node is left: its directory and ports are free.
    ///
    /// # Errors
    /// [`ServerError::Node`] if the consensus core stops by itself (a failed disk, for one).
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { context, api, peer, admin, connections, in_flight } = self;
        let (api_router, health) = api::api(&context, in_flight).await;
        let tls = context.tls.clone();
        let served = Served {
            api: Port::serve(api, Entry::Clients(tls.clone()), Bounds::api(connections), api_router),
            peer: Port::serve(peer, Entry::Nodes(tls.clone()), Bounds::peer(), api::peer(&context)),
            admin: Port::serve(
                admin,
                Entry::Anyone,
                Bounds::admin(),
                http::admin(AdminView(context.clone())),
            ),
            health,
        };
        let watching = CancellationToken::new();
        let _ends_with_this = watching.clone().drop_guard();
        tokio::spawn(async move { tls.watch(CERTIFICATE_POLL, watching).await });
        tracing::info!(node = context.node.options().id, "serving");

        let failed = tokio::select! {
            () = stop.cancelled() => None,
            error = context.node.stopped() => Some(error),
        };
        tracing::info!("stopping");
        served.stop(&context, failed.is_some()).await;
        released(&context.node).await;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The ports of a node that serves.
struct Served {
    api: Port,
    peer: Port,
    admin: Port,
    health: api::Health,
}

impl Served {
    /// Stops serving, so that as few as possible notice: new requests are sent elsewhere first, then the leadership
    /// goes, then requests under way are answered, through the new leader if need be. Peers are served until the
    /// node has stopped, for it is still a voter and, to its own requests, a follower.
    async fn stop(self, context: &Context, failed: bool) {
        let Self { api, peer, admin, health } = self;
        context.draining.store(true, Ordering::Relaxed);
        health.stopping().await;
        if !failed {
            context.node.hand_over().await;
        }
        health.end().await;
        api.finish(DRAIN_TIMEOUT).await;
        context.node.stop().await;
        // A leader's append stream never ends by itself, and there is nobody any more to answer it.
        peer.cut().await;
        admin.cut().await;
    }
}

/// Waits until nobody but the caller holds `node`: tasks that were under way when it stopped let go one after the
/// other, and until then the directory is locked.
async fn released(node: &Node) {
    let last = async {
        while node.holders() > 1 {
            tokio::time::sleep(RELEASE_POLL).await;
        }
    };
    if tokio::time::timeout(RELEASE_TIMEOUT, last).await.is_err() {
        tracing::warn!("the node is still in use after {} s", RELEASE_TIMEOUT.as_secs());
    }
}

async fn listen(port: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { port, address, source })
}
