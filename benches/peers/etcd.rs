//! Three nodes of etcd as they come, but for TLS on all ports. Its clients put a key each; they ask for nothing in return.
//!
//! Of its protocol a few fields of a few messages are needed, which stand here as etcd's documentation of its API numbers them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom::tls::Tls;
use strongroom::tls::ca::FileNames;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::echo::unary;
use crate::load::Client;
use crate::payload;
use crate::process::{Process, command, free_ports, installed, run};
use crate::trust::{Trust, channel};

/// How to have it.
pub const INSTALL: &str =
    "apt-get install --no-install-recommends etcd-server (and stop the service that starts)";

const NAMES: [&str; 3] = ["node1", "node2", "node3"];
const PUT: &str = "/etcdserverpb.KV/Put";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// A running cluster, gone when dropped.
pub struct Etcd {
    version: String,
    nodes: Vec<Node>,
    /// Positions of the nodes, the leader's first.
    order: Vec<usize>,
    tls: Tls,
    puts: Arc<AtomicU64>,
    _dir: TempDir,
}

struct Node {
    process: Process,
    client_address: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// What it answers is not looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

impl Etcd {
    /// `None` if it is not installed.
    pub async fn start(trust: &Trust, dir: TempDir) -> Option<Self> {
        let program = installed("etcd")?;
        let mut asked = command(&program, None);
        asked.arg("--version");
        let version = run(asked).await.lines().next().unwrap_or_default().to_owned();

        trust.write(&dir.path().join("tls"));
        let ports: [u16; 6] = free_ports();
        let (clients, peers) = ports.split_at(3);
        let members: Vec<_> =
            NAMES.iter().zip(peers).map(|(name, port)| format!("{name}={}", url(*port))).collect();
        let mut nodes = Vec::new();
        for (name, (client, peer)) in NAMES.into_iter().zip(clients.iter().zip(peers)) {
            let mut server = command(&program, None);
            server.current_dir(dir.path()).args(arguments(name, &members.join(","), *client, *peer));
            let process = Process::spawn(server, dir.path().join(format!("{name}.log")));
            nodes.push(Node { process, client_address: format!("127.0.0.1:{client}") });
        }
        let tls = trust.tls(FileNames::CLIENT);
        let order = order(&mut nodes, &tls).await;
        Some(Self { version, nodes, order, tls, puts: Arc::default(), _dir: dir })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.process.pid()).collect()
    }

    /// Clients at the leader and the others in turns.
    pub async fn clients(&self, count: usize) -> Vec<EtcdClient> {
        let mut clients = Vec::new();
        for node in self.order.iter().cycle().take(count) {
            let channel = channel(&self.tls, &self.nodes[*node].client_address).await.expect("connected");
            clients.push(EtcdClient { channel, puts: self.puts.clone() });
        }
        clients
    }

    pub async fn stop(&mut self) {
        for node in &mut self.nodes {
            node.process.stop().await;
        }
    }
}

fn url(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

/// The command line of a node.
fn arguments(name: &str, members: &str, client: u16, peer: u16) -> Vec<String> {
    let (client, peer) = (url(client), url(peer));
    let tls = ["", "peer-"].iter().flat_map(|prefix| {
        [
            format!("--{prefix}cert-file=tls/node.crt"),
            format!("--{prefix}key-file=tls/node.key"),
            format!("--{prefix}trusted-ca-file=tls/ca.crt"),
            format!("--{prefix}client-cert-auth"),
        ]
    });
    let others = [
        format!("--name={name}"),
        format!("--data-dir={name}"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster={members}"),
        "--initial-cluster-state=new".to_owned(),
        "--logger=zap".to_owned(),
        "--log-outputs=stderr".to_owned(),
    ];
    tls.chain(others).collect()
}

/// The positions of the nodes, the leader's first, once all of them follow it.
async fn order(nodes: &mut [Node], tls: &Tls) -> Vec<usize> {
    let mut leader = 0;
    for (position, Node { process, client_address }) in nodes.iter_mut().enumerate() {
        process.wait_for("a leader of etcd", async || status(tls, client_address).await.is_some()).await;
        let (member, leads) = status(tls, client_address).await.expect("just seen");
        if member == leads {
            leader = position;
        }
    }
    let others = (0..nodes.len()).filter(|position| *position != leader);
    std::iter::once(leader).chain(others).collect()
}

/// Who a node is and whom it follows; `None` before it follows anybody.
async fn status(tls: &Tls, address: &str) -> Option<(u64, u64)> {
    let channel = channel(tls, address).await.ok()?;
    let status: StatusResponse = unary(&channel, STATUS, StatusRequest {}).await.ok()?;
    let member = status.header?.member_id;
    (status.leader != 0).then_some((member, status.leader))
}

pub struct EtcdClient {
    channel: Channel,
    puts: Arc<AtomicU64>,
}

impl Client for EtcdClient {
    async fn request(&mut self) -> Result<(), String> {
        let (key, value) = payload::key_and_value(self.puts.fetch_add(1, Ordering::Relaxed));
        let PutResponse {} = unary(&self.channel, PUT, PutRequest { key: key.into(), value }).await?;
        Ok(())
    }
}
