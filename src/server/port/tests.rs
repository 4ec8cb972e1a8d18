//! Over real sockets, with certificates made on the spot.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::tls::ExpectedPeer;
use crate::tls::tests::TestCa;

/// More than any of these steps takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// So long that nothing here ends because of it.
const NEVER: Duration = Duration::from_secs(3_600);
/// How an HTTP/2 connection begins (RFC 9113 §3.4): the preface and an empty SETTINGS frame.
const HTTP2_BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

type Stream = TlsStream<TcpStream>;

struct Served {
    port: Port,
    address: SocketAddr,
}

async fn serve(entry: Entry, bounds: Bounds, router: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Served { port: Port::serve(listener, entry, bounds, counts(), router), address }
}

fn counts() -> PortCounts {
    PortCounts { name: PortName::Api, all: ConnectionMetrics::default() }
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

fn bounds(connections: usize) -> Bounds {
    Bounds { connections, handshakes: 4, first_request: NEVER }
}

impl Served {
    async fn connect(&self, tls: &Tls) -> Stream {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        tls.connect(tcp, ExpectedPeer::AnyNode).await.unwrap()
    }

    /// A connection that was let in: it has had an answer.
    async fn let_in(&self, tls: &Tls) -> Option<Stream> {
        let mut stream = self.connect(tls).await;
        ask(&mut stream).await.then_some(stream)
    }

    fn places_left(&self) -> usize {
        self.port.shared.places.available_permits()
    }

    async fn wait_for(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Asks once; whether there was an answer.
async fn ask(stream: &mut Stream) -> bool {
    let asking = async {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        std::io::Result::Ok(())
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("an answer or an end").is_ok()
}

/// Waits until the other end has hung up.
async fn closed(stream: &mut Stream) {
    let mut rest = Vec::new();
    // An end without a TLS farewell is an error, and an end all the same.
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest));
    let _ = read.await.expect("the connection is closed");
}

#[tokio::test]
async fn a_client_is_sent_away_from_the_peer_port_before_it_asks_anything() {
    let ca = TestCa::new("acme");
    let served = serve(Entry::Nodes(ca.tls(Role::Node, "1")), bounds(2), hello()).await;
    for (role, name) in [(Role::Agent, "PC-0001"), (Role::Operator, "desk"), (Role::Importer, "import")] {
        let tls = ca.tls(role, name);
        for _ in 0..3 {
            closed(&mut served.connect(&tls).await).await;
        }
    }
    assert_eq!(served.places_left(), 2);
    let mut node = served.connect(&ca.tls(Role::Node, "2")).await;
    node.write_all(HTTP2_BEGINS).await.unwrap();
    assert_ne!(node.read_u8().await.ok(), None, "a node is answered");
}

/// The server's SETTINGS come first (RFC 9113 §3.4); 0x4 is SETTINGS_INITIAL_WINDOW_SIZE (§6.5.2).
#[tokio::test]
async fn a_peer_may_send_more_ahead_than_the_protocol_lets_it_by_default() {
    let ca = TestCa::new("acme");
    let served = serve(Entry::Nodes(ca.tls(Role::Node, "1")), bounds(2), hello()).await;
    let mut node = served.connect(&ca.tls(Role::Node, "2")).await;
    node.write_all(HTTP2_BEGINS).await.unwrap();
    let mut head = [0; 9];
    node.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    node.read_exact(&mut settings).await.unwrap();
    let mut wanted = vec![0, 4];
    wanted.extend(PEER_STREAM_WINDOW_BYTES.to_be_bytes());
    assert!(settings.chunks(6).any(|setting| setting == wanted), "{settings:?}");
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_and_gives_its_place_back() {
    let ca = TestCa::new("acme");
    let bounds = Bounds { first_request: Duration::from_millis(100), ..bounds(8) };
    let served = serve(Entry::Clients(ca.tls(Role::Node, "1")), bounds, hello()).await;
    let client = ca.tls(Role::Auditor, "desk");
    let mut asked = served.let_in(&client).await.expect("let in");
    // Nothing at all, half a preface, and an HTTP/2 connection without a request.
    for begins in [&b""[..], &HTTP2_BEGINS[..7], HTTP2_BEGINS] {
        let mut silent = served.connect(&client).await;
        silent.write_all(begins).await.unwrap();
        silent.flush().await.unwrap();
        closed(&mut silent).await;
    }
    served.wait_for("their places are free", |served| served.places_left() == 7).await;
    assert!(ask(&mut asked).await, "one that has asked may take its time");
}

#[tokio::test]
async fn no_identity_takes_more_than_its_share_of_the_places() {
    let ca = TestCa::new("acme");
    let served = serve(Entry::Clients(ca.tls(Role::Node, "1")), bounds(64), hello()).await;
    let (greedy, other) = (ca.tls(Role::Agent, "PC-0001"), ca.tls(Role::Agent, "PC-0002"));
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_PER_AGENT_MAX {
        held.push(served.let_in(&greedy).await.expect("within its share"));
    }
    assert!(served.let_in(&greedy).await.is_none(), "beyond its share");
    assert!(served.let_in(&other).await.is_some(), "another has a share of its own");
    drop(held.pop());
    let freed = 64 - (CONNECTIONS_PER_AGENT_MAX - 1);
    served.wait_for("the place is given back", |served| served.places_left() >= freed).await;
    assert!(served.let_in(&greedy).await.is_some(), "one was given back");
}

#[tokio::test]
async fn handshakes_that_do_not_end_take_no_place_and_delay_others_for_their_deadline_only() {
    let ca = TestCa::new("acme");
    let tls = ca.tls(Role::Node, "1").with_handshake_timeout(Duration::from_millis(500));
    let served = serve(Entry::Clients(tls), Bounds { handshakes: 2, ..bounds(4) }, hello()).await;
    let client = ca.tls(Role::Auditor, "desk");
    let mut before = served.let_in(&client).await.expect("let in");
    let more = [served.let_in(&client).await, served.let_in(&client).await];
    assert!(more.iter().all(Option::is_some), "a handshake that is done makes room for the next");
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert!(ask(&mut before).await, "who is in is served");
    assert_eq!(served.places_left(), 1, "a handshake holds no place");
    assert!(served.let_in(&client).await.is_some(), "others get in when the deadline has passed");
}

#[tokio::test]
async fn finishing_answers_what_is_under_way_and_cutting_leaves_nothing_behind() {
    let ca = TestCa::new("acme");
    let (entered, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let router = {
        let (entered, gate) = (entered.clone(), gate.clone());
        Router::new().route(
            "/",
            get(async move || {
                entered.fetch_add(1, Ordering::SeqCst);
                let _ = gate.acquire().await;
                "hello"
            }),
        )
    };
    let served = serve(Entry::Clients(ca.tls(Role::Node, "1")), bounds(8), router).await;
    let client = ca.tls(Role::Auditor, "desk");
    let (mut answered, mut idle) = (served.connect(&client).await, served.connect(&client).await);
    let asking = tokio::spawn(async move { ask(&mut answered).await });
    served.wait_for("it is under way", |_| entered.load(Ordering::SeqCst) == 1).await;

    let finishing = served.port.finish(PATIENCE);
    let finished = async {
        closed(&mut idle).await;
        gate.add_permits(1);
        asking.await.unwrap()
    };
    let ((), was_answered) = tokio::join!(finishing, finished);
    assert!(was_answered, "a request under way is answered");
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody is let in any more");
    drop(served);
    assert_eq!(Arc::strong_count(&gate), 1, "nothing is left behind");
}

#[tokio::test]
async fn cutting_does_not_wait_for_requests_under_way() {
    let ca = TestCa::new("acme");
    let entered = Arc::new(AtomicUsize::new(0));
    let router = {
        let entered = entered.clone();
        Router::new().route(
            "/",
            get(async move || {
                entered.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<&str>().await
            }),
        )
    };
    let served = serve(Entry::Clients(ca.tls(Role::Node, "1")), bounds(8), router).await;
    let mut endless = served.connect(&ca.tls(Role::Auditor, "desk")).await;
    endless.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
    served.wait_for("it is under way", |_| entered.load(Ordering::SeqCst) == 1).await;
    tokio::time::timeout(CUT_TIMEOUT, served.port.cut()).await.expect("at once");
    closed(&mut endless).await;
    drop(served);
    assert_eq!(Arc::strong_count(&entered), 1, "nothing is left behind");
}
