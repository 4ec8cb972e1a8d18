use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::*;

const DAY: u64 = 24 * 3600;

fn between(role: Role, name: &str, not_before: u64, not_after: u64) -> IssueRequest {
    let validity = Some(Validity::Between { not_before, not_after });
    IssueRequest { validity, ..IssueRequest::new(role, name) }
}

/// Credentials that [`Tls::load`] would refuse, for the other side to refuse.
fn misuse(ca: &TestCa, request: IssueRequest) -> Tls {
    let good = ca.tls(request.role, &request.name);
    impersonate(good, &ca.authority.issue(request).unwrap())
}

/// Puts another certificate into credentials that are good, past all checks.
fn impersonate(tls: Tls, issued: &Issued) -> Tls {
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.expose()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap()];
    let certified = Arc::new(CertifiedKey::from_der(chain, key, verifier::provider()).unwrap());
    let current = tls.shared.current.load_full();
    tls.shared.current.store(Arc::new(Credentials {
        server: Arc::new(verifier::server_config(&certified, current.clients.clone()).unwrap()),
        node_server: current.node_server.clone(),
        nodes: current.nodes.clone(),
        serial: current.serial.clone(),
        certified,
        identity: current.identity.clone(),
        trust: current.trust.clone(),
        clients: current.clients.clone(),
        own_fault: None,
        ..*current
    }));
    tls
}

#[tokio::test]
async fn both_ends_of_a_connection_know_who_the_other_is() {
    let ca = TestCa::new("acme");
    let (node, agent) = (ca.tls(Role::Node, "2"), ca.tls(Role::Agent, "PC-0001"));
    for expected in [ExpectedPeer::AnyNode, ExpectedPeer::Node(2)] {
        let outcome = connect(&node, &agent, expected).await;
        let peer = outcome.server.unwrap();
        assert_eq!(peer.identity, agent.identity());
        assert_eq!(peer.not_after, agent.expires_at());
        let stream = outcome.client.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let server = agent.server_certificate(&stream, expected).unwrap();
        assert_eq!(server.identity, node.identity());
        node.check(&peer).unwrap();
        agent.check(&server).unwrap();
    }
}

#[tokio::test]
async fn an_expired_client_is_refused_and_told_so() {
    let ca = TestCa::new("acme");
    let ended = unix_now() - 3_600;
    let client = misuse(&ca, between(Role::Agent, "PC-0001", ended - DAY, ended));
    let outcome = connect(&ca.tls(Role::Node, "1"), &client, ExpectedPeer::AnyNode).await;
    assert!(outcome.told().contains("expired"), "{}", outcome.told());
    assert_eq!(outcome.server_fault(), CertificateFault::Expired { since: ended });
}

#[tokio::test]
async fn a_client_that_is_not_yet_valid_is_refused_and_told_so() {
    let ca = TestCa::new("acme");
    let begins = unix_now() + 3_600;
    let client = misuse(&ca, between(Role::Agent, "PC-0001", begins, begins + DAY));
    let outcome = connect(&ca.tls(Role::Node, "1"), &client, ExpectedPeer::AnyNode).await;
    assert!(outcome.told().contains("not yet valid"), "{}", outcome.told());
    assert_eq!(outcome.server_fault(), CertificateFault::NotYetValid { until: begins });
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_told_so() {
    let ca = TestCa::new("acme");
    let (client, issued) = ca.profile(IssueRequest::new(Role::Helpdesk, "jo"));
    let client = Tls::load(client).unwrap();
    ca.authority.revoke(&ca::Selector::Serial(issued.record.serial)).unwrap();
    let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    paths.crl = RevocationFile::Required(ca.authority.revocation_list_path());
    let outcome = connect(&Tls::load(paths).unwrap(), &client, ExpectedPeer::AnyNode).await;
    assert_eq!(outcome.told(), "the server refused our certificate: it is revoked");
    assert_eq!(outcome.server_fault(), CertificateFault::Revoked);
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_and_told_so() {
    let (ours, theirs) = (TestCa::new("acme"), TestCa::new("acme"));
    let (mut paths, _) = theirs.profile(IssueRequest::new(Role::Operator, "stranger"));
    // It trusts our nodes; they do not trust it.
    paths.ca = ours.place("both.crt");
    write(&paths.ca, &[ours.ca_pem(), theirs.ca_pem()].concat());
    let outcome =
        connect(&ours.tls(Role::Node, "1"), &Tls::load(paths).unwrap(), ExpectedPeer::AnyNode).await;
    assert!(outcome.told().contains("not issued by a CA that is trusted"), "{}", outcome.told());
    assert_eq!(outcome.server_fault(), CertificateFault::UnknownAuthority);
}

/// Somebody's CA for two clusters: nodes of `acme` trust the CA of `other` as well.
fn two_clusters() -> (TestCa, TestCa, Vec<u8>) {
    let (acme, other) = (TestCa::new("acme"), TestCa::new("other"));
    let bundle = [acme.ca_pem(), other.ca_pem()].concat();
    (acme, other, bundle)
}

fn with_bundle(ca: &TestCa, request: IssueRequest, bundle: &[u8]) -> Tls {
    let (paths, _) = ca.profile(request);
    write(&paths.ca, bundle);
    Tls::load(paths).unwrap()
}

#[tokio::test]
async fn a_client_of_another_cluster_is_refused_though_its_ca_is_trusted() {
    let (acme, other, bundle) = two_clusters();
    let node = with_bundle(&acme, IssueRequest::new(Role::Node, "1"), &bundle);
    // A client that takes our nodes for its own.
    let client = acme.tls(Role::Agent, "PC-0001");
    let stranger = other.authority.issue(IssueRequest::new(Role::Agent, "PC-0001")).unwrap();
    let client = impersonate(client, &stranger);
    let outcome = connect(&node, &client, ExpectedPeer::AnyNode).await;
    assert!(outcome.told().contains("another cluster"), "{}", outcome.told());
    let fault = outcome.server_fault();
    assert_eq!(
        fault.to_string(),
        "is for spiffe://other/agent/PC-0001, but this is cluster acme",
        "{fault:?}"
    );
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_the_client() {
    let (acme, other, bundle) = two_clusters();
    let client = with_bundle(&acme, IssueRequest::new(Role::Agent, "PC-0001"), &bundle);
    let node = with_bundle(&other, IssueRequest::new(Role::Node, "1"), &bundle);
    let outcome = connect(&node, &client, ExpectedPeer::AnyNode).await;
    let error = outcome.client.unwrap_err();
    assert!(matches!(error, TlsError::Peer(CertificateFault::OtherCluster { .. })), "{error:?}");
    assert!(matches!(outcome.server, Err(TlsError::RefusedByPeer(_))), "{:?}", outcome.server);
}

#[tokio::test]
async fn another_node_than_the_one_meant_is_refused() {
    let ca = TestCa::new("acme");
    let (node, peer) = (ca.tls(Role::Node, "3"), ca.tls(Role::Node, "1"));
    let outcome = connect(&node, &peer, ExpectedPeer::Node(2)).await;
    let error = outcome.client.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the other side's certificate is for spiffe://acme/node/3, but node 2 was meant"
    );
}

#[tokio::test]
async fn a_client_certificate_does_not_make_a_server() {
    let ca = TestCa::new("acme");
    let (fake, client) = (ca.tls(Role::Agent, "1"), ca.tls(Role::Agent, "PC-0001"));
    let outcome = connect(&fake, &client, ExpectedPeer::AnyNode).await;
    let error = outcome.client.unwrap_err();
    assert!(matches!(error, TlsError::Peer(CertificateFault::WrongPurpose)), "{error:?}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_and_told_so() {
    let ca = TestCa::new("acme");
    let node = ca.tls(Role::Node, "1");
    let current = node.shared.current.load_full();
    let trust = Arc::new(node_verifier(&current, ExpectedPeer::AnyNode));
    let config = rustls::ClientConfig::builder_with_provider(verifier::provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(trust)
        .with_no_client_auth();
    let (at_server, at_client) = loopback().await;
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let call = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, at_client).await.unwrap();
        stream.read_u8().await.unwrap_err()
    };
    let (server, told) = tokio::join!(node.accept(at_server), call);
    assert!(matches!(server, Err(TlsError::NoPeerCertificate)), "{:?}", server.err());
    let told = TlsError::refusal_by_peer(&told).unwrap();
    assert!(told.contains("none was offered"), "{told}");
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let ca = TestCa::new("acme");
    let (node, agent) = (ca.tls(Role::Node, "1"), ca.tls(Role::Agent, "PC-0001"));
    let current = agent.shared.current.load_full();
    let verifier = Arc::new(node_verifier(&current, ExpectedPeer::AnyNode));
    let mut config = client_config(&current.certified, verifier).unwrap();
    // A client that would like to.
    config.resumption = rustls::client::Resumption::default();
    let config = Arc::new(config);
    for _ in 0..3 {
        let (at_server, at_client) = loopback().await;
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let call = TlsConnector::from(config.clone()).connect(name, at_client);
        let (served, called) = tokio::join!(node.accept(at_server), call);
        let (mut served, mut called) = (served.unwrap().0, called.unwrap());
        // What a server has to say about resumption comes with its first bytes.
        served.write_all(b"!").await.unwrap();
        served.flush().await.unwrap();
        called.read_u8().await.unwrap();
        assert_eq!(called.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_refused_client_that_is_still_sending_is_not_cut_off_before_it_can_read_why() {
    let ca = TestCa::new("acme");
    let now = unix_now();
    let client = misuse(&ca, between(Role::Agent, "PC-0001", now - 20, now - 10));
    let node = ca.tls(Role::Node, "1");
    let (at_server, at_client) = loopback().await;
    let call = async {
        let mut stream = client.connect(at_client, ExpectedPeer::AnyNode).await.unwrap();
        stream.write_all(&[0; 100_000]).await.unwrap();
        stream.flush().await.unwrap();
        let refusal = stream.read_u8().await.unwrap_err();
        assert!(TlsError::refusal_by_peer(&refusal).is_some(), "{refusal:?}");
        stream.get_mut().0.read(&mut [0]).await
    };
    let (server, end) = tokio::join!(node.accept(at_server), call);
    assert!(matches!(server, Err(TlsError::Peer(CertificateFault::Expired { .. }))));
    assert_eq!(end.expect("an orderly end, not a reset"), 0);
}

#[tokio::test]
async fn a_silent_client_meets_the_deadline_of_the_handshake() {
    let ca = TestCa::new("acme");
    let limit = Duration::from_millis(50);
    let node = ca.tls(Role::Node, "1").with_handshake_timeout(limit);
    let (at_server, _silent) = loopback().await;
    let outcome = tokio::time::timeout(PATIENCE, node.accept(at_server)).await.expect("in time");
    assert!(matches!(outcome, Err(TlsError::HandshakeTimeout { after }) if after == limit));
}

#[tokio::test]
async fn a_client_meets_the_deadline_at_a_silent_server() {
    let ca = TestCa::new("acme");
    let client = ca.tls(Role::Agent, "PC-0001").with_handshake_timeout(Duration::from_millis(50));
    let (_silent, at_client) = loopback().await;
    let outcome = client.connect(at_client, ExpectedPeer::AnyNode);
    let outcome = tokio::time::timeout(PATIENCE, outcome).await.expect("in time");
    assert!(matches!(outcome, Err(TlsError::HandshakeTimeout { .. })));
}

#[tokio::test]
async fn plain_text_is_a_failed_handshake_and_no_verdict_on_a_certificate() {
    let ca = TestCa::new("acme");
    let node = ca.tls(Role::Node, "1");
    let (at_server, mut at_client) = loopback().await;
    at_client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (outcome, ()) = tokio::join!(node.accept(at_server), async move {
        let mut rest = Vec::new();
        // It hears an alert it does not understand, and hangs up.
        let _ = at_client.read_to_end(&mut rest).await;
    });
    assert!(matches!(outcome, Err(TlsError::Handshake(_))), "{:?}", outcome.err());
}

#[test]
fn a_refusal_is_found_behind_wrappers_and_where_only_its_text_is_left() {
    use rustls::AlertDescription::{CertificateRevoked, InternalError};
    let refusal = || std::io::Error::other(rustls::Error::AlertReceived(CertificateRevoked));
    let revoked = Some("the server refused our certificate: it is revoked".to_owned());
    assert_eq!(TlsError::refusal_by_peer(&refusal()), revoked);
    assert_eq!(TlsError::refusal_by_peer(&TlsError::Handshake(refusal())), revoked);
    assert_eq!(TlsError::refusal_by_peer(&std::io::Error::other(refusal().to_string())), revoked);
    let other = std::io::Error::other(rustls::Error::AlertReceived(InternalError));
    assert_eq!(TlsError::refusal_by_peer(&other), None);
    assert_eq!(TlsError::refusal_by_peer(&std::io::Error::from(std::io::ErrorKind::ConnectionReset)), None);
}
