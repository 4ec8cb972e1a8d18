//! Who gets in: certificates of a wrong role, of a wrong machine, of another cluster, revoked, expired. Each is
//! refused with an error that says why, and nothing is changed.

mod common;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use common::*;
use strongroom::escrow::ids::Role;
use strongroom::tls::ca::{Authority, IssueRequest, Selector, Validity};

/// One cluster for the whole file: forming one takes longer than all that is asked of it.
struct Access {
    test: TestCluster,
    authority: Authority,
    known_key: String,
}

impl Access {
    async fn new() -> Self {
        let test = three_nodes().await;
        let authority = Authority::open(&test.cluster.layout().authority()).expect("the cluster's CA");
        let receipt = test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
        Self { test, authority, known_key: receipt.key_id.to_string() }
    }

    /// A profile of `role` and `name` from the cluster's CA.
    fn profile(&self, request: IssueRequest) -> PathBuf {
        let dir = self.test.dir.path().join(format!("other-{}-{}", request.role, request.name));
        let issued = self.authority.issue(request).expect("issued");
        self.authority.write_profile(&dir, &issued).expect("written");
        dir
    }

    fn escrow_as(&self, profile: &std::path::Path, machine: &str) -> Output {
        let secret = String::from_utf8(deposit(2).secret.expose().to_vec()).expect("digits");
        let arguments = ["escrow", "--machine", machine, "--volume", "C:", "--kind", "bitlocker-password"];
        self.test.run_as(profile, &ALL, &arguments, &secret)
    }

    fn recover_as(&self, profile: &std::path::Path, more: &[&str]) -> Output {
        let mut arguments = vec!["recover", &self.known_key, "--reason", "locked out"];
        arguments.extend(more);
        self.test.run_as(profile, &ALL, &arguments, "")
    }

    fn named(&self, profile: &str) -> PathBuf {
        self.test.cluster.layout().profile(profile)
    }
}

/// Asserts that a command was denied, and that its error says `why`.
#[track_caller]
fn assert_denied(output: &Output, why: &str) {
    assert!(output.stdout.is_empty(), "nothing is shown");
    let (code, error) = failure(output);
    assert_eq!(code, 4, "{error}");
    assert_eq!(error["code"], "denied");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(why), "{message:?} does not say {why:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_certificate_gets_in() {
    let access = Access::new().await;
    roles(&access);
    machines_and_users(&access);
    other_authorities(&access);
    expired(&access);
    revoked(&access);
    peers_only(&access).await;
}

fn roles(access: &Access) {
    assert_denied(&access.escrow_as(&access.named("helpdesk"), "PC-00002"), "role helpdesk");
    assert_denied(&access.escrow_as(&access.named("operator"), "PC-00002"), "role operator");
    for profile in ["operator", "auditor", "officer", "importer", "agent-PC-0001"] {
        assert_denied(&access.recover_as(&access.named(profile), &[]), "role ");
    }
    let add = access.test.strongroom("helpdesk", &ALL, &["member", "add", "127.0.0.1:1"]);
    assert_denied(&add, "role helpdesk");
}

fn machines_and_users(access: &Access) {
    assert_denied(&access.escrow_as(&access.named("agent-PC-0001"), "PC-00002"), "PC-0001");
    assert!(access.escrow_as(&access.named("agent-PC-0001"), "PC-0001").status.success(), "its own machine");

    let helpdesk = access.named("helpdesk");
    let wrong_user = access.recover_as(&helpdesk, &["--user", r"CORP\somebody"]);
    assert_denied(&wrong_user, "");
    let no_user = access.recover_as(&helpdesk, &[]);
    assert!(matches!(failure(&no_user).0, 2 | 4), "the user must be named");
    assert!(
        access.recover_as(&helpdesk, &["--user", r"corp\USER1"]).status.success(),
        "a user of the machine"
    );
}

/// A certificate of an authority that the cluster does not know, under the cluster's own name and under another.
fn other_authorities(access: &Access) {
    let dir = access.test.dir.path();
    for cluster in ["test", "elsewhere"] {
        let name = cluster.parse().expect("a cluster name");
        let authority = Authority::create(&dir.join(format!("ca-of-{cluster}")), name, None).expect("a CA");
        let profile = dir.join(format!("stranger-of-{cluster}"));
        let issued = authority.issue(IssueRequest::new(Role::HelpdeskAdvanced, "stranger")).expect("issued");
        authority.write_profile(&profile, &issued).expect("written");
        // By itself it does not trust the nodes …
        assert_denied(&access.recover_as(&profile, &[]), "not issued by a CA that is trusted here");
        // … and if it is made to, they do not trust it.
        let ca = profile.join("ca.crt");
        let both = [std::fs::read(&ca), std::fs::read(access.named("helpdesk").join("ca.crt"))];
        std::fs::write(&ca, both.map(|pem| pem.expect("readable")).concat()).expect("written");
        let refused = if cluster == "test" { "refused our certificate" } else { "cluster" };
        assert_denied(&access.recover_as(&profile, &[]), refused);
    }
}

fn expired(access: &Access) {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let mut request = IssueRequest::new(Role::HelpdeskAdvanced, "yesterday");
    request.validity = Some(Validity::Between { not_before: now - 7_200, not_after: now - 3_600 });
    let output = access.recover_as(&access.profile(request), &[]);
    let (code, error) = failure(&output);
    assert!(matches!(code, 2 | 4), "exit code {code}");
    assert!(error["message"].as_str().expect("a message").contains("expired"), "{error}");
}

fn revoked(access: &Access) {
    let profile = access.profile(IssueRequest::new(Role::HelpdeskAdvanced, "leaver"));
    assert!(access.recover_as(&profile, &[]).status.success(), "before it is revoked");
    let identity = "spiffe://test/helpdesk-advanced/leaver".parse().expect("an identity");
    access.authority.revoke(&Selector::Identity(identity)).expect("revoked");
    // The nodes notice the new list by themselves.
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let output = access.recover_as(&profile, &[]);
        if !output.status.success() {
            assert_denied(&output, "revoked");
            break;
        }
        assert!(std::time::Instant::now() < deadline, "a revoked certificate is still accepted");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A client certificate is of no use on the peer port, and silence on any port is ended.
async fn peers_only(access: &Access) {
    let layout = access.test.cluster.layout();
    let node = layout.node(1).expect("a node");
    let peer: SocketAddr = node.peer_address().parse().expect("an address");
    TcpStream::connect(peer).expect("the port is open");
    let tls = strongroom::tls::Tls::load(strongroom::tls::TlsPaths::profile(&access.named("operator")))
        .expect("loaded");
    let peers = strongroom::raft::peers::Peers::new(tls, std::sync::Arc::default());
    let mut client = peers.stranger(&node.peer_address(), strongroom::tls::ExpectedPeer::Node(1));
    let status = client.describe(strongroom::proto::peer::DescribeRequest {}).await.expect_err("not a node");
    // The connection is closed before it has asked anything: the error is of this end's making.
    assert!(std::error::Error::source(&status).is_some(), "{status}");
}
