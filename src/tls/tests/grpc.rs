//! The refusal of a certificate as a gRPC client meets it: behind hyper, HTTP/2 and tonic.

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::ca::Selector;
use super::*;

/// A channel to a node that is being served on `address`.
async fn channel(tls: Tls, address: std::net::SocketAddr) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let stream = tls.connect(tcp, ExpectedPeer::AnyNode).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://node").connect_with_connector(connector).await
}

#[tokio::test]
async fn a_grpc_client_learns_that_its_certificate_is_revoked() {
    let ca = TestCa::new("acme");
    let (client, issued) = ca.profile(IssueRequest::new(Role::Helpdesk, "jo"));
    ca.authority.revoke(&Selector::Serial(issued.record.serial)).unwrap();
    let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    paths.crl = RevocationFile::Required(ca.authority.revocation_list_path());
    let node = Tls::load(paths).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            node.accept(tcp).await.expect_err("a revoked client");
        }
    });

    let asked = async {
        let channel = channel(Tls::load(client).unwrap(), address).await?;
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        answer.map_err(Box::<dyn std::error::Error>::from)
    };
    let error = tokio::time::timeout(PATIENCE, asked).await.expect("in time").expect_err("a refusal");
    let told = TlsError::refusal_by_peer(error.as_ref());
    serving.abort();
    assert_eq!(told.as_deref(), Some("the server refused our certificate: it is revoked"), "{error:?}");
}
