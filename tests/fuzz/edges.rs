//! The ports of a running node: whatever is sent there, before a handshake, inside of one, or in a request that is half
//! right, the node stays ready, serves its clients and keeps its memory.

use std::fs;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Uri};
use futures_util::future::FutureExt as _;
use futures_util::{StreamExt as _, stream};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use prost::Message as _;
use strongroom::config::{Config, TlsFiles};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::peer::peer_service_client::PeerServiceClient;
use strongroom::proto::peer::{DescribeRequest, Envelope};
use strongroom::proto::{CustodyRequest, EscrowRequest, FindRequest, RecoverRequest};
use strongroom::raft::peers::STORAGE_HEADER;
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::transport::Channel;
use tower::Service as _;

use crate::common::*;
use crate::mangled::mangled;
use crate::times;

/// Inputs for each port and state of a connection in a normal run.
const CONNECTIONS: usize = 60;
/// Requests with half a message to each call in a normal run.
const REQUESTS: usize = 8;
/// Connections at the same time.
const AT_ONCE: usize = 8;
/// Longest that is waited for what a node says to it.
const LISTEN: Duration = Duration::from_millis(150);
/// Longest that a flood goes on.
const FLOOD: Duration = Duration::from_secs(2);
/// Bytes of a flood.
const FLOOD_BYTES: usize = 8 * 1024 * 1024;
/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;
/// By how much a node may have grown in the end: what all of its connections have at once, and what its clients made it
/// keep meanwhile.
const GROWTH_MAX_BYTES: u64 = 96 * 1024 * 1024;

/// Every call that a client may make, and one that there is not.
const CALLS: [&str; 16] = [
    "strongroom.v1.EscrowService/Escrow",
    "strongroom.v1.EscrowService/Rotation",
    "strongroom.v1.EscrowService/ConfirmKey",
    "strongroom.v1.EscrowService/EscrowMany",
    "strongroom.v1.EscrowService/ImportMachines",
    "strongroom.v1.RecoveryService/Find",
    "strongroom.v1.RecoveryService/Recover",
    "strongroom.v1.RecoveryService/Custody",
    "strongroom.v1.ClusterService/Status",
    "strongroom.v1.ComplianceService/Put",
    "strongroom.v1.ComplianceService/PutMany",
    "strongroom.v1.ComplianceService/Report",
    "strongroom.v1.PolicyService/ListApprovals",
    "strongroom.v1.AuditService/Read",
    "grpc.health.v1.Health/Check",
    "strongroom.v1.NoService/Nothing",
];
/// Calls between nodes.
const PEER_CALLS: [&str; 8] =
    ["Append", "Vote", "PreVote", "TransferLeader", "InstallSnapshot", "Propose", "KeepJournal", "Digests"];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_to_its_ports_a_node_stays_ready_and_serves() {
    let mut test = three_nodes().await;
    let node = test.leader().await;
    let load = Load::start_at(&test, &ALL, 2, Duration::from_millis(20)).with_readers(&test, &ALL);
    load.progress(20).await;
    let pid = test.cluster.pid(node).expect("it runs");
    let before = resident_bytes(pid);

    let plan = test.cluster.layout().node(node).expect("a node").clone();
    let importer =
        Tls::load(TlsPaths::profile(&test.cluster.layout().profile("importer"))).expect("credentials");
    let peer = credentials_of(&test, ALL.into_iter().find(|id| *id != node).expect("three nodes"));
    let hello = client_hello(&importer).await;
    for address in [plan.api_address(), plan.peer_address()] {
        send_each(&address, None, vec![hello.clone(), http1(), http2()]).await;
    }
    send_each(&plan.admin_address(), None, vec![http1(), http2(), hello]).await;
    send_each(&plan.api_address(), Some(&importer), vec![http1(), http2()]).await;
    send_each(&plan.peer_address(), Some(&peer), vec![http2()]).await;
    for (address, tls) in [
        (plan.api_address(), Some(&importer)),
        (plan.peer_address(), Some(&peer)),
        (plan.admin_address(), None),
    ] {
        for flood in floods() {
            let pour = async {
                let mut wire = connect(&address, tls).await.expect("the handshake is done");
                drop(wire.write_all(&flood).await);
            };
            // Closed on it, or not read any more.
            drop(timeout(FLOOD, pour).await);
        }
    }
    ask_half(&test, node).await;
    ask_half_as_peer(&peer, &plan.peer_address()).await;

    load.progress(40).await;
    let (kept, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "nobody else noticed");
    test.wait_for_page(node, "/readyz", |code, _| code == 200).await;
    let grown = resident_bytes(pid).saturating_sub(before);
    eprintln!("the node has grown by {} KiB", grown / 1024);
    assert!(grown < GROWTH_MAX_BYTES, "by {grown} bytes");
    assert!(test.cluster.ended().now_or_never().is_none(), "no node has ended");
    test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
    for id in ALL {
        assert!(!test.log(id).contains("panicked"), "node {id}: {}", test.log(id));
        assert_all_held(&test, id, &kept).await;
    }
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok()).expect("Linux says it") * 1024
}

fn credentials_of(test: &TestCluster, node: NodeId) -> Tls {
    let path = test.cluster.layout().node(node).expect("a node").config_path();
    let TlsFiles { ca, cert, key, crl } = Config::load(&path).expect("a configuration").tls;
    Tls::load(TlsPaths { ca, cert, key, crl: crl.into() }).expect("its credentials")
}

/// What a client begins a handshake with.
async fn client_hello(tls: &Tls) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let tcp = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
    let mut hello = vec![0; 4_096];
    let read = async { listener.accept().await.expect("accepted").0.read(&mut hello).await.expect("read") };
    let length = tokio::select! {
        length = read => length,
        _ = tls.connect(tcp, ExpectedPeer::AnyNode) => unreachable!("nobody answers"),
    };
    hello.truncate(length);
    hello
}

fn http1() -> Vec<u8> {
    b"GET /metrics HTTP/1.1\r\nhost: node\r\naccept: application/openmetrics-text\r\n\r\nPOST /livez HTTP/1.1\r\nhost: node\r\n\
      transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nPUT /readyz HTTP/1.1\r\nhost: node\r\ncontent-length: 4294967296\r\n\r\nx"
        .to_vec()
}

/// Opens a connection, asks one gRPC call and says goodbye.
fn http2() -> Vec<u8> {
    let message = EscrowRequest { machine: "PC-1".to_owned(), ..EscrowRequest::default() };
    [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 4, 0, 0, 0xff, 0xff]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
        frame(HEADERS, END_HEADERS, 1, &headers()),
        frame(DATA, END_STREAM, 1, &grpc(&message.encode_to_vec())),
        frame(PING, 0, 0, &[7; 8]),
        frame(GOAWAY, 0, 0, &[0; 8]),
    ]
    .concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields of a request, none of them in a table (RFC 7541 §6.2.2).
fn headers() -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/strongroom.v1.EscrowService/Escrow"),
        (":authority", "node"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.iter().flat_map(|(name, value)| field(0, name, value)).collect()
}

fn field(kind: u8, name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    [&[kind, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// A message as gRPC frames it.
fn grpc(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).expect("small").to_be_bytes(), message].concat()
}

/// What has brought servers down: heads without an end, streams that are reset at once, questions that only ask for an
/// answer, and a table whose entry is asked for over and over.
fn floods() -> Vec<Vec<u8>> {
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let repeated = |begin: &[u8], part: &dyn Fn(u32) -> Vec<u8>| {
        let mut flood = begin.to_vec();
        for turn in 0.. {
            if flood.len() >= FLOOD_BYTES {
                break;
            }
            flood.extend(part(turn));
        }
        flood
    };
    let fields: Vec<u8> = (0..100).flat_map(|_| field(0, "x-much", &"m".repeat(120))).collect();
    let head = [&begin[..], &frame(HEADERS, 0, 1, &headers())].concat();
    let stream = |turn: u32| turn.wrapping_mul(2) % 0x7fff_fffe + 1;
    // One large field that goes into the table, and then thousands of references to it.
    let entry = field(0x40, "x-large", &"l".repeat(120));
    let bomb = [&headers()[..], &entry, &[0xbe; 8_000]].concat();
    vec![
        repeated(&head, &|_| frame(CONTINUATION, 0, 1, &fields)),
        repeated(&begin, &|turn| {
            [
                frame(HEADERS, END_HEADERS, stream(turn), &headers()),
                frame(RESET, 0, stream(turn), &[0, 0, 0, 8]),
            ]
            .concat()
        }),
        repeated(&begin, &|_| frame(PING, 0, 0, &[1; 8])),
        repeated(&begin, &|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        repeated(&begin, &|turn| frame(HEADERS, END_HEADERS, stream(turn), &bomb)),
        repeated(&begin, &|turn| {
            [
                frame(HEADERS, END_HEADERS, stream(turn), &headers()),
                frame(DATA, 0, stream(turn), &[0; 16_000]),
            ]
            .concat()
        }),
        repeated(b"GET /metrics HTTP/1.1\r\n", &|turn| {
            format!("x-{turn}: {}\r\n", "y".repeat(100)).into_bytes()
        }),
        repeated(b"POST /livez HTTP/1.1\r\nhost: node\r\ntransfer-encoding: chunked\r\n\r\n", &|_| {
            b"1\r\nx\r\n".to_vec()
        }),
    ]
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A connection, behind a handshake if there are credentials for one.
async fn connect(address: &str, tls: Option<&Tls>) -> Option<Box<dyn Wire>> {
    let tcp = TcpStream::connect(address).await.expect("the port is open");
    Some(match tls {
        Some(tls) => Box::new(tls.connect(tcp, ExpectedPeer::AnyNode).await.ok()?),
        None => Box::new(tcp),
    })
}

/// So many damaged samples.
fn inputs(samples: Vec<Vec<u8>>, count: usize) -> Vec<Vec<u8>> {
    let (mut runner, strategy) = (TestRunner::default(), mangled(samples));
    (0..count * times() as usize)
        .map(|_| strategy.new_tree(&mut runner).expect("an input").current())
        .collect()
}

/// Sends each damaged sample over a connection of its own, and listens for a while: to some of them something is said.
async fn send_each(address: &str, tls: Option<&Tls>, samples: Vec<Vec<u8>>) {
    let sent = stream::iter(inputs(samples, CONNECTIONS)).map(|input| async move {
        let mut wire = connect(address, tls).await.expect("the handshake is done");
        // The other side may close on it at any time.
        drop(wire.write_all(&input).await);
        drop(wire.flush().await);
        let mut heard = Vec::new();
        drop(timeout(LISTEN, wire.read_to_end(&mut heard)).await);
        heard.len()
    });
    let heard: Vec<usize> = sent.buffer_unordered(AT_ONCE).collect().await;
    assert!(heard.iter().any(|length| *length > 0), "{address} says nothing to anybody");
}

/// Makes every call with messages that are damaged, in every role that changes nothing by it.
async fn ask_half(test: &TestCluster, node: NodeId) {
    let key_id = key(1).to_string();
    let messages = [
        EscrowRequest {
            request_id: key_id.clone(),
            machine: "PC-1".into(),
            volume: "C:".into(),
            kind: "generic".into(),
            secret: b"s".to_vec(),
            ..EscrowRequest::default()
        }
        .encode_to_vec(),
        FindRequest { key_id_prefix: key_id.clone(), limit: 3, ..FindRequest::default() }.encode_to_vec(),
        RecoverRequest {
            request_id: key_id.clone(),
            key_id: key_id.clone(),
            reason: "why".into(),
            ..RecoverRequest::default()
        }
        .encode_to_vec(),
        CustodyRequest { key_id, ..CustodyRequest::default() }.encode_to_vec(),
    ];
    let samples: Vec<Vec<u8>> = messages.iter().map(|message| grpc(message)).collect();
    for profile in ["importer", "auditor", "helpdesk"] {
        let channel = test.channel(profile, node).await;
        for call in CALLS {
            send_bodies(&channel, &format!("http://node/{call}"), inputs(samples.clone(), REQUESTS), "")
                .await;
        }
    }
}

/// As another node that has lost its mind: envelopes of no format that there is, and frames that are half right.
async fn ask_half_as_peer(tls: &Tls, address: &str) {
    let (tls, address) = (tls.clone(), address.to_owned());
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            let stream = tls.connect(tcp, ExpectedPeer::AnyNode).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://node.test");
    let channel = endpoint.connect_with_connector(connector).await.expect("connected");
    let described = PeerServiceClient::new(channel.clone()).describe(DescribeRequest {}).await;
    let storage = described.expect("it says who it is").into_inner().storage;
    // A version byte that never was: what decodes may be believed of a node.
    let envelope =
        |body: &[u8]| grpc(&Envelope { body: body.to_vec().into(), quorum_age_ms: None }.encode_to_vec());
    let samples = vec![envelope(&[0, 1, 2, 3]), envelope(&[9; 40]), envelope(&[])];
    for call in PEER_CALLS {
        let uri = format!("http://node/strongroom.v1.peer.PeerService/{call}");
        send_bodies(&channel, &uri, inputs(samples.clone(), REQUESTS), &storage).await;
    }
}

/// Sends requests with these bodies to the node of this data directory, whatever is answered.
async fn send_bodies(channel: &Channel, uri: &str, bodies: Vec<Vec<u8>>, storage: &str) {
    let sent = stream::iter(bodies).map(|body| {
        let mut channel = channel.clone();
        let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        let request = request.header(STORAGE_HEADER, storage);
        let request = request.body(tonic::body::Body::new(Body::from(body))).expect("a request");
        async move {
            std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("it is connected");
            let answered = async {
                let answer = channel.call(request).await.ok()?;
                drop(to_bytes(Body::new(answer.into_body()), ANSWER_MAX_BYTES).await);
                Some(())
            };
            timeout(SOON, answered).await.expect("an answer, or none, but soon").is_some()
        }
    });
    let answered: Vec<bool> = sent.buffer_unordered(AT_ONCE).collect().await;
    assert!(answered.contains(&true), "{uri}: nobody is answered");
}
