//! Bad certificates on the wire between nodes. A node that runs refuses to load most of them itself, so here one end is
//! a process of a node and the other one is the test.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use strongroom::tls::TlsError;
use strongroom::tls::ca::Issued;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// A certificate that nodes must refuse, and how.
struct Bad {
    what: &'static str,
    issued: Issued,
    /// In the log of the node that refuses it.
    logged: &'static str,
    /// What the one who showed it is told.
    told: &'static str,
}

/// A CA for another cluster, which node 1 believes as well, and bad certificates of all kinds.
fn bad_certificates(test: &TestCluster) -> Vec<Bad> {
    let ours = Authority::open(&test.path("ca")).expect("the CA");
    let other_ca =
        Authority::create(&test.path("stranger"), "test".parse().expect("a name"), None).expect("a CA");
    let elsewhere =
        Authority::create(&test.path("elsewhere"), "elsewhere".parse().expect("a name"), None).expect("a CA");
    let bundle = ["ca", "elsewhere"].map(|dir| std::fs::read(test.path(dir).join("ca.crt")).expect("a CA"));
    for id in ALL {
        std::fs::write(test.node_dir(id).join("ca.crt"), bundle.concat()).expect("written");
    }
    let node_3 = |authority: &Authority, validity| {
        authority.issue(IssueRequest { validity, ..IssueRequest::new(Role::Node, "3") }).expect("issued")
    };
    let between = |not_before, not_after| Some(Validity::Between { not_before, not_after });
    let revoked = node_3(&ours, None);
    ours.revoke(&Selector::Serial(revoked.record.serial.clone())).expect("revoked");
    test.distribute_lists(&["ca"]);
    let bad = |what, issued, logged, told| Bad { what, issued, logged, told };
    let now = now();
    vec![
        bad("expired", node_3(&ours, between(now - 7_200, now - 3_600)), "certificate expired at", "expired"),
        bad(
            "not yet valid",
            node_3(&ours, between(now + 3_600, now + 7_200)),
            "certificate is not valid before",
            "not yet valid",
        ),
        bad("revoked", revoked, "certificate is revoked", "it is revoked"),
        bad(
            "of another CA",
            node_3(&other_ca, None),
            "certificate was not issued by a CA that is trusted here",
            "not issued by a CA",
        ),
        bad(
            "of another cluster",
            node_3(&elsewhere, None),
            "is for spiffe://elsewhere/node/3, but this is cluster test",
            "another cluster",
        ),
    ]
}

fn chain_and_key(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).expect("a certificate")];
    (chain, PrivateKeyDer::from_pem_slice(issued.key_pem.expose()).expect("a key"))
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_with_bad_certificates_are_refused_on_the_peer_port_and_both_ends_know_why() {
    let mut test = layout();
    let mut callers = bad_certificates(&test);
    let ours = Authority::open(&test.path("ca")).expect("the CA");
    callers.push(Bad {
        what: "of a client role",
        issued: ours.issue(IssueRequest::new(Role::Operator, "ops")).expect("issued"),
        logged: "is for spiffe://test/operator/ops, which is not a node",
        told: "not a node",
    });
    test.cluster.form().await.expect("a cluster forms");
    let address = test.cluster.layout().node(1).expect("a node").peer_address();
    for Bad { what, issued, logged, told } in callers {
        let (chain, key) = chain_and_key(&issued);
        let config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelievesAnybody))
            .with_client_auth_cert(chain, key)
            .expect("a configuration");
        let tcp = TcpStream::connect(&address).await.expect("the port is open");
        let name = ServerName::try_from("localhost").expect("a name");
        // The refusal comes with the first read at the latest.
        let heard = match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
            Ok(mut stream) => stream.read_u8().await.expect_err(what),
            Err(error) => error,
        };
        let heard = TlsError::refusal_by_peer(&heard).unwrap_or_else(|| panic!("{what}: told {heard:?}"));
        assert!(heard.contains(told), "{what}: told {heard}");
        test.logs(1, logged).await;
    }
    // Nobody was disturbed.
    test.cluster.wait_settled(&ALL).await.expect("all nodes agree");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_answers_in_a_nodes_place_is_refused_and_both_ends_know_why() {
    let mut test = layout();
    let mut servers = bad_certificates(&test);
    let ours = Authority::open(&test.path("ca")).expect("the CA");
    servers.push(Bad {
        what: "of another node",
        issued: ours.issue(IssueRequest::new(Role::Node, "2")).expect("issued"),
        logged: "is for spiffe://test/node/2, but node 3 was meant",
        told: "another node than was meant",
    });
    servers.push(Bad {
        what: "of a client role",
        issued: ours.issue(IssueRequest::new(Role::Operator, "ops")).expect("issued"),
        logged: "may not be used for this purpose",
        told: "may not be used for this purpose",
    });
    test.cluster.form().await.expect("a cluster forms");
    test.cluster.stop(3).await.expect("stopped");
    let leader = test.cluster.wait_for("a leader of the others", SOON, &[1, 2], |status| {
        status.leader.is_some_and(|leader| leader != 3)
    });
    let leader = leader.await.expect("a leader").leader.expect("just seen");
    let address = test.cluster.layout().node(3).expect("a node").peer_address();
    let listener = TcpListener::bind(&address).await.expect("node 3 is gone");
    for Bad { what, issued, logged, told } in servers {
        let (chain, key) = chain_and_key(&issued);
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a configuration");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let deadline = Instant::now() + SOON;
        // A caller that was waiting with the certificate before, or that gave up, says nothing about this one.
        let heard = loop {
            let accepted = tokio::time::timeout_at(deadline, listener.accept()).await;
            let (tcp, _) = accepted.unwrap_or_else(|_| panic!("{what}: nobody calls")).expect("accepted");
            let refusal = match acceptor.accept(tcp).await {
                Ok(_) => panic!("{what}: it was believed"),
                Err(error) => TlsError::refusal_by_peer(&error),
            };
            if let Some(heard) = refusal {
                break heard;
            }
        };
        assert!(heard.contains(told), "{what}: told {heard}");
        test.logs(leader, logged).await;
    }
}

/// A caller that takes anybody for a node.
#[derive(Debug)]
struct BelievesAnybody;

impl ServerCertVerifier for BelievesAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
