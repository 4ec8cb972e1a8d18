//! The client against nodes of our own making: real connections and certificates, answers by script.

use std::net::SocketAddr;
use std::sync::Mutex;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Response, Status};
use uuid::Uuid;

use super::*;
use crate::escrow::ids::Role;
use crate::proto::cluster_service_server::{ClusterService, ClusterServiceServer};
use crate::proto::escrow_service_server::{EscrowService, EscrowServiceServer};
use crate::tls::TlsPaths;
use crate::tls::ca::{Authority, FileNames, IssueRequest, Selector};

const CLUSTER: &str = "test";

pub(super) struct Ca {
    dir: TempDir,
    authority: Authority,
}

impl Ca {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), CLUSTER.parse().unwrap(), None).unwrap();
        Self { dir, authority }
    }

    fn paths(&self, role: Role, name: &str) -> TlsPaths {
        let issued = self.authority.issue(IssueRequest::new(role, name)).unwrap();
        let dir = self.dir.path().join(&issued.record.serial);
        let names = FileNames::CLIENT;
        self.authority.write_new(&dir, &issued, names).unwrap();
        TlsPaths::profile(&dir)
    }

    pub(super) fn tls(&self, role: Role, name: &str) -> Tls {
        Tls::load(self.paths(role, name)).unwrap()
    }

    fn client(&self, endpoints: &[&Node], options: ClientOptions) -> Client {
        let endpoints = endpoints.iter().map(|node| node.address.to_string().parse().unwrap()).collect();
        Client::new(endpoints, self.tls(Role::Importer, "import"), options).unwrap()
    }
}

/// What a node says of the members of its cluster.
type Members = Arc<Mutex<Vec<proto::NodeStatus>>>;

/// What a node answers to escrows: the script's next answer, and success when it has run out.
#[derive(Clone)]
struct Script {
    members: Members,
    answers: Arc<Mutex<Vec<Status>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl EscrowService for Script {
    async fn escrow(
        &self,
        request: Request<proto::EscrowRequest>,
    ) -> Result<Response<proto::EscrowResponse>, Status> {
        let request = request.into_inner();
        self.seen.lock().unwrap().push(request.request_id);
        let mut answers = self.answers.lock().unwrap();
        if !answers.is_empty() {
            return Err(answers.remove(0));
        }
        let receipt = proto::Receipt {
            cluster: Uuid::new_v4().to_string(),
            cluster_name: CLUSTER.into(),
            machine: request.machine,
            volume: request.volume,
            key_id: Uuid::new_v4().to_string(),
            fingerprint: "00".repeat(32),
            node: format!("spiffe://{CLUSTER}/node/1"),
            ..proto::Receipt::default()
        };
        Ok(Response::new(proto::EscrowResponse { receipt: Some(receipt) }))
    }

    async fn rotation(
        &self,
        _: tonic::Request<proto::RotationRequest>,
    ) -> Result<tonic::Response<proto::RotationResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn confirm_key(
        &self,
        _: tonic::Request<proto::ConfirmKeyRequest>,
    ) -> Result<tonic::Response<proto::ConfirmKeyResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    type EscrowManyStream = futures_util::stream::Empty<Result<proto::EscrowManyResponse, Status>>;

    async fn escrow_many(
        &self,
        _: Request<Streaming<proto::EscrowManyRequest>>,
    ) -> Result<Response<Self::EscrowManyStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn import_machines(
        &self,
        _: Request<proto::ImportMachinesRequest>,
    ) -> Result<Response<proto::ImportMachinesResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

#[tonic::async_trait]
impl ClusterService for Script {
    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let nodes = self.members.lock().unwrap().clone();
        // Without members it belongs to no cluster.
        let cluster = if nodes.is_empty() { String::new() } else { CLUSTER.to_owned() };
        let status = proto::StatusResponse { cluster, answered_by: 1, nodes, ..Default::default() };
        Ok(Response::new(status))
    }

    async fn rotate_keyring(
        &self,
        _: Request<proto::RotateKeyringRequest>,
    ) -> Result<Response<proto::RotateKeyringResponse>, Status> {
        Ok(Response::new(proto::RotateKeyringResponse { key_version: 2 }))
    }

    type ChangeMembershipStream = futures_util::stream::Pending<Result<proto::MemberProgress, Status>>;

    async fn change_membership(
        &self,
        _: Request<proto::MembershipChange>,
    ) -> Result<Response<Self::ChangeMembershipStream>, Status> {
        Ok(Response::new(futures_util::stream::pending()))
    }
}

/// A node that serves its script until it is dropped.
struct Node {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    members: Members,
    stop: CancellationToken,
    _serving: DropGuard,
}

impl Node {
    async fn start(tls: Tls, answers: Vec<Status>) -> Self {
        Self::start_at(tls, answers, "127.0.0.1:0").await
    }

    async fn start_at(tls: Tls, answers: Vec<Status>, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::default();
        let members = Members::default();
        let script = Script {
            members: Arc::clone(&members),
            answers: Arc::new(Mutex::new(answers)),
            seen: Arc::clone(&seen),
        };
        let stop = CancellationToken::new();
        let serving = stop.clone().drop_guard();
        let stopping = stop.clone();
        tokio::spawn(async move { stopping.run_until_cancelled(serve(listener, tls, script)).await });
        Self { address, seen, members, stop, _serving: serving }
    }

    /// Answers nothing: accepts connections and leaves them.
    async fn silent() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = stop.clone().drop_guard();
        let stopping = stop.clone();
        tokio::spawn(async move {
            let hold = async {
                let mut held = Vec::new();
                while let Ok(accepted) = listener.accept().await {
                    held.push(accepted);
                }
            };
            stopping.run_until_cancelled(hold).await
        });
        Self { address, seen: Arc::default(), members: Arc::default(), stop, _serving: serving }
    }

    /// A port nobody listens on.
    async fn gone() -> Self {
        let node = Self::silent().await;
        node.stop().await;
        node
    }

    /// Stops, and waits until nobody listens any more.
    async fn stop(&self) {
        self.stop.cancel();
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, tls: Tls, script: Script) {
    let routes = tonic::service::Routes::new(EscrowServiceServer::new(script.clone()))
        .add_service(ClusterServiceServer::new(script));
    serve_routes(listener, tls, routes).await;
}

pub(super) async fn serve_routes(listener: TcpListener, tls: Tls, routes: tonic::service::Routes) {
    let router = routes.into_axum_router();
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, service) = (tls.clone(), TowerToHyperService::new(router.clone()));
        connections.spawn(async move {
            let Ok((stream, _)) = tls.accept(tcp).await else { return };
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn in_order(timeout: Duration) -> ClientOptions {
    ClientOptions { zone: None, timeout, preference: Preference::AsGiven }
}

fn deposit() -> Deposit {
    Deposit {
        machine: "PC-0001".parse().unwrap(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::Generic,
        key_id: None,
        secret: Secret::from("not shown".to_owned()),
        package: None,
        user: None,
        pending: false,
    }
}

#[tokio::test]
async fn a_call_falls_over_to_the_next_endpoint_with_the_same_request_id() {
    let ca = Ca::new();
    let gone = Node::gone().await;
    let busy = Node::start(ca.tls(Role::Node, "1"), vec![Status::unavailable("no quorum")]).await;
    let good = Node::start(ca.tls(Role::Node, "2"), vec![]).await;
    let client = ca.client(&[&gone, &busy, &good], in_order(CALL_TIMEOUT));
    let receipt = client.escrow(&deposit()).await.unwrap();
    assert_eq!(receipt.machine.as_str(), "PC-0001");
    assert_eq!(busy.seen(), good.seen());

    // What failed ranks last now: the next call goes straight to the good one.
    client.escrow(&deposit()).await.unwrap();
    assert_eq!((busy.seen().len(), good.seen().len()), (1, 2));
    assert_ne!(good.seen()[0], good.seen()[1], "another call is another request");
}

#[tokio::test]
async fn a_temporary_answer_is_asked_again_until_it_is_another() {
    let ca = Ca::new();
    let answers = vec![Status::unavailable("electing"), Status::deadline_exceeded("electing")];
    let node = Node::start(ca.tls(Role::Node, "1"), answers).await;
    ca.client(&[&node], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap();
    let seen = node.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|id| id == &seen[0]), "one call has one request id");
}

#[tokio::test]
async fn a_definite_answer_is_never_asked_for_twice() {
    let ca = Ca::new();
    let other = Node::start(ca.tls(Role::Node, "2"), vec![]).await;
    for answer in [
        Status::invalid_argument("x"),
        Status::not_found("x"),
        Status::permission_denied("x"),
        Status::already_exists("x"),
        Status::failed_precondition("x"),
    ] {
        let node = Node::start(ca.tls(Role::Node, "1"), vec![answer.clone()]).await;
        let error = ca.client(&[&node, &other], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap_err();
        assert_eq!(error.to_string(), "x", "{answer}");
        assert_eq!((node.seen().len(), other.seen().len()), (1, 0), "{answer}");
    }
}

#[tokio::test]
async fn a_node_that_fails_is_passed_over_and_believed_only_if_all_do() {
    let ca = Ca::new();
    let failing = async |id| Node::start(ca.tls(Role::Node, id), vec![Status::internal("damaged"); 9]).await;
    let (damaged, other) = (failing("1").await, failing("2").await);
    let good = Node::start(ca.tls(Role::Node, "3"), vec![]).await;
    ca.client(&[&damaged, &good], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap();
    assert_eq!(damaged.seen(), good.seen(), "the same request");

    let error = ca.client(&[&damaged, &other], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap_err();
    assert!(matches!(error, ClientError::Failed(_)), "{error}");
    assert_eq!((damaged.seen().len(), other.seen().len()), (2, 1), "waiting does not help");

    let gone = Node::gone().await;
    let client = ca.client(&[&damaged, &gone], in_order(Duration::from_secs(1)));
    let error = client.escrow(&deposit()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { .. }), "the other may have it: {error}");
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test]
async fn a_no_without_a_quorum_is_taken_only_if_nobody_has_another_answer() {
    let ca = Ca::new();
    let mut degraded = Status::not_found("x");
    degraded.metadata_mut().insert(crate::rpc::status::DEGRADED_KEY, "true".parse().unwrap());
    let alone = Node::start(ca.tls(Role::Node, "1"), vec![degraded.clone(), degraded]).await;
    let good = Node::start(ca.tls(Role::Node, "2"), vec![]).await;
    ca.client(&[&alone, &good], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap();
    assert_eq!(alone.seen(), good.seen(), "the same request");

    let gone = Node::gone().await;
    let client = ca.client(&[&alone, &gone], in_order(CALL_TIMEOUT));
    let error = client.escrow(&deposit()).await.unwrap_err();
    assert!(matches!(error, ClientError::NotFound(_)), "{error}");
    assert_eq!(alone.seen().len(), 2, "waiting does not help");
}

#[tokio::test]
async fn without_an_answer_a_call_ends_within_its_time() {
    let ca = Ca::new();
    let (gone, silent) = (Node::gone().await, Node::silent().await);
    let timeout = Duration::from_secs(1);
    let started = Instant::now();
    let options = ClientOptions { timeout, ..ClientOptions::default() };
    let error = ca.client(&[&gone, &silent], options).escrow(&deposit()).await.unwrap_err();
    let took = started.elapsed();
    assert!(took < timeout + Duration::from_secs(1), "{took:?}");
    let ClientError::Unavailable { troubles, .. } = &error else { panic!("{error}") };
    assert_eq!(troubles.len(), 2, "{error}");
}

#[tokio::test]
async fn a_node_that_hangs_costs_a_call_one_attempt() {
    let ca = Ca::new();
    let silent = Node::silent().await;
    let good = Node::start(ca.tls(Role::Node, "1"), vec![]).await;
    ca.client(&[&silent, &good], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap();
    assert_eq!(good.seen().len(), 1);
}

#[tokio::test]
async fn a_node_outside_the_cluster_speaks_for_it_only_if_no_other_does() {
    let ca = Ca::new();
    let outsider = Node::start(ca.tls(Role::Node, "1"), vec![]).await;
    let member = Node::start(ca.tls(Role::Node, "2"), vec![]).await;
    member.members.lock().unwrap().push(proto::NodeStatus::default());
    let status = ca.client(&[&outsider, &member], in_order(CALL_TIMEOUT)).status().await.unwrap();
    assert_eq!(status.cluster, CLUSTER);

    let gone = Node::gone().await;
    let status = ca.client(&[&gone, &outsider], in_order(Duration::from_secs(1))).status().await.unwrap();
    assert!(status.cluster.is_empty() && status.answered_by == 1);
}

#[tokio::test]
async fn a_client_asks_the_node_of_its_own_zone() {
    let ca = Ca::new();
    let nodes = [
        Node::start(ca.tls(Role::Node, "1"), vec![]).await,
        Node::start(ca.tls(Role::Node, "2"), vec![]).await,
    ];
    let zones = ["east", "west"];
    let member = |(node, zone): (&Node, &str)| proto::NodeStatus {
        api_address: node.address.to_string(),
        zone: zone.into(),
        ..Default::default()
    };
    let members: Vec<_> = nodes.iter().zip(zones).map(member).collect();
    nodes.iter().for_each(|node| *node.members.lock().unwrap() = members.clone());
    for (own, zone) in nodes.iter().zip(zones) {
        let before = own.seen().len();
        let options = ClientOptions { zone: Some(zone.into()), ..ClientOptions::default() };
        let client = ca.client(&[&nodes[0], &nodes[1]], options);
        for _ in 0..3 {
            client.escrow(&deposit()).await.unwrap();
        }
        assert_eq!(own.seen().len(), before + 3, "{zone}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_made_anew() {
    let ca = Ca::new();
    let first = Node::start(ca.tls(Role::Node, "1"), vec![]).await;
    let client = ca.client(&[&first], in_order(CALL_TIMEOUT));
    client.escrow(&deposit()).await.unwrap();
    first.stop().await;
    let again = Node::start_at(ca.tls(Role::Node, "1"), vec![], &first.address.to_string()).await;
    client.escrow(&deposit()).await.unwrap();
    assert_eq!(again.seen().len(), 1);
}

#[tokio::test]
async fn a_refused_certificate_is_told_apart_from_a_node_that_is_away() {
    let ca = Ca::new();
    let paths = ca.paths(Role::Importer, "leaver");
    let revoked = "spiffe://test/importer/leaver".parse().unwrap();
    ca.authority.revoke(&Selector::Identity(revoked)).unwrap();
    let crl = crate::tls::RevocationFile::Required(ca.authority.revocation_list_path());
    let node = TlsPaths { crl, ..ca.paths(Role::Node, "1") };
    let node = Node::start(Tls::load(node).unwrap(), vec![]).await;
    let endpoints = vec![node.address.to_string().parse().unwrap()];
    let client = Client::new(endpoints, Tls::load(paths).unwrap(), in_order(CALL_TIMEOUT)).unwrap();
    let started = Instant::now();
    let error = client.escrow(&deposit()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("revoked"), "{error}");
    assert!(started.elapsed() < CALL_TIMEOUT / 2, "a refusal is not waited out");
}

#[tokio::test]
async fn a_membership_change_whose_node_goes_away_is_to_be_asked_for_again() {
    let ca = Ca::new();
    let node = Node::start(ca.tls(Role::Node, "1"), vec![]).await;
    let client = ca.client(&[&node], in_order(CALL_TIMEOUT));
    let mut change = client.change_membership(&proto::MembershipChange::default()).await.unwrap();
    drop(node);
    let error = change.next().await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { reached: true, .. }), "{error:?}");
    assert!(error.to_string().contains("the connection broke"), "{error}");
    assert!(error.request_id().is_some(), "the logs of other nodes may hold it");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_and_gets_no_secret() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let node = Node::start(stranger.tls(Role::Node, "1"), vec![]).await;
    let error = ca.client(&[&node], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("we refused the server"), "{error}");
    assert_eq!(node.seen().len(), 0);
}

#[tokio::test]
async fn a_refusal_at_one_node_does_not_keep_another_from_answering() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let wrong = Node::start(stranger.tls(Role::Node, "1"), vec![]).await;
    let good = Node::start(ca.tls(Role::Node, "1"), vec![]).await;
    ca.client(&[&wrong, &good], in_order(CALL_TIMEOUT)).escrow(&deposit()).await.unwrap();
}

#[tokio::test]
async fn a_client_is_given_one_to_sixteen_endpoints() {
    let ca = Ca::new();
    for count in [0, ENDPOINTS_MAX + 1] {
        let endpoints = vec!["localhost:1".parse().unwrap(); count];
        let client = Client::new(endpoints, ca.tls(Role::Importer, "import"), ClientOptions::default());
        assert!(matches!(client.err(), Some(ClientError::Endpoints { given }) if given == count));
    }
}
