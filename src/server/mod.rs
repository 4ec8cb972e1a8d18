//! A node as a process: built from its configuration, served on three ports, drained when it stops.

mod admin;
mod api;
mod notify;
mod observe;
pub mod offline;
mod port;
pub mod preflight;
pub mod recover;
mod shares;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::admin::AdminView;
use self::port::{Bounds, Entry, Port, PortCounts};
use crate::config::Config;
use crate::escrow::command::{Action, Command, Initialize, Reply};
use crate::escrow::ids::{ClusterId, Identity, RequestId, Role};
use crate::escrow::records::{KeyringRecord, NodeRecord, Source};
use crate::http;
use crate::metrics::{Metrics, PortName};
use crate::mutation;
use crate::raft::storage::StorageOptions;
use crate::raft::types::Member;
use crate::raft::{Node, NodeError, NodeOptions, open_storage};
use crate::rpc::custody::Guesses;
use crate::rpc::{Context, IMPORTS_MAX, Places, now};
use crate::seal::{Keyring, NodeKey, SealError};
use crate::store::StoreError;
use crate::store::directory::{DataDir, Owner};
use crate::store::log::LogOptions;
use crate::store::machine::MachineOptions;
use crate::store::policy::SnapshotPolicy;
use crate::tls::{Tls, TlsError, TlsPaths};

/// Between two looks at whether certificate files have changed.
const CERTIFICATE_POLL: Duration = Duration::from_secs(2);

/// Longest a stopped node waits for the last of its tasks: what they wait for answers or fails within this.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);
/// What stopping may take beside the wait for requests under way: handing the leadership over (two of the longest
/// elections), cutting connections, closing the storage, and [`RELEASE_TIMEOUT`]. For the service manager, which kills
/// who takes longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
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

/// A node that has its credentials and its data directory to itself. Its storage is not open yet.
struct Claimed {
    tls: Tls,
    directory: DataDir,
    key: NodeKey,
    options: NodeOptions,
    storage: StorageOptions,
}

/// Opens the data directory and starts consensus, for `server` and `init` alike.
async fn assemble(config: &Config) -> Result<Assembly, ServerError> {
    mutation::announce();
    let Claimed { tls, directory, key, options, storage } = claim(config)?;
    let storage = open_storage(config.node_id, &directory, storage, &tls, &options.metrics.raft).await?;
    recover::refuse_unfinished(&directory, &storage)?;
    let node = Node::start(options, directory, storage, tls.clone(), key).await?;
    Ok(Assembly { node, tls })
}

/// The node's credentials, if they are this node's.
fn load_tls(config: &Config) -> Result<Tls, ServerError> {
    let tls = Tls::load(tls_paths(config))?;
    let identity = tls.identity();
    if identity.cluster != config.cluster || identity.node_id() != Some(config.node_id) {
        let expected = format!("spiffe://{}/{}/{}", config.cluster, Role::Node, config.node_id);
        return Err(ServerError::Identity { certificate: identity, expected });
    }
    Ok(tls)
}

/// Takes the node's data directory.
fn claim(config: &Config) -> Result<Claimed, ServerError> {
    let tls = load_tls(config)?;
    let directory = DataDir::open_or_create(&config.data_dir)?;
    directory.claim(&Owner { cluster: config.cluster.clone(), node: config.node_id })?;
    let key = NodeKey::load_or_create(&config.identity.node_key)?;
    let metrics = Metrics::default();
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
        metrics: metrics.clone(),
    };
    let policy = SnapshotPolicy { floor_bytes: config.raft.snapshot_log_bytes, ..SnapshotPolicy::default() };
    let log = LogOptions { metrics: metrics.log.clone(), ..LogOptions::default() };
    let machine = MachineOptions { metrics: metrics.machine.clone(), ..MachineOptions::default() };
    let storage = StorageOptions { log, machine, snapshots: policy };
    Ok(Claimed { tls, directory, key, options, storage })
}

/// Where a node's credentials are.
fn tls_paths(config: &Config) -> TlsPaths {
    TlsPaths {
        ca: config.tls.ca.clone(),
        cert: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        crl: config.tls.crl.clone().into(),
    }
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

/// How a node that serves is told to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Hand the leadership over, let requests under way finish, and end.
    pub gently: CancellationToken,
    /// After the other: wait for nobody any more.
    pub now: CancellationToken,
}

/// A node that serves.
pub struct Server {
    context: Context,
    api: TcpListener,
    peer: TcpListener,
    admin: TcpListener,
    connections: usize,
    in_flight: usize,
    drain: Duration,
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
            draining: CancellationToken::new(),
            guesses: Guesses::default(),
            imports: Places::new("imports", IMPORTS_MAX),
        };
        let bound = |limit: u64| usize::try_from(limit).unwrap_or(Semaphore::MAX_PERMITS);
        let connections = bound(config.limits.max_connections);
        let (in_flight, drain) = (bound(config.limits.max_in_flight), config.limits.drain_timeout());
        Ok(Self { context, api, peer, admin, connections, in_flight, drain })
    }

    /// The node, for tests that reach behind the ports.
    #[cfg(test)]
    pub(crate) fn node(&self) -> &Node {
        &self.context.node
    }

    /// Serves until `stop` is cancelled, then hands the leadership over, lets requests under way finish, and ends.
    /// When it returns, nothing of the node is left: its directory and ports are free.
    ///
    /// # Errors
    /// [`ServerError::Node`] if the consensus core stops by itself (a failed disk, for one).
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        self.run_until(Stop { gently: stop, ..Stop::default() }).await
    }

    /// As [`Server::run`], and ends requests under way at once if it is told twice to stop.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub async fn run_until(self, stop: Stop) -> Result<(), ServerError> {
        let Self { context, api, peer, admin, connections, in_flight, drain } = self;
        let tls = context.tls.clone();
        let connection_counts = context.node.options().metrics.connections.clone();
        let counts = |name| PortCounts { name, all: connection_counts.clone() };
        // Peers first: nodes that start together ask each other before they serve clients.
        let peer = Port::serve(
            peer,
            Entry::Nodes(tls.clone()),
            Bounds::peer(),
            counts(PortName::Peer),
            api::peer(&context),
        );
        let admin = Port::serve(
            admin,
            Entry::Anyone,
            Bounds::admin(),
            counts(PortName::Admin),
            http::admin(AdminView::new(context.clone())),
        );
        // A node that was removed while it was away must not show what it still has.
        context.node.ask_whether_expelled().await;
        let (api_router, health) = api::api(&context, in_flight).await;
        let api = Port::serve(
            api,
            Entry::Clients(tls.clone()),
            Bounds::api(connections),
            counts(PortName::Api),
            api_router,
        );
        let served = Served { api, peer, admin, health };
        let watching = CancellationToken::new();
        let _ends_with_this = watching.clone().drop_guard();
        tokio::spawn(async move { tls.watch(CERTIFICATE_POLL, watching).await });
        let feeding = notify::feed_watchdog(context.node.clone());
        tracing::info!(node = context.node.options().id, "serving");
        notify::serving(context.node.options().id);

        let failed = tokio::select! {
            () = stop.gently.cancelled() => None,
            error = context.node.stopped() => Some(error),
            never = served.tell_of_expulsion(&context) => match never {},
        };
        tracing::info!("stopping");
        notify::stopping(drain + STOP_TIMEOUT);
        served.stop(&context, failed.is_some(), drain, &stop.now).await;
        // It holds the node, and from here on there is no core any more to ask.
        drop(feeding);
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
    /// Tells who watches the node's health once it is removed. It goes on refusing, with the reason, until it is stopped.
    async fn tell_of_expulsion(&self, context: &Context) -> Infallible {
        context.node.expulsion().await;
        self.health.not_serving().await;
        std::future::pending().await
    }

    /// Stops serving, so that as few as possible notice: new requests are sent elsewhere first, then the leadership
    /// goes, then requests under way are answered, through the new leader if need be, for at most `drain` or until
    /// `now`. Peers are served until the node has stopped, for it is still a voter and, to its own requests, a
    /// follower.
    async fn stop(self, context: &Context, failed: bool, drain: Duration, now: &CancellationToken) {
        let Self { api, peer, admin, health } = self;
        context.draining.cancel();
        health.not_serving().await;
        let gently = async {
            if !failed {
                context.node.hand_over().await;
            }
            health.end().await;
            api.finish(drain).await;
        };
        if now.run_until_cancelled(gently).await.is_none() {
            tracing::warn!("told to stop again: requests under way are ended");
            api.cut().await;
        }
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
