//! How a node stops: what it waits for, for how long, and what the service manager is told meanwhile.

mod common;

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::*;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::config::Config;
use strongroom::escrow::ids::NodeId;
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

const POLL: Duration = Duration::from_millis(20);

/// A request that is under way for as long as this lives.
type OpenRequest = tokio::sync::mpsc::Sender<ServerReflectionRequest>;

async fn open_request(cluster: &LocalCluster, node: NodeId) -> OpenRequest {
    let layout = cluster.layout();
    let tls = Tls::load(TlsPaths::profile(&layout.profile("auditor"))).expect("loaded");
    let address = layout.node(node).expect("a node").api_address();
    let connector = tower::service_fn(move |_| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let stream = tls.connect(TcpStream::connect(address).await?, ExpectedPeer::Node(node)).await;
            stream.map(TokioIo::new).map_err(std::io::Error::other)
        }
    });
    let channel =
        Endpoint::from_static("http://node.test").connect_with_connector(connector).await.expect("connected");
    let (questions, asked) = tokio::sync::mpsc::channel(1);
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let answers =
        ServerReflectionClient::new(channel).server_reflection_info(asked).await.expect("under way");
    tokio::spawn(async move {
        // Held until the node ends it.
        let _ = answers.into_inner().message().await;
    });
    questions
}

/// Waits until the node says that it is stopping.
async fn wait_stopping(admin: &str) {
    wait_for_page_at(admin, "/readyz", |_, reasons| reasons.contains("stopping")).await;
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero");
    kill_process(pid, signal).expect("the node can be signalled");
}

/// The only node of a cluster, run by itself. Killed when dropped.
struct Alone {
    cluster: LocalCluster,
    config: Config,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Alone {
    async fn start(extra_config: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let plan = ClusterPlan { nodes: 1, members: 1, ..plan(extra_config) };
        let cluster = LocalCluster::open_or_create(dir.path(), &plan, program()).expect("a layout");
        let path = cluster.layout().node(1).expect("a node").config_path();
        let config = Config::load(&path).expect("a configuration");
        let (_, recipient) = strongroom::seal::offline_identity();
        strongroom::server::initialize(&config, recipient).await.expect("a cluster");
        let mut command = Command::new(program());
        command.arg("server").arg("--config").arg(path).envs(environment.iter().copied());
        let process = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        Self { cluster, config, process, _dir: dir }
    }

    async fn leads(&self) {
        let leads = self.cluster.wait_for("a leader", SOON, &[1], |status| status.leader == Some(1));
        leads.await.expect("it leads");
    }

    fn signal(&self, which: Signal) {
        signal(self.process.id(), which);
    }

    async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // What has ended by itself cannot be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_holds_a_stopping_node_up_no_longer_than_was_configured() {
    let mut node = Alone::start("[limits]\ndrain_timeout_ms = 700\n", &[]).await;
    node.leads().await;
    let request = open_request(&node.cluster, 1).await;
    let began = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(700), "it waited: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "and no longer: {:?}", began.elapsed());
    drop(request);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_stopping_node_at_once_and_in_order() {
    for second in [Signal::TERM, Signal::INT] {
        let mut node = Alone::start("[limits]\ndrain_timeout_ms = 300000\n", &[]).await;
        node.leads().await;
        let request = open_request(&node.cluster, 1).await;
        node.signal(Signal::TERM);
        wait_stopping(&node.config.listen.admin.to_string()).await;
        assert!(node.process.try_wait().expect("a child").is_none(), "it waits for the request");
        node.signal(second);
        assert_eq!(node.ended().await.code(), Some(0), "the storage was closed as always");
        drop(request);
    }
}

/// What systemd expects of `Type=notify`, sd_notify(3).
#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_when_the_node_serves_that_it_lives_and_that_it_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("set");
    let next = || {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).expect("a message in time");
        String::from_utf8(message[..length].to_vec()).expect("text")
    };
    let path = path.to_str().expect("UTF-8");
    let environment = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "200000")];
    let mut node = Alone::start("[limits]\ndrain_timeout_ms = 5000\n", &environment).await;

    let told = |wanted: &str| {
        let deadline = Instant::now() + SOON;
        loop {
            let message = next();
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
            assert!(Instant::now() < deadline, "{wanted} is not said");
        }
    };
    told("READY=1");
    for address in [node.config.listen.api, node.config.listen.peer, node.config.listen.admin] {
        assert!(std::net::TcpStream::connect(address).is_ok(), "{address} is open before it says so");
    }
    for _ in 0..3 {
        told("WATCHDOG=1");
    }
    node.signal(Signal::TERM);
    let stopping = told("STOPPING=1");
    let extended = stopping.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
    let extended: u64 = extended.expect("said").parse().expect("a number");
    assert!(extended > 5_000_000, "more than the drain may take: {extended}");
    assert_eq!(node.ended().await.code(), Some(0));
}

/// A successor that is stopping itself would refuse: the other is asked, and nothing waits for an election.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_to_the_one_that_is_not_stopping() {
    let mut test = three_nodes_with("[limits]\ndrain_timeout_ms = 300000\n").await;
    let leader = test.leader().await;
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != leader).collect();
    // Of two that have the same log, the first would be asked first.
    let (stopping, takes) = (others[0], others[1]);
    let request = open_request(&test.cluster, stopping).await;
    signal(test.cluster.pid(stopping).expect("it runs"), Signal::TERM);
    wait_stopping(&test.admin(stopping)).await;

    assert!(test.cluster.stop(leader).await.expect("stopped"), "it ends by itself, with success");
    let lines = test.log_lines(leader);
    let asked = lines.iter().filter(|line| line["message"] == "handing the leadership over");
    let asked: Vec<_> = asked.map(|line| line["successor"].clone()).collect();
    assert_eq!(asked, [takes], "one was asked, and took it");
    let log = test.log(leader);
    assert!(!log.contains("the leadership over in time"), "nobody had to elect: {log}");
    let led = test.cluster.wait_for("the other", SOON, &[takes], |status| status.leader == Some(takes)).await;
    led.expect("the one that is not stopping leads");
    test.client("importer", &[takes])
        .escrow(&deposit(1))
        .await
        .expect("a stopping follower still acknowledges");
    drop(request);
}
