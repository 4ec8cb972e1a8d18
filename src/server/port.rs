//! A port: who may connect, how many at once, and how their connections end.
//!
//! A connection goes through three gates. While its handshake lasts it holds one of few places made for that, so
//! that who has no certificate can keep nobody out who has one already. Then it is judged by what its certificate
//! says, and takes one of the port's places out of its identity's share. Then it has to ask something soon.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::shares::{Share, Shares};
use crate::escrow::ids::{Identity, Role};
use crate::metrics::{ConnectionMetrics, OpenConnection, PortName};
use crate::rpc::guard::Connection;
use crate::tls::{PeerCertificate, Tls};

/// Handshakes under way at once on one port; more wait unaccepted. Enough for hundreds of new connections a second.
const HANDSHAKES_MAX: usize = 256;
/// Longest a connection may stand without having asked anything. Callers connect when they have something to ask.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one machine: an agent needs one.
const CONNECTIONS_PER_AGENT_MAX: usize = 16;
/// Connections of any other client: an import with many workers fits, and nobody has all places alone.
const CONNECTIONS_PER_CLIENT_MAX: usize = 512;
/// Connections of one node: four that stay (replication, heartbeats, snapshots, forwarding) and one for each vote
/// it asks for while the ones before are still closing.
const CONNECTIONS_PER_NODE_MAX: usize = 128;
/// Connections to the peer port. Clients have places of their own: a flood of them must not cost the cluster its
/// quorum.
const PEER_CONNECTIONS_MAX: usize = 1_024;
/// Connections to the admin port: a few probes and a scraper.
const ADMIN_CONNECTIONS_MAX: usize = 128;
/// Concurrent requests on one connection; more wait at the caller's end.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// A silent client is asked for a sign of life this often, and dropped if it gives none for as long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Longest an HTTP/1 client may take over the head of a request, the wait for the next one included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// What a peer may send ahead on one stream: several appends, or chunks of a snapshot, under way at once. With the
/// protocol's default of 64 KiB a stream moves no faster than that a round-trip.
const PEER_STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// What a peer may send ahead on all streams of a connection.
const PEER_CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Between two attempts to accept when the process has run out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How rustls puts it that the other side closed before it said anything.
const LEFT_AT_ONCE: &str = "tls handshake eof";
/// Longest wait for tasks that were told to end at once.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// Who may connect.
pub(super) enum Entry {
    /// Anybody, without TLS.
    Anyone,
    /// Whoever has a certificate of the cluster.
    Clients(Tls),
    /// Nodes of the cluster.
    Nodes(Tls),
}

/// What a port takes on at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Connections in all.
    pub connections: usize,
    /// Handshakes under way.
    pub handshakes: usize,
    /// Longest a connection may stand without having asked anything.
    pub first_request: Duration,
}

impl Bounds {
    const fn of(connections: usize) -> Self {
        Self { connections, handshakes: HANDSHAKES_MAX, first_request: FIRST_REQUEST_TIMEOUT }
    }

    /// Of the API, with as many connections as the configuration says.
    pub(super) const fn api(connections: usize) -> Self {
        Self::of(connections)
    }

    /// Of the peer port.
    pub(super) const fn peer() -> Self {
        Self::of(PEER_CONNECTIONS_MAX)
    }

    /// Of the admin port.
    pub(super) const fn admin() -> Self {
        Self::of(ADMIN_CONNECTIONS_MAX)
    }
}

/// A port that is served, until [`Port::finish`] or [`Port::cut`], or until it is dropped.
pub(super) struct Port {
    shared: Arc<Shared>,
}

struct Shared {
    entry: Entry,
    bounds: Bounds,
    counts: PortCounts,
    places: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    shares: Shares,
    http: auto::Builder<Tasks>,
    router: Router,
    /// No new connections, and those there are end with the requests they carry.
    closing: CancellationToken,
    tasks: Tasks,
}

/// What holds a connection's place.
struct Place {
    _of_port: OwnedSemaphorePermit,
    _of_identity: Option<Share>,
    _counted: OpenConnection,
}

/// Where a port counts.
#[derive(Clone)]
pub(super) struct PortCounts {
    /// Which port it is.
    pub name: PortName,
    /// The counts of all ports.
    pub all: ConnectionMetrics,
}

impl Port {
    /// Serves `router` to whoever connects to `listener` and is let in.
    pub(super) fn serve(
        listener: TcpListener,
        entry: Entry,
        bounds: Bounds,
        counts: PortCounts,
        router: Router,
    ) -> Self {
        let tasks = Tasks::default();
        let shared = Arc::new(Shared {
            places: Arc::new(Semaphore::new(bounds.connections)),
            handshakes: Arc::new(Semaphore::new(bounds.handshakes)),
            shares: Shares::default(),
            http: http(&entry, tasks.clone()),
            entry,
            bounds,
            counts,
            router,
            closing: CancellationToken::new(),
            tasks,
        });
        shared.tasks.spawn(shared.clone().accept(listener));
        Self { shared }
    }

    /// Lets nobody in any more, waits at most `limit` for requests under way, and ends what is left.
    pub(super) async fn finish(&self, limit: Duration) {
        self.shared.closing.cancel();
        if !self.shared.tasks.ended(limit).await {
            tracing::warn!("requests were still under way after {} s", limit.as_secs());
        }
        self.cut().await;
    }

    /// Ends every connection at once, whatever it carries. All that served them is gone when this returns.
    pub(super) async fn cut(&self) {
        self.shared.tasks.cut.cancel();
        if !self.shared.tasks.ended(CUT_TIMEOUT).await {
            tracing::warn!("connections did not end within {} s", CUT_TIMEOUT.as_secs());
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // The tasks hold what they serve with; nothing may outlive the port.
        self.shared.tasks.cut.cancel();
    }
}

impl Shared {
    /// Accepts connections until the port closes, each in a task of its own.
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let accepting = async {
            loop {
                let handshake = self.handshakes.clone().acquire_owned().await;
                let handshake = handshake.expect("the semaphore is never closed");
                match listener.accept().await {
                    Ok((tcp, address)) => self.tasks.spawn(self.clone().welcome(tcp, address, handshake)),
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        };
        self.closing.run_until_cancelled(accepting).await;
    }

    /// Lets a connection in, or not, and serves it.
    async fn welcome(self: Arc<Self>, tcp: TcpStream, address: SocketAddr, handshake: OwnedSemaphorePermit) {
        // Failing that costs latency only.
        let _ = tcp.set_nodelay(true);
        let tls = match &self.entry {
            Entry::Anyone => {
                let Some(place) = self.place(None, address) else { return };
                drop(handshake);
                return self.attend(tcp, self.router.clone(), address, place, None).await;
            }
            Entry::Clients(tls) | Entry::Nodes(tls) => tls,
        };
        let handshake_of_role = async {
            match &self.entry {
                Entry::Nodes(_) => tls.accept_node(tcp).await,
                _ => tls.accept(tcp).await,
            }
        };
        let Some(accepted) = self.closing.run_until_cancelled(handshake_of_role).await else { return };
        drop(handshake);
        let (stream, certificate) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let error = crate::error::chain(&error);
                if error.contains(LEFT_AT_ONCE) {
                    // A client that measures how near it is, or a port check.
                    tracing::debug!(%address, error, "a connection was not used");
                } else {
                    self.counts.all.handshake_failures.count(self.counts.name);
                    tracing::warn!(%address, error, "a connection was refused");
                }
                return;
            }
        };
        let Some(place) = self.place(Some(&certificate), address) else { return };
        let judged = (tls, certificate.clone());
        let router = self.router.clone().layer(axum::Extension(Connection { certificate, address }));
        self.attend(stream, router, address, place, Some(judged)).await;
    }

    /// A place for a connection, if its identity may have one and there is one.
    fn place(&self, certificate: Option<&PeerCertificate>, address: SocketAddr) -> Option<Place> {
        let by = certificate.map(|certificate| &certificate.identity);
        let refused = |why: &str| {
            self.counts.all.refused.count(self.counts.name);
            let by = by.map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%address, by, "a connection was closed: {why}");
            None
        };
        // Before anything is asked: who has no business here holds no place meanwhile.
        if matches!(self.entry, Entry::Nodes(_)) && by.and_then(Identity::node_id).is_none() {
            return refused("only nodes may use this port");
        }
        let share = match by {
            None => None,
            Some(identity) => match self.shares.take(identity, connections_max(identity.role)) {
                None => return refused("this identity has too many"),
                share => share,
            },
        };
        match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                let _counted = self.counts.all.open(self.counts.name);
                Some(Place { _of_port: place, _of_identity: share, _counted })
            }
            Err(_) => refused("all places are taken"),
        }
    }

    /// Serves the requests of a connection. Once one finds that the certificate behind it is not good any more, that
    /// one is refused by whoever answers it, and the connection takes no others: the caller may have a better one by now.
    async fn attend<I>(
        &self,
        io: I,
        router: Router,
        address: SocketAddr,
        place: Place,
        judged: Option<(&Tls, PeerCertificate)>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (asked, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let service = hyper::service::service_fn({
            let (asked, ended) = (asked.clone(), ended.clone());
            move |request: hyper::Request<Incoming>| {
                asked.notify_one();
                if judged.as_ref().is_some_and(|(tls, certificate)| tls.check(certificate).is_err()) {
                    ended.notify_one();
                }
                router.clone().oneshot(request)
            }
        });
        let mut connection = std::pin::pin!(self.http.serve_connection(TokioIo::new(io), service));
        let silence = async {
            match tokio::time::timeout(self.bounds.first_request, asked.notified()).await {
                Ok(()) => std::future::pending().await,
                Err(_) => tracing::debug!(%address, "a connection that asked nothing is closed"),
            }
        };
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = silence => return,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = ended.notified() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        drop(place);
        if let Err(error) = served {
            tracing::debug!(%address, error = crate::error::chain(&*error), "a connection ended");
        }
    }
}

/// How many connections an identity of `role` may have on one port.
fn connections_max(role: Role) -> usize {
    match role {
        Role::Agent => CONNECTIONS_PER_AGENT_MAX,
        Role::Node => CONNECTIONS_PER_NODE_MAX,
        _ => CONNECTIONS_PER_CLIENT_MAX,
    }
}

/// How HTTP is spoken on a port.
fn http(entry: &Entry, tasks: Tasks) -> auto::Builder<Tasks> {
    let mut http = auto::Builder::new(tasks);
    // Without a timer the timeout would be none.
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_INTERVAL);
    match entry {
        Entry::Anyone | Entry::Clients(_) => http,
        Entry::Nodes(_) => {
            http.http2()
                .initial_stream_window_size(PEER_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(PEER_CONNECTION_WINDOW_BYTES);
            http.http2_only()
        }
    }
}

/// The tasks of a port, those that hyper starts for it included: all of them end when they are cut.
#[derive(Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    cut: CancellationToken,
}

impl Tasks {
    fn spawn<F>(&self, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(self.cut.clone().run_until_cancelled_owned(task));
    }

    /// Whether all of them end within `limit`.
    async fn ended(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

#[cfg(test)]
mod tests;
