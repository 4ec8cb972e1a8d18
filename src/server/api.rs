//! What the API and peer ports serve.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::observe::{self, Side};
use super::shares::Shares;
use crate::escrow::ids::Role;
use crate::proto::DESCRIPTORS;
use crate::proto::audit_service_server::AuditServiceServer;
use crate::proto::cluster_service_server::ClusterServiceServer;
use crate::proto::compliance_service_server::ComplianceServiceServer;
use crate::proto::escrow_service_server::EscrowServiceServer;
use crate::proto::peer::peer_service_server::PeerServiceServer;
use crate::proto::policy_service_server::PolicyServiceServer;
use crate::proto::recovery_service_server::RecoveryServiceServer;
use crate::raft::peers::PEER_MESSAGE_MAX_BYTES;
use crate::rpc::audit::AuditDesk;
use crate::rpc::compliance::ComplianceDesk;
use crate::rpc::guard::Connection;
use crate::rpc::{API_MESSAGE_MAX_BYTES, Context};

/// Requests of one machine that are worked on at once: it has a few volumes. Without that, one stolen certificate
/// could keep everybody's requests out by leaving its own unfinished.
const IN_FLIGHT_PER_AGENT_MAX: usize = 16;
/// Services that do none of the node's work, and must answer most of all when it has too much of it.
const EXEMPT_PREFIX: &str = "/grpc.";
/// The services whose health is told; the empty name is the node as a whole.
const HEALTH_NAMES: [&str; 7] = [
    "",
    <AuditServiceServer<AuditDesk> as NamedService>::NAME,
    <ClusterServiceServer<Context> as NamedService>::NAME,
    <ComplianceServiceServer<ComplianceDesk> as NamedService>::NAME,
    <EscrowServiceServer<Context> as NamedService>::NAME,
    <PolicyServiceServer<Context> as NamedService>::NAME,
    <RecoveryServiceServer<Context> as NamedService>::NAME,
];

/// What gRPC health says.
pub(super) struct Health(HealthReporter);

impl Health {
    /// Tells callers and watchers that the node is stopping, or was removed.
    pub(super) async fn not_serving(&self) {
        self.tell(ServingStatus::NotServing).await;
    }

    /// Ends the streams of those who watch, which would otherwise be requests under way for ever.
    pub(super) async fn end(mut self) {
        for name in HEALTH_NAMES {
            self.0.clear_service_status(name).await;
        }
    }

    async fn tell(&self, status: ServingStatus) {
        for name in HEALTH_NAMES {
            self.0.set_service_status(name, status).await;
        }
    }
}

/// What clients may ask, at most `in_flight` requests at once, and what they are told of the node's health.
pub(super) async fn api(context: &Context, in_flight: usize) -> (Router, Health) {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    health.tell(ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by this build");
    let routes = Routes::new(
        EscrowServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES),
    )
    .add_service(RecoveryServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES))
    .add_service(PolicyServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES))
    .add_service(ClusterServiceServer::new(context.clone()).max_decoding_message_size(API_MESSAGE_MAX_BYTES))
    .add_service(
        AuditServiceServer::new(AuditDesk::new(context.clone()))
            .max_decoding_message_size(API_MESSAGE_MAX_BYTES),
    )
    .add_service(
        ComplianceServiceServer::new(ComplianceDesk::new(context.clone()))
            .max_decoding_message_size(API_MESSAGE_MAX_BYTES),
    )
    .add_service(health_service)
    .add_service(reflection);
    let router = bounded(routes.into_axum_router(), in_flight);
    (observe::requests(router, Side::Client, &context.node.options().metrics.requests), health)
}

/// What nodes may ask of each other.
pub(super) fn peer(context: &Context) -> Router {
    let service = PeerServiceServer::new(context.clone())
        .max_decoding_message_size(PEER_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(PEER_MESSAGE_MAX_BYTES);
    let router = Routes::new(service).into_axum_router();
    observe::requests(router, Side::Peer, &context.node.options().metrics.requests)
}

/// Room for requests.
#[derive(Clone)]
struct Room {
    limit: usize,
    places: Arc<Semaphore>,
    shares: Shares,
}

/// The same router, but past `in_flight` requests more are refused, not queued: their callers ask another node.
fn bounded(router: Router, in_flight: usize) -> Router {
    let places = Arc::new(Semaphore::new(in_flight));
    let room = Room { limit: in_flight, places, shares: Shares::default() };
    router.layer(from_fn_with_state(room, admit))
}

async fn admit(State(room): State<Room>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(EXEMPT_PREFIX) {
        return next.run(request).await;
    }
    let connection = request.extensions().get::<Connection>();
    let agent = connection.map(|c| &c.certificate.identity).filter(|by| by.role == Role::Agent);
    let share = agent.map(|agent| room.shares.take(agent, IN_FLIGHT_PER_AGENT_MAX));
    if matches!(share, Some(None)) {
        return refused(format!("this machine already has {IN_FLIGHT_PER_AGENT_MAX} requests under way"));
    }
    let Ok(_place) = room.places.try_acquire() else {
        return refused(format!("this node already works on {} requests; use another", room.limit));
    };
    next.run(request).await
}

/// `UNAVAILABLE`, as for everything that was not begun and may be asked again, here or elsewhere.
fn refused(why: String) -> Response {
    Status::unavailable(why).into_http()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use axum::routing::any;
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;

    fn request(path: &str) -> Request {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    fn code(response: &Response) -> Option<Code> {
        Status::from_header_map(response.headers()).map(|status| status.code())
    }

    #[tokio::test]
    async fn past_its_limit_a_node_refuses_requests_and_still_tells_its_health() {
        let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let work = {
            let (gate, entered) = (gate.clone(), entered.clone());
            any(async move || {
                entered.add_permits(1);
                gate.acquire().await.unwrap().forget();
                "done"
            })
        };
        let router = Router::new()
            .route("/strongroom.v1.EscrowService/Escrow", work)
            .route("/grpc.health.v1.Health/Check", any(async || "healthy"));
        let router = bounded(router, 2);
        let escrow = || router.clone().oneshot(request("/strongroom.v1.EscrowService/Escrow"));
        let under_way = [tokio::spawn(escrow()), tokio::spawn(escrow())];
        entered.acquire_many(2).await.unwrap().forget();

        let third = tokio::time::timeout(Duration::from_secs(20), escrow()).await;
        let third = third.expect("refused at once, not queued").unwrap();
        assert_eq!(code(&third), Some(Code::Unavailable));
        let message = Status::from_header_map(third.headers()).unwrap().message().to_owned();
        assert!(message.contains("2 requests"), "{message}");
        let health = router.clone().oneshot(request("/grpc.health.v1.Health/Check")).await.unwrap();
        assert_eq!(code(&health), None, "health is exempt");

        gate.add_permits(3);
        for done in under_way {
            assert_eq!(code(&done.await.unwrap().unwrap()), None);
        }
        assert_eq!(code(&escrow().await.unwrap()), None, "there is room again");
    }
}
