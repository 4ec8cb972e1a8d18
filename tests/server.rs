//! A node inside this process: whom its peer port answers, and what is left of it when it has stopped.

mod common;

use std::time::{Duration, Instant};

use common::*;
use futures_util::stream;
use hyper_util::rt::TokioIo;
use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::config::Config;
use strongroom::escrow::command::{Action, Command, Reveal};
use strongroom::escrow::ids::{KeyId, NodeId, RequestId, Role, Timestamp};
use strongroom::escrow::records::Source;
use strongroom::proto::peer::{
    DescribeRequest, Envelope, ForwardedChange, ProveCustodyRequest, ReadIndexRequest,
};
use strongroom::raft::peers::{PeerClient, Peers};
use strongroom::raft::types::Member;
use strongroom::server::{Server, ServerError, initialize};
use strongroom::store::format;
use strongroom::tls::ca::{Authority, IssueRequest};
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use uuid::Uuid;

/// The layout of one node, whose cluster was formed.
struct Fixture {
    cluster: LocalCluster,
    config: Config,
    authority: Authority,
    dir: tempfile::TempDir,
}

/// A node that serves in this process.
struct Running {
    stop: CancellationToken,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let plan = ClusterPlan { nodes: 1, members: 1, ..plan("") };
        let cluster = LocalCluster::open_or_create(dir.path(), &plan, program()).expect("a layout");
        let config = cluster.layout().node(1).expect("a node").config_path();
        let config = Config::load(&config).expect("a configuration");
        let (_, recipient) = strongroom::seal::offline_identity();
        initialize(&config, recipient).await.expect("a cluster");
        let authority = Authority::open(&cluster.layout().authority()).expect("the cluster's CA");
        Self { cluster, config, authority, dir }
    }

    async fn serve(&self) -> Running {
        let server = Server::start(&self.config).await.expect("starts");
        let stop = CancellationToken::new();
        let ended = tokio::spawn(server.run(stop.clone()));
        self.cluster
            .wait_for("a leader", SOON, &[1], |status| status.leader == Some(1))
            .await
            .expect("it leads");
        Running { stop, ended }
    }

    /// A caller of the peer port with a certificate of node `id`, from the cluster's own CA, that knows whom it calls.
    async fn peer(&self, id: NodeId) -> PeerClient {
        let (peers, peer_address) = self.peers(id);
        let mut stranger = peers.stranger(&peer_address, ExpectedPeer::Node(1));
        let described = stranger.describe(DescribeRequest {}).await.expect("it says who it is").into_inner();
        let storage = described.storage.parse().expect("a data directory");
        peers.member(1, &Member { peer_address, storage, ..Member::default() })
    }

    /// Clients with a certificate of node `id`, and where node 1 listens.
    fn peers(&self, id: NodeId) -> (Peers, String) {
        let issued = self.authority.issue(IssueRequest::new(Role::Node, id.to_string())).expect("issued");
        let profile = self.dir.path().join(format!("peer-{}", issued.record.serial));
        self.authority.write_profile(&profile, &issued).expect("written");
        let tls = Tls::load(TlsPaths::profile(&profile)).expect("loaded");
        let address = self.cluster.layout().node(1).expect("a node").peer_address();
        (Peers::new(tls, std::sync::Arc::default()), address)
    }

    /// A connection to the API as an auditor.
    async fn api(&self) -> Channel {
        let tls = Tls::load(TlsPaths::profile(&self.cluster.layout().profile("auditor"))).expect("loaded");
        let address = self.config.listen.api;
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = tls.connect(TcpStream::connect(address).await?, ExpectedPeer::Node(1)).await;
                stream.map(TokioIo::new).map_err(std::io::Error::other)
            }
        });
        Endpoint::from_static("http://node.test").connect_with_connector(connector).await.expect("connected")
    }
}

/// A command that changes nothing: the key it asks for does not exist.
fn command_from(node: NodeId) -> Envelope {
    let command = Command {
        request: RequestId(Uuid::new_v4()),
        at: Timestamp(1),
        by: "spiffe://test/helpdesk-advanced/desk".parse().expect("an identity"),
        source: Source { node, address: "192.0.2.1:1".to_owned() },
        action: Action::Reveal(Reveal {
            key_id: KeyId(Uuid::new_v4()),
            user: None,
            reason: "locked out".parse().expect("a reason"),
        }),
    };
    Envelope { body: format::encode(&command).into(), quorum_age_ms: None }
}

#[track_caller]
fn assert_denied<T>(answer: Result<T, Status>, why: &str) {
    let status = answer.err().expect("denied");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains(why), "{:?} does not say {why:?}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_no_member_is_told_so_and_a_member_speaks_only_for_itself() {
    let fixture = Fixture::new().await;
    let running = fixture.serve().await;

    let mut stranger = fixture.peer(9).await;
    let why = "node 9 is not a member";
    assert_denied(stranger.propose(command_from(9)).await, why);
    assert_denied(stranger.read_index(ReadIndexRequest {}).await, why);
    assert_denied(stranger.prove_custody(ProveCustodyRequest::default()).await, why);
    assert_denied(stranger.change_membership(ForwardedChange::default()).await, why);

    let mut member = fixture.peer(1).await;
    member.read_index(ReadIndexRequest {}).await.expect("a member is answered");
    member.propose(command_from(1)).await.expect("a member proposes for itself");
    assert_denied(member.propose(command_from(2)).await, "may not speak for node 2");
    let for_another = ForwardedChange { source_node: 2, ..ForwardedChange::default() };
    assert_denied(member.change_membership(for_another).await, "may not speak for node 2");
    let broken = Envelope { body: vec![0xff; 8].into(), quorum_age_ms: None };
    let status = member.propose(broken).await.expect_err("no command");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    running.stop.cancel();
    running.ended.await.expect("ran").expect("stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_names_no_data_directory_is_told_who_answers_and_nothing_else() {
    let fixture = Fixture::new().await;
    let running = fixture.serve().await;
    // A member's own certificate: what is missing is all that speaks against it.
    let (clients, address) = fixture.peers(1);
    let mut unaddressed = clients.stranger(&address, ExpectedPeer::Node(1));
    unaddressed.describe(DescribeRequest {}).await.expect("who is to be added knows nobody's data directory");
    for (call, answer) in peers::every_peer_call(&mut unaddressed).await {
        let status = answer.expect_err(call);
        assert_eq!(status.code(), Code::FailedPrecondition, "{call}: {status}");
        assert!(status.message().contains("which data directory"), "{call}: {status}");
    }
    let mut addressed = fixture.peer(1).await;
    addressed.read_index(ReadIndexRequest {}).await.expect("one that names it is answered");
    running.stop.cancel();
    running.ended.await.expect("ran").expect("stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_stopped_leaves_nothing_behind_and_starts_again_in_the_same_process() {
    let fixture = Fixture::new().await;
    for _ in 0..2 {
        let running = fixture.serve().await;
        // What keeps a stopping node busy: a leader's stream, which never ends, and callers that stay connected.
        let appends = tokio::spawn({
            let mut leader = fixture.peer(9).await;
            async move {
                let answers = leader.append(stream::pending()).await?;
                answers.into_inner().message().await
            }
        });
        let mut watching = HealthClient::new(fixture.api().await);
        let watched = watching.watch(tonic_health::pb::HealthCheckRequest::default()).await;
        let mut watched = watched.expect("watched").into_inner();
        let first = watched.message().await.expect("told").expect("told");
        assert_eq!(first.status(), ServingStatus::Serving);

        let began = Instant::now();
        running.stop.cancel();
        running.ended.await.expect("ran").expect("stopped");
        assert!(began.elapsed() < Duration::from_secs(5), "it waited for nobody: {:?}", began.elapsed());

        let last = watched.message().await.expect("told").expect("told");
        assert_eq!(last.status(), ServingStatus::NotServing);
        assert!(appends.await.expect("ran").is_err(), "the leader's stream is cut");
        for address in [fixture.config.listen.api, fixture.config.listen.peer, fixture.config.listen.admin] {
            assert!(TcpStream::connect(address).await.is_err(), "{address} is still open");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopping_says_so_while_requests_under_way_are_answered() {
    let fixture = Fixture::new().await;
    let running = fixture.serve().await;
    let admin = fixture.config.listen.admin.to_string();
    assert_eq!(page(&admin, "/readyz").await.0, 200);
    let mut member = fixture.peer(1).await;
    member.describe(DescribeRequest {}).await.expect("answered");
    // A request that is under way for as long as this test likes.
    let mut client = ServerReflectionClient::new(fixture.api().await);
    let (questions, asked) = tokio::sync::mpsc::channel(1);
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut answers = client.server_reflection_info(asked).await.expect("under way").into_inner();

    let began = Instant::now();
    running.stop.cancel();
    wait_for_page_at(&admin, "/readyz", |code, _| code == 503).await;
    member.read_index(ReadIndexRequest {}).await.expect("peers are served until the node has stopped");
    let status = member.transfer_leader(Envelope::default()).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");

    let question = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    questions.send(question).await.expect("sent");
    answers.message().await.expect("answered").expect("answered");
    drop(questions);
    running.ended.await.expect("ran").expect("stopped");
    assert!(began.elapsed() < Duration::from_secs(8), "it ends with the last request: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_stopped_all_at_once_do_not_wait_for_each_other() {
    let mut test = three_nodes().await;
    let began = Instant::now();
    assert!(test.cluster.stop_all().await.expect("stopped"), "all of them end by themselves, with success");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
