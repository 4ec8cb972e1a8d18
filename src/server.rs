//! A node as a process: built from its configuration, served on three ports, drained when it stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use uuid::Uuid;

use crate::config::Config;
use crate::escrow::command::{Action, Command, Initialize, Reply};
use crate::escrow::ids::{ClusterId, Identity, RequestId, Role};
use crate::escrow::records::{KeyringRecord, NodeRecord, Source};
use crate::http::{self, Admin};
use crate::proto::DESCRIPTORS;
use crate::proto::cluster_service_server::ClusterServiceServer;
use crate::proto::escrow_service_server::EscrowServiceServer;
use crate::proto::peer::peer_service_server::PeerServiceServer;
use crate::proto::recovery_service_server::RecoveryServiceServer;
use crate::raft::peers::PEER_MESSAGE_MAX_BYTES;
use crate::raft::storage::{Storage, StorageOptions};
use crate::raft::types::Member;
use crate::raft::{Node, NodeError, NodeOptions};
use crate::rpc::guard::Connection;
use crate::rpc::{API_MESSAGE_MAX_BYTES, Context, now};
use crate::seal::{Keyring, NodeKey, SealError};
use crate::store::StoreError;
use crate::store::directory::DataDir;
use crate::store::policy::SnapshotPolicy;
use crate::tls::{Tls, TlsError, TlsPaths};

/// Between two looks at whether certificate files have changed.
const CERTIFICATE_POLL: Duration = Duration::from_secs(2);
/// Longest a stopping node waits for requests under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent requests on one connection; more wait at the caller's end.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// A silent client is asked for a sign of life this often, and dropped if it gives none for as long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Between two attempts to accept when the process has run out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

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

/// Opens the data directory and starts consensus, for `server` and `init` alike.
async fn assemble(config: &Config) -> Result<Assembly, ServerError> {
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
    };
    let policy = SnapshotPolicy { floor_bytes: config.raft.snapshot_log_bytes, ..SnapshotPolicy::default() };
    let storage =
        Storage::open(&directory, StorageOptions { snapshots: policy, ..StorageOptions::default() }).await?;
    let node = Node::start(options, directory, storage, tls.clone(), key).await?;
    Ok(Assembly { node, tls })
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
    connections: Arc<Semaphore>,
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
        let places = usize::try_from(config.limits.max_connections).unwrap_or(Semaphore::MAX_PERMITS);
        Ok(Self { context, api, peer, admin, connections: Arc::new(Semaphore::new(places)) })
    }

    /// Serves until `stop` is cancelled, then hands the leadership over, lets requests under way finish, and ends.
    ///
    /// # Errors
    /// [`ServerError::Node`] if the consensus core stops by itself (a failed disk, for one).
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { context, api, peer, admin, connections } = self;
        let serving = CancellationToken::new();
        let tracker = TaskTracker::new();
        let api_router = api_routes(&context).await;
        tracker.spawn(accept(
            api,
            api_router,
            context.tls.clone(),
            connections.clone(),
            serving.clone(),
            tracker.clone(),
        ));
        // Peers have places of their own: a flood of clients must not cost the cluster its quorum.
        let peer_places = Arc::new(Semaphore::new(connections.available_permits()));
        tracker.spawn(accept(
            peer,
            peer_routes(&context),
            context.tls.clone(),
            peer_places,
            serving.clone(),
            tracker.clone(),
        ));
        let admin_app = http::admin(AdminView(context.clone()));
        let admin_stop = serving.clone();
        tracker.spawn(async move {
            let served =
                axum::serve(admin, admin_app).with_graceful_shutdown(admin_stop.cancelled_owned()).await;
            if let Err(error) = served {
                tracing::error!(%error, "the admin port");
            }
        });
        tracker.spawn({
            let (tls, serving) = (context.tls.clone(), serving.clone());
            async move { tls.watch(CERTIFICATE_POLL, serving).await }
        });
        tracing::info!(node = context.node.options().id, "serving");

        let failed = tokio::select! {
            () = stop.cancelled() => None,
            error = context.node.stopped() => Some(error),
        };
        tracing::info!("stopping");
        if failed.is_none() {
            context.node.hand_over().await;
        }
        context.draining.store(true, Ordering::Relaxed);
        serving.cancel();
        tracker.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await.is_err() {
            tracing::warn!("requests were still under way after {} s", DRAIN_TIMEOUT.as_secs());
        }
        context.node.stop().await;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

async fn listen(port: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { port, address, source })
}

async fn api_routes(context: &Context) -> Router {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<EscrowServiceServer<Context>>().await;
    health.set_serving::<RecoveryServiceServer<Context>>().await;
    health.set_serving::<ClusterServiceServer<Context>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by this build");
    Routes::new(EscrowServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES))
        .add_service(
            RecoveryServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES),
        )
        .add_service(
            ClusterServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES),
        )
        .add_service(health_service)
        .add_service(reflection)
        .into_axum_router()
}

fn peer_routes(context: &Context) -> Router {
    let service = PeerServiceServer::new(context.clone())
        .max_decoding_message_size(PEER_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(PEER_MESSAGE_MAX_BYTES);
    Routes::new(service).into_axum_router()
}

/// Accepts connections until `stop`, each in a task of `tracker`; past `places` they wait unaccepted.
async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Tls,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => return,
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (tcp, address) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
        tracker.spawn(async move {
            serve_connection(tcp, address, tls, router, stop).await;
            drop(place);
        });
    }
}

async fn serve_connection(
    tcp: TcpStream,
    address: SocketAddr,
    tls: Tls,
    router: Router,
    stop: CancellationToken,
) {
    // Failing that costs latency only.
    let _ = tcp.set_nodelay(true);
    let handshake = tokio::select! {
        () = stop.cancelled() => return,
        handshake = tls.accept(tcp) => handshake,
    };
    let (stream, certificate) = match handshake {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!(%address, error = crate::error::chain(&error), "a connection was refused");
            return;
        }
    };
    let service =
        TowerToHyperService::new(router.layer(axum::Extension(Connection { certificate, address })));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_INTERVAL);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%address, error = crate::error::chain(&*error), "a connection ended");
    }
}

/// What the admin port shows of a node.
#[derive(Clone)]
struct AdminView(Context);

impl Admin for AdminView {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        let node = &self.0.node;
        if self.0.draining.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        match node.cluster() {
            Ok(Some(_)) => {}
            Ok(None) => reasons.push("belongs to no cluster yet".to_owned()),
            Err(error) => reasons.push(crate::error::chain(&error)),
        }
        if let Err(error) = node.running() {
            reasons.push(error.to_string());
        }
        if node.leader().is_none() {
            reasons.push("knows no leader".to_owned());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn metrics(&self) -> Vec<http::Metric> {
        let vitals = self.0.node.vitals();
        let gauge = |name, help, value: u64| http::Metric::gauge(name, help, value as f64);
        vec![
            gauge("raft_term", "Current term.", vitals.term),
            gauge("raft_is_leader", "1 if this node leads.", u64::from(vitals.role == "leader")),
            gauge("raft_last_log_index", "Index of the last log entry.", vitals.last_log),
            gauge("raft_committed_index", "Index known to be committed.", vitals.committed),
            gauge("raft_applied_index", "Index applied to the state.", vitals.digest.index),
            gauge("raft_purged_index", "Index up to which the log is purged.", vitals.purged),
            gauge("raft_snapshot_index", "Index the newest snapshot covers.", vitals.snapshot),
            gauge(
                "certificate_expiry_timestamp_seconds",
                "When this node's certificate expires, in seconds since the Unix epoch.",
                self.0.tls.expires_at(),
            ),
        ]
    }
}
