//! What the tests of running clusters share: a cluster of real processes in a directory of its own, keys to put
//! into it, and the command line as a caller uses it.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod admin;
mod base;
mod disk;
mod held;
mod load;
mod logs;
mod seeded;

pub mod network;
pub mod peers;
pub mod trail;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::client::{Client, Deposit};
use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::escrow::secrets::{SecretKind, bitlocker};
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;

pub use self::admin::*;
pub use self::base::*;
pub use self::disk::*;
pub use self::held::*;
pub use self::load::*;
pub use self::logs::*;
pub use self::seeded::*;

/// The three voters of a test cluster.
pub const ALL: [NodeId; 3] = [1, 2, 3];
/// The other two.
pub fn others(node: NodeId) -> Vec<NodeId> {
    ALL.into_iter().filter(|id| *id != node).collect()
}

/// What a page of metrics says of one that has no labels.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

/// Longest a test waits for something that should happen soon.
pub const SOON: Duration = Duration::from_secs(30);

/// A running cluster and the directory it lives in, both gone when dropped.
pub struct TestCluster {
    pub cluster: LocalCluster,
    pub dir: tempfile::TempDir,
}

/// The binary under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_strongroom"))
}

/// Three voters that have applied the same state.
pub async fn three_nodes() -> TestCluster {
    three_nodes_with("").await
}

/// Three voters with more lines in their configuration.
pub async fn three_nodes_with(extra_config: &str) -> TestCluster {
    formed(&plan(extra_config)).await
}

/// Three voters, and nodes up to `nodes` that are prepared to be added later.
pub async fn three_of(nodes: u64, extra_config: &str) -> TestCluster {
    formed(&ClusterPlan { nodes, ..plan(extra_config) }).await
}

async fn formed(plan: &ClusterPlan) -> TestCluster {
    let mut test = laid_out(plan);
    test.cluster.form().await.expect("a cluster forms");
    test
}

/// A cluster of which nothing runs yet.
pub fn laid_out(plan: &ClusterPlan) -> TestCluster {
    laid_out_for(plan, program())
}

/// As [`laid_out`], its nodes to be run by something that runs the binary under test.
pub fn laid_out_for(plan: &ClusterPlan, program: PathBuf) -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let cluster = LocalCluster::open_or_create(dir.path(), plan, program).expect("a layout");
    TestCluster { cluster, dir }
}

pub fn plan(extra_config: &str) -> ClusterPlan {
    ClusterPlan {
        name: "test".parse().expect("a cluster name"),
        nodes: 3,
        members: 3,
        base_port: None,
        extra_config: extra_config.to_owned(),
    }
}

impl TestCluster {
    pub fn client(&self, profile: &str, nodes: &[NodeId]) -> Client {
        self.cluster.client(profile, nodes).expect("a client")
    }

    pub async fn leader(&self) -> NodeId {
        let status = self.cluster.wait_for("a leader", SOON, &ALL, |status| status.leader.is_some()).await;
        status.expect("a leader").leader.expect("just seen")
    }

    /// A connection to `node` with the credentials of `profile`, for calls that [`Client`] would not make as they are.
    pub async fn channel(&self, profile: &str, node: NodeId) -> Channel {
        let layout = self.cluster.layout();
        let tls = Tls::load(TlsPaths::profile(&layout.profile(profile))).expect("credentials");
        let address = layout.node(node).expect("a node").api_address();
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let tcp = tokio::net::TcpStream::connect(address).await?;
                let stream = tls.connect(tcp, ExpectedPeer::AnyNode).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://node.test").connect_with_connector(connector).await.expect("connected")
    }

    /// The command line with the credentials of `profile` against `nodes`.
    pub fn strongroom(&self, profile: &str, nodes: &[NodeId], arguments: &[&str]) -> Output {
        self.strongroom_with_input(profile, nodes, arguments, "")
    }

    pub fn strongroom_with_input(
        &self,
        profile: &str,
        nodes: &[NodeId],
        arguments: &[&str],
        input: &str,
    ) -> Output {
        self.run_as(&self.cluster.layout().profile(profile), nodes, arguments, input)
    }

    /// As [`TestCluster::strongroom`] with a profile from anywhere.
    pub fn run_as(&self, profile: &Path, nodes: &[NodeId], arguments: &[&str], input: &str) -> Output {
        run(self.command(profile, nodes, arguments), input)
    }

    /// The command line as [`TestCluster::run_as`] runs it.
    pub fn command(&self, profile: &Path, nodes: &[NodeId], arguments: &[&str]) -> Command {
        let layout = self.cluster.layout();
        let endpoints: Vec<_> =
            nodes.iter().map(|id| layout.node(*id).expect("a node").api_address()).collect();
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("STRONGROOM_ENDPOINTS", endpoints.join(","))
            .env("STRONGROOM_PROFILE", profile)
            .env("STRONGROOM_OUTPUT", "json");
        command
    }
}

/// Runs a command to its end with `input` on standard input.
pub fn run(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    // A command that does not read its input closes the pipe: no fault of the test.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the command ends")
}

/// The exit code and the error document of a failed command.
pub fn failure(output: &Output) -> (i32, serde_json::Value) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let document = stderr.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let document: serde_json::Value = document.unwrap_or_else(|| panic!("no error document in: {stderr}"));
    (output.status.code().expect("not killed"), document["error"].clone())
}

/// The id of the key of [`deposit`].
pub fn key(n: u64) -> KeyId {
    deposit(n).key_id.expect("given")
}

/// A BitLocker key of machine `PC-<n>`, its secret made from `n`.
pub fn deposit(n: u64) -> Deposit {
    let halves: [u16; 8] = std::array::from_fn(|group| (n.wrapping_mul(2_654_435_761) >> (group * 4)) as u16);
    Deposit {
        machine: format!("PC-{n:05}").parse().expect("a machine id"),
        volume: "C:".parse().expect("a volume id"),
        kind: SecretKind::BitlockerPassword,
        key_id: Some(KeyId(Uuid::from_u64_pair(0x5742_0000_0000_4000, 0x8000_0000_0000_0000 | n))),
        secret: bitlocker::from_halves(halves),
        package: None,
        user: Some(format!(r"CORP\user{n}").parse().expect("a user")),
        pending: false,
    }
}
