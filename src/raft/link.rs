//! The way to another node: a connection that is made when first needed, kept, made anew when it breaks, and left when
//! the certificates it was made with are no longer the ones that count.
//!
//! A connection proves who both ends are once, and may live for a year. So it is left for a new one, which is judged by
//! what counts then, as soon as this node's own files have changed (it was renewed, or believes other CAs or revocations)
//! or the other end's certificate has ended. What is under way on the old one is finished there. Without this, a node
//! that was renewed in time would be refused on its old connections when its first certificate ends.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;

use crate::tls::{ExpectedPeer, PeerCertificate, Tls, TlsError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that does not answer a ping this long has its connection dropped, so that a stopped process or a cut
/// cable is noticed although TCP would wait for minutes.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at whether a stream that stays should move to a new connection.
const OUTDATED_POLL: Duration = Duration::from_secs(1);
/// Between two lines in the log about the same failure.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Most failures that are remembered; past it all are forgotten, and said again.
const FAILURES_MAX: usize = 64;

/// Calls to one node. Clones share the connection.
pub struct Link {
    shared: Arc<Shared>,
    /// What the next call goes over, once it is ready for one.
    ready: Option<Channel>,
}

struct Shared {
    tls: Tls,
    address: String,
    expected: ExpectedPeer,
    failures: Failures,
    current: Mutex<Connection>,
}

/// A connection and what it was judged by.
#[derive(Clone)]
struct Connection {
    channel: Channel,
    generation: u64,
    /// Who answered, once somebody has.
    server: Arc<Mutex<Option<PeerCertificate>>>,
}

impl Link {
    /// The way to the node `expected` at `address`. Does not connect yet.
    pub(super) fn new(tls: Tls, address: &str, expected: ExpectedPeer, failures: Failures) -> Self {
        let current = Mutex::new(Connection::new(&tls, address, expected));
        let shared = Shared { tls, address: address.to_owned(), expected, failures, current };
        Self { shared: Arc::new(shared), ready: None }
    }

    /// Logs why the node does not do what it is asked, if that is what it answered and it was not just said. That it
    /// cannot be reached was said by the call.
    pub(super) fn refused(&self, answer: &tonic::Status) {
        if answer.source().is_none() {
            self.shared.failures.note(&self.shared.address, "a node refuses", answer.message().to_owned());
        }
    }

    /// Resolves once what is called from now on should be called anew: for streams that stay.
    pub(super) fn outdated(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (shared, connection) = (self.shared.clone(), self.shared.current());
        async move {
            while !connection.is_outdated(&shared.tls) {
                tokio::time::sleep(OUTDATED_POLL).await;
            }
        }
    }
}

impl Clone for Link {
    /// Readiness is one caller's own.
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), ready: None }
    }
}

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.ready.get_or_insert_with(|| self.shared.current().channel).poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut channel = self.ready.take().unwrap_or_else(|| self.shared.current().channel);
        let (answer, shared) = (channel.call(request), self.shared.clone());
        Box::pin(async move {
            let answer = answer.await;
            if let Err(error) = &answer {
                // If a certificate was refused: by whom, and why.
                let why = TlsError::refusal(error).unwrap_or_else(|| innermost(error));
                shared.failures.note(&shared.address, "no connection to a node", why);
            }
            answer
        })
    }
}

impl Shared {
    /// The connection that counts: a new one if it is time for one.
    fn current(&self) -> Connection {
        let mut current = lock(&self.current);
        if current.is_outdated(&self.tls) {
            *current = Connection::new(&self.tls, &self.address, self.expected);
        }
        current.clone()
    }
}

impl Connection {
    fn new(tls: &Tls, address: &str, expected: ExpectedPeer) -> Self {
        // Read before the files are used: if they change in between, one connection too many is made.
        let generation = tls.generation();
        let server: Arc<Mutex<Option<PeerCertificate>>> = Arc::default();
        let (tls, address, answered) = (tls.clone(), address.to_owned(), server.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, address, answered) = (tls.clone(), address.clone(), answered.clone());
            async move {
                let tcp = TcpStream::connect(&address).await?;
                tcp.set_nodelay(true)?;
                let stream = tls.connect(tcp, expected).await.map_err(io::Error::other)?;
                *lock(&answered) = Some(tls.server_certificate(&stream, expected).map_err(io::Error::other)?);
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The connector dials the address itself; this only fills the HTTP/2 authority.
        let channel = Endpoint::from_static("http://peer.strongroom")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector);
        Self { channel, generation, server }
    }

    fn is_outdated(&self, tls: &Tls) -> bool {
        self.generation != tls.generation()
            || lock(&self.server).as_ref().is_some_and(|server| tls.check(server).is_err())
    }
}

/// The failures that were logged, by address and reason. Whoever has no connection tries again several times a second.
#[derive(Clone, Default)]
pub(super) struct Failures(Arc<Mutex<BTreeMap<(String, String), Instant>>>);

impl Failures {
    /// Logs what is the matter with the node at `address`, and why, unless that was just said.
    fn note(&self, address: &str, what: &str, why: String) {
        let mut said = lock(&self.0);
        let key = (address.to_owned(), why);
        if said.get(&key).is_some_and(|at| at.elapsed() < FAILURE_LOG_INTERVAL) {
            return;
        }
        tracing::warn!(address, why = key.1, "{what}");
        if said.len() >= FAILURES_MAX {
            said.clear();
        }
        said.insert(key, Instant::now());
    }
}

/// What is behind an error, without the layers it went through.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// What is behind these locks is replaced whole: a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioExecutor;
    use hyper_util::server::conn::auto;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tower::ServiceExt as _;

    use super::*;
    use crate::escrow::ids::Role;
    use crate::tls::ca::{FileNames, IssueRequest, Selector, Validity};
    use crate::tls::tests::TestCa;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Serves `node` and tells the serial number that each connection shows. No connection is ever ended from here.
    async fn serve(node: Tls) -> (String, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, shown) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (stream, peer) = node.accept_node(tcp).await.unwrap();
                sender.send(peer.serial).unwrap();
                let empty = tower::service_fn(|_: http::Request<_>| async {
                    Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
                });
                let service = hyper_util::service::TowerToHyperService::new(empty);
                tokio::spawn(async move {
                    // The caller's leaving it is the end the test is about.
                    let http = auto::Builder::new(TokioExecutor::new()).http2_only();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        (address, shown)
    }

    async fn call(link: &Link) {
        let request = http::Request::new(Body::empty());
        let answer = tokio::time::timeout(PATIENCE, link.clone().oneshot(request)).await.expect("in time");
        answer.unwrap();
    }

    #[tokio::test]
    async fn a_renewed_node_leaves_the_connection_it_made_with_its_old_certificate() {
        let ca = TestCa::new("acme");
        let (paths, issued) = ca.profile(IssueRequest::new(Role::Node, "2"));
        let caller = Tls::load(paths.clone()).unwrap();
        let (address, mut shown) = serve(ca.tls(Role::Node, "1")).await;
        let link = Link::new(caller.clone(), &address, ExpectedPeer::Node(1), Failures::default());
        call(&link).await;
        call(&link).await;
        assert_eq!(shown.recv().await.unwrap(), issued.record.serial);
        assert!(shown.try_recv().is_err(), "one connection is kept");

        let outdated = link.outdated();
        let renewed = ca.authority.renew(&Selector::Identity(caller.identity()), None).unwrap();
        ca.authority.replace(paths.cert.parent().unwrap(), &renewed, FileNames::CLIENT).unwrap();
        assert!(caller.reload().unwrap());
        tokio::time::timeout(PATIENCE, outdated).await.expect("a stream that stays moves on");
        call(&link).await;
        call(&link).await;
        assert_eq!(shown.recv().await.unwrap(), renewed.record.serial);
        assert!(shown.try_recv().is_err(), "one new connection is enough");
    }

    #[tokio::test]
    async fn a_stream_is_left_when_the_certificate_of_whoever_answers_ends() {
        let ca = TestCa::new("acme");
        let now = crate::tls::unix_now();
        let validity = Some(Validity::Between { not_before: now - 60, not_after: now + 3 });
        let (paths, _) = ca.profile(IssueRequest { validity, ..IssueRequest::new(Role::Node, "1") });
        let (address, mut shown) = serve(Tls::load(paths).unwrap()).await;
        let caller = ca.tls(Role::Node, "2");
        let link = Link::new(caller.clone(), &address, ExpectedPeer::Node(1), Failures::default());
        call(&link).await;
        shown.recv().await.unwrap();
        tokio::time::timeout(PATIENCE, link.outdated()).await.expect("it is noticed");
        assert!(crate::tls::unix_now() > now + 3, "not before its end");
        assert_eq!(caller.generation(), 0, "nothing was reloaded");
    }
}
