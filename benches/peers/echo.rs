//! The floor of whatever speaks gRPC over mutual TLS: a server in this process that answers what it was sent, with our TLS
//! and the HTTP/2 of our nodes, and nothing behind it.

use std::convert::Infallible;
use std::future::ready;
use std::task::{Context, Poll};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use strongroom::tls::Tls;
use strongroom::tls::ca::FileNames;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::load::Client;
use crate::payload;
use crate::trust::{Trust, channel};

const SERVICE: &str = "bench.Echo";
const METHOD: &str = "/bench.Echo/Echo";

/// A running server; it ends when dropped.
pub struct Echo {
    address: String,
    tls: Tls,
    _serving: JoinSet<()>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Bytes {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

impl Echo {
    pub async fn start(trust: &Trust) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, trust.tls(FileNames::NODE)));
        Self { address, tls: trust.tls(FileNames::CLIENT), _serving: serving }
    }

    pub async fn clients(&self, count: usize) -> Vec<EchoClient> {
        let mut clients = Vec::new();
        for _ in 0..count {
            let channel = channel(&self.tls, &self.address).await.expect("connected");
            clients.push(EchoClient { channel, bytes: vec![7; payload::bytes()] });
        }
        clients
    }
}

async fn serve(listener: TcpListener, tls: Tls) {
    let router = Routes::new(EchoService).into_axum_router();
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, service) = (tls.clone(), TowerToHyperService::new(router.clone()));
        connections.spawn(async move {
            let _ = tcp.set_nodelay(true);
            let Ok((stream, _)) = tls.accept(tcp).await else { return };
            let http = auto::Builder::new(TokioExecutor::new());
            // A client that hangs up ends it.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[derive(Clone)]
struct EchoService;

impl NamedService for EchoService {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let echo = tower::service_fn(|request: Request<Bytes>| {
                ready(Ok::<_, Status>(Response::new(request.into_inner())))
            });
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Bytes, Bytes>::default());
            Ok(grpc.unary(echo, request).await)
        })
    }
}

pub struct EchoClient {
    channel: Channel,
    bytes: Vec<u8>,
}

impl Client for EchoClient {
    async fn request(&mut self) -> Result<(), String> {
        let request = Bytes { bytes: self.bytes.clone() };
        let answer: Bytes = unary(&self.channel, METHOD, request).await?;
        if answer.bytes == self.bytes { Ok(()) } else { Err("another answer than was sent".to_owned()) }
    }
}

/// Calls a method that no generated code knows.
pub async fn unary<Asked, Answered>(
    channel: &Channel,
    method: &'static str,
    request: Asked,
) -> Result<Answered, String>
where
    Asked: prost::Message + 'static,
    Answered: prost::Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| error.to_string())?;
    let (path, codec) = (PathAndQuery::from_static(method), ProstCodec::<Asked, Answered>::default());
    let answer = grpc.unary(Request::new(request), path, codec).await;
    answer.map(Response::into_inner).map_err(|status| status.to_string())
}
