//! Certificates in life, on running clusters: renewal and a change of CA under load, certificates that end, and what
//! nodes say to each other's bad ones.

mod common;
#[path = "certificates/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::*;
use strongroom::cli::local_cluster::LocalCluster;
use strongroom::client::{Client, ClientError, ClientOptions, Preference};
use strongroom::escrow::ids::{NodeId, Role};
use strongroom::tls::ca::{Authority, FileNames, IssueRequest, Selector, Validity};
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How often a client looks at its files.
const CLIENT_POLL: Duration = Duration::from_millis(200);
/// Clients of the load that escrow.
const CLIENTS: usize = 4;
/// The profile of those that look up and reveal.
const READER: &str = "helpdesk-advanced";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A layout in which every node has a revocation list of its own, as on hosts of its own. Nothing runs yet.
fn layout() -> TestCluster {
    layout_with("")
}

/// As [`layout`], with more lines in each configuration.
fn layout_with(extra: &str) -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let cluster = LocalCluster::open_or_create(dir.path(), &plan(extra), program()).expect("a layout");
    let shared = cluster.layout().authority().join("crl.pem");
    for node in &cluster.layout().nodes {
        let own = node.dir.join("crl.pem");
        std::fs::copy(&shared, &own).expect("copied");
        let config = std::fs::read_to_string(node.config_path()).expect("readable");
        let config = config.replace(&shared.display().to_string(), &own.display().to_string());
        std::fs::write(node.config_path(), config).expect("written");
    }
    TestCluster { cluster, dir }
}

/// A load whose clients watch their files for as long as this lives.
struct Watching {
    load: Load,
    importers: Vec<Tls>,
    readers: Vec<Tls>,
    _stop: tokio_util::sync::DropGuard,
}

/// Waits for a condition that other processes bring about.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {} s", SOON.as_secs());
        sleep(Duration::from_millis(50)).await;
    }
}

/// What is done to files, by the command line, and around it.
impl TestCluster {
    fn path(&self, name: &str) -> PathBuf {
        self.cluster.layout().dir.join(name)
    }

    fn node_dir(&self, id: NodeId) -> PathBuf {
        self.cluster.layout().node(id).expect("a node").dir.clone()
    }

    fn profile(&self, name: &str) -> PathBuf {
        self.cluster.layout().profile(name)
    }

    /// Every bundle of the cluster: of the nodes and of the profiles in use.
    fn bundles(&self) -> Vec<PathBuf> {
        let nodes = ALL.map(|id| self.node_dir(id));
        let profiles = ["importer", "operator", READER].map(|name| self.profile(name));
        nodes.into_iter().chain(profiles).map(|dir| dir.join("ca.crt")).collect()
    }

    /// `strongroom cert …` in the cluster's directory.
    fn cert(&self, line: &str) {
        let mut command = Command::new(program());
        command.arg("cert").args(line.split_whitespace()).current_dir(&self.cluster.layout().dir);
        let output = run(command, "");
        assert!(output.status.success(), "cert {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Gives every node these revocation lists.
    fn distribute_lists(&self, authorities: &[&str]) {
        let lists =
            authorities.iter().map(|dir| std::fs::read(self.path(dir).join("crl.pem")).expect("a list"));
        let lists = lists.collect::<Vec<_>>().concat();
        for id in ALL {
            std::fs::write(self.node_dir(id).join("crl.pem"), &lists).expect("written");
        }
    }

    fn client_of(&self, tls: Tls, nodes: &[NodeId]) -> Client {
        let layout = self.cluster.layout();
        let address =
            |id: &NodeId| layout.node(*id).expect("a node").api_address().parse().expect("an address");
        let options = ClientOptions { preference: Preference::AsGiven, ..ClientOptions::default() };
        Client::new(nodes.iter().map(address).collect(), tls, options).expect("a client")
    }

    /// A load of clients that watch their files: some escrow, some look up and reveal.
    fn watching_load(&self) -> Watching {
        let stop = CancellationToken::new();
        let watching = |profile: &str, clients: usize| -> (Vec<Tls>, Vec<Client>) {
            let paths = TlsPaths::profile(&self.profile(profile));
            let one = |number: usize| {
                let tls = Tls::load(paths.clone()).expect("loaded");
                let (watched, stop) = (tls.clone(), stop.clone());
                tokio::spawn(async move { watched.watch(CLIENT_POLL, stop).await });
                let mut nodes = ALL;
                nodes.rotate_left(number % ALL.len());
                let client = self.client_of(tls.clone(), &nodes);
                (tls, client)
            };
            (0..clients).map(one).unzip()
        };
        let (importers, writing) = watching("importer", CLIENTS);
        let (readers, reading) = watching(READER, ALL.len());
        let load = Load::of(writing, Duration::ZERO).with_readers_of(reading);
        Watching { load, importers, readers, _stop: stop.drop_guard() }
    }

    /// The serial number of the certificate that a node shows now.
    async fn served_by(&self, id: NodeId, probe: &Tls) -> String {
        let address = self.cluster.layout().node(id).expect("a node").api_address();
        let tcp = TcpStream::connect(address).await.expect("the port is open");
        let stream = probe.connect(tcp, ExpectedPeer::Node(id)).await.expect("a good certificate");
        probe.server_certificate(&stream, ExpectedPeer::Node(id)).expect("good").serial
    }

    /// Renews a node in place from `authority` and waits until it shows the new certificate.
    async fn renew_node(&self, id: NodeId, authority: &str, probe: &Tls) {
        let before = self.served_by(id, probe).await;
        self.cert(&format!("renew --dir {authority} node-{id}/node.crt"));
        until("the renewed certificate is shown", async || self.served_by(id, probe).await != before).await;
    }

    /// Renews the profiles of the load and waits until every client uses them.
    async fn renew_clients(&self, authority: &str, of: &Watching) {
        for (profile, clients) in [("importer", &of.importers), (READER, &of.readers)] {
            let before = clients[0].serial();
            self.cert(&format!("renew --dir {authority} profiles/{profile}/client.crt"));
            until("the clients use it", async || clients.iter().all(|tls| tls.serial() != before)).await;
        }
    }

    /// Whether each node takes this caller.
    async fn taken_by_all(&self, tls: &Tls) -> [bool; 3] {
        let mut taken = [false; 3];
        for (taken, id) in taken.iter_mut().zip(ALL) {
            *taken = match self.client_of(tls.clone(), &[id]).status().await {
                Ok(_) => true,
                Err(ClientError::Refused { .. } | ClientError::Denied(_)) => false,
                Err(error) => panic!("node {id}: {error}"),
            };
        }
        taken
    }

    /// An operator of a CA who believes the CAs of the importer's bundle as it is now.
    fn operator_of(&self, authority: &Authority, name: &str) -> Tls {
        let dir = self.path(name);
        let issued = authority.issue(IssueRequest::new(Role::Operator, name)).expect("issued");
        authority.write_profile(&dir, &issued).expect("written");
        std::fs::copy(self.profile("importer").join("ca.crt"), dir.join("ca.crt")).expect("copied");
        Tls::load(TlsPaths::profile(&dir)).expect("loaded")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_change_of_ca_under_load_fails_no_request() {
    let mut test = layout();
    test.cluster.form().await.expect("a cluster forms");
    let watching = test.watching_load();
    watching.load.progress(20).await;

    // The new CA, and a bundle of both to everybody; the revocation lists of both to the nodes.
    test.cert("ca --dir ca-2 --cluster test");
    let (old, new) = ["ca", "ca-2"].map(|dir| Authority::open(&test.path(dir)).expect("a CA")).into();
    for bundle in test.bundles() {
        test.cert(&format!("trust --bundle {} --add ca-2/ca.crt", bundle.display()));
    }
    let (of_old, of_new) = (test.operator_of(&old, "of-old"), test.operator_of(&new, "of-new"));
    let leavers = [test.operator_of(&old, "old-leaver"), test.operator_of(&new, "new-leaver")];
    until("both CAs are believed", async || {
        test.taken_by_all(&of_old).await == [true; 3] && test.taken_by_all(&of_new).await == [true; 3]
    })
    .await;
    test.cert("revoke --dir ca --identity spiffe://test/operator/old-leaver");
    test.cert("revoke --dir ca-2 --identity spiffe://test/operator/new-leaver");
    test.distribute_lists(&["ca", "ca-2"]);
    for leaver in &leavers {
        until("both lists count", async || test.taken_by_all(leaver).await == [false; 3]).await;
    }
    watching.load.progress(20).await;

    // Everybody from the new CA, one after the other.
    for id in ALL {
        test.renew_node(id, "ca-2", &of_new).await;
        watching.load.progress(10).await;
    }
    test.renew_clients("ca-2", &watching).await;
    test.cert("renew --dir ca-2 profiles/operator/client.crt");
    watching.load.progress(20).await;

    // The old CA goes.
    for bundle in test.bundles() {
        test.cert(&format!("trust --bundle {} --remove ca/ca.crt", bundle.display()));
    }
    test.distribute_lists(&["ca-2"]);
    until("the old CA is refused", async || test.taken_by_all(&of_old).await == [false; 3]).await;
    assert_eq!(test.taken_by_all(&of_new).await, [true; 3]);
    watching.load.progress(50).await;
    let (acknowledged, failed) = watching.load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());

    test.cluster.wait_settled(&ALL).await.expect("all nodes agree");
    let sample: Vec<_> = acknowledged.iter().step_by(acknowledged.len() / 20 + 1).cloned().collect();
    for id in ALL {
        assert_all_readable(&test, id, &sample).await;
    }
    receipts_of_both(&test, &acknowledged.first().expect("some").1, &acknowledged.last().expect("some").1);
}

/// A receipt of the old CA's time verifies with that CA, and one of the new CA's with the profile.
fn receipts_of_both(
    test: &TestCluster,
    early: &strongroom::seal::receipt::Receipt,
    late: &strongroom::seal::receipt::Receipt,
) {
    let verify = |receipt, more: &[&str]| {
        let file = test.path("receipt.json");
        std::fs::write(&file, serde_json::to_vec(receipt).expect("JSON")).expect("written");
        let arguments = [&["receipt", "verify", file.to_str().expect("UTF-8")], more].concat();
        test.strongroom("importer", &ALL, &arguments)
    };
    assert!(verify(late, &[]).status.success());
    let (code, error) = failure(&verify(early, &[]));
    assert_eq!(code, 1);
    assert!(error["hint"].as_str().expect("a hint").contains("--ca FILE"), "{error}");
    let old = test.path("ca/ca.crt");
    assert!(verify(early, &["--ca", old.to_str().expect("UTF-8")]).status.success());
}

/// Connections live longer than certificates: what was renewed in time goes on when the first certificates end.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_renewed_in_time_outlives_its_first_certificates_without_a_failed_request() {
    let mut test = layout();
    let authority = Authority::open(&test.path("ca")).expect("the CA");
    let end = now() + 75;
    let short = |role, name: &str| {
        let validity = Some(Validity::Between { not_before: now() - 600, not_after: end });
        authority.issue(IssueRequest { validity, ..IssueRequest::new(role, name) }).expect("issued")
    };
    for id in ALL {
        let issued = short(Role::Node, &id.to_string());
        authority.replace(&test.node_dir(id), &issued, FileNames::NODE).expect("written");
    }
    for (role, profile) in [(Role::Importer, "importer"), (Role::HelpdeskAdvanced, READER)] {
        let issued = short(role, profile);
        authority.replace(&test.profile(profile), &issued, FileNames::CLIENT).expect("written");
    }
    test.cluster.form().await.expect("a cluster forms");
    let watching = test.watching_load();
    watching.load.progress(20).await;
    for id in ALL {
        // So short a life is warned about from the start.
        test.logs(id, "renew it").await;
    }
    let probe = test.operator_of(&authority, "probe");
    for id in ALL {
        test.renew_node(id, "ca", &probe).await;
        watching.load.progress(10).await;
    }
    test.renew_clients("ca", &watching).await;
    assert!(now() < end, "renewed in time");
    while now() <= end + 1 {
        watching.load.progress(10).await;
    }
    watching.load.progress(50).await;
    let (acknowledged, failed) = watching.load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    test.cluster.wait_settled(&ALL).await.expect("no node was left behind");
    // Rotating a certificate never makes a stored key unreadable.
    let sample: Vec<_> = acknowledged.iter().step_by(acknowledged.len() / 20 + 1).cloned().collect();
    for id in ALL {
        assert_all_readable(&test, id, &sample).await;
    }
}

/// A node that is revoked while it runs is out of the cluster at once, both ends say why, and a new certificate in its
/// place brings it back without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_refused_by_all_and_comes_back_with_a_new_certificate() {
    let mut test = layout();
    test.cluster.form().await.expect("a cluster forms");
    let authority = Authority::open(&test.path("ca")).expect("the CA");
    authority
        .revoke(&Selector::Identity("spiffe://test/node/3".parse().expect("an identity")))
        .expect("revoked");
    let list = std::fs::read(test.path("ca/crl.pem")).expect("a list");
    for id in [1, 2] {
        std::fs::write(test.node_dir(id).join("crl.pem"), &list).expect("written");
    }
    test.logs(3, "refused our certificate: it is revoked").await;
    // Whoever leads dials node 3, and node 3 dials when it stands for election.
    until("a node says that it refuses node 3", async || {
        [1, 2].iter().any(|id| test.log(*id).contains("the other side's certificate is revoked"))
    })
    .await;
    let leader = test.cluster.wait_for("a leader of the others", SOON, &[1, 2], |status| {
        status.leader.is_some_and(|leader| leader != 3)
    });
    leader.await.expect("the others go on");
    test.client("importer", &[1, 2]).escrow(&deposit(7)).await.expect("a majority is left");

    let issued = authority.issue(IssueRequest::new(Role::Node, "3")).expect("issued");
    authority.replace(&test.node_dir(3), &issued, FileNames::NODE).expect("written");
    test.cluster.wait_settled(&ALL).await.expect("node 3 is back");
}

/// What is done to a node's files while it runs, and what it says of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_reports_files_it_cannot_use_and_goes_on_with_the_old_ones() {
    let mut test = layout();
    test.cluster.form().await.expect("a cluster forms");
    let probe = Tls::load(TlsPaths::profile(&test.profile("operator"))).expect("loaded");
    let before = test.served_by(1, &probe).await;
    let authority = Authority::open(&test.path("ca")).expect("the CA");
    let renewed = authority
        .renew(&Selector::Identity("spiffe://test/node/1".parse().expect("an identity")), None)
        .expect("renewed");
    let dir = test.node_dir(1);
    std::fs::write(dir.join("node.crt"), &renewed.cert_pem).expect("written");
    test.logs(1, "is not the private key of the certificate").await;
    assert_eq!(test.served_by(1, &probe).await, before, "the old pair stays in use");
    std::fs::write(dir.join("node.key"), renewed.key_pem.expose()).expect("written");
    until("the pair is whole", async || test.served_by(1, &probe).await == renewed.record.serial).await;

    permit(&dir.join("node.key"), 0o640);
    test.logs(1, "mode 0640").await;
    std::fs::remove_file(dir.join("crl.pem")).expect("removed");
    permit(&dir.join("node.key"), 0o600);
    test.logs(1, "crl.pem: No such file").await;
    assert_eq!(test.served_by(1, &probe).await, renewed.record.serial);
}

fn permit(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permitted");
}

#[test]
fn a_node_does_not_start_with_a_private_key_that_others_may_read_or_write() {
    let test = layout_with("[identity]\nnode_key = \"identity.key\"\n");
    let node = test.cluster.layout().node(1).expect("a node").clone();
    let identity = node.dir.join("identity.key");
    std::fs::write(&identity, "").expect("written");
    permit(&identity, 0o600);
    for key in [node.dir.join("node.key"), identity] {
        for mode in [0o640, 0o604, 0o602, 0o620] {
            permit(&key, mode);
            let mut command = Command::new(program());
            command.args(["server", "--config"]).arg(node.config_path());
            let output = run(command, "");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{said}");
            assert!(said.contains(&format!("mode {mode:04o}")), "{said}");
            assert!(said.contains(&format!("chmod 600 {}", key.display())), "{said}");
        }
        permit(&key, 0o600);
    }
}
